//! `overspill hand-over`, by which a supervisor asks another build whether it can take over

use std::ffi::OsString;

/// Say whether this build can take over from a supervisor (for overspill upgrade)
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What the supervisor was started with
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub(crate) arguments: Vec<OsString>,
}
