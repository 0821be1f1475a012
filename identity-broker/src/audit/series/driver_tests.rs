use std::{collections::BTreeMap, path::Path, sync::Mutex};

use identity_core::{lookup::ObjectRef, pod::PodRef};
use serde_json::Value;

use super::*;
use crate::{
    Reason,
    audit::{
        AuditRecord, AuditSink, Verdict,
        journal::{Journal, JournalConfig},
        series::Config,
    },
};

/// An API server in small, which may be down.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<(BTreeMap<String, Value>, bool)>>);

impl EventWriter for Api {
    async fn write(&self, write: &Write) -> Outcome {
        let (events, down) = &mut *self.0.lock().unwrap();
        if *down {
            return Outcome::Unknown(Duration::ZERO);
        }
        match events.get_mut(&write.name) {
            Some(_) if write.create => Outcome::Exists,
            Some(event) => {
                event["series"] = write.body["series"].clone();
                Outcome::Done
            }
            None if write.create => {
                events.insert(write.name.clone(), write.body.clone());
                Outcome::Done
            }
            None => Outcome::Missing,
        }
    }
}

impl Api {
    fn counts(&self) -> Vec<u64> {
        let mut counts: Vec<_> =
            self.0.lock().unwrap().0.values().map(|event| event["series"]["count"].as_u64().unwrap_or(1)).collect();
        counts.sort_unstable();
        counts
    }

    async fn until(&self, counts: &[u64]) {
        let there = async {
            while self.counts() != counts {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), there).await;
        assert!(waited.is_ok(), "{:?} instead of {counts:?}", self.counts());
    }
}

fn config() -> Config {
    let refresh = Duration::from_millis(2);
    Config { interval: Duration::from_millis(1), refresh, settle: refresh, ..Config::series("n") }
}

async fn records(sink: &impl AuditSink, pod: u8, number: u64) {
    let name = format!("pod-{pod}");
    let pod = PodRef { namespace: "n".into(), name: (&*name).into(), uid: name.into(), service_account: "s".into() };
    let binding = ObjectRef { namespace: "n".into(), name: "b".into(), uid: "u".into(), generation: 1 };
    for _ in 0..number {
        let time = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        let mut record = AuditRecord::new(time, Verdict::Issued, Reason::Issued, [10, 0, 0, 1].into(), "api://a");
        (record.pod, record.binding) = (Some(&pod), Some(&binding));
        sink.record(&record).await.unwrap();
    }
}

fn open(directory: &Path) -> Journal {
    let clock = || jiff::Timestamp::from_second(1_800_000_000).unwrap();
    Journal::open(JournalConfig { sync_interval: Duration::ZERO, ..JournalConfig::new(directory, "n") }, clock).unwrap()
}

fn follow(
    journal: &Journal,
    api: &Api,
    config: Config,
) -> (tokio::task::JoinHandle<()>, CancellationToken, EventMetrics) {
    let feed = Feed::Journal {
        written: journal.written(),
        state: StateFile::beside(journal.directory()),
        tally: journal.tally(),
    };
    let (stop, metrics) = (CancellationToken::new(), EventMetrics::default());
    let running = run(feed, |kept| Book::new(config, kept), api.clone(), metrics.clone(), stop.clone());
    (tokio::spawn(running), stop, metrics)
}

