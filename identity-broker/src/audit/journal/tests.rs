//! The journal on real files: restarts, rotation, torn and damaged ends, a clock set back, two processes, a reader.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::*;
use crate::{
    Reason,
    audit::{AuditSink as _, Verdict},
};

pub(super) const LIMIT: Duration = Duration::from_secs(20);
pub(super) const NOON: i64 = 1_800_000_000;

/// A clock that the test sets.
#[derive(Clone)]
pub(super) struct At(Arc<AtomicI64>);

impl At {
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicI64::new(NOON)))
    }

    pub(super) fn set(&self, second: i64) {
        self.0.store(second, Ordering::SeqCst);
    }
}

impl Clock for At {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.0.load(Ordering::SeqCst)).unwrap()
    }
}

pub(super) fn config(directory: &Path) -> JournalConfig {
    JournalConfig { sync_interval: Duration::from_millis(5), ..JournalConfig::new(directory, "node-1") }
}

pub(super) async fn token(journal: &Journal, resource: &str) -> Result<(), AuditError> {
    let time = Timestamp::from_second(NOON).unwrap();
    let record = AuditRecord::new(time, Verdict::Issued, Reason::Issued, [10, 42, 0, 7].into(), resource);
    tokio::time::timeout(LIMIT, journal.record(&record)).await.expect("recorded or refused in time")
}

fn read(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let numbers = files(directory).unwrap();
    numbers
        .into_iter()
        .map(|number| (file_name(number), fs::read(directory.join(file_name(number))).unwrap()))
        .collect()
}

pub(super) fn report(directory: &Path, options: verify::Options) -> verify::Report {
    let files = read(directory);
    verify::verify(files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())), options)
}

/// Kind and record of each line.
pub(super) fn records(directory: &Path) -> Vec<(String, Value)> {
    let text = read(directory).into_iter().flat_map(|(_, bytes)| bytes).collect::<Vec<_>>();
    String::from_utf8(text)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|record| (record["kind"].as_str().unwrap().to_owned(), record))
        .collect()
}

pub(super) fn kinds(directory: &Path) -> Vec<String> {
    records(directory).into_iter().map(|(kind, _)| kind).collect()
}

#[tokio::test]
async fn many_share_a_write_and_all_are_there() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Arc::new(Journal::open(config(directory.path()), At::new()).unwrap());
    let all = (0..500).map(|number| {
        let journal = Arc::clone(&journal);
        tokio::spawn(async move { token(&journal, &format!("r{number}")).await })
    });
    for done in futures::future::join_all(all).await {
        done.unwrap().unwrap();
    }
    let stats = journal.stats();
    assert_eq!((stats.records, stats.lost, stats.waiting, stats.seq), (500, 0, 0, 502));
    assert!(stats.writes < 400, "{stats:?}");
    journal.close().await;
    assert!(token(&journal, "late").await.unwrap_err().0.contains("closed"));
    let report = report(directory.path(), verify::Options::default());
    assert!(report.is_whole() && report.token_records == 500, "{:?}", report.findings);
    let kinds = kinds(directory.path());
    assert_eq!((&*kinds[0], &*kinds[1], &**kinds.last().unwrap()), ("file", "start", "stop"));
    let record = &records(directory.path())[2].1;
    assert_eq!(record["time"], "2027-01-15T08:00:00.000000Z");
    assert_eq!((&record["verdict"], &record["address"]), (&"issued".into(), &"10.42.0.7".into()));
}

#[tokio::test]
async fn a_restart_goes_on_in_the_same_file() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let journal = Journal::open(config(directory.path()), At::new()).unwrap();
        token(&journal, &format!("r{round}")).await.unwrap();
        journal.close().await;
    }
    assert_eq!(files(directory.path()).unwrap(), [1]);
    assert!(report(directory.path(), verify::Options::default()).is_whole());
    let expected = ["file", "start", "token", "stop", "start", "token", "stop", "start", "token", "stop"];
    assert_eq!(kinds(directory.path()), expected);
}

