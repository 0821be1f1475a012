//! A certificate authority for the lab's TLS servers.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize, date_time_ymd,
};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use super::credentials::Credential;

/// Names of the public services that a lab's server certificate covers.
pub const HOSTS: &[&str] = &[
    "login.microsoftonline.com",
    "login.microsoftonline.us",
    "login.partner.microsoftonline.cn",
    "*.vault.azure.net",
    "*.vault.usgovcloudapi.net",
    "*.vault.azure.cn",
    "management.azure.com",
];

/// What can go wrong with certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate could not be made.
    #[error("cannot make a certificate for {subject}: {source}")]
    Make {
        /// For whom.
        subject: String,
        /// Why.
        source: rcgen::Error,
    },
    /// The PEM text given is not what it should be.
    #[error("cannot read the authority's {what}: {message}")]
    Read {
        /// Certificate or key.
        what: &'static str,
        /// Why.
        message: String,
    },
}

/// A certificate authority (ECDSA P-256), valid for the lifetime of any lab.
pub struct Authority {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// A server's certificate chain and private key.
#[derive(Clone)]
pub struct ServerCertificate {
    /// The server's certificate, then the authority's.
    pub certificate_pem: String,
    /// PKCS#8.
    pub key_pem: String,
}

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ServerCertificate").finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes one.
    pub fn generate() -> Result<Self, Error> {
        let subject = "entra-pod-identity lab CA";
        let failed = |source| Error::Make { subject: subject.to_owned(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = params(subject);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self {
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// The certificate, for clients to trust.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The certificate, for clients to trust.
    pub fn certificate_der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The certificate as the only root of a rustls client.
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates([self.certificate.clone()]);
        roots
    }

    /// The private key, PKCS#8, to keep with the certificate for [`from_pem`](Self::from_pem).
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Brings back an authority that [`generate`](Self::generate) made.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, Error> {
        let read = |what| move |error: &dyn std::fmt::Display| Error::Read { what, message: error.to_string() };
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|e| read("certificate")(&e))?;
        let key = KeyPair::from_pem(key).map_err(|e| read("key")(&e))?;
        // The issuer is rebuilt rather than parsed: an authority of this module always has the same name and usages.
        let mut params = params("entra-pod-identity lab CA");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|e| read("certificate")(&e))?;
        if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
            return Err(read("key")(&"it is not the key of the certificate"));
        }
        let certificate_pem = certificate.to_owned();
        Ok(Self { certificate: der.clone(), certificate_pem, issuer: Issuer::new(params, key) })
    }

    /// Issues an RSA certificate (2048 bits) for an application, with the common name `subject`.
    pub fn issue_application(&self, subject: &str) -> Result<Credential, Error> {
        let failed = |source| Error::Make { subject: subject.to_owned(), source };
        let mut application = params(subject);
        application.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        application.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).map_err(failed)?;
        let certificate = application.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Credential {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            certificate_der: certificate.der().to_vec(),
            key_der: key.serialize_der(),
        })
    }

    /// Issues a server certificate for DNS names (`*.` for a whole level) and IP addresses.
    pub fn issue(&self, names: &[&str]) -> Result<ServerCertificate, Error> {
        let subject = names.first().copied().unwrap_or("nobody");
        let failed = |source| Error::Make { subject: subject.to_owned(), source };
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut server = CertificateParams::new(names).map_err(failed)?;
        let CertificateParams { not_before, not_after, distinguished_name, .. } = params(subject);
        (server.not_before, server.not_after, server.distinguished_name) = (not_before, not_after, distinguished_name);
        server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // OpenSSL's strict mode, which newer Pythons turn on, wants it.
        server.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = server.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(ServerCertificate {
            certificate_pem: format!("{}{}", certificate.pem(), self.certificate_pem),
            key_pem: key.serialize_pem(),
        })
    }
}

fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    // Fixed dates: no clock is needed, and a lab that runs for long does not expire. 2049 is the last year of UTCTime.
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2049, 12, 31);
    params
}

/// A rustls server configuration for a chain and a key in PEM.
pub(super) fn server_config(certificate: &str, key: &str) -> Result<rustls::ServerConfig, String> {
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("certificate: {error}"))?;
    if chain.is_empty() {
        return Err("certificate: there is none in the PEM text".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| format!("key: {error}"))?;
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{
        client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
        pki_types::{ServerName, UnixTime},
    };

    use super::*;

    #[test]
    fn a_reloaded_authority_issues_certificates_that_its_first_self_vouches_for() {
        let first = Authority::generate().unwrap();
        let again = Authority::from_pem(first.certificate_pem(), &first.key_pem()).unwrap();
        let server = again.issue(HOSTS).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(first.roots()), provider).build().unwrap();
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(server.certificate_pem.as_bytes()).collect::<Result<_, _>>().unwrap();
        assert_eq!(chain.len(), 2);
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_795_000_000));
        let check = |name: &str| {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], now)
        };
        for name in
            ["login.microsoftonline.com", "login.microsoftonline.us", "my.vault.azure.net", "management.azure.com"]
        {
            check(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        check("vault.azure.net").unwrap_err();
        check("login.example.com").unwrap_err();
    }

    #[test]
    fn a_foreign_key_is_refused() {
        let (one, other) = (Authority::generate().unwrap(), Authority::generate().unwrap());
        let error = Authority::from_pem(one.certificate_pem(), &other.key_pem()).unwrap_err();
        assert_eq!(error.to_string(), "cannot read the authority's key: it is not the key of the certificate");
    }
}
