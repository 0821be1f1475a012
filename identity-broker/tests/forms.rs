//! The other forms of asking, and what HTTP allows around them.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

mod support;

use std::{sync::atomic::Ordering, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use identity_broker::{BrokerConfig, LimitsConfig, Rate, Reason, ServerConfig, TokenError};
use identity_core::lookup::{Caller, Decision, Deny, Request, RequestedIdentity};
use serde_json::json;
use support::{bench::*, *};

const TENANT: &str = "11111111-1111-1111-1111-111111111111";
const VAULT: &str = "https://vault.azure.net";

fn post(body: &str) -> String {
    format!(
        "POST /oauth2/token HTTP/1.1\r\nHost: x\r\nMetadata: true\r\nContent-Type: application/x-www-form-urlencoded;charset=utf-8\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn app_service(query: &str, header: &str) -> String {
    format!("GET /msi/token?{query} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n")
}

/// A token that says its tenant.
fn jwt(tenant: &str) -> String {
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2ln", part(json!({"alg": "none"})), part(json!({"tid": tenant, "nbf": 1_799_999_700})))
}

#[tokio::test]
async fn the_vm_extension_and_cloud_shell() {
    let bench = open_bench().await;
    let expected = json!({
        "access_token": "very-secret-token", "client_id": "22222222-2222-2222-2222-222222222222",
        "expires_in": "3600", "expires_on": "1800003600", "ext_expires_in": "3600", "not_before": "1800000000",
        "resource": VAULT, "token_type": "Bearer",
    });
    for request in [
        post("resource=https%3A%2F%2Fvault.azure.net"),
        post("resource=https://vault.azure.net&client_id=22222222-2222-2222-2222-222222222222"),
        get("/oauth2/token?resource=https%3A%2F%2Fvault.azure.net"),
        post("resource=https://vault.azure.net").replace("/oauth2/token", "//OAuth2/token/"),
        "POST /oauth2/token HTTP/1.1\r\nHost: x\r\nMetadata:true\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nresource=\r\n17\r\nhttps://vault.azure.net\r\n0\r\n\r\n".to_owned(),
    ] {
        let answer = bench.server.ask(&request).await;
        assert_eq!((answer.status, answer.json()), (200, expected.clone()), "{request}");
    }
    for (request, status, error, description) in [
        (
            post("resource=x").replace("Metadata: true\r\n", ""),
            400,
            "invalid_request",
            "Required metadata header not specified",
        ),
        (post(""), 400, "invalid_request", "Required query variable 'resource' is missing"),
        (post("resource=x&resource=y"), 400, "invalid_request", "Query variable 'resource' is given more than once"),
        (
            post("resource=x").replace("application/x-www-form-urlencoded", "application/json"),
            400,
            "invalid_request",
            "The Content-Type of the body must be application/x-www-form-urlencoded",
        ),
        (
            post(&format!("resource=x&a={}", "b".repeat(20_000))),
            413,
            "invalid_request",
            "The body is longer than 16384 bytes",
        ),
        (
            post("resource=x").replace("POST", "PUT"),
            405,
            "method_not_allowed",
            "The verb isn't supported on the endpoint: use GET, POST",
        ),
        (
            post("resource=x").replace("Metadata", "X-Forwarded-For: 10.0.0.1\r\nMetadata"),
            400,
            "invalid_request",
            "Requests with an X-Forwarded-For header are rejected",
        ),
    ] {
        let answer = bench.server.ask(&request).await;
        assert_eq!(answer.error(), (status, error.to_owned(), description.to_owned()), "{request}");
    }
}

#[tokio::test]
async fn app_service_of_both_versions() {
    let bench = open_bench().await;
    let expected = json!({
        "access_token": "very-secret-token", "client_id": "22222222-2222-2222-2222-222222222222",
        "expires_on": "1800003600", "not_before": "1800000000", "resource": VAULT, "token_type": "Bearer",
    });
    for request in [
        app_service("api-version=2019-08-01&resource=https://vault.azure.net", "X-IDENTITY-HEADER: sec"),
        app_service("api-version=2017-09-01&resource=https://vault.azure.net&clientid=2", "secret: sec"),
    ] {
        let answer = bench.server.ask(&request).await;
        assert_eq!((answer.status, answer.json()), (200, expected.clone()), "{request}");
    }
    // Its errors are of its own shape, and of ours.
    let answer = bench.server.ask(&app_service("api-version=2019-08-01&resource=x", "Metadata: true")).await;
    let text = "Required header X-IDENTITY-HEADER (or, for api-version 2017-09-01, secret) not specified";
    assert_eq!(answer.status, 400);
    assert_eq!(
        answer.json(),
        json!({"statusCode": 400, "message": text, "error": "invalid_request", "error_description": text})
    );
    let wrong = app_service("api-version=2019-08-01&resource=x", "X-IDENTITY-HEADER: sec").replace("GET", "POST");
    let answer = bench.server.ask(&wrong).await;
    assert_eq!((answer.status, &answer.json()["statusCode"], &*answer.headers["allow"]), (405, &json!(405), "GET"));
    bench.server.rules.set(|_, _| Decision::Deny(Deny::MultipleIdentities(pod("p"))));
    let answer = bench.server.ask(&app_service("api-version=2019-08-01&resource=x", "X-IDENTITY-HEADER: sec")).await;
    assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("invalid_request")));
    assert!(answer.json()["message"].as_str().unwrap().starts_with("Multiple user assigned identities exist"));
}

