use std::sync::atomic::{AtomicU64, AtomicUsize};

use identity_core::lookup::ObjectRef;
use identity_crd::IdentityType;
use tokio::sync::Semaphore;

use super::*;
use crate::tokens::{Issued, Refusal, RefusalKind};

/// Answers with what the test says, as often as it lets it.
struct Fake {
    now: Arc<AtomicI64>,
    calls: AtomicUsize,
    version: AtomicU64,
    gate: Semaphore,
    fail: Mutex<Option<TokenError>>,
    lifetime: i64,
}

struct Bench {
    cache: Cache<Arc<Fake>, Box<dyn Fn() -> Timestamp + Send + Sync>>,
    fake: Arc<Fake>,
    now: Arc<AtomicI64>,
}

impl Backend for Arc<Fake> {
    fn credential_version(&self, _: &Identity) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    async fn fetch(&self, identity: &Arc<Identity>, resource: &str, _: Freshness) -> Result<Token, TokenError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.unwrap().forget();
        if let Some(error) = self.fail.lock().unwrap().clone() {
            return Err(error);
        }
        let now = self.now.load(Ordering::SeqCst);
        Ok(Token::issued(&Issued {
            access_token: &format!("token-{}", self.calls.load(Ordering::SeqCst)),
            resource,
            client_id: identity.client_id.as_deref(),
            expires_on: second(now + self.lifetime),
            now: second(now),
            credential: self.version.load(Ordering::SeqCst),
            request_id: None,
        }))
    }
}

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn bench(config: CacheConfig) -> Bench {
    let now = Arc::new(AtomicI64::new(1_800_000_000));
    let fake = Arc::new(Fake {
        now: Arc::clone(&now),
        calls: AtomicUsize::new(0),
        version: AtomicU64::new(7),
        gate: Semaphore::new(0),
        fail: Mutex::new(None),
        lifetime: 3600,
    });
    let clock = Arc::clone(&now);
    let clock: Box<dyn Fn() -> Timestamp + Send + Sync> = Box::new(move || second(clock.load(Ordering::SeqCst)));
    Bench { cache: Cache::new(Arc::clone(&fake), clock, config, Arc::default()), fake, now }
}

impl Bench {
    fn calls(&self) -> usize {
        self.fake.calls.load(Ordering::SeqCst)
    }

    fn advance(&self, seconds: i64) {
        self.now.fetch_add(seconds, Ordering::SeqCst);
    }

    fn let_through(&self, calls: usize) {
        self.fake.gate.add_permits(calls);
    }

    fn fail(&self, error: Option<TokenError>) {
        *self.fake.fail.lock().unwrap() = error;
    }

    async fn get(&self, name: &str, resource: &str) -> Result<Arc<Token>, TokenError> {
        self.cache.get(&identity(name), resource, Freshness::Any).await
    }
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
        secret: None,
        audiences: Box::default(),
    })
}

fn down() -> TokenError {
    TokenError::Unavailable { message: "down".into(), retry_after: Duration::from_secs(3) }
}

fn refused() -> TokenError {
    TokenError::Refused(Refusal { error: RefusalKind::InvalidClient, description: "AADSTS1".into(), trace_id: None })
}

