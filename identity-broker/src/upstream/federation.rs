//! Federated identities: a token of the cluster is what proves them. It is read at each use, so that there is nothing to rotate.

use std::{sync::Arc, time::Duration};

use identity_core::lookup::{Federation, Identity};
use secrecy::ExposeSecret as _;

use super::{
    Failure, Upstream,
    shared::{Application, Missed, Run},
    unknown_yet,
};
use crate::{
    credentials::{Credential, Verdict},
    federated::{Assertion, AssertionSource, explain},
    tokens::{Token, TokenError},
};

/// Who asks with assertions.
pub(super) struct Federated {
    assertions: Option<Arc<dyn AssertionSource>>,
}

impl Federated {
    pub(super) fn new(assertions: Option<Arc<dyn AssertionSource>>) -> Self {
        Self { assertions }
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
        let shown = upstream.spreading.shown(identity, 0);
        match upstream.entra(run, application, &credential, 0).await {
            Ok(token) => {
                upstream.spreading.worked(shown);
                Ok(token)
            }
            Err(Missed::Failed(Failure::Credential { error, spreads }, _)) => {
                let error = explained(error, application.client_id, &assertion);
                let failure = if spreads && upstream.spreading.is_new(shown) {
                    // Another assertion says the same of itself.
                    Failure::Permanent(unknown_yet(identity, error.to_string()))
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
