//! What real clients send, byte for byte: a broker with the real lookup in front and the emulated IMDS behind it answers
//! the requests of `tests/recordings/`.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

mod support;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use identity_broker::{Broker, BrokerConfig, Manager, ManagerConfig, Metrics, ServerConfig, serve};
use identity_core::{
    lookup::{NodeIndex, Published},
    pod::{Pod, PodPhase, PodRef},
};
use identity_crd::AzureAssignedIdentity;
use serde_json::{Value, json};
use support::{Client, azures::*, *};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const CLIENT_ID: &str = "22222222-2222-2222-2222-222222222222";
const OBJECT_ID: &str = "33333333-3333-3333-3333-333333333333";
/// As the object has it; clients write it in another case.
const ARM_ID: &str = "/subscriptions/44444444-4444-4444-4444-444444444444/resourceGroups/RG/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id1";

/// What is to be answered.
#[derive(Clone, Copy)]
enum Expected {
    /// A token for this resource, in the form of IMDS.
    Token(&'static str),
    /// A token for the vault in the form of App Service.
    AppService,
    /// Status, `error`, beginning of the text.
    Error(u16, &'static str, &'static str),
}

const VAULT_TOKEN: Expected = Expected::Token("https://vault.azure.net");
const PROBE: Expected = Expected::Error(400, "invalid_request", "Required metadata header not specified");

const EXPECTED: &[(&str, Expected)] = &[
    ("curl-7.88__post_form", Expected::Error(405, "method_not_allowed", "The verb isn't supported")),
    ("curl-7.88__walkthrough_noproxy_instance", Expected::Error(403, "access_denied", "Access to this path")),
    ("curl-7.88__walkthrough_sys", Expected::Token("https://management.azure.com/")),
    ("js-azure-identity-4.13.1__appservice2019_resource_id", Expected::AppService),
    ("js-azure-identity-4.13.1__claims", VAULT_TOKEN),
    ("js-azure-identity-4.13.1__cloudshell_sys", VAULT_TOKEN),
    ("js-azure-identity-4.13.1__dac", PROBE),
    ("js-azure-identity-4.13.1__dac-2", VAULT_TOKEN),
    ("js-azure-identity-4.13.1__dac_resource_id", VAULT_TOKEN),
    ("js-azure-identity-4.13.1__msi2017_client_id", Expected::AppService),
    ("js-azure-identity-4.13.1__object_id", VAULT_TOKEN),
    ("js-azure-identity-4.13.1__podidentity_authority_host", VAULT_TOKEN),
    ("python-azure-identity-1.27.0__appservice2019_client_id", Expected::AppService),
    ("python-azure-identity-1.27.0__appservice2019_resource_id", Expected::AppService),
    ("python-azure-identity-1.27.0__arc_sys", VAULT_TOKEN),
    ("python-azure-identity-1.27.0__claims", VAULT_TOKEN),
    ("python-azure-identity-1.27.0__cloudshell_sys", VAULT_TOKEN),
    ("python-azure-identity-1.27.0__config_mi_res_id", VAULT_TOKEN),
    ("python-azure-identity-1.27.0__dac", PROBE),
    ("python-azure-identity-1.27.0__dac_client_id", PROBE),
    ("python-azure-identity-1.27.0__msi2017_client_id", Expected::AppService),
    ("python-azure-identity-1.27.0__object_id", VAULT_TOKEN),
    ("python-azure-identity-1.27.0__podidentity_authority_host", VAULT_TOKEN),
    ("python-azure-identity-1.27.0__resource_id", VAULT_TOKEN),
    ("python-msal-1.39.0__client_id", VAULT_TOKEN),
    ("python-msal-1.39.0__object_id", VAULT_TOKEN),
    ("python-msal-1.39.0__resource_id", VAULT_TOKEN),
    ("python-msal-1.39.0__sys", VAULT_TOKEN),
    ("rust-azure_identity-1.0.0__client_id", VAULT_TOKEN),
    ("rust-azure_identity-1.0.0__object_id", VAULT_TOKEN),
    ("rust-azure_identity-1.0.0__resource_id", VAULT_TOKEN),
    ("rust-azure_identity-1.0.0__sys", VAULT_TOKEN),
];

/// All recordings, with CR LF where they have it on the wire.
fn recordings() -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
    let requests = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let requests = requests.filter(|path| path.extension().is_some_and(|extension| extension == "http"));
    requests
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let (head, body) = text.split_once("\n\n").expect("head and body");
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, format!("{}\r\n\r\n{body}", head.replace('\n', "\r\n")))
        })
        .collect()
}

