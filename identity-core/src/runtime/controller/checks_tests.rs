//! Trying credentials, against an API server in memory, in stopped time.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use jiff::SignedDuration;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::runtime::{
    clock::testing::TokioClock,
    controller::{Config, Error, run},
    lease,
    source::Source,
    testing::{BINDINGS, IDENTITIES, PATIENCE, Server, Told, identity},
};

type Judge = Arc<dyn Fn(&Identity) -> Checked + Send + Sync>;

/// Answers what it is told to, and counts.
struct Fake {
    judge: Mutex<Judge>,
    asked: Mutex<Vec<(String, tokio::time::Instant)>>,
    open: Semaphore,
    /// Each permit is for one attempt.
    gated: AtomicBool,
    at_once: AtomicUsize,
    most: AtomicUsize,
}

impl Fake {
    fn new(judge: impl Fn(&Identity) -> Checked + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            judge: Mutex::new(Arc::new(judge)),
            asked: Mutex::default(),
            open: Semaphore::new(Semaphore::MAX_PERMITS),
            gated: AtomicBool::new(false),
            at_once: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        })
    }

    fn is_now(&self, judge: impl Fn(&Identity) -> Checked + Send + Sync + 'static) {
        *self.judge.lock().unwrap() = Arc::new(judge);
    }

    fn close(&self) {
        self.open.forget_permits(Semaphore::MAX_PERMITS);
        self.gated.store(true, Ordering::Release);
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    async fn until_asked(&self, times: usize) {
        let wait = async {
            while self.asked() < times {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(PATIENCE * 60, wait).await.unwrap_or_else(|_| panic!("asked {} times", self.asked()));
    }
}

impl Check for Fake {
    fn check<'a>(&'a self, identity: &'a Arc<Identity>) -> BoxFuture<'a, Checked> {
        Box::pin(async move {
            let name = format!("{} {}", identity.object.name, identity.object.generation);
            self.asked.lock().unwrap().push((name, tokio::time::Instant::now()));
            let now = self.at_once.fetch_add(1, Ordering::AcqRel) + 1;
            self.most.fetch_max(now, Ordering::AcqRel);
            let turn = self.open.acquire().await.unwrap();
            if self.gated.load(Ordering::Acquire) {
                turn.forget();
            }
            self.at_once.fetch_sub(1, Ordering::AcqRel);
            let judge = self.judge.lock().unwrap().clone();
            judge(identity)
        })
    }
}

fn of(ready: Option<bool>, reason: &str) -> Checked {
    Checked { ready, reason: reason.to_owned(), message: format!("{reason}, in words"), expires: None }
}

fn principal(name: &str) -> Value {
    let mut object = identity(name);
    object["spec"] = json!({
        "type": 1, "clientID": "33333333-3333-3333-3333-333333333333", "tenantID": "44444444-4444-4444-4444-444444444444",
        "clientPassword": {"name": name},
    });
    object
}

fn secret(name: &str, value: &str) -> Value {
    json!({"kind": "Secret", "metadata": {"name": name, "namespace": "team"}, "data": {"clientsecret": value}})
}

struct Rig {
    told: Arc<Told>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Rig {
    fn start(server: &Server, holder: &str, check: &Arc<Fake>) -> Self {
        let (told, stop) = (Arc::new(Told::default()), CancellationToken::new());
        let lease = lease::Config {
            namespace: "default".into(),
            name: "controller".into(),
            duration: Duration::from_secs(15),
            holder: holder.into(),
        };
        let source = Source::kubernetes(server.client());
        let mut config = Config::new(lease, Arc::new(TokioClock::new()));
        config.observer = told.clone();
        config.credentials = Some(Credentials::new(check.clone(), Secrets::new(&source)));
        let task = tokio::spawn(run(config, source, stop.clone()));
        Self { told, stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

fn ready(server: &Server, name: &str) -> Option<Value> {
    let conditions = server.get(IDENTITIES, "team", name)?["status"]["conditions"].clone();
    conditions.as_array()?.iter().find(|c| c["type"] == "CredentialReady").cloned()
}

async fn until_ready_is(server: &Server, name: &str, status: &str, reason: &str) {
    let holds = || ready(server, name).is_some_and(|c| c["status"] == status && c["reason"] == reason);
    for _ in 0..24 * 60 * 60 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("{name} is never {status} {reason}: {:?}", ready(server, name));
}

fn statuses(server: &Server) -> usize {
    server.count(|call| call.path.ends_with("/status") && call.is_write_of(IDENTITIES))
}

fn events(server: &Server) -> Vec<String> {
    let posted = server.calls(|call| call.method == "POST" && call.path.ends_with("/events"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    posted.iter().map(|call| format!("{} {}", text(&call.body["type"]), text(&call.body["reason"]))).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_found_is_a_condition_and_written_when_it_changes() {
    let server = Server::new();
    server.put(IDENTITIES, principal("sp"));
    server.put(IDENTITIES, identity("managed"));
    server.put("secrets", secret("sp", "YQ=="));
    let check = Fake::new(|_| Checked {
        expires: Some(Timestamp::from_second(1_900_000_000).unwrap()),
        ..of(Some(true), "Accepted")
    });
    let rig = Rig::start(&server, "a", &check);
    until_ready_is(&server, "sp", "True", "Accepted").await;
    let there = server.get(IDENTITIES, "team", "sp").unwrap();
    assert_eq!(there["status"]["credentialExpiry"], "2030-03-17T17:46:40Z");
    assert_eq!(ready(&server, "sp").unwrap()["observedGeneration"], 1);
    assert_eq!(there["status"]["conditions"].as_array().unwrap().len(), 2, "beside the others: {there}");
    tokio::time::sleep(Duration::from_mins(1)).await;
    let (written, asked) = (statuses(&server), check.asked());
    assert_eq!(ready(&server, "managed"), None, "a managed identity has no credential of its own");

    // A day: tried again about every hour, written never.
    tokio::time::sleep(Duration::from_hours(24)).await;
    assert!((asked + 18..=asked + 33).contains(&check.asked()), "{}", check.asked() - asked);
    assert_eq!(statuses(&server), written);
    assert!(events(&server).is_empty());

    // It is refused from now on; that is seen at the next attempt, said, and tried more often.
    check.is_now(|_| of(Some(false), "CredentialRefused"));
    until_ready_is(&server, "sp", "False", "CredentialRefused").await;
    assert_eq!(server.get(IDENTITIES, "team", "sp").unwrap()["status"]["credentialExpiry"], Value::Null);
    let (written, asked) = (statuses(&server), check.asked());
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert!((4..=12).contains(&(check.asked() - asked)), "{}", check.asked() - asked);
    assert_eq!(statuses(&server), written);
    assert_eq!(events(&server), ["Warning CredentialRefused"]);
    check.is_now(|_| of(Some(true), "Accepted"));
    until_ready_is(&server, "sp", "True", "Accepted").await;
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(events(&server), ["Warning CredentialRefused", "Normal CredentialReady"]);
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_secret_or_identity_is_tried_at_once() {
    let server = Server::new();
    server.put(IDENTITIES, principal("sp"));
    server.put("secrets", secret("sp", "YQ=="));
    let check = Fake::new(|_| of(Some(true), "Accepted"));
    let rig = Rig::start(&server, "a", &check);
    until_ready_is(&server, "sp", "True", "Accepted").await;
    tokio::time::sleep(Duration::from_mins(5)).await;

    for change in ["secret", "identity", "gone"] {
        let asked = check.asked();
        match change {
            "secret" => drop(server.put("secrets", secret("sp", "Yg=="))),
            "identity" => {
                let mut object = server.get(IDENTITIES, "team", "sp").unwrap();
                object["metadata"]["generation"] = json!(2);
                object["spec"]["tenantID"] = json!("55555555-5555-5555-5555-555555555555");
                server.put(IDENTITIES, object);
            }
            _ => server.remove("secrets", "team", "sp"),
        }
        let began = tokio::time::Instant::now();
        check.until_asked(asked + 1).await;
        assert!(began.elapsed() < Duration::from_secs(3), "{change}: {:?}", began.elapsed());
        tokio::time::sleep(Duration::from_mins(2)).await;
        assert_eq!(check.asked(), asked + 1, "{change}");
    }
    // The verdict of the second generation has its number.
    assert_eq!(ready(&server, "sp").unwrap()["observedGeneration"], 2);
    // Somebody's label is no reason, nor is another type without a credential, which loses the condition.
    let asked = check.asked();
    let mut object = server.get(IDENTITIES, "team", "sp").unwrap();
    object["metadata"]["labels"] = json!({"a": "b"});
    server.put(IDENTITIES, object.clone());
    tokio::time::sleep(Duration::from_mins(2)).await;
    object["metadata"]["generation"] = json!(3);
    object["spec"] = identity("sp")["spec"].clone();
    server.put(IDENTITIES, object);
    server.until("the condition is gone", |server| ready(server, "sp").is_none()).await;
    assert_eq!(check.asked(), asked);
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_verdict_on_what_has_changed_since_counts_for_nothing() {
    let server = Server::new();
    server.put(IDENTITIES, principal("sp"));
    let check = Fake::new(|identity| of(Some(identity.object.generation == 2), "Accepted"));
    check.close();
    let rig = Rig::start(&server, "a", &check);
    check.until_asked(1).await;
    let mut object = principal("sp");
    object["metadata"]["generation"] = json!(2);
    object["spec"]["clientID"] = json!("66666666-6666-6666-6666-666666666666");
    server.put(IDENTITIES, object);
    check.until_asked(2).await;
    assert_eq!(check.asked.lock().unwrap().iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), ["sp 1", "sp 2"]);
    // The first ends first.
    check.open.add_permits(1);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(ready(&server, "sp"), None);
    check.open.add_permits(100);
    until_ready_is(&server, "sp", "True", "Accepted").await;
    assert!(events(&server).is_empty());
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn so_many_at_once_and_a_failure_inside_is_one_verdict() {
    let server = Server::new();
    for n in 0..30 {
        server.put(IDENTITIES, principal(&format!("sp{n}")));
    }
    let check = Fake::new(|identity| {
        assert!(*identity.object.name != *"sp7", "this one breaks the checker");
        of(Some(true), "Accepted")
    });
    check.close();
    let rig = Rig::start(&server, "a", &check);
    check.until_asked(4).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(check.asked(), 4);
    check.open.add_permits(1000);
    until_ready_is(&server, "sp7", "Unknown", "CheckFailed").await;
    for n in (0..30).filter(|n| *n != 7) {
        until_ready_is(&server, &format!("sp{n}"), "True", "Accepted").await;
    }
    assert_eq!(check.most.load(Ordering::Acquire), 4);
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn only_the_leader_tries_and_its_successor_does_not_hurry() {
    let server = Server::new();
    server.put(IDENTITIES, principal("sp"));
    let (one, two) = (Fake::new(|_| of(Some(true), "Accepted")), Fake::new(|_| of(Some(true), "Accepted")));
    let first = Rig::start(&server, "a", &one);
    until_ready_is(&server, "sp", "True", "Accepted").await;
    let second = Rig::start(&server, "b", &two);
    tokio::time::sleep(Duration::from_hours(3)).await;
    assert_eq!(two.asked(), 0);
    assert!(one.asked() >= 3);
    let written = statuses(&server);
    first.stop().await;
    let began = tokio::time::Instant::now();
    two.until_asked(1).await;
    assert!(began.elapsed() <= INHERITED + Duration::from_mins(1), "{:?}", began.elapsed());
    tokio::time::sleep(Duration::from_mins(5)).await;
    assert_eq!(statuses(&server), written, "it finds the same");
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_told_now_does_not_replace_what_was_found() {
    let server = Server::new();
    server.put(IDENTITIES, principal("sp"));
    server.put(IDENTITIES, principal("new"));
    let check = Fake::new(|identity| match &*identity.object.name {
        "sp" => of(Some(true), "Accepted"),
        _ => of(None, "EntraUnavailable"),
    });
    let rig = Rig::start(&server, "a", &check);
    until_ready_is(&server, "sp", "True", "Accepted").await;
    until_ready_is(&server, "new", "Unknown", "EntraUnavailable").await;
    tokio::time::sleep(Duration::from_mins(1)).await;
    // Entra is away for a while.
    check.is_now(|_| of(None, "EntraUnavailable"));
    let tried = || check.asked.lock().unwrap().iter().filter(|(name, _)| name == "sp 1").count();
    let before = tried();
    while tried() < before + 2 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(ready(&server, "sp").unwrap()["status"], "True");
    // For long: then nothing is known.
    until_ready_is(&server, "sp", "Unknown", "EntraUnavailable").await;
    assert!(events(&server).is_empty());
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_credential_is_looked_at_when_it_ends() {
    let server = Server::new();
    server.put(IDENTITIES, principal("sp"));
    let clock = TokioClock::new();
    let end = clock.now() + SignedDuration::from_mins(20);
    let check = Fake::new(move |_| Checked { expires: Some(end), ..of(Some(true), "Accepted") });
    let rig = Rig::start(&server, "a", &check);
    until_ready_is(&server, "sp", "True", "Accepted").await;
    check.is_now(move |_| Checked { expires: Some(end), ..of(Some(false), "CredentialExpired") });
    until_ready_is(&server, "sp", "False", "CredentialExpired").await;
    let late = clock.now().duration_since(end);
    assert!(late >= SignedDuration::ZERO && late < SignedDuration::from_secs(15), "{late:?}");
    assert_eq!(events(&server), ["Warning CredentialExpired"]);
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_counts_is_told_of_each_and_when_nothing_is_known() {
    let server = Server::new();
    server.put(IDENTITIES, principal("sp"));
    server.put(IDENTITIES, principal("other"));
    server.put(BINDINGS, crate::runtime::testing::binding("demo", "sp"));
    let check = Fake::new(|_| of(Some(true), "Accepted"));
    let rig = Rig::start(&server, "a", &check);
    for name in ["sp", "other"] {
        until_ready_is(&server, name, "True", "Accepted").await;
    }
    let told = rig.told.clone();
    let known = || {
        let mut names: Vec<_> = told.credentials.lock().unwrap().iter().map(ToString::to_string).collect();
        names.sort();
        names
    };
    assert_eq!(known(), ["team/other", "team/sp"]);
    server.remove(IDENTITIES, "team", "other");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(known(), ["team/sp"]);
    rig.stop().await;
}
