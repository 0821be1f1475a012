//! What proves who asked for a grant and who approved: the admission policy, read at the API server when it is needed. A
//! watch would not do: what it has shown may be older than what it is to prove.

use std::{sync::Arc, time::Duration};

use http::Request;
use identity_crd::policies;
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use kube::{
    Client, Resource,
    api::{GetParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::Config;
use crate::{
    assign::{Event, Index, ProofAnswer},
    grant::Proof,
    runtime::{
        clock::Clock,
        request::{Failure, send},
        source::Source,
    },
};

/// Asks for the proof. None without an API server: there it is known beforehand.
pub(super) struct Proofs {
    client: Option<Client>,
    clock: Arc<dyn Clock>,
    limit: Duration,
    running: JoinSet<ProofAnswer>,
}

impl Proofs {
    pub(super) fn new(source: &Source, config: &Config) -> Self {
        let client = match source {
            Source::Kubernetes(client) => Some(client.clone()),
            Source::Manifests(_) => None,
        };
        Self { client, clock: config.clock.clone(), limit: config.request_timeout, running: JoinSet::new() }
    }

    /// Asks, if the index needs to know.
    pub(super) fn start(&mut self, index: &mut Index) {
        let Some(client) = &self.client else { return };
        let Some(request) = index.ask_for_proof(self.clock.now()) else { return };
        let (client, clock, limit) = (client.clone(), self.clock.clone(), self.limit);
        self.running.spawn(async move {
            let proof = match proof(&client, limit).await {
                Ok(proof) => Some(proof),
                Err(error) => {
                    warn!(%error, "the admission policy for grants cannot be read; grants that wait go on waiting");
                    None
                }
            };
            debug!(?proof, "asked what proves grants");
            ProofAnswer { request, at: clock.now(), proof }
        });
    }

    /// Waits for an answer.
    pub(super) async fn next(&mut self) -> Option<Event> {
        match self.running.join_next().await {
            // An error: it was broken off.
            Some(ended) => ended.ok().map(Event::Proof),
            None => std::future::pending().await,
        }
    }

    pub(super) fn abandon(&mut self) {
        self.running.abort_all();
        self.running = JoinSet::new();
    }
}

async fn proof(client: &Client, limit: Duration) -> Result<Proof, Failure> {
    let user = user(client, limit).await?;
    let wanted = policies::grants(&[&user]);
    let (policy, binding) = tokio::join!(
        get::<ValidatingAdmissionPolicy>(client, wanted.name(), limit),
        get::<ValidatingAdmissionPolicyBinding>(client, wanted.name(), limit),
    );
    let (policy, binding) = match (policy, binding) {
        (Ok(policy), Ok(binding)) => (policy, binding),
        (Err(Failure::Forbidden(message)), _) | (_, Err(Failure::Forbidden(message))) => {
            return Ok(Proof::Missing(format!(
                "the controller may not read the admission policy ({message}); apply deploy/"
            )));
        }
        (Err(failure), _) | (_, Err(failure)) => return Err(failure),
    };
    Ok(match wanted.in_force_since(policy.as_ref(), binding.as_ref()) {
        Ok(since) => Proof::Since(since),
        Err(error) => Proof::Missing(error.to_string()),
    })
}

/// As whom this process writes: the policy lets that user alone write the status of grants.
async fn user(client: &Client, limit: Duration) -> Result<String, Failure> {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let request = kube::core::Request::new("/apis/authentication.k8s.io/v1/selfsubjectreviews")
        .create(&PostParams::default(), review.to_string().into_bytes());
    let answer: Value = send(client, built(request)?, limit).await?;
    match answer["status"]["userInfo"]["username"].as_str() {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(Failure::Unreadable("SelfSubjectReview names no user".to_owned())),
    }
}

async fn get<K>(client: &Client, name: &str, limit: Duration) -> Result<Option<K>, Failure>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    // Without a resourceVersion: what is true, not what a cache has.
    let request = kube::core::Request::new(K::url_path(&(), None)).get(name, &GetParams::default());
    match send(client, built(request)?, limit).await {
        Ok(object) => Ok(Some(object)),
        Err(Failure::NotFound(_)) => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn built(request: Result<Request<Vec<u8>>, kube::core::request::Error>) -> Result<Request<Vec<u8>>, Failure> {
    request.map_err(|error| Failure::Refused { code: 0, message: format!("the request cannot be built: {error}") })
}
