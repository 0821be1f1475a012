//! The whole controller against an API server in memory, in stopped time, and against a directory in real time.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::runtime::{
    clock::testing::TokioClock,
    observe::WriteOutcome,
    testing::{ASSIGNED, BINDINGS, Call, Fault, IDENTITIES, PATIENCE, Server, Told, binding, identity, pod},
};

const MINUTE: Duration = Duration::from_mins(1);

struct Rig {
    health: watch::Receiver<Health>,
    told: Arc<Told>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

fn lease(holder: &str) -> lease::Config {
    lease::Config {
        namespace: "default".into(),
        name: "controller".into(),
        duration: Duration::from_secs(15),
        holder: holder.into(),
    }
}

impl Rig {
    fn start(source: Source, holder: &str, adjust: impl FnOnce(&mut Config)) -> Self {
        let told = Arc::new(Told::default());
        let (sender, health) = watch::channel(Health::default());
        let mut config = Config::new(lease(holder), Arc::new(TokioClock::new()));
        config.observer = told.clone();
        config.health = sender;
        adjust(&mut config);
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(config, source, stop.clone()));
        Self { health, told, stop, task }
    }

    fn on(server: &Server, holder: &str) -> Self {
        Self::start(Source::kubernetes(server.client()), holder, |_| {})
    }

    async fn until(&mut self, what: &str, holds: impl FnMut(&Health) -> bool) {
        let result = tokio::time::timeout(PATIENCE, self.health.wait_for(holds)).await;
        result.unwrap_or_else(|_| panic!("never: {what}")).unwrap();
    }

    async fn until_ready(&mut self) {
        self.until("ready", Health::is_ready).await;
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(MINUTE, self.task).await.expect("does not stop").unwrap().unwrap();
    }
}

/// A server with `pods` pods that are to have one identity.
fn server(pods: usize) -> Server {
    let server = Server::new();
    server.put(IDENTITIES, identity("demo"));
    server.put(BINDINGS, binding("demo", "demo"));
    for index in 0..pods {
        server.put("pods", pod(&format!("p{index}")));
    }
    server
}

fn is_assignment(call: &Call) -> bool {
    call.is_write_of(ASSIGNED)
}

/// Leaves it alone for two minutes of stopped time.
async fn let_it_settle() {
    tokio::time::sleep(2 * MINUTE).await;
}

