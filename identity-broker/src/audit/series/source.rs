//! Where records come from: the tally of a journal, its files, or memory.
//!
//! The files have the last word. The tally spares reading what says the same as what was read before: where it goes on from
//! the cursor of the book, knows all about what was written since, and the book holds a series for all of that, its counts are
//! added, and the cursor goes on. Else that part is read from the files, and what was read is known the next time.

use std::{collections::HashMap, io, sync::Arc};

use tokio::sync::watch;

use super::{Book, Queue, Seen, State, StateError, StateFile, driver::Feed};
use crate::audit::journal::{Cursor, Item, Place, Reader, Tallied, Tally};

/// Records that are read before anything else gets its turn.
const BATCH: usize = 2048;

pub(super) enum Source {
    Journal(Box<Files>),
    Memory(Arc<Queue>),
}

pub(super) struct Files {
    reader: Option<Reader>,
    written: watch::Receiver<u64>,
    state: StateFile,
    failing: bool,
    counting: Counting,
}

impl Source {
    pub(super) async fn open(feed: Feed) -> (Self, Option<State>) {
        match feed {
            Feed::Memory(queue) => (Self::Memory(queue), None),
            Feed::Journal { written, state, tally } => {
                let loading = state.clone();
                let (kept, why_not) = blocking(move || loading.load()).await;
                if let Some(why) = why_not {
                    tracing::warn!(
                        file = %state.path().display(), why, "audit Events are counted anew from the files of the journal"
                    );
                }
                let reader = Some(Reader::new(state.directory(), kept.as_ref().and_then(State::cursor).cloned()));
                let files = Files { reader, written, state, failing: false, counting: Counting::new(tally) };
                (Self::Journal(Box::new(files)), kept)
            }
        }
    }

    pub(super) fn begin(&mut self, book: &mut Book) {
        match self {
            // Counts end with the process: the next one must not find these Events.
            Self::Memory(_) => book.journal(&uuid::Uuid::new_v4().to_string()),
            Self::Journal(files) if !book.is_of_each() => files.counting.begin(),
            Self::Journal(_) => {}
        }
    }

