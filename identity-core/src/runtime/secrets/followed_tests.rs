//! Secrets of an API server in memory, in stopped time.

use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::*;
use crate::runtime::{
    secrets::Secrets,
    source::Source,
    testing::{Call, Fault, Log, PATIENCE, Server},
};

fn secret(name: &str, value: &str) -> Value {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(value);
    json!({"kind": "Secret", "metadata": {"name": name, "namespace": "team"}, "data": {"a": encoded}})
}

fn rig(config: Config) -> (Server, Secrets) {
    let server = Server::new();
    let secrets = Secrets::with(&Source::kubernetes(server.client()), config);
    (server, secrets)
}

async fn value(secrets: &Secrets, name: &str) -> Result<String, Error> {
    let value = secrets.key("team", name, "a").await?;
    Ok(String::from_utf8(value.expose_secret().to_vec()).unwrap())
}

async fn changed(receiver: &mut watch::Receiver<u64>) {
    timeout(PATIENCE, receiver.changed()).await.expect("no change is told").expect("not followed");
    receiver.mark_unchanged();
}

fn is_get(call: &Call) -> bool {
    call.path.ends_with("/secrets/sp")
}

fn is_watching(call: &Call) -> bool {
    call.query.contains("watch=true")
}

#[tokio::test(start_paused = true)]
async fn one_watch_of_one_name_and_then_no_request() {
    let (server, secrets) = rig(Config::default());
    server.put("secrets", secret("sp", "one"));
    server.put("secrets", secret("other", "not asked for"));
    let mut changes = secrets.follow("team", "sp");
    assert_eq!(value(&secrets, "sp").await.unwrap(), "one");
    server.until("it is watched", |server| server.watches("secrets") == 1).await;
    let calls = server.calls(|_| true);
    assert_eq!(calls.len(), 2, "{calls:?}");
    for call in calls {
        assert_eq!(call.path, "/api/v1/namespaces/team/secrets");
        assert!(call.query.contains("fieldSelector=metadata.name%3Dsp"), "{}", call.query);
    }
    for _ in 0..1000 {
        assert_eq!(value(&secrets, "sp").await.unwrap(), "one");
    }
    assert_eq!(server.count(|_| true), 2);

    changes.mark_unchanged();
    server.put("secrets", secret("other", "still not"));
    server.put("secrets", secret("sp", "two"));
    changed(&mut changes).await;
    assert_eq!(value(&secrets, "sp").await.unwrap(), "two");
    server.remove("secrets", "team", "sp");
    changed(&mut changes).await;
    assert_eq!(value(&secrets, "sp").await.unwrap_err().to_string(), "there is no Secret team/sp");
    server.put("secrets", secret("sp", "three"));
    changed(&mut changes).await;
    assert_eq!(value(&secrets, "sp").await.unwrap(), "three");
    assert_eq!(server.count(|_| true), 2);
}