#[tokio::test]
async fn each_spelling_names_the_identity_it_is_for() {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen_by_rule = seen.clone();
    let allowed = allow("p", identity("i", KIND));
    let bench = bench(Rules::new(move |caller: &Caller<'_>, request: &Request<'_>| {
        let named = match request.identity {
            RequestedIdentity::Default => "default".to_owned(),
            RequestedIdentity::ClientId(id) => format!("client {id}"),
            RequestedIdentity::ObjectId(id) => format!("object {id}"),
            RequestedIdentity::ResourceId(id) => format!("resource {id}"),
        };
        seen_by_rule.lock().unwrap().push(named);
        allowed(caller, request)
    }))
    .await;
    for (request, expected) in [
        (token(QUERY), "default"),
        (token(&format!("{QUERY}&client_id=AbC")), "client AbC"),
        (token(&format!("{QUERY}&object_id=o")), "object o"),
        (token(&format!("{QUERY}&msi_res_id=/a/b")), "resource /a/b"),
        (token(&format!("{QUERY}&mi_res_id=%2Fa%2Fb")), "resource /a/b"),
        // Ignored by IMDS, which knows neither (Python's identity_config).
        (token(&format!("{QUERY}&principal_id=o&resource_id=r")), "default"),
        (post("resource=x&object_id=o"), "object o"),
        (app_service("api-version=2017-09-01&resource=x&clientid=c", "secret: s"), "client c"),
        (app_service("api-version=2019-08-01&resource=x&principal_id=o", "x-identity-header: s"), "object o"),
        (app_service("api-version=2019-08-01&resource=x&mi_res_id=%2Fa", "x-identity-header: s"), "resource /a"),
    ] {
        seen.lock().unwrap().clear();
        assert_eq!(bench.server.ask(&request).await.status, 200, "{request}");
        assert!(seen.lock().unwrap().iter().all(|named| named == expected), "{request}: {:?}", seen.lock().unwrap());
    }
}

