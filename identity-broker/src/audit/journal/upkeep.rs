//! What the thread does beside records: files begin and follow each other, what is torn is cut off, checkpoints, the end.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    sync::{Arc, atomic::Ordering},
};

use jiff::Timestamp;

use super::{
    JournalConfig,
    disk::JournalFile,
    encode::Note,
    queue::Taken,
    syncing::MOVED,
    tally::Line,
    writer::{Open, Unsaid, Writer},
};

impl Writer {
    /// Cuts off what is no record at the end of the file.
    fn mend(&mut self) -> io::Result<()> {
        if self.torn
            && let Some(open) = &self.open
        {
            open.file.set_len(open.length)?;
        }
        self.torn = false;
        Ok(())
    }

    /// Sees to it that there is a file to write to.
    pub(super) fn prepare(&mut self, now: Timestamp) -> io::Result<()> {
        self.mend()?;
        let mut wrong = self.shared.syncing.take_wrong().map(|(file, text)| Unsaid::Damage { file, text });
        if let Some(open) = &self.open {
            let found = open.file.metadata()?;
            let text = if found.nlink() == 0 {
                Some("the file was removed while it was written; records after its last copy are gone".to_owned())
            } else if found.len() != open.length {
                Some(format!("somebody else changed the file: it has {} bytes instead of {}", found.len(), open.length))
            } else if self.config.sync_interval.is_zero() && !self.held.directory.has(open.number, &open.file) {
                Some(MOVED.to_owned())
            } else {
                None
            };
            wrong = wrong.or(text.map(|text| Unsaid::Damage { file: open.number, text }));
        }
        if let Some(damage) = wrong {
            self.unsaid.push(damage);
            self.open = None;
        }
        let full = match &self.open {
            None => true,
            Some(open) => is_full(open, &self.config, now),
        };
        if !full {
            return Ok(());
        }
        let Err(error) = self.rotate(now) else { return Ok(()) };
        match &self.open {
            // Better a file that is too large than no token.
            Some(open) if open.length < self.config.max_size.saturating_mul(2) => Ok(()),
            _ => Err(error),
        }
    }

    fn rotate(&mut self, now: Timestamp) -> io::Result<()> {
        if self.open.is_some() && self.config.key.is_some() && self.since_checkpoint > 0 {
            self.checkpoint();
        }
        let mut number = self.last_number + 1;
        let file = loop {
            match JournalFile::create(&self.held.directory, number, &self.config) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                file => break Arc::new(file?),
            }
        };
        let kept = self.held.directory.files()?;
        let keep = usize::try_from(self.config.keep.max(2)).unwrap_or(usize::MAX);
        let oldest = kept.get(kept.len().saturating_sub(keep)).copied().unwrap_or(number);
        let before = self.begin();
        self.note(now, &Note::File { file: number, oldest });
        let former = self.open.replace(Open { number, file, length: 0, began: now });
        let (done, result) = self.put(0);
        if let Err(error) = result.and_then(|()| self.make_last()) {
            (self.open, self.encoder.head) = (former, before);
            let _ = self.held.directory.remove(number);
            return Err(error);
        }
        self.settle(before, done);
        self.last_number = number;
        if let Some(open) = &self.open {
            if self.config.sync_interval.is_zero() {
                self.shared.counts.synced.store(self.encoder.head.seq, Ordering::Relaxed);
            } else {
                self.shared.syncing.dirty(number, &open.file, self.encoder.head.seq, true);
            }
        }
        for old in kept.into_iter().filter(|old| *old < oldest) {
            if let Err(error) = self.held.directory.remove(old) {
                tracing::warn!(%error, file = old, "an old file of the audit journal cannot be removed");
            }
        }
        Ok(())
    }

    /// A new file is on the disk with its name, where that is promised; else the thread sees to it.
    fn make_last(&self) -> io::Result<()> {
        match &self.open {
            Some(open) if self.config.sync_interval.is_zero() => {
                open.file.sync_data().and_then(|()| self.held.directory.sync())
            }
            _ => Ok(()),
        }
    }

    /// Signs what there is, if there is a key, and says where the journal is.
    pub(super) fn checkpoint(&mut self) {
        let now = self.clock.now();
        if self.config.key.is_none() && self.published == self.encoder.head {
            return;
        }
        self.since_checkpoint = 0;
        if let Err(error) = self.mend() {
            tracing::debug!(%error, "no checkpoint in the audit journal");
            return;
        }
        let before = self.begin();
        let checkpoint = self.encoder.checkpoint(now, &mut self.out);
        if !self.out.is_empty() {
            self.mark(Line::Note);
            if let (_, Err(error)) = self.put_all(before) {
                tracing::debug!(%error, "no checkpoint in the audit journal");
                return;
            }
        }
        self.published = checkpoint.head;
        self.shared.checkpoints.send_replace(Some(checkpoint));
    }

    pub(super) fn stop(&mut self) {
        if !self.unsaid.is_empty() && self.begun.is_none() {
            let _ = self.write(&Taken::default());
        }
        let now = self.clock.now();
        if self.mend().is_ok() {
            let before = self.begin();
            self.note(now, &Note::Stop);
            let _ = self.put_all(before);
        }
        self.checkpoint();
        if let Some(open) = &self.open
            && let Err(error) = open.file.sync_data()
        {
            tracing::warn!(%error, "the audit journal cannot be synced");
        }
    }
}

pub(super) fn is_full(open: &Open, config: &JournalConfig, now: Timestamp) -> bool {
    open.length >= config.max_size || now.duration_since(open.began) > config.max_age
}
