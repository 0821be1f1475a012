//! The driver against an API server in memory, in stopped time.

use serde_json::json;
use tokio::task::JoinHandle;

use super::*;
use crate::runtime::{
    clock::testing::TokioClock,
    testing::{Call, Fault, PATIENCE, Server},
};

struct Rig {
    fence: Arc<Fence>,
    leadership: watch::Receiver<Leadership>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Rig {
    fn start(server: &Server, holder: &str) -> Self {
        let clock = Arc::new(TokioClock::new());
        let fence = Arc::new(Fence::new(clock.clone()));
        let (sender, leadership) = watch::channel(Leadership::Unknown);
        let stop = CancellationToken::new();
        let config = Config {
            namespace: "default".into(),
            name: "controller".into(),
            duration: Duration::from_secs(15),
            holder: holder.into(),
        };
        let task = tokio::spawn(run(server.client(), config, clock, fence.clone(), sender, stop.clone()));
        Self { fence, leadership, stop, task }
    }

    async fn until(&mut self, wanted: Leadership) {
        let reached = tokio::time::timeout(PATIENCE, self.leadership.wait_for(|now| *now == wanted)).await.is_ok();
        assert!(reached, "never {wanted:?}, but {:?}", *self.leadership.borrow());
    }

    fn may_write(&self) -> bool {
        self.fence.remaining().is_some()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn standby(leader: &str) -> Leadership {
    Leadership::Standby { leader: leader.into() }
}

fn spec(server: &Server) -> serde_json::Value {
    server.get("leases", "default", "controller").unwrap()["spec"].clone()
}

fn is_write(call: &Call) -> bool {
    call.is_write()
}

#[tokio::test(start_paused = true)]
async fn takes_it_renews_it_and_hands_it_over() {
    let server = Server::new();
    let mut first = Rig::start(&server, "a");
    assert!(!first.may_write());
    first.until(Leadership::Leading).await;
    assert!(first.may_write());
    let text: String = server.calls(|_| true).iter().map(Call::text).collect();
    insta::with_settings!({omit_expression => true}, { insta::assert_snapshot!(text) });

    let mut second = Rig::start(&server, "b");
    second.until(standby("a")).await;
    let before = server.count(is_write);
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert!(first.may_write() && !second.may_write());
    let renewals = server.count(is_write) - before;
    assert!((19..=21).contains(&renewals), "every 3 s: {renewals}");
    assert_eq!(spec(&server)["leaseTransitions"], 0);
    assert!(
        server
            .calls(|call| call.method == "PUT")
            .iter()
            .all(|call| call.body["metadata"]["resourceVersion"].is_string())
    );

    first.stop().await;
    assert_eq!(spec(&server)["holderIdentity"], "");
    let began = tokio::time::Instant::now();
    second.until(Leadership::Leading).await;
    assert!(began.elapsed() <= Duration::from_secs(3), "released, so at once: {:?}", began.elapsed());
    assert_eq!((&spec(&server)["holderIdentity"], &spec(&server)["leaseTransitions"]), (&json!("b"), &json!(1)));
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_died_is_followed_after_the_lease_has_run_out() {
    let server = Server::new();
    let mut first = Rig::start(&server, "a");
    first.until(Leadership::Leading).await;
    let mut second = Rig::start(&server, "b");
    second.until(standby("a")).await;
    let began = tokio::time::Instant::now();
    first.task.abort();
    second.until(Leadership::Leading).await;
    let taken = began.elapsed();
    assert!((Duration::from_secs(12)..Duration::from_secs(19)).contains(&taken), "{taken:?}");
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_conflict_closes_the_fence_at_once() {
    let server = Server::new();
    let mut rig = Rig::start(&server, "a");
    rig.until(Leadership::Leading).await;
    let mut lease = server.get("leases", "default", "controller").unwrap();
    lease["spec"]["holderIdentity"] = json!("thief");
    server.put("leases", lease);
    rig.until(standby("thief")).await;
    assert!(!rig.may_write());
    // The thief does not renew it.
    rig.until(Leadership::Leading).await;
    assert!(rig.may_write());
    // Somebody deletes it: made anew.
    server.remove("leases", "default", "controller");
    server.until("made anew", |server| server.get("leases", "default", "controller").is_some()).await;
    rig.until(Leadership::Leading).await;
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_ends_it_in_time_and_says_so() {
    for fault in [Fault::Broken, Fault::Slow(watch::channel(false).1), Fault::Code(500, None)] {
        let server = Server::new();
        let mut rig = Rig::start(&server, "a");
        rig.until(Leadership::Leading).await;
        let (_never, gate) = watch::channel(false);
        let fault = if matches!(fault, Fault::Slow(_)) { Fault::Slow(gate) } else { fault };
        server.rule(move |_| Some(fault.clone()));
        let renewed = server.calls(is_write).last().unwrap().at;
        // Nobody, as far as is known.
        rig.until(standby("")).await;
        assert!(!rig.may_write());
        let held = renewed.elapsed();
        assert!(held <= Duration::from_millis(13_510), "{held:?}");
        assert!(held >= Duration::from_secs(12), "one lost answer does not end it: {held:?}");
        server.well_again();
        rig.until(Leadership::Leading).await;
        rig.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn stopping_takes_no_longer_than_one_request() {
    let server = Server::new();
    let mut rig = Rig::start(&server, "a");
    rig.until(Leadership::Leading).await;
    let (_never, gate) = watch::channel(false);
    server.rule(move |_| Some(Fault::Slow(gate.clone())));
    let began = tokio::time::Instant::now();
    rig.stop().await;
    assert!(began.elapsed() <= Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn stopping_in_the_middle_of_a_renewal_releases_it_all_the_same() {
    let server = Server::new();
    let mut rig = Rig::start(&server, "a");
    rig.until(Leadership::Leading).await;
    let (open, gate) = watch::channel(false);
    server.rule(move |_| Some(Fault::Slow(gate.clone())));
    let before = server.count(is_write);
    server.until("a renewal is under way", |server| server.count(is_write) > before).await;
    rig.stop.cancel();
    tokio::time::sleep(Duration::from_secs(1)).await;
    open.send_replace(true);
    rig.stop().await;
    assert_eq!(spec(&server)["holderIdentity"], "");
    assert_eq!(server.count(is_write), before + 2);
}
