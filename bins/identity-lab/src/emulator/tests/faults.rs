//! Faults, and the control socket that switches them.

use std::{os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::emulator::{Directory, Error, Fault, control, run};

const ASK: &str =
    "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net&client_id=c1";

async fn ask_entra(lab: &Lab) -> Result<Answer, hyper::Error> {
    let body = form(&[
        ("client_id", CLIENT),
        ("client_secret", SECRET),
        ("grant_type", "client_credentials"),
        ("scope", "https://vault.azure.net/.default"),
    ]);
    lab.try_entra(Method::POST, TOKEN, &[FORM], &body).await
}

async fn ask_imds(lab: &Lab) -> Result<Answer, hyper::Error> {
    lab.try_imds(Method::GET, ASK, &[("metadata", "true")]).await
}

#[tokio::test]
async fn each_fault_strikes_its_own_service_and_only_while_it_is_on() {
    let lab = Lab::start(|_| {}).await;
    for (fault, status, body) in [
        (Fault::Entra429, 429, "Too Many Requests"),
        (Fault::Entra503, 503, "temporarily_unavailable"),
        (Fault::EntraDown, 0, ""),
        (Fault::Imds404, 404, "not_found"),
        (Fault::Imds410, 410, "gone"),
        (Fault::Imds429, 429, "too_many_requests"),
        (Fault::Imds500, 500, "server_error"),
        (Fault::Imds503, 503, "service_unavailable"),
        (Fault::ImdsDown, 0, ""),
    ] {
        lab.handle.set_fault(fault, true);
        let entra = fault.name().starts_with("entra");
        let (struck, other) = if entra {
            (ask_entra(&lab).await, ask_imds(&lab).await)
        } else {
            (ask_imds(&lab).await, ask_entra(&lab).await)
        };
        match struck {
            Ok(answer) => {
                assert_eq!(answer.status, status, "{fault}");
                assert!(answer.text().contains(body), "{fault}: {}", answer.text());
                let retry_after = answer.headers.get("retry-after").map(|value| value.to_str().unwrap());
                assert_eq!(retry_after, (fault == Fault::Entra429).then_some("60"), "{fault}");
            }
            Err(error) => assert_eq!(status, 0, "{fault}: {error}"),
        }
        assert_eq!(other.unwrap().status, StatusCode::OK, "{fault}");
        let records = lab.handle.requests();
        let record = records.iter().rev().find(|record| record.fault == Some(fault)).unwrap();
        assert_eq!(record.status, status, "{fault}");
        lab.handle.set_fault(fault, false);
        let answer = if entra { ask_entra(&lab).await } else { ask_imds(&lab).await };
        assert_eq!(answer.unwrap().status, StatusCode::OK, "{fault} is off");
        lab.clock.advance(jiff::SignedDuration::from_secs(1));
    }
}

#[tokio::test]
async fn a_fault_that_strikes_once_strikes_each_kind_of_request_for_itself() {
    let lab = Lab::start(|config| config["faults"] = json!(["imds-429-once"])).await;
    let other = ASK.replace("vault.azure.net", "storage.azure.com");
    let mut statuses = Vec::new();
    for ask in [ASK, ASK, &other, &other, ASK] {
        let answer = lab.try_imds(Method::GET, ask, &[("metadata", "true")]).await.unwrap();
        statuses.push(answer.status.as_u16());
    }
    assert_eq!(statuses, [429, 200, 429, 200, 200]);
    assert_eq!(ask_entra(&lab).await.unwrap().status, StatusCode::OK);
}

/// Lets the emulators work until `condition` holds.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_hanging_request_is_answered_when_the_fault_is_off() {
    let lab = Lab::start(|config| config["faults"] = json!(["imds-hang"])).await;
    let answered = async {
        let answer = ask_imds(&lab).await.unwrap();
        assert!(lab.handle.faults().is_empty(), "not before");
        answer
    };
    let switched = async {
        until("the request arrives", || lab.handle.shared.faults.in_flight() == 1).await;
        lab.handle.set_fault(Fault::ImdsHang, false);
    };
    let (answer, ()) = tokio::join!(answered, switched);
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(lab.handle.requests().last().unwrap().fault, Some(Fault::ImdsHang));
}

