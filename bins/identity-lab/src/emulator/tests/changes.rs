//! Credentials that come and go while the emulators run.

use jiff::SignedDuration;

use super::*;
use crate::emulator::{Change, control, credentials::self_signed_rsa};

async fn with_secret(lab: &Lab, secret: &str) -> Value {
    let fields = [
        ("client_id", CLIENT),
        ("client_secret", secret),
        ("grant_type", "client_credentials"),
        ("scope", "https://vault.azure.net/.default"),
    ];
    let body = lab.post(TOKEN, &fields).await.json();
    if body["access_token"].is_string() { json!("token") } else { body["error_codes"][0].clone() }
}

fn change(lab: &Lab, change: Value) -> Option<String> {
    lab.handle.change(&serde_json::from_value(change).unwrap()).unwrap()
}

#[tokio::test]
async fn secrets_overlap_and_a_new_one_takes_its_time() {
    let lab = Lab::start(|_| {}).await;
    change(&lab, json!({"addSecret": {"application": CLIENT, "value": "fresh", "propagationSeconds": 30}}));
    assert_eq!((with_secret(&lab, SECRET).await, with_secret(&lab, "fresh").await), (json!("token"), json!(7_000_215)));
    lab.clock.advance(SignedDuration::from_secs(30));
    assert_eq!((with_secret(&lab, SECRET).await, with_secret(&lab, "fresh").await), (json!("token"), json!("token")));
    change(&lab, json!({"expireSecret": {"application": CLIENT, "value": SECRET}}));
    assert_eq!(with_secret(&lab, SECRET).await, 7_000_222);
    change(&lab, json!({"removeSecret": {"application": CLIENT, "value": SECRET}}));
    assert_eq!(with_secret(&lab, SECRET).await, 7_000_215);

    // Taken over: what is seeded later changes this application no more, and all others as ever.
    let mut seeded = directory();
    seeded["tenants"][0]["applications"][0]["secrets"] = json!([{"value": SECRET}, {"value": "wrong"}]);
    seeded["tenants"][0]["applications"]
        .as_array_mut()
        .unwrap()
        .push(json!({"clientId": "other", "secrets": [{"value": "o"}]}));
    lab.handle.set_directory(&serde_json::from_value(seeded).unwrap()).unwrap();
    for (secret, expected) in [(SECRET, json!(7_000_215)), ("wrong", json!(7_000_215)), ("fresh", json!("token"))] {
        assert_eq!(with_secret(&lab, secret).await, expected, "{secret}");
    }
    change(&lab, json!({"pin": {"application": "other"}}));
    lab.handle.set_directory(&serde_json::from_value(directory()).unwrap()).unwrap();
    assert_eq!(lab.handle.directory().tenants[0].applications.len(), 2);
}

#[tokio::test]
async fn an_application_is_changed_in_all_its_tenants() {
    let lab = Lab::start(|config| {
        let mut second = config["directory"]["tenants"][0].clone();
        second["id"] = json!("99999999-9999-9999-9999-999999999999");
        second["domains"] = json!([]);
        config["directory"]["tenants"].as_array_mut().unwrap().push(second);
    })
    .await;
    change(&lab, json!({"addSecret": {"application": CLIENT.to_uppercase(), "value": "fresh"}}));
    let known = lab.handle.directory();
    for tenant in &known.tenants {
        assert!(tenant.applications[0].secrets.iter().any(|secret| secret.value.expose() == "fresh"), "{}", tenant.id);
    }
}

#[tokio::test]
async fn what_cannot_be_changed_is_said_and_nothing_is() {
    let lab = Lab::start(|_| {}).await;
    let cases = [
        (
            json!({"addSecret": {"application": "nobody", "value": "x"}}),
            "application nobody: has no such application in any tenant",
        ),
        (json!({"removeSecret": {"application": CLIENT, "value": "never"}}), "has no such client secret"),
        (json!({"addSecret": {"application": CLIENT, "value": ""}}), "secrets[2].value: must not be empty"),
        (
            json!({"addCertificate": {"application": CLIENT, "certificate": "-----BEGIN X"}}),
            "certificates[1]: not a certificate",
        ),
        (
            json!({"grant": {"vault": "none.vault.azure.net", "principal": "x"}}),
            "vault none.vault.azure.net: has no such vault",
        ),
        (json!({"removeMember": {"group": "g", "member": "m"}}), "group g: has no such member"),
    ];
    let before = serde_json::to_string(&lab.handle.directory()).unwrap();
    for (order, expected) in cases {
        let error = lab.handle.change(&serde_json::from_value(order).unwrap()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(serde_json::to_string(&lab.handle.directory()).unwrap(), before);
    let unknown =
        serde_json::from_value::<Change>(json!({"addSecret": {"application": "a", "value": "v", "expire": "x"}}));
    assert!(unknown.unwrap_err().to_string().contains("expire"));
}

#[tokio::test]
async fn everything_can_be_done_from_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control");
    let path = socket.display().to_string();
    let lab = Lab::start(move |config| config["control"] = json!(path)).await;
    let fresh = self_signed_rsa("fresh").unwrap();
    let add = Change::AddCertificate {
        application: CLIENT.to_owned(),
        certificate: fresh.certificate_pem.as_str().into(),
        propagation_seconds: 0,
    };
    assert_eq!(control::change(&socket, &add).await.unwrap(), None);
    let known = control::directory(&socket).await.unwrap();
    assert_eq!(known.tenants[0].applications[0].certificates.len(), 2);
    let remove = Change::RemoveCertificate {
        application: CLIENT.to_owned(),
        certificate: fresh.certificate_pem.as_str().into(),
    };
    control::change(&socket, &remove).await.unwrap();
    let refused = control::change(&socket, &remove).await.unwrap_err().to_string();
    assert!(refused.contains("no such certificate"), "{refused}");

    for _ in 0..3 {
        with_secret(&lab, "wrong").await;
    }
    with_secret(&lab, SECRET).await;
    let counts = control::counts(&socket).await.unwrap();
    let count = counts.iter().find(|count| count.key == format!("{CLIENT} https://vault.azure.net")).unwrap();
    assert_eq!((count.requests, count.granted), (4, 1));
    control::reset_counts(&socket).await.unwrap();
    assert_eq!(lab.handle.counts(), []);
}

#[tokio::test]
async fn tokens_live_as_long_as_they_are_told_and_say_when_to_refresh() {
    let lab = Lab::start(|config| {
        for service in ["entra", "imds"] {
            config[service]["tokenLifetimeSeconds"] = json!(20);
            config[service]["refreshInSeconds"] = json!(10);
        }
    })
    .await;
    let fields = [
        ("client_id", CLIENT),
        ("client_secret", SECRET),
        ("grant_type", "client_credentials"),
        ("scope", "https://vault.azure.net/.default"),
    ];
    let body = lab.post(TOKEN, &fields).await.json();
    assert_eq!((&body["expires_in"], &body["refresh_in"]), (&json!(20), &json!(10)));
    let path = "/metadata/identity/oauth2/token?api-version=2018-02-01&client_id=c1&resource=https://vault.azure.net";
    let body = lab.imds(path).await.json();
    assert_eq!((&body["expires_in"], &body["refresh_in"]), (&json!("20"), &json!("10")));
}
