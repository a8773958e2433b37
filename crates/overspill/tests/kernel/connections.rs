//! The count of each member's connections: from the end of the handshake until the server
//! closes it or a reset does, wherever it was moved to meanwhile.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;

use overspill::{Cgroup, Connection, MemberId, Policy, Service, adopt, connections, empty_queue};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use socket2::SockRef;
use world::{at, wait_until};

use crate::tools::{Listening, connect, total_queued};

fn group(called: SocketAddr, members: usize) -> (Vec<TcpListener>, Service) {
    let open = |_| Listening::at(called).reuse_port().backlog(64).open();
    let listeners: Vec<TcpListener> = (0..members).map(open).collect();
    let service = Service::builder("web").policy(Policy::RoundRobin).share(&listeners).unwrap();
    (listeners, service)
}

fn established(service: &Service) -> Vec<u32> {
    let status = service.status().unwrap();
    status.members.iter().map(|member| member.established.expect("they are counted")).collect()
}

fn wait_for(service: &Service, expected: &[u32]) {
    wait_until(&format!("{expected:?} are established"), || established(service) == expected);
}

fn reset(client: TcpStream) {
    SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(client);
}

#[test]
fn until_the_server_closes() {
    for called in [at("127.0.0.1:80"), at("[::1]:80")] {
        world::enter();
        let (listeners, service) = group(called, 2);
        let mut clients: Vec<TcpStream> = (0..6).map(|_| connect(called).unwrap()).collect();
        wait_for(&service, &[3, 3]);
        let mut accepted: Vec<TcpStream> =
            (0..3).map(|_| listeners[0].accept().unwrap().0).collect();
        wait_for(&service, &[3, 3]);

        // The client closes: the server still has it, until it closes too.
        let gone = clients.remove(0);
        let port = gone.local_addr().unwrap().port();
        drop(gone);
        let served = accepted
            .iter()
            .position(|server| server.peer_addr().unwrap().port() == port)
            .expect("turns begin with the first");
        assert_eq!(accepted[served].read(&mut [0]).unwrap(), 0);
        assert_eq!(established(&service), [3, 3]);
        drop(accepted.remove(served));
        wait_for(&service, &[2, 3]);

        // The server closes first: it does not have it any more, whatever the client does.
        drop(accepted.remove(0));
        wait_for(&service, &[1, 3]);
        drop(clients);
        drop(accepted);
        wait_for(&service, &[0, 3]);
        drop(listeners);
        wait_for(&service, &[0, 0]);
    }
}

#[test]
fn until_a_reset() {
    world::enter();
    let called = at("127.0.0.1:80");
    let (listeners, service) = group(called, 2);
    let clients: Vec<TcpStream> = (0..4).map(|_| connect(called).unwrap()).collect();
    wait_for(&service, &[2, 2]);
    let accepted = listeners[0].accept().unwrap().0;
    clients.into_iter().for_each(reset);
    wait_for(&service, &[0, 0]);
    // One that was reset while it waited goes on waiting: the server has not seen it.
    assert_eq!(total_queued(&service), 3);
    drop((accepted, listeners));
    wait_for(&service, &[0, 0]);
}

#[test]
fn half_closed_by_the_server() {
    world::enter();
    let called = at("127.0.0.1:80");
    let (listeners, service) = group(called, 1);
    let client = connect(called).unwrap();
    let server = listeners[0].accept().unwrap().0;
    wait_for(&service, &[1]);
    server.shutdown(Shutdown::Write).unwrap();
    wait_for(&service, &[0]);
    drop((client, server));
    assert_eq!(established(&service), [0]);
}