#[tokio::test]
async fn a_client_that_gives_up_is_recorded() {
    let lab = Lab::start(|config| config["faults"] = json!(["imds-hang"])).await;
    let mut client = TcpStream::connect(lab.imds_address()).await.unwrap();
    client.write_all(b"GET /metadata/versions HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    until("the request arrives", || lab.handle.shared.faults.in_flight() == 1).await;
    assert!(lab.handle.requests().is_empty());
    drop(client);
    until("the request is recorded", || !lab.handle.requests().is_empty()).await;
    assert_eq!(lab.handle.requests()[0].status, 0);
}

#[tokio::test]
async fn the_control_socket_switches_faults_and_replaces_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let path = socket.clone();
    let lab = Lab::start(move |config| config["control"] = json!(path)).await;
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);

    assert_eq!(control::set_fault(&socket, "imds-429", true).await.unwrap(), [Fault::Imds429]);
    assert_eq!(control::set_fault(&socket, "entra-down", true).await.unwrap(), [Fault::EntraDown, Fault::Imds429]);
    assert_eq!(ask_imds(&lab).await.unwrap().status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(control::set_fault(&socket, "entra-down", false).await.unwrap(), [Fault::Imds429]);
    assert_eq!(control::set_fault(&socket, "imds-429", false).await.unwrap(), []);
    assert_eq!(control::faults(&socket).await.unwrap(), []);
    assert_eq!(ask_imds(&lab).await.unwrap().status, StatusCode::OK);
    let error = control::set_fault(&socket, "tea-418", true).await.unwrap_err().to_string();
    assert!(error.starts_with("there is no fault `tea-418`; there are: entra-down, "), "{error}");

    let mut changed = directory();
    changed["tenants"][0]["applications"][0]["secrets"] = json!([{"value": "rotated"}]);
    let changed: Directory = serde_json::from_value(changed).unwrap();
    control::set_directory(&socket, &changed).await.unwrap();
    assert_eq!(ask_entra(&lab).await.unwrap().json()["error_codes"], json!([7_000_215]));
    let wrong = serde_json::from_value(json!({"tenants": [{"id": ""}]})).unwrap();
    let error = control::set_directory(&socket, &wrong).await.unwrap_err().to_string();
    assert_eq!(error, "directory.tenants[0].id: must not be empty");
    assert_eq!(ask_entra(&lab).await.unwrap().json()["error_codes"], json!([7_000_215]), "the one before stays");
}

#[tokio::test]
async fn stopping_frees_what_was_taken_and_a_stale_socket_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists(), "as a killed process leaves it");
    let config = |listen: &str| -> Config {
        serde_json::from_value(json!({"imds": {"listen": listen}, "control": socket})).unwrap()
    };
    let shutdown = CancellationToken::new();
    let handle = run(config("127.0.0.1:0"), shutdown.clone()).await.unwrap();
    let address = handle.imds_address().unwrap();
    let second = run(config("127.0.0.1:0"), CancellationToken::new()).await.unwrap_err();
    assert!(matches!(second, Error::Control { .. }), "{second}");
    // A client that keeps its connection does not keep the emulators.
    let idle = TcpStream::connect(address).await.unwrap();
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), handle.stopped()).await.unwrap();
    assert!(!socket.exists());
    drop(idle);
    let error = control::faults(&socket).await.unwrap_err().to_string();
    assert!(error.contains("is the lab running?"), "{error}");
    let again = run(config("127.0.0.1:0"), CancellationToken::new()).await.unwrap();
    assert!(again.imds_address().is_some());
}

#[tokio::test]
async fn what_is_wrong_with_a_configuration_is_named() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let nowhere: PathBuf = "/nonexistent/requests.jsonl".into();
    let server = Authority::generate().unwrap().issue(&[HOST]).unwrap();
    let other = Authority::generate().unwrap().issue(&[HOST]).unwrap();
    let entra = |certificate: &str, key: &str| json!({"entra": {"listen": "127.0.0.1:0", "certificate": certificate, "key": key}});
    for (config, expected) in [
        (json!({"imds": {"listen": address}}), "imds.listen: cannot listen on 127.0.0.1:"),
        (json!({"requestLog": nowhere}), "requestLog: cannot append to /nonexistent/requests.jsonl"),
        (entra("/nonexistent.pem", &server.key_pem), "entra.certificate: neither PEM text nor a readable file"),
        (entra(&server.certificate_pem, &server.certificate_pem), "entra.key: "),
        (entra(&server.certificate_pem, &other.key_pem), "entra."),
    ] {
        let config: Config = serde_json::from_value(config).unwrap();
        let error = run(config, CancellationToken::new()).await.unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    for json in [r#"{"imds": {"listen": "127.0.0.1:0", "port": 1}}"#, r#"{"faults": ["imds-418"]}"#, r#"{"imsd": {}}"#]
    {
        serde_json::from_str::<Config>(json).unwrap_err();
    }
}
