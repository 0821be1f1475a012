//! What becomes of grants is recorded first, or does not become; and nothing final is written by a binding that was seen late.

use std::sync::Mutex;

use futures::{FutureExt as _, future::BoxFuture};

use super::{
    grants::{begin, edit, grant, granting, install, jit, phase, stamps, until_phase},
    *,
};
use crate::{grant::Record, runtime::testing::GRANTS};

/// A record, and the phase that the grant had at the server when it was made.
#[derive(Clone, Debug)]
struct Kept {
    record: Record,
    there: Option<String>,
    withdrawn: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Disk {
    Well,
    Full,
    /// Takes the record, and never comes back: as if the process were killed right then.
    Last,
}

struct Book {
    server: Server,
    kept: Mutex<Vec<Kept>>,
    disk: Mutex<Disk>,
}

impl std::fmt::Debug for Book {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Book")
    }
}

impl GrantAudit for Book {
    fn record<'a>(&'a self, record: &'a Record, withdrawn: Option<&'a str>) -> BoxFuture<'a, Result<(), String>> {
        let disk = *self.disk.lock().unwrap();
        if disk == Disk::Full {
            return std::future::ready(Err("the disk is full".to_owned())).boxed();
        }
        let there = phase(&self.server, &record.grant.name);
        let kept = Kept { record: record.clone(), there, withdrawn: withdrawn.map(str::to_owned) };
        self.kept.lock().unwrap().push(kept);
        match disk {
            Disk::Last => std::future::pending().boxed(),
            _ => std::future::ready(Ok(())).boxed(),
        }
    }
}

impl Book {
    fn new(server: &Server) -> Arc<Self> {
        Arc::new(Self { server: server.clone(), kept: Mutex::default(), disk: Mutex::new(Disk::Well) })
    }

    fn start(self: &Arc<Self>, holder: &str) -> Rig {
        Rig::start(Source::kubernetes(self.server.client()), holder, |config| config.audit = Some(self.clone()))
    }

    fn put(&self, disk: Disk) {
        *self.disk.lock().unwrap() = disk;
    }

    fn kept(&self) -> Vec<Kept> {
        self.kept.lock().unwrap().clone()
    }

    fn reasons(&self) -> Vec<&'static str> {
        self.kept().iter().map(|kept| kept.record.reason).collect()
    }

    async fn until(&self, reason: &str) {
        self.server.until(reason, |_| self.reasons().contains(&reason)).await;
    }
}

fn approved(name: &str) -> Value {
    let mut object = grant(name);
    object["spec"]["approvals"] = json!([{"by": "bob", "reason": "known"}]);
    object
}

fn status_writes(server: &Server) -> usize {
    server.count(|call| call.is_write_of(GRANTS))
}

