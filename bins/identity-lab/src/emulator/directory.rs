//! The [`Directory`] as the emulators use it: checked, indexed, certificates parsed.

use std::collections::HashMap;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{
    config::{Application, ClientSecret, Directory, FederatedCredential, Issuer, Pem},
    keyvault::KnownVault,
};

/// Federated credentials that one application may have.
const MOST_FEDERATED: usize = 20;

/// A directory that cannot be played.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Error {
    /// JSON path of the field.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// A service principal that tokens are issued to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Principal {
    pub(super) tenant: String,
    pub(super) client_id: String,
    pub(super) object_id: String,
    /// Resource id of a managed identity.
    pub(super) resource_id: Option<String>,
    /// Object ids of its groups.
    pub(super) groups: Vec<String>,
}

impl Principal {
    fn joined(mut self, directory: &Directory) -> Self {
        let is_me = |member: &String| {
            [Some(&self.client_id), Some(&self.object_id), self.resource_id.as_ref()]
                .into_iter()
                .flatten()
                .any(|id| id.eq_ignore_ascii_case(member))
        };
        let mine = directory.groups.iter().filter(|group| group.members.iter().any(is_me));
        self.groups = mine.map(|group| group.id.clone()).collect();
        self
    }
}

#[derive(Debug)]
pub(super) struct KnownTenant {
    pub(super) id: String,
    applications: HashMap<String, KnownApplication>,
}

impl KnownTenant {
    pub(super) fn application(&self, client_id: &str) -> Option<&KnownApplication> {
        self.applications.get(&client_id.to_ascii_lowercase())
    }
}

#[derive(Debug)]
pub(super) struct KnownApplication {
    pub(super) principal: Principal,
    pub(super) certificates: Vec<KnownCertificate>,
    pub(super) trusted: Vec<KnownSubject>,
    pub(super) federated: Vec<FederatedCredential>,
    secrets: Vec<ClientSecret>,
}

/// What comes of trying a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SecretCheck {
    Right,
    Expired,
    Wrong,
}

impl KnownApplication {
    pub(super) fn check_secret(&self, given: &str, now: Timestamp) -> SecretCheck {
        let mut check = SecretCheck::Wrong;
        for secret in self.secrets.iter().filter(|secret| secret.since.is_none_or(|since| since <= now)) {
            if bool::from(secret.value.expose().as_bytes().ct_eq(given.as_bytes())) {
                if secret.expires.is_none_or(|expires| now < expires) {
                    return SecretCheck::Right;
                }
                check = SecretCheck::Expired;
            }
        }
        check
    }
}

/// A name whose certificates an authority vouches for.
#[derive(Debug)]
pub(super) struct KnownSubject {
    pub(super) authority: CertificateDer<'static>,
    pub(super) subject: String,
}

/// A certificate registered on an application.
#[derive(Clone, Debug)]
pub(super) struct KnownCertificate {
    pub(super) sha1: Vec<u8>,
    pub(super) sha256: Vec<u8>,
    /// RSAPublicKey, DER.
    pub(super) public_key: Vec<u8>,
    /// Seconds since 1970.
    pub(super) not_before: i64,
    pub(super) not_after: i64,
    /// When it has reached all of Entra.
    pub(super) since: Option<i64>,
}

/// The directory, ready for use.
#[derive(Debug, Default)]
pub(super) struct Known {
    tenants: Vec<KnownTenant>,
    /// Tenant id or domain, in lower case, to a place in `tenants`.
    names: HashMap<String, usize>,
    pub(super) managed: Vec<Principal>,
    pub(super) system: Option<Principal>,
    unknown_resources: Vec<String>,
    /// By host, in lower case.
    pub(super) vaults: HashMap<String, KnownVault>,
    pub(super) issuers: Vec<Issuer>,
}

impl Directory {
    /// Whether the emulators would take it.
    ///
    /// # Errors
    /// The first thing in it that they would not.
    pub fn check(&self) -> Result<(), Error> {
        Known::new(self, "").map(drop)
    }
}

