//! Actions as requests: server-side apply and deletion, each for one version of the object.

use std::time::Duration;

use http::Request;
use identity_crd::{AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding, AzureIdentityGrant};
use kube::{
    Client, Resource,
    api::{DeleteParams, GetParams, Patch, PatchParams, Preconditions},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Seen, Success, events::Recorder};
use crate::{
    assign::{Action, Apply, Delete, GrantUpdate, Notice, Precondition, StatusTarget, StatusUpdate},
    object::ObjectKey,
    runtime::{
        FIELD_MANAGER,
        request::{Failure, send},
        trim,
    },
};

/// The resourceVersion of no object: etcd begins at 1. Server-side apply with it creates what is not there and is refused
/// with 409 where something is; without it, it would write into what is there.
const MUST_NOT_EXIST: &str = "1";

pub(super) struct Kubernetes {
    client: Client,
    recorder: Recorder,
}

impl std::fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kubernetes")
    }
}

/// An action, ready to be sent.
pub(super) enum Write {
    Apply(Request<Vec<u8>>),
    Delete(Request<Vec<u8>>),
    Status(Request<Vec<u8>>),
    Grant(Request<Vec<u8>>),
    Event(Notice),
}

impl Write {
    pub(super) fn prepare(action: &Action) -> Result<Self, Failure> {
        match action {
            Action::Apply(apply) => request_apply(apply).map(Self::Apply),
            Action::Delete(delete) => request_delete(delete).map(Self::Delete),
            Action::Status(update) => request_status(update).map(Self::Status),
            Action::Grant(update) => request_grant(update).map(Self::Grant),
            Action::Event(notice) => Ok(Self::Event(notice.clone())),
        }
    }
}

impl Kubernetes {
    pub(super) fn new(client: Client, reporter: &str) -> Self {
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, recorder }
    }

    pub(super) async fn perform(&self, write: Write, limit: Duration) -> Result<Success, Failure> {
        match write {
            Write::Apply(request) => {
                let mut object: AzureAssignedIdentity = send(&self.client, request, limit).await?;
                trim::metadata(&mut object.metadata);
                Ok(Success::Applied(Box::new(object)))
            }
            Write::Delete(request) => match send::<Value>(&self.client, request, limit).await {
                Ok(_) | Err(Failure::NotFound(_)) => Ok(Success::Done),
                Err(failure) => Err(failure),
            },
            Write::Status(request) => match send::<Value>(&self.client, request, limit).await {
                // An object that is gone has no status.
                Ok(_) | Err(Failure::NotFound(_)) => Ok(Success::Done),
                Err(failure) => Err(failure),
            },
            Write::Grant(request) => {
                let mut grant: AzureIdentityGrant = send(&self.client, request, limit).await?;
                trim::metadata(&mut grant.metadata);
                Ok(Success::Granted(Box::new(grant)))
            }
            Write::Event(notice) => self.recorder.publish(&notice, limit).await.map(|()| Success::Done),
        }
    }

    pub(super) async fn look(&self, key: &ObjectKey, limit: Duration) -> Option<Seen> {
        let request = collection::<AzureAssignedIdentity>(&key.namespace).get(&key.name, &GetParams::default()).ok()?;
        match send::<AzureAssignedIdentity>(&self.client, request, limit).await {
            Ok(mut object) => {
                trim::metadata(&mut object.metadata);
                Some(Seen::Object(Box::new(object)))
            }
            Err(Failure::NotFound(_)) => Some(Seen::Nothing),
            Err(_) => None,
        }
    }
}

fn collection<K: Resource<DynamicType = ()>>(namespace: &str) -> kube::core::Request {
    kube::core::Request::new(K::url_path(&(), Some(namespace)))
}

fn malformed(error: &dyn std::error::Error) -> Failure {
    Failure::Refused { code: 0, message: format!("the request cannot be built: {error}") }
}

fn apply_parameters() -> PatchParams {
    // With the version as a precondition there is nobody to ask about single fields.
    PatchParams::apply(FIELD_MANAGER).force()
}

