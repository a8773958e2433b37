//! The columns of the two tables: what stands in them, how rows are sorted by them, and which
//! of them a width has room for.

use std::cmp::Ordering;

use super::book::{LATELY, Member, Service};
use crate::identified::briefly;

/// A column of a table with such rows.
pub(super) trait Column: Copy + PartialEq + 'static {
    type Row;

    /// All of them, from left to right.
    const ALL: &'static [Self];

    /// Those that take what width is left over, the first of them first.
    const GROW: &'static [Self];

    fn heading(self) -> &'static str;

    /// The other columns go first where there is no room for all: the one with the highest.
    fn rank(self) -> u8;

    /// Whether it has anything to say of these rows.
    fn is_of_use(self, _rows: &[Self::Row]) -> bool {
        true
    }

    /// Whether its cells begin at the left.
    fn leans_left(self) -> bool;

    /// The widths between which its cells can be shown, given the rows that there are.
    fn widths(self, rows: &[Self::Row]) -> (usize, usize);

    /// The text of a cell; none where it is drawn.
    fn text(self, row: &Self::Row) -> String;

    /// Which row is to be looked at first, when sorted by this column: names by the
    /// alphabet, figures with the largest first.
    fn compare(self, one: &Self::Row, other: &Self::Row) -> Ordering;
}

/// A column of the table of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServiceColumn {
    Service,
    Policy,
    Members,
    Queued,
    Established,
    Placed,
    Redirected,
    Dropped,
    Reset,
    Supervisor,
}

/// A column of the table of members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemberColumn {
    Member,
    Worker,
    Pid,
    Address,
    State,
    Queue,
    Held,
    Lately,
    Established,
    Placed,
    In,
    Out,
}

impl Column for ServiceColumn {
    type Row = Service;

    const ALL: &'static [Self] = &[
        Self::Service,
        Self::Policy,
        Self::Members,
        Self::Queued,
        Self::Established,
        Self::Placed,
        Self::Redirected,
        Self::Dropped,
        Self::Reset,
        Self::Supervisor,
    ];

    const GROW: &'static [Self] = &[Self::Service];

    fn heading(self) -> &'static str {
        match self {
            Self::Service => "SERVICE",
            Self::Policy => "POLICY",
            Self::Members => "MEMBERS",
            Self::Queued => "QUEUED",
            Self::Established => "ESTAB",
            Self::Placed => "PLACED/s",
            Self::Redirected => "REDIR/s",
            Self::Dropped => "DROP/s",
            Self::Reset => "RESET/s",
            Self::Supervisor => "SUPERVISOR",
        }
    }

    fn rank(self) -> u8 {
        match self {
            Self::Service => 0,
            Self::Queued => 1,
            Self::Placed => 2,
            Self::Redirected => 3,
            Self::Dropped => 4,
            Self::Members => 5,
            Self::Policy => 6,
            Self::Reset => 7,
            Self::Established => 8,
            Self::Supervisor => 9,
        }
    }

    fn leans_left(self) -> bool {
        matches!(self, Self::Service | Self::Policy | Self::Supervisor)
    }

    fn is_of_use(self, rows: &[Service]) -> bool {
        self != Self::Supervisor || rows.iter().any(|row| row.supervisor.is_some())
    }

    fn widths(self, rows: &[Service]) -> (usize, usize) {
        let widest = widest(self, rows);
        match self {
            Self::Service => (widest.min(12), widest),
            _ => (widest, widest),
        }
    }

    fn text(self, row: &Service) -> String {
        let rate = |of: fn(&super::book::Rates) -> f64| rate(row.rates.as_ref().map(of));
        match self {
            Self::Service => row.name().to_owned(),
            Self::Policy => row.status.policy.to_string(),
            Self::Members => format!("{}/{}", row.active, row.members.len()),
            Self::Queued => format!("{}/{}", count(row.held), count(row.capacity)),
            Self::Established => row.established.map_or_else(unknown, count),
            Self::Placed => rate(|rates| rates.placed),
            Self::Redirected => rate(|rates| rates.redirected),
            Self::Dropped => rate(|rates| rates.dropped),
            Self::Reset => rate(|rates| rates.reset),
            Self::Supervisor => row.supervisor.as_ref().map_or_else(unknown, briefly),
        }
    }

    fn compare(self, one: &Service, other: &Service) -> Ordering {
        let by_rate = |of: fn(&super::book::Rates) -> f64| {
            largest_first(one.rates.as_ref().map(of), other.rates.as_ref().map(of))
        };
        match self {
            Self::Service => one.name().cmp(other.name()),
            Self::Policy => one.status.policy.name().cmp(other.status.policy.name()),
            Self::Members => other.members.len().cmp(&one.members.len()),
            Self::Queued => fuller((one.held, one.capacity), (other.held, other.capacity)),
            Self::Established => other.established.cmp(&one.established),
            Self::Placed => by_rate(|rates| rates.placed),
            Self::Redirected => by_rate(|rates| rates.redirected),
            Self::Dropped => by_rate(|rates| rates.dropped),
            Self::Reset => by_rate(|rates| rates.reset),
            Self::Supervisor => {
                let told = |row: &Service| row.supervisor.as_ref().map(briefly);
                told(one).cmp(&told(other))
            }
        }
    }
}

