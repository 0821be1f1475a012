//! Key Vault: the challenge, who may read what, versions, a certificate's private key.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::SignedDuration;
use p12_keystore::KeyStore;

use super::*;
use crate::emulator::{Change, Fault};

const VAULT: &str = "demo.vault.azure.net";
const GROUP: &str = "66666666-6666-6666-6666-666666666666";
const SECRET_PATH: &str = "/secrets/s1/?api-version=2026-04-01";

/// A vault with a secret of two versions, a disabled one and a certificate; the application has no role yet.
fn vaults(config: &mut Value) {
    config["directory"]["vaults"] = json!([{
        "host": VAULT, "tenantId": TENANT,
        "secrets": [
            {"name": "s1", "versions": [
                {"value": "old", "version": "0123456789abcdef0123456789abcdef"},
                {"value": "s3cr3t", "contentType": "text/plain", "expires": "2027-01-01T00:00:00Z", "notBefore": "2026-01-01T00:00:00Z"},
            ]},
            {"name": "off", "versions": [{"value": "x", "enabled": false}]},
        ],
        "certificates": [{"name": "c1", "versions": [
            {"certificate": CREDENTIAL.certificate_pem, "key": CREDENTIAL.key_pem},
        ]}],
    }]);
}

impl Lab {
    async fn vault(&self, path: &str, token: Option<&str>) -> Answer {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let mut headers = vec![("host", VAULT)];
        headers.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
        self.entra(Method::GET, path, &headers, "").await
    }

    /// A token of the application for `resource`.
    async fn token_for(&self, resource: &str) -> String {
        let scope = format!("{resource}/.default");
        let fields = [
            ("client_id", CLIENT),
            ("client_secret", SECRET),
            ("grant_type", "client_credentials"),
            ("scope", scope.as_str()),
        ];
        self.post(TOKEN, &fields).await.json()["access_token"].as_str().unwrap().to_owned()
    }

    fn grant(&self, role: &str, principal: &str) {
        let change = json!({"grant": {"vault": VAULT, "role": role, "principal": principal}});
        self.handle.change(&serde_json::from_value(change).unwrap()).unwrap();
    }
}

fn code(answer: &Answer) -> (u16, String, Value) {
    let body = answer.json();
    let error = &body["error"];
    (answer.status.as_u16(), error["code"].as_str().unwrap_or_default().to_owned(), error["innererror"]["code"].clone())
}

