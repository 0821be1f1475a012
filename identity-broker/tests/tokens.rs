//! The token manager and the upstream budget against emulators of Entra (real TLS) and IMDS: what upstream sees.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

mod support;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::join_all;
use identity_broker::{Freshness, Manager, ManagerConfig, Metrics, Token, TokenError, Tokens};
use identity_core::lookup::Identity;
use identity_lab::emulator::Fault;
use jiff::Timestamp;
use serde_json::{Value, json};
use support::{azures::*, object};
use tokio::time::Instant;

type Tested = Manager<Client, fn() -> Timestamp>;

fn manager(client: Client, config: ManagerConfig) -> Tested {
    Manager::new(client, wall_clock, config, Arc::new(Metrics::default()))
}

async fn get(manager: &Tested, identity: &Arc<Identity>, resource: &str) -> Result<Arc<Token>, TokenError> {
    manager.get(identity, resource, Freshness::Any).await
}

/// Waits for a condition, looking at it every few milliseconds.
async fn until(what: &str, limit: Duration, condition: impl Fn() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(limit, waited).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_first_requests_at_once_are_one_request_upstream() {
    let azures = azures().await;
    for (identity, service) in [(azures.with_secret("secret"), "entra"), (managed(), "imds")] {
        let manager = manager(azures.client(), ManagerConfig::default());
        let identity = Arc::new(identity);
        let before = azures.entra.requests().len();
        let asking = (0..1000).map(|_| {
            let (manager, identity) = (manager.clone(), Arc::clone(&identity));
            tokio::spawn(async move { get(&manager, &identity, VAULT).await })
        });
        let tokens: Vec<_> = join_all(asking).await.into_iter().map(|token| token.unwrap().unwrap()).collect();
        assert!(tokens.iter().all(|token| Arc::ptr_eq(token, &tokens[0])));
        assert_eq!(azures.entra.requests().len() - before, 1, "{service}");
    }
}

fn managed_identities(count: usize) -> Vec<Value> {
    let one = |n: usize| json!({"resourceId": format!("{RESOURCE_ID}-{n}"), "clientId": format!("44444444-4444-4444-4444-{n:012}"), "tenantId": TENANT});
    (0..count).map(one).collect()
}

fn numbered(n: usize) -> Arc<Identity> {
    let mut identity = managed();
    identity.object = object(&format!("managed-{n}"));
    identity.object.namespace = format!("ns-{}", n % 7).into();
    identity.client_id = Some(format!("44444444-4444-4444-4444-{n:012}").into());
    identity.resource_id = Some(format!("{RESOURCE_ID}-{n}").into());
    Arc::new(identity)
}

/// 50 identities with 4 audiences each, all at once, as when a node starts. IMDS itself refuses more than 20 a second or 5 at
/// a time: that none was refused is what the platform would say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_keys_at_once_stay_within_what_imds_allows_and_all_get_their_token() {
    let azures = azures_with(&Value::Array(managed_identities(50))).await;
    let manager = manager(azures.client(), ManagerConfig::default());
    let asking = (0..200).map(|n| {
        let manager = manager.clone();
        tokio::spawn(async move {
            let resource = format!("https://resource-{}.example", n / 50);
            let begin = Instant::now();
            // As SDKs do: again, when told to.
            loop {
                match get(&manager, &numbered(n % 50), &resource).await {
                    Ok(token) => return (token, begin.elapsed()),
                    Err(TokenError::Unavailable { retry_after, .. }) => tokio::time::sleep(retry_after).await,
                    Err(error) => panic!("{error}"),
                }
            }
        })
    });
    let all = tokio::time::timeout(Duration::from_secs(40), join_all(asking)).await.expect("all in time");
    let longest = all.into_iter().map(|one| one.unwrap().1).max().unwrap();
    assert!(longest < Duration::from_secs(18), "{longest:?}");
    let requests = azures.entra.requests();
    assert!(requests.iter().all(|request| request.status == 200), "IMDS refused");
    assert_eq!(requests.len(), 200);
    let arrived: Vec<_> = requests.iter().map(|request| request.time.as_millisecond()).collect();
    let within = |from: i64| arrived.iter().filter(|at| (from..from + 1000).contains(*at)).count();
    let most = arrived.iter().map(|from| within(*from)).max().unwrap();
    assert!(most <= 20, "{most} within a second");
}

