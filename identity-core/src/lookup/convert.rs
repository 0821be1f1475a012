//! API objects → what a node decides from. What a node could not serve is refused here, with the reason; the planner asks
//! the same code whether an identity is worth assigning.

use std::sync::Arc;

use identity_crd::{AzureAssignedIdentity, AzureIdentity, IdentityType, ResourceId, TimeBox, Violation};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use thiserror::Error;

use super::{
    Assignment, CredentialSource, Federation, Granted, Identity, ObjectRef, Options, SecretKeyRef, VaultObject,
    VaultRef,
};
use crate::{object::ObjectKey, schedule::Gate};

/// An identity that cannot be used as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// A field without which this type of identity means nothing.
    #[error("{0}")]
    Spec(Violation),
    /// Its Secret is in another namespace.
    #[error(
        "spec.clientPassword.namespace: the Secret is in namespace `{secret}`, the identity in `{identity}`; matching is \
         namespaced, so put the Secret beside the identity"
    )]
    SecretNamespace {
        /// Namespace of the Secret.
        secret: String,
        /// Namespace of the identity.
        identity: String,
    },
}

impl IdentityError {
    /// JSON path of the field at fault.
    pub fn field(&self) -> &str {
        match self {
            Self::Spec(violation) => &violation.field,
            Self::SecretNamespace { .. } => "spec.clientPassword.namespace",
        }
    }
}

/// An assignment that a node does not serve.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AssignmentError {
    /// A field is missing.
    #[error("{field} is missing; only the controller writes assignments: delete this one")]
    Missing {
        /// JSON path.
        field: &'static str,
    },
    /// No `podUID`: the predecessor wrote it, or somebody by hand.
    #[error(
        "spec.podUID is missing, as in the predecessor's objects: a pod re-created under this name would get the \
         identity too"
    )]
    NoPodUid,
    /// The objects involved are in different namespaces.
    #[error("{what} is in namespace `{namespace}`, the pod in `{pod}`")]
    Namespace {
        /// Which object.
        what: &'static str,
        /// Its namespace.
        namespace: String,
        /// The pod's.
        pod: String,
    },
    /// The identity in it cannot be used.
    #[error("its identity: {0}")]
    Identity(#[from] IdentityError),
}

/// The value when there is one that is not empty.
fn given(value: Option<&String>) -> Option<Box<str>> {
    value.filter(|v| !v.is_empty()).map(|v| v.as_str().into())
}

fn words(values: Option<&Vec<String>>) -> Box<[Box<str>]> {
    values.into_iter().flatten().map(|v| v.as_str().into()).collect()
}

impl From<&ObjectMeta> for ObjectRef {
    fn from(meta: &ObjectMeta) -> Self {
        let text = |value: Option<&String>| Arc::from(value.map_or("", String::as_str));
        Self {
            namespace: text(meta.namespace.as_ref()),
            name: text(meta.name.as_ref()),
            uid: text(meta.uid.as_ref()),
            generation: meta.generation.unwrap_or_default(),
        }
    }
}

impl ObjectRef {
    /// Namespace and name.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { namespace: Arc::clone(&self.namespace), name: Arc::clone(&self.name) }
    }

    /// Whether both are the same object, whatever its generation.
    pub fn is(&self, other: &Self) -> bool {
        self.uid == other.uid && self.name == other.name && self.namespace == other.namespace
    }
}

/// Where the credential of an identity of this type is.
fn credential(object: &AzureIdentity, kind: IdentityType) -> CredentialSource {
    let secret = || {
        let secret = object.spec.client_password.as_ref()?;
        Some(SecretKeyRef {
            name: given(secret.name.as_ref())?,
            namespace: given(secret.namespace.as_ref())
                .or_else(|| given(object.metadata.namespace.as_ref()))
                .unwrap_or_default(),
            key: given(secret.key.as_ref()),
        })
    };
    match kind {
        IdentityType::UserAssignedManagedIdentity => CredentialSource::None,
        IdentityType::ServicePrincipal | IdentityType::ServicePrincipalCertificate => {
            let secret = secret().map(CredentialSource::Secret);
            secret.or_else(|| vault(object, kind).map(CredentialSource::KeyVault)).unwrap_or_default()
        }
        IdentityType::WorkloadIdentityFederation => {
            let federated = object.spec.federated.clone().unwrap_or_default();
            let audience = given(federated.audience.as_ref());
            CredentialSource::Federated(Federation {
                subject: federated.subject(),
                audience: audience.unwrap_or_else(|| cloud_audience(object.spec.ad_endpoint.as_deref()).into()),
                pod: None,
            })
        }
    }
}

/// The audience of assertions in the cloud of an authority (imds-and-clients §3.1), when none is given.
fn cloud_audience(authority: Option<&str>) -> &'static str {
    let authority = authority.unwrap_or_default().trim().to_ascii_lowercase();
    let host = authority.strip_prefix("https://").unwrap_or(&authority);
    let host = host.split(['/', ':']).next().unwrap_or_default();
    match host {
        "login.microsoftonline.us" => "api://AzureADTokenExchangeUSGov",
        "login.partner.microsoftonline.cn" | "login.chinacloudapi.cn" => "api://AzureADTokenExchangeChina",
        _ => identity_crd::FEDERATED_AUDIENCE,
    }
}

fn vault(object: &AzureIdentity, kind: IdentityType) -> Option<VaultRef> {
    let vault = object.spec.key_vault.as_ref()?;
    Some(VaultRef {
        url: given(vault.vault_url.as_ref())?,
        object: if kind == IdentityType::ServicePrincipal {
            VaultObject::Secret(given(vault.secret_name.as_ref())?)
        } else {
            let certificate = given(vault.certificate_name.as_ref()).map(VaultObject::Certificate);
            certificate.or_else(|| given(vault.secret_name.as_ref()).map(VaultObject::Secret))?
        },
        version: given(vault.version.as_ref()),
        identity: given(vault.identity_ref.as_ref())?,
    })
}

