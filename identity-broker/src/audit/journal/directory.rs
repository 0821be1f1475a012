//! The files of a journal: which there are, who may write them, what the last process left behind.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use thiserror::Error;

use super::{
    chain::{Hash, Head, Line},
    disk::JournalFile,
    encode::{FileRecord, TORN_KEPT},
};

const LOCK: &str = "lock";
const PREFIX: &str = "journal-";
const SUFFIX: &str = ".jsonl";

/// A journal cannot be written.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The directory cannot be used.
    #[error("audit journal {path}: {what}: {error}")]
    Io {
        /// Which file or directory.
        path: String,
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// Another process writes it.
    #[error(
        "audit journal {0}: another process writes here (it holds the lock); give each daemon a directory of its own"
    )]
    InUse(String),
    /// The threads that write cannot be started.
    #[error("audit journal: cannot start its threads: {0}")]
    Thread(io::Error),
}

fn io_error(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.display().to_string();
    move |error| JournalError::Io { path, what, error }
}

/// The name of file `number`.
pub fn file_name(number: u64) -> String {
    format!("{PREFIX}{number:08}{SUFFIX}")
}

/// The number of the file that is named so.
pub fn file_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    (digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// The files of the journal in `path`, the oldest first.
pub fn files(path: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(path)? {
        numbers.extend(entry?.file_name().to_str().and_then(file_number));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A directory that this process alone writes.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Makes it, if need be, and takes the lock.
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(io_error(path, "the directory cannot be made"))?;
        let name = path.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&name)
            .map_err(io_error(&name, "the directory cannot be written"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(JournalError::InUse(path.display().to_string())),
            Err(TryLockError::Error(error)) => Err(io_error(&name, "the lock cannot be taken")(error)),
        }
    }

    pub(super) fn files(&self) -> io::Result<Vec<u64>> {
        files(&self.path)
    }

    fn path_of(&self, number: u64) -> PathBuf {
        self.path.join(file_name(number))
    }

    pub(super) fn create(&self, number: u64) -> io::Result<File> {
        OpenOptions::new().create_new(true).append(true).mode(0o600).open(self.path_of(number))
    }

    /// Whether file `number` is still the one that is open.
    pub(super) fn has(&self, number: u64, open: &JournalFile) -> bool {
        let there = fs::metadata(self.path_of(number)).map(|there| (there.dev(), there.ino()));
        let open = open.metadata().map(|open| (open.dev(), open.ino()));
        there.is_ok_and(|there| open.is_ok_and(|open| there == open))
    }

    pub(super) fn remove(&self, number: u64) -> io::Result<()> {
        fs::remove_file(self.path_of(number))
    }

    /// Makes names that came and went last.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    /// What the process before left: where to go on, and what has to be said about it.
    pub(super) fn recover(&self) -> Result<Recovered, JournalError> {
        let mut numbers = self.files().map_err(io_error(&self.path, "the directory cannot be read"))?;
        let mut torn = None;
        while let Some(last) = numbers.pop() {
            let mut recovered = self.resume(last)?;
            if recovered.head != BEGINNING || recovered.damage.is_some() {
                recovered.torn = recovered.torn.or(torn);
                return Ok(recovered);
            }
            // A file that was made, and not even its first record was written: the one before is the last.
            let path = self.path_of(last);
            self.remove(last).map_err(io_error(&path, "the file, which holds no record, cannot be removed"))?;
            torn = torn.or(recovered.torn);
        }
        Ok(Recovered { torn, ..Recovered::default() })
    }

    fn resume(&self, number: u64) -> Result<Recovered, JournalError> {
        let path = self.path_of(number);
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .open(&path)
            .map_err(io_error(&path, "the file cannot be opened for writing"))?;
        let read = Tail::read(&file).map_err(io_error(&path, "the file cannot be read"))?;
        let mut recovered = Recovered { number, head: read.head, journal: read.journal, ..Recovered::default() };
        if let Some(text) = read.damage {
            // Left as it is, for whoever looks into it. What comes goes into a new file, bound to the last record there is.
            recovered.damage = Some(text);
            return Ok(recovered);
        }
        if read.length > read.whole {
            // Nobody was told that this was written.
            file.set_len(read.whole).map_err(io_error(&path, "the torn end of the file cannot be cut off"))?;
            recovered.torn = Some((read.length - read.whole, read.torn));
        }
        if let Some(record) = read.first {
            recovered.resumed = Some(Resumed { file, length: read.whole, began: record.time });
        }
        recovered.last_time = read.last_time;
        Ok(recovered)
    }
}

/// Where to go on.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// The last file; 0 without any.
    pub(super) number: u64,
    pub(super) head: Head,
    /// The id of the journal.
    pub(super) journal: Option<String>,
    /// The last file, when it can be gone on with.
    pub(super) resumed: Option<Resumed>,
    /// How much was cut off its end, and the first of that.
    pub(super) torn: Option<(u64, Vec<u8>)>,
    /// What is wrong with it.
    pub(super) damage: Option<String>,
    /// When the last record was made.
    pub(super) last_time: Option<Timestamp>,
}

