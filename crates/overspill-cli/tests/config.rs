//! What is wrong with a configuration file is told with its place. Nothing here takes
//! privilege: the files are read, and that is all.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

const KEYS: &str = "the keys are name, workers, listen, listen-each, policy, on-full, redirect, \
                    spread, backlog, words, user, grace, private-port, hang, drain, ready, \
                    stop-signal, kill-mode, output, capacity, command";

fn overspill(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_overspill"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn folder(name: &str, text: impl AsRef<[u8]>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(name), text).unwrap();
    folder
}

/// Both check and run end with status 2 and exactly these lines, each after the file's name.
#[track_caller]
fn is_wrong_in(name: &str, text: impl AsRef<[u8]>, lines: &[&str]) {
    let folder = folder(name, text);
    let expected: Vec<String> =
        lines.iter().map(|line| format!("overspill: {name}:{line}")).collect();
    for arguments in [vec!["check", name], vec!["run", "--config", name]] {
        let output = overspill(folder.path(), &arguments);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(told.lines().collect::<Vec<_>>(), expected, "{arguments:?}");
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(2), &b""[..]));
    }
}

#[track_caller]
fn is_wrong(text: &str, lines: &[&str]) {
    is_wrong_in("web.toml", text, lines);
}

/// The same with a command in the line behind.
#[track_caller]
fn key_is_wrong(text: &str, line: &str) {
    let line = line.replace("KEYS", KEYS);
    is_wrong(&format!("{text}\ncommand = [\"x\"]\n"), &[&line]);
}

#[test]
fn a_file_that_is_right_is_said_to_be() {
    let folder = folder("web.toml", "listen = '10.0.0.1:80'\ncommand = ['no-such-command', 'a b']");
    fs::write(folder.path().join("bad.toml"), "workers = 0\ncommand = ['x']").unwrap();
    let output = overspill(folder.path(), &["check", "web.toml"]);
    assert_eq!(output.stdout, b"web.toml: right\n");
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]));
    let output = overspill(folder.path(), &["check", "bad.toml", "web.toml"]);
    assert_eq!(output.stdout, b"web.toml: right\n", "the others are read as well");
    assert!(output.stderr.starts_with(b"overspill: bad.toml:1:11: "), "{output:?}");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn unknown_keys_are_answered_with_the_nearest() {
    key_is_wrong("polcy = 'x'", "1:1: there is no key \"polcy\"; there is policy");
    key_is_wrong("on_full = 'drop'", "1:1: there is no key \"on_full\"; there is on-full");
    key_is_wrong(" n = 4", "1:2: there is no key \"n\"; KEYS");
    key_is_wrong("config = 'a.toml'", "1:1: there is no key \"config\"; KEYS");
    key_is_wrong("help = true", "1:1: there is no key \"help\"; KEYS");
    is_wrong(
        "command = ['x']\n[service]\nworkers = 4",
        &["2:2: there is no key \"service\"; keys stand by themselves, without sections"],
    );
    is_wrong(
        "command = ['x']\nservice.workers = 4",
        &["2:1: there is no key \"service\"; keys stand by themselves, without sections"],
    );
}

