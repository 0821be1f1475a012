use super::*;
use crate::runtime::testing::{Call, Fault, Server};

const MINUTE: Duration = Duration::from_mins(1);
const NAME: &str = "entra-pod-identity-audit-node-1";

fn checkpoint(journal: &str, seq: u64) -> Published {
    let time = Timestamp::from_second(1_800_000_000 + i64::try_from(seq).unwrap()).unwrap();
    Published { journal: journal.into(), seq, head: format!("{seq:064x}"), time, key: Some("d2a0".into()) }
}

fn publisher(server: &Server) -> Publisher {
    Publisher::new(server.client(), "audit", "node-1").unwrap()
}

fn is_write(call: &Call) -> bool {
    call.is_write_of("leases")
}

fn published(server: &Server) -> Option<String> {
    Some(server.get("leases", "audit", NAME)?["metadata"]["annotations"][CHECKPOINT_SEQ].as_str()?.to_owned())
}

#[tokio::test]
async fn a_checkpoint_is_in_the_annotations_of_a_lease_of_the_node() {
    let server = Server::new();
    let mut publisher = publisher(&server);
    assert_eq!(publisher.publish(&checkpoint("j", 7)).await, Ok(true));
    assert_eq!(publisher.publish(&checkpoint("j", 9)).await, Ok(true));
    assert_eq!(publisher.publish(&checkpoint("j", 9)).await, Ok(false));
    let text: Vec<_> = server.calls(|_| true).iter().map(Call::text).collect();
    insta::assert_snapshot!(text.join("\n"));
}

#[tokio::test]
async fn within_a_journal_it_never_goes_back() {
    let server = Server::new();
    publisher(&server).publish(&checkpoint("j", 9)).await.unwrap();
    let before = server.count(is_write);
    // After a restart, too.
    let mut again = publisher(&server);
    let error = again.publish(&checkpoint("j", 8)).await.unwrap_err();
    assert_eq!(error, Error::Behind { lease: format!("audit/{NAME}"), published: 9, at: 8 });
    assert!(error.to_string().contains("its end is missing"), "{error}");
    assert_eq!(server.count(is_write), before);
    // Another journal is another.
    assert_eq!(again.publish(&checkpoint("k", 3)).await, Ok(true));
    assert_eq!(published(&server).as_deref(), Some("3"));
}

#[tokio::test]
async fn nothing_is_overwritten_unread() {
    let server = Server::new();
    let mut publisher = publisher(&server);
    publisher.publish(&checkpoint("j", 7)).await.unwrap();
    // Somebody else writes there: an older daemon of this node, which is still on its way out.
    let mut there = server.get("leases", "audit", NAME).unwrap();
    there["metadata"]["annotations"][CHECKPOINT_SEQ] = json!("12");
    server.put("leases", there);
    let conflict = publisher.publish(&checkpoint("j", 10)).await.unwrap_err();
    assert!(matches!(conflict, Error::Request { failure: Failure::Conflict(_), .. }), "{conflict}");
    assert_eq!(published(&server).as_deref(), Some("12"));
    assert!(matches!(publisher.publish(&checkpoint("j", 10)).await, Err(Error::Behind { published: 12, at: 10, .. })));
    assert_eq!(publisher.publish(&checkpoint("j", 13)).await, Ok(true));
}

