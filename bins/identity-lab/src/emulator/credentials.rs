//! Credentials of applications, for demos and tests: what an operator would create with `az ad app credential`.

use jiff::civil::Date;
use p12_keystore::{Certificate, KeyStore, KeyStoreEntry, PrivateKeyChain};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize, date_time_ymd,
};

/// Key derivations of a PKCS#12 file. OpenSSL's own default; enough for a credential that lives as long as a lab.
const ITERATIONS: u64 = 2048;

/// What can go wrong with a credential.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificate could not be made.
    #[error("cannot make a certificate for {subject}: {source}")]
    Certificate {
        /// For whom.
        subject: String,
        /// Why.
        source: rcgen::Error,
    },
    /// The PKCS#12 file could not be made.
    #[error("cannot make a PKCS#12 file: {0}")]
    Pkcs12(#[from] p12_keystore::error::Error),
}

/// An RSA key with a self-signed certificate.
#[derive(Clone)]
pub struct Credential {
    /// The certificate.
    pub certificate_pem: String,
    /// The private key, PKCS#8.
    pub key_pem: String,
    /// The certificate.
    pub certificate_der: Vec<u8>,
    /// The private key, PKCS#8.
    pub key_der: Vec<u8>,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Credential").finish_non_exhaustive()
    }
}

/// Makes an RSA key (2048 bits) and a certificate with the common name `subject`, valid from 2020 to 2049.
pub fn self_signed_rsa(subject: &str) -> Result<Credential, Error> {
    self_signed_rsa_between(subject, Date::constant(2020, 1, 1), Date::constant(2049, 12, 31))
}

/// The same with a validity of one's own: from the beginning of one date to the beginning of another, UTC.
pub fn self_signed_rsa_between(subject: &str, from: Date, to: Date) -> Result<Credential, Error> {
    let failed = |source| Error::Certificate { subject: subject.to_owned(), source };
    let day = |date: Date| {
        // Both are in range by jiff's own types.
        date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    (params.not_before, params.not_after) = (day(from), day(to));
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(Credential {
        certificate_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
        certificate_der: certificate.der().to_vec(),
        key_der: key.serialize_der(),
    })
}

/// The credential as a PKCS#12 file under `password`: PBES2 with AES-256 and HMAC-SHA-256, as OpenSSL 3 and Azure write it.
pub fn pkcs12(credential: &Credential, password: &str) -> Result<Vec<u8>, Error> {
    let certificate = Certificate::from_der(&credential.certificate_der)?;
    let chain = PrivateKeyChain::new(&credential.key_der, [1], [certificate]);
    let mut store = KeyStore::new();
    store.add_entry("application", KeyStoreEntry::PrivateKeyChain(chain));
    Ok(store.writer(password).encryption_iterations(ITERATIONS).mac_iterations(ITERATIONS).write()?)
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::*;

    #[test]
    fn a_pkcs12_file_gives_back_key_and_certificate_for_its_password_only() {
        let credential = self_signed_rsa("demo").unwrap();
        let file = pkcs12(&credential, "pässwörd").unwrap();
        let store = KeyStore::from_pkcs12(&file, "pässwörd").unwrap();
        let (_, chain) = store.private_key_chain().unwrap();
        assert_eq!(chain.key(), credential.key_der);
        assert_eq!(chain.chain().len(), 1);
        assert_eq!(chain.chain()[0].as_der(), credential.certificate_der);
        assert_eq!(chain.chain()[0].subject(), "CN=demo");
        KeyStore::from_pkcs12(&file, "password").unwrap_err();
    }

    /// Written by OpenSSL 3.0 (`openssl pkcs12 -export -passout pass:vector`): the reader that the files made here are
    /// checked with agrees with OpenSSL about the format.
    #[test]
    fn the_reader_agrees_with_openssl() {
        let file = STANDARD.decode(include_str!("tests/openssl-3.p12.base64").replace('\n', "")).unwrap();
        let store = KeyStore::from_pkcs12(&file, "vector").unwrap();
        let (_, chain) = store.private_key_chain().unwrap();
        assert_eq!(chain.chain()[0].subject(), "CN=vector");
        KeyPair::from_pkcs8_der_and_sign_algo(&chain.key().into(), &PKCS_RSA_SHA256).unwrap();
    }
}
