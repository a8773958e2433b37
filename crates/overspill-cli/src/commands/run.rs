//! `overspill run`

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use clap::FromArgMatches as _;
use clap::builder::NonEmptyStringValueParser;
use nix::sys::signal::Signal;
use overspill::{Capacity, Name, Policy};

use crate::args::{self, RuleArgs};
use crate::config::Config;
use crate::failure::{Failure, Outcome};
use crate::help;
use crate::usage;
use overspill_supervisor::relay::Output;
use overspill_supervisor::{self as supervisor, KillMode, Plan};

const EXAMPLES: &str = "\
EXAMPLES
  A server that knows nothing of this, as a worker for each CPU:
    overspill run -- python3 -m http.server 8080

  Four workers as another user:
    overspill run --name web -n 4 --user www-data -- node server.js

  nginx, which finishes what it has at SIGQUIT; then new workers, one by one:
    overspill run --name web --stop-signal QUIT -- nginx -g 'daemon off;'
    overspill restart web

  Two workers that get their sockets as from systemd, at an address each:
    overspill run --listen-each 192.0.2.1:80,192.0.2.2:80 -- ./server

  What a file says, as overspill@web.service does:
    overspill run --config /etc/overspill/web.toml";

/// Of the policies that look at the load, the one that idle connections do not mislead.
const POLICY: Policy = Policy::ShortestQueue;

/// As long as the default of --grace.
const DRAIN: Duration = Duration::from_secs(10);

/// Start the workers of a server, which share their queues
///
/// Without --listen, COMMAND is started unchanged, and each TCP socket that it
/// listens on joins the service of its port. With --listen it gets sockets as
/// from systemd. Workers that end are started again, those that hang get no
/// requests; SIGHUP replaces them one by one. man overspill-run says the rest.
#[derive(Debug, clap::Args)]
#[command(add = help::Manual::text(include_str!("run.manual")))]
#[command(after_long_help = EXAMPLES, after_help = "\
EXAMPLE
  overspill run --name web -n 4 -- python3 -m http.server 8080")]
#[command(override_usage = "overspill run [OPTIONS] -- <COMMAND>...
       overspill run --config <FILE>")]
#[command(mut_args(with_default_policy))]
pub(crate) struct Args {
    /// A file that says all of this
    #[arg(long, value_name = "FILE", exclusive = true)]
    config: Option<PathBuf>,

    /// The service's name [default: COMMAND's file name]
    #[arg(long, value_parser = args::base_name)]
    name: Option<Name>,

