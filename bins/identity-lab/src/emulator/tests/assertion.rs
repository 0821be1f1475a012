//! Client assertions: the right one and every wrong one.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jiff::SignedDuration;
use jsonwebtoken::EncodingKey;

use super::*;
use crate::emulator::credentials::{self_signed_rsa, self_signed_rsa_between};

/// An assertion as Microsoft documents it, before something is done to it.
struct Draft {
    algorithm: Algorithm,
    header: Value,
    claims: Value,
}

impl Draft {
    fn new(credential: &Credential, now: Timestamp) -> Self {
        let thumbprint = URL_SAFE_NO_PAD.encode(digest(&SHA256, &credential.certificate_der));
        let now = now.as_second();
        Self {
            algorithm: Algorithm::PS256,
            header: json!({"alg": "PS256", "typ": "JWT", "x5t#S256": thumbprint}),
            claims: json!({
                "aud": format!("https://{HOST}{TOKEN}"), "iss": CLIENT, "sub": CLIENT, "jti": uuid::Uuid::new_v4().to_string(),
                "nbf": now, "iat": now, "exp": now + 600,
            }),
        }
    }

    fn claim(mut self, name: &str, value: Value) -> Self {
        self.claims[name] = value;
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.claims.as_object_mut().unwrap().remove(name);
        self
    }

    fn head(mut self, header: Value) -> Self {
        self.header = header;
        self
    }

    fn sign(&self, credential: &Credential) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&self.header), encode(&self.claims));
        let key = EncodingKey::from_rsa_pem(credential.key_pem.as_bytes()).unwrap();
        let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, self.algorithm).unwrap();
        format!("{signed}.{signature}")
    }
}

async fn present(lab: &Lab, assertion: &str) -> Answer {
    lab.post(
        TOKEN,
        &[
            ("client_id", CLIENT),
            ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
            ("client_assertion", assertion),
            ("grant_type", "client_credentials"),
            ("scope", "https://vault.azure.net/.default"),
        ],
    )
    .await
}

/// The header that today's Azure libraries send: RS256 and the SHA-1 thumbprint, padded.
fn older_header(credential: &Credential) -> Value {
    let thumbprint = STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &credential.certificate_der));
    json!({"alg": "RS256", "typ": "JWT", "x5t": thumbprint.replace('+', "-").replace('/', "_")})
}

#[tokio::test]
async fn both_kinds_of_assertions_get_a_token() {
    let lab = Lab::start(|_| {}).await;
    let documented = Draft::new(&CREDENTIAL, start());
    let body = present(&lab, &documented.sign(&CREDENTIAL)).await.json();
    let claims = lab.verify(body["access_token"].as_str().unwrap()).await;
    assert_eq!((&claims["appid"], &claims["appidacr"], &claims["oid"]), (&json!(CLIENT), &json!("2"), &json!(OBJECT)));

    // As MSAL for Python sends it: fractions of a second, no `nbf`.
    let mut older = Draft::new(&CREDENTIAL, start()).without("nbf").head(older_header(&CREDENTIAL));
    older.algorithm = Algorithm::RS256;
    let now = f64::from(i32::try_from(start().as_second()).unwrap()) + 0.25;
    let older = older.claim("iat", json!(now)).claim("exp", json!(now + 600.0)).sign(&CREDENTIAL);
    assert_eq!(present(&lab, &older).await.status, StatusCode::OK);

    // The tenant may be named by a domain, in the address and so in the audience.
    let path = "/contoso.example/oauth2/v2.0/token";
    let draft = Draft::new(&CREDENTIAL, start()).claim("aud", json!(format!("https://{HOST}{path}")));
    assert_eq!(
        present(&lab, &draft.sign(&CREDENTIAL)).await.json()["error_codes"],
        json!([700_023]),
        "but not in the audience alone"
    );
}

