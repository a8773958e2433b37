//! Descriptors that outlive `execve(2)`.

use std::os::fd::{OwnedFd, RawFd};

use crate::error::{Error, Result};
use crate::sys;

/// Takes a descriptor that the program left open which this process was before `execve(2)`. It
/// can be taken once, and is closed at the next `execve(2)`.
///
/// # Errors
///
/// [`Error::System`]: there is no such descriptor, it is one of the first three, or somebody in
/// this process owns it, which shows in its flag `FD_CLOEXEC`.
pub fn inherited(number: RawFd) -> Result<OwnedFd> {
    sys::take_inherited(number)
        .map_err(|error| Error::system("take the inherited descriptor", number.to_string(), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::fd::{AsRawFd as _, IntoRawFd as _};

    use rustix::io::{FdFlags, fcntl_setfd};

    #[test]
    fn a_descriptor_is_taken_once() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        assert!(inherited(writer.as_raw_fd()).is_err(), "it is owned");
        fcntl_setfd(&writer, FdFlags::empty()).unwrap();
        let number = writer.into_raw_fd();
        let taken = inherited(number).unwrap();
        assert!(inherited(number).is_err(), "it was taken");
        File::from(taken).write_all(b"it").unwrap();
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "it", "and closed");
    }

    #[test]
    fn what_is_no_descriptor_is_refused() {
        for number in [-1, 0, 1, 2, 1_000_000] {
            assert!(inherited(number).is_err(), "{number}");
        }
    }
}