    /// How many workers [default: one for each CPU]
    #[arg(short = 'n', long, value_name = "WORKERS",
          value_parser = args::number("a whole number of workers", 1..=u16::MAX))]
    workers: Option<u16>,

    /// Each worker gets a socket here; may be repeated
    #[arg(long, value_name = "ADDR:PORT", value_parser = address)]
    listen: Vec<SocketAddr>,

    /// An address for each worker; may be repeated
    #[arg(long, hide_short_help = true, value_name = "A:P,...", value_parser = addresses)]
    listen_each: Vec<Addresses>,

    #[command(flatten)]
    rules: RuleArgs,

    /// Let every worker take requests to every address
    #[arg(long, hide_short_help = true)]
    spread: bool,

    /// A queue's length; at most net.core.somaxconn
    #[arg(long, hide_short_help = true, value_name = "N", default_value_t = 4096,
          value_parser = args::number("a whole number of connections", 0..=u32::MAX))]
    backlog: u32,

    /// Let workers inform a dispatcher, with --listen
    #[arg(long, hide_short_help = true)]
    words: bool,

    /// Whom the workers run as, by name or number
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    user: Option<String>,

    /// The workers' time to end
    #[arg(long, hide_short_help = true, value_name = "SECONDS", default_value_t = 10,
          value_parser = args::seconds())]
    grace: u32,

    /// A port for each worker alone; may be repeated
    #[arg(long, hide_short_help = true, value_name = "PORT", value_parser = args::port())]
    private_port: Vec<u16>,

    /// Milliseconds until a worker hangs
    #[arg(long, hide_short_help = true, value_name = "MS", default_value_t = 100,
          value_parser = args::milliseconds())]
    hang: u32,

    /// A replaced worker's time, or inf [default: 10]
    #[arg(long, hide_short_help = true, value_name = "SECONDS",
          value_parser = supervisor::drain_time)]
    drain: Option<Duration>,

    /// A successor's time until it listens
    #[arg(long, hide_short_help = true, value_name = "SECONDS", default_value_t = 30,
          value_parser = args::seconds())]
    ready: u32,

    /// What tells workers to end
    #[arg(long, hide_short_help = true, value_name = "SIGNAL", default_value = "TERM", value_parser = supervisor::stop_signal)]
    stop_signal: Signal,

    /// Who gets it: mixed or group
    #[arg(
        long,
        hide_short_help = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "MODE"
    )]
    kill_mode: KillMode,

    /// Workers' output: prefixed by numbers, or as-is
    #[arg(long, hide_short_help = true, value_enum, default_value_t, hide_possible_values = true)]
    output: Output,

    /// How many services and members there is room for [default: 1024,4096]
    #[arg(long, hide_short_help = true, value_name = "N,M", value_parser = args::capacity)]
    capacity: Option<Capacity>,

    /// The server, and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// `share` and `allow` have the same option with another default. (`mut_arg` would move it to the
/// end of the keys of a configuration file.)
fn with_default_policy(option: clap::Arg) -> clap::Arg {
    if option.get_id() != "policy" {
        return option;
    }
    option.help("How a member is chosen [default: shortest-queue]").long_help(
        "How a member is chosen among those with room: shortest-queue (default), least-loaded, \
         next-available, round-robin, two-choices; dispatcher=FILE asks a program of your own",
    )
}

/// One address for each worker.
#[derive(Debug, Clone)]
struct Addresses(Vec<SocketAddr>);

/// Options that do not go together.
#[derive(Debug)]
struct Clash {
    options: &'static [&'static str],
    message: String,
}

pub(crate) fn run(args: Args) -> Outcome {
    if let Some(file) = args.config {
        let plan = plan_of(&file)?;
        let reread = move || plan_of(&file).map_err(|failure| failure.lines().to_vec());
        return Ok(supervisor::run(plan, Some(Box::new(reread)))?);
    }
    args.rules.check_dispatcher()?;
    match args.plan() {
        Ok(plan) => Ok(supervisor::run(plan, None)?),
        Err(clash) => usage::refuse(&clash.message),
    }
}

/// Whether these arguments can be run. Nothing is started.
pub(crate) fn check(args: Args) -> Outcome {
    if let Some(file) = args.config {
        return Ok(supervisor::check(&plan_of(&file)?)?);
    }
    args.rules.check_dispatcher()?;
    match args.plan() {
        Ok(plan) => Ok(supervisor::check(&plan)?),
        Err(clash) => usage::refuse(&clash.message),
    }
}

/// What a configuration file says is to be run. Nothing but the file is looked at.
pub(crate) fn read(file: &Path) -> Result<Plan, Failure> {
    let command = <Args as clap::Args>::augment_args(clap::Command::new("overspill run"));
    let config = Config::read(file, command.clone())?;
    let matches = command.no_binary_name(true).try_get_matches_from(&config.arguments);
    let args = matches.and_then(|matches| Args::from_arg_matches(&matches));
    let mut args = args.map_err(|error| config.refuses(&[], &usage::first_paragraph(&error)))?;
    args.rules.relative_to(file.parent().unwrap_or(Path::new("")));
    if args.name.is_none() {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        let name = args::base_name(&stem).map_err(|why| {
            let what =
                format!("{stem:?} can't be the service's name: {why}; or add name = \"...\"");
            config.refuses(&[], &what)
        });
        args.name = Some(name?);
    }
    args.plan().map_err(|clash| config.refuses(clash.options, &clash.message))
}

