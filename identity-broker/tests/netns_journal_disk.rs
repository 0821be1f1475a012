//! A disk that is really full, and has room again: a small tmpfs in a mount namespace of its own.

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

const DIRECTORY: &str = "ENTRA_POD_IDENTITY_TEST_DISK";
/// Size of the disk, and of what somebody else has put there, in KiB.
const DISK: usize = 96;
const BALLAST: usize = 48;

/// Not a test of its own: what [`a_full_disk_gives_no_token_until_there_is_room`] starts on the small disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by another test"]
async fn writer() {
    #[expect(clippy::disallowed_methods, reason = "how the other test tells it")]
    let directory = env::var(DIRECTORY).unwrap();
    let ballast = format!("{directory}/ballast");
    fs::write(&ballast, vec![b'x'; BALLAST << 10]).unwrap();
    let time = || Timestamp::from_second(1_800_000_000).unwrap();
    let config = JournalConfig {
        sync_interval: Duration::from_millis(5),
        ..JournalConfig::new(format!("{directory}/audit"), "node")
    };
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
                assert!(error.to_string().contains("No space left on device"), "{error}");
                refused += 1;
            }
        }
    }
    let stats = journal.stats();
    assert!(written > 20 && refused > 20 && stats.failing, "{written} written, {refused} refused, {stats:?}");
    assert_eq!((stats.records, stats.lost), (written, refused));
    let path = format!("{directory}/audit/{}", file_name(1));
    let report = |bytes: &[u8]| verify::verify([("f", bytes)], verify::Options::default());
    let full = report(&fs::read(&path).unwrap());
    assert!(full.is_whole() && full.token_records == written, "{full:?}");

    fs::remove_file(&ballast).unwrap();
    record("again").await.unwrap();
    assert!(!journal.stats().failing);
    journal.close().await;
    let bytes = fs::read(&path).unwrap();
    let roomy = report(&bytes);
    assert_eq!(roomy.token_records, written + 1);
    // That some could not be written is the one thing to be found, and the chain goes on behind it.
    assert!(matches!(&roomy.findings[..], [verify::Finding { kind: verify::Kind::Reported, .. }]), "{roomy:?}");
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains(&format!("\"records\":{refused},")) && text.contains("\"resource\":\"again\""), "{text}");
}

#[test]
fn a_full_disk_gives_no_token_until_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    // The disk goes with the namespace, and that with the process.
    let script = format!(
        "mount -t tmpfs -o size={DISK}k,mode=700 tmpfs \"${DIRECTORY}\" && exec \"$0\" --exact writer --ignored --nocapture"
    );
    #[expect(clippy::disallowed_methods, reason = "the process that has a small disk")]
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    command.arg(env::current_exe().unwrap()).env(DIRECTORY, directory.path());
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}
