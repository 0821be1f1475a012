//! Time boxes in stopped time: opening and closing by the wall clock, on time, at the price of a status and an Event.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};

use super::*;

/// A wall clock that can be set.
#[derive(Debug)]
pub(super) struct SetClock {
    base: TokioClock,
    ahead: AtomicI64,
}

impl SetClock {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { base: TokioClock::new(), ahead: AtomicI64::new(0) })
    }

    /// Puts it so many seconds ahead of where it is.
    pub(super) fn put_ahead(&self, seconds: i64) {
        self.ahead.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        self.base.now() + SignedDuration::from_secs(self.ahead.load(Ordering::Relaxed))
    }

    fn uptime(&self) -> Duration {
        self.base.uptime()
    }
}

/// Open in the first 20 seconds of each tenth minute.
fn boxed(name: &str) -> Value {
    let mut object = binding(name, "demo");
    object["spec"]["timeBox"] = json!({"windows": [{"schedule": "*/10 * * * *", "duration": "20s"}]});
    object
}

fn condition(server: &Server, name: &str, type_: &str) -> Option<Value> {
    let object = server.get(BINDINGS, "team", name)?;
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == type_).cloned()
}

pub(super) fn is_open(server: &Server, name: &str) -> Option<bool> {
    condition(server, name, "Open").map(|open| open["status"] == "True")
}

pub(super) fn events(server: &Server, reason: &str) -> usize {
    server.count(|call| call.method == "POST" && call.path.ends_with("/events") && call.body["reason"] == reason)
}

fn others(server: &Server) -> usize {
    server.count(|call| {
        call.is_write()
            && !call.is_write_of("leases")
            && !call.path.contains("/events")
            && !call.path.ends_with("/azureidentitybindings/boxed/status")
    })
}

#[tokio::test(start_paused = true)]
async fn a_box_opens_and_closes_on_time_at_the_price_of_its_status_and_an_event() {
    let server = server(20);
    server.remove(BINDINGS, "team", "demo");
    server.put(BINDINGS, boxed("boxed"));
    let clock = SetClock::new();
    let rig = Rig::start(Source::kubernetes(server.client()), "a", |config| config.clock = clock.clone());
    server.until("all are assigned", |server| server.all(ASSIGNED).len() == 20).await;
    server.until("told", |server| is_open(server, "boxed").is_some()).await;
    let stored = server.all(ASSIGNED)[0].clone();
    assert_eq!(
        stored["spec"]["azureBindingRef"]["spec"]["timeBox"]["windows"][0]["duration"], "20s",
        "it carries the box"
    );
    let_it_settle().await;
    let before = others(&server);

    for round in 0..3 {
        // Each second of it: what is said is true, but for a second at most.
        for _ in 0..620 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let second = clock.now().as_second() % 600;
            if (1..20).contains(&second) || second > 20 {
                assert_eq!(is_open(&server, "boxed"), Some(second < 20), "round {round}, second {second}");
            }
        }
    }
    assert_eq!(others(&server), before, "no assignment is written, and no other status");
    let writes = server.count(|call| call.path.ends_with("/azureidentitybindings/boxed/status"));
    assert!((6..=10).contains(&writes), "{writes}");
    // Repeated ones are one Event with a count (kube's recorder goes by real time).
    assert_eq!((events(&server, "WindowOpened"), events(&server, "WindowClosed")), (1, 1));
    assert!(server.count(|call| call.is_write_of("events")) >= 6);

    // Somebody sets the clock: noticed within a second, though the next opening was minutes away.
    while is_open(&server, "boxed") != Some(false) || clock.now().as_second() % 600 > 500 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    clock.put_ahead(600 - clock.now().as_second() % 600);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(is_open(&server, "boxed"), Some(true), "at {}", clock.now());

    // A changed box is another embedded copy on each assignment, and another answer at once.
    let mut changed = server.get(BINDINGS, "team", "boxed").unwrap();
    changed["metadata"]["generation"] = json!(2);
    changed["spec"]["timeBox"] = json!({"notAfter": "2027-01-01T00:00:00Z"});
    server.put(BINDINGS, changed);
    let is_new = |object: &Value| !object["spec"]["azureBindingRef"]["spec"]["timeBox"]["notAfter"].is_null();
    server.until("all carry the new box", |server| server.all(ASSIGNED).iter().all(is_new)).await;
    server.until("closed", |server| is_open(server, "boxed") == Some(false)).await;
    assert_eq!(condition(&server, "boxed", "Open").unwrap()["reason"], "Over");
    assert_eq!(condition(&server, "boxed", "TokensOutliveBox").unwrap()["reason"], "ManagedIdentity");
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn while_assignments_wait_for_a_slow_server_boxes_are_told_on_time() {
    let server = server(100);
    server.put(BINDINGS, boxed("boxed"));
    let clock = SetClock::new();
    let (_never, gate) = watch::channel(false);
    let rig = Rig::start(Source::kubernetes(server.client()), "a", |config| {
        config.clock = clock.clone();
        config.in_flight = 4;
        config.request_timeout = MINUTE * 60;
    });
    server.until("told", |server| is_open(server, "boxed").is_some()).await;
    let_it_settle().await;
    while clock.now().as_second() % 600 != 595 {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let started = Arc::new(AtomicUsize::new(0));
    let slow = started.clone();
    // Three of the four are held up.
    server.rule(move |call| {
        (is_assignment(call) && slow.fetch_add(1, Ordering::Relaxed) < 3).then(|| Fault::Slow(gate.clone()))
    });
    for name in ["x", "y", "z"] {
        server.put("pods", pod(name));
    }
    server.until("they are under way", |_| started.load(Ordering::Relaxed) >= 3).await;
    while clock.now().as_second() % 600 != 2 {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(is_open(&server, "boxed"), Some(true));
    rig.task.abort();
}
