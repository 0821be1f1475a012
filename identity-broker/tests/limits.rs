//! One pod cannot take from the others: rates, places in the line, records. Pods are addresses of loopback here.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

mod support;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use identity_broker::{BrokerConfig, LimitsConfig, Rate, Reason, ServerConfig};
use identity_core::lookup::{Decision, Deny, Wait};
use support::{bench::*, *};

const GREEDY: [u8; 4] = [127, 0, 0, 2];
const OTHER: [u8; 4] = [127, 0, 0, 3];

async fn limited(rules: Arc<Rules>, change: impl FnOnce(&mut LimitsConfig)) -> Bench {
    let mut limits = LimitsConfig { penalty: Duration::from_millis(1), ..LimitsConfig::default() };
    change(&mut limits);
    let config = BrokerConfig { hold: LIMIT * 10, limits, ..BrokerConfig::default() };
    bench_with(rules, config, ServerConfig::default()).await
}

#[tokio::test]
async fn a_greedy_pod_is_told_when_to_come_back_and_another_is_served() {
    let rules = Rules::new(allow("p", identity("i", KIND)));
    // One in ten minutes: nothing comes back while the test runs.
    let slow = Rate { every: Duration::from_mins(10), burst: 20 };
    let bench = limited(rules, |limits| limits.requests = slow).await;
    bench.upstream.gate.add_permits(10);
    let mut greedy = Client::connect_from(GREEDY, bench.server.address).await;
    for _ in 0..20 {
        assert_eq!(greedy.exchange(&token(QUERY)).await.status, 200);
    }
    for _ in 0..50 {
        let answer = greedy.exchange(&token(QUERY)).await;
        assert_eq!((answer.error().0, answer.error().1), (429, "too_many_requests".to_owned()));
        let wait: u64 = answer.headers["retry-after"].parse().unwrap();
        assert!((1..=600).contains(&wait), "{wait}");
    }
    // A new connection changes nothing, nor does another form.
    let mut again = Client::connect_from(GREEDY, bench.server.address).await;
    assert_eq!(again.exchange(&token(QUERY)).await.status, 429);
    assert_eq!(again.exchange(&get("/oauth2/token?resource=x")).await.status, 429);
    // What costs nothing is still answered: SDKs probe before they ask.
    assert_eq!(again.exchange(&get("/metadata/identity/oauth2/token")).await.status, 400);
    let mut other = Client::connect_from(OTHER, bench.server.address).await;
    for _ in 0..20 {
        assert_eq!(other.exchange(&token(QUERY)).await.status, 200);
    }
    assert_eq!(bench.server.metrics.requests(Reason::RateLimited), 52);
    // Nothing was decided about what came too fast: it is counted, not recorded.
    let records = bench.server.records.all();
    assert_eq!((records.len(), records.iter().filter(|line| line.starts_with("issued")).count()), (40, 40));
}

#[tokio::test]
async fn the_rate_comes_back() {
    let rules = Rules::new(allow("p", identity("i", KIND)));
    let bench = limited(rules, |limits| limits.requests = Rate::per_second(50, 1)).await;
    bench.upstream.gate.add_permits(1);
    let mut client = Client::connect(bench.server.address).await;
    assert_eq!(client.exchange(&token(QUERY)).await.status, 200);
    let served = async { while client.exchange(&token(QUERY)).await.status != 200 {} };
    tokio::time::timeout(LIMIT, served).await.expect("served again");
}

#[tokio::test]
async fn the_line_of_one_pod_and_of_all_are_bounded() {
    let rules = Rules::new(|_, _| Decision::Wait(Wait::UnknownAddress));
    let bench = limited(Arc::clone(&rules), |limits| (limits.waiting, limits.waiting_in_all) = (3, 4)).await;
    bench.upstream.gate.add_permits(10);
    let mut held = Vec::new();
    for n in 1..=3 {
        let mut client = Client::connect_from(GREEDY, bench.server.address).await;
        client.send(&token(QUERY)).await;
        until("held", || bench.server.metrics.held.get() == n).await;
        held.push(client);
    }
    let ask = async |from| Client::connect_from(from, bench.server.address).await.exchange(&token(QUERY)).await;
    let answer = ask(GREEDY).await;
    assert_eq!((answer.status, &*answer.headers["retry-after"]), (429, "1"));
    let mut other = Client::connect_from(OTHER, bench.server.address).await;
    other.send(&token(QUERY)).await;
    until("held", || bench.server.metrics.held.get() == 4).await;
    // Whoever comes now is no more to blame than the others: 503.
    let answer = ask(OTHER).await;
    assert_eq!((answer.error().0, &*answer.headers["retry-after"]), (503, "1"));
    // A client that goes frees its place.
    drop(held.pop());
    until("freed", || bench.server.metrics.held.get() == 3).await;
    held.push(other);
    rules.set(allow("p", identity("i", KIND)));
    for mut client in held {
        assert_eq!(client.read().await.unwrap().status, 200);
    }
    assert_eq!(ask(OTHER).await.status, 200);
}

