//! A reading in the formats that Prometheus reads.
//!
//! Names follow from where a figure stands in `overspill show --json`:
//! `overspill_service_requests_NAME` is `requests.NAME`, `overspill_member_NAME` is
//! `members[].NAME`, `overspill_namespace_NAME` is `namespace.NAME`; counters end in
//! `_total`. What they say is what the library says of them.

use std::fmt;
use std::iter;

use overspill::{Exits, Figure, Kind, MemberState, MemberStatus, Requests, Status};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeGaugeValue, GaugeValueEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::reading::{Reading, Space};
use crate::identified::{Identified, seconds};
use crate::output::on_off;

/// How a reading is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// `OpenMetrics` 1.0.
    OpenMetrics,
    /// Prometheus's text format 0.0.4, the only one that `node_exporter`'s textfile collector
    /// and `promtool check metrics` read. It has no type `info`, and its counters have
    /// `_total` in the name of the family too.
    Classic,
}

impl Format {
    /// What HTTP calls it.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

impl Reading {
    /// The whole text.
    pub(crate) fn write(self, format: Format) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Exposition { reading: self, format }));
        let mut text = String::new();
        let mut written = encode_registry(&mut text, &registry);
        if format == Format::OpenMetrics {
            written = written.and_then(|()| encode_eof(&mut text));
        }
        written.expect("a String takes everything");
        text
    }
}

#[derive(Debug)]
struct Exposition {
    reading: Reading,
    format: Format,
}

type Labels = Vec<(&'static str, String)>;

/// Something with figures, by the labels that tell it apart.
type Labelled<'a, T> = (Labels, &'a T);

impl Collector for Exposition {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page { encoder, format: self.format };
        let spaces: Vec<Labelled<'_, Space>> =
            self.reading.spaces.iter().map(|space| (labels(space), space)).collect();
        let identified: Vec<Labelled<'_, Identified>> = spaces.iter().flat_map(services).collect();
        let services: Vec<Labelled<'_, Status>> =
            identified.iter().map(|(labels, it)| (labels.clone(), &it.status)).collect();
        let members: Vec<Labelled<'_, MemberStatus>> = services.iter().flat_map(members).collect();

        page.exporter(&self.reading)?;
        page.namespaces(&spaces)?;
        page.services(&services)?;
        page.supervisors(&identified)?;
        page.identities(&members, &identified)?;
        page.members(&members, &self.reading)
    }
}

fn labels(space: &Space) -> Labels {
    vec![("netns", space.inode.to_string())]
}

fn services<'a>(
    (labels, space): &Labelled<'a, Space>,
) -> impl Iterator<Item = Labelled<'a, Identified>> {
    let named = |it: &'a Identified| (with(labels, [("service", it.status.name.clone())]), it);
    space.services().iter().map(named)
}

fn members<'a>(
    (labels, status): &Labelled<'a, Status>,
) -> impl Iterator<Item = Labelled<'a, MemberStatus>> {
    status.members.iter().map(|member| {
        let own = [("member", member.member.to_string()), ("address", member.address.to_string())];
        (with(labels, own), member)
    })
}