#[test]
fn wrong_values_are_answered_as_on_the_command_line() {
    for (text, line) in [
        (
            "workers = 0",
            "1:11: cannot take \"0\" as workers: it is a whole number of workers from 1 to 65535",
        ),
        (
            "workers = -1",
            "1:11: cannot take \"-1\" as workers: it is a whole number of workers from 1 to 65535",
        ),
        (
            "workers = 'four'",
            "1:11: cannot take \"four\" as workers: it is a whole number of workers from 1 to 65535",
        ),
        ("grace = 1e3", "1:9: grace takes one value, a text in quotes or a whole number"),
        (
            "listen = ['10.0.0.1:80',\n  'localhost:80']",
            "2:3: cannot take \"localhost:80\" as listen: give an address and a port, such as \
             127.0.0.1:8080 or [::]:8080",
        ),
        (
            "policy = 'best'",
            "1:10: cannot take \"best\" as policy: there is no policy \"best\" (known: \
             next-available, shortest-queue, round-robin, least-loaded, two-choices, dispatcher)",
        ),
        (
            "policy = 'dispatcher'",
            "1:10: cannot take \"dispatcher\" as policy: give the program's object file too: \
             dispatcher=FILE",
        ),
        ("on-full = 'refuse'", "1:11: cannot take \"refuse\" as on-full (known: drop, reset)"),
        ("redirect = 'maybe'", "1:12: cannot take \"maybe\" as redirect (known: on, off)"),
        ("output = ''", "1:10: output lacks its value (known: prefixed, as-is)"),
        ("user = ''", "1:8: user lacks its value"),
        (
            "output = 'asis'",
            "1:10: cannot take \"asis\" as output; there is as-is (known: prefixed, as-is)",
        ),
        (
            "hang = '100ms'",
            "1:8: cannot take \"100ms\" as hang: it is a whole number of milliseconds from 0 to \
             4294967295",
        ),
        (
            "private-port = ['http']",
            "1:17: cannot take \"http\" as private-port: it is the number of a port from 1 to 65535",
        ),
        (
            "stop-signal = 'LEAVE'",
            "1:15: cannot take \"LEAVE\" as stop-signal: there is no signal LEAVE; give its name, such as TERM, \
             QUIT or USR2",
        ),
        (
            "capacity = [16]",
            "1:12: cannot take \"16\" as capacity: two numbers from 1 to 65536, as in 16,256",
        ),
        (
            "name = 'web:80'",
            "1:8: cannot take \"web:80\" as name: overspill adds the port by itself; use 1 to 64 \
             letters, digits, '.', '_' or '-', beginning with a letter or digit",
        ),
        ("user = \"a\\u0000\"", "1:8: it has a NUL, which no argument can have; leave it out"),
    ] {
        key_is_wrong(text, line);
    }
}

#[test]
fn values_of_a_wrong_kind_are_answered_with_the_right_one() {
    let one = |key: &str| format!("{key} takes one value, a text in quotes or a whole number");
    for (text, line) in [
        ("workers = [4]", format!("1:11: {}", one("workers"))),
        ("workers = true", format!("1:11: {}", one("workers"))),
        ("hang = 1.5", format!("1:8: {}", one("hang"))),
        ("user = 2026-01-01", format!("1:8: {}", one("user"))),
        ("name = { a = 1 }", format!("1:8: {}", one("name"))),
        ("spread = 'yes'", "1:10: write spread = true or spread = false".to_owned()),
        ("words = 1", "1:9: write words = true or words = false".to_owned()),
        ("redirect = [true]", "1:12: write redirect = true or redirect = false".to_owned()),
        ("listen = [['10.0.0.1:80']]", "1:11: write listen = [\"ADDR:PORT\", ...]".to_owned()),
        ("private-port = false", "1:16: write private-port = [\"PORT\", ...]".to_owned()),
        ("capacity = '16,256'", "1:12: write capacity = [\"N\", \"M\"]".to_owned()),
        (
            // Two sockets for one worker, or one socket for each of two? It has to be said.
            "listen-each = [['10.0.0.1:80'], '10.0.0.2:80']",
            "1:33: write listen-each = [[\"A:P\", ...], ...]".to_owned(),
        ),
    ] {
        key_is_wrong(text, &line);
    }
}

#[test]
fn the_command_is_needed_as_a_list() {
    let form = "write command = [\"PROGRAM\", \"ARGUMENT\", ...]";
    is_wrong("workers = 4", &[&format!(" command is missing; {form}")]);
    is_wrong("", &[&format!(" command is missing; {form}")]);
    is_wrong(
        "workers = 2\ncommand = ['']",
        &["2:1: the command has no name; give the program first"],
    );
    for (text, column) in [("[]", 11), ("'nginx -g'", 11), ("true", 11), ("['x', ['y']]", 17)] {
        is_wrong(&format!("command = {text}"), &[&format!("1:{column}: {form}")]);
    }
}

