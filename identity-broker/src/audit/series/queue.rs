//! Without a journal: records wait in memory, as many as there is room for. What is more is counted.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

use super::{Book, Seen};
use crate::audit::{AuditError, AuditRecord, AuditSink, journal::encode::token_body};

/// Records that wait; each takes some 800 bytes. They are taken out five times a second.
pub(super) const MOST: usize = 1024;

/// A sink that takes every record that there is room for, and never fails: nobody waits for Events.
#[derive(Debug, Default)]
pub struct Queue {
    records: Mutex<VecDeque<Vec<u8>>>,
    /// About how many those are: a record for which there is no room is not even formatted.
    waiting: AtomicUsize,
    more: Notify,
    lost: AtomicU64,
    taken: AtomicU64,
}

impl Queue {
    /// How many records there was no room for.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Completes when there is something.
    pub(super) async fn more(&self) {
        self.more.notified().await;
    }

    /// Puts what waits into the book, as far as it has room; whether anything is left.
    pub(super) fn drain(&self, book: &mut Book, most: usize) -> bool {
        for _ in 0..most {
            if !book.has_room() {
                return false;
            }
            let next = self.records.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(line) = next else { return false };
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            let seq = self.taken.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some(seen) = Seen::of_line(seq, &line) {
                book.take(&seen);
            }
        }
        true
    }
}

impl AuditSink for Queue {
    fn record(&self, record: &AuditRecord<'_>) -> impl Future<Output = Result<(), AuditError>> + Send {
        if self.waiting.load(Ordering::Relaxed) >= MOST {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return std::future::ready(Ok(()));
        }
        let body = token_body(record);
        let mut line = Vec::with_capacity(body.len() + 2);
        line.push(b'{');
        line.extend_from_slice(&body);
        line.push(b'}');
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if records.len() < MOST {
            records.push_back(line);
            self.waiting.fetch_add(1, Ordering::Relaxed);
            drop(records);
            self.more.notify_one();
        } else {
            drop(records);
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        std::future::ready(Ok(()))
    }
}
