//! Manifests → what the emulated Azure must know for them to work: identities on the VM from type 0, applications with their
//! credentials from types 1 and 2, with federated credentials from type 3, vaults with credentials from `keyVault`. `lab.yaml`
//! overrides.
//!
//! Bad manifests are the product's business (tests drive them through the lab on purpose): what cannot be seeded is skipped
//! with a warning, and the application is registered without that credential, so that Entra's answer is about the credential.

mod overrides;
#[cfg(test)]
mod tests;
mod vaults;

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

pub use self::overrides::{Entra, Imds, Overrides, ProjectedToken};
use self::vaults::Minted;
use crate::{
    emulator::{
        Application, ClientSecret, Directory, FederatedCredential, Issuer, ManagedIdentity, Pem, TOKEN_EXCHANGE, Tenant,
    },
    node::projected::NODE_ACCOUNT,
};

/// Federated credentials that Entra lets an application have.
const MOST_FEDERATED: usize = 20;

/// The tenant of the VM and its identities, unless `lab.yaml` names another.
pub const TENANT: &str = "11111111-1111-1111-1111-111111111111";

/// What Azure must know, and what could not be told.
#[derive(Debug, Default)]
pub struct Seed {
    /// The emulators' directory.
    pub directory: Directory,
    /// What was skipped and why; never a secret's value.
    pub warnings: Vec<String>,
}

/// What seeding needs besides manifests, and what it made up before: the same manifests are seeded alike each time.
#[derive(Debug)]
pub struct World {
    issuer: Issuer,
    minted: BTreeMap<String, Minted>,
}

impl World {
    /// One whose service accounts' tokens are this issuer's.
    pub fn new(issuer: Issuer) -> Self {
        Self { issuer, minted: BTreeMap::new() }
    }
}

/// Makes the emulators' directory from `objects`, whatever their order.
pub fn seed(objects: &[Value], overrides: &Overrides, world: &mut World) -> Seed {
    let mut seeder = Seeder {
        objects,
        secrets: BTreeMap::new(),
        seed: Seed::default(),
        tenant: overrides.tenant.as_deref().unwrap_or(TENANT),
        world,
    };
    seeder.seed.directory.issuers.push(seeder.world.issuer.clone());
    for object in objects {
        if text(object, "/kind") == Some("Secret")
            && let Some(name) = text(object, "/metadata/name")
        {
            seeder.secrets.insert((namespace(object).to_owned(), name.to_owned()), object);
        }
    }
    // A tenant in which nothing is registered is still a tenant, and manifests may call those of `lab.yaml` by their domains.
    seeder.tenant(seeder.tenant);
    for tenant in &overrides.tenants {
        let domains = &mut seeder.tenant(&tenant.id).domains;
        domains.extend(tenant.domains.iter().cloned());
    }
    for object in objects {
        if text(object, "/kind") == Some("AzureIdentity") {
            seeder.identity(object);
        }
    }
    seeder.overridden(overrides)
}

