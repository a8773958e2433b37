//! `overspill demo`: the main job on real servers and real clients, without overspill and with it.
//!
//! `stage` makes the place, `server` and `load` are the players, `scene` is the play;
//! `statistics` and `report` say what came of it, `terminal` and `svg` draw that.

mod kernel;
mod load;
mod report;
mod scene;
mod server;
mod stage;
mod statistics;
mod svg;
mod terminal;
mod tools;

use std::fmt::Display;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use crate::args;
use crate::failure::{Failure, Outcome};
use crate::help;
use crate::output::{print, wrap};

/// Show the difference on real servers and clients of its own
///
/// One of four servers hangs, first where they share an address, then where each has its
/// own. nginx, haproxy and python3 serve, in namespaces that vanish with the demo: the
/// machine's own servers and network are not touched. Each load runs without overspill
/// and with it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  overspill demo
  overspill demo --seconds 2 --svg demo.svg")]
#[command(add = help::Manual::text(include_str!("demo.manual")))]
pub(crate) struct Args {
    /// How long each of the four loads lasts
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = args::number("a whole number of seconds", 1_u32..=60))]
    seconds: u32,

    /// Draw a picture of it in FILE as well (SVG)
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Play here: the namespaces are made
    #[arg(long, hide = true)]
    inside: bool,
}

pub(crate) fn run(args: Args) -> Outcome {
    let Args { seconds, svg, inside } = args;
    if inside { play_here(seconds, svg.as_deref()) } else { play() }
}

/// Plays the demo in a process of its own.
fn play() -> Outcome {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new(
            "cannot make the namespaces of the demo: it takes root; run it with sudo",
        ));
    }
    tools::check()?;
    let status = stage::play_inside()?;
    if status.success() {
        return Ok(());
    }
    // It has said itself why.
    std::process::exit(status.code().unwrap_or(1));
}

/// Plays the demo; this process is the first of its namespace.
fn play_here(seconds: u32, svg: Option<&Path>) -> Outcome {
    check_writable(svg)?;
    let folder = stage::enter()?;
    let look = terminal::Look::of_stdout();
    let introduction = introduction(seconds);
    for line in wrap(&introduction, 79) {
        print(&line)?;
    }
    let mut scenes = Vec::new();
    for (number, script) in scene::all().into_iter().enumerate() {
        let folder = folder.join(number.to_string());
        stage::make_folder(&folder)?;
        let mut tell = |act: &str| progress(&format!("scene {} of 2, {act} ...", number + 1));
        let scene = script.play(&folder, seconds, &mut tell)?;
        progress("");
        print(&format!("\n{}", terminal::draw(&scene, look)))?;
        scenes.push(scene);
    }
    print(&format!("\n{}\n", terminal::legend(look)))?;
    let conclusion = report::conclusion(&scenes);
    for line in wrap(&conclusion, 79) {
        print(&line)?;
    }
    let Some(path) = svg else { return Ok(()) };
    fs::write(path, svg::draw(&scenes, &introduction, &conclusion))
        .map_err(|error| cannot_write(path, &error))
}

/// Says before the demo, not after it, that the picture will have no place.
fn check_writable(svg: Option<&Path>) -> Outcome {
    let Some(parent) = svg.and_then(Path::parent) else { return Ok(()) };
    if parent == Path::new("") || parent.is_dir() {
        return Ok(());
    }
    Err(cannot_write(parent, &"it is no folder"))
}

fn cannot_write(path: &Path, why: &dyn Display) -> Failure {
    let path = path.display();
    Failure::new(format!("cannot write the picture to {path}: {why}; give --svg another file"))
}

fn introduction(seconds: u32) -> String {
    format!(
        "One of four servers hangs. Its queue is filled first: the {} clients in it wait until it \
         goes on, with overspill as without, and are not counted. Then {} clients come every {} ms \
         for {seconds} s; each gives up after {} s.",
        scene::BACKLOG + 1,
        load::BURST,
        1000 / load::BURSTS,
        load::PATIENCE.as_secs(),
    )
}

/// Tells somebody who waits what is going on, on a line that is overwritten.
fn progress(what: &str) {
    let mut terminal = io::stderr();
    if terminal.is_terminal() {
        // Nothing depends on it.
        let _ = write!(terminal, "\r\x1b[K{what}");
    }
}