impl Column for MemberColumn {
    type Row = Member;

    const ALL: &'static [Self] = &[
        Self::Member,
        Self::Worker,
        Self::Pid,
        Self::Address,
        Self::State,
        Self::Queue,
        Self::Held,
        Self::Lately,
        Self::Established,
        Self::Placed,
        Self::In,
        Self::Out,
    ];

    const GROW: &'static [Self] = &[Self::Address, Self::Lately, Self::Queue];

    fn heading(self) -> &'static str {
        match self {
            Self::Member => "MEMBER",
            Self::Worker => "WORKER",
            Self::Pid => "PID",
            Self::Address => "ADDRESS",
            Self::State => "STATE",
            Self::Queue => "QUEUE",
            Self::Held => "HELD",
            Self::Lately => "LATELY",
            Self::Established => "ESTAB",
            Self::Placed => "PLACED/s",
            Self::In => "IN/s",
            Self::Out => "OUT/s",
        }
    }

    fn rank(self) -> u8 {
        match self {
            Self::Member => 0,
            Self::State => 1,
            Self::Held => 2,
            Self::Queue => 3,
            Self::Placed => 4,
            Self::Address => 5,
            Self::In => 6,
            Self::Lately => 7,
            Self::Established => 8,
            Self::Out => 9,
            Self::Worker => 10,
            Self::Pid => 11,
        }
    }

    fn leans_left(self) -> bool {
        matches!(self, Self::Address | Self::State | Self::Queue | Self::Lately)
    }

    fn is_of_use(self, rows: &[Member]) -> bool {
        self != Self::Worker || rows.iter().any(|row| row.worker.is_some())
    }

    fn widths(self, rows: &[Member]) -> (usize, usize) {
        match self {
            Self::State => ("draining".len(), "draining".len()),
            // The longest of IPv4; of one of IPv6 it shows the end.
            Self::Address => {
                let widest = widest(self, rows);
                (widest.min(15), widest)
            }
            Self::Queue => (5, 24),
            // Then the bars, which HELD tells as well, take the rest.
            Self::Lately => (8, LATELY),
            _ => {
                let widest = widest(self, rows);
                (widest, widest)
            }
        }
    }

    fn text(self, row: &Member) -> String {
        let rate = |of: fn(&super::book::MemberRates) -> f64| rate(row.rates.as_ref().map(of));
        match self {
            Self::Member => row.id().to_string(),
            Self::Worker => row.worker.map_or_else(unknown, |worker| worker.to_string()),
            Self::Pid => row.status.pid.to_string(),
            // All are on the service's port.
            Self::Address => row.status.address.ip.to_string(),
            Self::State => row.status.state.name().to_owned(),
            Self::Held => figures(row),
            Self::Queue | Self::Lately => String::new(),
            Self::Established => row.status.established.map_or_else(unknown, |it| count(it.into())),
            Self::Placed => rate(|rates| rates.placed),
            Self::In => rate(|rates| rates.redirected_in),
            Self::Out => rate(|rates| rates.redirected_out),
        }
    }

    fn compare(self, one: &Member, other: &Member) -> Ordering {
        let by_rate = |of: fn(&super::book::MemberRates) -> f64| {
            largest_first(one.rates.as_ref().map(of), other.rates.as_ref().map(of))
        };
        match self {
            // The rows stand in list order.
            Self::Member => Ordering::Equal,
            Self::Worker => one.worker.cmp(&other.worker),
            Self::Pid => one.status.pid.cmp(&other.status.pid),
            Self::Address => one.status.address.ip.cmp(&other.status.address.ip),
            Self::State => one.status.state.name().cmp(other.status.state.name()),
            Self::Queue => fuller(
                (one.held(), one.status.capacity.into()),
                (other.held(), other.status.capacity.into()),
            ),
            Self::Held => other.held().cmp(&one.held()),
            Self::Lately => other.lately.sum().cmp(&one.lately.sum()),
            Self::Established => other.status.established.cmp(&one.status.established),
            Self::Placed => by_rate(|rates| rates.placed),
            Self::In => by_rate(|rates| rates.redirected_in),
            Self::Out => by_rate(|rates| rates.redirected_out),
        }
    }
}

