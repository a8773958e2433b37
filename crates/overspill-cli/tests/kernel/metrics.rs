//! `overspill metrics`, scraped by Debian's Prometheus and by clients that are none.

#![allow(clippy::float_cmp)] // what is compared are whole numbers

mod exporter;
mod prometheus;
mod samples;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use overspill::Namespace;
use serde_json::Value;
use tempfile::TempDir;
use world::at;

use crate::run::Run;
use crate::server::{Server, add_namespace, get};
use crate::tool::{Ran, overspill};
use exporter::Exporter;
use prometheus::{Prometheus, dist, promtool};
use samples::{Samples, all_names, labels, mentioned, parse, series, shown};

const OPENMETRICS: &str = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";

fn here() -> Namespace {
    Namespace::current().unwrap()
}

/// What `show` tells of services here and in the namespace `blue`.
fn told(services: &[&str]) -> Samples {
    let one = |name: &&str| {
        let blue = name.contains("--netns blue");
        let place = if blue { Namespace::at("/run/netns/blue").unwrap() } else { here() };
        let json = overspill(&format!("show {name} --json")).done();
        shown(&place, &serde_json::from_str(&json).unwrap())
    };
    services.iter().flat_map(one).collect()
}

/// The same samples without those that change with every look: each scrape over TCP is
/// itself a request to a port that no service has.
fn lasting(mut samples: Samples) -> Samples {
    let moves = ["overspill_scrape_duration_seconds", "overspill_namespace_unserved_port_total"];
    samples.retain(|series, _| !moves.iter().any(|name| series.starts_with(name)));
    samples
}

/// A service under load here, one with connections that wait here, and one in `blue`.
struct Scene {
    _folder: TempDir,
    _servers: Vec<Server>,
    _waiting: Vec<TcpStream>,
}

const SCENE: [&str; 3] = ["web", "waits", "web --netns blue"];
const WEB: [&str; 2] = ["10.0.0.1:8080", "10.0.0.2:8080"];

impl Scene {
    fn new() -> Self {
        add_namespace("blue");
        let folder = tempfile::tempdir().unwrap();
        let mut servers: Vec<Server> =
            WEB.iter().map(|address| Server::http(at(address), folder.path())).collect();
        let [one, two] = [servers[0].pid(), servers[1].pid()];
        overspill(&format!("share web --pid {one},{two} --port 8080 --policy least-loaded")).done();
        servers.push(Server::start("tcp=10.0.0.1:81 tcp=10.0.0.2:81"));
        overspill(&format!("share waits --pid {} --port 81", servers[2].pid())).done();
        let waiting = (0..8).map(|_| TcpStream::connect("10.0.0.1:81").unwrap()).collect();
        servers.push(Server::start_in("/run/netns/blue", "tcp=127.0.0.1:80"));
        overspill(&format!("share web --pid {} --port 80", servers[3].pid())).done();
        // It is the only member, which is said.
        assert_eq!(overspill("drain web 0 --netns blue").code, Some(0));
        Self { _folder: folder, _servers: servers, _waiting: waiting }
    }
}

