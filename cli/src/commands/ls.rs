//! `overspill ls`

use crate::failure::{Failure, Outcome};

/// (to be written)
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: Args) -> Outcome {
    Err(Failure::new("not written yet"))
}
