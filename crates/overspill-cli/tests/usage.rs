//! Wrong usage ends with status 2 and says what would be right. Nothing here takes
//! privilege or touches the kernel.

use std::process::{Command, Output};

fn words(arguments: &str) -> Vec<&str> {
    arguments.split(' ').filter(|word| !word.is_empty()).collect()
}

fn overspill(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_overspill")).args(arguments).output().unwrap()
}

#[track_caller]
fn is_wrong(arguments: &str, parts: &[&str]) {
    words_are_wrong(&words(arguments), parts);
}

#[track_caller]
fn words_are_wrong(arguments: &[&str], parts: &[&str]) {
    let output = overspill(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    assert_eq!(output.stdout, b"", "{arguments:?}");
    // Who speaks, what failed and why, and what to do, on one line as every failure.
    assert!(text.starts_with("overspill: ") && text.contains("; "), "{arguments:?}: {text}");
    assert_eq!(text.find('\n'), Some(text.len() - 1), "{arguments:?}: {text}");
    for part in parts {
        assert!(text.contains(part), "{arguments:?}: no {part:?} in {text}");
    }
}

#[test]
fn what_is_left_out_is_named() {
    is_wrong("share", &["<NAME>", "--pid", "--port"]);
    is_wrong("share web --port 80", &["--pid"]);
    is_wrong("share web --pid 1", &["--port"]);
    is_wrong("show", &["<NAME>"]);
    is_wrong("restart", &["<NAME>"]);
    is_wrong("rm", &["<NAME>"]);
    is_wrong("drain web", &["<MEMBER>"]);
    is_wrong("resume web", &["<MEMBER>"]);
    is_wrong("set web", &["--policy", "--on-full", "--redirect", "--spread", "--weight"]);
    is_wrong("ls --netns", &["--netns"]);
}

#[test]
fn wrong_words_are_answered_with_the_known_ones() {
    let policies = &["fastest", "next-available", "shortest-queue", "round-robin"];
    is_wrong("set web --policy fastest", policies);
    is_wrong("share web --pid 1 --port 80 --policy fastest", policies);
    is_wrong("set web --policy shortest", &["there is no policy \"shortest\"", "shortest-queue"]);
    is_wrong("set web --on-full refuse", &["drop", "reset"]);
    is_wrong("set web --redirect maybe", &["on", "off"]);
    is_wrong("set web --spread yes", &["on", "off"]);
    is_wrong("shwo web", &["there is no command shwo; there is show;"]);
    is_wrong("set web --polcy x", &["set has no option --polcy; there is --policy;"]);
    is_wrong("set web --policy shortest", &["; there is shortest-queue (known: "]);
    is_wrong("nope", &["there is no command nope; overspill --help lists them"]);
    is_wrong("help nope", &["there is no command nope; overspill --help lists them"]);
    is_wrong("ls -x", &["ls has no option -x; overspill ls --help"]);
    is_wrong("run --output asis -- x", &["as --output; there is as-is (known: prefixed, as-is)"]);
    is_wrong("set web --policy least-laoded", &["; there is least-loaded (known: "]);
    is_wrong("set web --on-full rest", &["; there is reset (known: drop, reset)"]);
    is_wrong("run --output as-it-is -- x", &["prefixed, as-is"]);
    is_wrong("run --stop-signal trm -- x", &["no signal TRM; there is TERM;"]);
}

#[test]
fn dashes_that_were_forgotten_are_shown_in_their_place() {
    let put = "put -- before the command: overspill run";
    is_wrong("run -n 2 python3 server.py", &[&format!("{put} -n 2 -- python3 server.py\n")]);
    is_wrong("run --name x x -n 3 a$b", &[&format!("{put} --name x -- x -n 3 'a$b'\n")]);
    is_wrong("run --policy best x", &["put -- before the command\n"]);
    is_wrong("show web more", &["show has no use for \"more\"; overspill show --help"]);
}

#[test]
fn help_of_help_is_help() {
    let help = overspill(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for arguments in ["help", "help --help", "help -h"] {
        assert_eq!(overspill(&words(arguments)), help, "{arguments}");
    }
    assert_eq!(overspill(&["help", "--help", "run"]), overspill(&["run", "--help"]));
}

#[test]
fn an_empty_word_is_no_program_and_no_user() {
    words_are_wrong(&["run", "--", ""], &["the command has no name; give the program"]);
    words_are_wrong(&["run", "--user", "", "--", "x"], &["--user lacks its value"]);
}

#[test]
fn wrong_names_are_answered_with_the_rules() {
    let rules = &["is not a service name", "1 to 64 letters, digits"];
    for name in [".web", "a/b", "web:http", "ä", &"x".repeat(65)] {
        is_wrong(&format!("show {name}"), rules);
        is_wrong(&format!("share {name} --pid 1 --port 80"), rules);
        for command in ["drain NAME 0", "resume NAME 0", "rm NAME", "set NAME --redirect on"] {
            is_wrong(&command.replace("NAME", name), rules);
        }
    }
}

#[test]
fn a_name_is_given_without_the_port_where_it_is_added() {
    let rules = &["overspill adds the port by itself", "1 to 64 letters, digits"];
    is_wrong("run --name web:80 -- true", rules);
    is_wrong("allow web:80 --cgroup / --port 80", rules);
}

#[test]
fn wrong_numbers_are_answered_with_what_would_do() {
    let port = "as --port: it is the number of a port from 1 to 65535";
    for wrong in ["0", "65536", "http"] {
        is_wrong(&format!("share web --pid 1 --port {wrong}"), &[&format!("{wrong:?} {port}")]);
        is_wrong(&format!("allow web --port {wrong}"), &[port]);
    }
    is_wrong("run --private-port http -- x", &["it is the number of a port from 1 to 65535"]);
    for wrong in ["0", "4294967296", "1,,2", "one"] {
        let process = "as --pid: it is the number of a process from 1 to 4294967295";
        is_wrong(&format!("share web --pid {wrong} --port 80"), &[process]);
    }
    let milliseconds = "as --hang: it is a whole number of milliseconds from 0 to 4294967295";
    is_wrong("run --hang 100ms -- x", &["\"100ms\"", milliseconds]);
    is_wrong("allow web --hang 0.1s", &["\"0.1s\"", milliseconds]);
    for option in ["grace", "drain", "ready"] {
        is_wrong(&format!("run --{option} 1s -- x"), &["it is a whole number of seconds from 0"]);
    }
    is_wrong(
        "run -n four -- x",
        &["as --workers: it is a whole number of workers from 1 to 65535"],
    );
    is_wrong("trace -n x", &["\"x\" as --count: it is a whole number of lines from 0"]);
    is_wrong("demo --seconds 61", &["it is a whole number of seconds from 1 to 60"]);
    is_wrong("share web --pid 1 --port 80 --capacity 0,5", &["two numbers from 1 to 65536"]);
    is_wrong("share web --pid 1 --port 80 --capacity 5", &["two numbers from 1 to 65536"]);
    is_wrong("metrics --listen localhost:80", &["localhost:80", "--listen", "127.0.0.1:8080"]);
    is_wrong("drain web first", &["first", "number", "overspill show"]);
    is_wrong("rm web -1", &["-1"]);
    is_wrong("drain web 4294967296", &["number"]);
    is_wrong("top --interval 0", &["--interval", "0.1 to 3600"]);
    is_wrong("top --interval fast", &["--interval", "0.1 to 3600"]);
}

#[test]
fn what_does_not_go_together_is_refused() {
    is_wrong("metrics --once --listen 127.0.0.1:1", &["--once", "--listen", "cannot be used"]);
    for option in
        ["--policy round-robin", "--on-full drop", "--redirect on", "--spread", "--capacity 1,1"]
    {
        let arguments = format!("share web --pid 1 --port 80 --join {option}");
        is_wrong(&arguments, &["--join", "cannot be used with", option.split(' ').next().unwrap()]);
    }
    is_wrong("ls --all --netns blue", &["--all", "cannot be used with", "--netns"]);
}
