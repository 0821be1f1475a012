//! A broker whose upstream answers when the test lets it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use identity_broker::{
    Backend, BrokerConfig, Freshness, Manager, ManagerConfig, Metrics, ServerConfig, Token, TokenError, tokens::Issued,
};
use identity_core::lookup::Identity;
use identity_crd::IdentityType;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Semaphore;

use super::{LIMIT, Rules, Server, allow, identity, start};

pub const KIND: IdentityType = IdentityType::ServicePrincipal;

/// An upstream that answers when let.
pub struct Upstream {
    pub gate: Semaphore,
    pub calls: AtomicUsize,
    pub fresh: AtomicUsize,
    pub fail: Mutex<Option<TokenError>>,
    pub token: Mutex<String>,
    clock: fn() -> Timestamp,
}

#[derive(Clone)]
pub struct Shared(Arc<Upstream>);

impl Backend for Shared {
    fn credential_version(&self, _: &Identity) -> u64 {
        0
    }

    async fn fetch(&self, identity: &Arc<Identity>, resource: &str, freshness: Freshness) -> Result<Token, TokenError> {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        if freshness == Freshness::Upstream {
            self.0.fresh.fetch_add(1, Ordering::SeqCst);
        }
        let permit = self.0.gate.acquire().await.unwrap();
        permit.forget();
        if let Some(error) = self.0.fail.lock().unwrap().clone() {
            return Err(error);
        }
        let now = (self.0.clock)();
        let token = self.0.token.lock().unwrap().clone();
        Ok(Token::issued(&Issued {
            access_token: &token,
            resource,
            client_id: identity.client_id.as_deref(),
            expires_on: now + SignedDuration::from_secs(3600),
            now,
            credential: 0,
            request_id: Some("upstream-request"),
        }))
    }
}

pub fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

pub struct Bench {
    pub server: Server,
    pub upstream: Arc<Upstream>,
}

pub async fn bench_with(rules: Arc<Rules>, config: BrokerConfig, server: ServerConfig) -> Bench {
    let upstream = Arc::new(Upstream {
        gate: Semaphore::new(0),
        calls: AtomicUsize::new(0),
        fresh: AtomicUsize::new(0),
        fail: Mutex::default(),
        token: Mutex::new("very-secret-token".into()),
        clock: now,
    });
    let metrics = Arc::new(Metrics::default());
    let tokens = Manager::new(Shared(Arc::clone(&upstream)), now, ManagerConfig::default(), Arc::clone(&metrics));
    let server = start(rules, tokens, metrics, now, config, server).await;
    Bench { server, upstream }
}

pub async fn bench(rules: Arc<Rules>) -> Bench {
    let bench = bench_with(rules, BrokerConfig::default(), ServerConfig::default()).await;
    bench.upstream.gate.add_permits(1000);
    bench
}

pub async fn open_bench() -> Bench {
    bench(Rules::new(allow("p", identity("i", KIND)))).await
}

pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, waited).await.unwrap_or_else(|_| panic!("{what}"));
}
