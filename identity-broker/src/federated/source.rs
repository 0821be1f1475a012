//! Where assertions come from. Seams: a file and the cluster, or a test's own.

use std::{fmt, sync::Arc};

use futures::future::BoxFuture;
use identity_core::{
    lookup::{FederatedSubject, Federation},
    pod::PodRef,
};
use secrecy::SecretString;

use super::{Assertion, AssertionError, PodTokenError, TokenFile};
use crate::clock::Clock;

/// Gives assertions.
pub trait AssertionSource: Send + Sync + 'static {
    /// The node's own token for `audience`. Bounded in time by the implementation.
    fn broker<'a>(&'a self, audience: &'a str) -> BoxFuture<'a, Result<Assertion, AssertionError>>;

    /// A token of the pod's service account for `audience`, bound to the pod. Bounded in time by the implementation.
    fn pod<'a>(&'a self, pod: &'a PodRef, audience: &'a str) -> BoxFuture<'a, Result<Assertion, AssertionError>>;

    /// Whichever of them `federation` wants.
    fn assertion<'a>(&'a self, federation: &'a Federation) -> BoxFuture<'a, Result<Assertion, AssertionError>> {
        match (federation.subject, &federation.pod) {
            (FederatedSubject::Broker, _) => self.broker(&federation.audience),
            (FederatedSubject::Pod, Some(pod)) => self.pod(pod, &federation.audience),
            (FederatedSubject::Pod, None) => Box::pin(std::future::ready(Err(AssertionError::NoPod))),
        }
    }
}

/// Makes tokens of pods' service accounts: TokenRequest at an API server.
pub trait PodTokens: Send + Sync + 'static {
    /// A token of `pod`'s service account for `audience` alone, bound to the pod. May be one made before.
    fn token<'a>(&'a self, pod: &'a PodRef, audience: &'a str) -> BoxFuture<'a, Result<SecretString, PodTokenError>>;
}

/// A node's: its projected token, and, where the operator allows it, tokens of pods.
#[derive(Clone)]
pub struct Assertions {
    file: Option<TokenFile>,
    pods: Option<Arc<dyn PodTokens>>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Assertions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assertions")
            .field("file", &self.file)
            .field("pods", &self.pods.is_some())
            .finish_non_exhaustive()
    }
}

impl Assertions {
    /// `pods` only where the operator said so.
    pub fn new(file: Option<TokenFile>, pods: Option<Arc<dyn PodTokens>>, clock: impl Clock) -> Self {
        Self { file, pods, clock: Arc::new(clock) }
    }
}

impl AssertionSource for Assertions {
    fn broker<'a>(&'a self, audience: &'a str) -> BoxFuture<'a, Result<Assertion, AssertionError>> {
        Box::pin(async move {
            match &self.file {
                Some(file) => file.read(audience).await,
                None => Err(AssertionError::NoFileGiven { audience: audience.to_owned() }),
            }
        })
    }

    fn pod<'a>(&'a self, pod: &'a PodRef, audience: &'a str) -> BoxFuture<'a, Result<Assertion, AssertionError>> {
        Box::pin(async move {
            let pods = self.pods.as_ref().ok_or(AssertionError::PodsNotAllowed)?;
            let token = pods.token(pod, audience).await?;
            let origin = format!("the token that the cluster made for pod {}/{}", pod.namespace, pod.name);
            let assertion = Assertion::read(token, &origin)?;
            assertion.check(&origin, audience, self.clock.now())?;
            Ok(assertion)
        })
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use secrecy::ExposeSecret as _;
    use serde_json::json;

    use super::{super::assertion::tests::token, *};

    struct Made;

    impl PodTokens for Made {
        fn token<'a>(
            &'a self,
            pod: &'a PodRef,
            audience: &'a str,
        ) -> BoxFuture<'a, Result<SecretString, PodTokenError>> {
            Box::pin(async move {
                if *pod.name == *"gone" {
                    return Err(PodTokenError::Refused("the pod is gone".to_owned()));
                }
                let subject = format!("system:serviceaccount:{}:{}", pod.namespace, pod.service_account);
                Ok(token(&json!({"sub": subject, "aud": [audience], "exp": 1_800_000_000})).into())
            })
        }
    }

    fn clock() -> Timestamp {
        Timestamp::from_second(1_799_999_000).unwrap()
    }

    fn federation(subject: FederatedSubject, pod: Option<&str>) -> Federation {
        let pod = pod.map(|name| PodRef {
            namespace: "ns".into(),
            name: name.into(),
            uid: "u".into(),
            service_account: "sa".into(),
        });
        Federation { subject, audience: "x".into(), pod: pod.map(Arc::new) }
    }

    #[tokio::test]
    async fn each_subject_has_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, token(&json!({"sub": "node", "aud": "x", "exp": 1_800_000_000}))).unwrap();
        let all = Assertions::new(Some(TokenFile::new(path, clock)), Some(Arc::new(Made)), clock);
        let subject = async |federation| all.assertion(&federation).await.map(|found| found.subject().to_owned());
        assert_eq!(subject(federation(FederatedSubject::Broker, None)).await.unwrap(), "node");
        // A pod that asks changes nothing about the node's.
        assert_eq!(subject(federation(FederatedSubject::Broker, Some("web"))).await.unwrap(), "node");
        assert_eq!(
            subject(federation(FederatedSubject::Pod, Some("web"))).await.unwrap(),
            "system:serviceaccount:ns:sa"
        );
        assert_eq!(subject(federation(FederatedSubject::Pod, None)).await, Err(AssertionError::NoPod));
        assert_eq!(
            subject(federation(FederatedSubject::Pod, Some("gone"))).await,
            Err(AssertionError::Pod(PodTokenError::Refused("the pod is gone".to_owned())))
        );
        let found = all.assertion(&federation(FederatedSubject::Pod, Some("web"))).await.unwrap();
        assert!(found.token().expose_secret().starts_with("e30."));
    }

    #[tokio::test]
    async fn nothing_is_on_by_itself() {
        let none = Assertions::new(None, None, clock);
        let of = async |subject| none.assertion(&federation(subject, Some("web"))).await.unwrap_err();
        assert_eq!(of(FederatedSubject::Pod).await, AssertionError::PodsNotAllowed);
        assert!(
            matches!(of(FederatedSubject::Broker).await, AssertionError::NoFileGiven { audience } if audience == "x")
        );
    }
}