#[tokio::test(start_paused = true)]
async fn many_at_once_are_one_request_and_a_waiter_that_leaves_takes_nothing_with_it() {
    let bench = bench(CacheConfig::default());
    let first = tokio::spawn({
        let cache = Cache { shared: Arc::clone(&bench.cache.shared) };
        async move { cache.get(&identity("a"), "r", Freshness::Any).await.map(|_| ()) }
    });
    tokio::task::yield_now().await;
    while bench.calls() == 0 {
        tokio::task::yield_now().await;
    }
    first.abort();
    let others = futures::future::join_all((0..50).map(|_| bench.get("a", "r")));
    let (tokens, ()) = tokio::join!(others, async { bench.let_through(1) });
    let tokens: Vec<_> = tokens.into_iter().map(Result::unwrap).collect();
    assert!(tokens.iter().all(|token| Arc::ptr_eq(token, &tokens[0])));
    assert_eq!(bench.calls(), 1);
    bench.get("a", "r").await.unwrap();
    assert_eq!(bench.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn keys_are_identity_and_audience_as_sent() {
    let bench = bench(CacheConfig::default());
    bench.let_through(10);
    for (name, resource) in [("a", "r"), ("a", "r/"), ("b", "r")] {
        bench.get(name, resource).await.unwrap();
    }
    assert_eq!((bench.calls(), bench.cache.len()), (3, 3));
    // The same object with another client id is another identity; another generation is not.
    let mut changed = Identity::clone(&identity("a"));
    changed.object.generation = 2;
    bench.cache.get(&Arc::new(changed.clone()), "r", Freshness::Any).await.unwrap();
    assert_eq!(bench.calls(), 3);
    changed.client_id = Some("other".into());
    let token = bench.cache.get(&Arc::new(changed), "r", Freshness::Any).await.unwrap();
    assert_eq!((bench.calls(), token.client_id()), (4, Some("other")));
}

#[tokio::test(start_paused = true)]
async fn a_changed_credential_makes_tokens_old() {
    let bench = bench(CacheConfig::default());
    bench.let_through(10);
    bench.get("a", "r").await.unwrap();
    bench.fake.version.store(8, Ordering::SeqCst);
    bench.get("a", "r").await.unwrap();
    assert_eq!(bench.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn refresh_ahead_does_not_make_anybody_wait() {
    let bench = bench(CacheConfig::default());
    bench.let_through(1);
    let first = bench.get("a", "r").await.unwrap();
    bench.advance(3600 - 700);
    let again = bench.get("a", "r").await.unwrap();
    assert!(Arc::ptr_eq(&first, &again), "the old one is good");
    while bench.calls() < 2 {
        tokio::task::yield_now().await;
    }
    bench.let_through(1);
    let fresh = loop {
        let token = bench.get("a", "r").await.unwrap();
        if !Arc::ptr_eq(&token, &first) {
            break token;
        }
        tokio::task::yield_now().await;
    };
    assert!(fresh.remaining(second(bench.now.load(Ordering::SeqCst))) > 3000);
    assert_eq!(bench.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_outage_changes_nothing_while_a_token_is_valid_and_failures_are_not_repeated_at_once() {
    let bench = bench(CacheConfig::default());
    bench.let_through(1000);
    bench.get("a", "r").await.unwrap();
    bench.fail(Some(down()));
    bench.advance(3600 - 30);
    for _ in 0..20 {
        bench.get("a", "r").await.unwrap();
    }
    assert_eq!(bench.calls(), 2, "one attempt, then its failure stands for the Retry-After of 3 s");
    bench.advance(25);
    assert!(matches!(bench.get("a", "r").await, Err(TokenError::Unavailable { .. })), "5 s left are too few");
    bench.fail(None);
    // Back-off has doubled by now, but ends.
    bench.advance(10);
    bench.get("a", "r").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_forgotten_soon() {
    let bench = bench(CacheConfig::default());
    bench.let_through(100);
    bench.fail(Some(refused()));
    for _ in 0..10 {
        assert!(matches!(bench.get("a", "r").await, Err(TokenError::Refused(_))));
    }
    assert_eq!(bench.calls(), 1);
    bench.fail(None);
    bench.advance(1);
    bench.get("a", "r").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn waiting_is_bounded() {
    let bench = bench(CacheConfig::default());
    let begin = tokio::time::Instant::now();
    assert!(matches!(bench.get("a", "r").await, Err(TokenError::Unavailable { .. })));
    assert_eq!(begin.elapsed(), CacheConfig::default().wait);
}

#[tokio::test(start_paused = true)]
async fn size_is_bounded_and_those_without_a_token_go_first() {
    let bench = bench(CacheConfig { capacity: 5, per_identity: 3, ..CacheConfig::default() });
    bench.let_through(1000);
    bench.get("a", "good").await.unwrap();
    bench.fail(Some(refused()));
    for n in 0..20 {
        let _ = bench.get("a", &format!("bad-{n}")).await;
    }
    assert_eq!(bench.cache.len(), 3);
    bench.fail(None);
    let calls = bench.calls();
    bench.get("a", "good").await.unwrap();
    assert_eq!(bench.calls(), calls, "the good one is still there");
    for n in 0..20 {
        bench.get(&format!("i-{n}"), "r").await.unwrap();
    }
    assert_eq!(bench.cache.len(), 5);
}

#[tokio::test]
async fn past_every_cache() {
    let bench = bench(CacheConfig::default());
    bench.let_through(10);
    bench.get("a", "r").await.unwrap();
    let fresh = bench.cache.get(&identity("a"), "r", Freshness::Upstream).await.unwrap();
    assert_eq!(bench.calls(), 2);
    // It is the one at hand from now on.
    let ready = bench.cache.ready(&identity("a"), "r").unwrap().unwrap();
    assert!(Arc::ptr_eq(&ready, &fresh));
    // Failing takes nothing away, but is said.
    *bench.fake.fail.lock().unwrap() = Some(down());
    assert!(bench.cache.get(&identity("a"), "r", Freshness::Upstream).await.is_err());
    assert!(bench.get("a", "r").await.is_ok());
}

#[tokio::test]
async fn past_every_cache_does_not_join_what_may_come_from_one() {
    let bench = bench(CacheConfig::default());
    let cached = bench.get("a", "r");
    let subject = identity("a");
    let fresh = || bench.cache.get(&subject, "r", Freshness::Upstream);
    let all = futures::future::join3(cached, fresh(), fresh());
    bench.let_through(10);
    let (cached, one, other) = all.await;
    // One for whoever takes any, then one for both who do not.
    assert_eq!(bench.calls(), 2);
    assert!(!Arc::ptr_eq(&cached.unwrap(), one.as_ref().unwrap()));
    assert!(Arc::ptr_eq(&one.unwrap(), &other.unwrap()));
}

#[tokio::test]
async fn what_is_ready_is_not_waited_for() {
    let bench = bench(CacheConfig::default());
    assert!(bench.cache.ready(&identity("a"), "r").is_none());
    assert_eq!((bench.calls(), bench.cache.len()), (0, 0));
    bench.let_through(2);
    bench.get("a", "r").await.unwrap();
    assert!(bench.cache.ready(&identity("a"), "r").is_some());
    // In the last minute somebody has to wait.
    bench.advance(3600 - 30);
    assert!(bench.cache.ready(&identity("a"), "r").is_none());
}

#[tokio::test]
async fn a_failure_of_a_moment_ago_is_at_hand_with_what_is_left_of_its_wait() {
    let bench = bench(CacheConfig::default());
    bench.let_through(10);
    *bench.fake.fail.lock().unwrap() = Some(down());
    assert!(bench.get("a", "r").await.is_err());
    bench.advance(1);
    // Three seconds were asked for.
    for outcome in [bench.cache.ready(&identity("a"), "r").unwrap(), bench.get("a", "r").await] {
        let Err(TokenError::Unavailable { retry_after, .. }) = outcome else { panic!("not unavailable") };
        assert_eq!(retry_after.as_secs(), 2);
    }
    assert_eq!(bench.calls(), 1);
    bench.advance(2);
    assert!(bench.cache.ready(&identity("a"), "r").is_none());
}
