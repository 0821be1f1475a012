//! A [`Vault`] as the service uses it: checked, versions named, certificates parsed.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use super::CLOUDS;
use crate::emulator::{
    change::version_of,
    config::Secret,
    credentials::Credential,
    directory::{Error, given},
    vaults::{Attributes, CertificateVersion, KeyFormat, RoleAssignment, Vault},
};

/// When versions were made that do not say so: the beginning of 2026.
const CREATED: i64 = 1_767_225_600;

#[derive(Debug)]
pub(in crate::emulator) struct KnownVault {
    pub(super) name: String,
    pub(super) tenant: String,
    /// What its tokens must be for.
    pub(super) resource: String,
    /// Where they come from.
    pub(super) authority: &'static str,
    pub(super) access: Vec<RoleAssignment>,
    secrets: Vec<(String, Vec<KnownSecret>)>,
    certificates: Vec<(String, Vec<KnownCertificate>)>,
}

#[derive(Debug)]
pub(super) struct KnownVersion {
    pub(super) version: String,
    pub(super) enabled: bool,
    /// Seconds since 1970, as the next two.
    pub(super) created: i64,
    pub(super) expires: Option<i64>,
    pub(super) not_before: Option<i64>,
}

#[derive(Debug)]
pub(super) struct KnownSecret {
    pub(super) version: KnownVersion,
    pub(super) value: Secret,
    pub(super) content_type: Option<String>,
}

#[derive(Debug)]
pub(super) struct KnownCertificate {
    pub(super) version: KnownVersion,
    pub(super) credential: Credential,
    pub(super) format: KeyFormat,
    /// SHA-1, base64url.
    pub(super) thumbprint: String,
}

/// What a secret's name leads to.
pub(super) enum Found<'a> {
    Secret(&'a KnownSecret),
    Certificate(&'a KnownCertificate),
}

impl Found<'_> {
    pub(super) fn version(&self) -> &KnownVersion {
        match self {
            Self::Secret(secret) => &secret.version,
            Self::Certificate(certificate) => &certificate.version,
        }
    }
}

impl KnownVault {
    pub(in crate::emulator) fn new(vault: &Vault, field: &str) -> Result<Self, Error> {
        let host = given(&format!("{field}.host"), &vault.host)?.to_ascii_lowercase();
        let Some((name, suffix)) = host.split_once('.').filter(|(name, suffix)| !name.is_empty() && !suffix.is_empty())
        else {
            let message = format!("`{host}` is no vault's host; one is such as demo.vault.azure.net");
            return Err(Error { field: format!("{field}.host"), message });
        };
        let authority =
            CLOUDS.iter().find(|(cloud, _)| *cloud == suffix).map_or(CLOUDS[0].1, |(_, authority)| authority);
        let mut known = Self {
            name: name.to_owned(),
            tenant: given(&format!("{field}.tenantId"), &vault.tenant_id)?.to_ascii_lowercase(),
            resource: format!("https://{suffix}"),
            authority,
            access: vault.access.clone(),
            secrets: Vec::new(),
            certificates: Vec::new(),
        };
        for (index, secret) in vault.secrets.iter().enumerate() {
            let field = format!("{field}.secrets[{index}]");
            let name = known.new_name(&field, &secret.name)?;
            let versions = secret.versions.iter().enumerate().map(|(place, version)| KnownSecret {
                version: known_version(&version.attributes, || version_of(&host, &name, place)),
                value: version.value.clone(),
                content_type: version.content_type.clone(),
            });
            let versions = some(versions.collect(), &field)?;
            known.secrets.push((name, versions));
        }
        for (index, certificate) in vault.certificates.iter().enumerate() {
            let field = format!("{field}.certificates[{index}]");
            let name = known.new_name(&field, &certificate.name)?;
            let versions = certificate.versions.iter().enumerate().map(|(place, version)| {
                parse(version, version_of(&host, &name, place))
                    .map_err(|message| Error { field: format!("{field}.versions[{place}]"), message })
            });
            let versions = some(versions.collect::<Result<_, _>>()?, &field)?;
            known.certificates.push((name, versions));
        }
        Ok(known)
    }