    /// Completes when there is more.
    pub(super) async fn more(&mut self) {
        match self {
            Self::Memory(queue) => queue.more().await,
            Self::Journal(files) => {
                if files.written.changed().await.is_err() {
                    // The journal is closed.
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Reads a batch; whether there is more.
    pub(super) async fn read(&mut self, mut book: Book) -> (Book, bool) {
        match self {
            Self::Memory(queue) => {
                let more = queue.drain(&mut book, BATCH);
                (book, more)
            }
            Self::Journal(files) => files.read(book).await,
        }
    }

    /// Keeps the state; whether it is kept.
    pub(super) async fn keep(&mut self, book: &mut Book) -> bool {
        let Self::Journal(files) = self else {
            book.saved();
            return true;
        };
        let Files { state: file, failing, .. } = &mut **files;
        let (state, saving) = (book.state(), file.clone());
        let result: Result<(), StateError> = blocking(move || saving.save(&state)).await;
        if let Err(error) = &result {
            if !*failing {
                tracing::warn!(%error, "what was counted for audit Events cannot be kept: after a restart it is counted again");
            }
        } else {
            book.saved();
        }
        *failing = result.is_err();
        result.is_ok()
    }

    pub(super) fn unread(&self, book: &Book) -> u64 {
        match self {
            Self::Memory(queue) => queue.len() as u64,
            Self::Journal(files) => {
                let read = book.cursor().map_or(0, |cursor| cursor.seq);
                files.written.borrow().saturating_sub(read)
            }
        }
    }

    pub(super) fn lost(&self) -> u64 {
        match self {
            Self::Memory(queue) => queue.lost(),
            Self::Journal(_) => 0,
        }
    }
}

impl Files {
    async fn read(&mut self, mut book: Book) -> (Book, bool) {
        // Before the tally is looked at: what is written after that is told once more.
        self.written.borrow_and_update();
        if self.counting.count(&mut book) {
            self.reader = None;
            return (book, false);
        }
        let lesson = self.counting.lesson();
        let mut reader = self.reader.take().unwrap_or_else(|| match (book.cursor(), self.counting.place) {
            (Some(cursor), Some(place)) if cursor.seq == place.head.seq => {
                Reader::at(self.state.directory(), cursor.clone(), &place)
            }
            (cursor, _) => Reader::new(self.state.directory(), cursor.cloned()),
        });
        let (reader, book, folded) = blocking(move || {
            let folded = fold(&mut reader, &mut book, &lesson);
            (reader, book, folded)
        })
        .await;
        self.counting.known.extend(folded.learned);
        if folded.is_over {
            self.counting.taken = None;
        }
        match folded.more {
            Ok(more) => {
                self.reader = Some(reader);
                (book, more)
            }
            Err(error) => {
                // Opened anew the next time something is written.
                tracing::warn!(%error, "the audit journal cannot be read for Events");
                (book, false)
            }
        }
    }
}

/// Counts by the tally, as far as it goes.
struct Counting {
    tally: Arc<Tally>,
    on: bool,
    /// What was taken from the tally, and is not in the book yet, or not all of it.
    taken: Option<Tallied>,
    /// Which series the records about a subject are counted in.
    known: HashMap<u32, u128>,
    generation: u32,
    /// So many series had been closed then: with one more, records may begin another one.
    closed: u64,
    /// Where the book was when it counted by the tally last.
    place: Option<Place>,
}

/// What is to be read from the files, and what may be learned of it.
#[derive(Default)]
struct Lesson {
    /// Its journal, and the last record of it; without that as far as it goes.
    until: Option<(String, u64)>,
    /// Subjects, by the number of a record that is about them.
    subjects: HashMap<u64, u32>,
}

impl Counting {
    fn new(tally: Arc<Tally>) -> Self {
        Self { tally, on: false, taken: None, known: HashMap::new(), generation: 0, closed: 0, place: None }
    }

    fn begin(&mut self) {
        self.on = true;
        self.tally.begin();
    }

    /// Counts what was written since the last time, if the tally is enough for that.
    fn count(&mut self, book: &mut Book) -> bool {
        if !self.on {
            return false;
        }
        let taken = self.taken.get_or_insert_with(|| self.tally.take());
        if self.closed != book.closed() || self.generation != taken.generation {
            self.known.clear();
            (self.closed, self.generation) = (book.closed(), taken.generation);
        }
        let goes_on = |cursor: &Cursor| cursor.seq == taken.after && cursor.journal == self.tally.journal();
        if !taken.is_complete || !book.cursor().is_some_and(goes_on) {
            return false;
        }
        let series = taken.counts.iter().map(|count| {
            let digest = *self.known.get(&count.subject)?;
            book.holds(digest).then_some((digest, count.records, count.last))
        });
        // All of them or none: the cursor is one for all.
        let Some(series) = series.collect::<Option<Vec<_>>>() else { return false };
        for (digest, records, last) in series {
            book.add(digest, records, last);
        }
        let end = taken.end;
        if end.head.seq != taken.after {
            let cursor = Cursor { journal: self.tally.journal().to_owned(), file: end.file, seq: end.head.seq };
            book.read(&cursor, Some(end.head.hash));
            self.place = Some(end);
        }
        self.taken = None;
        true
    }

    fn lesson(&self) -> Lesson {
        self.taken.as_ref().map_or_else(Lesson::default, |taken| Lesson {
            until: Some((self.tally.journal().to_owned(), taken.end.head.seq)),
            subjects: taken.counts.iter().map(|count| (count.first, count.subject)).collect(),
        })
    }
}

/// What came of reading.
struct Folded {
    /// Whether there is more.
    more: io::Result<bool>,
    /// Nothing is left of what was to be read.
    is_over: bool,
    learned: Vec<(u32, u128)>,
}

/// What comes next in the journal into the book, as far as there is room.
fn fold(reader: &mut Reader, book: &mut Book, lesson: &Lesson) -> Folded {
    let (mut hash, mut any, mut learned) = (None, false, Vec::new());
    let mut step = |reader: &mut Reader, book: &mut Book| -> io::Result<Option<bool>> {
        if let (Some((journal, until)), Some(cursor)) = (&lesson.until, reader.cursor())
            && cursor.journal == *journal
            && cursor.seq >= *until
        {
            // What came meanwhile may have been told before; who is ahead of the tally waits for it.
            return Ok(Some(cursor.seq == *until));
        }
        if let Some(cursor) = reader.cursor() {
            book.journal(&cursor.journal);
        }
        match reader.read()? {
            None => return Ok(Some(false)),
            Some(Item::Gap { from, to }) => {
                let records = to - from + 1;
                book.gap(records);
                tracing::warn!(from, to, "records of the audit journal were gone before they were counted for Events");
                hash = None;
            }
            Some(Item::Another) => {
                tracing::warn!("another audit journal begins; audit Events are counted anew");
                hash = None;
            }
            Some(Item::Record(line, text)) => {
                hash = Some(line.hash);
                let seen = (line.kind == "token").then(|| Seen::of_line(line.seq, text)).flatten();
                if let Some(seen) = seen {
                    let digest = book.take(&seen);
                    learned.extend(lesson.subjects.get(&line.seq).map(|subject| (*subject, digest)));
                }
            }
        }
        any = true;
        Ok(None)
    };
    let (mut more, mut is_over) = (Ok(true), false);
    for _ in 0..BATCH {
        if !book.has_room() {
            more = Ok(false);
            break;
        }
        match step(reader, book) {
            Ok(None) => {}
            Ok(Some(further)) => {
                (more, is_over) = (Ok(further), true);
                break;
            }
            Err(error) => {
                (more, is_over) = (Err(error), true);
                break;
            }
        }
    }
    // Also after an error: what was taken is not to be taken again.
    if let Some(cursor) = reader.cursor()
        && any
    {
        book.read(cursor, hash);
    }
    Folded { more, is_over, learned }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends: nobody waits for this any more.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
