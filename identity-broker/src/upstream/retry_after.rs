//! For how long an upstream wants to be left alone.

use std::time::Duration;

use http::{HeaderMap, header::RETRY_AFTER};

/// Seconds in a `Retry-After`, at most an hour.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.min(3600)))
}
