//! A disk that is full: a limit of the kernel on the size of a file stands for it, which cuts a write in the middle as a full
//! disk does.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

use std::{
    env, fs,
    process::{Command, Stdio},
    time::Duration,
};

use identity_broker::{
    AuditRecord, AuditSink as _, Reason, Verdict,
    audit::journal::{Journal, JournalConfig, file_name, verify},
};
use jiff::Timestamp;

const DIRECTORY: &str = "ENTRA_POD_IDENTITY_TEST_JOURNAL";
/// Whether the request writes by itself, or the thread does.
const INLINE: &str = "ENTRA_POD_IDENTITY_TEST_INLINE";
/// In blocks of 512 bytes, as POSIX has it for `ulimit -f` (bash in its own mode: 1024).
const BLOCKS: usize = 40;

/// Not a test of its own: what [`a_full_disk_refuses_and_leaves_whole_records`] starts with little room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by another test"]
async fn writer() {
    #[expect(clippy::disallowed_methods, reason = "how the other test tells it")]
    let directory = env::var(DIRECTORY).unwrap();
    let time = || Timestamp::from_second(1_800_000_000).unwrap();
    #[expect(clippy::disallowed_methods, reason = "how the other test tells it")]
    let inline = env::var(INLINE).is_ok();
    let config =
        JournalConfig { sync_interval: Duration::from_millis(5), inline, ..JournalConfig::new(&directory, "node") };
    let journal = Journal::open(config, time).unwrap();
    let record = async |name: &str| {
        let address = [10, 42, 0, 7].into();
        journal.record(&AuditRecord::new(time(), Verdict::Issued, Reason::Issued, address, name)).await
    };
    let (mut written, mut refused) = (0_u64, 0);
    for number in 0..400 {
        match record(&format!("r{number}")).await {
            Ok(()) => written += 1,
            Err(error) => {
                assert!(error.to_string().contains("journal: "), "{error}");
                refused += 1;
            }
        }
    }
    let stats = journal.stats();
    assert_eq!(stats.led > 10, inline, "{stats:?}");
    assert!(written > 20 && refused > 20 && stats.failing, "{written} written, {refused} refused, {stats:?}");
    assert_eq!((stats.records, stats.lost), (written, refused));

    // What is there is whole, to the record.
    let path = format!("{directory}/{}", file_name(1));
    let bytes = fs::read(&path).unwrap();
    let report = verify::verify([("f", &*bytes)], verify::Options::default());
    assert!(report.is_whole() && report.token_records == written, "{report:?}");

    // Somebody makes room: here by taking the file away, which is damage, and said to be.
    fs::remove_file(&path).unwrap();
    record("again").await.unwrap();
    assert!(!journal.stats().failing);
    journal.close().await;
    let text = fs::read_to_string(format!("{directory}/{}", file_name(2))).unwrap();
    assert!(
        text.contains(&format!("\"kind\":\"lost\",\"time\":\"2027-01-15T08:00:00.000000Z\",\"records\":{refused},")),
        "{text}"
    );
    assert!(text.contains("\"resource\":\"again\""));
}

#[test]
fn a_full_disk_refuses_and_leaves_whole_records() {
    for inline in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        // Ignored, the signal becomes an error of write(2), and stays ignored for what is executed.
        let script = format!("trap '' XFSZ; ulimit -f {BLOCKS}; exec \"$0\" --exact writer --ignored --nocapture");
        #[expect(clippy::disallowed_methods, reason = "the process that has little room")]
        let mut command = Command::new("sh");
        command.args(["-c", &script]).arg(env::current_exe().unwrap()).env(DIRECTORY, directory.path());
        if inline {
            command.env(INLINE, "1");
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("1 passed"), "{text}");
    }
}
