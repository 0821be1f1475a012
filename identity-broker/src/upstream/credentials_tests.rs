use futures::future::BoxFuture;
use identity_core::lookup::{CredentialSource, ObjectRef};
use secrecy::{ExposeSecret, SecretSlice};

use super::*;

const MINUTE: Duration = Duration::from_mins(1);

type Answer<'a> = Result<&'a [(&'static str, &'a [u8])], SecretSourceError>;
type Owned = Result<Vec<(&'static str, Vec<u8>)>, SecretSourceError>;

/// Answers as it is told to; `None` never does.
struct Source {
    answer: Mutex<Option<Owned>>,
    reads: Mutex<u32>,
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
}

impl Source {
    fn say(&self, answer: Option<Answer<'_>>) {
        let owned =
            |entries: &[(&'static str, &[u8])]| entries.iter().map(|(key, value)| (*key, value.to_vec())).collect();
        *self.answer.lock().unwrap() = answer.map(|answer| answer.map(owned));
    }

    fn reads(&self) -> u32 {
        *self.reads.lock().unwrap()
    }
}

struct Bench {
    source: Arc<Source>,
    credentials: Credentials,
}

fn bench() -> Bench {
    let source = Arc::new(Source { answer: Mutex::new(None), reads: Mutex::new(0) });
    source.say(Some(Ok(&[("clientSecret", b"first")])));
    Bench { credentials: Credentials::new(source.clone(), MINUTE), source }
}

fn identity(kind: IdentityType) -> Identity {
    Identity {
        object: ObjectRef { namespace: "ns".into(), name: "id".into(), uid: "1".into(), generation: 1 },
        kind,
        client_id: None,
        object_id: None,
        resource_id: None,
        tenant_id: None,
        authority: None,
        credential: CredentialSource::Secret(SecretKeyRef { namespace: "ns".into(), name: "cred".into(), key: None }),
        audiences: Box::default(),
    }
}

impl Bench {
    async fn get(&self, refused: Option<u64>) -> Result<String, TokenError> {
        let loaded = self.credentials.get(&identity(IdentityType::ServicePrincipal), refused).await?;
        match loaded.credential {
            Credential::Secret(secret) => Ok(secret.expose_secret().to_owned()),
            _ => panic!("no secret"),
        }
    }

    async fn certificate(&self) -> Result<Loaded, TokenError> {
        self.credentials.get(&identity(IdentityType::ServicePrincipalCertificate), None).await
    }
}

fn unavailable(error: &TokenError) -> String {
    let TokenError::Unavailable { retry_after, .. } = error else { panic!("not 503: {error:?}") };
    assert!(!retry_after.is_zero());
    error.to_string()
}

#[tokio::test(start_paused = true)]
async fn what_is_certain_ends_a_credential() {
    use SecretSourceError as E;
    let answers: [(Answer<'_>, &str); 6] = [
        (Err(E::NotFound), "503 AzureIdentity ns/id: Secret ns/cred (spec.clientPassword) does not exist; create it"),
        (Err(E::Forbidden("not allowed".into())), "503 Secret ns/cred could not be read: not allowed"),
        (Err(E::Malformed("no base64".into())), "503 Secret ns/cred could not be read: no base64"),
        (Ok(&[]), "400 AzureIdentity ns/id: Secret ns/cred: it has no key 'clientSecret'"),
        (Ok(&[("a", b"x"), ("b", b"y")]), "400 AzureIdentity ns/id: Secret ns/cred: it has no key 'clientSecret'"),
        (Ok(&[("clientSecret", b"")]), "400 AzureIdentity ns/id: Secret ns/cred: key 'clientSecret' is empty"),
    ];
    for (answer, expected) in answers {
        let bench = bench();
        assert_eq!(bench.get(None).await.unwrap(), "first");
        bench.source.say(Some(answer));
        // Young enough.
        tokio::time::advance(MINUTE.mul_f32(0.9)).await;
        assert_eq!(bench.get(None).await.unwrap(), "first");
        tokio::time::advance(MINUTE.mul_f32(0.1)).await;
        for _ in 0..2 {
            let error = bench.get(None).await.unwrap_err();
            let text = match &error {
                TokenError::Misconfigured { .. } => format!("400 {error}"),
                error => format!("503 {}", unavailable(error)),
            };
            assert!(text.starts_with(expected), "{text}");
        }
        // It does not come back when nothing can be told any more.
        bench.source.say(Some(Err(E::Unavailable("connection refused".into()))));
        let text = unavailable(&bench.get(None).await.unwrap_err());
        assert_eq!(text, "Secret ns/cred could not be read: connection refused");
        // It does when it is there again, at once.
        bench.source.say(Some(Ok(&[("clientSecret", b"first")])));
        assert_eq!(bench.get(None).await.unwrap(), "first");
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_api_server_changes_nothing() {
    let refused_connection = || Some(Err(SecretSourceError::Unavailable("connection refused".into())));
    for silent in [false, true] {
        let bench = bench();
        assert_eq!(bench.get(None).await.unwrap(), "first");
        bench.source.say(if silent { None } else { refused_connection() });
        let version = bench.credentials.get(&identity(IdentityType::ServicePrincipal), None).await.unwrap().version;
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
        tokio::time::advance(PAUSE).await;
        bench.source.say(Some(Err(SecretSourceError::NotFound)));
        unavailable(&bench.get(None).await.unwrap_err());
        bench.source.say(Some(Ok(&[("clientSecret", b"second")])));
        assert_eq!(bench.get(None).await.unwrap(), "second");
    }
    // Nothing is kept that never was.
    let bench = bench();
    bench.source.say(None);
    let begin = Instant::now();
    assert_eq!(unavailable(&bench.get(None).await.unwrap_err()), "Secret ns/cred could not be read: no answer in time");
    assert_eq!(begin.elapsed(), TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn certificates_are_read_two_at_a_time() {
    let bench = bench();
    let file = include_bytes!("../credentials/openssl_3.p12");
    bench.source.say(Some(Ok(&[("certificate", file), ("password", b"fixture")])));
    let others = bench.credentials.readings.clone().acquire_many_owned(2).await.unwrap();
    assert_eq!(bench.credentials.readings.available_permits(), 0);
    for _ in 0..3 {
        let begin = Instant::now();
        let text = unavailable(&bench.certificate().await.unwrap_err());
        assert_eq!(text, "the certificate in Secret ns/cred is still being read after 10 s");
        assert_eq!(begin.elapsed(), READING_TIMEOUT);
    }
    drop(others);
    let loaded = bench.certificate().await.unwrap();
    assert!(matches!(loaded.credential, Credential::Certificate(_)));
    assert_eq!(
        bench.credentials.version(identity(IdentityType::ServicePrincipal).credential.secret().unwrap()),
        loaded.version
    );
    // All turns are given back.
    let others = bench.credentials.readings.clone().acquire_many_owned(2).await.unwrap();
    // What has not changed is not read again.
    tokio::time::advance(MINUTE).await;
    assert_eq!(bench.certificate().await.unwrap().version, loaded.version);
    drop(others);
    // Nor is what is known to be wrong.
    bench.source.say(Some(Ok(&[("certificate", file), ("password", b"wrong")])));
    tokio::time::advance(MINUTE).await;
    assert!(matches!(bench.certificate().await, Err(TokenError::Misconfigured { .. })));
    let _others = bench.credentials.readings.clone().acquire_many_owned(2).await.unwrap();
    let begin = Instant::now();
    assert!(matches!(bench.certificate().await, Err(TokenError::Misconfigured { .. })));
    assert_eq!(begin.elapsed(), Duration::ZERO);
}
