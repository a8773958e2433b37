//! What the supervisor tells the process of the relay.

/// A worker's number, as the relay is told it.
pub(crate) type Number = u32;

/// Pass on what workers write (for `overspill run`)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many there are
    #[arg(long)]
    pub(crate) workers: usize,
}