#[tokio::test]
async fn a_challenge_leads_to_a_token_and_that_to_the_secret() {
    let lab = Lab::start(vaults).await;
    lab.grant("Key Vault Secrets User", CLIENT);
    let challenge = lab.vault(SECRET_PATH, None).await;
    assert_eq!(challenge.status, StatusCode::UNAUTHORIZED);
    assert_eq!(
        challenge.headers["www-authenticate"],
        format!(r#"Bearer authorization="https://{HOST}/{TENANT}", resource="https://vault.azure.net""#)
    );
    assert_eq!(
        challenge.json(),
        json!({"error": {"code": "Unauthorized", "message": "AKV10000: Request is missing a Bearer or PoP token."}})
    );
    let token = lab.token_for("https://vault.azure.net").await;
    let bundle = lab.vault(SECRET_PATH, Some(&token)).await.json();
    let version = bundle["id"].as_str().unwrap().strip_prefix(&format!("https://{VAULT}/secrets/s1/")).unwrap();
    assert!(version.len() == 32 && version.bytes().all(|byte| byte.is_ascii_hexdigit()), "{version}");
    assert_eq!((&bundle["value"], &bundle["contentType"]), (&json!("s3cr3t"), &json!("text/plain")));
    let attributes = &bundle["attributes"];
    assert_eq!((&attributes["enabled"], &attributes["exp"]), (&json!(true), &json!(1_798_761_600)));
    assert_eq!(attributes["nbf"], 1_767_225_600);

    // Without a slash, by version, and after its end: all can be read.
    let path = "/secrets/s1/0123456789abcdef0123456789abcdef?api-version=7.4";
    assert_eq!(lab.vault(path, Some(&token)).await.json()["value"], "old");
    lab.clock.set("2027-02-01T00:00:00Z".parse().unwrap());
    let token = lab.token_for("https://vault.azure.net").await;
    assert_eq!(lab.vault("/secrets/S1?api-version=7.4", Some(&token)).await.json()["value"], "s3cr3t");

    let record = lab.handle.requests().last().unwrap().clone();
    assert_eq!(
        (record.service, record.host.as_str(), record.status),
        (super::super::ServiceName::KeyVault, VAULT, 200)
    );
    let logged = serde_json::to_string(&lab.handle.requests()).unwrap();
    assert!(!logged.contains("s3cr3t") && !logged.contains(&token), "values and tokens are not in the log");
    let counts = lab.handle.counts();
    let count = counts.iter().find(|count| count.key == format!("{VAULT}/secrets/s1")).unwrap();
    assert_eq!((count.requests, count.granted), (2, 1));
}

#[tokio::test]
async fn whoever_has_no_right_is_refused_for_what_is_missing() {
    let lab = Lab::start(vaults).await;
    let token = lab.token_for("https://vault.azure.net").await;
    let refused = lab.vault(SECRET_PATH, Some(&token)).await;
    assert_eq!(code(&refused), (403, "Forbidden".to_owned(), json!("ForbiddenByRbac")));
    let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
    for part in [&format!("appid={CLIENT};oid={OBJECT}"), "getSecret/action", "vaults/demo/secrets/s1"] {
        assert!(message.contains(part), "{message}");
    }
    // What is absent is not told to those who may not read.
    assert_eq!(lab.vault("/secrets/none?api-version=7.4", Some(&token)).await.status, StatusCode::FORBIDDEN);
    lab.grant("Key Vault Reader", CLIENT);
    assert_eq!(lab.vault(SECRET_PATH, Some(&token)).await.status, StatusCode::FORBIDDEN);
    assert_eq!(lab.vault("/certificates/c1/?api-version=7.4", Some(&token)).await.status, StatusCode::OK);

    // By object id.
    lab.grant("Key Vault Secrets User", OBJECT);
    assert_eq!(lab.vault(SECRET_PATH, Some(&token)).await.status, StatusCode::OK);
    let cases = [
        ("/secrets/none/?api-version=7.4", (404, "SecretNotFound", Value::Null)),
        ("/secrets/s1/ffff?api-version=7.4", (404, "SecretNotFound", Value::Null)),
        ("/certificates/s1?api-version=7.4", (404, "CertificateNotFound", Value::Null)),
        ("/secrets/off/?api-version=7.4", (403, "Forbidden", json!("SecretDisabled"))),
        ("/secrets/s1/", (400, "BadParameter", Value::Null)),
        ("/secrets/s1/?api-version=1.0", (400, "BadParameter", Value::Null)),
    ];
    for (path, (status, error, inner)) in cases {
        assert_eq!(code(&lab.vault(path, Some(&token)).await), (status, error.to_owned(), inner), "{path}");
    }
    for path in ["/secrets", "/secrets/s1/versions", "/keys/c1", "/deletedsecrets/s1"] {
        let answer = lab.vault(&format!("{path}?api-version=7.4"), Some(&token)).await;
        assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED, "{path}");
    }
}