#[test]
fn what_is_moved_is_counted_where_it_goes() {
    for called in [at("127.0.0.1:80"), at("[::1]:80")] {
        world::enter();
        let (mut listeners, service) = group(called, 3);
        service.keep_requests(&listeners[0]).unwrap();
        let clients: Vec<TcpStream> = (0..9).map(|_| connect(called).unwrap()).collect();
        wait_for(&service, &[3, 3, 3]);
        let accepted = listeners[0].accept().unwrap().0;

        // What waits goes to the others; what is accepted stays where it is.
        empty_queue(&listeners[0], 64).unwrap();
        wait_for(&service, &[1, 4, 4]);
        // And once more, some of it for the second time.
        drop(listeners.remove(1));
        wait_for(&service, &[5, 0, 4]);

        drop(clients);
        drop(accepted);
        let mut servers = Vec::new();
        for (listener, waiting) in [(&listeners[0], 4), (&listeners[1], 4)] {
            servers.extend((0..waiting).map(|_| listener.accept().unwrap().0));
        }
        assert_eq!(established(&service), [4, 0, 4]);
        drop(servers);
        wait_for(&service, &[0, 0, 0]);
    }
}

/// What was dead before it was moved is not counted where it goes.
#[test]
fn what_was_reset_before_it_was_moved() {
    world::enter();
    let called = at("127.0.0.1:80");
    let (listeners, service) = group(called, 2);
    service.keep_requests(&listeners[0]).unwrap();
    let clients: Vec<TcpStream> = (0..4).map(|_| connect(called).unwrap()).collect();
    wait_for(&service, &[2, 2]);
    clients.into_iter().for_each(reset);
    wait_for(&service, &[0, 0]);
    empty_queue(&listeners[0], 64).unwrap();
    wait_until("all wait at the second", || service.status().unwrap().members[1].queued == 4);
    assert_eq!(established(&service), [0, 0]);
    drop(listeners);
    assert_eq!(established(&service), [0, 0]);
}

/// Connections outlive their member; who gets its slot has nothing to do with them.
#[test]
fn of_a_former_member_are_not_counted() {
    world::enter();
    let called = at("127.0.0.1:80");
    let (mut listeners, service) = group(called, 2);
    let clients: Vec<TcpStream> = (0..4).map(|_| connect(called).unwrap()).collect();
    wait_for(&service, &[2, 2]);
    service.leave(MemberId(0)).unwrap();
    // The only free slots are those that were never used and that of the one that left.
    let new = Listening::at(called).reuse_port().backlog(64).open();
    service.join(&new).unwrap();
    assert_eq!(established(&service), [2, 0]);
    drop(listeners.remove(0));
    drop(clients);
    assert_eq!(established(&service), [2, 0]);
    let more: Vec<TcpStream> = (0..2).map(|_| connect(called).unwrap()).collect();
    wait_until("they are counted", || established(&service).iter().sum::<u32>() == 4);
    drop(more);
}

/// A socket that joins again is another member, also where it gets the slot that it had.
#[test]
fn who_joins_again_begins_with_none() {
    world::enter();
    let called = at("127.0.0.1:80");
    let (listeners, service) = group(called, 2);
    service.keep_requests(&listeners[0]).unwrap();
    let clients: Vec<TcpStream> = (0..4).map(|_| connect(called).unwrap()).collect();
    wait_for(&service, &[2, 2]);
    let accepted = listeners[0].accept().unwrap().0;
    service.leave(MemberId(0)).unwrap();
    service.join(&listeners[0]).unwrap();
    assert_eq!(established(&service), [2, 0]);

    // One ends that was accepted before, and one waits since before and is moved.
    drop(accepted);
    empty_queue(&listeners[0], 64).unwrap();
    wait_for(&service, &[3, 0]);
    let more: Vec<TcpStream> = (0..4).map(|_| connect(called).unwrap()).collect();
    wait_for(&service, &[5, 2]);
    drop((clients, more));
    drop(listeners);
    wait_for(&service, &[0, 0]);
}

/// What the successor of a member serves is its own; what the member still has is nobody's.
#[test]
fn a_successor_begins_with_none() {
    world::enter();
    let called = at("127.0.0.1:80");
    let (listeners, service) = group(called, 1);
    let _client = connect(called).unwrap();
    wait_for(&service, &[1]);
    let new = Listening::at(called).reuse_port().backlog(64).open();
    service.replace(MemberId(0), &new).unwrap();
    assert_eq!(established(&service), [0]);
    drop(listeners);
    assert_eq!(established(&service), [0]);
}

