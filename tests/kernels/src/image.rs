//! The image of a kernel in the form that QEMU boots. Newer arm64 kernels come as an EFI program
//! that unpacks itself: only firmware can run that, so it is unpacked here.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Unpacks `image` if it is such a program, and returns others as they are.
pub(crate) fn bootable(image: Vec<u8>) -> Result<Vec<u8>> {
    let Some((method, payload)) = packed(&image) else { return Ok(image) };
    match method {
        "gzip" => unpack("gzip", payload),
        "zstd" => unpack("zstd", payload),
        "xzkern" => unpack("xz", payload),
        other => bail!("the image is packed by {other}, which is not known here"),
    }
}

/// How the payload is packed, and the payload. The header: "MZ", at 4 "zimg", at 8 the payload's
/// place and size, at 24 the method's name, which a zero ends.
fn packed(image: &[u8]) -> Option<(&str, &[u8])> {
    let number = |at: usize| {
        let bytes = image.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    if !image.starts_with(b"MZ") || image.get(4..8)? != b"zimg" {
        return None;
    }
    let (start, size) = (number(8)?, number(12)?);
    let method = image.get(24..56)?.split(|&byte| byte == 0).next()?;
    Some((std::str::from_utf8(method).ok()?, image.get(start..start.checked_add(size)?)?))
}

/// What `program --decompress` makes of `packed`.
pub(crate) fn unpack(program: &str, packed: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(["--decompress", "--stdout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}; install it with: tools/setup kernels"))?;
    let mut input = child.stdin.take().expect("it is piped");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(packed));
        child.wait_with_output()
    })?;
    // What follows the packed data is no reason to refuse it.
    if output.stdout.is_empty() {
        bail!("{program} cannot unpack {} bytes", packed.len());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_other_images_alone() {
        assert_eq!(bootable(b"MZ and more of it".to_vec()).unwrap(), b"MZ and more of it");
    }

    #[test]
    fn finds_the_payload() {
        let mut image = vec![0; 64];
        image[..2].copy_from_slice(b"MZ");
        image[4..8].copy_from_slice(b"zimg");
        image[8] = 60;
        image[12] = 4;
        image[24..28].copy_from_slice(b"zstd");
        image[60..].copy_from_slice(b"data");
        assert_eq!(packed(&image), Some(("zstd", b"data".as_slice())));
        image[12] = 5;
        assert_eq!(packed(&image), None);
    }
}
