//! What Entra may not know yet: a secret, certificate or federated credential that was just added reaches all of it within
//! minutes, one part sooner than another.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use identity_core::lookup::{CredentialSource, Federation, Identity};
use tokio::time::Instant;

/// The most credentials that are remembered; then those that were used longest ago are forgotten, and are new again.
const CAPACITY: usize = 4096;

/// How soon it is worth asking again for what has yet to reach all of Entra.
pub(super) const AGAIN: Duration = Duration::from_secs(15);

/// Names a credential.
pub(super) type Shown = u64;

/// Which credentials are new.
pub(super) struct Spreading {
    /// For how long they are.
    propagation: Duration,
    seen: Mutex<HashMap<Shown, Seen>>,
}

struct Seen {
    /// When Entra was shown it first, or took it first, whichever is later: what one part of Entra takes, another may not yet.
    since: Instant,
    worked: bool,
    last: Instant,
}

impl Spreading {
    pub(super) fn new(propagation: Duration) -> Self {
        Self { propagation, seen: Mutex::default() }
    }

    /// A credential of `identity` is about to be shown to Entra. What has to be known there: another object, application or
    /// subject is another matter, and so is another `version`; where one assertion is as good as the next there is none.
    pub(super) fn shown(&self, identity: &Identity, version: u64) -> Shown {
        let object = &identity.object;
        let credential = match &identity.credential {
            // Entra knows the service account and not its pods: the next pod's token is as new as the last one's.
            CredentialSource::Federated(Federation { subject, audience, pod: Some(pod) }) => {
                format!("{subject:?}/{audience:?}/{}/{}", pod.namespace, pod.service_account)
            }
            other => format!("{other:?}"),
        };
        let what = format!(
            "{}/{}/{}/{:?}/{:?}/{:?}/{credential}/{version}",
            object.namespace, object.name, object.uid, identity.client_id, identity.tenant_id, identity.authority
        );
        let shown = crate::digest::first64(what.as_bytes());
        let (mut seen, now) = (self.lock(), Instant::now());
        if seen.len() >= CAPACITY && !seen.contains_key(&shown) {
            let oldest = seen.iter().min_by_key(|(_, seen)| seen.last).map(|(shown, _)| *shown);
            oldest.and_then(|oldest| seen.remove(&oldest));
        }
        seen.entry(shown).or_insert(Seen { since: now, worked: false, last: now }).last = now;
        shown
    }

    /// Entra took it.
    pub(super) fn worked(&self, shown: Shown) {
        if let Some(seen) = self.lock().get_mut(&shown).filter(|seen| !seen.worked) {
            (seen.since, seen.worked) = (Instant::now(), true);
        }
    }

    /// Whether it may be that not all of Entra knows it yet.
    pub(super) fn is_new(&self, shown: Shown) -> bool {
        self.lock().get(&shown).is_none_or(|seen| seen.since.elapsed() < self.propagation)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Shown, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use identity_core::{lookup::FederatedSubject, pod::PodRef};
    use identity_crd::IdentityType;

    use super::*;

    const LONG: Duration = Duration::from_mins(10);

    fn identity(name: &str) -> Identity {
        let mut identity = crate::credentials::testing::identity(IdentityType::ServicePrincipal);
        identity.object.name = name.into();
        identity
    }

    #[tokio::test(start_paused = true)]
    async fn a_credential_is_new_from_its_first_use_on_and_from_when_it_first_worked() {
        let spreading = Spreading::new(LONG);
        let one = spreading.shown(&identity("one"), 1);
        tokio::time::advance(LONG / 2).await;
        // Used again, it is not newer.
        assert_eq!(spreading.shown(&identity("one"), 1), one);
        assert!(spreading.is_new(one));
        tokio::time::advance(LONG / 2).await;
        assert!(!spreading.is_new(one));
        // Registered late: one part of Entra takes it before another.
        spreading.worked(one);
        assert!(spreading.is_new(one));
        tokio::time::advance(LONG / 2).await;
        spreading.worked(one);
        tokio::time::advance(LONG / 2).await;
        assert!(!spreading.is_new(one));
        // Another version is another matter, and so is another object.
        assert!(spreading.is_new(spreading.shown(&identity("one"), 2)));
        assert!(spreading.is_new(spreading.shown(&identity("other"), 1)));
        let none = Spreading::new(Duration::ZERO);
        assert!(!none.is_new(none.shown(&identity("one"), 1)));
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_come_and_go_make_nothing_new() {
        let of = |pod: &str, service_account: &str| {
            let pod = PodRef {
                namespace: "ns".into(),
                name: pod.into(),
                uid: pod.into(),
                service_account: service_account.into(),
            };
            let mut identity = identity("federated");
            identity.credential = CredentialSource::Federated(Federation {
                subject: FederatedSubject::Pod,
                audience: "x".into(),
                pod: Some(Arc::new(pod)),
            });
            identity
        };
        let spreading = Spreading::new(LONG);
        spreading.shown(&of("job-1", "sa"), 0);
        tokio::time::advance(LONG).await;
        // A job's pods each live for a minute: that their subject is not known is told all the same.
        assert!(!spreading.is_new(spreading.shown(&of("job-2", "sa"), 0)));
        assert!(spreading.is_new(spreading.shown(&of("job-2", "another"), 0)));
        // Another cloud's Entra has to learn of it too.
        let mut moved = of("job-2", "sa");
        moved.authority = Some("https://login.microsoftonline.us".into());
        assert!(spreading.is_new(spreading.shown(&moved, 0)));
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_remembered_and_no_more() {
        let spreading = Spreading::new(LONG);
        let used = spreading.shown(&identity("used"), 0);
        tokio::time::advance(LONG).await;
        for version in 0..2 * CAPACITY as u64 {
            tokio::time::advance(Duration::from_millis(1)).await;
            spreading.shown(&identity("another"), version);
            spreading.shown(&identity("used"), 0);
            assert!(spreading.lock().len() <= CAPACITY);
        }
        assert!(!spreading.is_new(used));
    }
}