#[test]
fn prometheus_has_the_figures_that_show_tells() {
    world::enter();
    let _scene = Scene::new();
    let exporter = Exporter::start();
    let prometheus = Prometheus::start("127.0.0.1:9090", exporter.address);
    let up = || prometheus.query("up") == Samples::from([("up{}".to_owned(), 1.0)]);
    world::wait_until("the first scrape is there", up);

    std::thread::scope(|scope| {
        for address in WEB {
            scope.spawn(move || (0..200).for_each(|_| drop(get(at(address), "/"))));
        }
        let rate = "rate(overspill_service_requests_placed_total{service='web'}[1m]) > 0";
        world::wait_until("the load is seen", || !prometheus.query(rate).is_empty());
    });
    let stored = || lasting(prometheus.query("{__name__=~'overspill_.+'}"));
    let is_as_shown = || {
        let (stored, told) = (stored(), lasting(told(&SCENE)));
        told.iter().all(|(series, value)| stored.get(series) == Some(value))
    };
    world::wait_until("what is stored is what show tells", is_as_shown);
    let stored = stored();
    let inode = here().inode();
    let web = |figure: &str| stored[&format!("{figure}{{netns=\"{inode}\",service=\"web\"}}")];
    let requests = |name: &str| web(&format!("overspill_service_requests_{name}_total"));
    assert_eq!(requests("placed") + requests("redirected"), 400.0);
    assert_eq!(prometheus.query("min_over_time(up[1m])").into_values().collect::<Vec<_>>(), [1.0]);

    // It was OpenMetrics that it took: only there have counters and infos names of their own.
    let metadata = prometheus.api("/api/v1/metadata");
    let placed = &metadata["overspill_service_requests_placed"][0];
    assert_eq!([&placed["type"], &metadata["overspill_service"][0]["type"]], ["counter", "info"]);
    assert_eq!(placed["help"], "Requests put on a member that they called.");

    let rules = prometheus.api("/api/v1/rules");
    let rules = rules["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.iter().all(|rule| rule["health"] != "err"), "{rules:#?}");
    assert!(!prometheus.log().contains("level=error"), "{}", prometheus.log());
    every_panel_has_something_to_show(&prometheus);
}

/// The expressions of the dashboard, and those that fill its variables.
fn dashboard() -> (Value, Vec<String>) {
    let text = fs::read_to_string(dist("grafana/overspill.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let expressions = targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    (dashboard, expressions)
}

fn every_panel_has_something_to_show(prometheus: &Prometheus) {
    let (dashboard, expressions) = dashboard();
    for expression in &expressions {
        let variables = ["$instance", "$netns", "$service"];
        let expression =
            variables.iter().fold(expression.clone(), |text, name| text.replace(name, ".*"));
        let expression = expression.replace("$__rate_interval", "1m");
        assert!(!expression.contains('$'), "{expression}");
        assert!(!prometheus.query(&expression).is_empty(), "{expression}");
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<&str> = variables.iter().filter_map(|it| it["name"].as_str()).collect();
    assert_eq!(names, ["datasource", "instance", "netns", "service"]);
    for variable in &variables[1..] {
        let query = variable["definition"].as_str().unwrap();
        let (series, label) = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(')')?.rsplit_once(", "))
            .unwrap();
        let series = series.replace("$instance", ".*").replace("$netns", ".*");
        let found = prometheus.query(&format!("count by ({label}) ({series})"));
        assert!(!found.is_empty(), "{query}");
    }
}

/// Nothing asks for a metric that there is not, and no figure is forgotten.
#[test]
fn dashboard_and_alerts_speak_of_what_there_is() {
    world::enter();
    let _scene = Scene::new();
    let text = overspill("metrics --once").done();
    let there: BTreeSet<String> =
        parse(&text).keys().map(|series| series.split('{').next().unwrap().to_owned()).collect();

    let (dashboard, expressions) = dashboard();
    let shown = mentioned(&expressions.join("\n"));
    let missing: Vec<&String> = shown.difference(&there).collect();
    assert!(missing.is_empty(), "the dashboard shows {missing:?}, which there is not");
    let forgotten: Vec<&String> = there.difference(&shown).collect();
    assert!(forgotten.is_empty(), "the dashboard does not show {forgotten:?}");
    assert!(mentioned(&dashboard["templating"].to_string()).is_subset(&there));

    let rules = fs::read_to_string(dist("prometheus/overspill.rules.yml")).unwrap();
    let missing: Vec<String> = mentioned(&rules).difference(&there).cloned().collect();
    assert!(missing.is_empty(), "the alerts watch {missing:?}, which there is not");

    // The page names those that do not follow from a figure.
    let (page, figures) = (mentioned(&documentation()), all_names());
    let unnamed: Vec<&String> =
        there.difference(&figures).filter(|name| !page.contains(*name)).collect();
    assert!(unnamed.is_empty(), "docs/METRICS.md does not name {unnamed:?}");
}

fn documentation() -> String {
    fs::read_to_string(dist("../docs/METRICS.md")).unwrap()
}

#[test]
fn every_alert_fires_when_it_should_and_says_what_to_do() {
    let file = |name: &str| dist(name).to_str().unwrap().to_owned();
    let [rules, tests] =
        ["rules.yml", "rules.test.yml"].map(|name| file(&format!("prometheus/overspill.{name}")));
    let checked = promtool(&["check", "rules", &rules], "");
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let tested = promtool(&["test", "rules", &tests], "");
    assert_eq!(tested.code, Some(0), "{tested:?}");

    let [rules, tests] = [rules, tests].map(|path| fs::read_to_string(path).unwrap());
    let operations = fs::read_to_string(dist("../docs/OPERATIONS.md")).unwrap();
    let alerts: Vec<&str> = rules.split("- alert: ").skip(1).collect();
    assert_eq!(alerts.len(), 11);
    for alert in alerts {
        let name = alert.lines().next().unwrap();
        let anchor = format!("runbook: docs/OPERATIONS.md#{}\n", name.to_lowercase());
        for part in ["severity: ", "summary: ", "description: ", &anchor] {
            assert!(alert.contains(part), "{name} has no {part}");
        }
        let silent = format!("{{alertname: {name}, eval_time: ");
        let fires = format!("- alertname: {name}\n");
        assert!(tests.contains(&silent) && tests.contains(&fires), "{name} is not tested");
        assert!(operations.contains(&format!("\n### {name}\n")), "{name} is not explained");
        assert!(documentation().contains(&format!("`{name}`")), "{name} is not in docs/METRICS.md");
    }
}

#[test]
fn every_figure_is_told_under_its_name() {
    world::enter();
    let _scene = Scene::new();
    let once = overspill("metrics --once").done();
    let samples = parse(&once);
    for (series, value) in lasting(told(&SCENE)) {
        assert_eq!(samples.get(&series), Some(&value), "{series}");
    }
    for name in all_names() {
        assert!(samples.keys().any(|series| series.starts_with(&format!("{name}{{"))), "{name}");
        assert_eq!(once.matches(&format!("# HELP {name} ")).count(), 1, "{name}");
    }
    let [inode, blue] = [here(), Namespace::at("/run/netns/blue").unwrap()]
        .map(|namespace| namespace.inode().to_string());
    let rules = labels(&[
        ("netns", &inode),
        ("service", "web"),
        ("port", "8080"),
        ("policy", "least-loaded"),
        ("dispatcher", ""),
        ("on_full", "drop"),
        ("redirect", "on"),
        ("spread", "off"),
    ]);
    let version = labels(&[("version", env!("CARGO_PKG_VERSION"))]);
    let named = labels(&[("netns", &blue), ("name", "blue")]);
    for expected in [
        series("overspill_service_info", &rules),
        series("overspill_build_info", &version),
        series("overspill_namespace_info", &named),
        series("overspill_up", &labels(&[("netns", &inode)])),
        series("overspill_up", &labels(&[("netns", &blue)])),
    ] {
        assert_eq!(samples.get(&expected), Some(&1.0), "{expected}\n{once}");
    }
    let checked = promtool(&["check", "metrics"], &once);
    assert_eq!((checked.code, &*checked.stdout, &*checked.stderr), (Some(0), "", ""));
}

#[test]
fn once_tells_what_a_scrape_tells_in_either_format() {
    world::enter();
    let _scene = Scene::new();
    let exporter = Exporter::start();
    let once = overspill("metrics --once").done();
    let classic = exporter.ask("GET /metrics", "Accept: */*\r\n");
    let open = exporter.ask("GET /metrics", OPENMETRICS);
    assert_eq!(classic.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(open.header("content-type"), Some(kind));
    let [once_samples, classic_samples, open_samples] =
        [&once, &classic.body, &open.body].map(|text| lasting(parse(text)));
    assert!(once_samples.len() > 60, "{once}");
    assert_eq!(once_samples, classic_samples);
    assert_eq!(once_samples, open_samples);
    // OpenMetrics has an end, and says of a family what it is; the older text has no type info.
    assert!(open.body.ends_with("\n# EOF\n") && !once.contains("# EOF"));
    assert!(open.body.contains("# TYPE overspill_member_placed counter\n"), "{}", open.body);
    assert!(once.contains("# TYPE overspill_member_placed_total counter\n"), "{once}");
    assert!(open.body.contains("# TYPE overspill_service info\n"), "{}", open.body);
    assert!(once.contains("# TYPE overspill_service_info gauge\n"), "{once}");

    let blue = Namespace::at("/run/netns/blue").unwrap().inode().to_string();
    let only = parse(&overspill("metrics --once --netns blue").done());
    let ours: Samples = once_samples
        .into_iter()
        .filter(|(series, _)| !series.contains("netns=") || series.contains(&blue))
        .collect();
    assert_eq!(lasting(only), ours);
}

/// Listens until it is told to close its socket, and lives on.
const CLOSES: &str = r#"
import socket, sys
listener = socket.create_server(("10.0.0.1", 80))
print("listens", flush=True)
sys.stdin.readline()
listener.close()
print("closed", flush=True)
sys.stdin.read()
"#;

#[test]
fn a_service_comes_and_goes() {
    world::enter();
    let exporter = Exporter::start();
    let services = || -> Vec<String> {
        let samples = parse(&exporter.scrape()).into_keys();
        samples.filter(|series| series.starts_with("overspill_service_info{")).collect()
    };
    assert!(services().is_empty());
    let mut server = Command::new("python3")
        .args(["-c", CLOSES])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(server.stdout.take().unwrap());
    let mut wait_for = |word: &str| {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), word);
    };
    wait_for("listens");
    overspill(&format!("share web --pid {} --port 80", server.id())).done();
    assert_eq!(services().len(), 1);
    assert!(exporter.scrape().contains("_process_start_time_seconds{"));
    overspill("set web --policy round-robin").done();
    assert!(services()[0].contains("policy=\"round-robin\""));
    server.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    wait_for("closed");
    let state = |state: &str| {
        let inode = here().inode().to_string();
        let labels = labels(&[
            ("netns", &inode),
            ("service", "web"),
            ("member", "0"),
            ("address", "10.0.0.1:80"),
            ("state", state),
        ]);
        let samples = parse(&exporter.scrape());
        // The process is there, but might be anybody's by now.
        assert!(!samples.keys().any(|series| series.contains("process_start")), "{samples:#?}");
        samples[&series("overspill_member_state", &labels)]
    };
    assert_eq!([state("gone"), state("active")], [1.0, 0.0]);
    overspill("rm web").done();
    assert!(services().is_empty() && !exporter.scrape().contains("overspill_up{"));
    drop(server.stdin.take());
    server.wait().unwrap();
}

/// The alert for restart loops watches it: such a worker is alive at no scrape.
#[test]
fn the_starts_of_a_worker_that_ends_at_once_are_counted() {
    world::enter();
    let exporter = Exporter::start();
    let run = Run::start("--name web -n 2 --listen 10.0.0.1:80", &["sh", "-c", "exit 3"]);
    run.line("service web");
    let starts = |samples: Samples| -> Vec<f64> {
        let name = "overspill_member_starts_total{";
        samples.into_iter().filter(|it| it.0.starts_with(name)).map(|it| it.1).collect()
    };
    let shown = || starts(told(&["web"]));
    for times in [3.0, 5.0] {
        world::wait_until("both are started again", || {
            let starts = shown();
            starts.len() == 2 && starts.iter().all(|&it| it >= times)
        });
        let scraped = || starts(parse(&exporter.scrape()));
        world::wait_until("metrics tells what show tells", || scraped() == shown());
    }
    assert!(overspill("show web").done().contains("  STARTS"));
    run.ends_at(Signal::SIGTERM);
}

#[test]
fn a_worker_that_is_started_again_has_another_start_time() {
    world::enter();
    let exporter = Exporter::start();
    let mut supervisor = crate::tool::command("run --name web -n 1")
        .args(["--listen", "10.0.0.1:80", "--", "sleep", "600"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = || -> Option<(String, f64)> {
        let samples = parse(&exporter.scrape()).into_iter();
        let mut found = samples.filter(|(series, _)| series.contains("_process_start_time_"));
        let first = found.next();
        assert!(found.next().is_none());
        first
    };
    let worker = || -> Option<u32> {
        let shown: Value = serde_json::from_str(&overspill("show web --json").stdout).ok()?;
        shown["members"][0]["pid"].as_u64()?.try_into().ok()
    };
    // Until it is started, the supervisor is who holds the socket.
    let runs = || worker().is_some_and(|pid| pid != supervisor.id());
    world::wait_until("the worker runs", runs);
    let pid = worker().unwrap();
    let (series, start) = started().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    // The kernel tells when it was booted in whole seconds.
    assert!((now.as_secs_f64() - start).abs() < 60.0, "{start}");
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    world::wait_until("its successor runs", || {
        started().is_some_and(|(successor, time)| successor == series && time > start)
    });
    kill(Pid::from_raw(supervisor.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    supervisor.wait().unwrap();
}

#[test]
fn a_namespace_that_cannot_be_read_hides_no_other() {
    world::enter();
    let _scene = Scene::new();
    let mut exporter = Exporter::start();
    let blue = Namespace::at("/run/netns/blue").unwrap().inode();
    fs::remove_file(format!("/sys/fs/bpf/overspill/{blue}/rows")).unwrap();
    let up = |inode: u64| format!("overspill_up{{netns=\"{inode}\"}}");
    for _ in 0..2 {
        let samples = parse(&exporter.scrape());
        assert_eq!((samples[&up(blue)], samples[&up(here().inode())]), (0.0, 1.0));
        let of_blue: Vec<_> =
            samples.keys().filter(|series| series.contains(&blue.to_string())).collect();
        assert_eq!(of_blue.len(), 2, "up, and the name: {of_blue:?}");
        assert_eq!(samples.keys().filter(|it| it.contains("service_info{")).count(), 2);
    }
    let line = exporter.says();
    let reason = format!("overspill: cannot read network namespace {blue}: ");
    assert!(line.starts_with(&reason) && line.contains("rows"), "{line}");
    let once = Ran::from(crate::tool::command("metrics --once").output().unwrap());
    assert_eq!((once.code, parse(&once.stdout)[&up(blue)]), (Some(0), 0.0));
    assert!(once.complaint().starts_with(&reason));

    // What has been said is not said at each scrape again.
    let here = here().inode();
    fs::remove_file(format!("/sys/fs/bpf/overspill/{here}/rows")).unwrap();
    exporter.scrape();
    let line = exporter.says();
    assert!(line.contains(&format!("cannot read network namespace {here}: ")), "{line}");

    // Where it can't be told what there is, the scrape fails, and says why.
    let exporter_of_blue = Exporter::start_with("--listen 127.0.0.1:0 --netns blue");
    assert!(exporter_of_blue.scrape().contains(&up(blue)));
    world::ip("netns del blue");
    let answer = exporter_of_blue.ask("GET /metrics", OPENMETRICS);
    assert_eq!(answer.status, 500, "{answer:?}");
    assert!(answer.body.contains("/run/netns/blue") && answer.body.lines().count() == 1);
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
}

#[test]
fn odd_names_are_escaped() {
    world::enter();
    let name = "b\"l\\u{e}=";
    add_namespace(name);
    let server = Server::start_in(&format!("/run/netns/{name}"), "tcp=127.0.0.1:80");
    overspill(&format!("share 0.a_b-c --pid {} --port 80", server.pid())).done();
    let text = overspill("metrics --once").done();
    assert!(text.contains(r#",name="b\"l\\u{e}="} 1"#), "{text}");
    assert!(text.contains(r#",service="0.a_b-c","#), "{text}");
    assert_eq!(promtool(&["check", "metrics"], &text).code, Some(0));
}

#[test]
fn it_answers_what_is_asked() {
    world::enter();
    let exporter = Exporter::start();
    let whole = exporter.ask("GET /metrics", "");
    let head = exporter.ask("HEAD /metrics", "");
    assert_eq!((head.status, &*head.body), (200, ""));
    assert_eq!(head.header("content-type"), whole.header("content-type"));
    assert!(head.header("content-length").is_some_and(|length| length != "0"));
    assert_eq!(exporter.ask("GET /metrics?collect[]=x", "").status, 200);
    assert_eq!(exporter.send("GET /metrics HTTP/1.0\r\n\r\n").status, 200);
    for path in ["/", "/metrics/", "/../metrics", "/etc/passwd"] {
        let answer = exporter.ask(&format!("GET {path}"), "");
        assert_eq!((answer.status, &*answer.body), (404, "metrics are at /metrics\n"), "{path}");
    }
    let post = exporter.ask("POST /metrics", "Content-Length: 0\r\n");
    assert_eq!((post.status, post.header("allow")), (405, Some("get, head")));
}

#[test]
fn broken_clients_are_nobody_elses_trouble() {
    world::enter();
    let exporter = Exporter::start();
    assert_eq!(exporter.send("nonsense\r\n\r\n").status, 400);
    assert_eq!(exporter.send("GET /metrics HTTP/9.9\r\n\r\n").status, 400);
    for _ in 0..100 {
        // Gone before, within and after the request; the last one with a reset, because
        // what it was sent is not read.
        drop(exporter.connect());
        exporter.connect().write_all(b"GET /met").unwrap();
        exporter.connect().write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    }
    let mut endless = exporter.connect();
    let header = format!("GET /metrics HTTP/1.1\r\nX: {}", "y".repeat(20_000));
    endless.write_all(header.as_bytes()).unwrap();
    let mut answer = [0; 12];
    endless.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");
    exporter.scrape();
}

#[test]
fn slow_clients_are_cut_off_and_the_next_has_its_turn() {
    world::enter();
    let exporter = Exporter::start();
    // As many as it serves at a time.
    let mut slow: Vec<TcpStream> = (0..16).map(|_| exporter.connect()).collect();
    for client in &mut slow {
        client.write_all(b"GET /metrics HTTP/1.1\r\nHost:").unwrap();
    }
    exporter.scrape();
    let cut_off = |client: &TcpStream| {
        client.set_nonblocking(true).unwrap();
        let silent = client.peek(&mut [0]);
        client.set_nonblocking(false).unwrap();
        silent.map_or_else(|error| error.kind() != ErrorKind::WouldBlock, |length| length == 0)
    };
    assert!(slow.iter().any(cut_off), "it serves more than it says");
    for mut client in slow {
        let mut answer = Vec::new();
        // Closed, or reset: over in any case.
        let _ = client.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
}

#[test]
fn it_ends_when_it_is_told_to() {
    world::enter();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let exporter = Exporter::start();
        exporter.scrape();
        let address = exporter.address;
        let mut waiting = exporter.connect();
        assert_eq!(exporter.end(signal), Some(0));
        assert!(TcpStream::connect(address).is_err());
        assert!(matches!(waiting.read(&mut [0]), Ok(0) | Err(_)));
    }
}

#[test]
fn an_address_that_cannot_be_had() {
    world::enter();
    let taken = TcpListener::bind("127.0.0.1:28534").unwrap();
    let line = overspill("metrics").failed();
    assert!(line.contains("cannot listen on 127.0.0.1:28534: Address already in use"), "{line}");
    assert!(line.contains("--listen"), "{line}");
    drop(taken);
    // 192.0.2.1 can be had here: world lets sockets bind to addresses that are not local.
    world::sysctl("net/ipv4/ip_nonlocal_bind", "0");
    let line = overspill("metrics --listen 192.0.2.1:1").failed();
    assert!(line.contains("give an address of this machine with --listen"), "{line}");
    let line = overspill("metrics --once --netns nowhere").failed();
    assert!(line.contains("nowhere") && line.contains("ip netns"), "{line}");
    let exporter = Exporter::start_with("--listen [::1]:0");
    assert!(exporter.address.is_ipv6());
    exporter.scrape();
}

// --- the unit ---------------------------------------------------------------------------

/// The settings of the unit by that name, in order.
fn unit(setting: &str) -> Vec<String> {
    let text = fs::read_to_string(dist("systemd/overspill-metrics.service")).unwrap();
    let values = text.lines().filter_map(|line| line.strip_prefix(setting)?.strip_prefix('='));
    values.map(str::to_owned).collect()
}

/// Runs it as the unit does: as nobody in particular, with these capabilities and no more,
/// and with the BPF file system read-only.
fn confined(capabilities: &[&str]) -> Ran {
    // Nobody may enter the folder that it was built in.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("overspill");
    fs::copy(env!("CARGO_BIN_EXE_overspill"), &program).unwrap();
    let names = capabilities.iter().map(|name| name.strip_prefix("CAP_").unwrap().to_lowercase());
    let set = ["-all".to_owned()].into_iter().chain(names.map(|name| format!("+{name}")));
    let set = set.collect::<Vec<_>>().join(",");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
    for kind in ["inh-caps", "ambient-caps", "bounding-set"] {
        command.arg(format!("--{kind}={set}"));
    }
    Ran::from(command.arg(program).args(["metrics", "--once"]).output().unwrap())
}

#[test]
fn the_units_capabilities_are_what_reading_takes_and_no_more() {
    world::enter();
    let _scene = Scene::new();
    for arguments in ["--bind /sys/fs/bpf /sys/fs/bpf", "-o remount,bind,ro /sys/fs/bpf"] {
        assert!(Command::new("mount").args(arguments.split(' ')).status().unwrap().success());
    }
    let ambient = unit("AmbientCapabilities");
    let all: Vec<&str> = ambient.iter().flat_map(|line| line.split(' ')).collect();
    assert_eq!(unit("CapabilityBoundingSet"), [all.join(" ")]);
    assert_eq!(unit("DynamicUser"), ["yes"]);
    assert_eq!(unit("ExecStart"), ["/usr/bin/overspill metrics $ARGS"]);

    let samples = parse(&confined(&all).done());
    for (series, value) in lasting(told(&SCENE)) {
        assert_eq!(samples.get(&series), Some(&value), "{series}");
    }
    assert!(samples.keys().any(|series| series.contains("_process_start_time_")));
    for left_out in &all {
        let rest: Vec<&str> = all.iter().copied().filter(|name| name != left_out).collect();
        let ran = confined(&rest);
        assert!(ran.stderr.contains("no permission to"), "without {left_out}: {ran:?}");
        assert!(!ran.stdout.contains("overspill_service_info{"), "without {left_out}: {ran:?}");
    }
}