#[tokio::test(start_paused = true)]
async fn what_was_known_last_stands_through_an_outage() {
    let (server, secrets) = rig(Config::default());
    server.put("secrets", secret("sp", "one"));
    let mut changes = secrets.follow("team", "sp");
    assert_eq!(value(&secrets, "sp").await.unwrap(), "one");
    server.until("it is watched", |server| server.watches("secrets") == 1).await;
    changes.mark_unchanged();
    server.rule(|_| Some(Fault::Broken));
    server.end_watches(false);
    sleep(Duration::from_hours(1)).await;
    let began = Instant::now();
    assert_eq!(value(&secrets, "sp").await.unwrap(), "one");
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert!(!changes.has_changed().unwrap());

    // Meanwhile it has changed, and the server has forgotten how.
    server.put("secrets", secret("sp", "two"));
    server
        .rule(|call| (is_watching(call) && call.query.contains("resourceVersion=1")).then_some(Fault::Code(410, None)));
    changed(&mut changes).await;
    assert_eq!(value(&secrets, "sp").await.unwrap(), "two");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_at_first_is_asked_again() {
    let (server, secrets) = rig(Config::default());
    server.put("secrets", secret("sp", "one"));
    server.rule(|_| Some(Fault::Broken));
    let text = value(&secrets, "sp").await.unwrap_err().to_string();
    assert!(text.starts_with("Secret team/sp cannot be read now: the API server cannot be reached"), "{text}");
    server.well_again();
    sleep(RECENT).await;
    assert_eq!(value(&secrets, "sp").await.unwrap(), "one");
    // One that does not answer at all is not waited for long.
    let (_never, gate) = watch::channel(false);
    server.rule(move |_| Some(Fault::Slow(gate.clone())));
    let began = Instant::now();
    assert!(matches!(value(&secrets, "other").await.unwrap_err(), Error::Unavailable { .. }));
    assert_eq!(began.elapsed(), LIMIT);
}

#[tokio::test(start_paused = true)]
async fn an_account_that_may_only_get_is_served_all_the_same() {
    let log = Log::new();
    let (server, secrets) = rig(Config::default());
    server.put("secrets", secret("sp", "one"));
    server.put("secrets", secret("other", "x"));
    server.rule(|call| (call.path.ends_with("/secrets")).then_some(Fault::Code(403, None)));
    let mut changes = secrets.follow("team", "sp");
    assert_eq!(value(&secrets, "sp").await.unwrap(), "one");
    assert_eq!(value(&secrets, "other").await.unwrap(), "x");
    // However often it is asked for, it is read once a second.
    let before = server.count(is_get);
    for _ in 0..100 {
        assert_eq!(value(&secrets, "sp").await.unwrap(), "one");
    }
    assert!(server.count(is_get) - before <= 1);
    changes.mark_unchanged();
    server.put("secrets", secret("sp", "two"));
    sleep(RECENT).await;
    assert_eq!(value(&secrets, "sp").await.unwrap(), "two");
    changes.mark_unchanged();
    // And when nobody asks, once a minute or so.
    server.put("secrets", secret("sp", "three"));
    let began = Instant::now();
    changed(&mut changes).await;
    assert!(began.elapsed() <= Duration::from_secs(76), "{:?}", began.elapsed());
    assert_eq!(log.with("grant verbs `list` and `watch`").len(), 1, "said once");

    // The server goes away: what was known last stands. It comes back, and allows more.
    server.rule(|_| Some(Fault::Broken));
    sleep(Duration::from_mins(5)).await;
    assert_eq!(value(&secrets, "sp").await.unwrap(), "three");
    server.well_again();
    server.until("it is followed", |server| server.watches("secrets") == 2).await;
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_read_is_known_as_such_until_it_may() {
    let log = Log::new();
    let (server, secrets) = rig(Config::default());
    server.put("secrets", secret("sp", "one"));
    server.rule(|_| Some(Fault::Code(403, None)));
    let mut changes = secrets.follow("team", "sp");
    let text = value(&secrets, "sp").await.unwrap_err().to_string();
    assert!(text.contains("grant verb `get` on resource `secrets` named `sp` in namespace `team`"), "{text}");
    changes.mark_unchanged();
    server.well_again();
    changed(&mut changes).await;
    assert_eq!(value(&secrets, "sp").await.unwrap(), "one");
    server.until("it is followed", |server| server.watches("secrets") == 1).await;
    // Taken away again while it is followed.
    server.rule(|_| Some(Fault::Code(403, None)));
    server.end_watches(false);
    changed(&mut changes).await;
    assert!(matches!(value(&secrets, "sp").await.unwrap_err(), Error::Forbidden { .. }));
    assert!(log.with("grant verbs `list`").is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_one_is_said_without_saying_it() {
    let (server, secrets) = rig(Config::default());
    for (name, data) in [
        ("a", json!({"a": "hunter2"})),
        ("b", json!({"a": 271_828})),
        ("c", json!("hunter2")),
        ("d", json!(["hunter2"])),
    ] {
        server.put("secrets", json!({"metadata": {"name": name, "namespace": "team"}, "data": data}));
        let error = value(&secrets, name).await.unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
        let text = format!("{error:?} {error}");
        assert!(!text.contains("hunter2") && !text.contains("271"), "{text}");
    }
    server.put("secrets", json!({"metadata": {"name": "e", "namespace": "team"}}));
    assert!(matches!(value(&secrets, "e").await.unwrap_err(), Error::KeyMissing { has, .. } if has.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn so_many_are_followed_and_what_nobody_wants_is_dropped() {
    let idle = Duration::from_mins(30);
    let (server, secrets) = rig(Config { most: 3, ..Config::default() });
    for name in ["a", "b", "c", "d", "e"] {
        server.put("secrets", secret(name, name));
    }
    let mut held: Vec<_> = ["a", "b", "c"].map(|name| secrets.follow("team", name)).into();
    server.until("three are watched", |server| server.watches("secrets") == 3).await;
    // All are wanted, and were a moment ago: one more is read, not followed.
    let fourth = secrets.follow("team", "d");
    assert!(fourth.has_changed().is_err(), "nobody follows it");
    assert_eq!(value(&secrets, "d").await.unwrap(), "d");
    assert_eq!(server.count(|call| call.path.ends_with("/secrets/d")), 1);
    // However long ago one was used: whoever follows it would come back at once, and so on in a circle.
    sleep(Duration::from_mins(10)).await;
    assert!(secrets.follow("team", "d").has_changed().is_err());
    assert!(held.iter().all(|changes| changes.has_changed().is_ok()));
    // One without a receiver gives way, however recently it was used.
    drop(held.pop());
    value(&secrets, "c").await.unwrap();
    let last = secrets.follow("team", "d");
    assert!(last.has_changed().is_ok() && held.iter().all(|changes| changes.has_changed().is_ok()));
    server.until("three are watched", |server| server.watches("secrets") == 3).await;

    drop(held);
    sleep(idle * 3).await;
    server.end_watches(false);
    server.until("only what is wanted is watched", |server| server.watches("secrets") == 1).await;
    sleep(idle).await;
    assert_eq!(server.watches("secrets"), 1);
    drop((secrets, last));
    server.end_watches(false);
    sleep(idle).await;
    assert_eq!(server.watches("secrets"), 0, "nothing goes on after the last clone");
}

#[tokio::test]
async fn manifests_tell_of_changes() {
    let source = Source::manifests("/nonexistent", "/nonexistent");
    let secrets = Secrets::new(&source);
    let Source::Manifests(manifests) = &source else { unreachable!() };
    let store = manifests.secrets();
    let key = ObjectKey::new("team", "sp");
    let data = |text: &str| {
        let mut data = SecretData::new();
        data.insert("a".into(), text.as_bytes().to_vec().into());
        Arc::new(data)
    };
    let mut changes = secrets.follow("team", "sp");
    let mut other = secrets.follow("team", "other");
    store.ready();
    changed(&mut changes).await;
    changed(&mut other).await;
    store.put(key.clone(), data("one"));
    changed(&mut changes).await;
    store.put(key.clone(), data("one"));
    store.ready();
    assert!(!changes.has_changed().unwrap(), "the same again is no change");
    store.put(key.clone(), data("two"));
    changed(&mut changes).await;
    assert_eq!(value(&secrets, "sp").await.unwrap(), "two");
    store.remove(&key);
    changed(&mut changes).await;
    assert!(!other.has_changed().unwrap());
}