/// The same, with a look at the program that is to choose, if there is one.
fn plan_of(file: &Path) -> Result<Plan, Failure> {
    let plan = read(file)?;
    plan.dispatcher.as_ref().map_or(Ok(()), overspill::check_dispatcher)?;
    Ok(plan)
}

impl Args {
    /// What is to be run, or what is wrong with the arguments together.
    fn plan(self) -> Result<Plan, Clash> {
        if self.command[0].is_empty() {
            return Err(Clash {
                options: &["command"],
                message: "the command has no name; give the program first".to_owned(),
            });
        }
        let hands_over = !self.listen.is_empty() || !self.listen_each.is_empty();
        if hands_over && !self.private_port.is_empty() {
            return Err(Clash {
                options: &["private-port", "listen", "listen-each"],
                message: "--private-port is for ports that COMMAND listens on by itself; leave it \
                          out, or --listen"
                    .to_owned(),
            });
        }
        if hands_over && self.drain.is_some() {
            return Err(Clash {
                options: &["drain", "listen", "listen-each"],
                message: "--drain is for workers that listen by themselves: with --listen a \
                          worker takes requests from the socket that it shares with its successor \
                          until it is told to end; leave --drain out, and give it time with --grace"
                    .to_owned(),
            });
        }
        if !hands_over && self.words {
            return Err(Clash {
                options: &["words"],
                message: "--words is for workers that get their sockets: give --listen too"
                    .to_owned(),
            });
        }
        let workers = self.workers()?;
        let everywhere = self.listen.iter().map(|&address| vec![address; workers]);
        let each = self.listen_each.into_iter().map(|Addresses(each)| each);
        Ok(Plan {
            name: self.name.unwrap_or_else(|| default_name(&self.command[0])),
            workers,
            private: self.private_port,
            drain: self.drain.unwrap_or(DRAIN),
            ready: Duration::from_secs(self.ready.into()),
            stop_signal: self.stop_signal,
            kill_mode: self.kill_mode,
            patience: Duration::from_millis(self.hang.into()),
            addresses: everywhere.chain(each).collect(),
            backlog: self.backlog,
            rules: self.rules.of_new(POLICY, self.spread),
            dispatcher: self.rules.dispatcher(),
            capacity: self.capacity,
            words: self.words,
            user: self.user,
            grace: Duration::from_secs(self.grace.into()),
            output: self.output,
            command: self.command,
        })
    }

    fn workers(&self) -> Result<usize, Clash> {
        let given = self.workers.map(usize::from);
        let Some(Addresses(first)) = self.listen_each.first() else {
            return Ok(given.unwrap_or_else(|| available_parallelism().map_or(1, usize::from)));
        };
        let workers = given.unwrap_or(first.len());
        match self.listen_each.iter().find(|each| each.0.len() != workers) {
            None => Ok(workers),
            Some(Addresses(other)) => Err(Clash {
                options: &["workers", "listen-each"],
                message: format!(
                    "the workers are {workers}, the addresses of --listen-each {}; give one \
                     address for each worker",
                    other.len()
                ),
            }),
        }
    }
}

/// COMMAND's file name, made fit for a name.
fn default_name(command: &OsStr) -> Name {
    let file = Path::new(command).file_name().unwrap_or_default().to_string_lossy();
    let fit = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = file.chars().map(fit).skip_while(|c| !c.is_ascii_alphanumeric()).collect();
    let name = &name[..name.len().min(64)];
    let name = if name.is_empty() { "service" } else { name };
    name.parse().expect("made fit for a name")
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let address = args::address(text)?;
    match address.port() {
        0 => Err(format!("port 0 would be another port for each worker; {}", args::ADDRESS)),
        _ => Ok(address),
    }
}

