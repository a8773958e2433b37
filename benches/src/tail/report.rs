//! The page that says what was found.

use std::fmt::Write as _;

use crate::entrant::{Entrant, Hang, USUAL_POLICY};
use crate::machine::Machine;
use crate::measure::{
    ANSWERS, CONNECTIONS, CONNECTIONS_VARY, Capacities, ENOUGH_FOR_P999, FAILED, LATE, LOOK, Load,
    MAX, MEAN, MEDIAN, MOVE, MOVED, MOVES, P99, P999, Plan, STUCK, case,
};
use crate::sample::Samples;
use crate::statistics::{Spread, quantile};
use crate::traffic::Traffic;

/// A page in Markdown.
pub(crate) fn page(
    plan: &Plan,
    machine: &Machine,
    capacities: &Capacities,
    samples: &Samples,
) -> String {
    let found = Found { plan, samples };
    [
        introduction(plan, machine),
        found.clients(capacities),
        found.verdicts(),
        found.to_reuseport(),
        found.overview(),
        found.watched(),
        found.details(),
    ]
    .join("\n")
}

fn introduction(plan: &Plan, machine: &Machine) -> String {
    let Machine { date, kernel, processor, processors, load, commit } = machine;
    let quick = if plan.quick { "; **a quick run, not to be believed**" } else { "" };
    format!(
        "# How long clients wait, measured on {date}\n\n\
         Linux {kernel}, {processors} × {processor}; load before: {load}; commit {commit}{quick}. \
         {rounds} rounds, {seconds} s a run; in each round all contestants in turn, in an order \
         drawn by lot, with the same requests at the same moments. `a (b .. c)` is the median and \
         its 95 % bootstrap interval over the rounds, of ratios within a round. Waits are in ms, \
         from the moment at which a request was meant to be asked; who failed, or waited for more \
         than 2 s, counts as 2000. p99.9 is told where a run has at least {ENOUGH_FOR_P999} \
         requests. Every figure of every run is in [samples.csv](samples.csv); \
         [benches/README.md](../../../README.md) tells who takes part.\n\n\
         ![99th percentile of waits by traffic and load](picture.svg)\n",
        rounds = plan.rounds,
        seconds = plan.time.as_secs_f64(),
    )
}

struct Found<'a> {
    plan: &'a Plan,
    samples: &'a Samples,
}

