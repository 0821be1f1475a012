//! What survives a restart: how far the journal was read, and what was counted up to there. A function of the journal, so that
//! losing it costs a reading of the journal from its beginning.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::event::Fixed;
use crate::audit::journal::{Cursor, Item, Reader, chain::Hash};

const VERSION: u32 = 1;
/// Its name, in the directory of the journal.
const NAME: &str = "events.json";
/// More than a book ever fills.
const LARGEST: u64 = 64 << 20;

/// What a [`Book`](super::Book) is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub(super) version: u32,
    pub(super) cursor: Option<Cursor>,
    /// Of the record at the cursor: a power failure may take the end of a journal, and other records get its numbers.
    pub(super) hash: Option<Hash>,
    pub(super) journal: String,
    pub(super) each: bool,
    pub(super) epoch: u64,
    pub(super) series: Vec<Kept>,
}

impl State {
    pub(super) const fn new(journal: String, each: bool) -> Self {
        Self { version: VERSION, cursor: None, hash: None, journal, each, epoch: 0, series: Vec::new() }
    }

    /// How far the journal was read.
    pub const fn cursor(&self) -> Option<&Cursor> {
        self.cursor.as_ref()
    }
}

/// A series.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) digest: String,
    pub(super) epoch: u64,
    pub(super) fixed: Fixed,
    pub(super) count: u64,
    pub(super) last: Timestamp,
    /// The count that the Event is known to have.
    pub(super) told: u64,
}

/// The state cannot be kept.
#[derive(Debug, Error)]
#[error("{path}: {what}: {error}")]
pub struct StateError {
    /// Which file.
    pub path: String,
    /// What was tried.
    pub what: &'static str,
    /// Why not.
    pub error: io::Error,
}

/// The file beside the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateFile {
    directory: PathBuf,
}

impl StateFile {
    /// In the directory of a journal.
    pub fn beside(journal: impl Into<PathBuf>) -> Self {
        Self { directory: journal.into() }
    }

    /// The directory of the journal.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.directory.join(NAME)
    }

    fn error(&self, what: &'static str) -> impl FnOnce(io::Error) -> StateError {
        let path = self.path().display().to_string();
        move |error| StateError { path, what, error }
    }

    /// What was kept, if that is a state of the journal as it is now. Otherwise the reason why not, when there was one. Blocks.
    pub fn load(&self) -> (Option<State>, Option<String>) {
        let path = self.path();
        let text = match fs::metadata(&path).and_then(|about| match about.len() {
            0..=LARGEST => fs::read(&path),
            _ => Err(io::Error::other("it is too large")),
        }) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return (None, None),
            Err(error) => return (None, Some(error.to_string())),
        };
        match serde_json::from_slice::<State>(&text) {
            Err(error) => (None, Some(error.to_string())),
            Ok(state) if state.version != VERSION => (None, Some(format!("it has version {}", state.version))),
            Ok(state) => match is_of_this_journal(&self.directory, &state) {
                Ok(true) => (Some(state), None),
                Ok(false) => (None, Some("the end of the journal was lost and written anew".to_owned())),
                Err(error) => (None, Some(format!("the journal cannot be read: {error}"))),
            },
        }
    }

    /// Keeps it: readers see the old one or this. Blocks.
    pub fn save(&self, state: &State) -> Result<(), StateError> {
        let temporary = self.directory.join(format!(".{NAME}.tmp"));
        let text =
            serde_json::to_vec(state).map_err(io::Error::other).map_err(self.error("cannot be put into words"))?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(self.error("a file beside it cannot be made"))?;
        file.write_all(&text).and_then(|()| file.sync_data()).map_err(self.error("cannot be written"))?;
        fs::rename(&temporary, self.path()).map_err(self.error("cannot be put in place"))?;
        // Its name is to last as well; when not, the one before is there, and is as good.
        let _ = File::open(&self.directory).and_then(|directory| directory.sync_all());
        Ok(())
    }
}

/// Whether the record at the cursor is the one that was read; when its file is gone, nothing says the contrary.
fn is_of_this_journal(directory: &Path, state: &State) -> io::Result<bool> {
    let (Some(cursor), Some(hash)) = (&state.cursor, &state.hash) else { return Ok(true) };
    let before = Cursor { seq: cursor.seq.saturating_sub(1), ..cursor.clone() };
    match Reader::new(directory, Some(before)).read()? {
        Some(Item::Record(line, _)) => Ok(line.seq == cursor.seq && line.hash == *hash),
        Some(Item::Gap { .. } | Item::Another) => Ok(true),
        None => Ok(false),
    }
}
