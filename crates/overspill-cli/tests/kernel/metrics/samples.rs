//! Samples in one form, wherever they come from: the value by the name with its labels in
//! the order of the alphabet.

use std::collections::{BTreeMap, BTreeSet};

use overspill::{Exits, Figure, Kind, MemberStatus, Namespace, Requests};
use serde_json::Value;

pub(crate) type Samples = BTreeMap<String, f64>;

pub(crate) fn series(name: &str, labels: &BTreeMap<String, String>) -> String {
    let labels: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    format!("{name}{{{}}}", labels.join(","))
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The samples of a text in either format. No label of these tests has a comma in it.
pub(crate) fn parse(text: &str) -> Samples {
    let sample = |line: &str| {
        let (what, value) = line.rsplit_once(' ').expect("a sample");
        let (name, labels) = what.split_once('{').unwrap_or((what, ""));
        let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
        let labels = labels.map(|label| {
            let (name, value) = label.split_once('=').expect("a label");
            (name.to_owned(), value.trim_matches('"').to_owned())
        });
        (series(name, &labels.collect()), value.parse().expect("a number"))
    };
    text.lines().filter(|line| !line.starts_with('#')).map(sample).collect()
}

/// What `overspill show --json` tells of a service, under the names that it is to have.
pub(crate) fn shown(netns: &Namespace, shown: &Value) -> Samples {
    let mut samples = Samples::new();
    let mut labels = BTreeMap::from([("netns".to_owned(), netns.inode().to_string())]);
    take(&mut samples, "namespace", Exits::FIGURES, &labels, &shown["namespace"]);
    labels.insert("service".to_owned(), shown["name"].as_str().unwrap().to_owned());
    take(&mut samples, "service_requests", Requests::FIGURES, &labels, &shown["requests"]);
    for member in shown["members"].as_array().unwrap() {
        labels.insert("member".to_owned(), member["member"].to_string());
        labels.insert("address".to_owned(), member["address"].as_str().unwrap().to_owned());
        take(&mut samples, "member", MemberStatus::FIGURES, &labels, member);
        for state in ["active", "draining", "hung", "gone"] {
            let mut labels = labels.clone();
            labels.insert("state".to_owned(), state.to_owned());
            let is_it = if member["state"] == state { 1.0 } else { 0.0 };
            samples.insert(series("overspill_member_state", &labels), is_it);
        }
    }
    samples
}

fn take<T>(
    samples: &mut Samples,
    what: &str,
    figures: &[Figure<T>],
    labels: &BTreeMap<String, String>,
    json: &Value,
) {
    for (name, value) in names(what, figures).into_iter().zip(figures.iter().map(|f| f.name)) {
        let value = &json[value];
        assert!(value.is_null() || value.is_u64(), "{name}: {value}");
        samples.extend(value.as_f64().map(|value| (series(&name, labels), value)));
    }
}

fn names<T>(what: &str, figures: &[Figure<T>]) -> Vec<String> {
    let total = |kind| if kind == Kind::Counter { "_total" } else { "" };
    let name =
        |figure: &Figure<T>| format!("overspill_{what}_{}{}", figure.name, total(figure.kind));
    figures.iter().map(name).collect()
}

/// What every figure of the library is called.
pub(crate) fn all_names() -> BTreeSet<String> {
    let exits = names("namespace", Exits::FIGURES);
    let requests = names("service_requests", Requests::FIGURES);
    exits.into_iter().chain(requests).chain(names("member", MemberStatus::FIGURES)).collect()
}

/// The metrics that a text speaks of, such as an expression.
pub(crate) fn mentioned(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("overspill_")).map(str::to_owned).collect()
}
