//! The log as the audit: a record that the log has lost was not written.

use identity_broker::{AuditError, AuditRecord, AuditSink, LogAudit};
use identity_process::lost_log_lines;

/// [`LogAudit`], and what has become of its line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessAudit;

impl AuditSink for ProcessAudit {
    async fn record(&self, record: &AuditRecord<'_>) -> Result<(), AuditError> {
        let before = lost_log_lines();
        LogAudit.record(record).await?;
        // Perhaps it was another line; then this token is refused once without need, while the log is in trouble.
        if lost_log_lines() == before {
            return Ok(());
        }
        Err(AuditError("the log (standard error) takes no more: its disk is full, or nobody reads it".to_owned()))
    }
}
