//! What is asked of an API server, and what comes of its answers and of their absence.

use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::runtime::{
    source::Source,
    testing::{Call, Fault, Handle, IDENTITIES, Log, PATIENCE, Server, Told, answer, identity, mock, pod},
};

struct Rig {
    updates: mpsc::Receiver<Update>,
    told: Arc<Told>,
    _stop: DropGuard,
}

impl Rig {
    fn start(client: Client, interests: &[Interest]) -> Self {
        let stop = CancellationToken::new();
        let told = Arc::new(Told::default());
        let updates = Source::kubernetes(client).watch(interests, Some(told.clone()), &stop).unwrap();
        Self { updates, told, _stop: stop.drop_guard() }
    }

    async fn next(&mut self) -> String {
        describe(&tokio::time::timeout(PATIENCE, self.updates.recv()).await.expect("nothing came").expect("ended"))
    }

    async fn nothing_for(&mut self, time: Duration) {
        let got = tokio::time::timeout(time, self.updates.recv()).await;
        assert!(got.is_err(), "{got:?}");
    }

    fn relists(&self) -> usize {
        self.told.relisted.lock().unwrap().len()
    }
}

fn describe(update: &Update) -> String {
    fn change<T>(change: &Change<T>, what: impl Fn(&T) -> String) -> String {
        match change {
            Change::Apply(object) => what(object),
            Change::Delete(gone) => format!("-{} ({})", gone.name, gone.uid.as_deref().unwrap_or_default()),
            Change::Relist(all) => format!("[{}]", all.iter().map(what).collect::<Vec<_>>().join(" ")),
        }
    }
    match update {
        Update::Pods(c) => change(c, |pod| pod.reference.name.to_string()),
        Update::Identities(c) => change(c, |object| object.metadata.name.clone().unwrap()),
        Update::Bindings(c) => change(c, |object| object.metadata.name.clone().unwrap()),
        Update::Assigned(c) => change(c, |object| object.metadata.name.clone().unwrap()),
        Update::Grants(c) => change(c, |object| object.metadata.name.clone().unwrap()),
        Update::Exceptions { namespace, change: c } => {
            format!("{namespace}: {}", change(c, |object| object.metadata.name.clone().unwrap()))
        }
    }
}

fn gets(server: &Server, watches: bool) -> Vec<Call> {
    server.calls(|call| call.query.contains("watch=true") == watches)
}

#[tokio::test(start_paused = true)]
async fn only_what_is_wanted_is_asked_for() {
    let node = Some("a node, whose name is no label value".to_owned());
    let mut text = String::new();
    for interest in [
        Interest::Pods { node: None },
        Interest::Pods { node: Some("node-1".into()) },
        Interest::Identities,
        Interest::Bindings,
        Interest::Assigned { node: None },
        Interest::Assigned { node: Some("node-1".into()) },
        Interest::Assigned { node },
        Interest::Grants,
        Interest::Exceptions { namespace: "kube-system".into() },
    ] {
        let server = Server::new();
        let mut rig = Rig::start(server.client(), std::slice::from_ref(&interest));
        assert!(rig.next().await.ends_with("[]"));
        server.until("watching", |server| !gets(server, true).is_empty()).await;
        for call in server.calls(|_| true) {
            text.push_str(&call.text());
        }
    }
    insta::with_settings!({omit_expression => true}, { insta::assert_snapshot!(text) });
}

#[tokio::test(start_paused = true)]
async fn changes_come_one_by_one() {
    let server = Server::new();
    server.put("pods", pod("a"));
    let mut rig = Rig::start(server.client(), &[Interest::Pods { node: None }]);
    assert_eq!(rig.next().await, "[a]");
    server.put("pods", pod("b"));
    assert_eq!(rig.next().await, "b");
    server.remove("pods", "team", "a");
    assert_eq!(rig.next().await, "-a (pod-a)");
    rig.nothing_for(Duration::from_mins(20)).await;
    assert_eq!((rig.relists(), gets(&server, false).len()), (1, 1), "a quiet watch is resumed, not listed anew");
}

async fn next(handle: &mut Handle) -> (Call, impl FnOnce(u16, Value)) {
    let (request, respond) =
        tokio::time::timeout(PATIENCE, handle.next_request()).await.expect("no request").expect("no client");
    (Call::read(request).await, move |code, body: Value| respond.send_response(answer(code, &body)))
}

