//! What lies in the maps: `bpf/overspill.h` in Rust. A test compares the two.

use std::net::{IpAddr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Raised whenever a field that is internal to a layout changes its meaning or its place.
pub(crate) const LAYOUT: u32 = 8;
/// `OVERSPILL_CONNECTIONS`: raised whenever what lives in connections and flows changes.
pub(crate) const CONNECTIONS: u32 = 1;

pub(crate) const ROW_SIZE: usize = 64;
pub(crate) const ROW_NAME: u32 = 1;
/// Rows 1 and 2.
pub(crate) const NAME_ROWS: u32 = 2;
pub(crate) const ROW_ENDPOINTS: usize = (ROW_NAME + NAME_ROWS) as usize;
/// Stands in every endpoint row, in a place where no other row has it.
pub(crate) const ENDPOINT_MARK: u32 = 0x6f76_0001;
pub(crate) const POSITIONS_PER_ROW: usize = 16;
pub(crate) const ADDRESSES_PER_ROW: usize = 8;
/// `OV_NEAR_FACTOR`
pub(crate) const NEAR_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// `ov_header.flags`
pub(crate) const REDIRECT: u8 = 1 << 0;
pub(crate) const RESET: u8 = 1 << 1;
pub(crate) const SPREAD: u8 = 1 << 2;
pub(crate) const APART: u8 = 1 << 3;

/// `ov_member.flags`
pub(crate) const TAKES_IPV4: u8 = 1 << 0;
pub(crate) const TAKES_IPV6: u8 = 1 << 1;
pub(crate) const WILDCARD: u8 = 1 << 2;
pub(crate) const DRAINING: u8 = 1 << 3;
pub(crate) const HUNG: u8 = 1 << 4;
pub(crate) const TRIAL: u8 = 1 << 5;

/// `awaited` of `ov_figures`.
pub(crate) const AWAITED: u32 = 1 << 0;
pub(crate) const UNATTENDED: u32 = 1 << 1;

/// `OV_MARK_TICK_SHIFT` and `OV_MARK_TICKS`
pub(crate) const MARK_TICK_SHIFT: u32 = 20;
pub(crate) const MARK_TICKS: u32 = 10_000;

/// `OV_COOKIE_TICK_SHIFT`
pub(crate) const COOKIE_TICK_SHIFT: u32 = 26;

/// `ov_ports.kinds`
pub(crate) const PORT_EXACT: u8 = 1 << 0;
pub(crate) const PORT_WILDCARD: u8 = 1 << 1;

/// `OV_TRACERS`, `OV_EVERY_SERVICE` and `OV_NO_MEMBER`
pub(crate) const TRACERS: usize = 8;
pub(crate) const EVERY_SERVICE: u32 = u32::MAX;
pub(crate) const NO_MEMBER: u32 = u32::MAX;

/// `enum ov_why`
pub(crate) const CROWDED: u8 = 1;
pub(crate) const NO_OTHER: u8 = 2;
pub(crate) const COOKIE: u8 = 3;
pub(crate) const FALLBACK: u8 = 4;

/// A text as the maps hold it: padded with zeros.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// An address as the maps hold it: in network order, IPv4 as `::ffff:a.b.c.d`.
pub(crate) fn address_bytes(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

pub(crate) fn address_from(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

/// The derives that make a structure readable from a map and writable to one.
macro_rules! plain {
    ($($(#[$meta:meta])* struct $name:ident { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
        #[repr(C)]
        pub(crate) struct $name { $(pub(crate) $field: $type,)* }

        #[cfg(test)]
        impl $name {
            /// Each field's name and offset in bytes.
            fn fields() -> Vec<(&'static str, usize)> {
                vec![$((stringify!($field), std::mem::offset_of!($name, $field)),)*]
            }
        }
    )*};
}

plain! {
    /// `struct ov_extent`
    #[derive(Default)]
    struct Extent {
        number: u32,
        first: u32,
        count: u32,
        endpoints: u32,
        members: u32,
        zero: u32,
    }

    /// `struct ov_header`
    #[derive(Default)]
    struct Header {
        members: u32,
        endpoints: u32,
        turn: u32,
        port: u16,
        policy: u8,
        flags: u8,
        next_id: u32,
        zero: [u32; 11],
    }

    /// `struct ov_member`
    #[derive(Default)]
    struct Member {
        sk: u64,
        cookie: u64,
        claim: u64,
        slot: u32,
        weight: u16,
        flags: u8,
        zero: u8,
        address: [u8; 16],
        id: u32,
        pid: u32,
        marked: u32,
        cgroup: u32,
    }

    /// `struct ov_endpoint_row`
    #[derive(Default)]
    struct EndpointRow {
        address: [u8; 16],
        first: u32,
        count: u32,
        direct: u32,
        turn: u32,
        members: u32,
        endpoints: u32,
        policy: u8,
        flags: u8,
        port: u16,
        service: u32,
        cookie: u64,
        roster: u32,
        mark: u32,
    }

    /// `struct ov_endpoint_key`
    #[derive(Default, Hash)]
    struct EndpointKey {
        address: [u8; 16],
        port: u16,
        zero: u16,
    }

    /// `struct ov_endpoint`
    #[derive(Default)]
    struct Endpoint {
        service: u32,
        row: u32,
    }

    /// `struct ov_service_counters`
    #[derive(Default)]
    struct ServiceCounters {
        placed: u64,
        redirected: u64,
        special: u64,
        dropped: u64,
        reset: u64,
        left: u64,
        fallback: u64,
        crowded: u64,
        returned: u64,
    }

    /// `struct ov_member_counters`
    #[derive(Default)]
    struct MemberCounters {
        placed: u64,
        redirected_in: u64,
        redirected_out: u64,
        special: u64,
    }

    /// `struct ov_exits`
    #[derive(Default)]
    struct ExitCounters {
        not_tcp: u64,
        other_program: u64,
        unserved_port: u64,
        unserved_address: u64,
        no_roster: u64,
        vanished: u64,
        refused: u64,
        contended: u64,
    }

    /// `struct ov_figures`
    #[derive(Default)]
    struct Figures {
        cookie: u64,
        head: u64,
        queued: u32,
        half_open: u32,
        backlog: u32,
        awaited: u32,
        cgroup: u64,
    }

    /// `struct ov_load`
    #[derive(Default)]
    struct Load {
        cookie: u64,
        era: u32,
        established: u32,
    }

    /// `struct ov_word`
    #[derive(Default)]
    struct Word {
        cookie: u64,
        word: u64,
    }

    /// `struct ov_origin`
    #[derive(Default)]
    struct Origin {
        era: u32,
        slot: u16,
        counted: u16,
    }

    /// `struct ov_moved`
    #[derive(Default)]
    struct Moved {
        to: Origin,
        cgroup: u64,
    }

    /// `struct ov_glimpse`
    #[derive(Default)]
    struct Glimpse {
        id: u32,
        queued: u32,
        half_open: u32,
        backlog: u32,
        flags: u8,
        gone: u8,
        zero: u16,
    }

    /// `struct ov_event`
    struct Event {
        time: u64,
        service: [u8; 72],
        remote: [u8; 16],
        address: [u8; 16],
        remote_port: u16,
        port: u16,
        outcome: u8,
        why: u8,
        policy: u8,
        zero: u8,
        called: Glimpse,
        chosen: Glimpse,
    }

    /// `struct ov_tracer`
    struct Tracer {
        until: u64,
        lost: u64,
        service: u32,
        outcomes: u32,
    }

    /// `struct ov_settings`
    struct Settings {
        active: u64,
        seed: u32,
        cpus: u32,
        services: u32,
        members: u32,
        near_bits: u32,
        zero: u32,
    }

    /// `struct ov_tracing`
    struct Tracing {
        tracers: [Tracer; TRACERS],
    }

    /// `struct ov_listening`, of `bpf/hooks.h`
    struct Listening {
        cookie: u64,
        pid: u32,
        port: u16,
        connects: u16,
    }

    /// `struct ov_request`, of `bpf/hooks.h`
    struct Request {
        caller: u64,
        pid: u32,
        tid: u32,
        port: u16,
        count: u16,
        zero: u32,
        inodes: [u64; 64],
        fds: [i32; 64],
    }

    /// `struct ov_call`, of `bpf/hooks.h`
    struct Call {
        progress: u64,
        error: i32,
        port: u16,
        count: u16,
        inodes: [u64; 64],
    }

    /// `struct ov_place`, of `bpf/hooks.h`
    struct Place {
        position: u32,
        flags: u32,
        service: [u8; 72],
    }

    /// `struct ov_exported_member`
    #[derive(Default)]
    struct ExportedMember {
        cookie: u64,
        address: [u8; 16],
        id: u32,
        pid: u32,
        slot: u32,
        cgroup: u32,
        marked: u32,
        weight: u16,
        flags: u8,
        zero: u8,
    }

    /// `struct ov_exported_service`
    struct ExportedService {
        begun: u64,
        head: u32,
        member_size: u32,
        members: u32,
        first: u32,
        given: u32,
        next_id: u32,
        port: u16,
        policy: u8,
        flags: u8,
        turn: u32,
        name: [u8; 128],
    }

    /// `struct ov_state`
    struct State {
        layout: u32,
        seed: u32,
        services: u32,
        members: u32,
        tag: [u8; 8],
        build: [u8; 32],
        version: [u8; 32],
        connections: u32,
        dispatchers: u32,
        spare: u32,
        zero: u32,
    }
}

/// A structure of the contract between builds: the part that both know, zeros for what is
/// missing.
pub(crate) fn known_part<T: FromBytes>(bytes: &[u8]) -> T {
    let mut known = vec![0; size_of::<T>()];
    let both = known.len().min(bytes.len());
    known[..both].copy_from_slice(&bytes[..both]);
    T::read_from_bytes(&known).unwrap_or_else(|_| unreachable!("it has the size"))
}

/// `enum ov_port`, of `bpf/hooks.h`.
pub(crate) const PORT_SHARED: u8 = 0;
pub(crate) const PORT_PRIVATE: u8 = 1;
pub(crate) const PORT_BY_OPTION: u8 = 2;
/// `OV_FINISHED`, of `bpf/hooks.h`.
pub(crate) const CALL_FINISHED: u64 = 2;

const _: () = assert!(size_of::<Header>() == ROW_SIZE);
const _: () = assert!(size_of::<Member>() == ROW_SIZE);
const _: () = assert!(size_of::<EndpointRow>() == ROW_SIZE);

impl EndpointKey {
    pub(crate) fn new(ip: IpAddr, port: u16) -> Self {
        Self { address: address_bytes(ip), port, zero: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::{Figure, Kind};
    use crate::status::{Exits, MemberStatus, Requests};
    use libbpf_rs::btf::{Btf, HasSize as _, types};

    /// The fields of a C structure in the compiled object, and its size in bytes.
    fn c_fields(btf: &Btf<'_>, name: &str) -> (Vec<(String, usize)>, usize) {
        let structure: types::Struct<'_> =
            btf.type_by_name(name).unwrap_or_else(|| panic!("the object has no struct {name}"));
        let fields = structure.iter().map(|member| {
            let types::MemberAttr::Normal { offset } = member.attr else {
                panic!("{name} has a bit field");
            };
            let field = member.name.expect("named").to_str().unwrap().to_owned();
            (field, offset as usize / 8)
        });
        (fields.collect(), structure.size())
    }

    #[test]
    fn the_structures_are_those_of_the_object() {
        macro_rules! compare {
            ($btf:expr; $($c:literal: $rust:ty),* $(,)?) => {$(
                let fields = <$rust>::fields().into_iter().map(|(name, at)| (name.to_owned(), at));
                assert_eq!((fields.collect(), size_of::<$rust>()), c_fields(&$btf, $c), "{}", $c);
            )*};
        }
        let object = concat!(env!("OUT_DIR"), "/overspill.bpf.o");
        let btf = Btf::from_path(object).unwrap();
        compare! { btf;
            "ov_header": Header,
            "ov_member": Member,
            "ov_endpoint_row": EndpointRow,
            "ov_endpoint_key": EndpointKey,
            "ov_endpoint": Endpoint,
            "ov_extent": Extent,
            "ov_service_counters": ServiceCounters,
            "ov_member_counters": MemberCounters,
            "ov_exits": ExitCounters,
            "ov_figures": Figures,
            "ov_load": Load,
            "ov_word": Word,
            "ov_origin": Origin,
            "ov_moved": Moved,
            "ov_exported_member": ExportedMember,
            "ov_exported_service": ExportedService,
            "ov_state": State,
            "ov_glimpse": Glimpse,
            "ov_event": Event,
            "ov_tracer": Tracer,
            "ov_settings": Settings,
            "ov_tracing": Tracing,
        }
        let object = concat!(env!("OUT_DIR"), "/hooks.bpf.o");
        let btf = Btf::from_path(object).unwrap();
        compare! { btf;
            "ov_listening": Listening,
            "ov_request": Request,
            "ov_call": Call,
            "ov_place": Place,
        }
    }

    #[test]
    fn what_is_exported_says_where_its_parts_lie() {
        let btf = Btf::from_path(concat!(env!("OUT_DIR"), "/overspill.bpf.o")).unwrap();
        let (fields, size) = c_fields(&btf, "ov_export");
        let members = 64 * size_of::<ExportedMember>();
        let end = 168 + members;
        let expected = [("service", 0), ("member", 168), ("busy", end), ("ended", end + 8)];
        let expected = expected.map(|(name, at)| (name.to_owned(), at));
        assert_eq!((fields, size), (expected.to_vec(), end + 16));
        assert_eq!(size_of::<ExportedService>(), 168);
    }

    #[test]
    fn of_what_another_build_has_written_the_known_part_is_read() {
        let load: Load = known_part(&[1, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
        assert_eq!(load, Load { cookie: 1, era: 2, established: 0 });
        let word: Word = known_part(&[7; 24]);
        assert_eq!(word.as_bytes(), [7; 16]);
    }

    /// What the header says a constant is: `#define NAME VALUE` or, of an enumeration,
    /// `NAME = VALUE,`.
    fn c_constant(name: &str) -> u64 {
        let value = include_str!("../../bpf/overspill.h").lines().find_map(|line| {
            let line = line.split("/*").next().unwrap_or_default().trim();
            let rest = line.strip_prefix("#define ").unwrap_or(line).strip_prefix(name)?;
            let value = rest.strip_prefix(" =").unwrap_or(rest).strip_prefix(' ')?;
            Some(value.trim_end_matches([',', ' ']).to_owned())
        });
        let value = value.unwrap_or_else(|| panic!("the header does not say what {name} is"));
        let number = |text: &str| match text.trim_end_matches("ULL").strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).unwrap(),
            None => text.parse().unwrap(),
        };
        value.split_once(" << ").map_or_else(|| number(&value), |(a, b)| number(a) << number(b))
    }

    #[test]
    fn the_constants_are_those_of_the_header() {
        macro_rules! compare {
            ($($c:literal: $rust:expr),* $(,)?) => {$(
                assert_eq!(u64::try_from($rust).unwrap(), c_constant($c), "{}", $c);
            )*};
        }
        compare! {
            "OVERSPILL_LAYOUT": LAYOUT,
            "OVERSPILL_CONNECTIONS": CONNECTIONS,
            "OV_ROW_SIZE": ROW_SIZE,
            "OV_ROW_NAME": ROW_NAME,
            "OV_ROW_ENDPOINTS": ROW_ENDPOINTS,
            "OV_ENDPOINT_MARK": ENDPOINT_MARK,
            "OV_POSITIONS_PER_ROW": POSITIONS_PER_ROW,
            "OV_ADDRESSES_PER_ROW": ADDRESSES_PER_ROW,
            "OV_NEAR_FACTOR": NEAR_FACTOR,
            "OV_REDIRECT": REDIRECT,
            "OV_RESET": RESET,
            "OV_SPREAD": SPREAD,
            "OV_APART": APART,
            "OV_TAKES_IPV4": TAKES_IPV4,
            "OV_TAKES_IPV6": TAKES_IPV6,
            "OV_WILDCARD": WILDCARD,
            "OV_DRAINING": DRAINING,
            "OV_HUNG": HUNG,
            "OV_TRIAL": TRIAL,
            "OV_AWAITED": AWAITED,
            "OV_UNATTENDED": UNATTENDED,
            "OV_MARK_TICK_SHIFT": MARK_TICK_SHIFT,
            "OV_MARK_TICKS": MARK_TICKS,
            "OV_PORT_EXACT": PORT_EXACT,
            "OV_PORT_WILDCARD": PORT_WILDCARD,
            "OV_COOKIE_TICK_SHIFT": COOKIE_TICK_SHIFT,
            "OV_TRACERS": TRACERS,
            "OV_EVERY_SERVICE": EVERY_SERVICE,
            "OV_NO_MEMBER": NO_MEMBER,
            "OV_CROWDED": CROWDED,
            "OV_NO_OTHER": NO_OTHER,
            "OV_COOKIE": COOKIE,
            "OV_FALLBACK": FALLBACK,
        }
    }

    fn counters<T>(figures: &[Figure<T>]) -> Vec<String> {
        let counters = figures.iter().filter(|figure| figure.kind == Kind::Counter);
        sorted(counters.map(|figure| figure.name.to_owned()).collect())
    }

    fn sorted(mut names: Vec<String>) -> Vec<String> {
        names.sort();
        names
    }

    #[test]
    fn every_counter_of_the_kernel_is_a_figure() {
        let object = concat!(env!("OUT_DIR"), "/overspill.bpf.o");
        let btf = Btf::from_path(object).unwrap();
        let fields = |name: &str| {
            sorted(c_fields(&btf, name).0.into_iter().map(|(field, _)| field).collect())
        };
        assert_eq!(fields("ov_service_counters"), counters(Requests::FIGURES));
        // The map `starts` is all of its own: only user space counts there.
        let of_members = [fields("ov_member_counters"), vec!["starts".to_owned()]].concat();
        assert_eq!(sorted(of_members), counters(MemberStatus::FIGURES));
        assert_eq!(fields("ov_exits"), counters(Exits::FIGURES));
    }

    #[test]
    fn addresses_lead_back() {
        for text in ["0.0.0.0", "192.0.2.1", "::", "fd00::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(address_from(address_bytes(ip)), ip);
        }
    }
}
