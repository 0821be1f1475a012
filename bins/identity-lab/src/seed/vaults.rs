//! `keyVault` of an identity → a vault with a working credential of its application under the name given, which the identity
//! that `identityRef` names may read.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{Credential, Seeder, namespace, text};
use crate::emulator::{
    Directory, credentials,
    vaults::{
        Attributes, CertificateVersion, KeyFormat, Role, RoleAssignment, SecretVersion, Vault, VaultCertificate,
        VaultSecret,
    },
};

/// What was made up for a name in a vault.
#[derive(Clone, Debug)]
pub(super) enum Minted {
    Secret(String),
    /// With its PKCS#12 file, base64.
    Certificate(credentials::Credential, String),
}

impl Seeder<'_> {
    /// Puts a credential into a vault; returns what the application must accept.
    pub(super) fn vaulted(&mut self, identity: &Value, kind: i64, tenant: &str) -> Result<Credential, String> {
        let given = |field: &str| {
            text(identity, &format!("/spec/keyVault/{field}")).map(str::trim).filter(|value| !value.is_empty())
        };
        let url = given("vaultURL").ok_or("keyVault.vaultURL is missing")?;
        let host = url.strip_prefix("https://").ok_or("keyVault.vaultURL is not an https URL")?;
        let host = host.trim_end_matches('/').to_ascii_lowercase();
        if host.is_empty() || !host.contains('.') || host.contains(['/', '?', '#', '@', ':']) {
            return Err(format!("keyVault.vaultURL {url:?} is more or less than a vault's host"));
        }
        let (is_certificate, name) = match (given("secretName"), given("certificateName")) {
            (Some(name), None) => (false, name),
            (None, Some(name)) if kind == 2 => (true, name),
            (None, Some(_)) => return Err("keyVault.certificateName is for type 2".to_owned()),
            _ => return Err("keyVault needs one of secretName and certificateName".to_owned()),
        };
        let (reader, tenant) = self.reader(identity, tenant)?;
        let minted = self.mint(&format!("{host}/{name}/{kind}"), name, kind == 2)?;
        let attributes = Attributes { version: given("version").map(str::to_owned), ..Attributes::default() };
        let mut vault = Vault::new(host, tenant);
        let mut secret = |value: &str, kind: Option<&str>| {
            let (value, content_type) = (value.into(), kind.map(str::to_owned));
            let version = SecretVersion { value, content_type, attributes: attributes.clone() };
            vault.secrets.push(VaultSecret { name: name.to_owned(), versions: vec![version] });
        };
        let credential = match &minted {
            Minted::Secret(value) => {
                secret(value, None);
                Credential::Secret(value.clone())
            }
            Minted::Certificate(pair, bundle) => {
                if is_certificate {
                    let version = CertificateVersion {
                        certificate: pair.certificate_pem.as_str().into(),
                        key: pair.key_pem.as_str().into(),
                        content_type: KeyFormat::Pkcs12,
                        attributes,
                    };
                    vault.certificates.push(VaultCertificate { name: name.to_owned(), versions: vec![version] });
                } else {
                    secret(bundle, Some(KeyFormat::Pkcs12.name()));
                }
                Credential::Certificate(pair.certificate_pem.clone())
            }
        };
        let role = if is_certificate { Role::CertificateUser } else { Role::SecretsUser };
        vault.access.push(RoleAssignment { role, principal: reader });
        let alone = Directory { vaults: vec![vault.clone()], ..Directory::default() };
        alone.check().map_err(|error| format!("keyVault: {error}"))?;
        add(&mut self.seed.directory.vaults, vault);
        Ok(credential)
    }

    /// Whom to give the role, and the tenant of its tokens, which must be the vault's.
    fn reader(&mut self, identity: &Value, tenant: &str) -> Result<(String, String), String> {
        let reference = ["/spec/keyVault/identityRef", "/spec/keyVault/identityRef/name"];
        let name = reference.iter().find_map(|pointer| text(identity, pointer)).filter(|name| !name.is_empty());
        let name = name.ok_or("keyVault.identityRef is missing: nobody could read the vault")?;
        let home = namespace(identity);
        let found = self.objects.iter().find(|object| {
            text(object, "/kind") == Some("AzureIdentity")
                && text(object, "/metadata/name") == Some(name)
                && namespace(object) == home
        });
        let found = found.ok_or_else(|| format!("keyVault.identityRef: there is no AzureIdentity {home}/{name}"))?;
        let spec =
            |field: &str| text(found, &format!("/spec/{field}")).map(str::trim).filter(|value| !value.is_empty());
        let principal = spec("clientID").or(spec("resourceID"));
        let principal = principal.ok_or_else(|| format!("AzureIdentity {home}/{name} names nobody that could read"))?;
        let managed = found.pointer("/spec/type").is_none_or(|kind| kind.as_i64() == Some(0));
        let tenant = match spec("tenantID") {
            Some(tenant) => tenant,
            None if managed => self.tenant,
            None => tenant,
        };
        let id = self.tenant(tenant).id.clone();
        Ok((principal.to_owned(), id))
    }

    /// What is made up for a place, once.
    fn mint(&mut self, place: &str, name: &str, certificate: bool) -> Result<Minted, String> {
        if let Some(minted) = self.world.minted.get(place) {
            return Ok(minted.clone());
        }
        let minted = if certificate {
            let pair = credentials::self_signed_rsa(name).map_err(|error| error.to_string())?;
            let bundle = credentials::pkcs12(&pair, "").map_err(|error| error.to_string())?;
            Minted::Certificate(pair, STANDARD.encode(bundle))
        } else {
            Minted::Secret(format!("lab~{}", uuid::Uuid::new_v4().simple()))
        };
        self.world.minted.insert(place.to_owned(), minted.clone());
        Ok(minted)
    }
}