struct Seeder<'a> {
    objects: &'a [Value],
    world: &'a mut World,
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
            Some(kind @ 1..=3) => {
                let (Some(client), Some(tenant)) = (client, spec("tenantID")) else {
                    return self.warn(&name, "has no clientID or no tenantID to register");
                };
                let credential = match kind {
                    3 => Ok(Credential::Federated(self.federated(identity, &name))),
                    kind if identity.pointer("/spec/keyVault").is_some_and(Value::is_object) => {
                        self.vaulted(identity, kind, tenant)
                    }
                    kind => self.credential(identity, kind),
                };
                let bare = Application {
                    object_id: spec("objectID").filter(|object| is_guid(object)).map(str::to_owned),
                    ..Application::new(client)
                };
                let mut application = bare.clone();
                match credential {
                    Ok(Credential::Secret(value)) => {
                        application.secrets.push(ClientSecret { value: value.into(), expires: None, since: None });
                    }
                    Ok(Credential::Certificate(pem)) => application.certificates.push(Pem::from(pem).into()),
                    Ok(Credential::Federated(federated)) => application.federated_credentials = federated,
                    Err(why) => self.warn(&name, &format!("its application has no credential: {why}")),
                }
                // The emulators take all of it or nothing: what they would refuse must not keep others from being seeded.
                if let Err(error) = alone(&application).check() {
                    self.warn(&name, &format!("its application has no credential: {error}"));
                    application = bare;
                }
                let more = identity.pointer("/spec/auxiliaryTenantIDs").and_then(Value::as_array).into_iter().flatten();
                let tenants: Vec<String> = std::iter::once(tenant)
                    .chain(more.filter_map(Value::as_str))
                    .map(|tenant| tenant.trim().to_owned())
                    .filter(|tenant| !tenant.is_empty())
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
                            for federated in &application.federated_credentials {
                                let known = &mut known.federated_credentials;
                                if !known.contains(federated) && known.len() < MOST_FEDERATED {
                                    known.push(federated.clone());
                                }
                            }
                        }
                        None => applications.push(application.clone()),
                    }
                }
            }
            _ => self.warn(&name, "has a type that the lab does not know"),
        }
    }

    /// What makes Entra accept the assertions that the product presents for an identity of type 3.
    fn federated(&mut self, identity: &Value, name: &str) -> Vec<FederatedCredential> {
        let audience = text(identity, "/spec/federated/audience").filter(|audience| !audience.is_empty());
        // Each cloud has an audience of its own.
        let endpoint = text(identity, "/spec/adEndpoint").unwrap_or_default().trim_end_matches('/');
        let exchange = match endpoint.rsplit_once('.').map_or("", |(_, domain)| domain) {
            "us" => "api://AzureADTokenExchangeUSGov",
            "cn" => "api://AzureADTokenExchangeChina",
            _ => TOKEN_EXCHANGE,
        };
        let credential = |namespace: &str, account: &str| FederatedCredential {
            issuer: self.world.issuer.issuer.clone(),
            subject: format!("system:serviceaccount:{namespace}:{account}"),
            audience: audience.unwrap_or(exchange).to_owned(),
            since: None,
        };
        if text(identity, "/spec/federated/subject").is_none_or(|subject| subject != "Pod") {
            return vec![credential(NODE_ACCOUNT.0, NODE_ACCOUNT.1)];
        }
        let home = namespace(identity);
        let pods =
            self.objects.iter().filter(|object| text(object, "/kind") == Some("Pod") && namespace(object) == home);
        let account = |pod: &Value| text(pod, "/spec/serviceAccountName").unwrap_or("default").to_owned();
        let accounts: BTreeSet<String> = pods.map(account).collect();
        let mut all: Vec<_> = accounts.iter().map(|account| credential(home, account)).collect();
        if all.len() > MOST_FEDERATED {
            self.warn(
                name,
                &format!("Entra allows {MOST_FEDERATED} federated credentials, and its pods have more accounts"),
            );
            all.truncate(MOST_FEDERATED);
        }
        all
    }

    /// The tenant that manifests call `name`: a GUID, or a domain of a tenant with a made-up id.
    fn tenant(&mut self, name: &str) -> &mut Tenant {
        let id = if is_guid(name) { name.to_ascii_lowercase() } else { guid_for(&name.to_ascii_lowercase()) };
        let tenants = &mut self.seed.directory.tenants;
        let is = |tenant: &Tenant| {
            tenant.id.eq_ignore_ascii_case(&id) || tenant.domains.iter().any(|domain| domain.eq_ignore_ascii_case(name))
        };
        let index = tenants.iter().position(is).unwrap_or_else(|| {
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
            if value.trim().is_empty() {
                return Err(format!("Secret {namespace}/{name}: the secret is empty"));
            }
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
        for group in &overrides.groups {
            directory.groups.retain(|known| !known.id.eq_ignore_ascii_case(&group.id));
            directory.groups.push(group.clone());
        }
        for vault in &overrides.vaults {
            vaults::merge(&mut directory.vaults, vault);
        }
        directory.system_assigned.clone_from(&overrides.system_assigned);
        directory.unknown_resources.clone_from(&overrides.unknown_resources);
        self.seed
    }
}

/// A directory with nothing else in it.
fn alone(application: &Application) -> Directory {
    let tenant = Tenant { id: TENANT.to_owned(), domains: Vec::new(), applications: vec![application.clone()] };
    Directory { tenants: vec![tenant], ..Directory::default() }
}

enum Credential {
    Secret(String),
    Certificate(String),
    Federated(Vec<FederatedCredential>),
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