/// The lookup of a node with one pod at 127.0.0.1, to which an identity of this spec is assigned.
fn published(identity: &Value) -> Arc<Published> {
    let pod = Arc::new(PodRef {
        namespace: "ns".into(),
        name: "p".into(),
        uid: "pod-uid".into(),
        service_account: "sa".into(),
    });
    let object = |name: &str| json!({"namespace": "ns", "name": name, "uid": format!("{name}-uid"), "generation": 1});
    let assigned: AzureAssignedIdentity = serde_json::from_value(json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureAssignedIdentity", "metadata": object("assigned"),
        "spec": {
            "pod": "p", "podNamespace": "ns", "podUID": "pod-uid", "nodename": "node",
            "azureIdentityRef": {"metadata": object("id1"), "spec": identity},
            "azureBindingRef": {"metadata": object("binding"), "spec": {"azureIdentity": "id1", "selector": "demo"}},
        },
        "status": {"status": "Assigned"},
    }))
    .unwrap();
    let mut index = NodeIndex::default();
    index.apply_pod(Pod {
        reference: pod,
        node: Some("node".into()),
        labels: [("aadpodidbinding".to_owned(), "demo".to_owned())].into(),
        service_account: "default".into(),
        addresses: vec![[127, 0, 0, 1].into()],
        phase: PodPhase::Running,
        host_network: false,
        deleting: false,
    });
    index.apply_assignment(&assigned).unwrap();
    let published = Arc::new(Published::default());
    index.publish(&published);
    published
}

struct Node {
    azures: Azures,
    address: SocketAddr,
}

async fn node() -> Node {
    node_with(|_| json!({"type": 0, "resourceID": ARM_ID, "clientID": CLIENT_ID, "objectID": OBJECT_ID})).await
}

async fn node_with(identity: impl FnOnce(&Azures) -> Value) -> Node {
    let azures = azures_with(&json!([
        {"resourceId": ARM_ID, "clientId": CLIENT_ID, "objectId": OBJECT_ID, "tenantId": TENANT}
    ]))
    .await;
    let metrics = Arc::new(Metrics::default());
    let tokens = Manager::new(azures.client(), wall_clock, ManagerConfig::default(), Arc::clone(&metrics));
    let published = published(&identity(&azures));
    let broker = Broker::new(published, tokens, Records::default(), wall_clock, BrokerConfig::default(), metrics);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let dialled = Dialled(Arc::new(Mutex::new(metadata())));
    let shutdown: CancellationToken = azures.shutdown.clone();
    tokio::spawn(serve(listener, dialled, broker, ServerConfig::default(), shutdown));
    Node { azures, address }
}

fn check(name: &str, expected: Expected, answer: &Answer) {
    let (body, text) = (answer.json(), |key: &str| answer.json()[key].as_str().map(str::to_owned));
    assert_eq!(answer.headers["content-type"], "application/json; charset=utf-8", "{name}");
    let (resource, mut fields) = match expected {
        Expected::Error(status, error, beginning) => {
            assert_eq!((answer.status, &*text("error").unwrap()), (status, error), "{name}: {body}");
            assert!(text("error_description").unwrap().starts_with(beginning), "{name}: {body}");
            return;
        }
        Expected::Token(resource) => (
            resource,
            vec![
                "access_token",
                "client_id",
                "resource",
                "token_type",
                "not_before",
                "expires_on",
                "expires_in",
                "ext_expires_in",
            ],
        ),
        Expected::AppService => (
            "https://vault.azure.net",
            vec!["access_token", "client_id", "resource", "token_type", "not_before", "expires_on"],
        ),
    };
    assert_eq!(answer.status, 200, "{name}: {body}");
    let mut answered: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    answered.sort_unstable();
    assert_eq!(answered, fields, "{name}");
    assert!(body.as_object().unwrap().values().all(Value::is_string), "{name}: {body}");
    assert_eq!(body["resource"], resource, "{name}: echoed as sent");
    assert_eq!((&body["client_id"], &body["token_type"]), (&json!(CLIENT_ID), &json!("Bearer")), "{name}");
    let number = |key: &str| text(key).unwrap().parse::<i64>().unwrap();
    let now = wall_clock().as_second();
    assert!(number("not_before") <= now && number("expires_on") > now + 600, "{name}: {body}");
    if let Expected::Token(_) = expected {
        assert!((number("expires_on") - now - number("expires_in")).abs() <= 5, "{name}: {body}");
    }
    // The token is for that resource and that identity (az CLI reads its tenant out of it).
    let token = text("access_token").unwrap();
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    let of = (&claims["aud"], &claims["oid"], &claims["tid"]);
    assert_eq!(of, (&json!(resource), &json!(OBJECT_ID), &json!(TENANT)), "{name}");
}

#[tokio::test]
async fn each_on_a_connection_of_its_own() {
    let node = node().await;
    let recordings = recordings();
    let names: Vec<_> = EXPECTED.iter().map(|(name, _)| *name).collect();
    assert_eq!(recordings.keys().collect::<Vec<_>>(), names, "each recording has its expectation");
    for (name, expected) in EXPECTED {
        let answer = Client::connect(node.address).await.exchange(&recordings[*name]).await;
        check(name, *expected, &answer);
    }
    // One identity, two resources: two requests upstream, each by the resource id of the object.
    let upstream: Vec<_> = node.azures.entra.requests().into_iter().collect();
    assert_eq!(upstream.len(), 2, "{upstream:?}");
}

