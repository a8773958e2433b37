//! `overspill top`: a live screen.
//!
//! `book` keeps what was read, `state` what is shown of it and what keys do; both are pure, as
//! are `columns`, `plan`, `help` and `draw`, which put it on the screen. `act` is what is
//! changed; `screen` has the terminal.

mod act;
mod book;
mod columns;
mod draw;
mod help;
mod look;
mod plan;
mod screen;
mod state;

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use overspill::{Name, Namespace, Service, Status};

use self::act::Act;
use self::look::Look;
use self::screen::{Event, Screen, start_thread, watch_input, watch_signals};
use self::state::{State, Wish};
use crate::args::{self, Place};
use crate::complete;
use crate::failure::{Failure, Outcome};
use crate::identified::Identifier;

/// Watch the services on a live screen, drain members and change policies from it
///
/// It shows the services, and the members of the chosen one: their queues as bars of what
/// waits, what is half open and what is free, and the requests a second that were placed,
/// redirected, dropped and reset. Keys stand at its bottom; ? explains them and every column.
/// It reads what is pinned: it may come and go without touching the traffic, and nothing is
/// changed without an answer to a question.
#[derive(Debug, clap::Args)]
#[command(add = crate::help::Manual::text(include_str!("top.manual")))]
#[command(after_help = "\
EXAMPLES
  overspill top
  overspill top web --interval 0.5
  overspill top --netns blue --no-color")]
pub(crate) struct Args {
    /// The service that is chosen first [default: the first by name]
    #[arg(value_parser = args::name, add = complete::services())]
    name: Option<Name>,

    /// How often to read, in seconds; less often where a reading takes more than a tenth
    /// of that
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Duration,

    #[command(flatten)]
    place: Place,

    #[arg(
        long,
        help = "Use no colours; nor are any used where NO_COLOR is set or the terminal has none"
    )]
    no_color: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    let seconds = seconds.ok_or("it is a number of seconds from 0.1 to 3600")?;
    Ok(Duration::from_secs_f64(seconds))
}

pub(crate) fn run(args: &Args) -> Outcome {
    Screen::check()?;
    // By its number alone: an open file would keep a namespace alive that others end.
    let namespace = Namespace::numbered(args.place.namespace()?.inode());
    let chosen = args.name.as_ref().map(|name| Service::open_in(name.as_str(), &namespace));
    let chosen = chosen.transpose()?.map(|service| service.name().to_string());
    let title = format!("netns {}, every {} s", namespace.inode(), args.interval.as_secs_f64());
    let mut watch = Watch {
        state: State::new(title, chosen),
        began: Instant::now(),
        due: Instant::now(),
        interval: args.interval,
        identifier: Identifier::new(namespace.clone()),
        namespace,
    };
    // What can't be read now is told without a screen.
    let statuses = Service::statuses(&watch.namespace)?;
    watch.note(Duration::ZERO, Ok(statuses));
    watch.due += watch.interval;
    let (sender, events) = channel();
    watch_signals(sender.clone())?;
    let mut screen = Screen::take()?;
    watch_input(sender.clone())?;
    watch.serve(&mut screen, Look::of_terminal(args.no_color), &events, &sender)
}

struct Watch {
    state: State,
    namespace: Namespace,
    identifier: Identifier,
    began: Instant,
    /// When to read next.
    due: Instant,
    interval: Duration,
}

impl Watch {
    fn serve(
        &mut self,
        screen: &mut Screen,
        look: Look,
        events: &Receiver<Event>,
        sender: &Sender<Event>,
    ) -> Outcome {
        loop {
            if Instant::now() >= self.due {
                self.read();
            }
            screen.draw(&mut self.state, look)?;
            let patience = self.due.saturating_duration_since(Instant::now());
            match events.recv_timeout(patience) {
                Ok(Event::Key(key)) => match self.state.press(key) {
                    Some(Wish::Quit) => return Ok(()),
                    Some(Wish::Suspend) => screen.suspend()?,
                    Some(Wish::Redraw) => screen.retake()?,
                    Some(Wish::Do(act)) => self.start(act, sender.clone())?,
                    None => {}
                },
                Ok(Event::Done(act, failure)) => {
                    self.state.done(&act, failure);
                    self.due = Instant::now();
                }
                Ok(Event::Signal(Signal::SIGCONT)) => screen.retake()?,
                Ok(Event::Signal(_)) => return Ok(()),
                Ok(Event::Lost(error)) => return Err(screen::lost(&error)),
                Ok(Event::Resized) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("this has a sender itself"),
            }
        }
    }

    /// One look at the state of the whole namespace. However large it is, at most a tenth of
    /// the time is spent on it.
    fn read(&mut self) {
        let begin = Instant::now();
        let read = Service::statuses(&self.namespace);
        self.note(begin - self.began, read.map_err(|error| Failure::from(error).to_string()));
        let now = Instant::now();
        self.due = now + self.interval.max((now - begin) * 9);
    }

    fn note(&mut self, when: Duration, read: Result<Vec<Status>, String>) {
        let identified = read.map(|statuses| self.identifier.identify(statuses));
        let (read, identities) = match identified {
            Ok(all) => {
                let (statuses, identities) =
                    all.into_iter().map(|it| (it.status, it.identity)).unzip();
                (Ok(statuses), identities)
            }
            Err(line) => (Err(line), Vec::new()),
        };
        self.state.note(when, read);
        self.state.identify(identities);
    }

    /// A change may have to wait for other writers; the screen goes on meanwhile.
    fn start(&self, act: Act, sender: Sender<Event>) -> Outcome {
        let namespace = self.namespace.clone();
        start_thread(move || {
            let failure = act.run(&namespace).err().map(|failure| failure.to_string());
            // Nobody is left to be told where the screen has ended.
            let _ = sender.send(Event::Done(act, failure));
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_number_of_seconds() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(interval("3600"), Ok(Duration::from_secs(3600)));
        for bad in ["", "0", "0.09", "-1", "3601", "1s", "inf", "NaN"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