#[tokio::test]
async fn every_wrong_assertion_is_refused_for_what_is_wrong_with_it() {
    let stranger = self_signed_rsa("stranger").unwrap();
    let expired =
        self_signed_rsa_between("expired", jiff::civil::date(2025, 1, 1), jiff::civil::date(2026, 1, 1)).unwrap();
    let certificate = expired.certificate_pem.clone();
    let lab = Lab::start(move |config| {
        let application = &mut config["directory"]["tenants"][0]["applications"][0];
        application["certificates"].as_array_mut().unwrap().push(json!(certificate));
    })
    .await;
    let now = start().as_second();
    let draft = || Draft::new(&CREDENTIAL, start());
    let claim = |name: &str, value: Value| draft().claim(name, value).sign(&CREDENTIAL);
    let other_algorithm = || {
        let mut draft = draft();
        draft.header["alg"] = json!("RS384");
        draft.algorithm = Algorithm::RS384;
        draft.sign(&CREDENTIAL)
    };
    let mismatched = || {
        // Both thumbprints are given, and only one is that of the certificate.
        let mut draft = draft();
        draft.header["x5t"] = older_header(&stranger)["x5t"].clone();
        draft.sign(&CREDENTIAL)
    };
    let tampered = || {
        let good = draft().sign(&CREDENTIAL);
        let (head, signature) = good.rsplit_once('.').unwrap();
        let header = head.split('.').next().unwrap();
        let claims = draft().claim("exp", json!(now + 601)).claims.to_string();
        format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(claims))
    };
    let audience = format!("https://login.example.com{TOKEN}");
    let cases = [
        (
            "certificate not registered",
            Draft::new(&stranger, start()).sign(&stranger),
            401,
            700_027,
            "key was not found",
        ),
        ("signed with another key", draft().sign(&stranger), 401, 700_027, "signature is invalid"),
        ("payload changed after signing", tampered(), 401, 700_027, "signature is invalid"),
        ("thumbprints of two certificates", mismatched(), 401, 700_027, "key was not found"),
        ("certificate expired", Draft::new(&expired, start()).sign(&expired), 401, 700_027, "key used is expired"),
        ("no thumbprint", draft().head(json!({"alg": "PS256"})).sign(&CREDENTIAL), 401, 700_027, "key was not found"),
        ("audience of another host", claim("aud", json!(audience)), 401, 700_023, HOST),
        ("audience is the tenant", claim("aud", json!(format!("https://{HOST}/{TENANT}/v2.0"))), 401, 700_023, HOST),
        ("issuer is not the client", claim("iss", json!(TENANT)), 401, 700_021, "iss"),
        ("subject is not the client", claim("sub", json!(TENANT)), 401, 700_021, "sub"),
        ("expired", claim("exp", json!(now - 300)), 401, 700_024, "2026-11-24T09:00:00Z"),
        (
            "not valid yet",
            draft().claim("nbf", json!(now + 301)).claim("exp", json!(now + 600)).sign(&CREDENTIAL),
            401,
            700_024,
            "",
        ),
        ("valid for too long", claim("exp", json!(now + 901)), 401, 700_024, "10 minutes"),
        ("without an end", draft().without("exp").sign(&CREDENTIAL), 401, 700_024, "exp"),
        ("end as text", claim("exp", json!((now + 60).to_string())), 401, 700_024, "exp"),
        ("without jti", draft().without("jti").sign(&CREDENTIAL), 400, 50_027, "jti"),
        ("another algorithm", other_algorithm(), 400, 50_027, "RS384"),
        ("two parts", "a.b".to_owned(), 400, 50_027, "three parts"),
        ("not base64", "?.?.?".to_owned(), 400, 50_027, "base64url"),
        ("not JSON", "YQ.YQ.YQ".to_owned(), 400, 50_027, "JSON"),
    ];
    for (name, assertion, status, code, part) in cases {
        let answer = present(&lab, &assertion).await;
        let body = answer.json();
        assert_eq!((answer.status.as_u16(), &body["error_codes"]), (status, &json!([code])), "{name}: {body}");
        assert_eq!(body["error"], if status == 401 { "invalid_client" } else { "invalid_request" }, "{name}");
        assert!(body["error_description"].as_str().unwrap().contains(part), "{name}: {body}");
    }
    // What the clock forgives.
    for (name, assertion) in [
        ("just expired", draft().claim("nbf", json!(now - 600)).claim("exp", json!(now - 299)).sign(&CREDENTIAL)),
        ("about to be valid", draft().claim("nbf", json!(now + 300)).claim("exp", json!(now + 900)).sign(&CREDENTIAL)),
    ] {
        let answer = present(&lab, &assertion).await;
        assert_eq!(answer.status, StatusCode::OK, "{name}: {}", answer.text());
    }
    // A workload's own token, for which there would have to be a federated credential.
    let federated = draft().head(json!({"alg": "RS256", "kid": "cluster"})).claim("iss", json!("https://oidc.example"));
    let answer = present(&lab, &federated.sign(&CREDENTIAL)).await;
    assert_eq!(answer.json()["error_codes"], json!([70_021]));
}

#[tokio::test]
async fn a_chain_beside_the_thumbprint_begins_with_its_certificate() {
    let stranger = self_signed_rsa("stranger").unwrap();
    let lab = Lab::start(|_| {}).await;
    let with = |chain: Value| {
        let mut draft = Draft::new(&CREDENTIAL, start());
        draft.header["x5c"] = chain;
        draft.sign(&CREDENTIAL)
    };
    let (mine, other) = (STANDARD.encode(&CREDENTIAL.certificate_der), STANDARD.encode(&stranger.certificate_der));
    assert_eq!(present(&lab, &with(json!([mine, other]))).await.status, StatusCode::OK);
    for chain in [
        json!([]),
        json!(mine),
        json!([other, mine]),
        // One of Azure's own libraries sends base64 of PEM, which the RFC does not have.
        json!([STANDARD.encode(&CREDENTIAL.certificate_pem)]),
        json!([mine, "AAAA"]),
    ] {
        assert_eq!(present(&lab, &with(chain.clone())).await.json()["error_codes"], json!([50_027]), "{chain}");
    }
}