impl Found<'_> {
    fn of(&self, entrant: Entrant, traffic: Traffic, load: Load, measure: &str) -> Vec<f64> {
        self.samples.of(case(entrant, traffic, load), measure)
    }

    fn median(&self, entrant: Entrant, traffic: Traffic, load: Load, measure: &str) -> f64 {
        quantile(&self.of(entrant, traffic, load, measure), 0.5).unwrap_or(f64::NAN)
    }

    fn cases(&self) -> impl Iterator<Item = (Traffic, Load)> {
        self.plan.traffics.iter().flat_map(|&t| self.plan.loads.iter().map(move |&load| (t, load)))
    }

    /// The figure times the least of the others' in the same round.
    fn to_best_other(&self, entrant: Entrant, at: (Traffic, Load), measure: &str) -> Spread {
        let others = Entrant::all().into_iter().filter(|&one| one.is_other() && one != entrant);
        let others: Vec<Vec<f64>> =
            others.map(|other| self.of(other, at.0, at.1, measure)).collect();
        let own = self.of(entrant, at.0, at.1, measure);
        let ratios = own.iter().enumerate().map(|(round, own)| {
            own / others.iter().map(|other| other[round]).fold(f64::INFINITY, f64::min)
        });
        Spread::of(&ratios.collect::<Vec<_>>()).expect("it was measured")
    }

    /// Of the others, the one with the least median.
    fn best_other(&self, at: (Traffic, Load), measure: &str) -> Entrant {
        let median = |entrant: &Entrant| self.median(*entrant, at.0, at.1, measure);
        let all = Entrant::all().into_iter().filter(|entrant| entrant.is_other());
        all.min_by(|a, b| median(a).total_cmp(&median(b))).expect("there are some")
    }

    fn clients(&self, capacities: &Capacities) -> String {
        let mut page = String::from("## The traffic\n\n");
        head(&mut page, &["traffic", "is"], &["workers' capacity (requests a second)"]);
        for (traffic, capacity) in capacities {
            row(&mut page, &[traffic.name(), traffic.describe(), &format!("{capacity:.0}")]);
        }
        let late: Vec<f64> = self
            .cases()
            .flat_map(|(traffic, load)| {
                Entrant::all().into_iter().flat_map(move |one| self.of(one, traffic, load, LATE))
            })
            .collect();
        let at = |at| quantile(&late, at).unwrap_or(f64::NAN);
        writeln!(
            page,
            "\nLoads are shares of that capacity, taken before the rounds from how long a request \
             occupied a worker. One client in a hundred asked later than meant by {:.2} ms in the \
             median run, by {:.2} ms in the worst: differences below that are the machine's.",
            at(0.5),
            at(1.0)
        )
        .expect("a String takes everything");
        page
    }

    fn verdicts(&self) -> String {
        let mut page = String::from(
            "## Verdict\n\n\
             The p99 of each of ours, times the least p99 of all others in the same round, \
             whoever that was: below 1 overspill is ahead of every one of them. The verdict is \
             on `run`, which is what users have who choose nothing.\n\n",
        );
        let ours: Vec<Entrant> = Entrant::all().into_iter().filter(|one| one.is_ours()).collect();
        let names: Vec<&str> = ours.iter().map(|one| one.name()).collect();
        head(&mut page, &["traffic", "load", "best of the others", "verdict"], &names);
        let mut lost = Vec::new();
        for at in self.cases() {
            let other = self.best_other(at, P99);
            let ratio = self.to_best_other(Entrant::USUAL, at, P99);
            let verdict = verdict(ratio, self.plan.rounds);
            if verdict == BEHIND {
                lost.push(format!(
                    "- {}, {}: {ratio:.2} times the p99 of the best other; mostly {} wins.",
                    at.0.name(),
                    at.1.name,
                    other.name()
                ));
            }
            let mut cells =
                vec![at.0.name().to_owned(), at.1.name.to_owned(), other.name().to_owned()];
            cells.push(verdict.to_owned());
            let ratios = ours.iter().map(|&one| format!("{:.2}", self.to_best_other(one, at, P99)));
            cells.extend(ratios);
            row(&mut page, &cells);
        }
        page += "\nWhere `run` loses:\n\n";
        if lost.is_empty() {
            lost.push("- Nowhere for sure; see the others above.".to_owned());
        }
        page + &lost.join("\n") + "\n"
    }

    /// Whether something is lost by choosing overspill where the kernel alone would do.
    fn to_reuseport(&self) -> String {
        let mut page = String::from(
            "## Beside SO_REUSEPORT\n\n\
             Mean and p99 of each of ours, times those of SO_REUSEPORT in the same round: below 1 \
             overspill is ahead. **Bold**: behind, by the interval.\n\n",
        );
        let ours: Vec<Entrant> = Entrant::all().into_iter().filter(|one| one.is_ours()).collect();
        let names: Vec<&str> = ours.iter().map(|one| one.name()).collect();
        head(&mut page, &["traffic", "load", "of"], &names);
        for (traffic, load) in self.cases() {
            for (measure, name) in [(MEAN, "mean"), (P99, "p99")] {
                let ratios = ours.iter().map(|&one| {
                    let of = |entrant| case(entrant, traffic, load);
                    let ratios = self.samples.ratios(of(one), of(Entrant::ReusePort), measure);
                    let ratio = Spread::of(&ratios).expect("it was measured");
                    let behind = verdict(ratio, self.plan.rounds) == BEHIND;
                    if behind { format!("**{ratio:.2}**") } else { format!("{ratio:.2}") }
                });
                let mut cells = [traffic.name(), load.name, name].map(str::to_owned).to_vec();
                cells.extend(ratios);
                row(&mut page, &cells);
            }
        }
        page
    }

    fn overview(&self) -> String {
        let mut page = String::new();
        for measure in [P99, MEAN, P999] {
            write!(page, "## Medians of {measure}\n\n").expect("a String takes everything");
            let columns: Vec<String> = self
                .cases()
                .map(|(traffic, load)| format!("{} {}", traffic.name(), load.name))
                .collect();
            head(&mut page, &["contestant"], &columns);
            for entrant in Entrant::all() {
                let mut cells = vec![entrant.name().to_owned()];
                let medians =
                    self.cases().map(|at| digits(self.median(entrant, at.0, at.1, measure)));
                cells.extend(medians);
                row(&mut page, &cells);
            }
            page.push('\n');
        }
        page.trim_end().to_owned() + "\n"
    }

    fn watched(&self) -> String {
        let mut page = format!(
            "## What watching costs and gains\n\n\
             `run` is {policy}, and each fifth of 100 ms, or of 20, a look at the queues: a \
             worker whose queue has stood for so long gets no requests, and what waits there \
             moves. Times {policy} alone, in the same round.\n\n",
            policy = USUAL_POLICY.name(),
        );
        let figures = [
            "mean",
            "p99",
            "p99.9",
            "moves a second",
            "requests moved",
            "failed",
            "failed without",
            "a look",
            "a move",
        ];
        head(&mut page, &["contestant", "traffic", "load", "verdict on p99"], &figures);
        for hang in Hang::ALL {
            for at in self.cases() {
                row(&mut page, &self.watched_at(Entrant::Run(hang), at));
            }
        }
        page
    }

    fn watched_at(&self, run: Entrant, (traffic, load): (Traffic, Load)) -> Vec<String> {
        let base = Entrant::Overspill(USUAL_POLICY);
        let ratio = |measure| {
            let of = |entrant| case(entrant, traffic, load);
            let ratios = self.samples.ratios(of(run), of(base), measure);
            Spread::of(&ratios)
        };
        let own = |measure| self.median(run, traffic, load, measure);
        let a_move = if own(MOVES) > 0.0 { own(MOVE) } else { f64::NAN };
        let mut cells: Vec<String> =
            [run.name(), traffic.name(), load.name].map(str::to_owned).to_vec();
        let on_p99 = ratio(P99).expect("it was measured");
        cells.push(verdict(on_p99, self.plan.rounds).to_owned());
        let text = |spread: Option<Spread>| {
            spread.map_or_else(|| NOT_TOLD.to_owned(), |spread| format!("{spread:.2}"))
        };
        cells.extend([MEAN, P99, P999].map(|measure| text(ratio(measure))));
        cells.push(format!("{:.0}", own(MOVES)));
        cells.push(percent(own(MOVED)));
        cells.push(percent(own(FAILED)));
        cells.push(percent(self.median(base, traffic, load, FAILED)));
        let micros =
            |time: f64| if time.is_nan() { NOT_TOLD.to_owned() } else { format!("{time:.0} us") };
        cells.extend([own(LOOK), a_move].map(micros));
        cells
    }

    /// All figures of each traffic.
    fn details(&self) -> String {
        let mut page = String::from(
            "## Traffic by traffic\n\n\
             Medians over the rounds. *Busiest* is how many connections, or answers, the worker \
             with the most of them has, times the mean; *variation* is the coefficient of \
             variation of connections over workers.\n",
        );
        for &traffic in &self.plan.traffics {
            let title = format!("\n### {}: {}\n\n", traffic.name(), traffic.describe());
            page += &title;
            let figures = [
                "mean",
                "p50",
                "p99",
                "p99.9",
                "max",
                "failed",
                "stuck",
                "connections, busiest",
                "variation",
                "answers, busiest",
                "p99 times the best other's",
            ];
            head(&mut page, &["load", "contestant"], &figures);
            for &load in self.plan.loads {
                for entrant in Entrant::all() {
                    row(&mut page, &self.detail(entrant, traffic, load));
                }
            }
        }
        page
    }

    fn detail(&self, entrant: Entrant, traffic: Traffic, load: Load) -> Vec<String> {
        let median = |measure| self.median(entrant, traffic, load, measure);
        let mut cells = vec![load.name.to_owned(), entrant.name().to_owned()];
        cells.extend([MEAN, MEDIAN, P99, P999, MAX].map(|measure| digits(median(measure))));
        cells.extend([FAILED, STUCK].map(|measure| percent(median(measure))));
        let spread = [CONNECTIONS, CONNECTIONS_VARY, ANSWERS];
        cells.extend(spread.map(|measure| format!("{:.2}", median(measure))));
        cells.push(format!("{:.2}", self.to_best_other(entrant, (traffic, load), P99)));
        cells
    }
}

