//! Real servers finish a download that is under way when their worker ends (`docs/ways/unchanged.md`).

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use world::{at, deadline, wait_until};

use crate::run::{Run, assert_no_state};
use crate::server::Server;
use crate::tool::overspill;

const CALLED: &str = "10.0.0.1:80";
/// More than the queues of a connection hold: the server is not done before it is read.
const LENGTH: u64 = 64 << 20;

/// A download that has begun.
struct Download(TcpStream);

impl Download {
    fn begin(path: &str) -> Self {
        let mut stream = TcpStream::connect_timeout(&at(CALLED), deadline()).unwrap();
        stream.set_read_timeout(Some(deadline())).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let mut first = [0; 4];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP");
        Self(stream)
    }

    fn finishes(mut self, length: u64) {
        let mut answer = Vec::new();
        self.0.read_to_end(&mut answer).unwrap();
        let body = answer.windows(4).position(|it| it == b"\r\n\r\n").expect("an HTTP answer") + 4;
        assert_eq!(answer.len() - body, usize::try_from(length).unwrap());
    }
}

/// A folder with this file and another one that is to be downloaded. FOLDER stands for its path.
fn folder((name, text): (&str, &str)) -> TempDir {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    File::create(path.join("file")).unwrap().set_len(LENGTH).unwrap();
    fs::write(path.join(name), text.replace("FOLDER", path.to_str().unwrap())).unwrap();
    folder
}

fn start(options: &str, folder: &Path, script: &str) -> Run {
    let options = format!("--name web -n 1 --grace 60 {options}");
    let script = script.replace("FOLDER", folder.to_str().unwrap());
    let run = Run::start(&options, &["sh", "-c", &script]);
    run.line(" listens on ");
    run
}

fn ended(run: Run) {
    let (status, lines) = run.end();
    assert_eq!(status.code(), Some(0), "{lines:#?}");
    assert!(lines.iter().any(|line| line.ends_with(" ended with status 0")), "{lines:#?}");
    assert_no_state();
}

/// Workers are told to end as soon as they are replaced, and finish a download all the same; and so
/// it is at a stop.
fn downloads_are_finished(signal: &str, configuration: (&str, &str), script: &str) {
    world::enter();
    let folder = folder(configuration);
    let _backend = Server::http(at("10.0.0.9:8000"), folder.path());
    let run = start(&format!("--drain 0 --stop-signal {signal}"), folder.path(), script);
    let download = Download::begin("/file");
    overspill("restart web").done();
    run.line(&format!(": 0 s are over with 1 connection: ending it with SIG{signal}"));
    download.finishes(LENGTH);
    run.line(" ended with status 0");
    let download = Download::begin("/file");
    run.signal(Signal::SIGTERM);
    run.line("SIGTERM: ending 1 worker");
    download.finishes(LENGTH);
    ended(run);
}

#[test]
fn nginx() {
    let conf = "daemon off; worker_processes 2; user root;\nevents {}\n\
                http { access_log off; server { listen 10.0.0.1:80; root FOLDER; } }\n";
    let script = "PATH=$PATH:/usr/sbin
                  exec nginx -e stderr -c FOLDER/nginx.conf -g \"pid FOLDER/$$.pid;\"";
    downloads_are_finished("QUIT", ("nginx.conf", conf), script);
}

#[test]
fn haproxy() {
    let conf = "defaults\n  mode http\n  timeout client 60s\n  timeout server 60s\n  \
                timeout connect 10s\nlisten web\n  bind 10.0.0.1:80\n  \
                server one 10.0.0.9:8000\n";
    let script = "PATH=$PATH:/usr/sbin; exec haproxy -W -f FOLDER/haproxy.cfg";
    downloads_are_finished("USR1", ("haproxy.cfg", conf), script);
}

/// A signal cuts each answer that its client has yet to read. So a restart waits with it, and at a
/// stop what has not been answered yet is finished.
#[test]
fn uwsgi() {
    let app = "import os, time\n\ndef app(environ, start):\n    \
               size = os.stat('FOLDER/file').st_size\n    \
               if environ['PATH_INFO'] == '/slow':\n        \
               open('FOLDER/begun', 'w').close()\n        \
               while not os.path.exists('FOLDER/answer'):\n            time.sleep(0.05)\n        \
               size = 65536\n    \
               start('200 OK', [('Content-Length', str(size))])\n    \
               return (b'x' * 65536 for _ in range(size // 65536))\n";
    let script = "exec uwsgi --plugin python3 --http-socket 10.0.0.1:80 --master --workers 2 \
                  --wsgi-file FOLDER/app.py --callable app \
                  --hook-master-start 'unix_signal:15 gracefully_kill_them_all'";
    world::enter();
    let folder = folder(("app.py", app));
    let run = start("--drain 60", folder.path(), script);
    let download = Download::begin("/file");
    overspill("restart web").done();
    download.finishes(LENGTH);
    run.line(" ended with status 0");
    let file = |name| folder.path().join(name);
    let slow = std::thread::spawn(|| Download::begin("/slow"));
    wait_until("it is asked", || file("begun").exists());
    run.signal(Signal::SIGTERM);
    run.line("graceful shutdown triggered");
    fs::write(file("answer"), "").unwrap();
    slow.join().unwrap().finishes(65536);
    ended(run);
}