fn request_apply(apply: &Apply) -> Result<Request<Vec<u8>>, Failure> {
    let mut object = apply.object.clone();
    let meta = &mut object.metadata;
    (meta.uid, meta.resource_version) = apply.precondition.as_ref().map_or_else(
        || (None, Some(MUST_NOT_EXIST.to_owned())),
        |Precondition { uid, resource_version }| (Some(uid.clone()), Some(resource_version.clone())),
    );
    meta.managed_fields = None;
    let (namespace, name) = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
    patch(&collection::<AzureAssignedIdentity>(&namespace), &name, &object)
}

fn patch<T: Serialize>(collection: &kube::core::Request, name: &str, object: &T) -> Result<Request<Vec<u8>>, Failure> {
    let object = serde_json::to_value(object).map_err(|error| malformed(&error))?;
    collection.patch(name, &apply_parameters(), &Patch::Apply(object)).map_err(|error| malformed(&error))
}

fn request_delete(delete: &Delete) -> Result<Request<Vec<u8>>, Failure> {
    let Precondition { uid, resource_version } = delete.precondition.clone();
    let preconditions = Preconditions { uid: Some(uid), resource_version: Some(resource_version) };
    collection::<AzureAssignedIdentity>(&delete.key.namespace)
        .delete(&delete.key.name, &DeleteParams::default().preconditions(preconditions))
        .map_err(|error| malformed(&error))
}

fn request_status(update: &StatusUpdate) -> Result<Request<Vec<u8>>, Failure> {
    let key = update.target.key();
    let collection = match update.target {
        StatusTarget::Identity(_) => collection::<AzureIdentity>(&key.namespace),
        StatusTarget::Binding(_) => collection::<AzureIdentityBinding>(&key.namespace),
    };
    collection
        .patch_subresource("status", &key.name, &apply_parameters(), &Patch::Apply(status_object(update)))
        .map_err(|error| malformed(&error))
}

/// Never by force: nobody but controllers writes it, and this version is the one that was reviewed.
fn request_grant(update: &GrantUpdate) -> Result<Request<Vec<u8>>, Failure> {
    collection::<AzureIdentityGrant>(&update.key.namespace)
        .patch_subresource(
            "status",
            &update.key.name,
            &PatchParams::apply(FIELD_MANAGER),
            &Patch::Apply(grant_status(update, &update.precondition.resource_version)),
        )
        .map_err(|error| malformed(&error))
}

/// Metadata and status of a grant.
pub(super) fn grant_status(update: &GrantUpdate, version: &str) -> Value {
    let GrantUpdate { key, precondition, status, .. } = update;
    json!({
        "apiVersion": format!("{}/{}", identity_crd::GROUP, identity_crd::GRANT_VERSION),
        "kind": "AzureIdentityGrant",
        "metadata": {
            "name": &*key.name, "namespace": &*key.namespace, "uid": precondition.uid, "resourceVersion": version,
        },
        "status": status,
    })
}

/// Metadata and status of the object, as far as they are this controller's.
pub(super) fn status_object(update: &StatusUpdate) -> Value {
    let key = update.target.key();
    let mut metadata = json!({"name": &*key.name, "namespace": &*key.namespace});
    if let Some(uid) = &update.uid {
        // Of this object only, not of another that has got its name.
        metadata["uid"] = json!(uid);
    }
    let mut status = json!({"conditions": update.conditions});
    if let Some(pods) = update.matched_pods {
        status["matchedPods"] = json!(pods);
    }
    let instants = [
        ("credentialExpiry", &update.credential_expiry),
        ("nextTransition", &update.next_transition),
        ("residualUntil", &update.residual_until),
    ];
    for (field, at) in instants {
        if let Some(at) = at {
            status[field] = json!(at);
        }
    }
    json!({
        "apiVersion": format!("{}/{}", identity_crd::GROUP, identity_crd::VERSION),
        "kind": update.target.kind(),
        "metadata": metadata,
        "status": status,
    })
}
