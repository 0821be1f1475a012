//! Events of assignments that come and go.

use super::*;

fn told(server: &Server) -> Vec<Call> {
    server.calls(|call| call.is_write() && call.path.contains("/events"))
}

fn of<'a>(calls: &'a [Call], reason: &str) -> Vec<&'a Call> {
    calls.iter().filter(|call| call.body["reason"] == reason).collect()
}

#[tokio::test(start_paused = true)]
async fn two_thousand_pods_are_one_event_after_their_assignments() {
    let server = server(2000);
    let rig = Rig::on(&server, "a");
    server.until("all are assigned", |server| server.all(ASSIGNED).len() == 2000).await;
    server.until("told", |server| !told(server).is_empty()).await;
    let_it_settle().await;
    let calls = told(&server);
    let [event] = &calls[..] else { panic!("{calls:?}") };
    assert_eq!((&*event.method, &*event.path), ("POST", "/apis/events.k8s.io/v1/namespaces/team/events"));
    assert_eq!((&event.body["reason"], &event.body["type"]), (&json!("Assigned"), &json!("Normal")));
    assert_eq!(event.body["series"]["count"], 2000);
    assert_eq!(
        (&event.body["regarding"]["kind"], &event.body["regarding"]["name"]),
        (&json!("AzureIdentityBinding"), &json!("demo"))
    );
    assert_eq!(event.body["regarding"]["uid"], server.get(BINDINGS, "team", "demo").unwrap()["metadata"]["uid"]);
    assert_eq!(event.body.get("related"), None, "it is of no single pod");
    let last = server.calls(is_assignment).iter().map(|call| call.at).max().unwrap();
    assert!(event.at > last, "the assignments come first");

    // Those that go, by whomever: the collector, and the controller itself.
    let gone = server.all(ASSIGNED).into_iter().find(|object| object["spec"]["pod"] == "p7").unwrap();
    server.remove("pods", "team", "p7");
    server.remove(ASSIGNED, "team", gone["metadata"]["name"].as_str().unwrap());
    server.remove(BINDINGS, "team", "demo");
    server.until("all are gone", |server| server.all(ASSIGNED).is_empty()).await;
    let_it_settle().await;
    let calls = told(&server);
    assert_eq!((of(&calls, "Unassigned").len(), of(&calls, "Assigned").len()), (1, 1), "{calls:?}");
    // What is made first may be behind what comes after; the last word counts.
    assert_eq!(calls.last().unwrap().body["series"]["count"], 2000);
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_tells_nothing_and_who_takes_over_tells_its_own() {
    let server = server(3);
    let rig = Rig::on(&server, "a");
    server.until("told", |server| told(server).len() == 1).await;
    let standby = Rig::on(&server, "b");
    let_it_settle().await;
    rig.stop().await;
    let_it_settle().await;
    assert_eq!(told(&server).len(), 1, "nothing happened");
    server.put("pods", pod("late"));
    server.until("told", |server| told(server).len() == 2).await;
    let_it_settle().await;
    let calls = told(&server);
    assert_eq!(calls.len(), 2);
    assert_eq!((&calls[1].body["reportingInstance"], calls[1].body.get("series")), (&json!("b"), None));
    assert_ne!(calls[0].body["metadata"]["name"], calls[1].body["metadata"]["name"]);
    standby.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_assignment_whose_answer_was_lost_is_told_of_once() {
    let server = server(1);
    let (_never, gate) = watch::channel(false);
    server.rule(move |call| is_assignment(call).then(|| Fault::LateAnswer(gate.clone())));
    let rig = Rig::on(&server, "a");
    server.until("it is there", |server| server.all(ASSIGNED).len() == 1).await;
    server.until("told", |server| !told(server).is_empty()).await;
    let_it_settle().await;
    let calls = told(&server);
    assert_eq!((calls.len(), calls[0].body.get("series")), (1, None), "{calls:?}");
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_no_events_gets_the_count_later_and_assignments_go_on() {
    let server = server(3);
    server.rule(|call| (call.is_write() && call.path.contains("/events")).then_some(Fault::Code(503, None)));
    let rig = Rig::on(&server, "a");
    server.until("tried", |server| !told(server).is_empty()).await;
    for index in 0..4 {
        server.put("pods", pod(&format!("more{index}")));
    }
    server.until("all are assigned", |server| server.all(ASSIGNED).len() == 7).await;
    tokio::time::sleep(10 * MINUTE).await;
    let tries = told(&server).len();
    assert!((20..=30).contains(&tries), "{tries} in ten minutes");
    server.well_again();
    server.until("told", |server| told(server).len() == tries + 1).await;
    let_it_settle().await;
    let calls = told(&server);
    assert_eq!((calls.len(), &calls[tries].body["series"]["count"]), (tries + 1, &json!(7)));
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_the_lease_nothing_is_told() {
    let server = server(2);
    let (open, gate) = watch::channel(false);
    server.rule(move |call| is_assignment(call).then(|| Fault::LateAnswer(gate.clone())));
    let mut rig = Rig::on(&server, "a");
    server.until("both are there", |server| server.all(ASSIGNED).len() == 2).await;
    take_lease(&server, "b");
    rig.until("on standby", |health| health.leadership == Leadership::Standby { leader: "b".into() }).await;
    open.send_replace(true);
    for _ in 0..30 {
        take_lease(&server, "b");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert!(told(&server).iter().all(|call| call.at.elapsed() > Duration::from_secs(50)), "{:?}", told(&server));
    rig.stop().await;
}

#[tokio::test]
async fn with_manifests_they_are_lines() {
    use super::manifests::{manifests, until_really};
    let temp = tempfile::tempdir().unwrap();
    let (directory, state) = (temp.path().join("manifests"), temp.path().join("state"));
    std::fs::create_dir(&directory).unwrap();
    let mut objects = vec![identity("demo"), binding("demo", "demo"), pod("p0"), pod("p1")];
    std::fs::write(directory.join("all.yaml"), manifests(&objects)).unwrap();
    let rig = Rig::start(Source::manifests(&directory, &state), "a", |_| {});
    let lines = || {
        let text = std::fs::read_to_string(state.join("events.jsonl")).unwrap_or_default();
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let last = |reason: &str| lines.iter().rev().find(|line| line["reason"] == reason).cloned().unwrap_or_default();
        (last("Assigned"), last("Unassigned"))
    };
    until_really("told", || lines().0["count"] == 2).await;
    let (line, _) = lines();
    assert_eq!(
        (&line["kind"], &line["name"], &line["namespace"]),
        (&json!("AzureIdentityBinding"), &json!("demo"), &json!("team"))
    );
    objects.pop();
    std::fs::write(directory.join("all.yaml"), manifests(&objects)).unwrap();
    until_really("told of the end", || lines().1["count"] == 1).await;
    assert!(lines().1["message"].as_str().unwrap().contains("the first team/p1"), "{:?}", lines());
    rig.stop().await;
}
