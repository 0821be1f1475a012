//! A process that writes a journal is killed again and again: what it had been told is written is there, and the journal is
//! whole.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use identity_broker::{
    AuditRecord, AuditSink as _, Reason, Verdict,
    audit::journal::{Journal, JournalConfig, file_name, files, verify},
};
use jiff::Timestamp;

const DIRECTORY: &str = "ENTRA_POD_IDENTITY_TEST_JOURNAL";
const ROUND: &str = "ENTRA_POD_IDENTITY_TEST_ROUND";
const ROUNDS: usize = 20;

/// Not a test of its own: what [`nothing_that_was_acknowledged_is_lost`] starts and kills.
#[test]
#[ignore = "started by another test"]
fn writer() {
    #[expect(clippy::disallowed_methods, reason = "how the other test tells it")]
    let (directory, round) = (env::var(DIRECTORY).unwrap(), env::var(ROUND).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let time = || Timestamp::from_second(1_800_000_000).unwrap();
        let config = JournalConfig {
            max_size: 200_000,
            keep: 1000,
            sync_interval: Duration::from_millis(10),
            ..JournalConfig::new(directory, "node")
        };
        let journal = Arc::new(Journal::open(config, time).unwrap());
        let tasks = (0..16).map(|task| {
            let (journal, round) = (Arc::clone(&journal), round.clone());
            tokio::spawn(async move {
                for number in 0.. {
                    let name = format!("{round}-{task}-{number}");
                    let address = [10, 42, 0, 7].into();
                    let record = AuditRecord::new(time(), Verdict::Issued, Reason::Issued, address, &name);
                    journal.record(&record).await.unwrap();
                    // Acknowledged: from now on it must be there.
                    let _ = writeln!(std::io::stdout().lock(), "ack {name}");
                }
            })
        });
        futures::future::join_all(tasks).await;
    });
}

fn start(directory: &Path, round: usize) -> Child {
    #[expect(clippy::disallowed_methods, reason = "the process that is killed")]
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "writer", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn nothing_that_was_acknowledged_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 0..ROUNDS {
        let mut child = start(directory.path(), round);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        // Killed at another moment each time, after it has begun to acknowledge.
        for _ in 0..50 + round * 97 {
            assert!(output.read_line(&mut text).unwrap() > 0, "it ended by itself: {text}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        output.read_to_string(&mut text).unwrap();
        // The last line may be torn, but then the process was not done with telling.
        let whole = &text[..text.rfind('\n').unwrap()];
        acknowledged.extend(whole.lines().filter_map(|line| line.split_once("ack ").map(|(_, name)| name.to_owned())));
    }
    assert!(acknowledged.len() > ROUNDS * 50);

    let all: Vec<_> = files(directory.path())
        .unwrap()
        .into_iter()
        .map(|number| (file_name(number), fs::read(directory.path().join(file_name(number))).unwrap()))
        .collect();
    let options = verify::Options { complete: true, ..verify::Options::default() };
    let mut written = BTreeSet::new();
    let mut last = Vec::new();
    for (_, bytes) in &all {
        last.extend_from_slice(bytes);
    }
    for line in last.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
        let record: serde_json::Value = serde_json::from_slice(line).unwrap();
        if let Some(name) = record["resource"].as_str() {
            assert!(written.insert(name.to_owned()), "{name} is there twice");
        }
    }
    let missing: Vec<_> = acknowledged.difference(&written).collect();
    assert!(missing.is_empty(), "{} of {} are missing: {missing:?}", missing.len(), acknowledged.len());
    // What was on its way when it was killed, and no more: each task waits for its record.
    assert!(written.len() - acknowledged.len() <= ROUNDS * 32, "{} {}", written.len(), acknowledged.len());

    // The last one left the journal as it was; the next start makes it whole if need be.
    let journal = Journal::open(JournalConfig { keep: 1000, ..JournalConfig::new(directory.path(), "node") }, || {
        Timestamp::from_second(1_800_000_001).unwrap()
    })
    .unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(journal.close());
    let all: Vec<_> = files(directory.path())
        .unwrap()
        .into_iter()
        .map(|number| (file_name(number), fs::read(directory.path().join(file_name(number))).unwrap()))
        .collect();
    assert!(all.len() > 2, "it has rotated");
    let report = verify::verify(all.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())), options);
    assert!(report.is_whole(), "{:#?}", report.findings);
}
