//! What the commands say of themselves: each help as it is kept in `tests/help`, man pages that
//! render, completions that complete. All of it is made from the definition of the command
//! line, so a new command is looked at here as soon as it is there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use snapbox::Data;
use snapbox::assert::Assert;
use tempfile::TempDir;

/// A screen, by its oldest measure.
const COLUMNS: usize = 80;
const LINES: usize = 24;

/// What is longer is for the man page.
const LONGEST: usize = 60;

fn overspill(arguments: &[&str]) -> String {
    // As on a screen that is wider.
    let mut command = Command::new(env!("CARGO_BIN_EXE_overspill"));
    done(command.args(arguments).env("COLUMNS", "200"))
}

/// What it prints; it must end well and without a complaint.
#[track_caller]
fn done(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; tools/setup test installs it"));
    let Output { status, stdout, stderr } = output;
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success() && stderr.is_empty(), "{command:?}: {status}: {stderr}");
    String::from_utf8(stdout).unwrap()
}

struct Generated {
    folder: TempDir,
}

impl Generated {
    fn new(what: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        assert_eq!(overspill(&[&["generate", what[0], path], &what[1..]].concat()), "");
        Self { folder }
    }

    fn man() -> Self {
        Self::new(&["man", "--date", "2026-01-02"])
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

/// Every command that is shown, by its man page; "" is overspill itself.
fn commands() -> Vec<String> {
    let pages = Generated::man().files();
    let names = pages.iter().map(|page| page.file_stem().unwrap().to_str().unwrap());
    names.map(|name| name.trim_start_matches("overspill").replacen('-', "", 1)).collect()
}

fn words<'a>(command: &'a str, option: &'a str) -> Vec<&'a str> {
    command.split_whitespace().chain([option]).collect()
}

#[test]
fn each_help_is_as_it_is_kept() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help");
    let mut kept = Vec::new();
    for command in commands() {
        let name = if command.is_empty() { "overspill" } else { &command };
        let texts = ["-h", "--help"].map(|help| {
            let words = words(&command, help);
            format!("$ overspill {}\n{}", words.join(" "), overspill(&words))
        });
        let path = folder.join(format!("{name}.txt"));
        let (text, kept_as) =
            (texts.join("\n").trim_end().to_owned() + "\n", Data::read_from(&path, None).raw());
        let same = Assert::new().action_env("SNAPSHOTS").try_eq(Some(&name), text.into(), kept_as);
        if let Err(difference) = same {
            panic!(
                "{difference}\nWhere it is meant to be so, keep it: SNAPSHOTS=overwrite cargo test -p \
                 overspill-cli --test help"
            );
        }
        kept.push(path);
    }
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        assert!(kept.contains(&path), "{} is of no command: remove it", path.display());
    }
}

#[test]
fn help_fits_the_screen_and_says_by_example_what_to_type() {
    for command in commands() {
        for (help, most) in [("-h", LINES), ("--help", LONGEST)] {
            let words = words(&command, help);
            let text = overspill(&words);
            let lines = text.lines().count();
            assert!(
                lines <= most,
                "{words:?} has {lines} lines, {most} fit; hide_short_help and after_long_help keep \
                 a -h short, the file NAME.manual beside the command takes what is long"
            );
            let widest = text.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(COLUMNS), "{words:?} is {widest:?} wide:\n{text}");
            assert!(text.lines().all(|line| line == line.trim_end()), "{words:?}:\n{text}");
        }
        let text = overspill(&words(&command, "--help"));
        let (_, examples) = text.split_once("\nEXAMPLE").unwrap_or_else(|| panic!("{text}"));
        assert!(examples.contains(&format!("overspill {command}")), "{text}");
    }
}

