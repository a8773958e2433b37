//! Debian's Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::samples::{Samples, series};
use crate::server::get;
use crate::tool::Ran;

/// A file of `dist/`.
pub(crate) fn dist(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist").join(path)
}

/// Runs promtool with a file on its standard input.
pub(crate) fn promtool(arguments: &[&str], input: &str) -> Ran {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, input.as_bytes()).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let mut command = Command::new("promtool");
    Ran::from(command.args(arguments).stdin(file).output().expect("tools/setup test installs it"))
}

/// A Prometheus that scrapes every second and holds our alerts; dropping it ends it.
pub(crate) struct Prometheus {
    process: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Prometheus {
    pub(crate) fn start(address: &str, target: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rules = dist("prometheus/overspill.rules.yml").canonicalize().unwrap();
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{}']\n\
             scrape_configs:\n  - job_name: overspill\n    static_configs: [{{targets: ['{target}']}}]\n",
            rules.display()
        );
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, config).unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("tools/setup test installs it");
        let address = world::at(address);
        let prometheus = Self { process, address, folder };
        world::wait_until("Prometheus is ready", || {
            TcpStream::connect(address).is_ok() && get(address, "/-/ready").contains("is Ready")
        });
        prometheus
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// What its API answers.
    pub(crate) fn api(&self, path: &str) -> Value {
        let text = get(self.address, path);
        let answer: Value =
            serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path}: {text}"));
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].clone()
    }

    /// The values of an expression, without the labels that Prometheus has added.
    pub(crate) fn query(&self, expression: &str) -> Samples {
        let mut path = "/api/v1/query?query=".to_owned();
        expression.bytes().for_each(|byte| write!(path, "%{byte:02X}").unwrap());
        let data = self.api(&path);
        assert_eq!(data["resultType"], "vector", "{expression}");
        data["result"].as_array().unwrap().iter().map(sample).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn sample(result: &Value) -> (String, f64) {
    let mut labels: BTreeMap<String, String> =
        serde_json::from_value(result["metric"].clone()).unwrap();
    let name = labels.remove("__name__").unwrap_or_default();
    labels.remove("job");
    labels.remove("instance");
    (series(&name, &labels), result["value"][1].as_str().unwrap().parse().unwrap())
}
