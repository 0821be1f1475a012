//! Manifests → what the emulated Azure must know for them to work: identities on the VM from type 0, applications with their
//! credentials from types 1 and 2. `lab.yaml` overrides.
//!
//! Bad manifests are the product's business (tests drive them through the lab on purpose): what cannot be seeded is skipped
//! with a warning, and the application is registered without that credential, so that Entra's answer is about the credential.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::emulator::{
    Application, ClientSecret, Directory, Fault, Group, KeyVaultConfig, Limits, ManagedIdentity, Pem, SystemAssigned,
    Tenant, VirtualMachine, vaults::Vault,
};

/// The tenant of the VM and its identities, unless `lab.yaml` names another.
pub const TENANT: &str = "11111111-1111-1111-1111-111111111111";

/// `lab.yaml` in the directory of manifests. All of it optional; unknown fields are errors.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Overrides {
    /// Tenant (a GUID) of managed identities whose manifest names none.
    pub tenant: Option<String>,
    /// Tenants with applications: an application here replaces the seeded one with the same client id.
    pub tenants: Vec<Tenant>,
    /// Identities on the VM: one here replaces the seeded one with the same resource id.
    pub managed_identities: Vec<ManagedIdentity>,
    /// Client ids of applications and resource ids of managed identities that Azure must not know although manifests name them.
    pub absent: Vec<String>,
    /// The VM's own identity.
    pub system_assigned: Option<SystemAssigned>,
    /// Resources that no tenant knows.
    pub unknown_resources: Vec<String>,
    /// Directory groups: one here replaces the seeded one with the same id.
    pub groups: Vec<Group>,
    /// Key Vaults: what one here names (secrets, certificates; roles, if there are any) replaces what was seeded under that name.
    pub vaults: Vec<Vault>,
    /// The token service.
    pub entra: Entra,
    /// The metadata service.
    pub imds: Imds,
    /// Key Vault.
    pub key_vault: KeyVaultConfig,
    /// The node's projected service-account token.
    pub projected_token: ProjectedToken,
    /// Has both binaries and the emulators follow a clock of the lab's own (`identity-lab clock`), which begins at this time:
    /// `now`, or an RFC 3339 time such as `2026-11-27T23:59:00-08:00`.
    pub clock: Option<String>,
    /// Faults that are on from the start.
    pub faults: Vec<Fault>,
    /// Further host names that resolve to the emulators.
    pub hosts: Vec<String>,
    /// Further arguments of identity-node.
    pub node_arguments: Vec<String>,
    /// Further arguments of identity-controller.
    pub controller_arguments: Vec<String>,
}

/// `projectedToken` of `lab.yaml`: what a kubelet is told about the token that a pod has a volume for.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProjectedToken {
    /// `expirationSeconds`. As a kubelet does, the lab replaces the token when a fifth of it is left. (A real API server issues
    /// none for less than 600.)
    pub lifetime_seconds: u32,
    /// `audience`.
    pub audience: String,
}

impl Default for ProjectedToken {
    fn default() -> Self {
        Self { lifetime_seconds: 3600, audience: crate::emulator::TOKEN_EXCHANGE.to_owned() }
    }
}

/// `entra` of `lab.yaml`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Entra {
    /// Milliseconds by which each answer is held back.
    pub latency_ms: u64,
    /// Lifetime of a token in seconds.
    pub token_lifetime_seconds: Option<u32>,
    /// `refresh_in` of answers, in seconds; none when left out.
    pub refresh_in_seconds: Option<u32>,
    /// `Retry-After` of the fault `entra-429`, in seconds.
    pub retry_after_seconds: Option<u32>,
    /// Whether one client assertion may be used several times.
    pub accept_replayed_assertions: bool,
}

/// `imds` of `lab.yaml`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Imds {
    /// Milliseconds by which each answer is held back.
    pub latency_ms: u64,
    /// Lifetime of a token in seconds.
    pub token_lifetime_seconds: Option<u32>,
    /// `refresh_in` of answers, in seconds; none when left out.
    pub refresh_in_seconds: Option<u32>,
    /// Limits; the real service's when left out.
    pub limits: Option<Limits>,
    /// What the VM is.
    pub virtual_machine: Option<VirtualMachine>,
}