/// What waits and, where there is any, what is half open, of what the queue holds.
fn figures(member: &Member) -> String {
    let status = &member.status;
    let queued = count(status.queued.into());
    let half_open = match status.half_open {
        0 => String::new(),
        half_open => format!("+{}", count(half_open.into())),
    };
    format!("{queued}{half_open}/{}", count(status.capacity.into()))
}

fn widest<C: Column>(column: C, rows: &[C::Row]) -> usize {
    let texts = rows.iter().map(|row| column.text(row).len());
    texts.chain([column.heading().len()]).max().unwrap_or_default()
}

fn largest_first(one: Option<f64>, other: Option<f64>) -> Ordering {
    other.partial_cmp(&one).unwrap_or(Ordering::Equal)
}

/// By the share of the capacity that is held, without rounding; of nothing, nothing is.
fn fuller(one: (u64, u64), other: (u64, u64)) -> Ordering {
    let [(held, capacity), (other_held, other_capacity)] =
        [one, other].map(|(held, capacity)| (u128::from(held), u128::from(capacity.max(1))));
    (other_held * capacity).cmp(&(held * other_capacity))
}

fn unknown() -> String {
    "-".to_owned()
}

/// A number in at most five columns.
#[allow(clippy::cast_precision_loss)] // three digits of it are shown
pub(super) fn count(number: u64) -> String {
    if number < 10_000 {
        return number.to_string();
    }
    let mut scaled = number as f64;
    let mut units = ["k", "M", "G", "T", "P", "E"].into_iter();
    let mut unit = "";
    // What would be rounded up to a thousand is one of the next unit.
    while scaled >= 999.5 {
        scaled /= 1000.0;
        unit = units.next().expect("a u64 is below a thousand E");
    }
    if scaled < 99.95 { format!("{scaled:.1}{unit}") } else { format!("{scaled:.0}{unit}") }
}

/// A rate in at most five columns: one in two seconds is not nothing.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // rates are not negative
pub(super) fn rate(rate: Option<f64>) -> String {
    match rate {
        None => unknown(),
        Some(rate) if rate > 0.0 && rate < 9.95 => {
            format!("{:.1}", rate.max(0.1))
        }
        Some(rate) => count(rate.round() as u64),
    }
}

