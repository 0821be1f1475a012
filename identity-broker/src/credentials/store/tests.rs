use std::collections::BTreeSet;

use identity_crd::IdentityType;
use secrecy::{ExposeSecret, SecretSlice};
use tokio::sync::watch;

use super::*;
use crate::{
    credentials::testing,
    secrets::{SecretData, SecretSource, SecretSourceError},
    tokens::{Refusal, RefusalKind},
    vault::VaultSuffixes,
};

const MINUTE: Duration = Duration::from_mins(1);

type Answer<'a> = Result<&'a [(&'static str, &'a [u8])], SecretSourceError>;
type Owned = Result<Vec<(&'static str, Vec<u8>)>, SecretSourceError>;

/// Answers as it is told to; `None` never does.
struct Source {
    answer: Mutex<Option<Owned>>,
    reads: Mutex<u32>,
    changes: Mutex<Option<watch::Sender<u64>>>,
}

impl SecretSource for Source {
    fn get<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<SecretData, SecretSourceError>> {
        *self.reads.lock().unwrap() += 1;
        let answer = self.answer.lock().unwrap().clone();
        Box::pin(async move {
            let Some(answer) = answer else { return std::future::pending().await };
            Ok(answer?.into_iter().map(|(key, value)| (key.to_owned(), SecretSlice::from(value))).collect())
        })
    }

    fn follow(&self, _: &str, _: &str) -> watch::Receiver<u64> {
        self.changes.lock().unwrap().as_ref().map_or_else(|| watch::channel(0).1, watch::Sender::subscribe)
    }
}

impl Source {
    fn say(&self, answer: Option<Answer<'_>>) {
        let owned =
            |entries: &[(&'static str, &[u8])]| entries.iter().map(|(key, value)| (*key, value.to_vec())).collect();
        *self.answer.lock().unwrap() = answer.map(|answer| answer.map(owned));
        if let Some(changes) = &*self.changes.lock().unwrap() {
            changes.send_modify(|count| *count += 1);
        }
    }

    fn reads(&self) -> u32 {
        *self.reads.lock().unwrap()
    }
}

/// An Entra that knows some secrets.
#[derive(Default)]
struct Entra {
    known: Mutex<BTreeSet<&'static str>>,
    tries: Mutex<Vec<String>>,
    /// A resource that is not there.
    absent: Mutex<Option<&'static str>>,
}

impl Try for Entra {
    fn try_it<'a>(
        &'a self,
        _: &'a Arc<Identity>,
        credential: &'a Credential,
        resource: Option<&'a str>,
    ) -> BoxFuture<'a, Tried> {
        let Credential::Secret(secret) = credential else { panic!("no secret") };
        let secret = secret.expose_secret().to_owned();
        self.tries.lock().unwrap().push(format!("{secret} for {}", resource.unwrap_or("anything")));
        let known = self.known.lock().unwrap().contains(&*secret);
        let absent = resource.is_some() && *self.absent.lock().unwrap() == resource;
        Box::pin(async move {
            if absent {
                let description = "AADSTS500011: The resource principal was not found.".to_owned();
                let refusal = Refusal { error: RefusalKind::InvalidResource, description, trace_id: None };
                return Tried::Otherwise(TokenError::Refused(refusal));
            }
            if known {
                return Tried::Proven;
            }
            let description = "AADSTS7000222: The provided client secret keys are expired.".to_owned();
            let refusal = Refusal { error: RefusalKind::InvalidClient, description, trace_id: None };
            Tried::Refused { error: TokenError::Refused(refusal), spreads: false }
        })
    }
}

struct NoTokens;

impl Bearers for NoTokens {
    fn bearer<'a>(
        &'a self,
        _: &'a Arc<Identity>,
        _: &'a str,
    ) -> BoxFuture<'a, Result<(SecretString, i64), TokenError>> {
        panic!("no vault is read here");
    }
}

struct Bench {
    source: Arc<Source>,
    entra: Arc<Entra>,
    metrics: prometheus_client::registry::Registry,
    credentials: Credentials,
    notices: broadcast::Receiver<Notice>,
}

/// Which identities there are.
#[derive(Default)]
struct Objects(Mutex<Option<Arc<Identity>>>);

impl crate::secrets::IdentitySource for Objects {
    fn get(&self, _: &str, _: &str) -> Option<Arc<Identity>> {
        self.0.lock().unwrap().clone()
    }
}

fn bench(followed: bool) -> Bench {
    bench_with(followed, None)
}