#[test]
fn a_key_is_given_once() {
    is_wrong(
        "workers = 2\n'grace' = 1\ncommand = ['x']\ngrace = 2\nworkers = 3",
        &[
            "4:1: grace is given twice (first on line 2); leave one out",
            "5:1: workers is given twice (first on line 1); leave one out",
        ],
    );
}

#[test]
fn keys_that_exclude_each_other_are_named_with_their_lines() {
    key_is_wrong(
        "listen-each = [['10.0.0.1:80', '10.0.0.2:80']]\nworkers = 3",
        "1:1: the workers are 3, the addresses of listen-each 2; give one address for each worker \
         (this, and line 2)",
    );
    key_is_wrong(
        "private-port = 81\n\nlisten = '10.0.0.1:80'",
        "1:1: private-port is for ports that COMMAND listens on by itself; leave it out, or listen \
         (this, and line 3)",
    );
    key_is_wrong(
        "words = true",
        "1:1: words is for workers that get their sockets: give listen too",
    );
}

#[test]
fn all_that_is_wrong_is_told_in_the_order_of_the_file() {
    is_wrong(
        "workers = 0\nspread = 'yes'\npolcy = 1\nlisten = ['a', '10.0.0.1:80', 'b']\n",
        &[
            "1:11: cannot take \"0\" as workers: it is a whole number of workers from 1 to 65535",
            "2:10: write spread = true or spread = false",
            "3:1: there is no key \"polcy\"; there is policy",
            "4:11: cannot take \"a\" as listen: give an address and a port, such as \
             127.0.0.1:8080 or [::]:8080",
            "4:31: cannot take \"b\" as listen: give an address and a port, such as \
             127.0.0.1:8080 or [::]:8080",
        ],
    );
}

#[test]
fn what_is_not_toml_is_shown() {
    is_wrong(
        "# ä\nname = web\nworkers = \ncommand = ['x'\n",
        &[
            "2:8: not TOML: string values must be quoted, expected literal string",
            "3:11: not TOML: string values must be quoted, expected literal string",
            "4:15: not TOML: unclosed array, expected `]`",
        ],
    );
    is_wrong_in("web.toml", b"# \xc3\xa4\nname = '\xff'\n", &["2:9: not UTF-8; save it as UTF-8"]);
}

#[test]
fn the_files_name_has_to_do_as_a_name() {
    is_wrong_in(
        "my web.toml",
        "command = ['x']",
        &[
            " \"my web\" can't be the service's name: \"my web\" is not a service name; use 1 to 64 \
           letters, digits, '.', '_' or '-', beginning with a letter or digit; or add name = \"...\"",
        ],
    );
    let folder = folder("my web.toml", "name = 'web'\ncommand = ['x']");
    assert_eq!(overspill(folder.path(), &["check", "my web.toml"]).status.code(), Some(0));
}

#[test]
fn a_file_that_cannot_be_read_is_told() {
    let folder = folder("web.toml", "");
    for (file, why) in [
        ("none.toml", "No such file or directory (os error 2); give the path of a file"),
        (".", "Is a directory (os error 21); give a file in it"),
        ("web.toml/x", "Not a directory (os error 20); give the path of a file"),
    ] {
        let expected = format!("overspill: cannot read {file}: {why}\n");
        for arguments in [vec!["check", file], vec!["run", "--config", file]] {
            let output = overspill(folder.path(), &arguments);
            assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
            assert_eq!(output.status.code(), Some(2));
        }
    }
}

#[test]
fn the_file_is_all_that_is_said() {
    let folder = folder("web.toml", "command = ['x']");
    for more in [&["-n", "3"][..], &["--policy", "round-robin"], &["--", "x"]] {
        let output = overspill(folder.path(), &[&["run", "--config", "web.toml"], more].concat());
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("--config cannot be used with"), "{text}");
    }
    let output = overspill(folder.path(), &["check", "--json", "web.toml"]);
    assert_eq!(output.status.code(), Some(2));
}
