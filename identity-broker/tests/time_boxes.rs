//! Near the end of a time box, and after it, over loopback.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use identity_core::{
    lookup::{Allow, Decision, Deny, Source},
    schedule::{Gate, Passage},
};
use identity_crd::{TimeBox, Window};
use jiff::Timestamp;
use support::{bench::*, *};

/// The bench's clock stands at 2027-01-15T08:00:00Z, a minute and a half before the closing.
fn closing_at_half_past() -> Gate {
    let window = Window { schedule: "30 1 0 * * *".into(), duration: "8h".into(), ..Window::default() };
    Gate::new(Some(&TimeBox { windows: Some(vec![window]), ..TimeBox::default() }), None).unwrap()
}

#[tokio::test]
async fn near_the_end_answers_come_from_the_cache_and_after_it_say_when_it_opens() {
    let (p, gate, later) = (pod("p"), closing_at_half_past(), Arc::new(AtomicI64::new(0)));
    let (a, seconds) = (assignment(&p, identity("i", KIND)), Arc::clone(&later));
    let rules = Rules::new(move |_, _| {
        let at = Timestamp::from_second(now().as_second() + seconds.load(Ordering::SeqCst)).unwrap();
        match gate.now(at, None) {
            Passage::Open { until, .. } => {
                Decision::Allow(Allow { pod: Arc::clone(&p), source: Source::Assignment(Arc::clone(&a)), until })
            }
            Passage::Closed { opens, reason } => {
                Decision::Deny(Deny::Closed { pod: Arc::clone(&p), assignment: Arc::clone(&a), opens, reason })
            }
        }
    });
    let bench = bench(rules).await;
    // An SDK keeps no token that ends within minutes: it asks on every call. Each is answered, with what is left.
    let mut client = Client::connect(bench.server.address).await;
    for _ in 0..50 {
        let body = client.exchange(&token(QUERY)).await.json();
        assert_eq!(
            (&body["expires_in"], &body["expires_on"], &body["access_token"]),
            (&"90".into(), &"1800000090".into(), &"very-secret-token".into())
        );
    }
    assert_eq!(bench.upstream.calls.load(Ordering::SeqCst), 1, "asked upstream once");

    later.store(90, Ordering::SeqCst);
    let answer = client.exchange(&token(QUERY)).await;
    assert!(!answer.headers.contains_key("retry-after"));
    let (status, error, text) = answer.error();
    assert_eq!((status, &*error), (403, "access_denied"));
    assert!(text.ends_with("is closed: none of its windows is open; it opens next at 2027-01-16T00:01:30Z"), "{text}");
    assert_eq!(bench.upstream.calls.load(Ordering::SeqCst), 1);
    assert_eq!(bench.server.records.all().last().unwrap().split(' ').nth(1), Some("closed"));
}
