use p12_keystore::{Certificate as P12Certificate, KeyStoreEntry, PrivateKeyChain};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};

use super::*;

struct Material {
    certificate: String,
    key: String,
    der: Vec<u8>,
    key_der: Vec<u8>,
}

fn material(algorithm: &'static rcgen::SignatureAlgorithm) -> Material {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let certificate = CertificateParams::new(vec!["demo".to_owned()]).unwrap().self_signed(&key).unwrap();
    Material {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
        der: certificate.der().to_vec(),
        key_der: key.serialize_der(),
    }
}

fn p12(material: &Material, password: &str) -> Vec<u8> {
    let certificate = P12Certificate::from_der(&material.der).unwrap();
    let mut store = KeyStore::new();
    let chain = PrivateKeyChain::new(material.key_der.clone(), [1_u8], [certificate]);
    store.add_entry("demo", KeyStoreEntry::PrivateKeyChain(chain));
    store.writer(password).encryption_iterations(100).mac_iterations(100).write().unwrap()
}

fn reference(key: Option<&str>) -> SecretKeyRef {
    SecretKeyRef { namespace: "ns".into(), name: "cred".into(), key: key.map(Into::into) }
}

fn data(entries: &[(&str, &[u8])]) -> SecretData {
    entries.iter().map(|(key, value)| ((*key).to_owned(), SecretSlice::from(value.to_vec()))).collect()
}

fn thumbprint(key: Option<&str>, entries: &[(&str, &[u8])]) -> Result<String, CredentialProblem> {
    match certificate(&reference(key), &data(entries)) {
        Ok(Credential::Certificate(certificate)) => Ok(certificate.thumbprint.clone()),
        Ok(Credential::Secret(_)) => panic!("a secret"),
        Err(error) => {
            assert_eq!(error.secret, "ns/cred");
            Err(error.problem)
        }
    }
}

#[test]
fn client_secrets() {
    let of = |key: Option<&str>, entries: &[(&str, &[u8])]| match client_secret(&reference(key), &data(entries)) {
        Ok(Credential::Secret(secret)) => Ok(secret.expose_secret().to_owned()),
        Ok(Credential::Certificate(_)) => panic!("a certificate"),
        Err(error) => Err(error.problem),
    };
    assert_eq!(of(None, &[("anything", b"s")]), Ok("s".into()));
    assert_eq!(of(None, &[("anything", b"s\n")]), Ok("s".into()));
    assert_eq!(of(None, &[("a", b"x"), ("clientSecret", b"s")]), Ok("s".into()));
    assert_eq!(of(Some("b"), &[("a", b"x"), ("b", b"s ~\r\n")]), Ok("s ~".into()));
    let text = of(None, &[("a", b"x"), ("b", b"y")]).unwrap_err().to_string();
    assert!(text.contains("'clientSecret'") && text.ends_with("its keys are: a, b"), "{text}");
    let text = of(Some("c"), &[("a", b"x")]).unwrap_err().to_string();
    assert_eq!(text, "it has no key 'c' (clientPassword.key); its keys are: a");
    let text = of(None, &[]).unwrap_err().to_string();
    assert!(text.ends_with("its keys are: none"), "{text}");
    assert_eq!(of(None, &[("a", b"\n")]), Err(CredentialProblem::Empty("a".into())));
    assert_eq!(of(None, &[("a", &[0xff])]), Err(CredentialProblem::NotText("a".into())));
}

#[test]
fn certificates_in_every_form() {
    let rsa = material(&PKCS_RSA_SHA256);
    let both = format!("{}{}", rsa.certificate, rsa.key);
    let key_first = format!("{}\n{}", rsa.key, rsa.certificate);
    let pfx = p12(&rsa, "pass word");
    let no_password = p12(&rsa, "");
    let expected = thumbprint(None, &[("certificate", both.as_bytes())]).unwrap();
    assert_eq!(expected.len(), 43);
    for (what, key, entries) in [
        ("PEM, key first", None, vec![("certificate", key_first.as_bytes())]),
        ("PKCS#12", None, vec![("certificate", &*pfx), ("password", b"pass word")]),
        ("PKCS#12, password with a line end", None, vec![("certificate", &*pfx), ("password", b"pass word\n")]),
        ("PKCS#12 without password", None, vec![("certificate", &*no_password)]),
        ("named key", Some("x.pfx"), vec![("x.pfx", &*pfx), ("password", b"pass word"), ("certificate", b"other")]),
        ("TLS Secret", None, vec![("tls.crt", rsa.certificate.as_bytes()), ("tls.key", rsa.key.as_bytes())]),
    ] {
        assert_eq!(thumbprint(key, &entries), Ok(expected.clone()), "{what}");
    }
}

#[test]
fn what_is_wrong_with_certificates() {
    use CredentialProblem as P;
    let (rsa, other, ec) = (material(&PKCS_RSA_SHA256), material(&PKCS_RSA_SHA256), material(&PKCS_ECDSA_P256_SHA256));
    let pfx = p12(&rsa, "right");
    let c = || "certificate".to_owned();
    assert_eq!(thumbprint(None, &[("certificate", &pfx), ("password", b"wrong")]), Err(P::WrongPassword(c())));
    assert_eq!(thumbprint(None, &[("certificate", &pfx)]), Err(P::WrongPassword(c())));
    for garbage in [&b"garbage"[..], &pfx[..pfx.len() / 2], b"\x30\x82"] {
        let problem = thumbprint(None, &[("certificate", garbage), ("password", b"right")]).unwrap_err();
        assert!(matches!(problem, P::Unreadable(..)), "{problem:?}");
    }
    assert_eq!(thumbprint(None, &[("certificate", b"")]), Err(P::Empty(c())));
    let text = thumbprint(None, &[("cert", b"x"), ("pw", b"y")]).unwrap_err().to_string();
    assert!(text.contains("'certificate'") && text.ends_with("its keys are: cert, pw"), "{text}");
    assert!(matches!(thumbprint(Some("no"), &[("a", b"")]), Err(P::MissingKey { .. })));
    assert_eq!(thumbprint(None, &[("certificate", rsa.certificate.as_bytes())]), Err(P::NoPrivateKey(c())));
    assert_eq!(thumbprint(None, &[("certificate", rsa.key.as_bytes())]), Err(P::NoCertificate(c())));
    let ec_pem = format!("{}{}", ec.certificate, ec.key);
    assert_eq!(thumbprint(None, &[("certificate", ec_pem.as_bytes())]), Err(P::NotRsa(c())));
    let mixed = format!("{}{}", rsa.certificate, other.key);
    assert_eq!(thumbprint(None, &[("certificate", mixed.as_bytes())]), Err(P::Mismatch(c())));
    let encrypted = format!(
        "{}-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n",
        rsa.certificate
    );
    assert_eq!(thumbprint(None, &[("certificate", encrypted.as_bytes())]), Err(P::EncryptedKey(c())));
}

#[test]
fn debug_shows_no_secret() {
    let secret = client_secret(&reference(None), &data(&[("a", b"hush")])).unwrap();
    assert!(!format!("{secret:?}").contains("hush"));
    let rsa = material(&PKCS_RSA_SHA256);
    let both = format!("{}{}", rsa.certificate, rsa.key);
    let certificate = certificate(&reference(None), &data(&[("certificate", both.as_bytes())])).unwrap();
    assert!(format!("{certificate:?}").starts_with("Certificate("));
}