/// Requests to write each assignment.
fn writes(server: &Server) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for call in server.calls(is_assignment) {
        *counts.entry(call.path).or_default() += 1;
    }
    counts
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_before_every_kind_is_listed() {
    for kind in ["pods", IDENTITIES, BINDINGS, ASSIGNED] {
        let server = server(3);
        let (open, gate) = watch::channel(false);
        let last = format!("/{kind}");
        server
            .rule(move |call| (call.method == "GET" && call.path.ends_with(&last)).then(|| Fault::Slow(gate.clone())));
        let mut rig = Rig::on(&server, "a");
        rig.until("leads", |health| health.leadership == Leadership::Leading).await;
        let_it_settle().await;
        assert_eq!(server.count(|call| call.is_write() && !call.is_write_of("leases")), 0, "{kind} is missing");
        assert!(!rig.health.borrow().is_ready());
        open.send_replace(true);
        rig.until_ready().await;
        server.until("all are assigned", |server| server.all(ASSIGNED).len() == 3).await;
        rig.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn each_pod_costs_one_write_and_a_restart_none() {
    let server = server(50);
    let rig = Rig::on(&server, "a");
    server.until("all are assigned", |server| server.all(ASSIGNED).len() == 50).await;
    server.put("pods", pod("late"));
    server.until("the last, too", |server| server.all(ASSIGNED).len() == 51).await;
    let_it_settle().await;
    assert!(writes(&server).values().all(|count| *count == 1), "{:?}", writes(&server));
    let statuses = server.calls(|call| call.path.ends_with("/status")).len();
    assert!((2..=4).contains(&statuses), "of two objects: {statuses}");
    assert_eq!(server.get(BINDINGS, "team", "demo").unwrap()["status"]["matchedPods"], 51);
    rig.stop().await;

    let before = server.count(|call| call.is_write() && !call.is_write_of("leases"));
    let mut rig = Rig::on(&server, "b");
    rig.until("leads", |health| health.leadership == Leadership::Leading && health.synced).await;
    let_it_settle().await;
    let new = server.calls(|call| call.is_write() && !call.is_write_of("leases")).split_off(before);
    assert!(new.is_empty(), "{new:?}");
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn at_most_so_many_writes_are_under_way() {
    let server = server(60);
    let (open, gate) = watch::channel(false);
    server.rule(move |call| is_assignment(call).then(|| Fault::LateAnswer(gate.clone())));
    let rig = Rig::start(Source::kubernetes(server.client()), "a", |config| config.in_flight = 7);
    server.until("some are written", |server| server.count(is_assignment) == 7).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(server.count(is_assignment), 7);
    open.send_replace(true);
    server.until("all are assigned", |server| server.all(ASSIGNED).len() == 60).await;
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_server_is_left_in_peace() {
    let server = server(100);
    server.rule(|call| is_assignment(call).then_some(Fault::Code(503, None)));
    let rig = Rig::on(&server, "a");
    server.until("the first attempts", |server| server.count(is_assignment) > 0).await;
    tokio::time::sleep(5 * MINUTE).await;
    // 24 that were under way at once, then one every 15 s at most as seldom as that.
    let attempts = server.count(is_assignment);
    assert!((30..=80).contains(&attempts), "{attempts} attempts in five minutes");
    server.well_again();
    let began = tokio::time::Instant::now();
    server.until("all are assigned", |server| server.all(ASSIGNED).len() == 100).await;
    assert!(began.elapsed() < 2 * MINUTE, "after {:?}", began.elapsed());
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_honoured() {
    let server = server(1);
    let refused = Arc::new(AtomicUsize::new(0));
    let count = refused.clone();
    server.rule(move |call| {
        (is_assignment(call) && count.fetch_add(1, Ordering::Relaxed) < 3).then_some(Fault::Code(429, Some(40)))
    });
    let rig = Rig::on(&server, "a");
    server.until("assigned", |server| server.all(ASSIGNED).len() == 1).await;
    let calls = server.calls(is_assignment);
    assert_eq!(calls.len(), 4);
    for pair in calls.windows(2) {
        let gap = pair[1].at - pair[0].at;
        assert!((40..=50).contains(&gap.as_secs()), "{gap:?}");
    }
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_is_refused_holds_up_no_other() {
    let server = server(5);
    server.rule(|call| (is_assignment(call) && call.body["spec"]["pod"] == "p2").then_some(Fault::Code(422, None)));
    let rig = Rig::on(&server, "a");
    server.until("the others are assigned", |server| server.all(ASSIGNED).len() == 4).await;
    tokio::time::sleep(10 * MINUTE).await;
    let attempts = server.count(|call| is_assignment(call) && call.body["spec"]["pod"] == "p2");
    assert!((8..=22).contains(&attempts), "{attempts} attempts in ten minutes");
    let tries = server.calls(|call| is_assignment(call) && call.body["spec"]["pod"] == "p2");
    assert!(tries.windows(2).all(|pair| pair[1].at - pair[0].at >= Duration::from_secs(30)), "seldom from the first");
    assert_eq!(server.count(is_assignment), attempts + 4);
    server.well_again();
    server.until("this one, too", |server| server.all(ASSIGNED).len() == 5).await;
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_made_up_for_by_the_watch() {
    let server = server(4);
    let (_never, gate) = watch::channel(false);
    server.rule(move |call| is_assignment(call).then(|| Fault::LateAnswer(gate.clone())));
    let rig = Rig::on(&server, "a");
    server.until("all are there", |server| server.all(ASSIGNED).len() == 4).await;
    let_it_settle().await;
    assert!(writes(&server).values().all(|count| *count == 1), "{:?}", writes(&server));
    assert_eq!(rig.told.count(WriteOutcome::Failed), 4, "they ran into their limit");
    rig.stop().await;
}

/// Somebody else takes the lease, as after a partition.
fn take_lease(server: &Server, holder: &str) {
    let mut lease = server.get("leases", "default", "controller").unwrap();
    lease["spec"]["holderIdentity"] = json!(holder);
    server.put("leases", lease);
}

#[tokio::test(start_paused = true)]
async fn without_the_lease_nothing_is_written_and_with_it_again_what_is_missing() {
    let server = server(60);
    let (open, gate) = watch::channel(false);
    server.rule(move |call| is_assignment(call).then(|| Fault::Slow(gate.clone())));
    let mut rig = Rig::on(&server, "a");
    server.until("as many as may be are under way", |server| server.count(is_assignment) == 24).await;

    take_lease(&server, "b");
    rig.until("on standby", |health| health.leadership == Leadership::Standby { leader: "b".into() }).await;
    assert!(rig.health.borrow().is_ready(), "it could take over at once");
    // What had reached the server is done by it all the same.
    open.send_replace(true);
    server.well_again();
    server.until("the server has done what it had", |server| server.all(ASSIGNED).len() == 24).await;
    let sent = server.count(is_assignment);
    // `b` is alive and works.
    for _ in 0..60 {
        take_lease(&server, "b");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert_eq!(server.count(is_assignment), sent, "the queue was dropped");
    assert_eq!(rig.told.count(WriteOutcome::Fenced), 0, "and nothing even tried");
    assert_eq!(sent, 24);

    take_lease(&server, "");
    server.until("all are assigned", |server| server.all(ASSIGNED).len() == 60).await;
    let_it_settle().await;
    assert!(writes(&server).values().all(|count| *count == 1), "{:?}", writes(&server));
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_ends_the_lease_in_time() {
    let server = server(1);
    let mut rig = Rig::on(&server, "a");
    server.until("assigned", |server| server.all(ASSIGNED).len() == 1).await;
    let (_never, gate) = watch::channel(false);
    server.rule(move |_| Some(Fault::Slow(gate.clone())));
    server.end_watches(false);
    let began = tokio::time::Instant::now();
    rig.until("on standby", |health| health.leadership != Leadership::Leading).await;
    assert!(began.elapsed() <= Duration::from_millis(13_600), "{:?}", began.elapsed());
    server.well_again();
    rig.until("leads again", |health| health.leadership == Leadership::Leading).await;
    server.put("pods", pod("new"));
    server.until("works again", |server| server.all(ASSIGNED).len() == 2).await;
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn stopping_finishes_what_is_under_way_and_releases_the_lease() {
    let server = server(60);
    let (open, gate) = watch::channel(false);
    server.rule(move |call| is_assignment(call).then(|| Fault::Slow(gate.clone())));
    let rig = Rig::on(&server, "a");
    server.until("some are under way", |server| server.count(is_assignment) == 24).await;
    rig.stop.cancel();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!rig.task.is_finished(), "it waits for them");
    let holder =
        |server: &Server| server.get("leases", "default", "controller").unwrap()["spec"]["holderIdentity"].clone();
    assert_eq!(holder(&server), "a", "and keeps the lease as long");
    open.send_replace(true);
    rig.stop().await;
    assert_eq!(server.all(ASSIGNED).len(), 24);
    assert_eq!(server.count(is_assignment), 24, "nothing new was begun");
    assert_eq!(holder(&server), "");

    // One that hangs is waited for only so long.
    let (_never, gate) = watch::channel(false);
    server.rule(move |call| is_assignment(call).then(|| Fault::Slow(gate.clone())));
    let rig = Rig::on(&server, "b");
    server.until("more are under way", |server| server.count(is_assignment) == 48).await;
    let began = tokio::time::Instant::now();
    rig.stop().await;
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert_eq!(holder(&server), "");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_wanted_any_more_is_deleted_once() {
    let server = server(3);
    let rig = Rig::on(&server, "a");
    server.until("all are assigned", |server| server.all(ASSIGNED).len() == 3).await;
    let deletions = |server: &Server| server.count(|call| call.method == "DELETE");

    // The garbage collector's, who is not at home here: after a while the controller does it.
    let began = tokio::time::Instant::now();
    server.remove("pods", "team", "p0");
    server.until("deleted", |server| server.all(ASSIGNED).len() == 2).await;
    assert!((MINUTE..MINUTE + Duration::from_secs(5)).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!(deletions(&server), 1);

    // It is at home: nothing is left to do.
    server.remove("pods", "team", "p1");
    let name = server.all(ASSIGNED).into_iter().find(|object| object["spec"]["pod"] == "p1").unwrap();
    server.remove(ASSIGNED, "team", name["metadata"]["name"].as_str().unwrap());
    let_it_settle().await;
    assert_eq!(deletions(&server), 1);

    let began = tokio::time::Instant::now();
    server.remove(BINDINGS, "team", "demo");
    server.until("deleted", |server| server.all(ASSIGNED).is_empty()).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let_it_settle().await;
    assert_eq!(deletions(&server), 2);
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_changed_by_others_is_put_right_and_what_is_theirs_is_left_alone() {
    let server = server(2);
    let rig = Rig::on(&server, "a");
    server.until("all are assigned", |server| server.all(ASSIGNED).len() == 2).await;
    let first = server.all(ASSIGNED)[0].clone();
    let mut changed = first.clone();
    changed["spec"]["nodename"] = json!("elsewhere");
    server.put(ASSIGNED, changed);
    let name = first["metadata"]["name"].as_str().unwrap().to_owned();
    let right = |object: Option<Value>| object.is_some_and(|object| object["spec"] == first["spec"]);
    server.until("put right", |server| right(server.get(ASSIGNED, "team", &name))).await;
    server.remove(ASSIGNED, "team", &name);
    server.until("made again", |server| right(server.get(ASSIGNED, "team", &name))).await;
    let_it_settle().await;
    assert_eq!(writes(&server).values().sum::<usize>(), 4);

    // One of this name that somebody else has made.
    server.remove("pods", "team", "p1");
    server.until("deleted", |server| server.all(ASSIGNED).len() == 1).await;
    rig.stop().await;
    let mut foreign = first.clone();
    foreign["metadata"] = json!({"name": name, "namespace": "team", "labels": {"mine": "yes"}});
    server.remove(ASSIGNED, "team", &name);
    server.put(ASSIGNED, foreign.clone());
    let before = server.count(is_assignment);
    let rig = Rig::on(&server, "b");
    let_it_settle().await;
    assert_eq!(server.count(is_assignment), before);
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_appeared_unseen_is_a_conflict_that_is_looked_at() {
    let server = server(1);
    // Its watch is slow: it does not hear of the object that is there.
    let rig = Rig::on(&server, "a");
    server.until("assigned", |server| server.all(ASSIGNED).len() == 1).await;
    let there = server.all(ASSIGNED)[0].clone();
    rig.stop().await;

    let (_never, gate) = watch::channel(false);
    server.remove(ASSIGNED, "team", there["metadata"]["name"].as_str().unwrap());
    server.rule(move |call| {
        (call.query.contains("watch=true") && call.path.ends_with(ASSIGNED)).then(|| Fault::Slow(gate.clone()))
    });
    let lists = server.count(|call| call.method == "GET" && call.path.ends_with(ASSIGNED));
    let rig = Rig::on(&server, "b");
    server.until("listed", |server| server.count(|c| c.method == "GET" && c.path.ends_with(ASSIGNED)) > lists).await;
    server.until("made again", |server| server.all(ASSIGNED).len() == 1).await;
    // Somebody rewrites it behind its back; the next write of ours is for a version that is gone.
    let mut rewritten = server.all(ASSIGNED)[0].clone();
    rewritten["metadata"]["annotations"] = json!({"a": "b"});
    server.put(ASSIGNED, rewritten);
    let mut changed = identity("demo");
    changed["metadata"]["generation"] = json!(2);
    changed["spec"]["clientID"] = json!("44444444-4444-4444-4444-444444444444");
    server.put(IDENTITIES, changed);
    let client = |server: &Server| {
        server.all(ASSIGNED)[0]["spec"]["azureIdentityRef"]["spec"]["clientID"]
            == "44444444-4444-4444-4444-444444444444"
    };
    server.until("written after all", client).await;
    assert!(rig.told.count(WriteOutcome::Conflict) >= 1);
    let before = server.count(is_assignment);
    let_it_settle().await;
    assert_eq!(server.count(is_assignment), before);
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn events_never_hold_up_a_write() {
    let server = server(3);
    server.put(BINDINGS, binding("broken", "absent"));
    let (_never, gate) = watch::channel(false);
    server.rule(move |call| call.path.contains("/events").then(|| Fault::Slow(gate.clone())));
    let rig = Rig::on(&server, "a");
    server.until("an event is tried", |server| server.count(|call| call.path.contains("/events")) > 0).await;
    for index in 0..5 {
        server.put("pods", pod(&format!("more{index}")));
    }
    server.until("all are assigned", |server| server.all(ASSIGNED).len() == 8).await;
    server
        .until("told", |server| {
            let conditions = server.get(BINDINGS, "team", "broken").unwrap()["status"]["conditions"].clone();
            conditions.as_array().is_some_and(|all| all.iter().any(|c| c["reason"] == "NotFound"))
        })
        .await;
    rig.stop().await;
}

#[path = "manifest_tests.rs"]
mod manifests;

#[path = "box_tests.rs"]
mod boxes;

#[path = "grant_tests.rs"]
mod grants;

#[path = "grant_audit_tests.rs"]
mod grant_audit;

#[path = "bad_input_tests.rs"]
mod bad_input;

#[path = "telling_tests.rs"]
mod telling;