#[tokio::test]
async fn the_tenant() {
    let info = |query: &str| get(&format!("/metadata/identity/info?{query}"));
    let bench = open_bench().await;
    let answer = bench.server.ask(&info("api-version=2018-02-01")).await;
    assert_eq!((answer.status, answer.json()), (200, json!({"tenantId": TENANT})));
    assert_eq!(bench.upstream.calls.load(Ordering::SeqCst), 0);
    assert_eq!(bench.server.records.all(), Vec::<String>::new());
    assert_eq!(bench.server.metrics.requests(Reason::Informed), 1);

    // An object without an id of a tenant: what the token says. The token stays.
    for tenant in [None, Some("contoso.onmicrosoft.com")] {
        let mut unsaid = identity(tenant.unwrap_or("unsaid"), KIND);
        unsaid.tenant_id = tenant.map(Into::into);
        bench.server.rules.set(allow("p", unsaid));
        *bench.upstream.token.lock().unwrap() = jwt("aaaaaaaa-1111-1111-1111-111111111111");
        let answer = bench.server.ask(&info("api-version=2018-02-01&client_id=x")).await;
        assert_eq!(answer.json(), json!({"tenantId": "aaaaaaaa-1111-1111-1111-111111111111"}));
    }
    assert_eq!(bench.upstream.calls.load(Ordering::SeqCst), 2);

    // Audiences that are not allowed say nothing about the tenant.
    let denied = pod("p");
    let theirs = assignment(&denied, identity("i", KIND));
    bench.server.rules.set(move |_, _| Decision::Deny(Deny::Audience(denied.clone(), theirs.clone())));
    assert_eq!(bench.server.ask(&info("api-version=2018-02-01")).await.json(), json!({"tenantId": TENANT}));

    bench.server.rules.set(|_, _| Decision::Deny(Deny::NoBinding(pod("p"))));
    let answer = bench.server.ask(&info("api-version=2018-02-01")).await;
    assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("invalid_request")));
    assert_eq!(bench.server.ask(&info("")).await.status, 400);
    let unguarded = info("api-version=2018-02-01").replace("Metadata: true\r\n", "");
    assert_eq!(bench.server.ask(&unguarded).await.error().2, "Required metadata header not specified");
    let posted = info("api-version=2018-02-01").replace("GET", "POST");
    assert_eq!(bench.server.ask(&posted).await.status, 405);
}

#[tokio::test]
async fn authority_is_the_identitys_or_refused() {
    let bench = open_bench().await;
    let with = |authority: &str| token(&format!("{QUERY}&authority={authority}"));
    for fine in [
        "https://login.microsoftonline.com",
        "https%3A%2F%2Flogin.microsoftonline.com%2F11111111-1111-1111-1111-111111111111",
        "https://LOGIN.microsoftonline.com/11111111-1111-1111-1111-111111111111/",
    ] {
        assert_eq!(bench.server.ask(&with(fine)).await.status, 200, "{fine}");
    }
    let calls = bench.upstream.calls.load(Ordering::SeqCst);
    for wrong in [
        "https://login.microsoftonline.us/11111111-1111-1111-1111-111111111111",
        "https://login.microsoftonline.com/99999999-1111-1111-1111-111111111111",
        "https://login.microsoftonline.com/common",
    ] {
        let (status, error, description) = bench.server.ask(&with(wrong)).await.error();
        assert_eq!((status, &*error), (400, "invalid_request"), "{wrong}");
        assert!(description.contains("authority"), "{description}");
    }
    assert_eq!(bench.upstream.calls.load(Ordering::SeqCst), calls);
    assert!(bench.server.records.all().iter().any(|line| line.starts_with("failed authority p")));
}

