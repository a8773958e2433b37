//! Hands out readings over HTTP, one after another.
//!
//! hyper speaks HTTP. What is here are the bounds: so many clients at a time, each for so
//! long. One thread does all of it, so that there is one reading at a time.

use std::cell::RefCell;
use std::collections::HashSet;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use super::exposition::Format;
use super::reading::Reading;
use crate::failure::{Failure, Outcome};
use crate::output;

/// How many clients are served at a time; others wait in the listener's queue.
const CLIENTS: usize = 16;
/// How long a client may take from connecting to its answer's last byte. Prometheus waits
/// ten seconds by default.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest request: its first line and headers.
const LONGEST_REQUEST: usize = 16 << 10;

/// Serves until SIGTERM or SIGINT.
pub(super) fn serve(
    address: SocketAddr,
    read: impl Fn() -> Result<Reading, Failure> + 'static,
) -> Outcome {
    let failed = |error: io::Error| Failure::new(format!("cannot serve metrics: {error}"));
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    LocalSet::new().block_on(&runtime, async {
        let mut signals = [SignalKind::terminate(), SignalKind::interrupt()]
            .map(signal)
            .into_iter()
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed)?;
        let listener = listen(address).await?;
        let address = listener.local_addr().map_err(failed)?;
        output::remark(&format!("metrics at http://{address}/metrics"));
        tokio::task::spawn_local(accept(listener, Rc::new(Exporter::new(read))));
        poll_fn(|context| {
            let came = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
            if came { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        Ok(())
    })
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => "is it running already? else choose another with --listen",
            io::ErrorKind::AddrNotAvailable => "give an address of this machine with --listen",
            io::ErrorKind::PermissionDenied => "choose a port from 1024 on with --listen",
            _ => "choose another with --listen",
        };
        Failure::new(format!("cannot listen on {address}: {error}; {remedy}"))
    })
}

/// Takes clients for good. Whatever becomes of one is none of the others' business.
async fn accept<R>(listener: TcpListener, exporter: Rc<Exporter<R>>)
where
    R: Fn() -> Result<Reading, Failure> + 'static,
{
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        let Ok((client, _)) = listener.accept().await else {
            // No descriptor is left, or the client has gone: the next try may do.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let exporter = Rc::clone(&exporter);
        tokio::task::spawn_local(async move {
            // One that is slow or broken has had its time.
            let _ = timeout(PATIENCE, converse(client, exporter)).await;
            drop(place);
        });
    }
}

/// One request, and its answer.
async fn converse<R>(client: TcpStream, exporter: Rc<Exporter<R>>) -> hyper::Result<()>
where
    R: Fn() -> Result<Reading, Failure> + 'static,
{
    let answer = service_fn(move |request: Request<_>| {
        let answer = exporter.answer(&request);
        async { Ok::<_, Infallible>(answer) }
    });
    http1::Builder::new()
        // A client that stays would hold a place. To connect anew costs it little.
        .keep_alive(false)
        .half_close(true)
        .max_buf_size(LONGEST_REQUEST)
        .serve_connection(TokioIo::new(client), answer)
        .await
}

struct Exporter<R> {
    read: R,
    /// What was wrong at the last scrape, told when it began.
    wrong: RefCell<HashSet<String>>,
}

impl<R: Fn() -> Result<Reading, Failure>> Exporter<R> {
    fn new(read: R) -> Self {
        Self { read, wrong: RefCell::default() }
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<String> {
        if request.uri().path() != "/metrics" {
            return plain(StatusCode::NOT_FOUND, "metrics are at /metrics");
        }
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match (self.read)() {
            Ok(reading) => {
                self.tell(reading.failures());
                let format = asked_for(request.headers());
                respond(StatusCode::OK, format.content_type(), reading.write(format))
            }
            Err(failure) => {
                let line = failure.to_string();
                self.tell([line.clone()]);
                plain(StatusCode::INTERNAL_SERVER_ERROR, &line)
            }
        }
    }

    /// Says what is wrong, but not at each scrape again.
    fn tell(&self, wrong: impl IntoIterator<Item = String>) {
        let wrong: HashSet<String> = wrong.into_iter().collect();
        for line in wrong.difference(&self.wrong.borrow()) {
            output::remark(line);
        }
        self.wrong.replace(wrong);
    }
}

/// `OpenMetrics` for who names it, as every Prometheus since 2.5 does.
fn asked_for(headers: &HeaderMap) -> Format {
    let named = headers
        .get_all(ACCEPT)
        .iter()
        .any(|value| value.as_bytes().starts_with(b"application/openmetrics-text"));
    if named { Format::OpenMetrics } else { Format::Classic }
}

fn plain(status: StatusCode, line: &str) -> Response<String> {
    respond(status, "text/plain; charset=utf-8", format!("{line}\n"))
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
