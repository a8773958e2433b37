//! The terminal: taken for the screen, given back whatever happens, and what comes from it.

use std::io::{self, BufWriter, IsTerminal as _, Stdout, stdin, stdout};
use std::panic;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::event::{self, Event as Input, KeyEvent, KeyEventKind};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};

use super::act::Act;
use super::draw::draw;
use super::look::Look;
use super::state::State;
use crate::failure::{Failure, Outcome};
use overspill_supervisor::ignored::Ignored;

/// What is waited for.
pub(super) enum Event {
    Key(KeyEvent),
    Resized,
    Signal(Signal),
    /// A change was made, or failed, which the line says.
    Done(Act, Option<String>),
    /// Nothing comes from the terminal any more.
    Lost(io::Error),
}

/// The terminal, as long as it shows the screen.
pub(super) struct Screen(Drawn);

/// What is drawn goes out at once: a slow line shows no half-drawn lines then.
type Drawn = Terminal<CrosstermBackend<BufWriter<Stdout>>>;

/// Whether the terminal is to be given back.
static TAKEN: AtomicBool = AtomicBool::new(false);

impl Screen {
    /// # Errors
    ///
    /// Input or output is no terminal.
    pub(super) fn check() -> Outcome {
        let missing = match (stdin().is_terminal(), stdout().is_terminal()) {
            (true, true) => return Ok(()),
            (false, _) => "input",
            (true, false) => "output",
        };
        Err(Failure::new(format!(
            "top is a live screen, and its standard {missing} is no terminal; overspill ls and \
             overspill show NAME print the same once, with --json for programs"
        )))
    }

    pub(super) fn take() -> Result<Self, Failure> {
        static HOOK: Once = Once::new();
        // What a panic says is to be read on the screen that there was before.
        HOOK.call_once(|| {
            let next = panic::take_hook();
            panic::set_hook(Box::new(move |panic| {
                give_back();
                next(panic);
            }));
        });
        enter().map(Self).map_err(|error| lost(&error))
    }

    pub(super) fn draw(&mut self, state: &mut State, look: Look) -> Outcome {
        let drawn = self.0.draw(|frame| {
            state.size = (frame.area().width, frame.area().height);
            draw(frame, state, look);
        });
        drawn.map(drop).map_err(|error| lost(&error))
    }

    /// Lets the shell have the terminal, as for Ctrl-Z, until it says to go on. Where no
    /// shell could say so, the kernel does not stop anything.
    pub(super) fn suspend(&mut self) -> Outcome {
        give_back();
        kill(Pid::from_raw(0), Signal::SIGTSTP)
            .map_err(|error| Failure::new(format!("cannot stop: {error}")))?;
        self.retake()
    }

    /// Somebody else may have had the terminal.
    pub(super) fn retake(&mut self) -> Outcome {
        give_back();
        self.0 = enter().map_err(|error| lost(&error))?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn enter() -> io::Result<Drawn> {
    TAKEN.store(true, Ordering::SeqCst);
    enable_raw_mode()?;
    execute!(stdout(), EnterAlternateScreen, Clear(ClearType::All), Hide)?;
    Terminal::new(CrosstermBackend::new(BufWriter::with_capacity(1 << 16, stdout())))
}

/// Once for each time that it was taken: a second time would move the cursor of the shell.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // Where the terminal is gone, there is nothing to give back.
        let _ = disable_raw_mode();
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    }
}

pub(super) fn lost(error: &io::Error) -> Failure {
    Failure::new(format!("top has lost its terminal: {error}; start it again in another"))
}

/// The signals that end the screen, and the one that says that the terminal was somebody
/// else's meanwhile. To be called before another thread is started: they are blocked in all.
pub(super) fn watch_signals(sender: Sender<Event>) -> Outcome {
    let ignored = Ignored::read()?;
    let known = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGCONT];
    // A blocked signal would be taken even where it is ignored.
    let signals: SigSet = known.into_iter().filter(|&it| !ignored.contains(it)).collect();
    signals
        .thread_block()
        .map_err(|error| Failure::new(format!("cannot block signals: {error}")))?;
    start_thread(move || {
        while let Ok(signal) = signals.wait() {
            if sender.send(Event::Signal(signal)).is_err() {
                break;
            }
        }
    })
}

/// Keys, and that the size has changed.
pub(super) fn watch_input(sender: Sender<Event>) -> Outcome {
    start_thread(move || {
        loop {
            let event = match event::read() {
                Ok(Input::Key(key)) if key.kind != KeyEventKind::Release => Event::Key(key),
                Ok(Input::Resize(..)) => Event::Resized,
                Ok(_) => continue,
                Err(error) => Event::Lost(error),
            };
            let last = matches!(event, Event::Lost(_));
            if sender.send(event).is_err() || last {
                break;
            }
        }
    })
}

pub(super) fn start_thread(body: impl FnOnce() + Send + 'static) -> Outcome {
    let started = thread::Builder::new().spawn(body);
    started.map(drop).map_err(|error| {
        Failure::new(format!("cannot start a thread: {error}; raise the limit of processes"))
    })
}
