use std::sync::atomic::AtomicUsize;

use identity_core::lookup::CredentialSource;
use identity_crd::IdentityType;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Semaphore;

use super::*;
use crate::tokens::{Issued, ManagerConfig, Refusal, RefusalKind};

/// Answers with what the test says, as often as it lets it.
struct Fake {
    base: Instant,
    calls: AtomicUsize,
    version: AtomicU64,
    gate: Semaphore,
    fail: Mutex<Option<TokenError>>,
    lifetime: AtomicU64,
    refresh_in: Mutex<Option<i64>>,
    notices: broadcast::Sender<Notice>,
}

type Tested = Manager<Arc<Fake>, Box<dyn Fn() -> Timestamp + Send + Sync>>;

struct Bench {
    manager: Tested,
    fake: Arc<Fake>,
}

/// The wall clock goes with the paused one.
fn wall(base: Instant) -> Timestamp {
    let since = i64::try_from(base.elapsed().as_millis()).unwrap();
    Timestamp::from_millisecond(1_800_000_000_000 + since).unwrap()
}

impl Backend for Arc<Fake> {
    fn credential_version(&self, identity: &Identity) -> u64 {
        self.version.load(Ordering::SeqCst) + u64::from(identity.client_id.as_deref() == Some("other"))
    }

    async fn fetch(&self, identity: &Arc<Identity>, resource: &str, _: Freshness) -> Result<Token, TokenError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        assert_ne!(resource, "panic", "a test panics here");
        self.gate.acquire().await.unwrap().forget();
        if let Some(error) = self.fail.lock().unwrap().clone() {
            return Err(error);
        }
        let now = wall(self.base);
        let life = i64::try_from(self.lifetime.load(Ordering::SeqCst)).unwrap();
        let token = Token::issued(&Issued {
            access_token: &format!("token-{call}"),
            resource,
            client_id: identity.client_id.as_deref(),
            expires_on: now + SignedDuration::from_secs(life),
            now,
            credential: self.credential_version(identity),
            request_id: None,
        });
        Ok(token.with_refresh_in(*self.refresh_in.lock().unwrap()))
    }

    fn notices(&self) -> Option<broadcast::Receiver<Notice>> {
        Some(self.notices.subscribe())
    }
}

fn bench(config: ManagerConfig) -> Bench {
    let base = Instant::now();
    let fake = Arc::new(Fake {
        base,
        calls: AtomicUsize::new(0),
        version: AtomicU64::new(7),
        gate: Semaphore::new(0),
        fail: Mutex::new(None),
        lifetime: AtomicU64::new(3600),
        refresh_in: Mutex::new(None),
        notices: broadcast::Sender::new(8),
    });
    let clock: Box<dyn Fn() -> Timestamp + Send + Sync> = Box::new(move || wall(base));
    Bench { manager: Manager::new(Arc::clone(&fake), clock, config, Arc::default()), fake }
}

impl Bench {
    fn calls(&self) -> usize {
        self.fake.calls.load(Ordering::SeqCst)
    }