#[tokio::test]
async fn a_vault_that_is_not_there_does_not_answer() {
    let lab = Lab::start(vaults).await;
    let token = format!("Bearer {}", lab.token_for("https://vault.azure.net").await);
    for headers in
        [&[("host", "other.vault.azure.net")][..], &[("host", "other.vault.azure.net"), ("authorization", &token)]]
    {
        let error = lab.try_entra(Method::GET, SECRET_PATH, headers, "").await.unwrap_err();
        let last = lab.handle.requests().pop().unwrap();
        assert_eq!((last.status, last.error_code.as_deref()), (0, Some("no_vault")), "{error}");
    }
    // Its neighbour does, and so does Entra.
    assert_eq!(lab.vault(SECRET_PATH, None).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_token_that_is_not_for_this_vault_is_refused() {
    let lab = Lab::start(|config| {
        vaults(config);
        config["directory"]["tenants"].as_array_mut().unwrap().push(json!({
            "id": "99999999-9999-9999-9999-999999999999",
            "applications": [{"clientId": CLIENT, "objectId": OBJECT, "secrets": [{"value": SECRET}]}],
        }));
    })
    .await;
    lab.grant("Key Vault Administrator", CLIENT);
    let good = lab.token_for("https://vault.azure.net").await;
    assert_eq!(lab.vault(SECRET_PATH, Some(&good)).await.status, StatusCode::OK);
    let management = lab.token_for("https://management.azure.com").await;
    let slash = lab.token_for("https://vault.azure.net/").await;
    let fields = [
        ("client_id", CLIENT),
        ("client_secret", SECRET),
        ("grant_type", "client_credentials"),
        ("scope", "https://vault.azure.net/.default"),
    ];
    let elsewhere = lab.post("/99999999-9999-9999-9999-999999999999/oauth2/v2.0/token", &fields).await.json();
    let foreign = Lab::start(|_| {}).await.token_for("https://vault.azure.net").await;
    for (token, expected) in [
        (management.as_str(), "AKV10022: Invalid audience."),
        (&slash, "AKV10022: Invalid audience."),
        (elsewhere["access_token"].as_str().unwrap(), "AKV10032: Invalid issuer."),
        (&foreign, "InvalidSignature"),
        ("no.jwt", "Error validating token"),
    ] {
        let answer = lab.vault(SECRET_PATH, Some(token)).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert!(answer.headers.contains_key("www-authenticate"));
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(expected), "{expected}: {message}");
    }
    lab.clock.advance(SignedDuration::from_secs(3598));
    assert_eq!(lab.vault(SECRET_PATH, Some(&good)).await.status, StatusCode::OK);
    lab.clock.advance(SignedDuration::from_secs(1));
    assert!(lab.vault(SECRET_PATH, Some(&good)).await.text().contains("TokenExpired"));
}

#[tokio::test]
async fn a_group_opens_the_vault_from_the_next_token_on() {
    let lab = Lab::start(vaults).await;
    lab.grant("Key Vault Secrets User", GROUP);
    let before = lab.token_for("https://vault.azure.net").await;
    assert_eq!(lab.vault(SECRET_PATH, Some(&before)).await.status, StatusCode::FORBIDDEN);
    lab.handle.change(&Change::AddMember { group: GROUP.to_owned(), member: CLIENT.to_owned() }).unwrap();
    assert_eq!(lab.vault(SECRET_PATH, Some(&before)).await.status, StatusCode::FORBIDDEN, "the token is the old one");
    let after = lab.token_for("https://vault.azure.net").await;
    assert_eq!(lab.verify(&after).await["groups"], json!([GROUP]));
    assert_eq!(lab.vault(SECRET_PATH, Some(&after)).await.status, StatusCode::OK);

    // A managed identity keeps its token, as the platform does, unless it insists.
    lab.handle.change(&Change::AddMember { group: GROUP.to_owned(), member: ONE.to_owned() }).unwrap();
    let path = "/metadata/identity/oauth2/token?api-version=2018-02-01&client_id=c1&resource=https://vault.azure.net";
    let kept = lab.imds(path).await.json()["access_token"].clone();
    assert_eq!(lab.verify(kept.as_str().unwrap()).await["groups"], json!([GROUP]));
    lab.handle.change(&Change::RemoveMember { group: GROUP.to_owned(), member: ONE.to_owned() }).unwrap();
    assert_eq!(lab.imds(path).await.json()["access_token"], kept);
    let fresh = lab.imds(&format!("{path}&bypass_cache=true")).await.json()["access_token"].clone();
    assert_eq!(lab.verify(fresh.as_str().unwrap()).await["groups"], Value::Null);
    assert_eq!(lab.vault(SECRET_PATH, Some(fresh.as_str().unwrap())).await.status, StatusCode::FORBIDDEN);
    assert_eq!(lab.vault(SECRET_PATH, Some(kept.as_str().unwrap())).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_certificate_is_read_with_its_private_key() {
    let lab = Lab::start(vaults).await;
    lab.grant("Key Vault Certificate User", CLIENT);
    let token = lab.token_for("https://vault.azure.net").await;
    let read = async |path: &str| lab.vault(&format!("{path}?api-version=2025-07-01"), Some(&token)).await.json();
    let bundle = read("/certificates/c1/").await;
    assert_eq!(bundle["cer"], STANDARD.encode(&CREDENTIAL.certificate_der));
    let id = bundle["id"].as_str().unwrap();
    assert_eq!(bundle["sid"].as_str().unwrap(), id.replace("/certificates/", "/secrets/"));
    assert_eq!(bundle["policy"]["secret_props"]["contentType"], "application/x-pkcs12");
    assert_eq!(bundle["attributes"]["exp"], 2_524_521_600_i64, "the certificate's own end");

    let secret = read("/secrets/c1/").await;
    assert_eq!((&secret["contentType"], &secret["managed"]), (&json!("application/x-pkcs12"), &json!(true)));
    let file = STANDARD.decode(secret["value"].as_str().unwrap()).unwrap();
    let store = KeyStore::from_pkcs12(&file, "").unwrap();
    let (_, chain) = store.private_key_chain().unwrap();
    assert_eq!((chain.key(), chain.chain()[0].as_der()), (&CREDENTIAL.key_der[..], &CREDENTIAL.certificate_der[..]));
    let first = secret["id"].as_str().unwrap().to_owned();

    let version = json!({"setCertificate": {"vault": VAULT, "name": "c1", "version": {
        "certificate": CREDENTIAL.certificate_pem, "key": CREDENTIAL.key_pem, "contentType": "application/x-pem-file",
    }}});
    let made = lab.handle.change(&serde_json::from_value(version).unwrap()).unwrap().unwrap();
    let renewed = read("/secrets/c1").await;
    assert!(renewed["id"].as_str().unwrap().ends_with(&made));
    assert_eq!(renewed["contentType"], "application/x-pem-file");
    assert_eq!(renewed["value"], format!("{}{}", CREDENTIAL.key_pem, CREDENTIAL.certificate_pem));
    let earlier = read(first.strip_prefix(&format!("https://{VAULT}")).unwrap()).await;
    assert_eq!(earlier["value"], secret["value"], "a version stays what it is, byte for byte");
}

#[tokio::test]
async fn a_vault_fails_on_demand() {
    let lab = Lab::start(|config| {
        vaults(config);
        config["keyVault"] = json!({"retryAfterSeconds": 7});
    })
    .await;
    lab.grant("Key Vault Secrets User", CLIENT);
    let token = lab.token_for("https://vault.azure.net").await;
    lab.handle.set_fault(Fault::Vault429, true);
    let answer = lab.vault(SECRET_PATH, Some(&token)).await;
    assert_eq!(
        (answer.status, &answer.headers["retry-after"]),
        (StatusCode::TOO_MANY_REQUESTS, &"7".try_into().unwrap())
    );
    assert_eq!(code(&answer).1, "Throttled");
    lab.handle.set_fault(Fault::Vault429, false);
    lab.handle.set_fault(Fault::VaultForbidden, true);
    assert_eq!(lab.vault(SECRET_PATH, None).await.status, StatusCode::UNAUTHORIZED, "it asks who it is first");
    assert_eq!(code(&lab.vault(SECRET_PATH, Some(&token)).await).2, "ForbiddenByRbac");
    // Entra, on the same address, goes on.
    lab.token_for("https://vault.azure.net").await;
    lab.handle.set_fault(Fault::VaultDown, true);
    assert!(lab.try_entra(Method::GET, SECRET_PATH, &[("host", VAULT)], "").await.is_err());
    lab.handle.set_fault(Fault::VaultForbidden, false);
    lab.handle.set_fault(Fault::VaultDown, false);
    assert_eq!(lab.vault(SECRET_PATH, Some(&token)).await.status, StatusCode::OK);
}