impl Overrides {
    /// Reads `lab.yaml`.
    ///
    /// # Errors
    /// What is wrong, with line and column.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Option<Self> = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        Ok(value.unwrap_or_default())
    }
}

/// What Azure must know, and what could not be told.
#[derive(Debug, Default)]
pub struct Seed {
    /// The emulators' directory.
    pub directory: Directory,
    /// What was skipped and why; never a secret's value.
    pub warnings: Vec<String>,
}

/// Makes the emulators' directory from `objects`, whatever their order.
pub fn seed(objects: &[Value], overrides: &Overrides) -> Seed {
    let mut seeder = Seeder {
        secrets: BTreeMap::new(),
        seed: Seed::default(),
        tenant: overrides.tenant.as_deref().unwrap_or(TENANT),
    };
    for object in objects {
        if text(object, "/kind") == Some("Secret")
            && let Some(name) = text(object, "/metadata/name")
        {
            seeder.secrets.insert((namespace(object).to_owned(), name.to_owned()), object);
        }
    }
    // A tenant in which nothing is registered is still a tenant.
    seeder.tenant(seeder.tenant);
    for object in objects {
        if text(object, "/kind") == Some("AzureIdentity") {
            seeder.identity(object);
        }
    }
    seeder.overridden(overrides)
}

struct Seeder<'a> {
    secrets: BTreeMap<(String, String), &'a Value>,
    seed: Seed,
    tenant: &'a str,
}