#[tokio::test]
async fn files_follow_each_other_by_size_and_age_and_old_ones_go() {
    let directory = tempfile::tempdir().unwrap();
    let clock = At::new();
    let settings = JournalConfig { max_size: 2000, keep: 3, ..config(directory.path()) };
    let journal = Journal::open(settings, clock.clone()).unwrap();
    for number in 0..60 {
        token(&journal, &format!("r{number}")).await.unwrap();
    }
    let kept = files(directory.path()).unwrap();
    assert_eq!(kept.len(), 3, "{kept:?}");
    assert!(kept[0] > 3);
    clock.set(NOON + 24 * 3600 + 1);
    token(&journal, "a day later").await.unwrap();
    assert_eq!(files(directory.path()).unwrap()[2], kept[2] + 1);
    journal.close().await;
    let complete = verify::Options { complete: true, ..verify::Options::default() };
    let whole = report(directory.path(), complete.clone());
    assert!(whole.is_whole(), "{:?}", whole.findings);
    assert!(whole.limits().iter().any(|limit| limit.starts_with("the records 1 to")));
    fs::remove_file(directory.path().join(file_name(files(directory.path()).unwrap()[0]))).unwrap();
    assert_eq!(report(directory.path(), complete).findings[0].kind, verify::Kind::Missing);
}

#[tokio::test]
async fn a_torn_end_is_cut_off_and_said() {
    for torn in [&b"{\"seq\":4,\"kind\":\"tok"[..], b"\0\0\0\0\0\0\0\0", b"{\"seq\":4,\"kind\":\"token\",\"ha\n"] {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(config(directory.path()), At::new()).unwrap();
        token(&journal, "before").await.unwrap();
        journal.close().await;
        let path = directory.path().join(file_name(1));
        OpenOptions::new().append(true).open(&path).unwrap().write_all(torn).unwrap();
        assert!(!report(directory.path(), verify::Options::default()).is_whole());

        let journal = Journal::open(config(directory.path()), At::new()).unwrap();
        token(&journal, "after").await.unwrap();
        journal.close().await;
        let whole = report(directory.path(), verify::Options::default());
        assert!(whole.is_whole() && whole.notes.len() == 1, "{:?}", whole.findings);
        let repair = records(directory.path()).into_iter().find(|(kind, _)| kind == "repair").unwrap().1;
        assert_eq!((repair["bytes"].as_u64(), repair["file"].as_u64()), (Some(torn.len() as u64), Some(1)));
        assert_eq!(repair["torn"], String::from_utf8_lossy(torn).into_owned());
    }
}

#[tokio::test]
async fn a_file_whose_first_record_is_torn_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(config(directory.path()), At::new()).unwrap();
    token(&journal, "before").await.unwrap();
    journal.close().await;
    for (number, torn) in [(2, &b"{\"seq\":5,\"kind"[..]), (3, b"")] {
        fs::write(directory.path().join(file_name(number)), torn).unwrap();
    }
    let journal = Journal::open(config(directory.path()), At::new()).unwrap();
    token(&journal, "after").await.unwrap();
    journal.close().await;
    assert_eq!(files(directory.path()).unwrap(), [1]);
    let whole = report(directory.path(), verify::Options::default());
    assert!(whole.is_whole() && whole.notes.len() == 1, "{:?}", whole.findings);
}

#[tokio::test]
async fn damage_is_left_as_it_is_and_what_comes_is_bound_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(config(directory.path()), At::new()).unwrap();
    for number in 0..5 {
        token(&journal, &format!("r{number}")).await.unwrap();
    }
    journal.close().await;
    let path = directory.path().join(file_name(1));
    let mut bytes = fs::read(&path).unwrap();
    let place = bytes.windows(4).position(|text| text == b"\"r2\"").unwrap();
    bytes[place + 2] ^= 1;
    fs::write(&path, &bytes).unwrap();

    let journal = Journal::open(config(directory.path()), At::new()).unwrap();
    token(&journal, "after").await.unwrap();
    journal.close().await;
    assert_eq!(fs::read(&path).unwrap(), bytes, "nobody covers up what happened");
    assert_eq!(files(directory.path()).unwrap(), [1, 2]);
    let found: Vec<_> =
        report(directory.path(), verify::Options::default()).findings.iter().map(|finding| finding.kind).collect();
    assert_eq!(found, [verify::Kind::Altered, verify::Kind::Reported]);
}

