//! The life of services, from `share` to `rm`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::TcpStream;
use std::path::Path;

use overspill::{Exits, Figure, MemberStatus, Namespace, Requests, Service};
use serde_json::Value;
use world::at;

use crate::server::{Server, add_namespace, get};
use crate::tool::{Ran, cells, command, overspill, traced};

const HEADINGS: &str = "NAME  PORT  POLICY  MEMBERS  QUEUED  PLACED  REDIR  DROPPED  RESET\n";

fn show(arguments: &str) -> Value {
    serde_json::from_str(&overspill(&format!("show {arguments} --json")).done()).unwrap()
}

/// Before Linux 6.8, each look-up of user space in a map of maps waits for a grace period: one
/// for each service that there may be took 20 s.
#[test]
fn a_command_looks_few_entries_up() {
    const FEW: usize = 32;
    world::enter();
    let (service, _listeners) = Service::builder("web").listen([at("10.0.0.1:80")]).unwrap();
    for arguments in ["set web --policy round-robin", "drain web 0", "show web", "ls", "rm web"] {
        let calls = traced(&command(arguments), "bpf");
        let look_ups = calls.matches("(BPF_MAP_LOOKUP_ELEM,").count();
        assert!(look_ups < FEW, "overspill {arguments}: {look_ups}");
        assert!(calls.contains("(BPF_OBJ_GET,"), "{calls}");
    }
    drop(service);
}

#[test]
fn the_life_of_a_service() {
    world::enter();
    let folder = tempfile::tempdir().unwrap();
    let addresses = [at("10.0.0.1:8080"), at("10.0.0.2:8080"), at("10.0.0.3:8080")];
    let servers = ["one", "two", "three"].map(|name| {
        let root = folder.path().join(name);
        fs::create_dir(&root).unwrap();
        fs::write(root.join("who"), name).unwrap();
        root
    });
    let servers: Vec<Server> = addresses
        .iter()
        .zip(&servers)
        .map(|(&address, root)| Server::http(address, root))
        .collect();
    let [one, two, three] = [0, 1, 2].map(|n: usize| servers[n].pid());
    let who = |n: usize| get(addresses[n], "/who");

    assert_eq!(overspill("ls").done(), HEADINGS);
    let said = overspill(&format!("share web --pid {one},{two} --port 8080")).done();
    assert_eq!(said, "web: 2 members on port 8080\n");
    assert_eq!([who(0), who(1)], ["one", "two"]);
    let list = overspill("ls").done();
    let row = ["web", "8080", "next-available", "2/2", "0/12", "2", "0", "0", "0"];
    assert_eq!(cells(&list)[1], row);
    assert!(list.lines().all(|line| line.len() <= 80), "{list}");

    overspill("drain web 0").done();
    assert_eq!([who(0), who(1)], ["two", "two"]);
    assert_eq!(show("web")["members"][0]["state"], "draining");
    assert_eq!(cells(&overspill("ls").done())[1][3], "1/2");
    overspill("resume web 0").done();
    assert_eq!([who(0), who(1)], ["one", "two"]);
    let status = show("web");
    assert_eq!(status["members"][0]["redirected_out"], 1);
    assert_eq!(status["members"][1]["redirected_in"], 1);
    assert_eq!([&status["requests"]["placed"], &status["requests"]["redirected"]], [5, 1]);

    let said = overspill(&format!("share web --pid {three} --port 8080 --join")).done();
    assert_eq!(said, "web: 3 members on port 8080, 1 of them new\n");
    overspill("rm web 1").done();
    let members: Vec<Value> =
        show("web")["members"].as_array().unwrap().iter().map(|m| m["member"].clone()).collect();
    assert_eq!(members, [0, 2]);
    assert_eq!(who(1), "two");

    overspill("rm web").done();
    assert_eq!(overspill("ls").done(), HEADINGS);
    assert!(!Path::new("/sys/fs/bpf/overspill").exists());
    assert_eq!([who(0), who(1), who(2)], ["one", "two", "three"]);
}

