//! Errors of libbpf as errors of this crate.

use std::io;

use crate::error::Error;

impl Error {
    pub(super) fn bpf(
        operation: &'static str,
        object: impl Into<String>,
        source: libbpf_rs::Error,
    ) -> Self {
        let object = object.into();
        match source.kind() {
            libbpf_rs::ErrorKind::PermissionDenied => {
                let source = io::Error::new(io::ErrorKind::PermissionDenied, source);
                Self::Permission { operation, object, source }
            }
            _ => Self::Bpf { operation, object, source: source.into() },
        }
    }
}