#[tokio::test]
async fn a_file_that_is_removed_or_changed_while_it_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(config(directory.path()), At::new()).unwrap();
    token(&journal, "one").await.unwrap();
    OpenOptions::new().append(true).open(directory.path().join(file_name(1))).unwrap().write_all(b"x\n").unwrap();
    token(&journal, "two").await.unwrap();
    fs::remove_file(directory.path().join(file_name(2))).unwrap();
    token(&journal, "three").await.unwrap();
    journal.close().await;
    assert_eq!(files(directory.path()).unwrap(), [1, 3]);
    let report = report(directory.path(), verify::Options::default());
    let texts: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
    assert!(texts.iter().any(|text| text.contains("this is not a record")), "{texts:#?}");
    assert!(texts.iter().any(|text| text.contains("are missing")), "{texts:#?}");
    assert!(texts.iter().any(|text| text.contains("the file was removed while it was written")), "{texts:#?}");
}

#[tokio::test]
async fn one_journal_has_one_writer() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(config(directory.path()), At::new()).unwrap();
    let second = Journal::open(config(directory.path()), At::new()).unwrap_err();
    assert!(matches!(second, JournalError::InUse(_)) && second.to_string().contains("another process"), "{second}");
    journal.close().await;
    drop(journal);
    let began = std::time::Duration::from_millis(1);
    // The lock goes with the last thread.
    tokio::time::timeout(LIMIT, async {
        while Journal::open(config(directory.path()), At::new()).is_err() {
            tokio::time::sleep(began).await;
        }
    })
    .await
    .unwrap();
}

#[test]
fn a_directory_that_cannot_be_written_is_an_error_that_names_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for path in [file.path().join("journal"), "/proc/journal".into()] {
        let error = Journal::open(JournalConfig::new(&path, "n"), At::new()).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}

#[tokio::test]
async fn a_clock_set_back_is_said_also_across_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let clock = At::new();
    let journal = Journal::open(config(directory.path()), clock.clone()).unwrap();
    token(&journal, "one").await.unwrap();
    clock.set(NOON - 100);
    token(&journal, "two").await.unwrap();
    token(&journal, "three").await.unwrap();
    journal.close().await;
    clock.set(NOON - 200);
    let journal = Journal::open(config(directory.path()), clock).unwrap();
    token(&journal, "four").await.unwrap();
    journal.close().await;
    let clocks: Vec<_> = records(directory.path()).into_iter().filter(|(kind, _)| kind == "clock").collect();
    assert_eq!(clocks.len(), 2);
    assert_eq!(clocks[0].1["before"], "2027-01-15T08:00:00.000000Z");
    let report = report(directory.path(), verify::Options::default());
    assert!(report.is_whole(), "the order of records is that of their numbers: {:?}", report.findings);
    assert_eq!(report.notes.len(), 2);
}

#[tokio::test]
async fn checkpoints_come_by_count_and_at_the_end_and_are_published() {
    let directory = tempfile::tempdir().unwrap();
    let pem = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
";
    let key = Arc::new(SigningKey::from_pem(pem.as_bytes()).unwrap());
    let settings = JournalConfig { key: Some(Arc::clone(&key)), checkpoint_records: 10, ..config(directory.path()) };
    let journal = Journal::open(settings, At::new()).unwrap();
    let mut published = journal.checkpoints();
    for number in 0..25 {
        token(&journal, &format!("r{number}")).await.unwrap();
    }
    tokio::time::timeout(LIMIT, published.wait_for(|checkpoint| checkpoint.as_ref().is_some_and(|c| c.head.seq > 20)))
        .await
        .unwrap()
        .unwrap();
    journal.close().await;
    let last = published.borrow().clone().unwrap();
    assert_eq!(last.key.as_deref(), Some(key.id()));
    let options = verify::Options { keys: vec![key.verifying()], heads: vec![last.head.hash], ..Default::default() };
    let whole = report(directory.path(), options.clone());
    assert!(whole.is_whole() && whole.checkpoints == 3, "{whole:?}");
    assert_eq!(
        (whole.proven_through, whole.limits()),
        (whole.last_seq, vec![]),
        "a journal that was closed is proven whole"
    );

    // The tail is cut off, a whole number of records.
    let path = directory.path().join(file_name(1));
    let text = fs::read_to_string(&path).unwrap();
    let cut: String = text.split_inclusive('\n').take(20).collect();
    fs::write(&path, cut).unwrap();
    assert_eq!(report(directory.path(), options).findings[0].kind, verify::Kind::Anchor);
}

