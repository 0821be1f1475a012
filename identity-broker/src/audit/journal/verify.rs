//! Whether a journal is whole: bytes in, findings out.
//!
//! [`Verifier`] reads the lines of the files of one journal in order. It goes on after a finding, from what the line itself
//! says, so that one change is one finding and what comes later is still looked at.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{
    chain::{Hash, Head, Line},
    encode::{CheckpointRecord, FORMAT, FileRecord},
    key::VerifyingKey,
};

/// The most findings that are kept; the rest is counted.
const MOST: usize = 1000;

/// What to hold a journal against.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Keys that checkpoints are signed with. With one, a journal without any checkpoint of it is a finding.
    pub keys: Vec<VerifyingKey>,
    /// Hashes of records that are known to have been written.
    pub heads: Vec<Hash>,
    /// The last checkpoint must not be older than this, at this instant: a tail that was cut off takes the checkpoints in it
    /// along, and they are written even when nothing else is.
    pub newest: Option<(SignedDuration, Timestamp)>,
    /// The files are all that there are, so that a missing one at the beginning is a finding.
    pub complete: bool,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A line does not have the form of a record.
    Malformed,
    /// A file does not end with the end of a line.
    Torn,
    /// A record does not have the hash that it should have: it, or the one before it, was changed.
    Altered,
    /// Records are missing.
    Missing,
    /// A record comes again, or out of order.
    Repeated,
    /// A file does not begin as it should.
    File,
    /// The signature of a checkpoint is wrong.
    Signature,
    /// There is no checkpoint of a given key, or none that is new enough.
    NoCheckpoint,
    /// A record that is known to have been written is not there.
    Anchor,
    /// The daemon itself found damage, or could not write.
    Reported,
}

/// Something that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// File, as it was named to the verifier; empty when it concerns all.
    pub file: String,
    /// Line, counted from 1; 0 when it concerns all.
    pub line: u64,
    /// Number of the record, as far as known.
    pub seq: Option<u64>,
    /// In words.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}:{}: ", self.file, self.line)?;
        } else if !self.file.is_empty() {
            write!(f, "{}: ", self.file)?;
        }
        f.write_str(&self.text)
    }
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Id of the journal.
    pub journal: Option<String>,
    /// The node that wrote it.
    pub node: Option<String>,
    /// How many files.
    pub files: u64,
    /// How many records.
    pub records: u64,
    /// How many of them are about tokens.
    pub token_records: u64,
    /// How many are about grants.
    pub grant_records: u64,
    /// The first record.
    pub first_seq: Option<u64>,
    /// The last record.
    pub last_seq: Option<u64>,
    /// Its hash.
    pub head: Option<Hash>,
    /// Checkpoints whose signature was verified.
    pub checkpoints: u64,
    /// Checkpoints of keys that were not given.
    pub unknown_checkpoints: u64,
    /// Up to this record a verified checkpoint or a given head proves that nothing was changed or left out.
    pub proven_through: Option<u64>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// How many more findings there are.
    pub more_findings: u64,
    /// What is worth knowing, and is not wrong.
    pub notes: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong.
    pub const fn is_whole(&self) -> bool {
        self.findings.is_empty()
    }

    /// What these files cannot prove, in words.
    pub fn limits(&self) -> Vec<String> {
        let mut limits = Vec::new();
        let after = self.proven_through.map_or(self.records > 0, |seq| self.last_seq.is_some_and(|last| last > seq));
        if self.proven_through.is_none() && self.records > 0 {
            limits.push(
                "nothing here is signed or anchored: whoever could write the files could have written all of this anew, \
                 or cut records off the end; give --public-key, or --head with a hash that was kept elsewhere"
                    .to_owned(),
            );
        } else if after {
            limits.push(format!(
                "the records after {} are bound to the ones before them, but whoever could write the files could have \
                 written them anew, or cut others off the end",
                self.proven_through.unwrap_or_default()
            ));
        }
        if let Some(first) = self.first_seq.filter(|first| *first > 1) {
            limits.push(format!("the records 1 to {} are not in these files", first - 1));
        }
        limits
    }
}

/// Reads a journal, line by line.
#[derive(Debug, Default)]
pub struct Verifier {
    options: Options,
    report: Report,
    file: String,
    line: u64,
    head: Option<Head>,
    /// What the hash of the last record should have been, when it is another: perhaps it is the hash that was changed.
    instead: Option<Hash>,
    file_number: Option<u64>,
    oldest: u64,
    first_file: Option<u64>,
    seen: Vec<Hash>,
    last_checkpoint: Option<Timestamp>,
    /// The first record from which on the chain is not what was written.
    broken: Option<u64>,
}