#[tokio::test]
async fn counts_are_the_journals_after_an_outage_and_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let api = Api::default();
    let journal = open(directory.path());
    let (running, stop, _) = follow(&journal, &api, config());
    records(&journal, 1, 30).await;
    records(&journal, 2, 1).await;
    api.until(&[1, 30]).await;
    api.0.lock().unwrap().1 = true;
    records(&journal, 1, 5).await;
    // Stopped in order while there is no API server: what is not said is known.
    stop.cancel();
    running.await.unwrap();
    assert!(StateFile::beside(directory.path()).load().0.is_some());
    journal.close().await;

    let journal = open(directory.path());
    api.0.lock().unwrap().1 = false;
    let (running, _, metrics) = follow(&journal, &api, config());
    api.until(&[1, 35]).await;
    records(&journal, 3, 2).await;
    api.until(&[1, 2, 35]).await;
    // Killed: nothing is kept that was not before.
    running.abort();
    records(&journal, 2, 3).await;
    let (running, stop, _) = follow(&journal, &api, config());
    api.until(&[2, 4, 35]).await;
    stop.cancel();
    running.await.unwrap();

    // Without what was kept: the same Events, by the same names.
    std::fs::remove_file(StateFile::beside(directory.path()).path()).unwrap();
    records(&journal, 1, 1).await;
    let (running, stop, _) = follow(&journal, &api, config());
    api.until(&[2, 4, 36]).await;
    stop.cancel();
    running.await.unwrap();
    assert_eq!(metrics.lost(), 0);
    journal.close().await;
}

#[tokio::test]
async fn the_end_of_a_journal_that_was_lost_is_not_taken_for_read() {
    let directory = tempfile::tempdir().unwrap();
    let api = Api::default();
    let journal = open(directory.path());
    let (running, stop, _) = follow(&journal, &api, config());
    records(&journal, 1, 10).await;
    api.until(&[10]).await;
    stop.cancel();
    running.await.unwrap();
    journal.close().await;
    // A power failure: the last lines did not get to the disk, others get their numbers.
    let file = directory.path().join("journal-00000001.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    let kept: Vec<_> = text.lines().take(7).collect();
    std::fs::write(&file, kept.join("\n") + "\n").unwrap();
    assert_eq!(kept.iter().filter(|line| line.contains("\"token\"")).count(), 5);
    let journal = open(directory.path());
    records(&journal, 1, 20).await;
    let (running, stop, _) = follow(&journal, &api, config());
    api.until(&[25]).await;
    stop.cancel();
    running.await.unwrap();
    journal.close().await;
}

#[tokio::test]
async fn each_record_has_an_event() {
    let directory = tempfile::tempdir().unwrap();
    let api = Api::default();
    let journal = open(directory.path());
    let (running, stop, _) = follow(&journal, &api, Config::each("n"));
    records(&journal, 1, 500).await;
    api.until(&[1; 500]).await;
    stop.cancel();
    running.await.unwrap();
    journal.close().await;
}

#[tokio::test]
async fn without_a_journal_what_has_no_room_is_counted() {
    let api = Api::default();
    api.0.lock().unwrap().1 = true;
    let queue = Arc::new(Queue::default());
    records(&*queue, 1, crate::audit::series::queue::MOST as u64 + 7).await;
    let (stop, metrics) = (CancellationToken::new(), EventMetrics::default());
    let feed = Feed::Memory(Arc::clone(&queue));
    let running = tokio::spawn(run(feed, |kept| Book::new(config(), kept), api.clone(), metrics.clone(), stop.clone()));
    api.0.lock().unwrap().1 = false;
    api.until(&[crate::audit::series::queue::MOST as u64]).await;
    stop.cancel();
    running.await.unwrap();
    assert_eq!(metrics.lost(), 7);
}

/// A file that nobody writes takes for ever to be opened, as a disk does that hangs.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "std makes no pipes with a name")]
async fn a_disk_that_hangs_does_not_hold_up_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("journal-00000001.jsonl");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let (written, told) = watch::channel(1);
    let tally = Arc::new(Tally::new("j", crate::audit::journal::chain::Head::default()));
    let feed = Feed::Journal { written: told, state: StateFile::beside(directory.path()), tally };
    let stop = CancellationToken::new();
    let api = Api::default();
    let running = tokio::spawn(run(feed, |kept| Book::new(config(), kept), api, EventMetrics::default(), stop.clone()));
    tokio::task::yield_now().await;
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(20), running).await.unwrap().unwrap();
    // The thread that waits for it is let go.
    std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    drop(written);
}
