//! Loading every program of every object, to see what this kernel makes of them.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::time::Instant;

use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::Func;
use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions, ProgramInfo};
use libbpf_rs::skel::{OpenSkel as _, Skel as _};
use libbpf_rs::{Object, OpenObject, Program};
use serde::Serialize;

use super::{hooks, make, verifier};
use crate::error::{Error, Result};

/// A program, as this kernel's verifier and JIT compiler took it, or refused it.
///
/// The numbers are those of `struct bpf_prog_info` (`include/uapi/linux/bpf.h`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProgramReport {
    /// The object that the program is part of: `overspill` places requests, `hooks` serves
    /// `overspill run` and `overspill allow`.
    pub object: &'static str,
    /// The program's name.
    pub program: String,
    /// Whether the kernel took it.
    pub loaded: bool,
    /// Instructions that the verifier processed; its limit is 1,000,000.
    pub steps: u32,
    /// Instructions after the verifier's rewriting.
    pub instructions: u32,
    /// Bytes of machine code; 0: the program is interpreted.
    pub machine_code: u32,
    /// Milliseconds that loading the whole object took.
    pub milliseconds: u64,
    /// Why the kernel refused it: the end of the verifier's log.
    pub error: Option<String>,
}

/// Loads every program of every object and lets them go again.
///
/// # Errors
///
/// What is not the verifier's verdict on a program: [`Error::NoBtf`], [`Error::Permission`],
/// [`Error::Bpf`].
pub fn programs() -> Result<Vec<ProgramReport>> {
    let mut reports = examine("overspill", |refused| {
        let mut memory = MaybeUninit::uninit();
        let mut open = make::smallest(&mut memory)?;
        leave_out(open.open_object_mut(), refused);
        let loaded = make::load(open)?;
        measure(loaded.object())
    })?;
    reports.extend(examine("hooks", |refused| {
        let mut open = hooks::open()?;
        leave_out(&mut open, refused);
        measure(&hooks::load(open)?)
    })?);
    Ok(reports)
}

/// Whether the kernel has what `bpf/load.h` reads its memory with (`bpf_rdonly_cast`); `None`
/// where its BTF can't be read.
pub(crate) fn reads_directly() -> Option<bool> {
    verifier::hush();
    let btf = Btf::from_vmlinux().ok()?;
    Some(btf.type_by_name::<Func<'_>>("bpf_rdonly_cast").is_some())
}

/// Bytes of an instruction (`struct bpf_insn`).
const INSTRUCTION: usize = 8;

/// A refused program, with the verifier's verdict.
type Refused = (String, String);

/// Loads one object. A program that is refused is left out and the others are tried again.
fn examine(
    object: &'static str,
    mut load: impl FnMut(&[Refused]) -> Result<Vec<ProgramReport>>,
) -> Result<Vec<ProgramReport>> {
    let mut refused: Vec<Refused> = Vec::new();
    let mut reports = loop {
        let begin = Instant::now();
        match verifier::retried(|| load(&refused)) {
            Ok(mut reports) => {
                let milliseconds = begin.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
                for report in &mut reports {
                    report.milliseconds = milliseconds;
                }
                break reports;
            }
            Err(Error::Refused { program, verdict })
                if refused.iter().all(|(known, _)| *known != program) =>
            {
                refused.push((program, verdict));
            }
            // Another program calls a refused one, so nothing more of this object can load.
            Err(_) if !refused.is_empty() => break Vec::new(),
            Err(error) => return Err(error),
        }
    };
    reports.extend(refused.iter().map(report_refused));
    for report in &mut reports {
        report.object = object;
    }
    Ok(reports)
}

fn leave_out(object: &mut OpenObject, refused: &[Refused]) {
    for mut program in object.progs_mut() {
        if refused.iter().any(|(name, _)| program.name() == name.as_str()) {
            program.set_autoload(false);
        }
    }
}

/// What the kernel tells of the programs of a loaded object.
fn measure(object: &Object) -> Result<Vec<ProgramReport>> {
    let failed = |error| Error::bpf("examine", "a loaded program", error);
    let mut names = HashMap::new();
    for program in object.progs().filter(libbpf_rs::ProgramImpl::autoload) {
        let id = Program::id_from_fd(program.as_fd()).map_err(failed)?;
        names.insert(id, program.name().to_string_lossy().into_owned());
    }
    let options = ProgInfoQueryOptions::default()
        .include_xlated_prog_insns(true)
        .include_jited_prog_insns(true);
    let infos = ProgInfoIter::with_query_opts(options);
    let own = infos.filter_map(|info| Some((names.remove(&info.id)?, info)));
    let mut reports: Vec<ProgramReport> = own.map(|(name, info)| report(name, &info)).collect();
    reports.sort_by(|one, other| one.program.cmp(&other.program));
    Ok(reports)
}

fn report(program: String, info: &ProgramInfo) -> ProgramReport {
    let number = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    ProgramReport {
        loaded: true,
        steps: info.verified_insns,
        instructions: number(info.xlated_prog_insns.len() / INSTRUCTION),
        machine_code: number(info.jited_prog_insns.len()),
        ..blank(program)
    }
}

fn report_refused((program, verdict): &Refused) -> ProgramReport {
    ProgramReport { error: Some(verdict.clone()), ..blank(program.clone()) }
}

fn blank(program: String) -> ProgramReport {
    ProgramReport {
        object: "",
        program,
        loaded: false,
        steps: 0,
        instructions: 0,
        machine_code: 0,
        milliseconds: 0,
        error: None,
    }
}