#[tokio::test]
async fn tokens_that_are_not_at_hand_are_shared_out() {
    let rules = Rules::new(allow("p", identity("i", KIND)));
    let cold = Rate { every: Duration::from_mins(10), burst: 5 };
    let bench = limited(rules, |limits| limits.cold = cold).await;
    bench.upstream.gate.add_permits(1000);
    let of = |n: usize| token(&format!("api-version=2018-02-01&resource=https://r{n}.example"));
    let mut greedy = Client::connect_from(GREEDY, bench.server.address).await;
    let mut statuses = Vec::new();
    for n in 0..20 {
        statuses.push(greedy.exchange(&of(n)).await.status);
    }
    assert_eq!(statuses, [vec![200; 5], vec![429; 15]].concat());
    assert_eq!(bench.upstream.calls.load(Ordering::SeqCst), 5);
    // What is at hand costs nothing, and another pod has a share of its own.
    assert_eq!(greedy.exchange(&of(2)).await.status, 200);
    let mut other = Client::connect_from(OTHER, bench.server.address).await;
    assert_eq!(other.exchange(&of(7)).await.status, 200);
}

#[tokio::test]
async fn records_of_refusals_are_bounded_and_the_surplus_is_counted() {
    let rules = Rules::new(|_, _| Decision::Deny(Deny::NoBinding(pod("p"))));
    let records = Rate { every: Duration::from_mins(10), burst: 5 };
    let bench = limited(Arc::clone(&rules), |limits| limits.records = records).await;
    let mut greedy = Client::connect_from(GREEDY, bench.server.address).await;
    for _ in 0..100 {
        assert_eq!(greedy.exchange(&token(QUERY)).await.status, 400);
    }
    assert_eq!(bench.server.records.all().len(), 5);
    assert_eq!(bench.server.metrics.audit_suppressed.get(), 95);
    assert_eq!(bench.server.metrics.requests(Reason::NoBinding), 100);
    // Another pod's are not lost for it, and no token leaves without one.
    let mut other = Client::connect_from(OTHER, bench.server.address).await;
    other.exchange(&token(QUERY)).await;
    assert_eq!(bench.server.records.all().len(), 6);
    rules.set(allow("p", identity("i", KIND)));
    bench.upstream.gate.add_permits(1);
    for _ in 0..20 {
        assert_eq!(greedy.exchange(&token(QUERY)).await.status, 200);
    }
    assert_eq!(bench.server.records.all().len(), 26);
}

/// Not the benchmark (that is `cargo xtask bench`), but the mechanism: whatever one pod sends, at full speed and on many
/// connections, is slowed down to what costs next to nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hammering_does_not_get_more_than_its_rate() {
    let rules = Rules::new(allow("p", identity("i", KIND)));
    let bench = limited(rules, |limits| {
        limits.requests = Rate::per_second(100, 100);
        limits.cheap = Rate::per_second(100, 100);
        limits.penalty = Duration::from_millis(100);
    })
    .await;
    bench.upstream.gate.add_permits(1);
    let address = bench.server.address;
    let hammers: Vec<_> = [token(QUERY), get("/metadata/identity/nothing")]
        .into_iter()
        .cycle()
        .take(32)
        .map(|request| {
            tokio::spawn(async move {
                let mut client = Client::connect_from(GREEDY, address).await;
                for _ in 0..15 {
                    client.exchange(&request).await;
                }
            })
        })
        .collect();
    let begin = tokio::time::Instant::now();
    for hammer in hammers {
        tokio::time::timeout(LIMIT, hammer).await.expect("slowed down, not stopped").unwrap();
    }
    // 16 × 15 of each kind: 100 at once, the other 140 at no more than 100/s or 10 a second on each connection.
    assert!(begin.elapsed() >= Duration::from_millis(800), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn connections_beyond_a_rate_are_served_later() {
    let rules = Rules::new(allow("p", identity("i", KIND)));
    let bench = limited(rules, |limits| {
        limits.connections = Rate::per_second(20, 2);
        limits.penalty = Duration::from_millis(100);
    })
    .await;
    let begin = tokio::time::Instant::now();
    for _ in 0..6 {
        // Not even a request that can be read: it would not be counted by anything else.
        let mut client = Client::connect_from(GREEDY, bench.server.address).await;
        client.send("nonsense\r\n\r\n").await;
        assert_eq!(client.read().await.unwrap().status, 400);
    }
    // Two at once, the other four 50 ms each.
    assert!(begin.elapsed() >= Duration::from_millis(190), "{:?}", begin.elapsed());
}
