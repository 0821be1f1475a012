use std::time::Duration;

use identity_crd::IdentityType;
use secrecy::ExposeSecret as _;
use tokio::sync::Semaphore;

use super::*;
use crate::{credentials::testing, vault::VaultSuffixes};

const VAULT: &str = "https://vault.azure.net";
const NOW: i64 = 1_800_000_000;

/// Gives a token for each permit, or fails.
struct Giving {
    asked: AtomicU64,
    underway: AtomicU64,
    permits: Semaphore,
    fails: std::sync::atomic::AtomicBool,
}

struct Underway<'a>(&'a AtomicU64);

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Bearers for Giving {
    fn bearer<'a>(
        &'a self,
        identity: &'a Arc<Identity>,
        resource: &'a str,
    ) -> BoxFuture<'a, Result<(SecretString, i64), TokenError>> {
        Box::pin(async move {
            let number = self.asked.fetch_add(1, Ordering::SeqCst);
            self.underway.fetch_add(1, Ordering::SeqCst);
            let _underway = Underway(&self.underway);
            let permit = tokio::time::timeout(Duration::from_mins(1), self.permits.acquire());
            permit.await.expect("there is a permit for each token that should be asked for").unwrap().forget();
            if self.fails.load(Ordering::SeqCst) {
                return Err(TokenError::Unavailable {
                    message: "down".to_owned(),
                    retry_after: Duration::from_secs(1),
                });
            }
            Ok((format!("{number} of {} for {resource}", identity.object.name).into(), NOW + 3600))
        })
    }
}

fn giving(permits: usize) -> Arc<Giving> {
    let (asked, underway, fails) = Default::default();
    Arc::new(Giving { asked, underway, permits: Semaphore::new(permits), fails })
}

fn vaults(bearers: &Arc<Giving>) -> Arc<Vaults> {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let tls = tls.with_safe_default_protocol_versions().unwrap().with_root_certificates(rustls::RootCertStore::empty());
    let reader = Reader::new(tls.with_no_client_auth(), Duration::from_secs(1), VaultSuffixes::default());
    let clock: Arc<dyn Clock> = Arc::new(|| jiff::Timestamp::from_second(NOW).unwrap());
    let bearers = Arc::downgrade(bearers);
    Arc::new(Vaults::new(reader, None, bearers, clock, Arc::default()))
}

fn reader(name: &str) -> Arc<Identity> {
    let mut identity = testing::identity(IdentityType::ServicePrincipal);
    identity.object.name = name.into();
    Arc::new(identity)
}

/// So many who want the same.
fn many(vaults: &Arc<Vaults>, number: usize, resource: &'static str) -> Vec<tokio::task::JoinHandle<Option<String>>> {
    let one = || {
        let (vaults, reader) = (Arc::clone(vaults), reader("reader"));
        tokio::spawn(async move { shown(vaults.token(&reader, resource).await) })
    };
    std::iter::repeat_with(one).take(number).collect()
}

fn shown(got: Got) -> Option<String> {
    got.ok().map(|lent| lent.token.expose_secret().to_owned())
}

async fn all(tasks: Vec<tokio::task::JoinHandle<Option<String>>>) -> Vec<Option<String>> {
    futures::future::join_all(tasks).await.into_iter().map(Result::unwrap).collect()
}

#[tokio::test(start_paused = true)]
async fn however_many_read_a_token_is_asked_for_once() {
    let giving = giving(0);
    let vaults = vaults(&giving);
    let tasks = many(&vaults, 100, VAULT);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!((giving.asked.load(Ordering::SeqCst), giving.underway.load(Ordering::SeqCst)), (1, 1));
    giving.permits.add_permits(1);
    let token = Some("0 of reader for https://vault.azure.net".to_owned());
    assert_eq!(all(tasks).await, vec![token.clone(); 100]);
    assert_eq!(shown(vaults.token(&reader("reader"), VAULT).await), token, "it is kept");
    // Another cloud's, another identity's, is another.
    giving.permits.add_permits(2);
    let other = shown(vaults.token(&reader("reader"), "https://vault.azure.cn").await);
    assert_eq!(other.as_deref(), Some("1 of reader for https://vault.azure.cn"));
    let other = shown(vaults.token(&reader("other"), VAULT).await);
    assert_eq!(other.as_deref(), Some("2 of other for https://vault.azure.net"));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_of_those_who_waited_for_it() {
    let giving = giving(0);
    let vaults = vaults(&giving);
    giving.fails.store(true, Ordering::SeqCst);
    let tasks = many(&vaults, 10, VAULT);
    tokio::time::sleep(Duration::from_millis(1)).await;
    giving.permits.add_permits(1);
    assert_eq!(all(tasks).await, vec![None; 10]);
    giving.fails.store(false, Ordering::SeqCst);
    giving.permits.add_permits(1);
    assert!(vaults.token(&reader("reader"), VAULT).await.is_ok());
    assert_eq!(giving.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_nobody_waits_for_ends_and_some_that_leave_end_nothing() {
    let giving = giving(0);
    let vaults = vaults(&giving);
    let mut tasks = many(&vaults, 3, VAULT);
    tokio::time::sleep(Duration::from_millis(1)).await;
    // The first one, who began it.
    tasks.remove(0).abort();
    tokio::time::sleep(Duration::from_millis(1)).await;
    giving.permits.add_permits(1);
    assert!(all(tasks).await.iter().all(Option::is_some));
    assert_eq!(giving.asked.load(Ordering::SeqCst), 1);
    let other = "https://vault.azure.cn";
    for task in many(&vaults, 3, other) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(giving.underway.load(Ordering::SeqCst), 1);
        task.abort();
        let _ = task.await;
    }
    assert_eq!(giving.underway.load(Ordering::SeqCst), 0, "nobody is there any more");
    giving.permits.add_permits(1);
    assert!(vaults.token(&reader("reader"), other).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_ends_the_token_that_was_refused_and_no_other() {
    let giving = giving(100);
    let vaults = vaults(&giving);
    let refused = vaults.token(&reader("reader"), VAULT).await.unwrap();
    vaults.token(&reader("reader"), "https://vault.azure.cn").await.unwrap();
    vaults.token(&reader("other"), VAULT).await.unwrap();
    vaults.forget(refused.serial);
    vaults.token(&reader("reader"), "https://vault.azure.cn").await.unwrap();
    vaults.token(&reader("other"), VAULT).await.unwrap();
    assert_eq!(giving.asked.load(Ordering::SeqCst), 3);
    let next = vaults.token(&reader("reader"), VAULT).await.unwrap();
    assert_eq!(giving.asked.load(Ordering::SeqCst), 4);
    // Whoever was refused with it as well, and says so later.
    vaults.forget(refused.serial);
    assert_eq!(vaults.token(&reader("reader"), VAULT).await.unwrap().serial, next.serial);
}

#[tokio::test(start_paused = true)]
async fn there_are_so_many_tokens_and_no_more() {
    let giving = giving(10_000);
    let vaults = vaults(&giving);
    for n in 0..3 * TOKENS {
        vaults.token(&reader(&n.to_string()), VAULT).await.unwrap();
        assert!(lock(&vaults.tokens).entries.len() <= TOKENS);
    }
}