#[test]
fn rules_are_given_and_changed() {
    world::enter();
    let server = Server::start("tcp=10.0.0.1:80 tcp=10.0.0.2:80");
    let rules = |status: &Value| {
        ["policy", "on_full", "redirect", "spread"].map(|key| status[key].to_string())
    };
    let pid = server.pid();
    overspill(&format!(
        "share web --pid {pid} --port 80 --policy shortest-queue --on-full reset --redirect off \
         --spread"
    ))
    .done();
    assert_eq!(rules(&show("web")), ["\"shortest-queue\"", "\"reset\"", "\"off\"", "true"]);
    overspill("set web --policy round-robin").done();
    assert_eq!(rules(&show("web")), ["\"round-robin\"", "\"reset\"", "\"off\"", "true"]);
    overspill("set web --on-full drop --redirect on --spread off").done();
    assert_eq!(rules(&show("web")), ["\"round-robin\"", "\"drop\"", "\"on\"", "false"]);
    overspill("rm web").done();
    overspill(&format!("share web --pid {pid} --port 80")).done();
    assert_eq!(rules(&show("web")), ["\"next-available\"", "\"drop\"", "\"on\"", "false"]);
}

#[test]
fn json_is_the_status_as_the_library_gives_it() {
    world::enter();
    let server = Server::start("tcp=10.0.0.1:80 tcp=10.0.0.2:80");
    overspill(&format!("share web --pid {} --port 80", server.pid())).done();
    let expected = serde_json::to_value(Service::open("web").unwrap().status().unwrap()).unwrap();
    let mut shown = show("web");
    let namespace = shown.as_object_mut().unwrap().remove("namespace");
    assert_eq!(shown, expected);
    let exits = Namespace::current().unwrap().exits().unwrap();
    assert_eq!(namespace, Some(serde_json::to_value(exits).unwrap()));
    let list =
        |arguments: &str| -> Value { serde_json::from_str(&overspill(arguments).done()).unwrap() };
    assert_eq!(list("ls --json"), serde_json::json!([expected]));
    let mut entry = expected;
    entry["netns"] = Namespace::current().unwrap().inode().into();
    assert_eq!(list("ls --all --json"), serde_json::json!([entry]));
    overspill("rm web").done();
    assert_eq!(list("ls --json"), serde_json::json!([]));
}

#[test]
fn people_see_rules_members_and_requests() {
    world::enter();
    let server = Server::start("tcp=10.0.0.1:80 tcp=10.0.0.2:80");
    let pid = server.pid().to_string();
    overspill(&format!("share web --pid {pid} --port 80")).done();
    let waiting = std::net::TcpStream::connect("10.0.0.2:80").unwrap();
    // The handshake's last segment is taken a moment after the client is connected.
    let counted = || show("web")["members"][1]["established"] == 1;
    world::wait_until("it is queued", counted);
    let text = overspill("show web").done();
    let expected: [&[&str]; 10] = [
        &["web:", "2", "members", "on", "port", "80"],
        &["policy", "next-available,", "on-full", "drop,", "redirect", "on,", "spread", "off"],
        &[],
        &[
            "MEMBER",
            "ADDRESS",
            "PID",
            "STATE",
            "QUEUED",
            "HALF-OPEN",
            "ESTAB",
            "PLACED",
            "IN",
            "OUT",
        ],
        &["0", "10.0.0.1:80", &pid, "active", "0/6", "0", "0", "0", "0", "0"],
        &["1", "10.0.0.2:80", &pid, "active", "1/6", "0", "1", "1", "0", "0"],
        &[],
        &[
            "PLACED",
            "REDIRECTED",
            "SPECIAL",
            "DROPPED",
            "RESET",
            "FALLBACK",
            "LEFT",
            "CROWDED",
            "RETURNED",
        ],
        &["1", "0", "0", "0", "0", "0", "0", "0", "0"],
        &[],
    ];
    assert_eq!(cells(&text)[..expected.len()], expected);
    assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    drop(waiting);
}