impl Seeder<'_> {
    fn identity(&mut self, identity: &Value) {
        let name = format!("AzureIdentity {}/{}", namespace(identity), text(identity, "/metadata/name").unwrap_or("?"));
        let spec =
            |field: &str| text(identity, &format!("/spec/{field}")).map(str::trim).filter(|value| !value.is_empty());
        let client = spec("clientID").map(str::to_owned);
        if let Some(client) = client.as_deref().filter(|client| !is_guid(client)) {
            return self.warn(&name, &format!("clientID {client:?} is no GUID"));
        }
        let kind = identity.pointer("/spec/type").map_or(Some(0), Value::as_i64);
        match kind {
            Some(0) => {
                let Some(resource) = spec("resourceID") else {
                    return self.warn(&name, "has no resourceID to put on the VM");
                };
                let tenant = spec("tenantID").filter(|tenant| is_guid(tenant)).unwrap_or(self.tenant).to_owned();
                let known = &mut self.seed.directory.managed_identities;
                if known.iter().any(|known| known.resource_id.eq_ignore_ascii_case(resource)) {
                    return;
                }
                known.push(ManagedIdentity {
                    resource_id: resource.to_owned(),
                    client_id: client.unwrap_or_else(|| guid_for(&resource.to_ascii_lowercase())),
                    object_id: spec("objectID").filter(|object| is_guid(object)).map(str::to_owned),
                    tenant_id: tenant,
                });
            }
            Some(kind @ (1 | 2)) => {
                let (Some(client), Some(tenant)) = (client, spec("tenantID")) else {
                    return self.warn(&name, "has no clientID or no tenantID to register");
                };
                let credential = self.credential(identity, kind);
                let mut application = Application {
                    object_id: spec("objectID").filter(|object| is_guid(object)).map(str::to_owned),
                    ..Application::new(client)
                };
                match credential {
                    Ok(Credential::Secret(value)) => {
                        application.secrets.push(ClientSecret { value: value.into(), expires: None, since: None });
                    }
                    Ok(Credential::Certificate(pem)) => application.certificates.push(Pem::from(pem).into()),
                    Err(why) => self.warn(&name, &format!("its application has no credential: {why}")),
                }
                let more = identity.pointer("/spec/auxiliaryTenantIDs").and_then(Value::as_array).into_iter().flatten();
                let tenants: Vec<String> = std::iter::once(tenant)
                    .chain(more.filter_map(Value::as_str))
                    .map(|tenant| tenant.trim().to_owned())
                    .collect();
                for tenant in tenants {
                    let applications = &mut self.tenant(&tenant).applications;
                    // Several identities may name one application: it has all their credentials.
                    match applications
                        .iter_mut()
                        .find(|known| known.client_id.eq_ignore_ascii_case(&application.client_id))
                    {
                        Some(known) => {
                            known.secrets.extend(application.secrets.iter().cloned());
                            known.certificates.extend(application.certificates.iter().cloned());
                        }
                        None => applications.push(application.clone()),
                    }
                }
            }
            _ => self.warn(&name, "has a type that the lab does not know"),
        }
    }

    /// The tenant that manifests call `name`: a GUID, or a domain of a tenant with a made-up id.
    fn tenant(&mut self, name: &str) -> &mut Tenant {
        let id = if is_guid(name) { name.to_ascii_lowercase() } else { guid_for(name) };
        let tenants = &mut self.seed.directory.tenants;
        let index = tenants.iter().position(|tenant| tenant.id.eq_ignore_ascii_case(&id)).unwrap_or_else(|| {
            let domains = if is_guid(name) { Vec::new() } else { vec![name.to_owned()] };
            tenants.push(Tenant { id, domains, applications: Vec::new() });
            tenants.len() - 1
        });
        &mut tenants[index]
    }

    fn credential(&self, identity: &Value, kind: i64) -> Result<Credential, String> {
        let reference =
            |field: &str| text(identity, &format!("/spec/clientPassword/{field}")).filter(|value| !value.is_empty());
        let name = reference("name").ok_or("clientPassword.name is missing")?;
        let namespace = reference("namespace").unwrap_or_else(|| namespace(identity));
        let secret = self
            .secrets
            .get(&(namespace.to_owned(), name.to_owned()))
            .ok_or_else(|| format!("there is no Secret {namespace}/{name}"))?;
        let values = values(secret)?;
        if kind == 1 {
            let value = match reference("key") {
                Some(key) => values.get(key).ok_or_else(|| format!("Secret {namespace}/{name} has no key {key}"))?,
                None if values.len() == 1 => values.values().next().ok_or("no value")?,
                None => values
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case("clientSecret"))
                    .map(|(_, value)| value)
                    .ok_or_else(|| format!("Secret {namespace}/{name} has several keys and none is clientSecret"))?,
            };
            let value = String::from_utf8(value.clone())
                .map_err(|_| format!("Secret {namespace}/{name}: the secret is not text"))?;
            return Ok(Credential::Secret(value));
        }
        let find = |wanted: &str| {
            values.iter().find(|(key, _)| key.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.as_slice())
        };
        let bytes = reference("key")
            .and_then(find)
            .or_else(|| find("certificate"))
            .or_else(|| find("tls.crt"))
            .ok_or_else(|| format!("Secret {namespace}/{name} has no key certificate (or tls.crt)"))?;
        let password = String::from_utf8_lossy(find("password").unwrap_or_default()).into_owned();
        certificate(bytes, &password)
            .map(Credential::Certificate)
            .map_err(|why| format!("Secret {namespace}/{name}: {why}"))
    }

    fn warn(&mut self, what: &str, why: &str) {
        self.seed.warnings.push(format!("{what}: {why}"));
    }

    fn overridden(mut self, overrides: &Overrides) -> Seed {
        for tenant in &overrides.tenants {
            let seeded = self.tenant(&tenant.id.clone());
            seeded.domains.extend(tenant.domains.iter().cloned());
            for application in &tenant.applications {
                seeded.applications.retain(|known| !known.client_id.eq_ignore_ascii_case(&application.client_id));
                seeded.applications.push(application.clone());
            }
        }
        let directory = &mut self.seed.directory;
        for identity in &overrides.managed_identities {
            directory.managed_identities.retain(|known| !known.resource_id.eq_ignore_ascii_case(&identity.resource_id));
            directory.managed_identities.push(identity.clone());
        }
        let absent = |id: &str| overrides.absent.iter().any(|absent| absent.eq_ignore_ascii_case(id));
        directory.managed_identities.retain(|identity| !absent(&identity.resource_id));
        for tenant in &mut directory.tenants {
            tenant.applications.retain(|application| !absent(&application.client_id));
        }
        directory.system_assigned.clone_from(&overrides.system_assigned);
        directory.unknown_resources.clone_from(&overrides.unknown_resources);
        self.seed
    }
}

enum Credential {
    Secret(String),
    Certificate(String),
}

fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer).and_then(Value::as_str)
}

fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace").filter(|namespace| !namespace.is_empty()).unwrap_or("default")
}