#[tokio::test]
async fn a_journal_that_has_grown_after_its_end_was_cut_off_is_noticed() {
    let server = Server::new();
    publisher(&server).publish(&checkpoint("j", 9)).await.unwrap();
    let having = |hash: Option<&str>| {
        let hash = hash.map(str::to_owned);
        publisher(&server).comparing(Box::new(move |seq| {
            assert_eq!(seq, 9, "what is published");
            Box::pin(std::future::ready(hash.clone()))
        }))
    };
    let said = async |publisher: &Publisher, next: &Published| {
        publisher.contradiction(&publisher.look().await.unwrap(), next).await
    };
    let (same, other) = (checkpoint("j", 9).head, "e".repeat(64));
    for next in [checkpoint("j", 9), checkpoint("j", 12)] {
        assert_eq!(said(&having(Some(&same)), &next).await, None);
        assert_eq!(said(&having(None), &next).await, None, "older files go");
        let text = said(&having(Some(&other)), &next).await.expect("another record has that number");
        assert!(text.starts_with("record 9 ") && text.contains(&same) && text.contains(&other), "{text}");
    }
    assert_eq!(said(&having(Some(&other)), &checkpoint("k", 12)).await, None, "another journal has other records");
    // It is said once, and publishing goes on.
    let mut publisher = having(Some(&other));
    assert_eq!(publisher.publish(&checkpoint("j", 12)).await, Ok(true));
    assert_eq!(said(&publisher, &checkpoint("j", 13)).await, None);
    assert_eq!(published(&server).as_deref(), Some("12"));
}

#[test]
fn a_name_that_is_too_long_is_said() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _inside = runtime.enter();
    let server = Server::new();
    assert_eq!(Publisher::new(server.client(), "audit", "n".repeat(240)).unwrap_err(), Error::Name(240));
    assert!(Publisher::new(server.client(), "audit", "n".repeat(228)).is_ok());
}

struct Rig {
    newest: watch::Sender<Option<Published>>,
    progress: Arc<Progress>,
    task: tokio::task::JoinHandle<()>,
}

fn start(server: &Server) -> Rig {
    let (newest, receiver) = watch::channel(None);
    let progress = Arc::new(Progress::default());
    let task = tokio::spawn(run(publisher(server), receiver, MINUTE, progress.clone()));
    Rig { newest, progress, task }
}

impl Rig {
    fn at(&self, seq: u64) {
        self.newest.send_replace(Some(checkpoint("j", seq)));
    }
}

#[tokio::test(start_paused = true)]
async fn the_newest_is_published_once_a_minute() {
    let server = Server::new();
    let rig = start(&server);
    let began = Instant::now();
    for seq in 1..=600 {
        rig.at(seq);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let calls = server.calls(is_write);
    assert!((9..=11).contains(&calls.len()), "{} in {:?}", calls.len(), began.elapsed());
    assert!(calls.windows(2).all(|pair| pair[1].at >= pair[0].at + MINUTE));
    // At the end the last word, at once.
    rig.at(601);
    drop(rig.newest);
    rig.task.await.unwrap();
    assert_eq!((published(&server).as_deref(), rig.progress.published()), (Some("601"), 601));
    assert_eq!(rig.progress.writes(), calls.len() as u64 + 1);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_tried_again_seldom_and_what_is_newest_then_is_published() {
    let server = Server::new();
    server.rule(|call| call.path.contains("/leases").then_some(Fault::Code(503, None)));
    let rig = start(&server);
    rig.at(1);
    tokio::time::sleep(10 * MINUTE).await;
    rig.at(2);
    let tries = server.count(|call| call.path.contains("/leases"));
    assert!((10..=25).contains(&tries), "{tries} in ten minutes");
    assert_eq!(rig.progress.failures(), tries as u64);
    server.well_again();
    server.until("published", |server| published(server).as_deref() == Some("2")).await;
    // The end of a daemon does not wait for a server that is away.
    server.rule(|call| call.path.contains("/leases").then_some(Fault::Code(503, None)));
    rig.at(3);
    drop(rig.newest);
    let began = Instant::now();
    rig.task.await.unwrap();
    assert!(began.elapsed() <= Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn nothing_new_is_no_write() {
    let server = Server::new();
    let rig = start(&server);
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!(server.count(|_| true), 0);
    rig.at(1);
    server.until("published", |server| published(server).is_some()).await;
    tokio::time::sleep(10 * MINUTE).await;
    drop(rig.newest);
    rig.task.await.unwrap();
    assert_eq!(server.count(is_write), 1);
}