impl Verifier {
    /// With nothing read yet.
    pub fn new(options: Options) -> Self {
        Self { options, ..Self::default() }
    }

    /// A file begins.
    pub fn begin(&mut self, name: impl Into<String>) {
        self.end();
        self.file = name.into();
        self.line = 0;
        self.report.files += 1;
    }

    /// A line, with its end. The last one of a file may have none, which is a finding.
    pub fn line(&mut self, line: &[u8]) {
        self.line += 1;
        let Some(text) = line.strip_suffix(b"\n") else {
            let text = format!(
                "{} bytes without the end of a line: a write was interrupted, or the file was cut. A daemon that writes \
                 now has not finished; one that was killed repairs this when it starts, and says so in a record",
                line.len()
            );
            return self.find(Kind::Torn, None, text);
        };
        let Some(line) = Line::parse(text) else {
            return self.find(Kind::Malformed, None, "this is not a record".to_owned());
        };
        self.report.records += 1;
        self.report.token_records += u64::from(line.kind == "token");
        self.report.grant_records += u64::from(line.kind == "grant");
        let mut before = match self.head {
            Some(head) => {
                self.in_order(&line, head);
                head.hash
            }
            None => self.beginning(&line, text),
        };
        let instead = self.instead.take();
        if self.head.is_none_or(|head| line.seq == head.seq + 1) && !line.follows(&before) {
            if let Some(instead) = instead.filter(|instead| line.follows(instead)) {
                before = instead;
            } else {
                let text = format!("record {} is not what was written here, or the one before it is not", line.seq);
                self.find(Kind::Altered, Some(line.seq), text);
                self.instead = Some(line.after(&before));
            }
        }
        if self.options.heads.contains(&line.hash) {
            self.seen.push(line.hash);
            self.prove(line.seq);
        }
        match line.kind {
            "file" => self.file_record(&line, text, before),
            _ if self.line == 1 => {
                self.find(
                    Kind::File,
                    Some(line.seq),
                    "the file does not begin with a record of kind `file`".to_owned(),
                );
            }
            "checkpoint" => self.checkpoint(&line, text, before),
            "damage" | "lost" => {
                let text = format!("the daemon says: {}", String::from_utf8_lossy(text));
                self.find(Kind::Reported, Some(line.seq), text);
            }
            "repair" | "clock" | "late" => {
                let text = format!("record {}: {}", line.seq, String::from_utf8_lossy(text));
                self.note(text);
            }
            _ => {}
        }
        self.report.first_seq.get_or_insert(line.seq);
        self.report.last_seq = Some(line.seq);
        self.report.head = Some(line.hash);
        self.head = Some(line.head());
    }

    /// A file ends.
    fn end(&mut self) {
        if self.report.files > 0 && self.line == 0 {
            self.find(Kind::File, None, "the file is empty".to_owned());
        }
    }

    /// All has been read.
    pub fn finish(mut self) -> Report {
        self.end();
        (self.file, self.line) = (String::new(), 0);
        for head in self.options.heads.clone() {
            if !self.seen.contains(&head) {
                let text =
                    format!("the record of hash {head} is not here: it was cut off, or the journal was written anew");
                self.find(Kind::Anchor, None, text);
            }
        }
        if !self.options.keys.is_empty() && self.report.checkpoints == 0 {
            self.find(Kind::NoCheckpoint, None, "there is no checkpoint of the given key".to_owned());
        }
        if let Some((age, now)) = self.options.newest {
            let new_enough = self.last_checkpoint.is_some_and(|last| now.duration_since(last) <= age);
            if !new_enough {
                let last = self.last_checkpoint.map_or("there is none".to_owned(), |last| format!("it is of {last}"));
                let text = format!(
                    "the last checkpoint is older than {age:#}: {last}; what came after it was cut off, or the daemon does not run"
                );
                self.find(Kind::NoCheckpoint, None, text);
            }
        }
        if self.options.complete
            && let Some(first) = self.first_file.filter(|first| *first > self.oldest)
        {
            let text = match first - self.oldest {
                1 => format!("file {} is missing", self.oldest),
                _ => format!("files {} to {} are missing", self.oldest, first - 1),
            };
            self.find(Kind::Missing, None, text);
        }
        if let Some(seq) = self.broken {
            // What is after a break may be another chain.
            self.report.proven_through = self.report.proven_through.filter(|proven| *proven < seq);
        }
        self.report
    }