    /// Secrets and certificates share their names; a name has letters, digits and hyphens.
    fn new_name(&self, field: &str, name: &str) -> Result<String, Error> {
        let failed = |message: String| Error { field: format!("{field}.name"), message };
        let named = |known: &str| known.eq_ignore_ascii_case(name);
        if name.is_empty() || name.len() > 127 || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        {
            return Err(failed(format!("`{name}` is no name; letters, digits and hyphens make one")));
        }
        if self.secrets.iter().any(|(known, _)| named(known)) || self.certificates.iter().any(|(known, _)| named(known))
        {
            return Err(failed(format!("`{name}` is in the vault already")));
        }
        Ok(name.to_owned())
    }

    /// A version of a secret (the current one when none is given), with the name as it was created.
    pub(super) fn secret(&self, name: &str, version: Option<&str>) -> Option<(&str, Found<'_>)> {
        if let Some((name, versions)) = self.secrets.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
            return Some((name, Found::Secret(pick(versions, version, |secret| &secret.version)?)));
        }
        self.certificate(name, version).map(|(name, found)| (name, Found::Certificate(found)))
    }

    /// A version of a certificate, likewise.
    pub(super) fn certificate(&self, name: &str, version: Option<&str>) -> Option<(&str, &KnownCertificate)> {
        let (name, versions) = self.certificates.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        Some((name, pick(versions, version, |certificate| &certificate.version)?))
    }
}

fn pick<'a, T>(versions: &'a [T], wanted: Option<&str>, version: impl Fn(&T) -> &KnownVersion) -> Option<&'a T> {
    match wanted {
        None => versions.last(),
        Some(wanted) => versions.iter().find(|known| version(known).version.eq_ignore_ascii_case(wanted)),
    }
}

fn some<T>(versions: Vec<T>, field: &str) -> Result<Vec<T>, Error> {
    if versions.is_empty() {
        let message = "must not be empty: what is in a vault has a version".to_owned();
        return Err(Error { field: format!("{field}.versions"), message });
    }
    Ok(versions)
}

fn known_version(attributes: &Attributes, name: impl FnOnce() -> String) -> KnownVersion {
    KnownVersion {
        version: attributes.version.clone().unwrap_or_else(name),
        enabled: attributes.enabled,
        created: attributes.created.map_or(CREATED, Timestamp::as_second),
        expires: attributes.expires.map(Timestamp::as_second),
        not_before: attributes.not_before.map(Timestamp::as_second),
    }
}

/// That certificate and key belong together is not checked: a test may want that they do not.
fn parse(given: &CertificateVersion, name: String) -> Result<KnownCertificate, String> {
    let load = |what: &str, pem: &crate::emulator::config::Pem| pem.load().map_err(|error| format!("{what}: {error}"));
    let certificate_pem = load("certificate", &given.certificate)?;
    let key_pem = load("key", &given.key)?;
    let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
        .map_err(|error| format!("certificate: not a certificate in PEM: {error}"))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
        .map_err(|error| format!("certificate: not X.509: {error}"))?;
    let validity = parsed.validity();
    let mut version = known_version(&given.attributes, || name);
    // A certificate's times are those of its version, unless something else is given.
    version.expires.get_or_insert(validity.not_after.timestamp());
    version.not_before.get_or_insert(validity.not_before.timestamp());
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
        .map_err(|error| format!("key: not a private key in PEM: {error}"))?;
    Ok(KnownCertificate {
        version,
        thumbprint: URL_SAFE_NO_PAD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &certificate)),
        credential: Credential {
            certificate_der: certificate.to_vec(),
            key_der: key.secret_der().to_vec(),
            certificate_pem,
            key_pem,
        },
        format: given.content_type,
    })
}