#[tokio::test(start_paused = true)]
async fn what_becomes_of_a_grant_is_recorded_before_it_does() {
    let server = jit();
    install(&server, 3600);
    let book = Book::new(&server);
    let rig = book.start("a");
    server.until("assigned", |server| server.all(ASSIGNED).len() == 2).await;
    server.put(GRANTS, grant("g"));
    until_phase(&server, "g", "Pending").await;
    edit(&server, "g", "approvals", json!([{"by": "bob", "reason": "known"}]));
    until_phase(&server, "g", "Active").await;
    server.until("stamped", |server| stamps(server).iter().all(|stamp| stamp["name"] == "g")).await;
    edit(&server, "g", "revoked", json!({"by": "ann", "reason": "done"}));
    until_phase(&server, "g", "Revoked").await;
    let kept = book.kept();
    assert_eq!(book.reasons(), ["GrantRequested", "GrantApproved", "GrantActivated", "GrantRevoked"]);
    let there: Vec<_> = kept.iter().map(|kept| kept.there.as_deref()).collect();
    assert_eq!(there, [None, Some("Pending"), Some("Pending"), Some("Active")], "each before it is written");
    assert!(kept.iter().all(|kept| kept.withdrawn.is_none()));

    let activated = &kept[2].record;
    let status = server.get(GRANTS, "team", "g").unwrap()["status"].clone();
    assert_eq!(json!(activated.active_until), status["activeUntil"]);
    assert_eq!((activated.grant_uid.as_str(), activated.binding_uid.as_deref()), ("grant-g", Some("binding-jit")));
    assert_eq!((activated.binding_generation, activated.requested_by.as_str()), (Some(1), "ann"));
    assert_eq!((activated.purpose.as_str(), activated.duration.as_str()), ("incident", "10m"));
    assert_eq!(
        (activated.from, activated.to),
        (Some(identity_crd::GrantPhase::Pending), identity_crd::GrantPhase::Active)
    );
    let approvals: Vec<_> = activated.approvals.iter().map(|a| (a.by.as_str(), a.reason.as_deref())).collect();
    assert_eq!((approvals, activated.approvals_needed), (vec![("bob", Some("known"))], Some(1)));
    let revoked = &kept[3].record;
    assert_eq!((revoked.ended_by.as_deref(), revoked.ended_reason.as_deref()), (Some("ann"), Some("done")));
    assert_eq!(json!(revoked.active_until), status["activeUntil"]);

    // Where there is nothing left to write to, too.
    server.put(GRANTS, approved("h"));
    server.until("stamped", |server| stamps(server).iter().all(|stamp| stamp["name"] == "h")).await;
    server.remove(GRANTS, "team", "h");
    server.until("recorded", |_| book.reasons().iter().filter(|reason| **reason == "GrantRevoked").count() == 2).await;
    let last = book.kept().pop().unwrap().record;
    assert_eq!((&*last.grant.name, last.message.as_str(), last.requested_by.as_str()), ("h", "it was deleted", "ann"));
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_recorded_does_not_become_active_and_access_ends_all_the_same() {
    let server = jit();
    install(&server, 3600);
    let book = Book::new(&server);
    let rig = book.start("a");
    server.put(GRANTS, approved("first"));
    server.until("stamped", |server| stamps(server).iter().filter(|stamp| stamp["name"] == "first").count() == 2).await;
    book.put(Disk::Full);
    server.put(GRANTS, approved("second"));
    let_it_settle().await;
    assert_eq!(phase(&server, "second"), None, "neither asked for nor active");
    assert!(stamps(&server).iter().all(|stamp| stamp["name"] == "first"));
    // One takes back what was there before: nobody has access a second later, whatever the disk says.
    edit(&server, "first", "revoked", json!({"by": "ann"}));
    let began = tokio::time::Instant::now();
    server.until("taken back", |server| stamps(server).iter().all(Value::is_null)).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let_it_settle().await;
    assert_eq!(phase(&server, "first").as_deref(), Some("Active"), "the word waits for its record");
    let tried = status_writes(&server);
    book.put(Disk::Well);
    let began = tokio::time::Instant::now();
    until_phase(&server, "first", "Revoked").await;
    until_phase(&server, "second", "Active").await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(status_writes(&server) > tried);
    let until = server.get(GRANTS, "team", "second").unwrap()["status"]["activeUntil"].as_str().unwrap().to_owned();
    let until: Timestamp = until.parse().unwrap();
    assert!(until > begin() + SignedDuration::from_mins(13), "it lasts from when it was given: {until}");
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn access_ends_within_a_second_however_many_records_hang() {
    let server = jit();
    install(&server, 3600);
    let book = Book::new(&server);
    let rig = Rig::start(Source::kubernetes(server.client()), "a", |config| {
        config.audit = Some(book.clone());
        config.in_flight = 2;
    });
    server.put(GRANTS, approved("first"));
    server.until("stamped", |server| stamps(server).iter().filter(|stamp| stamp["name"] == "first").count() == 2).await;
    book.put(Disk::Last);
    for name in ["second", "third", "fourth"] {
        server.put(GRANTS, grant(name));
    }
    server
        .until("all hang", |_| book.kept().iter().filter(|kept| &*kept.record.grant.name != "first").count() == 2)
        .await;
    edit(&server, "first", "revoked", json!({"by": "ann"}));
    let began = tokio::time::Instant::now();
    server.until("taken back", |server| stamps(server).iter().all(Value::is_null)).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let_it_settle().await;
    assert_eq!(book.kept().iter().filter(|kept| &*kept.record.grant.name != "first").count(), 2, "no more at once");
    rig.task.abort();
    assert!(rig.task.await.unwrap_err().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_is_killed_between_record_and_write_leaves_a_record_too_many() {
    let server = jit();
    install(&server, 3600);
    let book = Book::new(&server);
    let rig = book.start("a");
    server.put(GRANTS, grant("g"));
    until_phase(&server, "g", "Pending").await;
    book.put(Disk::Last);
    edit(&server, "g", "approvals", json!([{"by": "bob"}]));
    book.until("GrantApproved").await;
    rig.task.abort();
    assert!(rig.task.await.unwrap_err().is_cancelled());
    let_it_settle().await;
    assert_eq!(phase(&server, "g").as_deref(), Some("Pending"));
    let killed_at = book.kept().len();

    book.put(Disk::Well);
    let rig = book.start("b");
    until_phase(&server, "g", "Active").await;
    server.until("stamped", |server| stamps(server).iter().filter(|stamp| stamp["name"] == "g").count() == 2).await;
    let kept = book.kept();
    assert_eq!(book.reasons()[killed_at - 1..], ["GrantApproved", "GrantApproved", "GrantActivated"]);
    // One version, one write: of the two on the same version at most one has become true.
    assert_eq!(kept[killed_at - 1].record.grant_version, kept[killed_at].record.grant_version);
    let status = server.get(GRANTS, "team", "g").unwrap()["status"].clone();
    assert_eq!(json!(kept.last().unwrap().record.active_until), status["activeUntil"]);
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_recorded_and_not_written_is_recorded_as_that() {
    let server = jit();
    install(&server, 3600);
    let book = Book::new(&server);
    let writes = Arc::new(AtomicUsize::new(0));
    let counted = writes.clone();
    // Somebody else's write comes first.
    server.rule(move |call| {
        let is_activation = call.is_write_of(GRANTS) && call.body["status"]["phase"] == "Active";
        (is_activation && counted.fetch_add(1, Ordering::Relaxed) == 0).then_some(Fault::Code(409, None))
    });
    let rig = book.start("a");
    server.put(GRANTS, approved("g"));
    until_phase(&server, "g", "Active").await;
    let kept = book.kept();
    let of = |reason: &str| kept.iter().filter(|kept| kept.record.reason == reason).collect::<Vec<_>>();
    let activations = of("GrantActivated");
    let withdrawn: Vec<_> = activations.iter().map(|kept| kept.withdrawn.is_some()).collect();
    assert_eq!(withdrawn, [false, true, false], "{kept:?}");
    assert!(activations[1].withdrawn.as_ref().unwrap().contains("conflict"), "{activations:?}");
    assert!(writes.load(Ordering::Relaxed) >= 2);
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_is_deleted_while_no_controller_runs_is_told_of() {
    let server = jit();
    install(&server, 3600);
    let book = Book::new(&server);
    let rig = book.start("a");
    server.put(GRANTS, approved("g"));
    server.until("stamped", |server| stamps(server).iter().filter(|stamp| stamp["name"] == "g").count() == 2).await;
    rig.stop().await;
    server.remove(GRANTS, "team", "g");
    let before = book.kept().len();
    let rig = book.start("b");
    server.until("taken back", |server| stamps(server).iter().all(Value::is_null)).await;
    server.until("recorded", |_| book.kept().len() > before).await;
    let_it_settle().await;
    let kept = book.kept().split_off(before);
    assert_eq!(kept.len(), 1, "{kept:?}");
    let record = &kept[0].record;
    assert_eq!((&*record.grant.name, record.reason), ("g", "GrantRevoked"));
    assert_eq!(record.message, "it was deleted while no controller ran");
    assert_eq!(record.binding_uid.as_deref(), Some("binding-jit"));
    server.until("told", |server| boxes::events(server, "GrantRevoked") == 1).await;
    rig.stop().await;
}

/// How the binding is when the new leader sees it last.
#[derive(Clone, Copy, Debug)]
enum Late {
    /// It was yet to be created.
    Absent,
    /// There was another one by its name.
    Another,
    /// It took no grants.
    Without,
    /// It allowed less.
    Shorter,
    /// Somebody else approved.
    OtherApprovers,
}

impl Late {
    fn object(self) -> Option<Value> {
        let mut object = granting("jit");
        match self {
            Self::Absent => return None,
            Self::Another => object["metadata"]["uid"] = json!("the-one-before"),
            Self::Without => object["spec"]["timeBox"] = Value::Null,
            Self::Shorter => object["spec"]["timeBox"]["grant"]["maxDuration"] = json!("1m"),
            Self::OtherApprovers => object["spec"]["timeBox"]["grant"]["approvers"]["users"] = json!(["carla"]),
        }
        Some(object)
    }
}

/// A standby whose watch of bindings has stopped where `late` says, which then leads.
async fn with_a_late_watch(late: Late, now: &Value, put: impl FnOnce(&Server)) -> (Server, Rig, watch::Sender<bool>) {
    let server = jit();
    install(&server, 3600);
    server.remove(BINDINGS, "team", "jit");
    if let Some(object) = late.object() {
        server.put(BINDINGS, object);
    }
    let (open, gate) = watch::channel(false);
    server.rule(move |call| {
        let watches = call.query.contains("watch=true") && call.path.ends_with(BINDINGS);
        watches.then(|| Fault::Slow(gate.clone()))
    });
    server.put(
        "leases",
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"namespace": "default", "name": "controller"},
            "spec": {"holderIdentity": "former", "leaseDurationSeconds": 15, "renewTime": "2027-01-15T08:00:00.000000Z"}}),
    );
    let mut rig = Rig::on(&server, "b");
    rig.until("on standby", |health| health.synced && matches!(health.leadership, Leadership::Standby { .. })).await;
    if let Late::Another = late {
        server.remove(BINDINGS, "team", "jit");
    }
    server.put(BINDINGS, now.clone());
    put(&server);
    take_lease(&server, "");
    rig.until("leads", |health| health.leadership == Leadership::Leading).await;
    (server, rig, open)
}

/// The binding as it is now.
fn current() -> Value {
    let mut object = granting("jit");
    object["metadata"]["generation"] = json!(2);
    object
}

#[tokio::test(start_paused = true)]
async fn a_binding_that_is_seen_late_ends_no_grant() {
    for late in [Late::Absent, Late::Another, Late::Without] {
        let (server, rig, open) = with_a_late_watch(late, &current(), |server| {
            // By the leader before.
            let mut active = approved("g");
            active["status"] = json!({"phase": "Active", "activeFrom": begin().to_string(), "bindingUID": "binding-jit",
                "activeUntil": (begin() + SignedDuration::from_mins(30)).to_string()});
            server.put(GRANTS, active);
        })
        .await;
        server.until("asked", |server| asked_for_binding(server) > 0).await;
        let_it_settle().await;
        assert_eq!(phase(&server, "g").as_deref(), Some("Active"), "{late:?}");
        assert_eq!(server.count(|call| call.body["status"]["phase"] == "Revoked"), 0, "{late:?}");
        let asked = asked_for_binding(&server);
        assert!(asked < 15, "{late:?}: less and less often: {asked}");
        open.send_replace(true);
        server.until("access", |server| stamps(server).iter().filter(|stamp| stamp["name"] == "g").count() == 2).await;
        // And when it is truly gone, that is seen.
        server.remove(BINDINGS, "team", "jit");
        until_phase(&server, "g", "Revoked").await;
        rig.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_binding_that_is_seen_late_refuses_no_grant() {
    for late in [Late::Absent, Late::Without, Late::Shorter, Late::OtherApprovers] {
        let (server, rig, open) = with_a_late_watch(late, &current(), |server| {
            server.put(GRANTS, approved("g"));
        })
        .await;
        let_it_settle().await;
        assert_ne!(phase(&server, "g").as_deref(), Some("Refused"), "{late:?}");
        open.send_replace(true);
        until_phase(&server, "g", "Active").await;
        assert_eq!(server.count(|call| call.body["status"]["phase"] == "Refused"), 0, "{late:?}");
        rig.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_binding_that_was_closer_guarded_since_gives_nothing_by_what_it_was() {
    let mut strict = current();
    strict["spec"]["timeBox"]["grant"]["approvers"]["users"] = json!(["carla"]);
    let mut none = current();
    none["spec"]["timeBox"] = Value::Null;
    for now in [strict, none] {
        // What was seen is as the grant needs it: Bob approves.
        let server = jit();
        install(&server, 3600);
        let (open, gate) = watch::channel(false);
        server.rule(move |call| {
            let watches = call.query.contains("watch=true") && call.path.ends_with(BINDINGS);
            watches.then(|| Fault::Slow(gate.clone()))
        });
        let mut rig = Rig::on(&server, "a");
        rig.until_ready().await;
        server.put(BINDINGS, now.clone());
        server.put(GRANTS, approved("g"));
        let_it_settle().await;
        assert_ne!(phase(&server, "g").as_deref(), Some("Active"), "{now}");
        open.send_replace(true);
        let_it_settle().await;
        assert_eq!(server.count(|call| call.body["status"]["phase"] == "Active"), 0, "{now}");
        assert!(stamps(&server).iter().all(Value::is_null));
        rig.stop().await;
    }
}

fn asked_for_binding(server: &Server) -> usize {
    server.count(|call| call.method == "GET" && call.path.ends_with("/azureidentitybindings/jit"))
}