/// Which columns there is room for, from left to right, and how wide each is. One cell before
/// each is left for the space between them.
pub(super) fn fit<C: Column>(rows: &[C::Row], width: usize) -> Vec<(C, usize)> {
    let mut by_rank: Vec<C> = C::ALL.iter().copied().filter(|it| it.is_of_use(rows)).collect();
    by_rank.sort_by_key(|column| column.rank());
    let mut left = width;
    let mut shown: Vec<(C, usize, usize)> = Vec::new();
    for column in by_rank {
        let (least, most) = column.widths(rows);
        if least < left {
            left -= least + 1;
            shown.push((column, least, most));
        }
    }
    for column in C::GROW {
        if let Some((_, width, most)) = shown.iter_mut().find(|(it, ..)| it == column) {
            let more = (*most - *width).min(left);
            *width += more;
            left -= more;
        }
    }
    let find = |column: C| shown.iter().find(|(it, ..)| *it == column);
    let shown = C::ALL.iter().filter_map(|&column| find(column));
    shown.map(|&(column, width, _)| (column, width)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::book::{Book, tests as made};
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_number_takes_five_columns_at_most() {
        let cases = [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10.0k"),
            (99_949, "99.9k"),
            (99_950, "100k"),
            (999_499, "999k"),
            (999_500, "1.0M"),
            (u64::MAX, "18.4E"),
        ];
        for (number, text) in cases {
            assert_eq!(count(number), text);
        }
        let rates = [None, Some(0.0), Some(0.02), Some(0.5), Some(2.0), Some(9.96), Some(1234.5)];
        let texts = rates.map(rate);
        assert_eq!(texts, ["-", "0", "0.1", "0.5", "2.0", "10", "1235"]);
    }

    fn book() -> Book {
        let mut book = Book::default();
        let members = (0..4).map(|id| made::member(id, id, 0, 17)).collect();
        book.note(Duration::ZERO, vec![made::service("web", members)]);
        book.identify(vec![made::identity("web", 4)]);
        book
    }

    #[test]
    fn what_nobody_has_takes_no_column() {
        let mut book = book();
        let shown = |book: &Book| {
            let services = fit::<ServiceColumn>(book.services(), 200);
            let members = fit::<MemberColumn>(&book.services()[0].members, 200);
            (services.len(), members.len())
        };
        let all = (ServiceColumn::ALL.len(), MemberColumn::ALL.len());
        assert_eq!(shown(&book), all);
        book.note(
            Duration::from_secs(1),
            vec![made::service("web", vec![made::member(0, 0, 0, 17)])],
        );
        assert_eq!(shown(&book), (all.0 - 1, all.1 - 1));
    }

    #[test]
    fn the_columns_fill_the_width_and_never_exceed_it() {
        let book = book();
        for width in 0..200 {
            let members = fit::<MemberColumn>(&book.services()[0].members, width);
            let services = fit::<ServiceColumn>(book.services(), width);
            let taken = |widths: Vec<usize>| widths.iter().map(|width| width + 1).sum::<usize>();
            let members_taken = taken(members.iter().map(|it| it.1).collect());
            assert!(members_taken <= width);
            assert!(taken(services.iter().map(|it| it.1).collect()) <= width);
            if width == 80 {
                assert!(members.iter().any(|it| it.0 == MemberColumn::Out), "{members:?}");
                assert!(services.iter().any(|it| it.0 == ServiceColumn::Established));
            }
            if width == 100 {
                assert_eq!(members.len(), MemberColumn::ALL.len());
                assert_eq!(members_taken, 100, "the bars take what is left");
                assert_eq!(services.len(), ServiceColumn::ALL.len());
            }
            if width >= 32 {
                let shown: Vec<_> = members.iter().map(|it| it.0).collect();
                for needed in ["MEMBER", "STATE", "QUEUE", "HELD"] {
                    let found = shown.iter().any(|column| column.heading() == needed);
                    assert!(found, "{width}: {shown:?}");
                }
            }
        }
    }

    #[test]
    fn queues_are_compared_by_how_full_they_are() {
        let by = |one, other| fuller(one, other);
        assert_eq!(by((4, 5), (100, 511)), Ordering::Less);
        assert_eq!(by((0, 5), (0, 511)), Ordering::Equal);
        assert_eq!(by((0, 0), (1, 511)), Ordering::Greater);
        assert_eq!(by((u64::MAX, u64::MAX), (1, 1)), Ordering::Equal);
    }
}
