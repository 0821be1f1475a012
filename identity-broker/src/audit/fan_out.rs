//! Several sinks for each record.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{AuditError, AuditRecord, AuditSink};

/// What it means that a sink did not take a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The record was not written.
    #[default]
    Required,
    /// It is counted as lost, no more.
    BestEffort,
}

/// Gives each record to two sinks at the same time, either of which may be a fan-out again, or an `Option`.
///
/// ```
/// use identity_broker::{FanOut, LogAudit, Policy};
///
/// // The second may fail without anybody noticing; the first may not.
/// let both = FanOut::new((LogAudit, Policy::Required), (LogAudit, Policy::BestEffort));
/// assert_eq!(both.lost(), [0, 0]);
/// ```
#[derive(Debug, Default)]
pub struct FanOut<A, B> {
    first: (A, Policy),
    second: (B, Policy),
    lost: [AtomicU64; 2],
}

impl<A, B> FanOut<A, B> {
    /// Both.
    pub const fn new(first: (A, Policy), second: (B, Policy)) -> Self {
        Self { first, second, lost: [AtomicU64::new(0), AtomicU64::new(0)] }
    }

    /// The first of them.
    pub const fn first(&self) -> &A {
        &self.first.0
    }

    /// How many records each of them did not take.
    pub fn lost(&self) -> [u64; 2] {
        [self.lost[0].load(Ordering::Relaxed), self.lost[1].load(Ordering::Relaxed)]
    }

    fn judge(&self, which: usize, policy: Policy, result: Result<(), AuditError>) -> Result<(), AuditError> {
        let Err(error) = result else { return Ok(()) };
        self.lost[which].fetch_add(1, Ordering::Relaxed);
        match policy {
            Policy::Required => Err(error),
            Policy::BestEffort => {
                tracing::debug!(%error, sink = which, "a sink that need not take every record did not take one");
                Ok(())
            }
        }
    }
}

impl<A: AuditSink, B: AuditSink> AuditSink for FanOut<A, B> {
    async fn record(&self, record: &AuditRecord<'_>) -> Result<(), AuditError> {
        let (first, second) = futures::join!(self.first.0.record(record), self.second.0.record(record));
        let first = self.judge(0, self.first.1, first);
        let second = self.judge(1, self.second.1, second);
        first.and(second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Reason, audit::Verdict};

    struct Says(Result<(), AuditError>);

    impl AuditSink for Says {
        async fn record(&self, _: &AuditRecord<'_>) -> Result<(), AuditError> {
            self.0.clone()
        }
    }

    #[tokio::test]
    async fn the_failure_of_each_means_what_its_policy_says() {
        let time = jiff::Timestamp::UNIX_EPOCH;
        let record = AuditRecord::new(time, Verdict::Issued, Reason::Issued, [10, 0, 0, 1].into(), "r");
        for (one, other, taken) in [
            (Policy::Required, Policy::Required, false),
            (Policy::Required, Policy::BestEffort, true),
            (Policy::BestEffort, Policy::Required, false),
        ] {
            let fails = Says(Err(AuditError("full".to_owned())));
            let both = FanOut::new((Some(Says(Ok(()))), one), (fails, other));
            assert_eq!(both.record(&record).await.is_ok(), taken, "{one:?} {other:?}");
            assert_eq!(both.lost(), [0, 1]);
        }
        let nobody = FanOut::new((None::<Says>, Policy::Required), (None::<Says>, Policy::Required));
        nobody.record(&record).await.unwrap();
    }
}