    /// What the first record that is read follows. Only the first one of a file says it.
    fn beginning(&mut self, line: &Line<'_>, text: &[u8]) -> Hash {
        let before = serde_json::from_slice::<FileRecord>(text).map_or(Hash::NONE, |record| record.follows);
        if line.seq == 1 && before != Hash::NONE {
            self.find(
                Kind::File,
                Some(1),
                "the first record of a journal follows nothing, and this one does".to_owned(),
            );
        }
        before
    }

    fn in_order(&mut self, line: &Line<'_>, head: Head) {
        let expected = head.seq + 1;
        if line.seq > expected {
            let text = match line.seq - expected {
                1 => format!("record {expected} is missing"),
                _ => format!("records {expected} to {} are missing", line.seq - 1),
            };
            self.find(Kind::Missing, Some(expected), text);
        } else if line.seq < expected {
            let text = format!("record {} comes after record {}: repeated, or out of order", line.seq, head.seq);
            self.find(Kind::Repeated, Some(line.seq), text);
        }
    }

    fn file_record(&mut self, line: &Line<'_>, text: &[u8], before: Hash) {
        let record = match serde_json::from_slice::<FileRecord>(text) {
            Ok(record) => record,
            Err(error) => {
                return self.find(
                    Kind::File,
                    Some(line.seq),
                    format!("the record of kind `file` cannot be read: {error}"),
                );
            }
        };
        if self.line != 1 {
            self.find(Kind::File, Some(line.seq), "a record of kind `file` that is not the first of one".to_owned());
        }
        if record.format != FORMAT {
            self.find(Kind::File, Some(line.seq), format!("format {} is not known here, only {FORMAT}", record.format));
        }
        if record.follows != before {
            self.find(
                Kind::File,
                Some(line.seq),
                format!("the file follows {}, which is not the record before", record.follows),
            );
        }
        if let Some(number) = self.file_number.filter(|number| number + 1 != record.file) {
            self.find(Kind::File, Some(line.seq), format!("file {} comes after file {number}", record.file));
        }
        if self.report.journal.as_ref().is_some_and(|journal| *journal != record.journal) {
            self.find(Kind::File, Some(line.seq), format!("another journal begins: {}", record.journal));
        }
        self.first_file.get_or_insert(record.file);
        self.file_number = Some(record.file);
        self.oldest = record.oldest;
        self.report.journal.get_or_insert(record.journal);
        self.report.node.get_or_insert(record.node);
    }

    fn checkpoint(&mut self, line: &Line<'_>, text: &[u8], before: Hash) {
        let Ok(record) = serde_json::from_slice::<CheckpointRecord>(text) else {
            return self.find(Kind::Signature, Some(line.seq), "the checkpoint cannot be read".to_owned());
        };
        let keys: Vec<_> = self.options.keys.iter().filter(|key| key.id() == record.key).cloned().collect();
        if keys.is_empty() {
            self.report.unknown_checkpoints += 1;
            return;
        }
        let head = Head { seq: line.seq - 1, hash: record.head };
        let another = self.report.journal.as_ref().is_some_and(|journal| *journal != record.journal);
        let signed = keys.iter().any(|key| key.verify(&record.journal, &head, &record.time, &record.signature));
        if another || record.head != before || !signed {
            let text = format!("the checkpoint of key {} does not vouch for what is here", record.key);
            return self.find(Kind::Signature, Some(line.seq), text);
        }
        self.report.checkpoints += 1;
        self.last_checkpoint = record.time.parse().ok();
        self.prove(line.seq);
    }

    fn prove(&mut self, seq: u64) {
        if self.broken.is_none() {
            self.report.proven_through = Some(seq);
        }
    }

    fn find(&mut self, kind: Kind, seq: Option<u64>, text: String) {
        if matches!(
            kind,
            Kind::Malformed
                | Kind::Torn
                | Kind::Altered
                | Kind::Missing
                | Kind::Repeated
                | Kind::File
                | Kind::Signature
        ) && self.line > 0
        {
            let here = seq.or_else(|| self.head.map(|head| head.seq + 1)).unwrap_or_default();
            self.broken.get_or_insert(here);
        }
        if self.report.findings.len() < MOST {
            self.report.findings.push(Finding { kind, file: self.file.clone(), line: self.line, seq, text });
        } else {
            self.report.more_findings += 1;
        }
    }

    fn note(&mut self, text: String) {
        if self.report.notes.len() < MOST {
            self.report.notes.push(text);
        }
    }
}

/// The report on files that are all in memory, in order.
pub fn verify<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>, options: Options) -> Report {
    let mut verifier = Verifier::new(options);
    for (name, bytes) in files {
        verifier.begin(name);
        bytes.split_inclusive(|byte| *byte == b'\n').for_each(|line| verifier.line(line));
    }
    verifier.finish()
}