#[derive(Debug)]
pub(super) struct Resumed {
    pub(super) file: File,
    pub(super) length: u64,
    pub(super) began: Timestamp,
}

/// What a file holds, as far as going on with it needs to know.
#[derive(Debug, Default)]
struct Tail {
    first: Option<FileRecord>,
    journal: Option<String>,
    head: Head,
    last_time: Option<Timestamp>,
    length: u64,
    /// So many bytes are whole records, each bound to the one before.
    whole: u64,
    torn: Vec<u8>,
    damage: Option<String>,
}

impl Tail {
    fn read(file: &File) -> io::Result<Self> {
        #[derive(serde::Deserialize)]
        struct Time {
            time: Timestamp,
        }
        let mut reader = BufReader::with_capacity(1 << 18, file);
        reader.seek(SeekFrom::Start(0))?;
        let mut this = Self { length: file.metadata()?.len(), ..Self::default() };
        let (mut buffer, mut last, mut count) = (Vec::new(), Vec::new(), 0_u64);
        loop {
            buffer.clear();
            // A record is some kilobytes at most; a file of something else must not fill the memory.
            if (&mut reader).take(1 << 20).read_until(b'\n', &mut buffer)? == 0 {
                break;
            }
            count += 1;
            let parsed = buffer.strip_suffix(b"\n").and_then(Line::parse);
            let Some(line) = parsed else {
                if this.torn.is_empty() {
                    this.torn = buffer.iter().copied().take(TORN_KEPT).collect();
                }
                continue;
            };
            if !this.torn.is_empty() {
                this.damage.get_or_insert_with(|| format!("records follow line {}, which is none", count - 1));
            }
            if count == 1 {
                this.first = serde_json::from_slice(&buffer).ok();
                this.journal = this.first.as_ref().map(|record| record.journal.clone());
            }
            let before = this.first.as_ref().filter(|_| count == 1).map_or(this.head.hash, |record| record.follows);
            if !line.follows(&before) || (count > 1 && line.seq != this.head.seq + 1) {
                this.damage
                    .get_or_insert_with(|| format!("record {} (line {count}) is not what was written", line.seq));
            }
            this.head = line.head();
            this.whole += buffer.len() as u64;
            std::mem::swap(&mut last, &mut buffer);
        }
        if this.first.is_none() && this.head != BEGINNING {
            this.damage.get_or_insert_with(|| "the file does not begin with a record of kind `file`".to_owned());
        }
        this.last_time = serde_json::from_slice::<Time>(&last).ok().map(|record| record.time);
        Ok(this)
    }
}

/// Before the first record.
const BEGINNING: Head = Head { seq: 0, hash: Hash::NONE };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for number in [1, 99_999_999, 100_000_000, u64::MAX] {
            assert_eq!(file_number(&file_name(number)), Some(number));
        }
        for name in ["lock", "journal-1.jsonl", "journal-0000000a.jsonl", "journal-00000001.jsonl.gz", "journal-.jsonl"]
        {
            assert_eq!(file_number(name), None, "{name}");
        }
    }
}