const BEHIND: &str = "**behind**";

/// By the interval; of fewer rounds than six even the whole range is no 95 % interval.
fn verdict(ratio: Spread, rounds: u32) -> &'static str {
    if rounds < 6 {
        "too few rounds to say"
    } else if ratio.high < 1.0 {
        "**ahead**"
    } else if ratio.low > 1.0 {
        BEHIND
    } else {
        "no difference shown"
    }
}

const NOT_TOLD: &str = "—";

/// Three digits that tell.
fn digits(value: f64) -> String {
    if value.is_nan() {
        return NOT_TOLD.to_owned();
    }
    let behind = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.behind$}")
}

fn percent(share: f64) -> String {
    if share == 0.0 { "0".to_owned() } else { format!("{:.2} %", 100.0 * share) }
}

/// A row of a table.
fn row<T: AsRef<str>>(page: &mut String, cells: &[T]) {
    for cell in cells {
        write!(page, "| {} ", cell.as_ref()).expect("a String takes everything");
    }
    page.push_str("|\n");
}

/// A table's head: its first columns are words, the others figures.
fn head<T: AsRef<str>>(page: &mut String, words: &[&str], figures: &[T]) {
    let names = words.iter().copied().chain(figures.iter().map(AsRef::as_ref));
    row(page, &names.collect::<Vec<_>>());
    let lines = words.iter().map(|_| "---").chain(figures.iter().map(|_| "---:"));
    row(page, &lines.collect::<Vec<_>>());
}