#[tokio::test]
async fn all_on_one_connection_at_once() {
    let node = node().await;
    let recordings = recordings();
    let mut client = Client::connect(node.address).await;
    let stays = |name: &str| !recordings[name].to_lowercase().contains("connection: close");
    let kept: Vec<_> = EXPECTED.iter().filter(|(name, _)| stays(name)).collect();
    assert!(kept.len() > 20);
    client.send(&kept.iter().map(|(name, _)| recordings[*name].as_str()).collect::<String>()).await;
    for (name, expected) in kept {
        check(name, *expected, &client.read().await.unwrap_or_else(|| panic!("{name}: the connection was closed")));
    }
}

/// Clients that are described in the reference but not among its recordings.
#[tokio::test]
async fn clients_that_were_read_or_run_without_a_recording() {
    let node = node().await;
    let path = "/metadata/identity/oauth2/token";
    let id = CLIENT_ID;
    let request =
        |target: &str, headers: &str| format!("GET {target} HTTP/1.1\r\nHost: 169.254.169.254\r\n{headers}\r\n");
    let metadata = "Metadata: true\r\n";
    for (name, request, expected) in [
        ("go azidentity 1.15, probe", request(path, "User-Agent: azsdk-go-azidentity/v1.15.0\r\n"), PROBE),
        (
            "go azidentity 1.15",
            request(
                &format!("{path}?api-version=2018-02-01&client_id={id}&resource=https%3A%2F%2Fvault.azure.net"),
                "Metadata: true\r\nX-Client-Sku: MSAL.Go\r\n",
            ),
            VAULT_TOKEN,
        ),
        (
            "go adal 0.9",
            request(
                &format!("{path}?api-version=2018-02-01&mi_res_id={ARM_ID}&resource=https%3A%2F%2Fvault.azure.net"),
                metadata,
            ),
            VAULT_TOKEN,
        ),
        ("java azure-identity 1.19, probe", request(&format!("{path}?api-version=2018-02-01"), ""), PROBE),
        (
            "java azure-identity 1.19",
            request(
                &format!(
                    "{path}?mi_res_id={}&resource=https%3A%2F%2Fvault.azure.net&api-version=2018-02-01",
                    ARM_ID.replace('/', "%2F").to_uppercase()
                ),
                "Metadata: true\r\nx-client-SKU: MSAL.Java\r\n",
            ),
            VAULT_TOKEN,
        ),
        (
            "msal4j 2024",
            request(&format!("/{path}?resource=https%3A%2F%2Fvault.azure.net&api-version=2018-02-01"), metadata),
            VAULT_TOKEN,
        ),
        (
            ".NET Azure.Identity, probe",
            request(&format!("{path}?api-version=2018-02-01&resource=x&msi-res-id={ARM_ID}"), ""),
            PROBE,
        ),
        (
            "MSAL .NET, capability",
            request("/metadata/identity/getplatformmetadata?cred-api-version=2.0", ""),
            Expected::Error(404, "not_found", "Not found"),
        ),
        (
            "MSAL .NET, credential",
            request("/metadata/identity/issuecredential?cred-api-version=2.0", metadata).replace("GET", "POST"),
            Expected::Error(404, "not_found", "Not found"),
        ),
        (
            "python azure-identity 1.5, probe",
            request(path, metadata),
            Expected::Error(400, "invalid_request", "Bad request. api-version"),
        ),
        (
            "msrestazure",
            request(&format!("{path}?resource=https://vault.azure.net&api-version=2018-02-01"), metadata),
            VAULT_TOKEN,
        ),
        (
            "wrong id",
            request(&format!("{path}?api-version=2018-02-01&resource=x&client_id={OBJECT_ID}"), metadata),
            Expected::Error(400, "invalid_request", "Identity not found"),
        ),
    ] {
        check(name, expected, &Client::connect(node.address).await.exchange(&request).await);
    }
    let info = Client::connect(node.address)
        .await
        .exchange(&request("/metadata/identity/info?api-version=2018-02-01", metadata))
        .await;
    assert_eq!(info.json(), json!({"tenantId": TENANT}), "from a token, since the object has no tenant");
}

/// The predecessor answered a JSON array, which no client reads. Here it is one token, of the identity's own tenant.
#[tokio::test]
async fn auxiliary_tenants_are_one_token() {
    let node = node_with(|azures| {
        json!({
            "type": 1, "tenantID": TENANT, "clientID": WITH_SECRET, "adEndpoint": azures.authority(),
            "clientPassword": {"name": "secret"}, "auxiliaryTenantIDs": ["99999999-9999-9999-9999-999999999999"],
        })
    })
    .await;
    let answer = Client::connect(node.address).await.exchange(&token(QUERY)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    assert!(body.is_object() && body["access_token"].is_string(), "{body}");
    let payload = body["access_token"].as_str().unwrap().split('.').nth(1).unwrap().to_owned();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
    assert_eq!((&claims["tid"], node.azures.posts()), (&json!(TENANT), 1));
}
