//! One file a command.

pub(crate) mod allow;
pub(crate) mod check;
pub(crate) mod demo;
pub(crate) mod drain;
pub(crate) mod generate;
pub(crate) mod hand_over;
pub(crate) mod ls;
pub(crate) mod metrics;
pub(crate) mod restart;
pub(crate) mod resume;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod set;
pub(crate) mod share;
pub(crate) mod show;
pub(crate) mod top;
pub(crate) mod trace;
pub(crate) mod upgrade;
