use std::{fs, path::Path};

use identity_core::{lookup::ObjectRef, pod::PodRef};

use super::*;
use crate::{
    Reason,
    audit::{
        AuditRecord, AuditSink as _, Verdict,
        journal::{Journal, JournalConfig, file_name},
        series::Config,
    },
};

const NOON: i64 = 1_800_000_000;

fn time(second: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(NOON + second).unwrap()
}

fn open(directory: &Path) -> Journal {
    Journal::open(JournalConfig::new(directory, "n"), || time(0)).unwrap()
}

async fn write(journal: &Journal, pod: u32, audience: &str, second: i64) {
    let name = format!("pod-{pod}");
    let pod = PodRef { namespace: "n".into(), name: (&*name).into(), uid: name.into(), service_account: "s".into() };
    let binding = ObjectRef { namespace: "n".into(), name: "b".into(), uid: "u".into(), generation: 1 };
    let mut record = AuditRecord::new(time(second), Verdict::Issued, Reason::Issued, [10, 0, 0, 1].into(), audience);
    (record.pod, record.binding) = (Some(&pod), Some(&binding));
    journal.record(&record).await.unwrap();
}

async fn source(journal: &Journal, config: Config) -> (Box<Files>, Book) {
    let feed = Feed::Journal {
        written: journal.written(),
        state: StateFile::beside(journal.directory()),
        tally: journal.tally(),
    };
    let (mut source, kept) = Source::open(feed).await;
    let mut book = Book::new(config, kept);
    source.begin(&mut book);
    let Source::Journal(files) = source else { panic!() };
    (files, book)
}

/// Everything that is there; how often the files were read.
async fn drain(files: &mut Files, mut book: Book) -> (Book, usize) {
    let mut read = 0;
    loop {
        let more;
        (book, more) = files.read(book).await;
        read += usize::from(files.reader.is_some());
        if !more {
            return (book, read);
        }
    }
}

/// What a book says that has read all of the files, and nothing but these.
fn anew(journal: &Journal, config: Config) -> State {
    let mut reader = Reader::new(journal.directory(), None);
    let mut book = Book::new(config, None);
    loop {
        let folded = fold(&mut reader, &mut book, &Lesson::default());
        if !folded.more.unwrap() {
            return book.state();
        }
    }
}

#[tokio::test]
async fn what_says_the_same_is_counted_without_reading_it() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path());
    write(&journal, 1, "a", 0).await;
    let (mut files, book) = source(&journal, Config::series("n")).await;
    // What was before is read; it is another matter whom the tally knows.
    let (book, _) = drain(&mut files, book).await;
    write(&journal, 1, "a", 5).await;
    let (book, read) = drain(&mut files, book).await;
    assert_eq!(read, 1, "the first of a subject is read");
    for second in [9, 7, 8] {
        write(&journal, 1, "a", second).await;
    }
    let (book, read) = drain(&mut files, book).await;
    assert_eq!(read, 0);
    assert_eq!(book.state(), anew(&journal, Config::series("n")));
    assert!(!files.counting.tally.take().counts.iter().any(|count| count.records > 0));
    // Another subject: all of what is new is read, from where the tally has got to.
    for (pod, second) in [(1, 10), (2, 11), (1, 12)] {
        write(&journal, pod, "a", second).await;
    }
    let (book, read) = drain(&mut files, book).await;
    assert_eq!(read, 1);
    let offset = fs::metadata(directory.path().join(file_name(1))).unwrap().len();
    assert_eq!(files.counting.place.map(|place| place.offset < offset), Some(true));
    write(&journal, 2, "a", 13).await;
    let (book, read) = drain(&mut files, book).await;
    assert_eq!((read, book.state()), (0, anew(&journal, Config::series("n"))));
    journal.close().await;
}

/// More audiences than a pod has series of its own, more series than there is room for, other readers of the tally, records
/// that nobody tags, checkpoints in between: the book says what it says that has read the files.
#[tokio::test]
async fn the_tally_and_the_files_say_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let clock = || time(0);
    let settings = JournalConfig { max_size: 20_000, keep: 100, ..JournalConfig::new(directory.path(), "n") };
    let journal = Journal::open(settings, clock).unwrap();
    let config = Config { most_of_pod: 3, ..Config::series("n") };
    let (mut files, mut book) = source(&journal, config.clone()).await;
    let (mut read, mut looks) = (0, 0);
    let mut number = 12_345_u32;
    let mut random = move |below: u32| {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (number >> 16) % below
    };
    let long = "l".repeat(600);
    for round in 0..200 {
        for second in 0..random(6) {
            let audience = match random(200) {
                0 => long.clone(),
                1 => format!("rare-{round}"),
                number => format!("a{}", number % 5),
            };
            write(&journal, random(4), &audience, i64::from(round * 10 + second)).await;
        }
        if random(40) == 0 {
            files.counting.tally.begin();
        }
        if random(40) == 0 {
            files.counting.tally.take();
        }
        if random(3) > 0 {
            let once;
            (book, once) = drain(&mut files, book).await;
            (read, looks) = (read + usize::from(once > 0), looks + 1);
        }
    }
    (book, _) = drain(&mut files, book).await;
    let (here, there) = (book.state(), anew(&journal, config));
    assert_eq!(here, there);
    assert!(read > 5 && read < looks / 2, "{read} of {looks} looks read the files");
    journal.close().await;
}

#[tokio::test]
async fn what_was_taken_before_an_error_is_not_taken_again() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path());
    for _ in 0..5 {
        write(&journal, 1, "a", 0).await;
    }
    // Reading that is an error.
    let broken = directory.path().join(file_name(2));
    fs::create_dir(&broken).unwrap();
    let config = Config::series("n");
    let mut book = Book::new(config.clone(), None);
    let mut reader = Reader::new(directory.path(), None);
    assert!(fold(&mut reader, &mut book, &Lesson::default()).more.is_err());
    assert_eq!(book.cursor().map(|cursor| cursor.seq), Some(7));
    fs::remove_dir(&broken).unwrap();
    write(&journal, 1, "a", 0).await;
    let mut reader = Reader::new(directory.path(), book.cursor().cloned());
    assert!(!fold(&mut reader, &mut book, &Lesson::default()).more.unwrap());
    assert_eq!(book.state(), anew(&journal, config));
    journal.close().await;
}

#[tokio::test]
async fn another_journal_is_begun_anew_however_far_the_one_before_was_read() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path());
    for _ in 0..20 {
        write(&journal, 1, "a", 0).await;
    }
    let config = Config::series("n");
    let (files, book) = source(&journal, config.clone()).await;
    let (mut source, mut book) = (Source::Journal(files), book);
    (book, _) = source.read(book).await;
    assert!(source.keep(&mut book).await);
    journal.close().await;
    for name in [&*file_name(1), "lock"] {
        fs::remove_file(directory.path().join(name)).unwrap();
    }
    let journal = open(directory.path());
    write(&journal, 1, "a", 0).await;
    let (mut files, book) = self::source(&journal, config.clone()).await;
    assert_eq!(book.cursor().map(|cursor| cursor.seq), Some(22), "what was kept is of the other one");
    let (book, _) = drain(&mut files, book).await;
    assert_eq!((book.cursor().map(|cursor| cursor.seq), book.stats().pending), (Some(3), 21));
    journal.close().await;
}