fn names<T>(figures: &[Figure<T>]) -> BTreeSet<String> {
    figures.iter().map(|figure| figure.name.to_owned()).collect()
}

/// What the library knows of figures is shown, and nothing that it counts is left out.
#[test]
fn show_has_every_figure() {
    world::enter();
    let server = Server::start("tcp=10.0.0.1:80 tcp=10.0.0.2:80");
    overspill(&format!("share web --pid {} --port 80", server.pid())).done();
    assert!(TcpStream::connect(at("10.0.0.1:81")).is_err());

    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let json = show("web");
    assert_eq!(keys(&json["requests"]), names(Requests::FIGURES));
    assert_eq!(keys(&json["namespace"]), names(Exits::FIGURES));
    assert!(names(MemberStatus::FIGURES).is_subset(&keys(&json["members"][0])));
    assert_eq!(json["namespace"]["unserved_port"], 1);
    let text = overspill("show web").done();
    for name in names(Requests::FIGURES) {
        assert!(text.contains(&name.to_uppercase()), "{name} is missing:\n{text}");
    }
    for name in names(Exits::FIGURES) {
        assert!(text.contains(&format!("{name} ")), "{name} is missing:\n{text}");
    }
}

#[test]
fn a_closed_socket_is_shown_as_gone() {
    world::enter();
    let servers = [Server::start("tcp=10.0.0.1:80"), Server::start("tcp=10.0.0.2:80")];
    let pids = servers.each_ref().map(|server| server.pid().to_string()).join(",");
    overspill(&format!("share web --pid {pids} --port 80")).done();
    let [first, _second] = servers;
    drop(first);
    assert_eq!(show("web")["members"][0]["state"], "gone");
    assert_eq!(cells(&overspill("ls").done())[1][3..5], ["1/2", "0/6"]);
}

#[test]
fn a_process_in_another_network_namespace() {
    world::enter();
    add_namespace("blue");
    world::ip("-n blue link set lo up");
    let path = "/run/netns/blue";
    let server = Server::start_in(path, "tcp=127.0.0.1:80 tcp=127.0.0.2:80");
    let pid = server.pid();
    let said = overspill(&format!("share web --pid {pid} --port 80")).done();
    assert_eq!(said, "web: 2 members on port 80\n");

    assert_eq!(overspill("ls").done(), HEADINGS);
    let line = overspill("show web").failed();
    assert!(line.contains("no service web") && line.contains("--netns"), "{line}");
    let inode = Namespace::at(path).unwrap().inode();
    assert_eq!(cells(&overspill("ls --all").done())[1][..3], ["web", "80", &inode.to_string()]);
    for place in ["blue", path, &format!("/proc/{pid}/ns/net"), &inode.to_string()] {
        assert_eq!(show(&format!("web --netns {place}"))["members"][0]["pid"], pid);
        assert_eq!(cells(&overspill(&format!("ls --netns {place}")).done())[1][0], "web");
        overspill(&format!("set web --policy shortest-queue --netns {place}")).done();
        overspill(&format!("drain web 0 --netns {place}")).done();
        assert_eq!(show(&format!("web --netns {place}"))["members"][0]["state"], "draining");
        overspill(&format!("resume web 0 --netns {place}")).done();
        assert_eq!(show(&format!("web --netns {place}"))["members"][0]["state"], "active");
    }
    overspill("rm web 1 --netns blue").done();
    overspill(&format!("rm web --netns {inode}")).done();
    assert!(!Path::new("/sys/fs/bpf/overspill").exists());
}