impl Known {
    /// Parses and checks; `vm` is the resource id of the VM, which a system-assigned identity carries.
    pub(super) fn new(directory: &Directory, vm: &str) -> Result<Self, Error> {
        let mut known = Self {
            unknown_resources: directory.unknown_resources.iter().map(|resource| without_slash(resource)).collect(),
            issuers: directory.issuers.clone(),
            ..Self::default()
        };
        for (index, tenant) in directory.tenants.iter().enumerate() {
            let field = format!("directory.tenants[{index}]");
            let id = given(&format!("{field}.id"), &tenant.id)?;
            for (name, field) in std::iter::once((&tenant.id, format!("{field}.id")))
                .chain(tenant.domains.iter().map(|domain| (domain, format!("{field}.domains"))))
            {
                if known.names.insert(name.to_ascii_lowercase(), index).is_some() {
                    return Err(Error { field, message: format!("`{name}` names another tenant already") });
                }
            }
            let mut applications = HashMap::new();
            for (index, application) in tenant.applications.iter().enumerate() {
                let field = format!("{field}.applications[{index}]");
                let parsed = parse(application, &id, directory, &field)?;
                if applications.insert(application.client_id.to_ascii_lowercase(), parsed).is_some() {
                    let message = format!("`{}` is an application of this tenant already", application.client_id);
                    return Err(Error { field: format!("{field}.clientId"), message });
                }
            }
            known.tenants.push(KnownTenant { id, applications });
        }
        for (index, identity) in directory.managed_identities.iter().enumerate() {
            let field = format!("directory.managedIdentities[{index}]");
            let resource_id = given(&format!("{field}.resourceId"), &identity.resource_id)?;
            if known.managed.iter().any(|other| same(other.resource_id.as_deref(), &resource_id)) {
                let message = format!("`{resource_id}` is on the VM already");
                return Err(Error { field: format!("{field}.resourceId"), message });
            }
            let principal = Principal {
                tenant: given(&format!("{field}.tenantId"), &identity.tenant_id)?,
                client_id: given(&format!("{field}.clientId"), &identity.client_id)?,
                object_id: object_id(identity.object_id.as_deref(), &identity.client_id),
                resource_id: Some(resource_id),
                groups: Vec::new(),
            };
            known.managed.push(principal.joined(directory));
        }
        if let Some(identity) = &directory.system_assigned {
            let principal = Principal {
                tenant: given("directory.systemAssigned.tenantId", &identity.tenant_id)?,
                client_id: given("directory.systemAssigned.clientId", &identity.client_id)?,
                object_id: object_id(identity.object_id.as_deref(), &identity.client_id),
                resource_id: Some(vm.to_owned()),
                groups: Vec::new(),
            };
            known.system = Some(principal.joined(directory));
        }
        for (index, vault) in directory.vaults.iter().enumerate() {
            let field = format!("directory.vaults[{index}]");
            let parsed = KnownVault::new(vault, &field)?;
            if known.vaults.insert(vault.host.to_ascii_lowercase(), parsed).is_some() {
                let message = format!("there is a vault `{}` already", vault.host);
                return Err(Error { field: format!("{field}.host"), message });
            }
        }
        Ok(known)
    }

    /// By id or domain.
    pub(super) fn tenant(&self, name: &str) -> Option<&KnownTenant> {
        self.names.get(&name.to_ascii_lowercase()).map(|&index| &self.tenants[index])
    }

    /// Whether a tenant has a service principal for the resource.
    pub(super) fn knows_resource(&self, resource: &str) -> bool {
        let rest = resource.strip_prefix("https://").or_else(|| resource.strip_prefix("api://"));
        let plausible = rest.is_some_and(|rest| {
            !rest.trim_matches('/').is_empty() && !rest.contains(|c: char| c.is_whitespace() || c.is_control())
        });
        (plausible || uuid::Uuid::try_parse(resource).is_ok())
            && !self.unknown_resources.contains(&without_slash(resource))
    }
}

/// Compares ids as Azure does.
pub(super) fn same(one: Option<&str>, other: &str) -> bool {
    one.is_some_and(|one| one.eq_ignore_ascii_case(other))
}