/// Adds what an identity needs to a vault that others may need, too.
fn add(vaults: &mut Vec<Vault>, vault: Vault) {
    let Some(known) = vaults.iter_mut().find(|known| known.host.eq_ignore_ascii_case(&vault.host)) else {
        vaults.push(vault);
        return;
    };
    let taken = |known: &Vault, name: &str| {
        known.secrets.iter().map(|secret| &secret.name).any(|known| known.eq_ignore_ascii_case(name))
            || known
                .certificates
                .iter()
                .map(|certificate| &certificate.name)
                .any(|known| known.eq_ignore_ascii_case(name))
    };
    for secret in vault.secrets {
        if !taken(known, &secret.name) {
            known.secrets.push(secret);
        }
    }
    for certificate in vault.certificates {
        if !taken(known, &certificate.name) {
            known.certificates.push(certificate);
        }
    }
    for given in vault.access {
        if !known.access.contains(&given) {
            known.access.push(given);
        }
    }
}

/// Puts what `lab.yaml` says of a vault over what was seeded: names that it has, and the roles if it gives any.
pub(super) fn merge(vaults: &mut Vec<Vault>, vault: &Vault) {
    let Some(known) = vaults.iter_mut().find(|known| known.host.eq_ignore_ascii_case(&vault.host)) else {
        vaults.push(vault.clone());
        return;
    };
    known.tenant_id.clone_from(&vault.tenant_id);
    let named: Vec<&str> = (vault.secrets.iter().map(|secret| secret.name.as_str()))
        .chain(vault.certificates.iter().map(|certificate| certificate.name.as_str()))
        .collect();
    let stays = |name: &str| !named.iter().any(|named| named.eq_ignore_ascii_case(name));
    known.secrets.retain(|secret| stays(&secret.name));
    known.certificates.retain(|certificate| stays(&certificate.name));
    known.secrets.extend(vault.secrets.iter().cloned());
    known.certificates.extend(vault.certificates.iter().cloned());
    if !vault.access.is_empty() {
        known.access.clone_from(&vault.access);
    }
}