#[tokio::test(start_paused = true)]
async fn a_list_of_several_pages_is_one_list() {
    let (client, mut handle) = mock();
    let mut rig = Rig::start(client, &[Interest::Pods { node: None }]);
    let page = |names: &[&str], token: &str| {
        let items: Vec<_> = names.iter().map(|name| pod(name)).collect();
        json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "9", "continue": token}, "items": items})
    };
    let (call, respond) = next(&mut handle).await;
    assert!(call.query.contains("limit=100") && !call.query.contains("continue"), "{}", call.query);
    respond(200, page(&["a", "b"], "more"));
    let (call, respond) = next(&mut handle).await;
    assert!(call.query.contains("continue=more"), "{}", call.query);
    rig.nothing_for(Duration::from_secs(1)).await;
    // The token is too old: from the beginning.
    respond(410, crate::runtime::testing::status(410, "expired"));
    let (call, respond) = next(&mut handle).await;
    assert!(!call.query.contains("continue"), "{}", call.query);
    respond(200, page(&["b"], "more"));
    next(&mut handle).await.1(200, page(&["c"], ""));
    assert_eq!(rig.next().await, "[b c]");
    let (call, _unanswered) = next(&mut handle).await;
    assert!(call.query.contains("watch=true") && call.query.contains("resourceVersion=9"), "{}", call.query);
    assert!(call.query.contains("allowWatchBookmarks=true"), "{}", call.query);
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_be_read_hides_no_other() {
    let log = Log::new();
    let server = Server::new();
    let mut broken = identity("broken");
    broken["spec"]["type"] = json!("one");
    server.put(IDENTITIES, broken.clone());
    server.put(IDENTITIES, identity("good"));
    let mut rig = Rig::start(server.client(), &[Interest::Identities]);
    assert_eq!(rig.next().await, "[good]");
    assert_eq!(log.with("counts as absent").len(), 1, "{:?}", log.with("WARN"));
    server.put(IDENTITIES, identity("broken"));
    assert_eq!(rig.next().await, "broken");
    server.put(IDENTITIES, broken);
    assert_eq!(rig.next().await, "-broken (identity-broken)");
}