fn without_slash(resource: &str) -> String {
    resource.trim_end_matches('/').to_ascii_lowercase()
}

pub(super) fn given(field: &str, value: &str) -> Result<String, Error> {
    if value.trim().is_empty() {
        return Err(Error { field: field.to_owned(), message: "must not be empty".to_owned() });
    }
    Ok(value.to_owned())
}

/// The object id given, or one that depends on the client id only.
fn object_id(given: Option<&str>, client_id: &str) -> String {
    given.map_or_else(
        || {
            let hash = Sha256::digest(client_id.to_ascii_lowercase());
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&hash[..16]);
            uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
        },
        str::to_owned,
    )
}

fn parse(
    application: &Application,
    tenant: &str,
    directory: &Directory,
    field: &str,
) -> Result<KnownApplication, Error> {
    let certificates = application
        .certificates
        .iter()
        .enumerate()
        .map(|(index, registered)| {
            let failed = |message: String| Error { field: format!("{field}.certificates[{index}]"), message };
            let text = registered.pem.load().map_err(|error| failed(error.to_string()))?;
            let parsed = certificate(text.as_bytes()).map_err(failed)?;
            Ok(KnownCertificate { since: registered.since.map(Timestamp::as_second), ..parsed })
        })
        .collect::<Result<_, _>>()?;
    let client_id = given(&format!("{field}.clientId"), &application.client_id)?;
    for (index, secret) in application.secrets.iter().enumerate() {
        given(&format!("{field}.secrets[{index}].value"), secret.value.expose())?;
    }
    let trusted = application.trusted_subjects.iter().enumerate().map(|(index, trusted)| {
        let field = format!("{field}.trustedSubjects[{index}]");
        let failed = |message: String| Error { field: format!("{field}.authority"), message };
        let text = trusted.authority.load().map_err(|error| failed(error.to_string()))?;
        let authority = CertificateDer::from_pem_slice(text.as_bytes())
            .map_err(|error| failed(format!("not a certificate in PEM: {error}")))?;
        Ok(KnownSubject { authority, subject: given(&format!("{field}.subject"), &trusted.subject)? })
    });
    let trusted = trusted.collect::<Result<_, _>>()?;
    if application.federated_credentials.len() > MOST_FEDERATED {
        let message = format!("an application has at most {MOST_FEDERATED} federated credentials");
        return Err(Error { field: format!("{field}.federatedCredentials"), message });
    }
    for (index, federated) in application.federated_credentials.iter().enumerate() {
        let field = format!("{field}.federatedCredentials[{index}]");
        given(&format!("{field}.issuer"), &federated.issuer)?;
        given(&format!("{field}.subject"), &federated.subject)?;
        given(&format!("{field}.audience"), &federated.audience)?;
    }
    let principal = Principal {
        tenant: tenant.to_owned(),
        object_id: object_id(application.object_id.as_deref(), &client_id),
        client_id,
        resource_id: None,
        groups: Vec::new(),
    };
    Ok(KnownApplication {
        principal: principal.joined(directory),
        certificates,
        trusted,
        federated: application.federated_credentials.clone(),
        secrets: application.secrets.clone(),
    })
}

/// What tells a certificate from others.
pub(super) fn thumbprint(pem: &Pem) -> Result<Vec<u8>, Error> {
    let failed = |message: String| Error { field: "certificate".to_owned(), message };
    let text = pem.load().map_err(|error| failed(error.to_string()))?;
    certificate(text.as_bytes()).map(|known| known.sha256).map_err(failed)
}

fn certificate(pem: &[u8]) -> Result<KnownCertificate, String> {
    let der = CertificateDer::from_pem_slice(pem).map_err(|error| format!("not a certificate in PEM: {error}"))?;
    certificate_der(&der)
}