fn bench_with(followed: bool, objects: Option<Arc<Objects>>) -> Bench {
    let changes = Mutex::new(followed.then(|| watch::channel(0).0));
    let source = Arc::new(Source { answer: Mutex::new(None), reads: Mutex::new(0), changes });
    source.say(Some(Ok(&[("clientSecret", b"first")])));
    let entra = Arc::new(Entra::default());
    let clock: Arc<dyn Clock> = Arc::new(|| "2026-11-25T12:00:00Z".parse::<jiff::Timestamp>().unwrap());
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = Arc::new(Metrics::new(&mut registry));
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let tls = tls.with_safe_default_protocol_versions().unwrap().with_root_certificates(rustls::RootCertStore::empty());
    let vaults = crate::vault::Reader::new(tls.with_no_client_auth(), Duration::from_secs(1), VaultSuffixes::default());
    let mut sources = Sources::from(Arc::clone(&source));
    sources.identities = objects.map(|objects| objects as _);
    let reader = Reader::new(sources, vaults, Weak::<NoTokens>::new(), Arc::clone(&clock), Arc::clone(&metrics));
    let tries = Arc::clone(&entra) as Arc<dyn Try>;
    let credentials = Credentials::with(reader, tries, clock, metrics, RotationConfig::default(), MINUTE);
    let notices = credentials.notices();
    Bench { source, entra, metrics: registry, credentials, notices }
}

fn principal() -> Arc<Identity> {
    Arc::new(testing::identity(IdentityType::ServicePrincipal))
}

impl Bench {
    async fn load(&self, refused: Option<u64>) -> super::Answer {
        self.credentials.get(&principal(), refused).await
    }

    async fn get(&self, refused: Option<u64>) -> Result<String, TokenError> {
        match &self.load(refused).await?.credential {
            Credential::Secret(secret) => Ok(secret.expose_secret().to_owned()),
            _ => panic!("no secret"),
        }
    }

    /// Gets it, and Entra takes it.
    async fn use_it(&self) -> String {
        let loaded = self.load(None).await.unwrap();
        self.credentials.worked(&principal(), loaded.version, "https://vault.azure.net");
        let Credential::Secret(secret) = &loaded.credential else { panic!("no secret") };
        secret.expose_secret().to_owned()
    }

    async fn certificate(&self) -> super::Answer {
        self.credentials.get(&Arc::new(testing::identity(IdentityType::ServicePrincipalCertificate)), None).await
    }

    fn told(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        while let Ok(notice) = self.notices.try_recv() {
            assert_eq!((&*notice.identity().namespace, &*notice.identity().name), ("ns", "id"));
            told.push(format!("{}: {}", notice.reason(), notice.message()));
        }
        told
    }
}

fn unavailable(error: &TokenError) -> String {
    let TokenError::Unavailable { retry_after, .. } = error else { panic!("not 503: {error:?}") };
    assert!(!retry_after.is_zero());
    error.to_string()
}

fn tell(error: &TokenError) -> String {
    match error {
        TokenError::Misconfigured { .. } => format!("400 {error}"),
        error => format!("503 {}", unavailable(error)),
    }
}

const KEYS: &str =
    "it has no key 'clientSecret' (name another one in clientPassword.key, or keep one key only); its keys are: a, b";