#[test]
fn each_man_page_renders_without_a_complaint() {
    let pages = Generated::man();
    for page in pages.files() {
        let text = done(
            Command::new("man")
                .args(["--warnings", "-E", "UTF-8", "-l", "-P", "cat"])
                .env("MANWIDTH", "80")
                .arg(&page),
        );
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES", "EXIT STATUS", "SEE ALSO"] {
            assert!(text.lines().any(|line| line == section), "{}: {section}", page.display());
        }
        done(Command::new("groff").args(["-T", "utf8", "-man", "-ww", "-z"]).arg(&page));
        let lint = Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(&page).output();
        let lint = lint.expect("mandoc, which tools/setup test installs");
        assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));
    }
}

/// What bash would offer behind these words.
fn offered(script: &Path, words: &[&str]) -> Vec<String> {
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let ask = format!(
        "source {}; COMP_WORDS=({}); COMP_CWORD={}; COMP_TYPE=9; _clap_complete_overspill overspill \
         \"${{COMP_WORDS[COMP_CWORD]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        quoted.join(" "),
        words.len() - 1
    );
    let text = done(Command::new("bash").args(["--norc", "-c", &ask]).env("PATH", path()));
    text.lines().map(str::to_owned).collect()
}

/// The PATH, with the command that is tested before all others.
fn path() -> std::ffi::OsString {
    let own = Path::new(env!("CARGO_BIN_EXE_overspill")).parent().unwrap().to_owned();
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::iter::once(own).chain(std::env::split_paths(&inherited))).unwrap()
}

#[test]
fn bash_completes() {
    let completions = Generated::new(&["completions"]);
    let script = completions.folder.path().join("bash/overspill");
    done(Command::new("bash").arg("-n").arg(&script));
    assert_eq!(offered(&script, &["overspill", "sh"]), ["share", "show"]);
    assert_eq!(offered(&script, &["overspill", "set", "web", "--on-f"]), ["--on-full"]);
    assert_eq!(offered(&script, &["overspill", "set", "web", "--on-full", ""]), ["drop", "reset"]);
    let commands: Vec<String> = commands().into_iter().filter(|it| !it.is_empty()).collect();
    let all = offered(&script, &["overspill", ""]);
    for command in commands {
        assert!(all.contains(&command), "{command} is not in {all:?}");
    }
}

#[test]
fn fish_completes() {
    let completions = Generated::new(&["completions"]);
    let script = completions.folder.path().join("fish/overspill.fish");
    done(Command::new("fish").arg("--no-execute").arg(&script));
    let ask = format!("source {}; complete --do-complete 'overspill sh'", script.display());
    let text = done(Command::new("fish").args(["--no-config", "-c", &ask]).env("PATH", path()));
    let words: Vec<_> = text.lines().filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(words, ["share", "show"]);
}

#[test]
fn zsh_loads_what_it_completes_by() {
    let completions = Generated::new(&["completions"]);
    let script = completions.folder.path().join("zsh/_overspill");
    done(Command::new("zsh").args(["--no-rcs", "-n"]).arg(&script));
    // As compinit finds it: by its first line and its name.
    let folder = script.parent().unwrap().display();
    let ask = format!(
        "fpath=({folder} $fpath); autoload -U compinit; compinit -D; print $_comps[overspill]"
    );
    let text = done(Command::new("zsh").args(["--no-rcs", "-c", &ask]));
    assert_eq!(text.trim(), "_overspill");
}

/// At the first TAB in a terminal, as zsh loads the script by then.
#[test]
fn zsh_completes() {
    let completions = Generated::new(&["completions"]);
    let folder = completions.folder.path().join("zsh");
    let ask = format!(
        "zmodload zsh/zpty; zpty shell zsh -f -i
         zpty -w shell \"fpath=({} \\$fpath); autoload -U compinit; compinit -u -D; print READ''Y\"
         zpty -r -m shell text '*READY*'
         zpty -w -n shell $'overspill set web --on-f\\t'
         zpty -r -m shell text '*--on-full*'; print COMPLETED",
        folder.display()
    );
    let mut zsh = Command::new("timeout");
    let text = done(zsh.args(["20", "zsh", "--no-rcs", "-c", &ask]).env("PATH", path()));
    assert_eq!(text.trim(), "COMPLETED");
}