#[tokio::test(start_paused = true)]
async fn what_was_missed_comes_after_the_connection_is_back() {
    let server = Server::new();
    server.put("pods", pod("a"));
    let mut rig = Rig::start(server.client(), &[Interest::Pods { node: None }]);
    assert_eq!(rig.next().await, "[a]");
    server.until("watching", |server| !gets(server, true).is_empty()).await;
    server.rule(|_| Some(Fault::Broken));
    server.end_watches(false);
    rig.nothing_for(Duration::from_mins(5)).await;
    // From 200 ms to 15 s, with jitter: some thirty attempts in five minutes.
    let attempts = gets(&server, true).len();
    assert!((20..=60).contains(&attempts), "{attempts}");
    server.put("pods", pod("b"));
    server.well_again();
    assert_eq!(rig.next().await, "b");
    assert_eq!(rig.relists(), 1, "it went on where it was");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_never_answered_is_tried_again() {
    for watches in [false, true] {
        let server = Server::new();
        server.put("pods", pod("a"));
        let (_never, gate) = tokio::sync::watch::channel(false);
        server.rule({
            let mut once = true;
            move |call| {
                let hit = call.query.contains("watch=true") == watches && std::mem::take(&mut once);
                hit.then(|| Fault::Slow(gate.clone()))
            }
        });
        let began = Instant::now();
        let mut rig = Rig::start(server.client(), &[Interest::Pods { node: None }]);
        assert_eq!(rig.next().await, "[a]");
        server.put("pods", pod("b"));
        assert_eq!(rig.next().await, "b");
        assert!(began.elapsed() < FIRST_BYTE + Duration::from_secs(1), "{:?}", began.elapsed());
        assert_eq!(rig.relists(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn when_the_server_has_forgotten_everything_is_listed_anew() {
    let log = Log::new();
    let server = Server::new();
    server.put("pods", pod("a"));
    let mut rig = Rig::start(server.client(), &[Interest::Pods { node: None }]);
    assert_eq!(rig.next().await, "[a]");
    // As an event of the watch.
    server.until("watching", |server| !gets(server, true).is_empty()).await;
    let began = Instant::now();
    server.end_watches(true);
    assert_eq!(rig.next().await, "[a]");
    assert_eq!(began.elapsed(), Duration::ZERO, "at once");
    server.put("pods", pod("b"));
    assert_eq!(rig.next().await, "b");
    // As the answer to the watch itself.
    server.until("watching", |server| gets(server, true).len() == 2).await;
    server.rule({
        let mut once = true;
        move |call| (call.query.contains("watch=true") && std::mem::take(&mut once)).then_some(Fault::Code(410, None))
    });
    server.end_watches(false);
    assert_eq!(rig.next().await, "[a b]");
    server.put("pods", pod("c"));
    assert_eq!(rig.next().await, "c");
    assert_eq!((rig.relists(), gets(&server, false).len()), (3, 3));
    assert_eq!(log.with("WARN"), [""; 0], "nothing is wrong");
}

#[tokio::test(start_paused = true)]
async fn an_outage_weeks_ago_does_not_delay_the_end_of_the_next() {
    let log = Log::new();
    let server = Server::new();
    let mut rig = Rig::start(server.client(), &[Interest::Bindings]);
    assert_eq!(rig.next().await, "[]");
    for outage in 1..4 {
        // Nothing changes, so the watch never says that it works again.
        rig.nothing_for(Duration::from_hours(1)).await;
        server.rule(|_| Some(Fault::Broken));
        server.end_watches(false);
        rig.nothing_for(Duration::from_mins(5)).await;
        server.well_again();
        rig.nothing_for(Duration::from_hours(1)).await;
        // One lost connection and one failed attempt.
        server.rule({
            let mut once = true;
            move |_| std::mem::take(&mut once).then_some(Fault::Broken)
        });
        let began = Instant::now();
        server.end_watches(false);
        let watches = gets(&server, true).len();
        server.until("watching", |server| gets(server, true).len() == watches + 2).await;
        assert!(began.elapsed() <= Duration::from_millis(400), "{:?}", began.elapsed());
        assert!(log.with("failures=0").len() >= 2 * outage, "{:?}", log.with("WARN"));
    }
    assert_eq!(rig.relists(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_every_watch_is_not_stormed_with_lists() {
    let server = Server::new();
    server.rule(|call| call.query.contains("watch=true").then_some(Fault::Code(410, None)));
    let mut rig = Rig::start(server.client(), &[Interest::Bindings]);
    let began = Instant::now();
    while began.elapsed() < Duration::from_mins(5) {
        assert_eq!(rig.next().await, "[]");
    }
    let lists = gets(&server, false).len();
    assert!((20..=60).contains(&lists), "{lists} lists in five minutes");
}

#[tokio::test(start_paused = true)]
async fn when_one_watch_dies_all_end() {
    #[derive(Debug)]
    struct Bug;
    impl Observer for Bug {
        fn relisted(&self, kind: &'static str) {
            assert_ne!(kind, "AzureIdentityBinding", "on purpose");
        }
    }
    let server = Server::new();
    let source = Source::kubernetes(server.client());
    let interests = [Interest::Identities, Interest::Bindings, Interest::Pods { node: None }];
    let mut updates = source.watch(&interests, Some(Arc::new(Bug)), &CancellationToken::new()).unwrap();
    let end = async { while updates.recv().await.is_some() {} };
    tokio::time::timeout(PATIENCE, end).await.expect("the others go on");
}

#[tokio::test(start_paused = true)]
async fn nobody_watches_for_nobody() {
    let server = Server::new();
    let mut rig = Rig::start(server.client(), &[Interest::Identities]);
    rig.next().await;
    server.until("watching", |server| !gets(server, true).is_empty()).await;
    let requests = server.count(|_| true);
    // Only the receiver goes.
    let Rig { updates, told, _stop } = rig;
    drop(updates);
    tokio::time::sleep(Duration::from_mins(20)).await;
    assert_eq!(server.count(|_| true), requests);
    assert_eq!(Arc::strong_count(&told), 1, "the task is gone");
}