impl Identity {
    /// Reads an `AzureIdentity`. With `cluster_wide` its Secret may be in another namespace.
    pub fn read(object: &AzureIdentity, cluster_wide: bool) -> Result<Self, IdentityError> {
        let spec = &object.spec;
        // The words of the message are those of the rule that is broken, when a rule says it.
        let broken = |field: &str| {
            let stated = spec.validate().into_iter().find(|v| v.field == field || v.field.starts_with(field));
            IdentityError::Spec(stated.unwrap_or_else(|| Violation::new(field, "is missing")))
        };
        let kind = spec.identity_type().ok_or_else(|| broken("spec.type"))?;
        let this = Self {
            object: ObjectRef::from(&object.metadata),
            kind,
            client_id: given(spec.client_id.as_ref()),
            object_id: given(spec.object_id.as_ref()),
            resource_id: given(spec.resource_id.as_ref()),
            tenant_id: given(spec.tenant_id.as_ref()),
            authority: given(spec.ad_endpoint.as_ref()),
            credential: credential(object, kind),
            audiences: words(spec.audiences.as_ref()),
        };
        match kind {
            IdentityType::UserAssignedManagedIdentity => {
                if this.resource_id.as_ref().is_none_or(|id| id.parse::<ResourceId>().is_err()) {
                    return Err(broken("spec.resourceID"));
                }
            }
            IdentityType::ServicePrincipal
            | IdentityType::ServicePrincipalCertificate
            | IdentityType::WorkloadIdentityFederation => {
                if this.client_id.is_none() {
                    return Err(broken("spec.clientID"));
                }
                if this.tenant_id.is_none() {
                    return Err(broken("spec.tenantID"));
                }
                if this.credential == CredentialSource::None {
                    let vault = spec.key_vault.is_some() && spec.client_password.is_none();
                    return Err(broken(if vault { "spec.keyVault" } else { "spec.clientPassword" }));
                }
                if let Some(secret) = this.credential.secret()
                    && !cluster_wide
                    && *secret.namespace != *this.object.namespace
                {
                    return Err(IdentityError::SecretNamespace {
                        secret: secret.namespace.to_string(),
                        identity: this.object.namespace.to_string(),
                    });
                }
            }
        }
        Ok(this)
    }
}

impl Assignment {
    /// Reads an `AzureAssignedIdentity`, and checks that it does not reach across namespaces.
    pub fn read(object: &AzureAssignedIdentity, options: &Options) -> Result<Self, AssignmentError> {
        Self::read_with(object, options, |binding, identity| Gate::new(binding, identity).map(Arc::new))
    }

    /// The same, with a `gate` made, or found, for the boxes of binding and identity.
    pub(super) fn read_with(
        object: &AzureAssignedIdentity,
        options: &Options,
        gate: impl FnOnce(Option<&TimeBox>, Option<&TimeBox>) -> Option<Arc<Gate>>,
    ) -> Result<Self, AssignmentError> {
        let (own, spec) = (ObjectRef::from(&object.metadata), &object.spec);
        let pod_namespace =
            given(spec.pod_namespace.as_ref()).ok_or(AssignmentError::Missing { field: "spec.podNamespace" })?;
        if given(spec.pod.as_ref()).is_none() {
            return Err(AssignmentError::Missing { field: "spec.pod" });
        }
        let pod_uid = given(spec.pod_uid.as_ref());
        if pod_uid.is_none() && !options.without_pod_uid {
            return Err(AssignmentError::NoPodUid);
        }
        let identity =
            spec.azure_identity_ref.as_ref().ok_or(AssignmentError::Missing { field: "spec.azureIdentityRef" })?;
        let binding =
            spec.azure_binding_ref.as_ref().ok_or(AssignmentError::Missing { field: "spec.azureBindingRef" })?;
        let binding_ref = ObjectRef::from(&binding.metadata);
        let boxes = (binding.spec.time_box.as_ref(), identity.spec.time_box.as_ref());
        let identity = Identity::read(identity, options.cluster_wide)?;

        let beside = |what, namespace: &str, pod: &str| {
            if *namespace == *pod {
                return Ok(());
            }
            Err(AssignmentError::Namespace { what, namespace: namespace.into(), pod: pod.into() })
        };
        // The predecessor kept its assignments in one namespace.
        if pod_uid.is_some() {
            beside("the assignment", &own.namespace, &pod_namespace)?;
        }
        if options.cluster_wide {
            beside("the identity of its binding", &identity.object.namespace, &binding_ref.namespace)?;
        } else {
            beside("its binding", &binding_ref.namespace, &pod_namespace)?;
            beside("its identity", &identity.object.namespace, &pod_namespace)?;
        }
        Ok(Self {
            object: own,
            pod_uid: pod_uid.as_deref().unwrap_or_default().into(),
            binding: binding_ref,
            weight: binding.spec.weight.unwrap_or_default(),
            binding_audiences: words(binding.spec.audiences.as_ref()),
            identity: Arc::new(identity),
            ready: object.is_assigned(),
            gate: gate(boxes.0, boxes.1),
            granted: spec.grant.as_ref().map(|grant| Granted {
                name: grant.name.as_str().into(),
                // Nobody here can tell what a field that is not known forbids.
                until: Some(grant)
                    .filter(|grant| grant.foreign.is_empty())
                    .and_then(|grant| grant.until.parse().ok())
                    .unwrap_or(Timestamp::MIN),
            }),
        })
    }
}
