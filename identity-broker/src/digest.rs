//! Names for things that must not be shown.

use aws_lc_rs::digest::{SHA256, digest};

/// The first 64 bits of the SHA-256 of `bytes`, as 16 hexadecimal digits.
pub(crate) fn hex16(bytes: &[u8]) -> String {
    format!("{:016x}", first64(bytes))
}

/// The first 64 bits of the SHA-256 of `bytes`.
pub(crate) fn first64(bytes: &[u8]) -> u64 {
    digest(&SHA256, bytes).as_ref().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
