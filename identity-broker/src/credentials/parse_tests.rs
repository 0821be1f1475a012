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

fn thumbprint(key: Option<&str>, entries: &[(&str, &[u8])]) -> Result<String, Problem> {
    match certificate(&reference(key), &data(entries)) {
        Ok(Credential::Certificate(certificate)) => Ok(certificate.thumbprint.clone()),
        Ok(_) => panic!("no certificate"),
        Err(problem) => Err(problem),
    }
}

#[test]
fn client_secrets() {
    let of = |key: Option<&str>, entries: &[(&str, &[u8])]| match client_secret(&reference(key), &data(entries)) {
        Ok(Credential::Secret(secret)) => Ok(secret.expose_secret().to_owned()),
        Ok(_) => panic!("no secret"),
        Err(error) => Err(error),
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
    assert_eq!(of(None, &[("a", b"\n")]), Err(Problem::Empty("a".into())));
    assert_eq!(of(None, &[("a", b" \n")]), Err(Problem::Empty("a".into())));
    assert_eq!(of(None, &[("a", &[0xff])]), Err(Problem::NotText("a".into())));
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
    use Problem as P;
    let (rsa, other, ec) = (material(&PKCS_RSA_SHA256), material(&PKCS_RSA_SHA256), material(&PKCS_ECDSA_P256_SHA256));
    let pfx = p12(&rsa, "right");
    let c = || Part::from("certificate");
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
fn an_archive_of_openssl() {
    // `openssl pkcs12 -export` of OpenSSL 3 with its defaults; an RSA key made for this.
    let file = include_bytes!("openssl_3.p12");
    let good: &[(&str, &[u8])] = &[("certificate", file), ("password", b"fixture")];
    assert_eq!(thumbprint(None, good), Ok("kZG6lQoQkQgnB5IFoZAX8hRg_1O6adxBjDvJilQNp34".to_owned()));
    let bad: &[(&str, &[u8])] = &[("certificate", file), ("password", b"fixtures")];
    assert_eq!(thumbprint(None, bad), Err(Problem::WrongPassword("certificate".into())));
    // The number of iterations of the MAC is what it ends with: 2048, in two bytes.
    let mut patched = file[..file.len() - 4].to_vec();
    assert_eq!(file[file.len() - 4..], [0x02, 0x02, 0x08, 0x00]);
    patched.extend([0x02, 0x05, 0x00, 0x80, 0x00, 0x00, 0x00]);
    // Three bytes more, in the file and in `MacData`.
    let lengthen = |bytes: &mut Vec<u8>, at: usize| bytes[at] += 3;
    lengthen(&mut patched, 3);
    let mac = patched.windows(4).rposition(|window| window[0] == 0x30 && window[2..] == [0x30, 0x31]).unwrap();
    lengthen(&mut patched, mac + 1);
    let problem = thumbprint(None, &[("certificate", &patched), ("password", b"fixture")]).unwrap_err();
    let Problem::TooManyIterations(key, count) = &problem else { panic!("{problem:?}") };
    assert_eq!(*key, "certificate".into());
    assert!((1 << 31..(1 << 31) + 10_000).contains(count), "{count}");
    let text = problem.to_string();
    assert!(text.contains(&count.to_string()) && text.contains("the most is 10000000"), "{text}");
}

#[test]
fn chains_have_an_end() {
    use rcgen::{DnType, Issuer};
    let params = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let [leaf, ca, root] = [(); 3].map(|()| KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap());
    let by = |name: &str, key: &KeyPair, issuer: &str, issuer_key: &KeyPair| {
        let issuer = Issuer::new(params(issuer), issuer_key);
        P12Certificate::from_der(params(name).signed_by(key, &issuer).unwrap().der()).unwrap()
    };
    let open = |chain: Vec<P12Certificate>| {
        let mut store = KeyStore::new();
        let chain = PrivateKeyChain::new(leaf.serialize_der(), [1_u8], chain);
        store.add_entry("demo", KeyStoreEntry::PrivateKeyChain(chain));
        let file = store.writer("pw").encryption_iterations(2).mac_iterations(2).write().unwrap();
        thumbprint(None, &[("certificate", &file), ("password", b"pw")])
    };
    let certificate = || by("leaf", &leaf, "ca", &ca);
    assert!(open(vec![certificate(), by("ca", &ca, "root", &root), by("root", &root, "root", &root)]).is_ok());
    // Certification authorities that certify each other.
    let problem = open(vec![certificate(), by("ca", &ca, "root", &root), by("root", &root, "ca", &ca)]).unwrap_err();
    assert!(problem.to_string().contains("issue each other in a circle"), "{problem}");
}

#[test]
fn values_are_short() {
    let long = vec![b'x'; MAX_VALUE + 1];
    let pem = [b"-----BEGIN CERTIFICATE-----\n", &long[..]].concat();
    for (key, entries) in [
        ("certificate", vec![("certificate", &*long)]),
        ("certificate", vec![("certificate", &*pem)]),
        ("tls.crt", vec![("tls.crt", &*pem), ("tls.key", b"x")]),
        ("tls.key", vec![("tls.crt", b"x"), ("tls.key", &*pem)]),
    ] {
        let problem = thumbprint(None, &entries).unwrap_err();
        assert!(matches!(&problem, Problem::TooLong(named, _) if *named == key.into()), "{problem:?}");
        assert!(problem.to_string().contains("the most is 1048576 (1 MiB)"), "{problem}");
    }
    let problem = thumbprint(None, &[("certificate", &long[1..])]).unwrap_err();
    assert!(matches!(problem, Problem::Unreadable(..)), "{problem:?}");
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

#[test]
fn archives_of_old_exporters() {
    // `openssl pkcs12 -export -legacy` of the same certificate: RC2 of 40 bits and 3DES; and 3DES alone with no password.
    let expected = Ok("kZG6lQoQkQgnB5IFoZAX8hRg_1O6adxBjDvJilQNp34".to_owned());
    let rc2 = include_bytes!("legacy_rc2.p12");
    assert_eq!(thumbprint(None, &[("certificate", rc2), ("password", b"fixture")]), expected);
    assert_eq!(thumbprint(None, &[("certificate", rc2), ("password", b"fixture\n")]), expected);
    for wrong in [&b"fixtures"[..], b"", "\u{1f512}".as_bytes()] {
        let problem = thumbprint(None, &[("certificate", rc2), ("password", wrong)]).unwrap_err();
        assert_eq!(problem, Problem::WrongPassword("certificate".into()));
    }
    assert_eq!(thumbprint(None, &[("anything", include_bytes!("legacy_3des_no_password.p12"))]), expected);
    // As a Key Vault has it.
    let vault = |value: &[u8]| match vault_certificate(value) {
        Ok(Credential::Certificate(certificate)) => Ok(certificate.thumbprint.clone()),
        Ok(_) => panic!("no certificate"),
        Err(problem) => Err(problem),
    };
    assert_eq!(vault(STANDARD.encode(include_bytes!("legacy_3des_no_password.p12")).as_bytes()), expected);
    let text = vault(b"no credential!").unwrap_err().to_string();
    assert_eq!(text, "its value is neither PEM nor a readable PKCS#12 file (nor base64 of one)");
    let rsa = material(&PKCS_RSA_SHA256);
    assert!(vault(format!("{}{}", rsa.key, rsa.certificate).as_bytes()).is_ok());
    assert_eq!(vault(b""), Err(Problem::Empty(Part::Value)));
}

#[test]
fn chains_are_kept_without_the_root() {
    use rcgen::{BasicConstraints, DnType, IsCa, Issuer};
    let params = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let [leaf, ca, root] = [(); 3].map(|()| KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap());
    let by = |name: &str, key: &KeyPair, issuer: &str, issuer_key: &KeyPair| {
        params(name).signed_by(key, &Issuer::new(params(issuer), issuer_key)).unwrap()
    };
    let (leaf_pem, ca_pem) = (by("leaf", &leaf, "ca", &ca), by("ca", &ca, "root", &root));
    let root_pem = params("root").self_signed(&root).unwrap();
    let read = |certificates: &[&rcgen::Certificate]| {
        let pem: String = certificates.iter().map(|certificate| certificate.pem()).collect();
        match certificate(
            &reference(None),
            &data(&[("certificate", format!("{pem}{}", leaf.serialize_pem()).as_bytes())]),
        ) {
            Ok(Credential::Certificate(certificate)) => certificate.chain.clone(),
            _ => panic!("no certificate"),
        }
    };
    let encoded = |certificate: &rcgen::Certificate| STANDARD.encode(certificate.der());
    let both = [encoded(&leaf_pem), encoded(&ca_pem)];
    assert_eq!(read(&[&leaf_pem, &ca_pem, &root_pem]), both);
    assert_eq!(read(&[&root_pem, &ca_pem, &leaf_pem]), both, "in any order");
    assert_eq!(read(&[&leaf_pem, &ca_pem]), both);
    assert!(read(&[&leaf_pem]).is_empty(), "alone it is sent by its thumbprint only");
    assert!(read(&[&leaf_pem, &root_pem]).is_empty(), "that one has not issued it");
    let direct = by("leaf", &leaf, "root", &root);
    assert_eq!(read(&[&direct, &root_pem]), [encoded(&direct)]);
}

#[test]
fn certificates_have_their_time() {
    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(2026, 2, 1);
    params.not_after = rcgen::date_time_ymd(2026, 3, 1);
    let pem = format!("{}{}", params.self_signed(&key).unwrap().pem(), key.serialize_pem());
    let credential = certificate(&reference(None), &data(&[("certificate", pem.as_bytes())])).unwrap();
    assert_eq!(credential.expires(), Some("2026-03-01T00:00:00Z".parse().unwrap()));
    for (now, wrong) in [
        (
            "2026-01-31T23:54:00Z",
            Some(
                "the certificate is valid from 2026-02-01T00:00:00Z on, which by this machine's clock is yet to come: correct the clock if it is slow, or wait",
            ),
        ),
        // Clocks differ.
        ("2026-01-31T23:55:00Z", None),
        ("2026-02-15T00:00:00Z", None),
        ("2026-03-01T00:05:00Z", None),
        (
            "2026-03-01T00:05:01Z",
            Some(
                "the certificate ended 2026-03-01T00:00:00Z: put a new one there, and register it with the application",
            ),
        ),
    ] {
        let found = credential.wrong_time(now.parse().unwrap()).map(|(problem, _)| problem.to_string());
        assert_eq!(found.as_deref(), wrong, "{now}");
    }
    assert!(client_secret(&reference(None), &data(&[("a", b"s")])).unwrap().wrong_time(Timestamp::MAX).is_none());
}