/// The values of a Secret; `stringData` wins, as in Kubernetes.
fn values(secret: &Value) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let mut found = BTreeMap::new();
    for (key, value) in secret.get("data").and_then(Value::as_object).into_iter().flatten() {
        let encoded: String = value.as_str().unwrap_or_default().split_ascii_whitespace().collect();
        let decoded = base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .map_err(|_| format!("data.{key} is not base64"))?;
        found.insert(key.clone(), decoded);
    }
    for (key, value) in secret.get("stringData").and_then(Value::as_object).into_iter().flatten() {
        found.insert(key.clone(), value.as_str().unwrap_or_default().as_bytes().to_vec());
    }
    Ok(found)
}

/// The leaf certificate as PEM, from PKCS#12 or PEM.
fn certificate(bytes: &[u8], password: &str) -> Result<String, String> {
    let der = if bytes.trim_ascii_start().starts_with(b"-----BEGIN") {
        x509_parser::pem::Pem::iter_from_buffer(bytes)
            .filter_map(Result::ok)
            .find(|pem| pem.label == "CERTIFICATE")
            .map(|pem| pem.contents)
            .ok_or("the PEM has no certificate")?
    } else {
        let store = p12_keystore::KeyStore::from_pkcs12(bytes, password).map_err(|error| {
            format!("the certificate is neither PEM nor PKCS#12 that opens with its password: {error}")
        })?;
        let chain =
            store.private_key_chain().map(|(_, entry)| entry.chain()).ok_or("the PKCS#12 has no private key")?;
        chain.first().map(|leaf| leaf.as_der().to_vec()).ok_or("the PKCS#12 has no certificate")?
    };
    let (_, parsed) = x509_parser::parse_x509_certificate(&der)
        .map_err(|error| format!("the certificate does not parse: {error}"))?;
    if !matches!(parsed.public_key().parsed(), Ok(x509_parser::public_key::PublicKey::RSA(_))) {
        return Err("the certificate's key is not RSA, and Entra takes no other".to_owned());
    }
    let body = base64::engine::general_purpose::STANDARD.encode(&der);
    let lines: Vec<&str> = body.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    Ok(format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n")))
}

fn is_guid(text: &str) -> bool {
    text.len() == 36 && uuid::Uuid::try_parse(text).is_ok()
}

/// A GUID that is always the same for the same name.
fn guid_for(name: &str) -> String {
    let digest = Sha256::digest(name.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{emulator::credentials, manifest};

    const CLIENT: &str = "22222222-2222-2222-2222-222222222222";
    const OTHER: &str = "33333333-3333-3333-3333-333333333333";
    const RESOURCE: &str =
        "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/u";

    fn objects(text: &str) -> Vec<Value> {
        let mut all = Vec::new();
        for document in manifest::documents(text) {
            manifest::flatten(document.value.unwrap(), &mut all);
        }
        all
    }

    fn seeded(text: &str) -> Seed {
        seed(&objects(text), &Overrides::default())
    }

    fn application(kind: u8, key: &str) -> String {
        format!(
            "kind: AzureIdentity\nmetadata: {{name: i, namespace: team}}\nspec: {{type: {kind}, clientID: {CLIENT}, tenantID: {OTHER}, \
             clientPassword: {{name: s{key}}}}}\n---\n"
        )
    }

    #[test]
    fn managed_identities_are_on_the_vm() {
        let identity = |name: &str, spec: &str| {
            format!("kind: AzureIdentity\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n")
        };
        let seed = seeded(
            &(identity("a", &format!("resourceID: {RESOURCE}, clientID: {CLIENT}"))
                + &identity("b", &format!("type: 0, resourceID: {RESOURCE}2"))
                + &identity("same", &format!("type: 0, resourceID: {}", RESOURCE.to_uppercase()))
                + &identity("bad", "type: 0")),
        );
        let identities = &seed.directory.managed_identities;
        assert_eq!(identities.len(), 2);
        assert_eq!((identities[0].client_id.as_str(), identities[0].tenant_id.as_str()), (CLIENT, TENANT));
        assert!(is_guid(&identities[1].client_id), "a client id that the manifest leaves out is made up");
        assert_eq!(seed.warnings.len(), 1, "{:?}", seed.warnings);
    }

    #[test]
    fn a_client_secret_is_found_as_the_product_must_find_it() {
        for (key, secret, expected) in [
            ("", "stringData: {anything: hush}", Some("hush")),
            ("", "data: {clientSecret: aHVzaA==, other: eA==}", Some("hush")),
            (", key: mine", "stringData: {mine: hush, clientSecret: other}", Some("hush")),
            ("", "data: {a: aHVzaA==, b: eA==}", None),
            (", key: none", "stringData: {clientSecret: hush}", None),
            ("", "data: {clientSecret: '!'}", None),
        ] {
            let seed = seeded(&format!(
                "{}kind: Secret\nmetadata: {{name: s, namespace: team}}\n{secret}\n",
                application(1, key)
            ));
            let tenant = seed.directory.tenants.iter().find(|tenant| tenant.id == OTHER).unwrap();
            let found = tenant.applications[0].secrets.first().map(|secret| secret.value.expose());
            assert_eq!(found, expected, "{key} {secret}");
            assert_eq!(seed.warnings.is_empty(), expected.is_some(), "{:?}", seed.warnings);
        }
    }

    #[test]
    fn a_certificate_is_read_from_pkcs12_and_from_pem() {
        let made = credentials::self_signed_rsa("demo").unwrap();
        let p12 = base64::engine::general_purpose::STANDARD.encode(credentials::pkcs12(&made, "pw").unwrap());
        let pem = json!(format!("{}{}", made.key_pem, made.certificate_pem));
        for (secret, expected) in [
            (format!("data: {{certificate: {p12}, password: cHc=}}"), true),
            (format!("data: {{certificate: {p12}, password: eA==}}"), false),
            (format!("stringData: {{certificate: {pem}}}"), true),
            ("stringData: {certificate: rubbish}".to_owned(), false),
            ("stringData: {other: x}".to_owned(), false),
        ] {
            let seed = seeded(&format!(
                "{}kind: Secret\nmetadata: {{name: s, namespace: team}}\n{secret}\n",
                application(2, "")
            ));
            let tenant = seed.directory.tenants.iter().find(|tenant| tenant.id == OTHER).unwrap();
            assert_eq!(tenant.applications[0].certificates.len(), usize::from(expected), "{:?}", seed.warnings);
            assert_eq!(seed.warnings.is_empty(), expected);
        }
    }

    #[test]
    fn lab_yaml_has_the_last_word() {
        let overrides = Overrides::parse(&format!(
            "tenants: [{{id: {OTHER}, applications: [{{clientId: {CLIENT}, secrets: [{{value: changed}}]}}]}}]\nabsent: ['{RESOURCE}']\nimds: {{latencyMs: 5, limits: {{concurrent: null}}}}\nfaults: [imds-429]\n"
        ))
        .unwrap();
        let text = format!(
            "{}kind: Secret\nmetadata: {{name: s, namespace: team}}\nstringData: {{a: b}}\n---\nkind: AzureIdentity\nmetadata: {{name: m}}\nspec: {{resourceID: {RESOURCE}}}\n",
            application(1, "")
        );
        let seed = seed(&objects(&text), &overrides);
        let tenant = seed.directory.tenants.iter().find(|tenant| tenant.id == OTHER).unwrap();
        assert_eq!(tenant.applications.len(), 1);
        assert_eq!(tenant.applications[0].secrets[0].value.expose(), "changed");
        assert!(seed.directory.managed_identities.is_empty());
        assert!(Overrides::parse("tenant: x\nlatency: 3\n").unwrap_err().contains("latency"));
        assert!(Overrides::parse("# nothing\n").unwrap().faults.is_empty());
    }

    #[test]
    fn nonsense_is_skipped_with_a_warning() {
        let seed = seeded(
            "kind: AzureIdentity\nmetadata: {name: a}\nspec: {type: 7}\n---\nkind: AzureIdentity\nmetadata: {name: b}\nspec: {type: 1}\n---\n\
             kind: AzureIdentity\n---\nkind: AzureIdentity\nmetadata: {name: d}\nspec: {clientID: nope, resourceID: x}\n---\nkind: Secret\n---\njust text\n",
        );
        assert_eq!(seed.warnings.len(), 4, "{:?}", seed.warnings);
        assert!(seed.directory.managed_identities.is_empty());
    }
}
