//! Reading a journal from where one has got to, while it is written: for whoever passes records on and must miss none.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    chain::Line,
    directory::{file_name, files},
    encode::FileRecord,
    tally::Place,
};

/// How far one has read. To be kept after what was read has been dealt with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Id of the journal.
    pub journal: String,
    /// Number of the file.
    pub file: u64,
    /// Number of the last record that was read.
    pub seq: u64,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A record, and its text without the end of the line.
    Record(Line<'a>, &'a [u8]),
    /// Records that are gone: their file was removed before they were read, or they were cut out.
    Gap {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// Another journal begins: the directory was emptied.
    Another,
}

/// Reads records in order. Blocks as files do; sees only whole lines, which are never taken back.
#[derive(Debug)]
pub struct Reader {
    directory: PathBuf,
    cursor: Option<Cursor>,
    open: Option<(u64, BufReader<File>)>,
    /// Where the next line begins in the open file.
    offset: u64,
    buffer: Vec<u8>,
    /// The line in the buffer is yet to be given: a gap was said before it.
    held: bool,
}

impl Reader {
    /// After `cursor`, or from the beginning.
    pub fn new(directory: impl AsRef<Path>, cursor: Option<Cursor>) -> Self {
        let directory = directory.as_ref().to_owned();
        Self { directory, cursor, open: None, offset: 0, buffer: Vec::new(), held: false }
    }

    /// After `cursor`, which is where that place is: what is before it in its file is not read again.
    pub fn at(directory: impl AsRef<Path>, cursor: Cursor, place: &Place) -> Self {
        let mut this = Self::new(directory, Some(cursor));
        // If it cannot be opened there, it is read from its beginning.
        if this.enter(place.file).is_ok()
            && let Some((_, reader)) = &mut this.open
        {
            let there = reader.get_ref().metadata().is_ok_and(|about| about.len() >= place.offset)
                && reader.seek(SeekFrom::Start(place.offset)).is_ok();
            if there {
                this.offset = place.offset;
            } else {
                this.open = None;
            }
        }
        this
    }

    /// How far it has read.
    pub const fn cursor(&self) -> Option<&Cursor> {
        self.cursor.as_ref()
    }

    /// What comes next; `None` when there is no more yet.
    pub fn read(&mut self) -> io::Result<Option<Item<'_>>> {
        loop {
            if !self.held && !self.fill()? {
                return Ok(None);
            }
            self.held = false;
            let file = self.open.as_ref().map_or(0, |(number, _)| *number);
            let text = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
            // What is no record shows as a gap in the numbers, and is for `verify` to name.
            let Some(line) = Line::parse(text) else { continue };
            if line.kind == "file"
                && let Ok(record) = serde_json::from_slice::<FileRecord>(text)
                && self.cursor.as_ref().is_none_or(|cursor| cursor.journal != record.journal)
            {
                let another = self.cursor.is_some();
                let seq = line.seq - 1;
                self.cursor = Some(Cursor { journal: record.journal, file, seq });
                if another {
                    self.held = true;
                    return Ok(Some(Item::Another));
                }
            }
            let Some(cursor) = &mut self.cursor else { continue };
            if line.seq <= cursor.seq {
                continue;
            }
            cursor.file = file;
            if line.seq > cursor.seq + 1 {
                let (from, to) = (cursor.seq + 1, line.seq - 1);
                cursor.seq = to;
                self.held = true;
                return Ok(Some(Item::Gap { from, to }));
            }
            cursor.seq = line.seq;
            // The borrow checker does not see that the loop ends here.
            let text = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
            return Ok(Line::parse(text).map(|line| Item::Record(line, text)));
        }
    }

    /// The next whole line into the buffer, from this file or the next.
    fn fill(&mut self) -> io::Result<bool> {
        loop {
            if self.line()? {
                return Ok(true);
            }
            let number = self.open.as_ref().map(|(number, _)| *number);
            let wanted = number.map(|number| number + 1).or(self.cursor.as_ref().map(|cursor| cursor.file));
            let all = files(&self.directory)?;
            let Some(next) = all.iter().copied().find(|file| wanted.is_none_or(|wanted| *file >= wanted)) else {
                // The file is gone, and none came after it: another journal was begun in its place.
                match all.first() {
                    Some(first) if !number.is_some_and(|number| all.contains(&number)) => self.enter(*first)?,
                    _ => return Ok(false),
                }
                continue;
            };
            // Written between the look at this file and the look at the directory; after that it does not grow.
            if self.line()? {
                return Ok(true);
            }
            self.enter(next)?;
        }
    }

    fn enter(&mut self, number: u64) -> io::Result<()> {
        self.open = Some((number, BufReader::new(File::open(self.directory.join(file_name(number)))?)));
        self.offset = 0;
        Ok(())
    }

    fn line(&mut self) -> io::Result<bool> {
        let Some((_, reader)) = &mut self.open else { return Ok(false) };
        self.buffer.clear();
        reader.read_until(b'\n', &mut self.buffer)?;
        if self.buffer.ends_with(b"\n") {
            self.offset += self.buffer.len() as u64;
            return Ok(true);
        }
        if !self.buffer.is_empty() {
            // Half a line: it is being written.
            reader.seek(SeekFrom::Start(self.offset))?;
        }
        Ok(false)
    }
}
