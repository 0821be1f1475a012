//! How the audit fares: the journal, and what each sink did not take.

use std::fmt::{self, Debug};

use identity_broker::audit::journal::{Checkpoint, Stats};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

/// Where records go.
pub(super) const SINKS: [&str; 3] = ["journal", "log", "events"];

/// Where records of tokens go, as far as it can be counted.
pub trait Journalled: Debug + Send + Sync + 'static {
    /// Of the journal and its last checkpoint; `None` without a journal.
    fn stats(&self) -> Option<(Stats, Option<Checkpoint>)>;

    /// How many records each sink (`journal`, `log`, `events`) did not take.
    fn lost(&self) -> Vec<(&'static str, u64)>;

    /// How publishing checkpoints goes; `None` where they are not published.
    fn published(&self) -> Option<Publication>;
}

/// How publishing checkpoints goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Publication {
    /// The last record that is published.
    pub seq: u64,
    /// Checkpoints that were published.
    pub writes: u64,
    /// Attempts that failed.
    pub failures: u64,
}

pub(super) fn export(registry: &mut Registry, journalled: impl Journalled) {
    registry.register_collector(Box::new(Exported(journalled)));
}

#[derive(Debug)]
struct Exported<J>(J);

impl<J: Journalled> Collector for Exported<J> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Audit records that a sink did not take; 0 unless tokens may leave without a record";
        let mut family = encoder.encode_descriptor("audit_sink_lost_records", help, None, MetricType::Counter)?;
        for (sink, lost) in self.0.lost() {
            ConstCounter::new(lost).encode(family.encode_family(&[("sink", sink)])?)?;
        }
        let Some((stats, checkpoint)) = self.0.stats() else { return Ok(()) };
        let checkpointed = checkpoint.map_or(0, |checkpoint| checkpoint.head.seq);
        for (name, help, unit, value) in [
            (
                "audit_journal_records",
                "Records of tokens, denials and grants written to the journal",
                None,
                stats.records,
            ),
            ("audit_journal_lost_records", "Records that could not be written to the journal", None, stats.lost),
            ("audit_journal_writes", "Writes to the journal", None, stats.writes),
            ("audit_journal_written", "What was written to the journal", Some(Unit::Bytes), stats.bytes),
            ("audit_journal_syncs", "Syncs of the journal to its disk", None, stats.syncs),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, unit.as_ref(), counter.metric_type())?)?;
        }
        for (name, help, value) in [
            ("audit_journal_waiting_records", "Records that wait to be written to the journal", stats.waiting),
            (
                "audit_journal_unsynced_records",
                "Records of the journal that a power failure may take",
                stats.seq.saturating_sub(stats.synced),
            ),
            (
                "audit_journal_unchecked_records",
                "Records of the journal after its last checkpoint",
                stats.seq.saturating_sub(checkpointed),
            ),
            ("audit_journal_failing", "Whether the last write to the journal failed", u64::from(stats.failing)),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let Some(published) = self.0.published() else { return Ok(()) };
        let publications = [
            ("audit_checkpoint_publications", "Checkpoints of the journal that were published", published.writes),
            (
                "audit_checkpoint_publication_failures",
                "Attempts to publish a checkpoint of the journal that failed",
                published.failures,
            ),
        ];
        for (name, help, value) in publications {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let help = "Records of the journal after its last published checkpoint";
        let gauge = ConstGauge::new(i64::try_from(stats.seq.saturating_sub(published.seq)).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor("audit_unpublished_records", help, None, gauge.metric_type())?)?;
        Ok(())
    }
}