    /// Waits for so many calls, and lets the last one be taken in.
    async fn called(&self, calls: usize) {
        let waited = async {
            while self.calls() < calls {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(Duration::from_hours(2), waited).await.expect("called in time");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(self.calls(), calls);
    }

    fn let_through(&self, calls: usize) {
        self.fake.gate.add_permits(calls);
    }

    fn fail(&self, error: Option<TokenError>) {
        *self.fake.fail.lock().unwrap() = error;
    }

    async fn get(&self, name: &str, resource: &str) -> Answer {
        self.manager.get(&identity(name), resource, Freshness::Any).await
    }

    async fn fresh(&self, name: &str, resource: &str) -> Answer {
        self.manager.get(&identity(name), resource, Freshness::Upstream).await
    }

    fn ready(&self, name: &str, resource: &str) -> Option<Answer> {
        self.manager.ready(&identity(name), resource)
    }

    fn remaining(&self, token: &Token) -> i64 {
        token.remaining(wall(self.fake.base))
    }
}

/// Lets time pass, and tasks run.
async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

fn identity(name: &str) -> Arc<Identity> {
    Arc::new(Identity {
        object: ObjectRef { namespace: "ns".into(), name: name.into(), uid: name.into(), generation: 1 },
        kind: IdentityType::ServicePrincipal,
        client_id: Some(name.into()),
        object_id: None,
        resource_id: None,
        tenant_id: Some("t".into()),
        authority: None,
        credential: CredentialSource::None,
        audiences: Box::default(),
    })
}

fn down() -> TokenError {
    TokenError::Unavailable { message: "down".into(), retry_after: Duration::from_secs(3) }
}

fn refused() -> TokenError {
    TokenError::Refused(Refusal { error: RefusalKind::InvalidClient, description: "AADSTS1".into(), trace_id: None })
}

fn wait_of(answer: Answer) -> Duration {
    match answer {
        Err(TokenError::Unavailable { retry_after, .. }) => retry_after,
        other => panic!("not unavailable: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn many_at_once_are_one_request_and_a_waiter_that_leaves_takes_nothing_with_it() {
    let bench = bench(ManagerConfig::default());
    let manager = bench.manager.clone();
    let first = tokio::spawn(async move { manager.get(&identity("a"), "r", Freshness::Any).await.map(|_| ()) });
    while bench.calls() == 0 {
        tokio::task::yield_now().await;
    }
    first.abort();
    let others = futures::future::join_all((0..2000).map(|_| bench.get("a", "r")));
    let (tokens, ()) = tokio::join!(others, async {
        pass(1).await;
        bench.let_through(1);
    });
    let tokens: Vec<_> = tokens.into_iter().map(Result::unwrap).collect();
    assert!(tokens.iter().all(|token| Arc::ptr_eq(token, &tokens[0])));
    assert_eq!(bench.calls(), 1);
    assert!(bench.ready("a", "r").is_some());
}

#[tokio::test(start_paused = true)]
async fn keys_are_identity_and_audience_as_sent() {
    let bench = bench(ManagerConfig::default());
    bench.let_through(10);
    for (name, resource) in [("a", "r"), ("a", "r/"), ("b", "r")] {
        bench.get(name, resource).await.unwrap();
    }
    assert_eq!((bench.calls(), bench.manager.len()), (3, 3));
    // The same object with another client id is another identity; another generation is not.
    let mut changed = Identity::clone(&identity("a"));
    changed.object.generation = 2;
    bench.manager.get(&Arc::new(changed.clone()), "r", Freshness::Any).await.unwrap();
    assert_eq!(bench.calls(), 3);
    changed.client_id = Some("other".into());
    let token = bench.manager.get(&Arc::new(changed), "r", Freshness::Any).await.unwrap();
    assert_eq!((bench.calls(), token.client_id()), (4, Some("other")));
}

#[tokio::test(start_paused = true)]
async fn tokens_of_a_former_credential_are_replaced_within_a_minute() {
    let bench = bench(ManagerConfig::default());
    bench.let_through(10);
    let old = bench.get("a", "r").await.unwrap();
    bench.get("a", "other").await.unwrap();
    bench.fake.version.store(8, Ordering::SeqCst);
    bench.manager.credential_changed(&identity("a").object, 8).await;
    // Nobody waits for that.
    assert!(Arc::ptr_eq(&bench.get("a", "r").await.unwrap(), &old));
    pass(60).await;
    for resource in ["r", "other"] {
        assert_eq!(bench.ready("a", resource).unwrap().unwrap().credential(), 8);
    }
    assert_eq!(bench.calls(), 4);
    // The backend may say so itself; it is told on.
    let mut told = bench.manager.notices();
    bench.fake.version.store(10, Ordering::SeqCst);
    let identity = identity("a").object.clone();
    let rotated = Notice::Rotated { identity, version: 10, origin: "Secret ns/a".into(), expires: None };
    bench.fake.notices.send(rotated).unwrap();
    pass(60).await;
    assert_eq!(bench.ready("a", "r").unwrap().unwrap().credential(), 10);
    assert_eq!(told.try_recv().unwrap().reason(), "CredentialRotated");
    bench.let_through(10);
    // It is also noticed when another token comes with it.
    bench.fake.version.store(9, Ordering::SeqCst);
    bench.get("a", "third").await.unwrap();
    pass(60).await;
    assert_eq!(bench.ready("a", "r").unwrap().unwrap().credential(), 9);
}

#[tokio::test(start_paused = true)]
async fn refresh_ahead_does_not_make_anybody_wait() {
    let bench = bench(ManagerConfig::default());
    bench.let_through(1);
    let first = bench.get("a", "r").await.unwrap();
    pass(2699).await;
    assert_eq!(bench.calls(), 1);
    bench.called(2).await;
    assert!((598..=900).contains(&bench.remaining(&first)));
    assert!(Arc::ptr_eq(&first, &bench.ready("a", "r").unwrap().unwrap()), "the old one is good");
    bench.let_through(1);
    pass(1).await;
    let second = bench.ready("a", "r").unwrap().unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    assert!(bench.remaining(&second) > 3590);
    // Nobody but that one has asked since: it is not refreshed for ever.
    bench.let_through(100);
    pass(24 * 3600).await;
    assert_eq!(bench.calls(), 3);
    assert_eq!(bench.manager.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn upstream_says_when_to_refresh() {
    let bench = bench(ManagerConfig::default());
    *bench.fake.refresh_in.lock().unwrap() = Some(1000);
    bench.let_through(10);
    bench.get("a", "r").await.unwrap();
    pass(899).await;
    assert_eq!(bench.calls(), 1);
    pass(102).await;
    assert_eq!(bench.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_outage_changes_nothing_while_a_token_is_valid() {
    let bench = bench(ManagerConfig::default());
    bench.let_through(1000);
    let token = bench.get("a", "r").await.unwrap();
    bench.fail(Some(down()));
    for _ in 0..3599 {
        let answer = bench.get("a", "r").await.unwrap();
        assert!(bench.remaining(&answer) > 0);
        pass(1).await;
    }
    // Ten minutes of asking again, half a minute apart.
    assert!((20..45).contains(&bench.calls()), "{}", bench.calls());
    pass(1).await;
    assert!(bench.get("a", "r").await.is_err());
    bench.fail(None);
    pass(30).await;
    let fresh = bench.get("a", "r").await.unwrap();
    assert!(!Arc::ptr_eq(&fresh, &token));
}

#[tokio::test(start_paused = true)]
async fn recovery_is_noticed_without_anybody_waiting() {
    let bench = bench(ManagerConfig::default());
    bench.let_through(1000);
    bench.get("a", "r").await.unwrap();
    bench.fail(Some(down()));
    pass(3400).await;
    assert!(bench.ready("a", "r").unwrap().is_ok());
    bench.fail(None);
    pass(31).await;
    let fresh = bench.ready("a", "r").unwrap().unwrap();
    assert!(bench.remaining(&fresh) > 3500);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_forgotten_soon_and_takes_a_token_away_only_when_confirmed() {
    let bench = bench(ManagerConfig::default());
    let mut notices = bench.manager.notices();
    bench.let_through(1000);
    bench.fail(Some(refused()));
    for _ in 0..10 {
        assert!(matches!(bench.get("a", "r").await, Err(TokenError::Refused(_))));
    }
    assert_eq!(bench.calls(), 1);
    bench.fail(None);
    pass(1).await;
    bench.get("a", "r").await.unwrap();
    bench.fail(Some(refused()));
    let begin = bench.calls();
    bench.called(begin + 1).await;
    assert!(bench.ready("a", "r").unwrap().is_ok(), "once is not enough");
    assert!(notices.try_recv().is_err());
    bench.called(begin + 2).await;
    assert!(matches!(bench.ready("a", "r"), Some(Err(TokenError::Refused(_)))));
    assert!(matches!(notices.try_recv(), Ok(Notice::Refused { .. })));
    bench.fail(None);
    pass(4).await;
    bench.get("a", "r").await.unwrap();
    assert!(matches!(notices.try_recv(), Ok(Notice::Restored { .. })));
    assert!(notices.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn waiting_is_bounded_and_short_when_there_is_a_token() {
    let bench = bench(ManagerConfig::default());
    let begin = Instant::now();
    assert!(matches!(bench.get("a", "r").await, Err(TokenError::Unavailable { .. })));
    assert_eq!(begin.elapsed(), ManagerConfig::default().wait);
    bench.let_through(1);
    let token = bench.get("a", "r").await.unwrap();
    // Unused for long, so that it was not refreshed ahead.
    bench.fake.gate.forget_permits(100);
    let calls = bench.calls();
    tokio::time::sleep(Duration::from_secs(3600 - 200)).await;
    let begin = Instant::now();
    assert!(bench.ready("a", "r").is_none() || bench.calls() > calls);
    assert!(Arc::ptr_eq(&bench.get("a", "r").await.unwrap(), &token));
    assert!(begin.elapsed() <= ManagerConfig::default().patience);
}

#[tokio::test(start_paused = true)]
async fn size_is_bounded_and_those_without_a_token_go_first() {
    let bench = bench(ManagerConfig { capacity: 5, per_identity: 3, ..ManagerConfig::default() });
    bench.let_through(1000);
    bench.get("a", "good").await.unwrap();
    bench.fail(Some(refused()));
    for n in 0..20 {
        let _ = bench.get("a", &format!("bad-{n}")).await;
    }
    assert_eq!(bench.manager.len(), 3);
    bench.fail(None);
    let calls = bench.calls();
    bench.get("a", "good").await.unwrap();
    assert_eq!(bench.calls(), calls, "the good one is still there");
    for n in 0..20 {
        bench.get(&format!("i-{n}"), "r").await.unwrap();
    }
    assert_eq!(bench.manager.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn one_pod_crowds_out_only_what_it_asked_for() {
    let bench = bench(ManagerConfig { per_pod: 3, ..ManagerConfig::default() });
    bench.let_through(1000);
    bench.manager.get_for("one", &identity("a"), "r", Freshness::Any).await.unwrap();
    for n in 0..50 {
        bench.manager.get_for("other", &identity("a"), &format!("x-{n}"), Freshness::Any).await.unwrap();
        pass(1).await;
    }
    assert_eq!(bench.manager.len(), 4);
    assert!(bench.ready("a", "r").unwrap().is_ok());
    // With the pod gone, what only it asked for is not refreshed any more, and what others ask for is.
    bench.manager.pod_gone("other").await;
    let calls = bench.calls();
    for _ in 0..7000 {
        pass(1).await;
        assert!(bench.ready("a", "r").unwrap().is_ok());
    }
    assert_eq!((bench.calls() - calls, bench.manager.len()), (2, 1));
    bench.manager.identity_gone(&identity("a").object).await;
    pass(1).await;
    assert!(bench.manager.is_empty());
}

#[tokio::test(start_paused = true)]
async fn past_every_cache() {
    let bench = bench(ManagerConfig::default());
    bench.let_through(10);
    bench.get("a", "r").await.unwrap();
    let fresh = bench.fresh("a", "r").await.unwrap();
    assert_eq!(bench.calls(), 2);
    // It is the one at hand from now on.
    assert!(Arc::ptr_eq(&bench.ready("a", "r").unwrap().unwrap(), &fresh));
    // Failing takes nothing away, but is said.
    bench.fail(Some(down()));
    assert!(bench.fresh("a", "r").await.is_err());
    assert!(bench.get("a", "r").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn past_every_cache_does_not_join_what_may_come_from_one() {
    let bench = bench(ManagerConfig::default());
    let all = futures::future::join3(bench.get("a", "r"), bench.fresh("a", "r"), bench.fresh("a", "r"));
    let (all, ()) = tokio::join!(all, async {
        pass(1).await;
        bench.let_through(10);
    });
    let (cached, one, other) = all;
    // One for whoever takes any, then one for both who do not.
    assert_eq!(bench.calls(), 2);
    assert!(!Arc::ptr_eq(&cached.unwrap(), one.as_ref().unwrap()));
    assert!(Arc::ptr_eq(&one.unwrap(), &other.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_a_moment_ago_is_at_hand_with_what_is_left_of_its_wait() {
    let bench = bench(ManagerConfig::default());
    bench.let_through(10);
    bench.fail(Some(down()));
    assert!(bench.ready("a", "r").is_none());
    assert!(bench.get("a", "r").await.is_err());
    pass(1).await;
    // Three seconds were asked for.
    for outcome in [bench.ready("a", "r").unwrap(), bench.get("a", "r").await, bench.fresh("a", "r").await] {
        assert!((1990..=2000).contains(&wait_of(outcome).as_millis()));
    }
    assert_eq!(bench.calls(), 1);
    pass(2).await;
    assert!(bench.ready("a", "r").is_none());
    // And is forgotten, with its key.
    pass(601).await;
    assert!(bench.manager.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_panics_or_hangs_is_a_failure() {
    let bench = bench(ManagerConfig { fetch: Duration::from_secs(5), ..ManagerConfig::default() });
    assert!(matches!(bench.get("a", "panic").await, Err(TokenError::Unavailable { .. })));
    let begin = Instant::now();
    assert!(matches!(bench.get("a", "r").await, Err(TokenError::Unavailable { .. })));
    assert_eq!(begin.elapsed(), Duration::from_secs(5));
    bench.let_through(1);
    pass(3).await;
    bench.get("a", "r").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_last_clone() {
    let bench = bench(ManagerConfig::default());
    bench.let_through(1);
    bench.get("a", "r").await.unwrap();
    let core = Arc::downgrade(&bench.manager.handle.core);
    drop(bench);
    while core.strong_count() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_identity_was_asked_for_is_there_before_the_next_pod_asks() {
    let bench = bench(ManagerConfig { prefetch: 2, per_identity: 4, ..ManagerConfig::default() });
    bench.let_through(100);
    for resource in ["1", "2", "3", "2"] {
        bench.get("a", resource).await.unwrap();
    }
    bench.fail(Some(TokenError::Unavailable { message: "down".into(), retry_after: Duration::from_secs(1) }));
    bench.get("a", "never").await.unwrap_err();
    bench.fail(None);
    let a = identity("a");
    bench.manager.identity_assigned(&a).await;
    pass(1).await;
    assert_eq!(bench.calls(), 4, "what is there is not got again");
    bench.manager.identity_gone(&a.object).await;
    pass(1).await;
    assert!(bench.manager.is_empty());
    // Its object has changed meanwhile.
    let mut changed = Identity::clone(&a);
    changed.tenant_id = Some("another".into());
    let changed = Arc::new(changed);
    bench.manager.identity_assigned(&changed).await;
    bench.manager.identity_assigned(&identity("b")).await;
    pass(1).await;
    assert_eq!(bench.calls(), 6);
    for resource in ["2", "3"] {
        assert!(bench.manager.ready(&changed, resource).unwrap().is_ok(), "{resource}");
    }
    assert!(bench.manager.ready(&changed, "1").is_none());
    // Who does not ask after all is got them once more, and no more.
    pass(24 * 3600).await;
    assert_eq!((bench.calls(), bench.manager.len()), (8, 0));
    // It makes no room for itself.
    for resource in ["4", "5", "6", "7"] {
        bench.get("a", resource).await.unwrap();
    }
    bench.manager.identity_assigned(&changed).await;
    pass(1).await;
    assert_eq!(bench.calls(), 12);
    // And is off when it is said to be.
    let bench = self::bench(ManagerConfig { prefetch: 0, ..ManagerConfig::default() });
    bench.let_through(100);
    bench.get("a", "1").await.unwrap();
    bench.manager.identity_gone(&a.object).await;
    bench.manager.identity_assigned(&a).await;
    pass(1).await;
    assert_eq!(bench.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_changed_has_tokens_with_another_credential_and_both_are_left_alone() {
    let bench = bench(ManagerConfig::default());
    bench.let_through(10);
    let mut changed = Identity::clone(&identity("a"));
    changed.client_id = Some("other".into());
    let changed = Arc::new(changed);
    for resource in ["r", "s"] {
        bench.get("a", resource).await.unwrap();
        bench.manager.get(&changed, resource, Freshness::Any).await.unwrap();
    }
    pass(600).await;
    assert_eq!(bench.calls(), 4);
}
