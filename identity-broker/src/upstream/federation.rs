//! Federated identities: a token of the cluster is what proves them. It is read at each use, so that there is nothing to rotate.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use identity_core::lookup::{Federation, Identity};
use secrecy::ExposeSecret as _;
use tokio::time::Instant;

use super::{
    Failure, Upstream,
    shared::{Application, Missed, Run},
};
use crate::{
    credentials::{Credential, Verdict},
    federated::{Assertion, AssertionSource, explain},
    tokens::{Token, TokenError},
};

/// The most identities whose refusals are remembered.
const CAPACITY: usize = 4096;
/// How soon it is worth asking again for what has yet to reach all of Entra.
const SPREADING: Duration = Duration::from_secs(15);

/// Who asks with assertions.
pub(super) struct Federated {
    assertions: Option<Arc<dyn AssertionSource>>,
    /// Since when Entra refuses what it may only not know yet, by a digest of who asks.
    refused: Mutex<HashMap<u64, Instant>>,
}

impl Federated {
    pub(super) fn new(assertions: Option<Arc<dyn AssertionSource>>) -> Self {
        Self { assertions, refused: Mutex::default() }
    }

    /// Asks once. `refused`: the digest of an assertion that Entra did not take.
    pub(super) async fn token(
        &self,
        upstream: &Upstream,
        run: &mut Run<'_>,
        application: &Application<'_>,
        federation: &Federation,
        refused: Option<u64>,
    ) -> Result<Token, Missed> {
        let identity = run.identity;
        let assertion = self.assertion(identity, federation).await;
        let assertion = assertion.map_err(|error| Missed::Failed(Failure::Permanent(error), 0))?;
        let digest = crate::digest::first64(assertion.token().expose_secret().as_bytes()).max(1);
        if refused == Some(digest) {
            let unchanged = Failure::Transient { message: String::new(), retry_after: None };
            return Err(Missed::Failed(unchanged, digest));
        }
        let credential = Credential::Assertion(Arc::new(assertion.token().clone()));
        // No version: one assertion after the other proves the same, tokens got with a former one are as good.
        let answer = upstream.entra(run, application, &credential, 0).await;
        let place = place(identity);
        match answer {
            Ok(token) => {
                self.refused.lock().unwrap_or_else(PoisonError::into_inner).remove(&place);
                Ok(token)
            }
            Err(Missed::Failed(Failure::Credential { error, spreads }, _)) => {
                let error = explained(error, application.client_id, &assertion);
                let failure = if spreads && self.is_new(place, upstream.config.rotation.propagation) {
                    let (message, retry_after) = (error.to_string(), SPREADING);
                    Failure::Permanent(TokenError::Unavailable { message, retry_after })
                } else {
                    Failure::Credential { error, spreads }
                };
                Err(Missed::Failed(failure, digest))
            }
            Err(missed) => Err(missed),
        }
    }

    async fn assertion(&self, identity: &Identity, federation: &Federation) -> Result<Assertion, TokenError> {
        let Some(assertions) = &self.assertions else {
            return Err(TokenError::misconfigured(
                identity,
                "identities of type 3 need a token of the cluster, and this node is given none (--federated-token-file)",
            ));
        };
        assertions.assertion(federation).await.map_err(|error| {
            let object = &identity.object;
            let (namespace, name) = (&object.namespace, &object.name);
            if error.is_transient() {
                let message = format!("AzureIdentity {namespace}/{name}: {error}");
                TokenError::Unavailable { message, retry_after: Duration::from_secs(5) }
            } else {
                TokenError::misconfigured(identity, error.to_string())
            }
        })
    }

    /// Whether Entra has refused it for less than this, without a token in between.
    fn is_new(&self, place: u64, propagation: Duration) -> bool {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= CAPACITY && !refused.contains_key(&place) {
            refused.clear();
        }
        refused.entry(place).or_insert_with(Instant::now).elapsed() < propagation
    }
}

/// What has to be known to Entra: another object, application or subject is another matter.
fn place(identity: &Identity) -> u64 {
    let object = &identity.object;
    let what = format!(
        "{}/{}/{}/{:?}/{:?}/{:?}",
        object.namespace, object.name, object.uid, identity.client_id, identity.tenant_id, identity.credential
    );
    crate::digest::first64(what.as_bytes())
}

/// With what was sent and what to do, where that can be told.
fn explained(error: TokenError, client_id: &str, assertion: &Assertion) -> TokenError {
    match error {
        TokenError::Refused(mut refusal) => {
            let code = Verdict::of(&refusal).code;
            if let Some(text) = code.and_then(|code| explain(code, client_id, assertion)) {
                refusal.description = format!("{}: {text}", refusal.description.trim_end_matches(['.', ' ']));
            }
            TokenError::Refused(refusal)
        }
        other => other,
    }
}
