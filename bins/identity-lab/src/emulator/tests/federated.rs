//! Federated credentials: assertions of other issuers, right and wrong, with keys given and fetched.

use jiff::SignedDuration;
use jsonwebtoken::{EncodingKey, Header, jwk::Jwk};

use super::*;
use crate::emulator::credentials::self_signed_rsa;

const ISSUER: &str = "https://oidc.lab.example/cluster";
const SUBJECT: &str = "system:serviceaccount:ns:node";
const AUDIENCE: &str = "api://AzureADTokenExchange";

fn jwks(credential: &Credential, id: &str) -> Value {
    let key = EncodingKey::from_rsa_pem(credential.key_pem.as_bytes()).unwrap();
    let mut key = serde_json::to_value(Jwk::from_encoding_key(&key, Algorithm::RS256).unwrap()).unwrap();
    (key["kid"], key["use"]) = (json!(id), json!("sig"));
    json!({"keys": [key]})
}

fn federated(config: &mut Value) {
    config["directory"]["issuers"] = json!([{"issuer": ISSUER, "jwks": jwks(&CREDENTIAL, "one")}]);
    config["directory"]["tenants"][0]["applications"][0]["federatedCredentials"] =
        json!([{"issuer": ISSUER, "subject": SUBJECT}]);
}

/// A service account's token, before something is done to it.
fn claims(now: Timestamp) -> Value {
    let now = now.as_second();
    json!({"iss": ISSUER, "sub": SUBJECT, "aud": [AUDIENCE], "iat": now, "nbf": now, "exp": now + 3600})
}

fn sign(claims: &Value, id: &str, credential: &Credential) -> String {
    let key = EncodingKey::from_rsa_pem(credential.key_pem.as_bytes()).unwrap();
    let header = Header { kid: Some(id.to_owned()), ..Header::new(Algorithm::RS256) };
    jsonwebtoken::encode(&header, claims, &key).unwrap()
}

async fn present(lab: &Lab, assertion: &str) -> Answer {
    let fields = [
        ("client_id", CLIENT),
        ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
        ("client_assertion", assertion),
        ("grant_type", "client_credentials"),
        ("scope", "https://vault.azure.net/.default"),
    ];
    lab.post(TOKEN, &fields).await
}

#[tokio::test]
async fn a_projected_token_gets_a_token_again_and_again() {
    let lab = Lab::start(federated).await;
    let token = sign(&claims(start()), "one", &CREDENTIAL);
    for _ in 0..2 {
        let body = present(&lab, &token).await.json();
        let claims = lab.verify(body["access_token"].as_str().unwrap()).await;
        assert_eq!((&claims["appid"], &claims["appidacr"]), (&json!(CLIENT), &json!("2")));
    }
    // The issuer's own pages.
    let get = async |path: &str| lab.entra(Method::GET, path, &[("host", "oidc.lab.example")], "").await;
    let configuration = get("/cluster/.well-known/openid-configuration").await.json();
    assert_eq!(configuration["issuer"], ISSUER);
    let keys = configuration["jwks_uri"].as_str().unwrap().strip_prefix("https://oidc.lab.example").unwrap();
    assert_eq!(get(keys).await.json(), jwks(&CREDENTIAL, "one"));
    assert_eq!(get("/cluster/other").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn every_wrong_assertion_is_refused_for_what_is_wrong_with_it() {
    let stranger = self_signed_rsa("stranger").unwrap();
    let lab = Lab::start(federated).await;
    let now = start().as_second();
    let with = |name: &str, value: Value| {
        let mut claims = claims(start());
        claims[name] = value;
        sign(&claims, "one", &CREDENTIAL)
    };
    let cases = [
        ("issuer", with("iss", json!("https://oidc.lab.example/other")), 401, 700_211),
        ("audience", with("aud", json!("https://kubernetes.default.svc")), 401, 700_212),
        ("two audiences", with("aud", json!([AUDIENCE, "x"])), 401, 700_212),
        ("subject", with("sub", json!("system:serviceaccount:ns:other")), 401, 700_213),
        ("case of the subject", with("sub", json!(SUBJECT.to_uppercase())), 401, 700_213),
        ("expired", with("exp", json!(now - 300)), 401, 700_024),
        ("not valid yet", with("nbf", json!(now + 301)), 401, 700_024),
        ("another key", sign(&claims(start()), "one", &stranger), 401, 50_013),
        ("unknown key", sign(&claims(start()), "two", &stranger), 401, 50_013),
    ];
    for (what, assertion, status, code) in cases {
        let answer = present(&lab, &assertion).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["error_codes"]), (status, &json!([code])), "{what}");
    }
    // One that is on its way, and none at all.
    let lab = Lab::start(|config| {
        federated(config);
        config["directory"]["tenants"][0]["applications"][0]["federatedCredentials"] = json!([]);
    })
    .await;
    let add = json!({"addFederatedCredential": {
        "application": CLIENT, "credential": {"issuer": ISSUER, "subject": SUBJECT}, "propagationSeconds": 60,
    }});
    lab.handle.change(&serde_json::from_value(add).unwrap()).unwrap();
    let token = sign(&claims(start()), "one", &CREDENTIAL);
    let answer = present(&lab, &token).await;
    assert_eq!((answer.status, &answer.json()["error_codes"]), (StatusCode::BAD_REQUEST, &json!([70_021])));
    lab.clock.advance(SignedDuration::from_secs(60));
    assert_eq!(present(&lab, &token).await.status, StatusCode::OK);
}

#[tokio::test]
async fn keys_are_fetched_from_the_issuer_and_again_when_they_changed() {
    // Other emulators play the issuer.
    let authority = Authority::generate().unwrap();
    let server = authority.issue(&["oidc.lab.example"]).unwrap();
    let issuer = Lab::start(|config| {
        federated(config);
        (config["entra"]["certificate"], config["entra"]["key"]) =
            (json!(server.certificate_pem), json!(server.key_pem));
    })
    .await;
    let address = issuer.handle.entra_address().unwrap();
    let lab = Lab::start(|config| {
        federated(config);
        config["directory"]["issuers"] =
            json!([{"issuer": ISSUER, "server": {"address": address, "ca": authority.certificate_pem()}}]);
    })
    .await;
    // An issuer with a server of its own has the machine's clock.
    let now = Clock::system().now();
    let token = sign(&claims(now), "one", &CREDENTIAL);
    for _ in 0..3 {
        assert_eq!(present(&lab, &token).await.status, StatusCode::OK);
    }
    let asked = || issuer.handle.requests().len();
    assert_eq!(asked(), 2, "discovery and keys, once");
    let next = self_signed_rsa("next").unwrap();
    let token = sign(&claims(now), "two", &next);
    assert_eq!(present(&lab, &token).await.json()["error_codes"], json!([50_013]));
    let mut known = issuer.handle.directory();
    known.issuers[0].jwks = Some(jwks(&next, "two"));
    issuer.handle.set_directory(&known).unwrap();
    assert_eq!(present(&lab, &token).await.status, StatusCode::OK);
    let wrong = sign(&claims(start()), "two", &next);
    assert_eq!(
        present(&lab, &wrong).await.status.is_success(),
        now.duration_since(start()).abs() < SignedDuration::from_secs(300)
    );

    // The issuer is gone: what is known goes on, what is not is refused.
    drop(issuer);
    assert_eq!(present(&lab, &token).await.status, StatusCode::OK);
    let answer = present(&lab, &sign(&claims(now), "three", &next)).await;
    assert_eq!((answer.status, &answer.json()["error_codes"]), (StatusCode::BAD_REQUEST, &json!([90_061])));
}
