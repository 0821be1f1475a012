//! What goes wrong with a disk, one by one; and who writes when it is well.

use std::{fs, time::Duration};

use jiff::Timestamp;

use super::{
    disk::faults::{Faults, How, What},
    tests::{At, LIMIT, NOON, config, kinds, records, report, token},
    *,
};

/// Synced so seldom that no sync gets between.
fn calm(directory: &Path, faults: &Faults) -> JournalConfig {
    JournalConfig { sync_interval: Duration::from_mins(1), faults: faults.clone(), ..config(directory) }
}

async fn until(mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("it comes in time");
}

/// A record by a thread of the runtime, as requests are.
async fn spawned(journal: &Arc<Journal>, resource: &'static str) -> Result<(), AuditError> {
    let journal = Arc::clone(journal);
    tokio::spawn(async move { token(&journal, resource).await }).await.unwrap()
}

/// The same when nothing else is going on, before and after.
async fn served(journal: &Arc<Journal>, resource: &'static str) -> Result<(), AuditError> {
    until(|| journal.shared.queue.is_at_rest()).await;
    let result = spawned(journal, resource).await;
    // The thread answers before it gives its turn back.
    until(|| journal.shared.queue.is_at_rest()).await;
    result
}

fn texts(directory: &Path, kind: &str, field: &str) -> Vec<String> {
    let of_kind = records(directory).into_iter().filter(|(found, _)| found == kind);
    of_kind.map(|(_, record)| record[field].to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_comes_alone_wakes_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let clock = At::new();
    let journal = Arc::new(Journal::open(calm(directory.path(), &Faults::default()), clock.clone()).unwrap());
    for _ in 0..10 {
        served(&journal, "r").await.unwrap();
    }
    let stats = journal.stats();
    // `file` and `start` are two writes.
    assert_eq!((stats.led, stats.writes, stats.records), (10, 12, 10));
    // What has to be said is said by the thread.
    clock.set(NOON - 100);
    served(&journal, "back").await.unwrap();
    assert_eq!((journal.stats().led, journal.stats().records), (10, 11));
    served(&journal, "after").await.unwrap();
    assert_eq!(journal.stats().led, 11);
    journal.close().await;
    assert_eq!(kinds(directory.path())[12..], ["clock", "token", "token", "stop"]);
    assert!(report(directory.path(), verify::Options::default()).is_whole());
}

#[tokio::test]
async fn a_runtime_of_one_thread_is_never_held_up() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(calm(directory.path(), &Faults::default()), At::new()).unwrap();
    token(&journal, "r").await.unwrap();
    assert_eq!((journal.stats().led, journal.stats().records), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_has_written_half_the_thread_goes_on_with() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Faults::default();
    let journal = Arc::new(Journal::open(calm(directory.path(), &faults), At::new()).unwrap());
    for taken in [0, 1, 100] {
        faults.plan(&[(What::Write, How::Short(taken))]);
        served(&journal, "half").await.unwrap();
        faults.plan(&[(What::Write, How::Fails)]);
        served(&journal, "failed once").await.unwrap();
        served(&journal, "whole").await.unwrap();
    }
    assert!(faults.is_over());
    let stats = journal.stats();
    assert_eq!((stats.led, stats.records, stats.lost), (3, 9, 0));
    journal.close().await;
    let report = report(directory.path(), verify::Options::default());
    assert!(report.is_whole() && report.token_records == 9, "{:?}", report.findings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_record_that_cannot_be_cut_off_is_before_anything_else_is_written() {
    for inline in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let faults = Faults::default();
        let settings = JournalConfig { inline, ..calm(directory.path(), &faults) };
        let journal = Arc::new(Journal::open(settings, At::new()).unwrap());
        served(&journal, "before").await.unwrap();
        let cut = (What::Cut, How::Fails);
        faults.plan(&[(What::Write, How::Short(40)), (What::Write, How::Fails), cut, cut]);
        for _ in 0..2 {
            let error = served(&journal, "refused").await.unwrap_err();
            assert!(error.0.contains("says the test"), "{error}");
        }
        assert!(faults.is_over() && journal.stats().failing);
        served(&journal, "after").await.unwrap();
        assert!(!journal.stats().failing);
        journal.close().await;
        assert_eq!(texts(directory.path(), "lost", "records"), ["2"]);
        let report = report(directory.path(), verify::Options::default());
        let found: Vec<_> = report.findings.iter().map(|finding| finding.kind).collect();
        assert_eq!((found, report.token_records), (vec![verify::Kind::Reported], 2));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_fails_is_said_and_its_file_is_left() {
    for interval in [Duration::from_millis(1), Duration::ZERO] {
        let directory = tempfile::tempdir().unwrap();
        let faults = Faults::default();
        let settings = JournalConfig { sync_interval: interval, ..calm(directory.path(), &faults) };
        let journal = Arc::new(Journal::open(settings, At::new()).unwrap());
        let seq = journal.stats().seq;
        until(|| journal.stats().synced == seq).await;
        faults.plan(&[(What::Sync, How::Fails)]);
        let first = served(&journal, "first").await;
        // Without an interval the promise is the disk.
        assert_eq!(first.is_err(), interval.is_zero(), "{first:?}");
        until(|| faults.is_over() && (interval.is_zero() || journal.stats().syncs > 1)).await;
        assert!(journal.stats().synced < journal.stats().seq);
        served(&journal, "second").await.unwrap();
        journal.close().await;
        assert_eq!(files(directory.path()).unwrap(), [1, 2]);
        let damage = texts(directory.path(), "damage", "text");
        assert!(damage.len() == 1 && damage[0].contains("may be missing after a power failure"), "{damage:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_that_hangs_holds_up_one_request_and_the_others_are_refused_in_time() {
    for inline in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let faults = Faults::default();
        let patience = Duration::from_millis(200);
        let settings = JournalConfig { patience, inline, ..calm(directory.path(), &faults) };
        let journal = Arc::new(Journal::open(settings, At::new()).unwrap());
        faults.plan(&[(What::Write, How::Hangs)]);
        let held = {
            let journal = Arc::clone(&journal);
            tokio::spawn(async move { token(&journal, "held").await })
        };
        until(|| faults.is_hanging()).await;
        let others = futures::future::join_all((0..20).map(|_| spawned(&journal, "refused"))).await;
        for refused in others {
            assert!(refused.unwrap_err().0.contains("has not taken it within"));
        }
        if inline {
            // It waits for the kernel by itself, and then its record is there.
            faults.let_go();
            held.await.unwrap().unwrap();
        } else {
            assert!(held.await.unwrap().is_err());
            faults.let_go();
        }
        until(|| journal.stats().waiting == 0 && journal.stats().records == 21).await;
        served(&journal, "after").await.unwrap();
        assert_eq!(journal.stats().led, u64::from(inline), "only the thread writes for a while");
        journal.close().await;
        let late = |field| texts(directory.path(), "late", field);
        // What says so stands between those that the thread has written one after the other.
        let expected = if inline { "4-23" } else { "3,5-3,24" };
        assert_eq!(format!("{}-{}", late("from").join(","), late("to").join(",")), expected);
        assert!(report(directory.path(), verify::Options::default()).is_whole());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_next_file_the_present_one_grows_to_twice_its_size() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Faults::default();
    let settings = JournalConfig { max_size: 2000, ..calm(directory.path(), &faults) };
    let journal = Arc::new(Journal::open(settings, At::new()).unwrap());
    faults.plan(&[(What::Create, How::Fails); 100]);
    let mut written = 0;
    let error = loop {
        match served(&journal, "r").await {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(error.0.contains("Create fails"), "{error}");
    let length = fs::metadata(directory.path().join(file_name(1))).unwrap().len();
    assert!((4000..4500).contains(&length) && written > 10, "{length} bytes, {written} records");
    // As soon as it can be made, it is.
    while !faults.is_over() {
        let _ = served(&journal, "r").await;
    }
    served(&journal, "after").await.unwrap();
    journal.close().await;
    assert_eq!(files(directory.path()).unwrap(), [1, 2]);
    let report = report(directory.path(), verify::Options::default());
    assert_eq!(report.findings.len(), 1, "what was lost: {:?}", report.findings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_moved_away_is_missed() {
    for interval in [Duration::from_millis(1), Duration::ZERO] {
        let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let settings = JournalConfig { sync_interval: interval, ..calm(directory.path(), &Faults::default()) };
        let journal = Arc::new(Journal::open(settings, At::new()).unwrap());
        served(&journal, "before").await.unwrap();
        let away = elsewhere.path().join(file_name(1));
        fs::rename(directory.path().join(file_name(1)), &away).unwrap();
        // Written to the file wherever it is, until it is missed.
        let mut number = 0;
        let wait = async {
            while files(directory.path()).unwrap().is_empty() {
                served(&journal, "meanwhile").await.unwrap();
                number += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(LIMIT, wait).await.unwrap();
        assert!(!interval.is_zero() || number == 1, "{number}");
        journal.close().await;
        let damage = texts(directory.path(), "damage", "text");
        assert!(damage[0].contains("moved away"), "{damage:?}");
        // Brought back, it is the journal.
        fs::rename(&away, directory.path().join(file_name(1))).unwrap();
        let report = report(directory.path(), verify::Options::default());
        let found: Vec<_> = report.findings.iter().map(|finding| finding.kind).collect();
        assert_eq!((found, report.token_records), (vec![verify::Kind::Reported], number + 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn synced_before_each_answer_files_follow_each_other_and_none_is_kept_open() {
    let directory = tempfile::tempdir().unwrap();
    let settings = JournalConfig {
        sync_interval: Duration::ZERO,
        max_size: 2000,
        keep: 3,
        ..calm(directory.path(), &Faults::default())
    };
    let journal = Arc::new(Journal::open(settings, At::new()).unwrap());
    for _ in 0..60 {
        served(&journal, "r").await.unwrap();
        assert_eq!(journal.stats().synced, journal.stats().seq);
    }
    assert!(files(directory.path()).unwrap()[0] > 3);
    assert_eq!(journal.shared.syncing.waiting(), 0, "nobody syncs what is put there");
    journal.close().await;
    assert!(report(directory.path(), verify::Options::default()).is_whole());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_next_file_that_does_not_get_to_the_disk_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Faults::default();
    let settings = JournalConfig { sync_interval: Duration::ZERO, max_size: 2000, ..calm(directory.path(), &faults) };
    let journal = Arc::new(Journal::open(settings, At::new()).unwrap());
    let mut tally = 0;
    while fs::metadata(directory.path().join(file_name(1))).unwrap().len() < 2000 {
        served(&journal, "r").await.unwrap();
        tally += 1;
    }
    faults.plan(&[(What::Sync, How::Fails)]);
    served(&journal, "into the present one").await.unwrap();
    assert!(faults.is_over());
    assert_eq!(files(directory.path()).unwrap(), [1]);
    served(&journal, "into the next one").await.unwrap();
    journal.close().await;
    assert_eq!(files(directory.path()).unwrap(), [1, 2]);
    let report = report(directory.path(), verify::Options::default());
    assert!(report.is_whole() && report.token_records == tally + 2, "{:?}", report.findings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_because_too_much_waits_is_said_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Faults::default();
    let settings = JournalConfig { inline: false, ..calm(directory.path(), &faults) };
    let journal = Arc::new(Journal::open(settings, At::new()).unwrap());
    faults.plan(&[(What::Write, How::Hangs)]);
    let held = {
        let journal = Arc::clone(&journal);
        tokio::spawn(async move { token(&journal, "held").await })
    };
    until(|| faults.is_hanging()).await;
    let mut body = Vec::new();
    encode::begin(&mut body, "large", Timestamp::from_second(NOON).unwrap());
    let more = queue::MOST_WAITING - body.len() - 10;
    body.extend_from_slice(b",\"x\":\"");
    body.resize(body.len() + more - 8, b'x');
    body.push(b'"');
    let large = journal.put(&body, None);
    for number in 1..=3 {
        assert!(spawned(&journal, "refused").await.unwrap_err().0.contains("does not keep up"));
        assert_eq!(journal.stats().lost, number);
    }
    faults.let_go();
    large.await.unwrap();
    held.await.unwrap().unwrap();
    served(&journal, "after").await.unwrap();
    journal.close().await;
    assert_eq!(texts(directory.path(), "lost", "records"), ["3"]);
    assert!(texts(directory.path(), "lost", "error")[0].contains("does not keep up"));
    assert_eq!(journal.stats().lost, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_half_written_at_the_end_is_cut_off_before_that_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Faults::default();
    let journal = Arc::new(Journal::open(calm(directory.path(), &faults), At::new()).unwrap());
    served(&journal, "before").await.unwrap();
    faults.plan(&[(What::Write, How::Short(40)), (What::Write, How::Fails), (What::Cut, How::Fails)]);
    served(&journal, "refused").await.unwrap_err();
    assert!(faults.is_over());
    journal.close().await;
    assert_eq!(kinds(directory.path())[2..], ["token", "lost", "stop"]);
    let report = report(directory.path(), verify::Options::default());
    assert_eq!(report.findings.iter().map(|finding| finding.kind).collect::<Vec<_>>(), [verify::Kind::Reported]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_whose_thread_has_panicked_has_ended() {
    let directory = tempfile::tempdir().unwrap();
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clock = {
        let broken = Arc::clone(&broken);
        move || {
            assert!(!broken.load(Ordering::SeqCst), "the test breaks the clock");
            Timestamp::from_second(NOON).unwrap()
        }
    };
    let journal = Arc::new(Journal::open(JournalConfig { inline: false, ..config(directory.path()) }, clock).unwrap());
    served(&journal, "r").await.unwrap();
    broken.store(true, Ordering::SeqCst);
    assert!(token(&journal, "r").await.is_err());
    tokio::time::timeout(LIMIT, journal.ended()).await.unwrap();
    assert!(token(&journal, "r").await.unwrap_err().0.contains("closed"));
}