fn with<const N: usize>(labels: &Labels, more: [(&'static str, String); N]) -> Labels {
    labels.iter().cloned().chain(more).collect()
}

/// The text that is being written: one family after another.
struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
    format: Format,
}

impl Page<'_> {
    fn exporter(&mut self, reading: &Reading) -> fmt::Result {
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        let about = "The overspill that reads these figures.";
        self.family("overspill_build", about, MetricType::Info, one(&version, 1))?;
        let about = "How long the reading of these figures took.";
        let took = Value::Real(reading.took.as_secs_f64());
        let none = Labels::new();
        let name = "overspill_scrape_duration_seconds";
        self.family(name, about, MetricType::Gauge, iter::once((&none, took)))
    }

    fn namespaces(&mut self, spaces: &[Labelled<'_, Space>]) -> fmt::Result {
        let about = "Whether the services of the network namespace could be read.";
        let up = spaces
            .iter()
            .map(|(labels, space)| (labels, Value::Whole(u64::from(space.contents.is_ok()))));
        self.family("overspill_up", about, MetricType::Gauge, up)?;

        let about = "A name that ip netns has given the network namespace.";
        let named: Vec<Labels> = spaces
            .iter()
            .flat_map(|(labels, space)| {
                space.names.iter().map(|name| with(labels, [("name", name.clone())]))
            })
            .collect();
        let named = named.iter().map(|labels| (labels, Value::Whole(1)));
        self.family("overspill_namespace", about, MetricType::Info, named)?;

        let exits: Vec<Labelled<'_, Exits>> = spaces
            .iter()
            .filter_map(|(labels, space)| {
                Some((labels.clone(), &space.contents.as_ref().ok()?.exits))
            })
            .collect();
        self.figures("namespace", Exits::FIGURES, &exits)
    }

    fn services(&mut self, services: &[Labelled<'_, Status>]) -> fmt::Result {
        let about = "The rules by which the service's requests are placed.";
        let rules: Vec<Labels> =
            services.iter().map(|(labels, status)| with(labels, rules(status))).collect();
        let rules = rules.iter().map(|labels| (labels, Value::Whole(1)));
        self.family("overspill_service", about, MetricType::Info, rules)?;

        let requests: Vec<Labelled<'_, Requests>> =
            services.iter().map(|(labels, status)| (labels.clone(), &status.requests)).collect();
        self.figures("service_requests", Requests::FIGURES, &requests)
    }

    fn supervisors(&mut self, services: &[Labelled<'_, Identified>]) -> fmt::Result {
        let about = "When the process that supervises the service started, in seconds since 1970. \
                     Not known where nobody supervises it or the process can't be seen.";
        let supervised = services.iter().filter_map(|(labels, service)| {
            let by = service.supervisor()?;
            let own = [
                ("command", by.command.name().to_owned()),
                ("name", by.name.to_string()),
                ("pid", by.pid?.to_string()),
            ];
            Some((with(labels, own), Value::Real(seconds(by.since?))))
        });
        let supervised: Vec<(Labels, Value)> = supervised.collect();
        let supervised = supervised.iter().map(|(labels, value)| (labels, *value));
        let name = "overspill_service_supervisor_start_time_seconds";
        self.family(name, about, MetricType::Gauge, supervised)
    }

    fn identities(
        &mut self,
        members: &[Labelled<'_, MemberStatus>],
        services: &[Labelled<'_, Identified>],
    ) -> fmt::Result {
        let about = "The number of the member's worker, empty where it is not known, and the \
                     process that accepts there.";
        let workers = services.iter().flat_map(|(_, service)| &service.identity.workers);
        let identified = members.iter().zip(workers).map(|((labels, member), worker)| {
            let worker = worker.map(|worker| worker.to_string()).unwrap_or_default();
            with(labels, [("worker", worker), ("pid", member.pid.to_string())])
        });
        let identified: Vec<Labels> = identified.collect();
        let identified = identified.iter().map(|labels| (labels, Value::Whole(1)));
        self.family("overspill_member", about, MetricType::Info, identified)
    }

    fn members(
        &mut self,
        members: &[Labelled<'_, MemberStatus>],
        reading: &Reading,
    ) -> fmt::Result {
        let about = "1 for the state that the member is in, 0 for the others.";
        let states: Vec<(Labels, Value)> =
            members.iter().flat_map(|(labels, member)| states(labels, member)).collect();
        let states = states.iter().map(|(labels, value)| (labels, *value));
        self.family("overspill_member_state", about, MetricType::Gauge, states)?;

        let about = "When the process that holds the member's socket started, in seconds since \
                     1970. Not known where that has ended or may not be seen.";
        let started = members.iter().filter_map(|(labels, member)| {
            Some((labels, Value::Real(*reading.started.get(&member.pid)?)))
        });
        let name = "overspill_member_process_start_time_seconds";
        self.family(name, about, MetricType::Gauge, started)?;

        self.figures("member", MemberStatus::FIGURES, members)
    }

    /// All figures of some things of a kind.
    fn figures<T>(
        &mut self,
        what: &str,
        figures: &[Figure<T>],
        of: &[Labelled<'_, T>],
    ) -> fmt::Result {
        for figure in figures {
            let kind = match figure.kind {
                Kind::Counter => MetricType::Counter,
                _ => MetricType::Gauge,
            };
            let samples = of
                .iter()
                .filter_map(|(labels, thing)| Some((labels, Value::Whole((figure.read)(thing)?))));
            let name = format!("overspill_{what}_{}", figure.name);
            self.family(&name, figure.about, kind, samples)?;
        }
        Ok(())
    }

    fn family<'l>(
        &mut self,
        name: &str,
        about: &str,
        kind: MetricType,
        samples: impl IntoIterator<Item = (&'l Labels, Value)>,
    ) -> fmt::Result {
        let about = about.replace('`', "");
        let (name, listed_as) = match (self.format, kind) {
            (Format::Classic, MetricType::Counter) => (format!("{name}_total"), kind),
            (Format::Classic, MetricType::Info) => (format!("{name}_info"), MetricType::Gauge),
            _ => (name.to_owned(), kind),
        };
        let mut family = self.encoder.encode_descriptor(&name, &about, None, listed_as)?;
        for (labels, value) in samples {
            match (self.format, kind, value) {
                (Format::OpenMetrics, MetricType::Info, _) => family.encode_info(labels)?,
                (Format::OpenMetrics, MetricType::Counter, Value::Whole(count)) => {
                    family
                        .encode_family(labels)?
                        .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
                (_, _, value) if labels.is_empty() => family.encode_gauge(&value)?,
                // Written under the family's own name, which has its ending already.
                _ => family.encode_family(labels)?.encode_gauge(&value)?,
            }
        }
        Ok(())
    }
}

fn one(labels: &Labels, value: u64) -> impl Iterator<Item = (&Labels, Value)> {
    iter::once((labels, Value::Whole(value)))
}

fn rules(status: &Status) -> [(&'static str, String); 6] {
    [
        ("port", status.port.to_string()),
        ("policy", status.policy.to_string()),
        ("dispatcher", status.dispatcher.clone().unwrap_or_default()),
        ("on_full", status.on_full.to_string()),
        ("redirect", on_off(status.redirect).to_owned()),
        ("spread", on_off(status.spread).to_owned()),
    ]
}

fn states(labels: &Labels, member: &MemberStatus) -> impl Iterator<Item = (Labels, Value)> {
    MemberState::ALL.into_iter().map(|state| {
        let value = Value::Whole(u64::from(state == member.state));
        (with(labels, [("state", state.name().to_owned())]), value)
    })
}

/// Counts stay whole numbers, however large.
#[derive(Debug, Clone, Copy)]
enum Value {
    Whole(u64),
    Real(f64),
}

impl EncodeGaugeValue for Value {
    fn encode(&self, encoder: &mut GaugeValueEncoder<'_>) -> fmt::Result {
        match self {
            Self::Whole(value) => value.encode(encoder),
            Self::Real(value) => value.encode(encoder),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reading::Contents;
    use super::*;

    fn reading(name: &str) -> Reading {
        let contents = Contents { services: Vec::new(), exits: Exits::default() };
        let space = Space { inode: 7, names: vec![name.to_owned()], contents: Ok(contents) };
        Reading { spaces: vec![space], started: [].into(), took: std::time::Duration::ZERO }
    }

    #[test]
    fn what_would_end_a_label_is_escaped() {
        for format in [Format::OpenMetrics, Format::Classic] {
            let text = reading("a\"b\\c\nd").write(format);
            let line = r#"overspill_namespace_info{netns="7",name="a\"b\\c\nd"} 1"#;
            assert!(text.lines().any(|it| it == line), "{text}");
        }
    }

    /// Nothing escapes descriptions: none has anything to escape.
    #[test]
    fn descriptions_are_plain_lines() {
        let text = reading("x").write(Format::Classic);
        let abouts = Requests::FIGURES.iter().map(|it| it.about);
        let abouts = abouts.chain(MemberStatus::FIGURES.iter().map(|it| it.about));
        for about in abouts.chain(Exits::FIGURES.iter().map(|it| it.about)) {
            assert!(!about.contains(['\\', '"', '\n']), "{about}");
            let plain = about.replace('`', "");
            assert!(text.lines().any(|line| line.starts_with("# HELP ") && line.ends_with(&plain)));
        }
    }
}
