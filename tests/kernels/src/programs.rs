//! What a kernel makes of the programs: whether it loads each, and at which cost.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// A program, as the verifier and the JIT of a kernel took it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Program {
    pub(crate) object: String,
    #[serde(rename = "program")]
    pub(crate) name: String,
    pub(crate) loaded: bool,
    /// Instructions that the verifier looked at, on all paths.
    pub(crate) steps: Option<u64>,
    pub(crate) instructions: Option<u64>,
    /// Bytes; 0 where the JIT did not take it.
    pub(crate) machine_code: Option<u64>,
    pub(crate) error: Option<String>,
}

impl Program {
    /// Why it is of no use on this kernel, if it is not.
    pub(crate) fn fault(&self) -> Option<String> {
        let Self { object, name, .. } = self;
        if !self.loaded {
            let why = self.error.as_deref().unwrap_or("the kernel does not say why");
            return Some(format!("program \"{name}\" of {object} does not load: {why}"));
        }
        (self.machine_code == Some(0))
            .then(|| format!("program \"{name}\" of {object} loads, but the JIT does not take it"))
    }
}

/// What loading all of them came to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Loading {
    pub(crate) programs: Vec<Program>,
    /// From start to end of the command, in seconds.
    pub(crate) elapsed: f64,
    pub(crate) cpu: f64,
    /// What `overspill check` says there; the small loader has no such verdict.
    pub(crate) verdict: Option<Verdict>,
}

/// The verdict of `overspill check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) missing: Vec<String>,
    pub(crate) notes: Vec<String>,
}

/// A script that loads all programs by the command at `overspill`.
pub(crate) fn script(overspill: &Path) -> String {
    let overspill = overspill.display();
    format!(
        "{}echo '--- check'\n{overspill} check --json\ntrue\n",
        timed(&format!("{overspill} check --programs --json"), "/run/kernels/busybox")
    )
}

/// A script that runs `loader`, and prints what it prints and what time it took.
pub(crate) fn timed(loader: &str, busybox: &str) -> String {
    format!(
        "{busybox} time -p {loader} >/tmp/programs 2>/tmp/times\n\
         echo '--- programs'\ncat /tmp/programs\n\
         echo '--- times'\ncat /tmp/times\n"
    )
}

/// Reads what the script printed.
pub(crate) fn read(output: &str) -> Result<Loading> {
    let times = section(output, "times");
    let programs: Vec<Program> = serde_json::from_str(section(output, "programs"))
        .with_context(|| format!("the programs cannot be loaded: {}", complaint(times)))?;
    if programs.is_empty() {
        bail!("no program was loaded: {}", complaint(times));
    }
    let seconds = |name: &str| -> f64 {
        let line = times.lines().rfind(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or_default()
    };
    let check = section(output, "check");
    let verdict = if check.trim().is_empty() { None } else { Some(verdict(check)?) };
    Ok(Loading {
        programs,
        elapsed: seconds("real"),
        cpu: seconds("user") + seconds("sys"),
        verdict,
    })
}

fn verdict(check: &str) -> Result<Verdict> {
    #[derive(Deserialize)]
    struct Item {
        name: String,
        verdict: String,
    }
    // A complaint on one line may follow.
    let mut items = serde_json::Deserializer::from_str(check).into_iter::<Vec<Item>>();
    let items = items.next().context("overspill check prints nothing")?;
    let items = items.with_context(|| format!("overspill check failed: {}", complaint(check)))?;
    let named = |verdict: &str| {
        let named = items.iter().filter(|item| item.verdict == verdict);
        named.map(|item| item.name.clone()).collect()
    };
    Ok(Verdict { missing: named("missing"), notes: named("note") })
}

/// The lines after "--- NAME", up to the next such line.
fn section<'a>(output: &'a str, name: &str) -> &'a str {
    let title = format!("--- {name}\n");
    let text = output.split_once(&title).map_or("", |(_, text)| text);
    text.find("--- ").map_or(text, |end| &text[..end])
}

fn complaint(text: &str) -> &str {
    let timing = ["real", "user", "sys"];
    text.lines()
        .rfind(|line| !timing.iter().any(|name| line.starts_with(name)) && !line.trim().is_empty())
        .unwrap_or("no reason is given")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
--- programs
[{\"object\":\"overspill\",\"program\":\"by_rules\",\"loaded\":true,\"steps\":12,\"instructions\":3,\
\"machine_code\":29,\"milliseconds\":40,\"error\":null},
{\"object\":\"hooks\",\"program\":\"listening\",\"loaded\":false,\"steps\":null,\"instructions\":null,\
\"machine_code\":null,\"milliseconds\":1,\"error\":\"no kfunc\"}]
--- times
overspill: something failed
real 1.50
user 0.25
sys 1.00
--- check
[{\"name\":\"BTF\",\"verdict\":\"ok\"},{\"name\":\"limits\",\"verdict\":\"note\"}]
";

    #[test]
    fn reads_programs_times_and_verdict() {
        let loading = read(OUTPUT).unwrap();
        assert_eq!((loading.elapsed, loading.cpu), (1.5, 1.25));
        assert_eq!(loading.programs[0].fault(), None);
        assert_eq!(
            loading.programs[1].fault().unwrap(),
            "program \"listening\" of hooks does not load: no kfunc"
        );
        let verdict = loading.verdict.unwrap();
        assert_eq!((verdict.missing, verdict.notes), (vec![], vec!["limits".to_owned()]));
    }

    #[test]
    fn says_why_nothing_was_loaded() {
        let output = "--- programs\n--- times\nusage: wrong\nreal 0.1\n";
        let error = format!("{:#}", read(output).unwrap_err());
        assert!(error.starts_with("the programs cannot be loaded: usage: wrong"), "{error}");
    }
}