/// A namespace that asks for much does not make another wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_asks_for_one_token_is_not_behind_one_that_asks_for_a_hundred() {
    let azures = azures_with(&Value::Array(managed_identities(100))).await;
    let manager = manager(azures.client(), ManagerConfig::default());
    let asking: Vec<_> = (0..100)
        .map(|n| {
            let manager = manager.clone();
            let mut identity = Identity::clone(&numbered(n));
            identity.object.namespace = "greedy".into();
            tokio::spawn(async move { get(&manager, &Arc::new(identity), VAULT).await.map(drop) })
        })
        .collect();
    until("the line is long", Duration::from_secs(5), || azures.entra.requests().len() >= 5).await;
    let begin = Instant::now();
    get(&manager, &numbered(1), VAULT).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    asking.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Tokens of 16 seconds instead of an hour, refreshed after 8; Entra is down from 2 s on, for 10 s: longer than that. Eight
/// keys are asked for all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_longer_than_a_refresh_interval_is_not_noticed_and_recovery_is_no_stampede() {
    const KEYS: usize = 8;
    let azures = azures_living(16).await;
    // Everything else as much shorter.
    let backoff = Duration::from_millis(250);
    let config = ManagerConfig { backoff, backoff_max: Duration::from_secs(1), ..ManagerConfig::default() };
    let client = azures.client_with(|config| config.attempts = 1);
    let manager = manager(client, config);
    let identity = Arc::new(azures.with_secret("secret"));
    let resource = |n: usize| format!("https://resource-{n}.example");
    let (mut answers, mut failures) = (0, 0);
    for n in 0..KEYS {
        get(&manager, &identity, &resource(n)).await.unwrap();
    }
    let begin = Instant::now();
    let (mut downed, mut restored) = (false, None);
    while begin.elapsed() < Duration::from_secs(15) {
        if !downed && begin.elapsed() > Duration::from_secs(2) {
            azures.entra.set_fault(Fault::EntraDown, true);
            downed = true;
        }
        if restored.is_none() && begin.elapsed() > Duration::from_secs(12) {
            azures.entra.set_fault(Fault::EntraDown, false);
            restored = Some(wall_clock());
        }
        for n in 0..KEYS {
            match get(&manager, &identity, &resource(n)).await {
                Ok(token) => {
                    assert!(token.remaining(wall_clock()) > 0);
                    answers += 1;
                }
                Err(_) => failures += 1,
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(failures == 0 && answers > 1000, "{failures} of {answers}");
    let restored = restored.unwrap();
    let requests = azures.entra.requests();
    let mut by_key: BTreeMap<String, (usize, usize, usize)> = BTreeMap::new();
    for request in requests.iter().filter(|request| request.method == "POST") {
        let key = by_key.entry(request.form["scope"].to_string()).or_default();
        match (request.time > restored, request.status) {
            (true, _) => key.2 += 1,
            (false, 200) => key.0 += 1,
            (false, _) => key.1 += 1,
        }
    }
    assert_eq!(by_key.len(), KEYS);
    for (key, (before, during, after)) in &by_key {
        assert_eq!(*before, 1, "{key}");
        // From the 7th second on: 250, 500 ms, then one each second, a quarter less at most.
        assert!((2..=9).contains(during), "{key}: {during} during the outage");
        assert_eq!(*after, 1, "{key}: one each when Entra is back");
    }
    // Not all in the same moment.
    let after: Vec<_> = requests.iter().filter(|r| r.time > restored).map(|r| r.time.as_millisecond()).collect();
    let spread = after.iter().max().unwrap() - after.iter().min().unwrap();
    assert!(spread > 100, "{spread} ms");
}

/// Nobody waits for it, and no key is left with a token of the former one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_of_a_secret_is_seen_by_all_keys_of_its_identity() {
    let azures = azures().await;
    let config = ManagerConfig { superseded: Duration::from_secs(2), ..ManagerConfig::default() };
    let config = ManagerConfig { backoff: Duration::from_millis(200), ..config };
    let client = azures.client_with(|config| {
        config.credential_age = Duration::ZERO;
        config.rotation.jitter = Duration::from_millis(50);
    });
    let manager = manager(client, config);
    let identity = Arc::new(azures.with_secret("secret"));
    let old = get(&manager, &identity, VAULT).await.unwrap();
    // The same secret, in another form: another version, as good as the first.
    azures.secrets.set("secret", &[("clientSecret", format!("{SECRET}\n").as_bytes())]);
    // It is seen with the next token, which still comes with the former.
    let next = get(&manager, &identity, "https://other.example").await.unwrap();
    assert_eq!(old.credential(), next.credential());
    for resource in [VAULT, "https://other.example"] {
        until(
            "each key follows",
            Duration::from_secs(5),
            || matches!(manager.ready(&identity, resource), Some(Ok(token)) if token.credential() != old.credential()),
        )
        .await;
    }
    assert_eq!(azures.posts(), 2 + 1 + 2, "before, the try, and after");
}