/// The program is attached to the members' control groups and to no other.
#[test]
fn a_control_group_is_let_go_of_with_its_last_member() {
    world::enter();
    let home = id(&Cgroup::own().unwrap());
    let first = Listening::at(at("127.0.0.1:80")).open();
    let service = Service::builder("web").share(&[first]).unwrap();
    assert_eq!(groups(&service), [home]);

    let apart = Apart::at("127.0.0.2");
    let member = apart.join(&service);
    let mut both = [home, id(&apart.cgroup)];
    both.sort_unstable();
    assert_eq!(groups(&service), both);
    let client = connect(at("127.0.0.2:80")).unwrap();
    wait_for(&service, &[0, 1]);
    drop(client);

    service.leave(member).unwrap();
    assert_eq!(groups(&service), [home]);
    apart.end();
}

/// A server in a control group of its own.
struct Apart {
    cgroup: Cgroup,
    server: Child,
}

impl Apart {
    fn at(ip: &str) -> Self {
        let name = format!("overspill-test-{}-{ip}", std::process::id());
        let cgroup = Cgroup::own().unwrap().make(&name).unwrap();
        let mut server = Command::new("python3")
            .args(["-c", SERVER, ip])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        cgroup.enter(server.id()).unwrap();
        writeln!(server.stdin.as_ref().unwrap()).unwrap();
        server.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Self { cgroup, server }
    }

    fn join(&self, service: &Service) -> MemberId {
        let taken = adopt::listeners(&[self.server.id()], 80).unwrap();
        service.join_adopted(&taken).unwrap()[0]
    }

    fn end(mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
        wait_until("the cgroup is empty", || self.cgroup.is_empty().unwrap());
        self.cgroup.remove().unwrap();
    }
}

/// Listens when it is told to, and says so.
const SERVER: &str = "import socket, sys\ninput()\n\
    s = socket.create_server((sys.argv[1], 80), reuse_port=True)\n\
    print(end='.', flush=True)\ninput()";

/// The ids of the control groups that connections are counted in.
fn groups(service: &Service) -> Vec<u64> {
    let folder = format!("/sys/fs/bpf/overspill/{}", service.namespace().inode());
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut ids: Vec<u64> = names
        .filter_map(|name| name.to_str()?.strip_prefix("connections-")?.parse().ok())
        .collect();
    ids.sort_unstable();
    ids
}

fn id(cgroup: &Cgroup) -> u64 {
    std::fs::metadata(cgroup.path()).unwrap().ino()
}

/// A connection is told of in the control group of the socket that it came to first, wherever
/// it went: that group is not let go of before the connection ends.
#[test]
fn what_is_moved_out_of_a_control_group() {
    world::enter();
    let called = at("127.0.0.1:80");
    let (listeners, service) = group(called, 1);
    service.keep_requests(&listeners[0]).unwrap();
    let apart = Apart::at("127.0.0.1");
    let (home, theirs) = (id(&Cgroup::own().unwrap()), id(&apart.cgroup));
    let leaving = apart.join(&service);
    let clients: Vec<TcpStream> = (0..4).map(|_| connect(called).unwrap()).collect();
    wait_for(&service, &[2, 2]);
    apart.end();
    wait_for(&service, &[4, 0]);
    service.leave(leaving).unwrap();
    let mut both = [home, theirs];
    both.sort_unstable();
    assert_eq!(groups(&service), both);

    let accepted: Vec<TcpStream> = (0..4).map(|_| listeners[0].accept().unwrap().0).collect();
    drop((clients, accepted));
    wait_for(&service, &[0]);
    // By the next change.
    service.drain(MemberId(0)).unwrap();
    assert_eq!(groups(&service), [home]);
}