pub(super) fn certificate_der(der: &[u8]) -> Result<KnownCertificate, String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).map_err(|error| format!("not X.509: {error}"))?;
    if !matches!(parsed.public_key().parsed(), Ok(x509_parser::public_key::PublicKey::RSA(_))) {
        return Err("not an RSA certificate; Entra takes no other for client assertions".to_owned());
    }
    Ok(KnownCertificate {
        sha1: digest(&SHA1_FOR_LEGACY_USE_ONLY, der).as_ref().to_vec(),
        sha256: digest(&SHA256, der).as_ref().to_vec(),
        public_key: parsed.public_key().subject_public_key.data.to_vec(),
        not_before: parsed.validity().not_before.timestamp(),
        not_after: parsed.validity().not_after.timestamp(),
        since: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(json: serde_json::Value) -> Result<Known, Error> {
        Known::new(&serde_json::from_value(json).unwrap(), "/vm")
    }

    #[test]
    fn what_is_wrong_with_a_directory_is_said_with_its_place() {
        let tenant = |applications: serde_json::Value| serde_json::json!({"tenants": [{"id": "t", "applications": applications}]});
        let cases = [
            (serde_json::json!({"tenants": [{"id": " "}]}), "directory.tenants[0].id: must not be empty"),
            (
                serde_json::json!({"tenants": [{"id": "t", "domains": ["x.example"]}, {"id": "X.example"}]}),
                "directory.tenants[1].id: `X.example` names another tenant already",
            ),
            (
                tenant(serde_json::json!([{"clientId": "c"}, {"clientId": "C"}])),
                "directory.tenants[0].applications[1].clientId: `C` is an application of this tenant already",
            ),
            (
                tenant(serde_json::json!([{"clientId": "c", "secrets": [{"value": ""}]}])),
                "directory.tenants[0].applications[0].secrets[0].value: must not be empty",
            ),
            (
                serde_json::json!({"managedIdentities": [
                    {"resourceId": "/r", "clientId": "a", "tenantId": "t"}, {"resourceId": "/R", "clientId": "b", "tenantId": "t"}
                ]}),
                "directory.managedIdentities[1].resourceId: `/R` is on the VM already",
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(known(json).unwrap_err().to_string(), expected);
        }
        for (pem, expected) in [
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not X.509"),
            ("/nowhere.pem", "nor a readable file"),
        ] {
            let error = known(tenant(serde_json::json!([{"clientId": "c", "certificates": [pem]}]))).unwrap_err();
            assert_eq!(error.field, "directory.tenants[0].applications[0].certificates[0]");
            assert!(error.message.contains(expected), "{error}");
        }
    }

    #[test]
    fn only_rsa_certificates_can_be_registered() {
        let authority = super::super::ca::Authority::generate().unwrap();
        let error = certificate(authority.certificate_pem().as_bytes()).unwrap_err();
        assert!(error.starts_with("not an RSA certificate"), "{error}");
    }

    #[test]
    fn resources_are_known_unless_misshapen_or_listed() {
        let known = known(serde_json::json!({"unknownResources": ["https://Nowhere.example/"]})).unwrap();
        for resource in
            ["https://vault.azure.net", "https://vault.azure.net/", "api://x", "00000003-0000-0000-c000-000000000000"]
        {
            assert!(known.knows_resource(resource), "{resource}");
        }
        for resource in [
            "https://nowhere.example",
            "https://nowhere.example/",
            "vault",
            "http://x",
            "https://",
            "https://a b",
            "api:///",
        ] {
            assert!(!known.knows_resource(resource), "{resource}");
        }
    }

    #[test]
    fn a_secret_is_right_wrong_or_expired() {
        let now: Timestamp = "2026-11-24T09:00:00Z".parse().unwrap();
        let known = known(serde_json::json!({"tenants": [{"id": "t", "applications": [{"clientId": "c", "secrets": [
            {"value": "old", "expires": "2026-11-24T09:00:00Z"}, {"value": "new", "expires": "2026-11-24T09:00:01Z"}, {"value": "ever"}
        ]}]}]}))
        .unwrap();
        let application = known.tenant("T").unwrap().application("C").unwrap();
        for (secret, expected) in [
            ("old", SecretCheck::Expired),
            ("new", SecretCheck::Right),
            ("ever", SecretCheck::Right),
            ("Ever", SecretCheck::Wrong),
            ("", SecretCheck::Wrong),
        ] {
            assert_eq!(application.check_secret(secret, now), expected, "{secret}");
        }
    }
}
