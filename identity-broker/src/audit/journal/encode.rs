//! The records of a journal as lines. Pure: the writer hands in times, and writes what comes out.

use std::sync::Arc;

use jiff::Timestamp;

use super::{
    chain::{Hash, Head},
    key::{Checkpoint, SigningKey},
};
use crate::audit::{AuditRecord, json};

/// Version of the format.
pub const FORMAT: u64 = 1;

/// Of a torn tail, what is kept in the record that says so, in bytes.
pub(super) const TORN_KEPT: usize = 1024;

/// What a journal says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note<'a> {
    /// The first record of each file.
    File {
        /// Number of the file, counted from 1.
        file: u64,
        /// Number of the oldest file that is kept from now on.
        oldest: u64,
    },
    /// A process began to write.
    Start {
        /// Its version.
        version: &'a str,
    },
    /// The process that wrote stopped in order.
    Stop,
    /// What followed the last whole record of a file was cut off: a process or the machine had stopped while writing it.
    /// Nobody had been told that it was written.
    Repair {
        /// The file.
        file: u64,
        /// How many bytes.
        bytes: u64,
        /// The first of them.
        torn: &'a [u8],
    },
    /// Something is wrong with what was written before; it was left as it is.
    Damage {
        /// The file.
        file: u64,
        /// What.
        text: &'a str,
    },
    /// The clock was set back.
    Clock {
        /// What it said before.
        before: Timestamp,
    },
    /// Records could not be written. What became of their tokens is a matter of the daemon's `--audit-on-failure`.
    Lost {
        /// How many.
        records: u64,
        /// Since when.
        since: Timestamp,
        /// Why, the first time.
        error: &'a str,
    },
    /// The records from `from` to `to` were written after their requests had been given up as not recorded.
    Late {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
}

/// Writes the lines of a journal.
#[derive(Debug)]
pub struct Encoder {
    /// The last record.
    pub head: Head,
    journal: String,
    node: String,
    key: Option<Arc<SigningKey>>,
    scratch: Vec<u8>,
}

impl Encoder {
    /// Goes on after `head` in the journal of this id.
    pub fn new(journal: impl Into<String>, node: impl Into<String>, head: Head, key: Option<Arc<SigningKey>>) -> Self {
        Self { head, journal: journal.into(), node: node.into(), key, scratch: Vec::with_capacity(512) }
    }

    /// Appends a record that [`token_body`] has prepared.
    pub fn token(&mut self, body: &[u8], into: &mut Vec<u8>) {
        self.head.seal(body, into);
    }

    /// Appends what a journal says about itself.
    pub fn note(&mut self, time: Timestamp, note: &Note<'_>, into: &mut Vec<u8>) {
        let follows = self.head.hash;
        let body = &mut self.scratch;
        body.clear();
        let number = |body: &mut Vec<u8>, key: &str, number: u64| {
            body.extend_from_slice(key.as_bytes());
            json::decimal(body, number);
        };
        match note {
            Note::File { file, oldest } => {
                begin(body, "file", time);
                number(body, ",\"format\":", FORMAT);
                json::field(body, b",\"journal\":", &self.journal);
                json::field(body, b",\"node\":", &self.node);
                number(body, ",\"file\":", *file);
                number(body, ",\"oldest\":", *oldest);
                json::field(body, b",\"follows\":", &follows.to_string());
            }
            Note::Start { version } => {
                begin(body, "start", time);
                json::field(body, b",\"version\":", version);
                if let Some(key) = &self.key {
                    json::field(body, b",\"key\":", key.id());
                }
            }
            Note::Stop => begin(body, "stop", time),
            Note::Repair { file, bytes, torn } => {
                begin(body, "repair", time);
                number(body, ",\"file\":", *file);
                number(body, ",\"bytes\":", *bytes);
                let torn = &torn[..torn.len().min(TORN_KEPT)];
                json::field(body, b",\"torn\":", &String::from_utf8_lossy(torn));
            }
            Note::Damage { file, text } => {
                begin(body, "damage", time);
                number(body, ",\"file\":", *file);
                json::field(body, b",\"text\":", text);
            }
            Note::Clock { before } => {
                begin(body, "clock", time);
                instant(body, ",\"before\":\"", *before);
            }
            Note::Lost { records, since, error } => {
                begin(body, "lost", time);
                number(body, ",\"records\":", *records);
                instant(body, ",\"since\":\"", *since);
                json::field(body, b",\"error\":", error);
            }
            Note::Late { from, to } => {
                begin(body, "late", time);
                number(body, ",\"from\":", *from);
                number(body, ",\"to\":", *to);
            }
        }
        self.head.seal(&self.scratch, into);
    }

    /// Appends a signed checkpoint, if there is a key, and says where the journal is.
    pub fn checkpoint(&mut self, time: Timestamp, into: &mut Vec<u8>) -> Checkpoint {
        let mut checkpoint = Checkpoint { time, journal: self.journal.clone(), head: self.head, key: None };
        if let Some(key) = &self.key {
            let mut text = Vec::with_capacity(32);
            json::micros(&mut text, time);
            let signature = key.sign(&self.journal, &self.head, &String::from_utf8_lossy(&text));
            checkpoint.key = Some(key.id().to_owned());
            let body = &mut self.scratch;
            body.clear();
            begin(body, "checkpoint", time);
            json::field(body, b",\"journal\":", &self.journal);
            json::field(body, b",\"head\":", &self.head.hash.to_string());
            json::field(body, b",\"key\":", key.id());
            json::field(body, b",\"signature\":", &signature);
            self.head.seal(&self.scratch, into);
            // What is said elsewhere covers the checkpoint, too.
            checkpoint.head = self.head;
        }
        checkpoint
    }
}

/// The fields of a token's record, ready to be put into the chain.
pub fn token_body(record: &AuditRecord<'_>) -> Vec<u8> {
    let mut body = Vec::with_capacity(1024);
    begin(&mut body, "token", record.time);
    body.push(b',');
    json::fields(&mut body, record);
    body
}

/// Appends the first fields of a record.
pub(in crate::audit) fn begin(body: &mut Vec<u8>, kind: &str, time: Timestamp) {
    body.extend_from_slice(b"\"kind\":\"");
    body.extend_from_slice(kind.as_bytes());
    body.extend_from_slice(b"\",\"time\":\"");
    json::micros(body, time);
    body.push(b'"');
}

fn instant(body: &mut Vec<u8>, key: &str, time: Timestamp) {
    body.extend_from_slice(key.as_bytes());
    json::micros(body, time);
    body.push(b'"');
}

/// What the first record of a file says.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct FileRecord {
    /// When.
    pub time: Timestamp,
    /// Version of the format.
    pub format: u64,
    /// Id of the journal.
    pub journal: String,
    /// The node.
    pub node: String,
    /// Number of the file.
    pub file: u64,
    /// The oldest file that was kept then.
    pub oldest: u64,
    /// Hash of the last record of the file before.
    pub follows: Hash,
}

/// What a checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct CheckpointRecord {
    /// When, as it stands there.
    pub time: String,
    /// Id of the journal.
    pub journal: String,
    /// Hash of the record before it.
    pub head: Hash,
    /// Name of the key.
    pub key: String,
    /// The signature, in base64.
    pub signature: String,
}