#[tokio::test]
async fn bypass_cache_goes_upstream_but_not_for_ever() {
    let bench = open_bench().await;
    for _ in 0..2 {
        assert_eq!(bench.server.ask(&token(QUERY)).await.status, 200);
    }
    assert_eq!(bench.upstream.calls.load(Ordering::SeqCst), 1);
    *bench.upstream.token.lock().unwrap() = "another".into();
    let answer = bench.server.ask(&token(&format!("{QUERY}&bypass_cache=true"))).await;
    assert_eq!(answer.json()["access_token"], "another");
    assert_eq!((bench.upstream.calls.load(Ordering::SeqCst), bench.upstream.fresh.load(Ordering::SeqCst)), (2, 1));
    // It is the one in the cache from now on.
    assert_eq!(bench.server.ask(&token(QUERY)).await.json()["access_token"], "another");
    let mut refused = None;
    for _ in 0..30 {
        let answer = bench.server.ask(&token(&format!("{QUERY}&bypass_cache=true"))).await;
        if answer.status != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("bounded");
    assert_eq!((refused.error().0, refused.error().1), (429, "too_many_requests".to_owned()));
    assert!(refused.headers["retry-after"].parse::<u64>().unwrap() >= 1);
    assert!(bench.upstream.calls.load(Ordering::SeqCst) <= 2 + 10);
    // The cache still answers.
    assert_eq!(bench.server.ask(&token(QUERY)).await.status, 200);
}

#[tokio::test]
async fn verbs() {
    let bench = open_bench().await;
    for path in ["/metadata/identity/oauth2/token", "/metadata/identity/info"] {
        for verb in ["HEAD", "PUT", "TRACE", "DELETE", "OPTIONS", "PATCH", "POST", "BREW"] {
            let request = |headers: &str| {
                format!("{verb} {path}?{QUERY} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n")
            };
            // The header check comes first.
            let mut client = Client::connect(bench.server.address).await;
            client.send(&request("")).await;
            assert_eq!(client.read_head(verb == "HEAD").await.status, 400, "{verb} {path}");
            let mut client = Client::connect(bench.server.address).await;
            client.send(&request("Metadata: true\r\n")).await;
            let answer = client.read_head(verb == "HEAD").await;
            assert_eq!((answer.status, &*answer.headers["allow"]), (405, "GET"), "{verb} {path}");
        }
    }
    assert_eq!(bench.upstream.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn http_1_0_keep_alive_close_and_pipelining() {
    let bench = open_bench().await;
    let path = format!("/metadata/identity/oauth2/token?{QUERY}");
    let mut old = Client::connect(bench.server.address).await;
    let answer = old.exchange(&format!("GET {path} HTTP/1.0\r\nMetadata: true\r\n\r\n")).await;
    assert_eq!(answer.status, 200);
    assert!(old.closed().await);
    let mut kept = Client::connect(bench.server.address).await;
    let again = format!("GET {path} HTTP/1.0\r\nConnection: keep-alive\r\nMetadata: true\r\n\r\n");
    assert_eq!((kept.exchange(&again).await.status, kept.exchange(&again).await.status), (200, 200));
    let mut closing = Client::connect(bench.server.address).await;
    let last = token(QUERY).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    let answer = closing.exchange(&last).await;
    assert_eq!((answer.status, &*answer.headers["connection"]), (200, "close"));
    assert!(closing.closed().await);

    // Answers come in the order of the requests, whatever they are.
    let mut piped = Client::connect(bench.server.address).await;
    let probe = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let one = [token(QUERY), probe, post("resource=y"), get("/metadata/identity/nothing"), post("")].concat();
    piped.send(&one.repeat(20)).await;
    for _ in 0..20 {
        let mut statuses = Vec::new();
        for _ in 0..5 {
            statuses.push(piped.read().await.unwrap().status);
        }
        assert_eq!(statuses, [200, 400, 200, 404, 400]);
    }

    // Any Host, or none.
    for host in ["Host: 169.254.169.254\r\n", "Host: attacker.example\r\n", ""] {
        let request = format!("GET {path} HTTP/1.1\r\n{host}Metadata: true\r\n\r\n");
        assert_eq!(bench.server.ask(&request).await.status, 200, "{host}");
    }
}

#[tokio::test]
async fn a_url_of_a_megabyte_is_answered_and_the_answer_can_be_read() {
    let bench = open_bench().await;
    for length in [9_000, 20_000, 30_000, 100_000, 1 << 20] {
        let mut client = Client::connect(bench.server.address).await;
        let request = get(&format!("/metadata/identity/oauth2/token?{QUERY}&x={}", "a".repeat(length)));
        // All of it is taken, although nobody is interested: else the answer would be lost.
        client.send(&request).await;
        let answer = client.read().await.expect("an answer");
        assert!(matches!(answer.status, 414 | 431), "{length}: {answer:?}");
        assert!(client.closed().await);
    }
    assert_eq!(bench.server.ask(&token(QUERY)).await.status, 200);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let config = BrokerConfig { body_timeout: Duration::from_millis(50), ..BrokerConfig::default() };
    let rules = Rules::new(allow("p", identity("i", KIND)));
    let bench = bench_with(rules, config, ServerConfig::default()).await;
    let mut client = Client::connect(bench.server.address).await;
    let whole = post("resource=https://vault.azure.net");
    client.send(&whole[..whole.len() - 3]).await;
    let answer = client.read().await.unwrap();
    assert_eq!((answer.error().0, &*answer.headers["connection"]), (408, "close"));
    assert!(client.closed().await);
    // One that ends early has nobody who reads an answer; nothing else suffers.
    let mut client = Client::connect(bench.server.address).await;
    client.send(&whole[..whole.len() - 3]).await;
    drop(client);
    bench.upstream.gate.add_permits(1);
    assert_eq!(bench.server.ask(&whole).await.status, 200);
    assert_eq!(bench.upstream.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn whoever_does_not_read_is_given_up() {
    let server = ServerConfig { write_timeout: Duration::from_millis(50), ..ServerConfig::default() };
    let limits = LimitsConfig { cheap: Rate::UNLIMITED, ..LimitsConfig::default() };
    let config = BrokerConfig { limits, ..BrokerConfig::default() };
    let bench = bench_with(Rules::new(allow("p", identity("i", KIND))), config, server).await;
    let mut deaf = Client::connect(bench.server.address).await;
    assert_eq!(deaf.exchange(&get("/metadata/identity/nothing")).await.status, 404);
    assert_eq!(bench.server.metrics.connections.get(), 1);
    // Far more answers than fit into the buffers of both sides.
    let sending = async {
        loop {
            deaf.send_anyway(get("/metadata/identity/nothing").repeat(100)).await;
            if bench.server.metrics.connections.get() == 0 {
                break;
            }
        }
    };
    tokio::time::timeout(LIMIT, sending).await.expect("given up");
}

/// CVE-2022-23551 of the predecessor, on the wire: its router did not know these paths for what its upstream took them
/// for. Here they are refused before anything else is done, whatever is behind the endpoint.
#[tokio::test]
async fn paths_that_two_readers_read_differently_are_nobodys() {
    let bench = open_bench().await;
    for path in [
        "/metadata/identity\\oauth2\\token/",
        "/metadata/identity\\oauth2/token",
        "/metadata/identity%5Coauth2%5Ctoken",
        "/metadata/identity%2foauth2%2ftoken",
        "/metadata/identity;x/oauth2/token",
        "/metadata/instance/../identity/oauth2/token",
        "/metadata/instance/..%2fidentity/oauth2/token",
        "/metadata/%2569dentity/oauth2/token",
        "/metadata/identity./oauth2/token",
    ] {
        let (status, error, text) = bench.server.ask(&get(&format!("{path}?{QUERY}"))).await.error();
        assert_eq!((status, &*error), (400, "invalid_request"), "{path}");
        assert!(text.starts_with("The path has"), "{path}: {text}");
    }
    assert_eq!(bench.server.metrics.requests(Reason::BadTarget), 9);
    assert_eq!(bench.upstream.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_tenant_of_an_identity_that_was_lost_meanwhile_is_not_told() {
    let mut unsaid = identity("i", KIND);
    unsaid.tenant_id = None;
    let rules = Rules::new(allow("p", unsaid));
    let bench = bench_with(rules, BrokerConfig::default(), ServerConfig::default()).await;
    *bench.upstream.token.lock().unwrap() = jwt(TENANT);
    let mut client = Client::connect(bench.server.address).await;
    client.send(&get("/metadata/identity/info?api-version=2018-02-01")).await;
    until("asked", || bench.upstream.calls.load(Ordering::SeqCst) == 1).await;
    bench.server.rules.set(|_, _| Decision::Deny(Deny::NoBinding(pod("p"))));
    bench.upstream.gate.add_permits(1);
    let answer = client.read().await.unwrap();
    assert_eq!(answer.error().0, 400);
    assert!(!answer.body.contains(TENANT));
}

#[tokio::test]
async fn objects_of_other_namespaces_are_not_named() {
    let bench = open_bench().await;
    let names = ["secret-name", "elsewhere"];
    for (namespace, told) in [("ns", true), ("elsewhere", false)] {
        let mut owned = identity("i", KIND);
        owned.object.namespace = namespace.into();
        bench.server.rules.set(allow("p", owned));
        for failure in [
            TokenError::Misconfigured { identity: format!("{namespace}/i"), message: "Secret x/secret-name".into() },
            TokenError::Unavailable { message: "Secret x/secret-name".into(), retry_after: Duration::from_secs(1) },
        ] {
            *bench.upstream.fail.lock().unwrap() = Some(failure.clone());
            let resource = format!("{namespace}-{}", matches!(failure, TokenError::Unavailable { .. }));
            let answer = bench.server.ask(&token(&format!("api-version=2018-02-01&resource={resource}"))).await;
            assert!(matches!(answer.status, 400 | 503));
            assert_eq!(names.iter().any(|name| answer.error().2.contains(name)), told, "{answer:?}");
        }
    }
}