fn addresses(text: &str) -> Result<Addresses, String> {
    text.split(',').map(address).collect::<Result<_, _>>().map(Addresses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use clap::Parser;
    use overspill::{OnFull, Policy, Rules};

    #[derive(Debug, Parser)]
    struct Run {
        #[command(flatten)]
        args: Args,
    }

    fn plan(line: &str) -> Result<Plan, String> {
        let words = std::iter::once("run").chain(line.split(' '));
        let args = Run::try_parse_from(words).map_err(|error| error.to_string())?.args;
        args.plan().map_err(|clash| clash.message)
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_worker_has_each_address() {
        let plan =
            plan("-n 2 --listen 10.0.0.1:80 --listen-each 10.0.0.1:81,10.0.0.2:81 -- ./server -x")
                .unwrap();
        let expected =
            [[at("10.0.0.1:80"), at("10.0.0.1:80")], [at("10.0.0.1:81"), at("10.0.0.2:81")]];
        assert_eq!(plan.addresses, expected);
        assert_eq!(plan.name.as_str(), "server");
        assert_eq!(plan.command, ["./server", "-x"]);
        assert_eq!(plan.rules, Rules { policy: Policy::ShortestQueue, ..Rules::default() });
    }

    #[test]
    fn the_workers_are_as_many_as_the_addresses() {
        let each = "--listen-each 10.0.0.1:80,10.0.0.2:80,10.0.0.3:80";
        assert_eq!(plan(&format!("{each} -- x")).unwrap().addresses[0].len(), 3);
        let error = plan(&format!("-n 2 {each} -- x")).unwrap_err();
        assert!(error.contains("workers are 2, the addresses of --listen-each 3"), "{error}");
        let error = plan(&format!("{each} --listen-each 10.0.0.1:81 -- x")).unwrap_err();
        assert!(error.contains("workers are 3, the addresses of --listen-each 1"), "{error}");
    }

    #[test]
    fn the_rules_are_as_given() {
        let line = "--listen 10.0.0.1:80 --policy round-robin --on-full reset --redirect off \
                    --spread --capacity 2,3 --grace 4 -- x";
        let plan = plan(line).unwrap();
        let expected = Rules {
            policy: Policy::RoundRobin,
            on_full: OnFull::Reset,
            redirect: false,
            spread: true,
        };
        assert_eq!(plan.rules, expected);
        assert_eq!(plan.capacity, Some(Capacity { services: 2, members: 3 }));
        assert_eq!(plan.grace, Duration::from_secs(4));
        assert_eq!(plan.output, Output::Prefixed);
    }

    #[test]
    fn the_time_to_finish_may_be_without_end() {
        assert_eq!(plan("-- x").unwrap().drain, Duration::from_secs(10));
        assert_eq!(plan("--drain 0 -- x").unwrap().drain, Duration::ZERO);
        assert_eq!(plan("--drain inf -- x").unwrap().drain, Duration::MAX);
    }

    #[test]
    fn who_shares_its_socket_with_its_successor_has_no_time_to_finish_apart() {
        for listen in ["--listen 10.0.0.1:80", "--listen-each 10.0.0.1:80,10.0.0.2:80"] {
            let error = plan(&format!("{listen} --drain 5 -- x")).unwrap_err();
            assert!(error.ends_with("leave --drain out, and give it time with --grace"), "{error}");
            assert_eq!(plan(&format!("{listen} -- x")).unwrap().grace, Duration::from_secs(10));
        }
    }

    #[test]
    fn the_output_may_stay_as_it_is() {
        let plan = plan("--listen 10.0.0.1:80 --output as-is -- x").unwrap();
        assert_eq!(plan.output, Output::AsIs);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, said) in [
            ("--private-port 80 --listen 10.0.0.1:80 -- x", "leave it out"),
            ("--stop-signal LEAVE -- x", "give its name, such as TERM"),
            ("--stop-signal trm -- x", "there is no signal TRM; there is TERM"),
            ("--listen 10.0.0.1:80", "<COMMAND>"),
            ("--listen localhost -- x", "127.0.0.1:8080"),
            ("--listen 10.0.0.1:0 -- x", "port 0"),
            ("--listen-each 10.0.0.1:80, -- x", "127.0.0.1:8080"),
            ("-n 0 --listen 10.0.0.1:80 -- x", "a whole number of workers"),
            ("--policy best --listen 10.0.0.1:80 -- x", "shortest-queue"),
            ("--name web:80 --listen 10.0.0.1:80 -- x", "adds the port"),
            ("--output raw --listen 10.0.0.1:80 -- x", "prefixed, as-is"),
            ("--capacity 3 --listen 10.0.0.1:80 -- x", "two numbers"),
        ] {
            let error = plan(line).unwrap_err();
            assert!(error.contains(said), "{line}: {error}");
        }
    }

    #[test]
    fn a_default_name_is_fit() {
        let long = "a".repeat(100);
        for (command, name) in [
            ("/usr/bin/python3.11", "python3.11"),
            ("./my server", "my-server"),
            ("_hidden", "hidden"),
            ("..", "service"),
            ("日本", "service"),
            (&long, &long[..64]),
        ] {
            assert_eq!(default_name(OsStr::new(command)).as_str(), name, "{command}");
        }
    }

    /// The keys of the file: the options of the command line.
    fn keys() -> Vec<String> {
        let command = <Args as clap::Args>::augment_args(clap::Command::new("run"));
        command.get_arguments().filter_map(|it| config::key(it).map(ToOwned::to_owned)).collect()
    }

    /// What a file of that text, web.toml, is read as.
    fn read_as(text: &str) -> Result<Plan, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("web.toml");
        std::fs::write(&file, text).unwrap();
        read(&file).map_err(|failure| failure.to_string())
    }

    const COMMAND: &str = r#"command = ["./server", "-x"]"#;

    /// For each key what it may say, and what the same is on the command line.
    const SAME: [(&str, &str); 21] = [
        (r#"name = "api""#, "--name api"),
        ("workers = 3", "-n 3"),
        (r#"listen = ["10.0.0.1:80", "[::1]:81"]"#, "--listen 10.0.0.1:80 --listen [::1]:81"),
        (
            r#"listen-each = [["10.0.0.1:80", "10.0.0.2:80"], ["10.0.0.1:81", "10.0.0.2:81"]]"#,
            "--listen-each 10.0.0.1:80,10.0.0.2:80 --listen-each 10.0.0.1:81,10.0.0.2:81",
        ),
        (r#"policy = "round-robin""#, "--policy round-robin"),
        (r#"on-full = "reset""#, "--on-full reset"),
        ("redirect = false", "--redirect off"),
        ("spread = true", "--spread"),
        ("backlog = 5", "--backlog 5"),
        ("words = true\nlisten = \"10.0.0.1:80\"", "--words --listen 10.0.0.1:80"),
        (r#"user = "nobody""#, "--user nobody"),
        ("grace = 3", "--grace 3"),
        ("private-port = [80, 0x51]", "--private-port 80 --private-port 81"),
        ("hang = 1_000", "--hang 1000"),
        ("drain = 4", "--drain 4"),
        ("ready = 5", "--ready 5"),
        (r#"stop-signal = "QUIT""#, "--stop-signal QUIT"),
        (r#"kill-mode = "group""#, "--kill-mode group"),
        (r#"output = "as-is""#, "--output as-is"),
        ("capacity = [16, 256]", "--capacity 16,256"),
        ("", ""),
    ];

    #[test]
    fn a_file_says_what_the_command_line_does() {
        let mut named: Vec<&str> = vec!["command"];
        for (text, line) in SAME {
            let read = read_as(&format!("{text}\n{COMMAND}")).unwrap();
            let name = if text.starts_with("name") { "" } else { "--name web " };
            let line = format!("{name}{line} -- ./server -x");
            let typed = plan(&line.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap();
            assert_eq!(format!("{read:?}"), format!("{typed:?}"), "{text}");
            named.extend(text.split(" =").next().filter(|key| !key.is_empty()));
        }
        let mut keys = keys();
        keys.sort_unstable();
        named.sort_unstable();
        assert_eq!(named, keys, "every option is a key, and every key an option");
    }

    #[test]
    fn on_and_off_may_be_words_or_not() {
        for (text, redirect, spread) in [
            ("redirect = \"off\"\nspread = \"on\"", false, true),
            ("redirect = \"on\"\nspread = \"off\"", true, false),
            ("redirect = true\nspread = false", true, false),
        ] {
            let rules = read_as(&format!("{text}\n{COMMAND}")).unwrap().rules;
            assert_eq!((rules.redirect, rules.spread), (redirect, spread), "{text}");
        }
    }

    #[test]
    fn a_dispatcher_lies_beside_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("web.toml");
        for (given, is) in [("choose.o", folder.path().join("choose.o")), ("/x.o", "/x.o".into())] {
            std::fs::write(&file, format!("policy = \"dispatcher={given}\"\n{COMMAND}")).unwrap();
            assert_eq!(read(&file).unwrap().dispatcher, Some(is));
        }
    }

    #[test]
    fn the_example_has_every_key_and_its_default() {
        let text = include_str!("../../../../dist/overspill.toml.example");
        let file = read_as(text).unwrap_or_else(|error| panic!("{error}"));
        let mut named = vec!["command".to_owned()];
        let nothing: String = text.lines().filter(|line| !line.starts_with('#')).collect();
        for paragraph in text.split("\n\n") {
            let Some(line) = paragraph.lines().find(|line| {
                line.strip_prefix('#')
                    .is_some_and(|rest| rest.starts_with(|c: char| c.is_alphabetic()))
            }) else {
                continue;
            };
            let read = read_as(&format!("{}\n{nothing}", &line[1..]));
            let read = read.unwrap_or_else(|error| panic!("{line}: {error}"));
            let same = format!("{read:?}") == format!("{file:?}");
            let example = paragraph.to_lowercase().contains("an example");
            assert_ne!(same, example && !line.contains("name"), "{line}");
            named.push(line[1..].split(" =").next().unwrap().to_owned());
        }
        let (mut keys, count) = (keys(), named.len());
        keys.sort_unstable();
        named.sort_unstable();
        assert_eq!((named, count), (keys, 21));
    }

    #[test]
    fn the_page_has_every_key_as_it_is_written_and_its_fate_at_a_reload() {
        let page = include_str!("../../../../docs/ways/config.md");
        let rows: Vec<Vec<&str>> = page
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        let mut stays = Vec::new();
        let mut named = Vec::new();
        for row in rows {
            let [line, _default, reload] = row[..] else { panic!("{row:?}") };
            let line = line.trim_matches('`');
            let key = line.split(" =").next().unwrap();
            let rest = if key == "command" { "" } else { COMMAND };
            read_as(&format!("{line}\n{rest}")).unwrap_or_else(|error| panic!("{line}: {error}"));
            named.push(key.to_owned());
            stays.extend((!reload.starts_with("yes")).then_some(key));
        }
        let mut keys = keys();
        keys.sort_unstable();
        named.sort_unstable();
        assert_eq!(named, keys);

        let old = plan("-n 1 --private-port 7 --user a -- x").unwrap();
        let mut new = plan(
            "--name y --listen-each 10.0.0.1:1,10.0.0.1:2 --words --backlog 1 --capacity 1,1 \
             --user b --policy round-robin --on-full reset --redirect off --spread --hang 1 \
             --grace 1 --ready 1 --stop-signal QUIT --kill-mode group --output as-is -- y",
        )
        .unwrap();
        let mut kept = supervisor::keep(&old, &mut new);
        kept.push("listen-each");
        kept.sort_unstable();
        stays.sort_unstable();
        assert_eq!(kept, stays);
    }
}