/// The kernel's own list of the connections on port 80 of this namespace, on the server's
/// side, that are `ESTABLISHED` or in `CLOSE_WAIT`.
fn of_the_kernel() -> u32 {
    let text = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let count = text
        .lines()
        .skip(1)
        .filter(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next().unwrap();
            let state = fields.nth(1).unwrap();
            local.ends_with(":0050") && (state == "01" || state == "08")
        })
        .count();
    u32::try_from(count).unwrap()
}

/// Clients and servers of many threads open, close and reset; members end and are emptied.
#[test]
fn under_churn_they_are_exact() {
    world::enter();
    let called = at("127.0.0.1:80");
    let (listeners, service) = group(called, 4);
    service.keep_requests(&listeners[0]).unwrap();
    for listener in &listeners {
        listener.set_nonblocking(true).unwrap();
    }
    let clients = |seed: u64| {
        let mut random = StdRng::seed_from_u64(seed);
        let mut open: Vec<TcpStream> = Vec::new();
        for _ in 0..1500 {
            match random.random_range(0..4) {
                0 | 1 => open.extend(connect(called).ok()),
                _ if open.is_empty() => {}
                2 => drop(open.swap_remove(random.random_range(0..open.len()))),
                _ => reset(open.swap_remove(random.random_range(0..open.len()))),
            }
        }
        open
    };
    let serve = |listener: &TcpListener, done: &dyn Fn() -> bool| {
        let mut random = StdRng::seed_from_u64(7);
        let mut held: Vec<TcpStream> = Vec::new();
        while !done() {
            held.extend(listener.accept().map(|(server, _)| server));
            if held.len() > 20 || random.random_range(0..8) == 0 {
                held.pop();
            }
            if random.random_range(0..200) == 0 {
                empty_queue(listener, 64).unwrap();
            }
        }
        held
    };
    let (open, held) = thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|seed| scope.spawn(move || clients(seed))).collect();
        let ended = || threads.iter().all(thread::ScopedJoinHandle::is_finished);
        let held: Vec<Vec<TcpStream>> = thread::scope(|inner| {
            let serving: Vec<_> =
                listeners.iter().map(|listener| inner.spawn(|| serve(listener, &ended))).collect();
            serving.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let open: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        (open, held)
    });
    wait_until("the counts are the kernel's", || {
        established(&service).iter().sum::<u32>() == of_the_kernel()
    });
    drop(open);
    drop(held);
    drop(listeners);
    wait_for(&service, &[0, 0, 0, 0]);
}

/// A client in a control group of its own, and a server that has not accepted it.
#[test]
fn those_of_a_control_group_are_listed_and_no_others() {
    for called in [at("127.0.0.1:80"), at("[::1]:80")] {
        world::enter();
        let own = Cgroup::own().unwrap();
        let group = own.make(&format!("listed-{}", std::process::id())).unwrap();
        let inner = group.make("inner").unwrap();
        let listener = Listening::at(called).backlog(64).open();
        let script = "import socket, sys, os; open(sys.argv[1] + '/cgroup.procs', 'w').write('0'); \
                      client = socket.create_connection((sys.argv[2], 80)); sys.stdin.read()";
        let mut client = Command::new("python3")
            .args(["-c", script])
            .arg(inner.path())
            .arg(called.ip().to_string())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let list = |group| -> Vec<Connection> {
            connections(group).unwrap().collect::<Result<_, _>>().unwrap()
        };
        wait_until("it is connected", || list(&group).len() == 1);
        let [of_client] = list(&inner)[..] else { panic!("it has one") };
        assert_ne!(of_client.inode, 0);
        let served = || list(&own).into_iter().find(|it| it.port == 80);
        assert_eq!(served().unwrap().inode, 0, "it is not accepted yet");
        let (accepted, peer) = listener.accept().unwrap();
        assert_eq!(peer.port(), of_client.port);
        assert_eq!(served().unwrap().cookie, SockRef::from(&accepted).cookie().unwrap());
        assert_ne!(served().unwrap().inode, 0);
        drop(client.stdin.take());
        client.wait().unwrap();
        wait_until("it has none", || list(&group).is_empty());
        group.remove().unwrap();
        assert!(list(&group).is_empty(), "one that does not exist has none");
    }
}