#[tokio::test(start_paused = true)]
async fn that_it_is_gone_ends_a_credential_at_once() {
    use SecretSourceError as E;
    for followed in [false, true] {
        for (answer, expected) in [
            (E::NotFound, "503 AzureIdentity ns/id: Secret ns/cred (spec.clientPassword) does not exist; create it"),
            (E::Forbidden("not allowed".into()), "503 Secret ns/cred could not be read: not allowed"),
        ] {
            let bench = bench(followed);
            assert_eq!(bench.use_it().await, "first");
            bench.source.say(Some(Err(answer)));
            if !followed {
                // Young enough.
                tokio::time::advance(MINUTE.mul_f32(0.9)).await;
                assert_eq!(bench.get(None).await.unwrap(), "first");
            }
            tokio::time::sleep(MINUTE).await;
            assert_eq!(tell(&bench.get(None).await.unwrap_err()), expected);
            // The next is a first one again.
            bench.source.say(Some(Ok(&[("clientSecret", b"second")])));
            tokio::time::sleep(MINUTE).await;
            assert_eq!(bench.get(None).await.unwrap(), "second");
            assert!(bench.entra.tries.lock().unwrap().is_empty());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_credential_ends_none_and_is_said() {
    use SecretSourceError as E;
    let answers: [(Answer<'_>, &str); 4] = [
        (Err(E::Malformed("no base64".into())), "503 Secret ns/cred could not be read: no base64"),
        (
            Ok(&[]),
            "400 AzureIdentity ns/id: Secret ns/cred: it has no key 'clientSecret' (name another one in clientPassword.key, or keep one key only); its keys are: none",
        ),
        (Ok(&[("a", b"x"), ("b", b"y")]), &format!("400 AzureIdentity ns/id: Secret ns/cred: {KEYS}")),
        (Ok(&[("clientSecret", b"")]), "400 AzureIdentity ns/id: Secret ns/cred: key 'clientSecret' is empty"),
    ];
    for followed in [false, true] {
        for (answer, expected) in answers.clone() {
            let mut bench = bench(followed);
            bench.source.say(Some(answer.clone()));
            for _ in 0..2 {
                assert_eq!(tell(&bench.get(None).await.unwrap_err()), expected);
            }
            bench.source.say(Some(Ok(&[("clientSecret", b"first")])));
            tokio::time::sleep(MINUTE).await;
            assert_eq!(bench.use_it().await, "first");
            let text = &expected[4..];
            assert_eq!(
                bench.told(),
                [
                    format!("CredentialUnreadable: the credential cannot be read: {text}"),
                    "CredentialReadable: the credential is read again, from Secret ns/cred".to_owned()
                ]
            );
            bench.source.say(Some(answer));
            for _ in 0..3 {
                tokio::time::sleep(MINUTE).await;
                assert_eq!(bench.get(None).await.unwrap(), "first");
            }
            let said = format!(
                "CredentialRefused: the new credential from Secret ns/cred is not used, the former one stays in use: {text}"
            );
            assert_eq!(bench.told(), [said]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn that_it_cannot_be_read_changes_nothing_for_as_long_as_it_lasts() {
    let down = || Some(Err(SecretSourceError::Unavailable("down".into())));
    for silent in [false, true] {
        let mut bench = bench(false);
        let version = bench.load(None).await.unwrap().version;
        assert_eq!(bench.use_it().await, "first");
        bench.source.say(if silent { None } else { down() });
        for _ in 0..200 {
            tokio::time::advance(MINUTE * 10).await;
            assert_eq!(bench.get(None).await.unwrap(), "first");
        }
        // Whoever comes right after does not wait again.
        let (reads, begin) = (bench.source.reads(), Instant::now());
        assert_eq!(bench.get(None).await.unwrap(), "first");
        assert_eq!((bench.source.reads(), begin.elapsed()), (reads, Duration::ZERO));
        // What Entra refused is not used for lack of another one.
        unavailable(&bench.get(Some(version)).await.unwrap_err());
        // It ends with the outage.
        bench.source.say(Some(Err(SecretSourceError::NotFound)));
        tokio::time::advance(MINUTE).await;
        unavailable(&bench.get(None).await.unwrap_err());
        bench.source.say(Some(Ok(&[("clientSecret", b"second")])));
        tokio::time::advance(MINUTE).await;
        assert_eq!(bench.get(None).await.unwrap(), "second");
        // People are told once, however long it lasts, and once that it is over.
        let told: Vec<_> = bench.told().iter().map(|told| told.split(':').next().unwrap().to_owned()).collect();
        assert_eq!(told, ["CredentialUnreadable", "CredentialReadable"]);
    }
    // Nothing is kept that never was.
    let bench = bench(false);
    bench.source.say(None);
    let begin = Instant::now();
    assert_eq!(unavailable(&bench.get(None).await.unwrap_err()), "Secret ns/cred could not be read: no answer in time");
    assert_eq!(begin.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn it_is_followed_not_read() {
    let mut bench = bench(true);
    for _ in 0..1000 {
        assert_eq!(bench.use_it().await, "first");
        tokio::time::advance(Duration::from_secs(10)).await;
    }
    assert_eq!(bench.source.reads(), 1);
    // A wrong one.
    bench.source.say(Some(Ok(&[("clientSecret", b"wrong")])));
    tokio::time::sleep(MINUTE).await;
    assert_eq!(bench.use_it().await, "first");
    let said = "CredentialRefused: the new credential from Secret ns/cred is not used, the former one stays in use: AADSTS7000222: The \
                provided client secret keys are expired: the client secret or certificate has expired: make a new one for the \
                application and put it there";
    assert_eq!(bench.told(), [said]);
    // A good one.
    bench.entra.known.lock().unwrap().insert("good");
    bench.source.say(Some(Ok(&[("clientSecret", b"good")])));
    tokio::time::sleep(MINUTE).await;
    assert_eq!(bench.use_it().await, "good");
    assert_eq!(bench.credentials.version(&principal()), bench.load(None).await.unwrap().version);
    assert_eq!(
        bench.told(),
        ["CredentialRotated: a new credential from Secret ns/cred was tried at Entra and is in use"]
    );
    assert_eq!(bench.source.reads(), 3);
    let tries = bench.entra.tries.lock().unwrap().clone();
    assert_eq!(tries, ["wrong for https://vault.azure.net", "good for https://vault.azure.net"]);
}

#[tokio::test(start_paused = true)]
async fn a_resource_that_is_gone_keeps_no_credential_out() {
    let mut bench = bench(true);
    assert_eq!(bench.use_it().await, "first");
    *bench.entra.absent.lock().unwrap() = Some("https://vault.azure.net");
    bench.entra.known.lock().unwrap().insert("second");
    bench.source.say(Some(Ok(&[("clientSecret", b"second")])));
    tokio::time::sleep(MINUTE).await;
    assert_eq!(*bench.entra.tries.lock().unwrap(), ["second for https://vault.azure.net", "second for anything"]);
    assert_eq!(bench.told().len(), 1, "that it is in use");
    assert_eq!(bench.use_it().await, "second");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_ends_while_it_is_asked_is_replaced() {
    let bench = bench(true);
    // As one that nobody wanted for long: what is on its way to it is lost.
    let shared = Shared { current: ArcSwapOption::empty(), fresh: AtomicU64::new(0), wanted: AtomicU64::new(0) };
    let (commands, mut queue) = mpsc::channel(QUEUE);
    let slot = Arc::new(Slot { shared: Arc::new(shared), commands });
    bench.credentials.slots.lock().unwrap().insert(Place::of(&principal()), slot);
    let ends = tokio::spawn(async move { queue.recv().await.is_some() });
    let begin = Instant::now();
    assert_eq!(bench.get(None).await.unwrap(), "first");
    assert_eq!(begin.elapsed(), Duration::ZERO);
    assert!(ends.await.unwrap(), "it was asked first");
}

#[tokio::test(start_paused = true)]
async fn whoever_was_refused_waits_for_the_try_of_the_other() {
    let bench = bench(true);
    let version = bench.load(None).await.unwrap().version;
    assert_eq!(bench.use_it().await, "first");
    bench.entra.known.lock().unwrap().insert("second");
    bench.source.say(Some(Ok(&[("clientSecret", b"second")])));
    let begin = Instant::now();
    assert_eq!(bench.get(Some(version)).await.unwrap(), "second");
    assert_eq!(begin.elapsed(), Duration::ZERO);
    // The same again, when there is no other.
    let version = bench.load(None).await.unwrap().version;
    assert_eq!(bench.load(Some(version)).await.unwrap().version, version);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_followed_no_longer_is_read_from_time_to_time() {
    let bench = bench(true);
    assert_eq!(bench.use_it().await, "first");
    let changes = bench.source.changes.lock().unwrap().take();
    drop(changes);
    tokio::time::sleep(Duration::from_millis(1)).await;
    let reads = bench.source.reads();
    for _ in 0..5 {
        tokio::time::sleep(MINUTE * 10).await;
        bench.use_it().await;
    }
    assert_eq!(bench.source.reads(), reads + 5);
    // It is followed again when somebody does.
    *bench.source.changes.lock().unwrap() = Some(watch::channel(0).0);
    tokio::time::sleep(MINUTE * 10).await;
    bench.use_it().await;
    tokio::time::sleep(MINUTE).await;
    let reads = bench.source.reads();
    tokio::time::sleep(MINUTE * 100).await;
    bench.use_it().await;
    assert_eq!(bench.source.reads(), reads);
}

#[tokio::test(start_paused = true)]
async fn certificates_are_read_two_at_a_time() {
    let bench = bench(false);
    let file = include_bytes!("../openssl_3.p12");
    bench.source.say(Some(Ok(&[("certificate", file), ("password", b"fixture")])));
    let readings = bench.credentials.context.reader.readings();
    let others = Arc::clone(&readings).acquire_many_owned(2).await.unwrap();
    for _ in 0..3 {
        let begin = Instant::now();
        let text = unavailable(&bench.certificate().await.unwrap_err());
        assert_eq!(text, "the credential of AzureIdentity ns/id is still being read after 10 s");
        assert_eq!(begin.elapsed(), WAIT);
    }
    assert_eq!(bench.source.reads(), 1, "whoever comes next waits for the same reading");
    drop(others);
    let loaded = bench.certificate().await.unwrap();
    assert!(matches!(loaded.credential, Credential::Certificate(_)));
    let identity = testing::identity(IdentityType::ServicePrincipalCertificate);
    assert_eq!(bench.credentials.version(&identity), loaded.version);
    let mut metrics = String::new();
    prometheus_client::encoding::text::encode(&mut metrics, &bench.metrics).unwrap();
    let series = "entra_pod_identity_broker_credential_expiry_timestamp_seconds{namespace=\"ns\",identity=\"id\"} ";
    assert!(metrics.contains(&format!("{series}{}\n", loaded.expires.unwrap().as_second())), "{metrics}");
    // All turns are given back.
    let others = Arc::clone(&readings).acquire_many_owned(2).await.unwrap();
    // What has not changed is not read again.
    tokio::time::advance(MINUTE).await;
    assert_eq!(bench.certificate().await.unwrap().version, loaded.version);
    drop(others);
    // Nor is what is known to be wrong.
    let another = self::bench(false);
    another.source.say(Some(Ok(&[("certificate", file), ("password", b"wrong")])));
    assert!(matches!(another.certificate().await, Err(TokenError::Misconfigured { .. })));
    let readings = another.credentials.context.reader.readings();
    let _others = readings.acquire_many_owned(2).await.unwrap();
    tokio::time::advance(MINUTE).await;
    let begin = Instant::now();
    assert!(matches!(another.certificate().await, Err(TokenError::Misconfigured { .. })));
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_wants_ends_and_begins_again() {
    let bench = bench(true);
    assert_eq!(bench.use_it().await, "first");
    let place = Place::of(&principal());
    let slot = Arc::clone(&bench.credentials.slots.lock().unwrap()[&place]);
    tokio::time::sleep(Duration::from_hours(25)).await;
    assert!(slot.commands.is_closed());
    assert_eq!(bench.use_it().await, "first");
    // Another credential of the same identity is another one.
    let mut other = testing::identity(IdentityType::ServicePrincipal);
    other.tenant_id = Some("other".into());
    bench.credentials.get(&Arc::new(other), None).await.unwrap();
    assert_eq!(bench.credentials.slots.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_an_identity_has_no_longer_is_kept_for_a_minute_and_not_spoken_of() {
    let objects = Arc::new(Objects::default());
    let is = |identity: &Arc<Identity>| *objects.0.lock().unwrap() = Some(Arc::clone(identity));
    let mut bench = bench_with(true, Some(Arc::clone(&objects)));
    let mut other = testing::identity(IdentityType::ServicePrincipal);
    other.tenant_id = Some("other".into());
    // Generations are in no order with manifests.
    other.object.generation -= 1;
    let other = Arc::new(other);
    let slot = |bench: &Bench, identity| Arc::clone(&bench.credentials.slots.lock().unwrap()[&Place::of(identity)]);
    let mut now: [&Arc<Identity>; 2] = [&principal(), &other];
    is(now[0]);
    assert_eq!(bench.use_it().await, "first");
    for (known, value) in [("second", b"second" as &[u8]), ("third", b"third")] {
        let [former, present] = now;
        let ends = slot(&bench, former);
        // The assignment is there before the object is seen, or after it.
        bench.credentials.get(present, None).await.unwrap();
        is(present);
        bench.credentials.get(former, None).await.unwrap();
        let stays = slot(&bench, present);
        bench.credentials.worked(present, stays.shared.current.load_full().unwrap().version, "https://vault.azure.net");
        // Only the one in use tells of a new version, and keeps to it.
        bench.entra.known.lock().unwrap().insert(known);
        bench.source.say(Some(Ok(&[("clientSecret", value)])));
        tokio::time::sleep(2 * MINUTE).await;
        assert_eq!(bench.told().len(), 1, "one credential, one notice");
        assert!(ends.commands.is_closed() && !stays.commands.is_closed());
        now.swap(0, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_credential_of_an_identity_that_is_deleted_is_neither_read_nor_tried() {
    let objects = Arc::new(Objects::default());
    *objects.0.lock().unwrap() = Some(principal());
    let mut bench = bench_with(true, Some(Arc::clone(&objects)));
    assert_eq!(bench.use_it().await, "first");
    tokio::time::sleep(Duration::from_secs(1)).await;
    *objects.0.lock().unwrap() = None;
    let reads = bench.source.reads();
    bench.entra.known.lock().unwrap().insert("second");
    bench.source.say(Some(Ok(&[("clientSecret", b"second")])));
    tokio::time::sleep(3 * MINUTE).await;
    assert_eq!(bench.source.reads(), reads);
    assert_eq!(*bench.entra.tries.lock().unwrap(), Vec::<String>::new());
    assert_eq!(bench.told(), Vec::<String>::new());
    let slot = Arc::clone(&bench.credentials.slots.lock().unwrap()[&Place::of(&principal())]);
    assert!(slot.commands.is_closed());
}