#[tokio::test]
async fn an_assertion_works_once_unless_the_lab_says_otherwise() {
    let lab = Lab::start(|_| {}).await;
    let assertion = Draft::new(&CREDENTIAL, start()).sign(&CREDENTIAL);
    assert_eq!(present(&lab, &assertion).await.status, StatusCode::OK);
    lab.clock.advance(SignedDuration::from_secs(599 + 300));
    let body = present(&lab, &assertion).await.json();
    assert_eq!(
        (&body["error"], &body["error_codes"]),
        (&json!("invalid_client"), &json!([50013])),
        "to its last second"
    );
    lab.clock.advance(SignedDuration::from_secs(1));
    assert_eq!(present(&lab, &assertion).await.json()["error_codes"], json!([700_024]), "then it is too old");

    let lab = Lab::start(|config| config["entra"]["acceptReplayedAssertions"] = json!(true)).await;
    for _ in 0..2 {
        assert_eq!(present(&lab, &assertion).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn neither_secrets_nor_assertions_get_into_the_request_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("requests.jsonl");
    let log = path.clone();
    let lab = Lab::start(move |config| config["requestLog"] = json!(log)).await;
    let assertion = Draft::new(&CREDENTIAL, start()).sign(&CREDENTIAL);
    present(&lab, &assertion).await;
    lab.post(TOKEN, &[("client_id", CLIENT), ("client_secret", SECRET), ("grant_type", "client_credentials")]).await;
    let basic = format!("Basic {}", STANDARD.encode(format!("{CLIENT}:{SECRET}")));
    lab.entra(Method::POST, TOKEN, &[FORM, ("authorization", &basic)], "grant_type=client_credentials").await;
    lab.entra(Method::POST, &format!("{TOKEN}?client_secret={SECRET}"), &[FORM], "").await;

    let text = std::fs::read_to_string(&path).unwrap();
    let signature = assertion.rsplit('.').next().unwrap();
    for secret in [SECRET, "s3cr3t", signature, &basic[6..]] {
        assert!(!text.contains(secret), "{text}");
    }
    let records: Vec<super::super::Record> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 4);
    assert_eq!(records[0].form["client_assertion"], "[redacted]");
    assert_eq!(records[0].form["client_id"], CLIENT);
    assert_eq!((records[0].status, records[0].path.as_str(), records[0].host.as_str()), (200, TOKEN, HOST));
    assert_eq!(records[1].form["client_secret"], "[redacted]");
    assert_eq!(records[3].query["client_secret"], "[redacted]");
    assert_eq!(records[1].error_code.as_deref(), Some("900144"));
    assert_eq!(records[1].time, start());
    // Nor into what a debugger or a panic shows.
    let config: Config = serde_json::from_value(json!({"directory": directory()})).unwrap();
    let shown = format!("{config:?} {:?} {:?}", lab.handle, *CREDENTIAL);
    assert!(!shown.contains(SECRET) && !shown.contains("PRIVATE KEY"), "{shown}");
}

#[tokio::test]
async fn a_trusted_subject_needs_no_registration_but_its_chain() {
    let (authority, other) = (Authority::generate().unwrap(), Authority::generate().unwrap());
    let trusted = json!([{"authority": authority.certificate_pem(), "subject": "app.contoso.example"}]);
    let lab = Lab::start(|config| {
        config["directory"]["tenants"][0]["applications"][0]["trustedSubjects"] = trusted;
    })
    .await;
    let present_with_chain = async |credential: &Credential, chain: Option<&Authority>| {
        let mut draft = Draft::new(credential, start());
        if let Some(authority) = chain {
            let chain =
                [credential.certificate_der.as_slice(), authority.certificate_der()].map(|der| STANDARD.encode(der));
            draft.header["x5c"] = json!(chain);
        }
        present(&lab, &draft.sign(credential)).await
    };
    let first = authority.issue_application("app.contoso.example").unwrap();
    assert_eq!(present_with_chain(&first, Some(&authority)).await.status, StatusCode::OK);
    let renewed = authority.issue_application("App.contoso.example").unwrap();
    assert_eq!(present_with_chain(&renewed, Some(&authority)).await.status, StatusCode::OK);
    let refused = [
        ("no chain", present_with_chain(&first, None).await),
        ("another name", present_with_chain(&authority.issue_application("other").unwrap(), Some(&authority)).await),
        (
            "another authority",
            present_with_chain(&other.issue_application("app.contoso.example").unwrap(), Some(&other)).await,
        ),
        (
            "signed by itself",
            present_with_chain(&self_signed_rsa("app.contoso.example").unwrap(), Some(&authority)).await,
        ),
    ];
    for (what, answer) in refused {
        assert_eq!(answer.json()["error_codes"], json!([700_027]), "{what}: {}", answer.text());
    }
}