#[test]
fn names_may_repeat_in_other_namespaces() {
    world::enter();
    add_namespace("blue");
    let here = Server::start("tcp=0.0.0.0:80");
    let there = Server::start_in("/run/netns/blue", "tcp=0.0.0.0:80");
    overspill(&format!("share web --pid {} --port 80", here.pid())).done();
    overspill(&format!("share web --pid {} --port 80", there.pid())).done();
    assert_eq!(cells(&overspill("ls --all").done()).len(), 3);
    overspill("rm web").done();
    assert_eq!(cells(&overspill("ls --all").done()).len(), 2);
    overspill("rm web --netns blue").done();
    assert!(!Path::new("/sys/fs/bpf/overspill").exists());
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    world::enter();
    let server = Server::start("tcp=10.0.0.1:80");
    overspill(&format!("share web --pid {} --port 80", server.pid())).done();
    for arguments in ["ls", "ls --json", "show web", "show web --json", "check"] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        Ran::from(command(arguments).stdout(writer).output().unwrap()).done();
    }
    let full = File::options().write(true).open("/dev/full").unwrap();
    let line = Ran::from(command("ls").stdout(full).output().unwrap()).failed();
    assert!(line.contains("cannot write the output: No space left"), "{line}");
}

#[test]
fn check_finds_nothing_missing_and_leaves_nothing_behind() {
    world::enter();
    let report = overspill("check").done();
    for object in ["program", "hooks"] {
        assert!(cells(&report).contains(&vec!["ok", object, "loads"]), "{report}");
    }
    assert!(cells(&report).contains(&vec!["ok", "services", "none", "yet"]), "{report}");
    assert!(!Path::new("/sys/fs/bpf/overspill").exists());
    let server = Server::start("tcp=10.0.0.1:80");
    overspill(&format!("share web --pid {} --port 80", server.pid())).done();
    let items: Value = serde_json::from_str(&overspill("check --json").done()).unwrap();
    let services = items.as_array().unwrap().iter().find(|item| item["name"] == "services");
    let inode = Namespace::current().unwrap().inode();
    let expected = serde_json::json!({
        "name": "services", "verdict": "ok", "remedy": null,
        "found": format!("1 in network namespace {inode}, of this build"),
    });
    assert_eq!(services, Some(&expected));
}

#[test]
fn weights() {
    world::enter();
    let folder = tempfile::tempdir().unwrap();
    let addresses = [at("10.0.0.1:8080"), at("10.0.0.2:8080")];
    let servers = addresses.map(|address| Server::http(address, folder.path()));
    let [one, two] = [&servers[0], &servers[1]].map(Server::pid);
    overspill(&format!("share web --pid {one},{two} --port 8080 --spread")).done();
    let weights = || {
        let members = show("web")["members"].clone();
        [0, 1].map(|n| members[n]["weight"].as_u64().unwrap())
    };
    assert_eq!(weights(), [1, 1]);
    overspill("set web --policy least-loaded --weight 0=3,1=2").done();
    assert_eq!((weights(), show("web")["policy"].as_str()), ([3, 2], Some("least-loaded")));

    // Clients that stay: three of the first member's for two of the second's. Each comes when
    // the one before it has been accepted: who waits would weigh twice.
    let held = |figure: &str| {
        let members = show("web")["members"].clone();
        [0, 1].map(|n| members[n][figure].as_u64().unwrap())
    };
    let mut clients = Vec::new();
    for count in 1..=10 {
        clients.push(TcpStream::connect(addresses[0]).unwrap());
        world::wait_until("it is accepted", || {
            held("queued") == [0, 0] && held("established").iter().sum::<u64>() == count
        });
    }
    assert_eq!(held("established"), [6, 4]);
    drop(clients);
    world::wait_until("none is left", || held("established") == [0, 0]);

    let refused = overspill("set web --policy round-robin --weight 1=9,7=2").failed();
    assert!(refused.contains("has no member 7"), "{refused}");
    assert_eq!((weights(), show("web")["policy"].as_str()), ([3, 2], Some("least-loaded")));
    for wrong in ["0=0", "0=65536", "0", "x=1"] {
        assert_eq!(overspill(&format!("set web --weight {wrong}")).code, Some(2));
    }
}