#[tokio::test]
async fn without_a_key_the_head_is_published_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let settings = JournalConfig { checkpoint_interval: Duration::from_millis(1), ..config(directory.path()) };
    let journal = Journal::open(settings, At::new()).unwrap();
    token(&journal, "r").await.unwrap();
    let mut published = journal.checkpoints();
    let wait = published.wait_for(|checkpoint| checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.head.seq == 3));
    let checkpoint = tokio::time::timeout(LIMIT, wait).await.unwrap().unwrap().clone().unwrap();
    assert_eq!(checkpoint.key, None);
    let heads = vec![checkpoint.head.hash];
    assert_eq!(report(directory.path(), verify::Options { heads, ..Default::default() }).proven_through, Some(3));
}

#[tokio::test]
async fn what_is_written_is_synced_soon_or_before_the_answer() {
    for interval in [Duration::from_millis(1), Duration::ZERO] {
        let directory = tempfile::tempdir().unwrap();
        let settings = JournalConfig { sync_interval: interval, ..config(directory.path()) };
        let journal = Journal::open(settings, At::new()).unwrap();
        token(&journal, "r").await.unwrap();
        let seq = journal.stats().seq;
        if interval.is_zero() {
            assert!(journal.stats().synced >= 3, "before the answer");
        }
        tokio::time::timeout(LIMIT, async {
            while journal.stats().synced < seq {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn a_reader_goes_on_where_it_was_over_rotations_and_restarts_and_names_what_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let settings = JournalConfig { max_size: 3000, keep: 3, ..config(directory.path()) };
    let journal = Journal::open(settings.clone(), At::new()).unwrap();
    let drain = |reader: &mut Reader| {
        let mut seen = Vec::new();
        while let Some(item) = reader.read().unwrap() {
            match item {
                Item::Record(line, text) => {
                    assert!(text.ends_with(b"\"}"));
                    seen.push((line.seq, line.seq));
                }
                Item::Gap { from, to } => seen.push((from, to)),
                Item::Another => seen.push((0, 0)),
            }
        }
        seen
    };
    let mut reader = Reader::new(directory.path(), None);
    let mut all = Vec::new();
    for number in 0..10 {
        token(&journal, &format!("r{number}")).await.unwrap();
        all.extend(drain(&mut reader));
    }
    let kept: Cursor = serde_json::from_str(&serde_json::to_string(reader.cursor().unwrap()).unwrap()).unwrap();
    // Another reader goes on from what was kept, while files come and go.
    let mut reader = Reader::new(directory.path(), Some(kept));
    for number in 0..10 {
        token(&journal, &format!("s{number}")).await.unwrap();
        all.extend(drain(&mut reader));
    }
    let seq = journal.stats().seq;
    assert_eq!(all, (1..=seq).map(|seq| (seq, seq)).collect::<Vec<_>>());

    // So much is written that files go before they are read.
    for number in 0..60 {
        token(&journal, &format!("t{number}")).await.unwrap();
    }
    let kept = reader.cursor().cloned();
    let mut reader = Reader::new(directory.path(), kept);
    let rest = drain(&mut reader);
    assert!(rest[0].0 == seq + 1 && rest[0].1 > seq + 1, "a gap from where it was: {:?}", rest[0]);
    assert!(rest.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0));
    journal.close().await;
    drop(journal);

    // The directory is emptied: another journal.
    let _ = drain(&mut reader);
    for number in files(directory.path()).unwrap() {
        fs::remove_file(directory.path().join(file_name(number))).unwrap();
    }
    fs::remove_file(directory.path().join("lock")).unwrap();
    let journal = Journal::open(settings, At::new()).unwrap();
    token(&journal, "new").await.unwrap();
    assert_eq!(drain(&mut reader), [(0, 0), (1, 1), (2, 2), (3, 3)]);
    drop(journal);
}

/// Many at once with a pause: nobody waits for the next batch for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_record_is_left_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Arc::new(Journal::open(config(directory.path()), At::new()).unwrap());
    let tasks = (0..16).map(|task| {
        let journal = Arc::clone(&journal);
        tokio::spawn(async move {
            for number in 0..200 {
                token(&journal, &format!("{task}-{number}")).await.unwrap();
                if number % 7 == task % 7 {
                    tokio::task::yield_now().await;
                }
            }
        })
    });
    for done in futures::future::join_all(tasks).await {
        done.unwrap();
    }
    assert_eq!(journal.stats().records, 3200);
}

#[test]
fn defaults_are_as_documented() {
    let config = JournalConfig::new("d", "n");
    assert_eq!((config.max_size, config.keep), (64 << 20, 8));
    assert_eq!(config.max_age, SignedDuration::from_hours(24));
}
