//! `overspill metrics`: every figure of every service, for Prometheus.
//!
//! `reading` reads the pinned state, `exposition` writes what was read, `server` hands it
//! out. Nothing is kept from one scrape to the next.

mod exposition;
mod reading;
mod server;

use std::net::SocketAddr;

use crate::args::{self, Places};
use crate::failure::Outcome;
use crate::help;
use crate::output;

use exposition::Format;
use reading::Reading;

/// Serve the figures of all services to Prometheus
///
/// Each scrape of http://ADDR:PORT/metrics reads the queues and counters at that moment, in
/// every network namespace with services: what show tells, under the same names. The format
/// is OpenMetrics for who asks for it, as Prometheus does, else Prometheus's older text.
/// A namespace that can't be read is told as overspill_up 0 and does not hide the others.
///
/// Who can connect can read: listen elsewhere than on loopback only where all who can
/// connect may see the services' names, addresses and figures.
#[derive(Debug, clap::Args)]
#[allow(clippy::doc_markdown)] // this is printed as it stands
#[command(add = help::Manual::text(include_str!("metrics.manual")))]
#[command(after_help = "\
EXAMPLES
  overspill metrics
  overspill metrics --listen 192.0.2.1:28534 --netns blue
  overspill metrics --once >overspill.prom.new && \\
      mv overspill.prom.new overspill.prom
  curl -s http://127.0.0.1:28534/metrics | grep overspill_member_state")]
pub(crate) struct Args {
    /// Listen for scrapes there
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:28534", value_parser = args::address)]
    listen: SocketAddr,

    /// Print the figures once instead, for node_exporter's textfile collector
    #[arg(long, conflicts_with = "listen")]
    once: bool,

    #[command(flatten)]
    places: Places,
}

pub(crate) fn run(args: Args) -> Outcome {
    let Args { listen, once, places } = args;
    // A server that could never answer is not worth starting.
    let reading = Reading::take(&places)?;
    if once {
        reading.failures().for_each(|failure| output::remark(&failure));
        return output::print(reading.write(Format::Classic).trim_end());
    }
    server::serve(listen, move || Reading::take(&places))
}
