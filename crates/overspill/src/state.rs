//! What overspill has in a network namespace as a whole: which build serves it, and upgrades.

use crate::datapath::{Build, Datapath, Lock, Upgrade};
use crate::error::Result;
use crate::namespace::Namespace;
use crate::status::Exits;

impl Namespace {
    /// Every namespace that has services, by inode number.
    pub fn with_services() -> Result<Vec<Self>> {
        Ok(Datapath::namespaces()?.into_iter().map(Self::numbered).collect())
    }

    /// The ways out of the kernel program that belong to no service, or `None` while
    /// the namespace has no service.
    pub fn exits(&self) -> Result<Option<Exits>> {
        Datapath::open(self)?.map(|datapath| datapath.exits()).transpose()
    }

    /// The seed of the flow's hash ([`crate::flow::hash`]), or `None` while the namespace
    /// has no service.
    pub fn seed(&self) -> Result<Option<u32>> {
        Ok(Datapath::open(self)?.map(|datapath| datapath.seed()))
    }

    /// The build of overspill whose programs serve its services, or `None` while it has none.
    /// Other builds of the same layout can have changed the services since.
    ///
    /// # Errors
    ///
    /// The same as [`Service::status`](crate::Service::status).
    pub fn build(&self) -> Result<Option<Build>> {
        Ok(Datapath::open(self)?.map(|datapath| datapath.build()))
    }

    /// Replaces the programs of these services by this build's, under load. No request is lost.
    ///
    /// Returns `None` if the namespace has no services. Does nothing if the programs are this
    /// build's already.
    ///
    /// # Errors
    ///
    /// [`Error::OtherVersion`]: the state is older than version 0.1.0, which cannot be upgraded.
    /// [`Error::UnknownPolicy`]: this build does not know the policy of a service.
    /// [`Error::NoUpgrade`]: a map or a dispatcher does not fit this build.
    /// [`Error::Bpf`]: the kernel refuses the programs.
    /// After these errors nothing has changed.
    ///
    /// [`Error::Unfinished`]: this build's programs serve, but a later step failed. The next
    /// change of any service completes the upgrade.
    ///
    /// [`Error::OtherVersion`]: crate::Error::OtherVersion
    /// [`Error::UnknownPolicy`]: crate::Error::UnknownPolicy
    /// [`Error::NoUpgrade`]: crate::Error::NoUpgrade
    /// [`Error::Bpf`]: crate::Error::Bpf
    /// [`Error::Unfinished`]: crate::Error::Unfinished
    pub fn upgrade(&self) -> Result<Option<Upgrade>> {
        let lock = Lock::acquire()?;
        let Some(datapath) = Datapath::open(self)? else { return Ok(None) };
        datapath.upgrade(self, &lock).map(Some)
    }
}
