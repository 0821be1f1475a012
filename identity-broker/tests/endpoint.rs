//! The endpoint over loopback: parameters, errors, holding, pinning, deciding again, audit, limits.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use identity_broker::{
    BrokerConfig, LimitsConfig, OnAuditFailure, Reason, ServerConfig, TokenError, Turned,
    tokens::{Refusal, RefusalKind},
};
use identity_core::lookup::{Allow, Caller, Decision, Deny, Request, Source, Wait};
use jiff::Timestamp;
use support::{bench::*, *};

#[tokio::test]
async fn a_token() {
    let bench = open_bench().await;
    let answer = bench.server.ask(&token(QUERY)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "application/json; charset=utf-8");
    assert!(answer.headers["server"].starts_with("IMDS/"));
    let expected = serde_json::json!({
        "access_token": "very-secret-token", "client_id": "22222222-2222-2222-2222-222222222222",
        "expires_in": "3600", "expires_on": "1800003600", "ext_expires_in": "3600", "not_before": "1800000000",
        "resource": "https://vault.azure.net", "token_type": "Bearer",
    });
    assert_eq!(answer.json(), expected);
    assert_eq!(bench.server.records.all(), ["issued issued p https://vault.azure.net"]);
    assert_eq!(bench.server.metrics.requests(Reason::Issued), 1);
    bench.server.stop().await;
}

#[tokio::test]
async fn every_form_of_the_request_that_clients_send() {
    let bench = open_bench().await;
    for target in [
        format!("/metadata/identity/oauth2/token?{QUERY}"),
        format!("/metadata/identity/oauth2/token/?{QUERY}"),
        format!("//metadata/identity/oauth2/token?{QUERY}"),
        "/metadata/identity/oauth2/token?api-version=2019-08-01&resource=https%3A%2F%2Fvault.azure.net".to_owned(),
    ] {
        let answer = bench.server.ask(&get(&target)).await;
        assert_eq!((answer.status, &answer.json()["resource"]), (200, &"https://vault.azure.net".into()), "{target}");
    }
    for header in ["metadata: true", "Metadata:true", "METADATA:  true"] {
        let request = format!("GET /metadata/identity/oauth2/token?{QUERY} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n");
        assert_eq!(bench.server.ask(&request).await.status, 200, "{header}");
    }
}

#[tokio::test]
async fn probes_are_answered_at_once_whoever_asks() {
    let bench = bench(Rules::new(|_, _| Decision::Wait(Wait::UnknownAddress))).await;
    let base = "/metadata/identity/oauth2/token";
    for target in [
        base.to_owned(),
        format!("{base}?api-version=2018-02-01"),
        format!("{base}?{QUERY}"),
        format!("{base}?{QUERY}&msi-res-id=x&object_id=y"),
    ] {
        let answer = bench.server.ask(&format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        let expected = (400, "invalid_request".to_owned(), "Required metadata header not specified".to_owned());
        assert_eq!(answer.error(), expected, "{target}");
        assert!(!answer.body.contains("Identity not found"));
    }
    // Python 1.5: with the header, without a query.
    assert_eq!(bench.server.ask(&get(base)).await.status, 400);
    for newer in ["getplatformmetadata?cred-api-version=2.0", "issuecredential?cred-api-version=2.0"] {
        for header in ["", "Metadata: true\r\n"] {
            let request = format!("GET /metadata/identity/{newer} HTTP/1.1\r\nHost: x\r\n{header}\r\n");
            assert_eq!(bench.server.ask(&request).await.status, 404, "{newer}");
        }
    }
    assert_eq!(bench.upstream.calls.load(Ordering::SeqCst), 0);
    assert_eq!(bench.server.records.all(), Vec::<String>::new());
}

#[tokio::test]
async fn wrong_requests() {
    let bench = open_bench().await;
    let path = "/metadata/identity/oauth2/token";
    let line = |line: &str, headers: &str| format!("{line} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    let meta = "Metadata: true\r\n";
    let missing = "Required metadata header not specified";
    let version = "Bad request. api-version is invalid or was not specified in the request. For more information refer to aka.ms/azureimds";
    for (request, status, error, description) in [
        (token("api-version=2018-02-01"), 400, "invalid_request", "Required query variable 'resource' is missing"),
        (token("resource=x"), 400, "invalid_request", version),
        (token("api-version=2017-12-01&resource=x"), 400, "invalid_request", version),
        (
            token(&format!("{QUERY}&resource=y")),
            400,
            "invalid_request",
            "Query variable 'resource' is given more than once",
        ),
        (
            token(&format!("{QUERY}&client_id=a&msi_res_id=b")),
            400,
            "invalid_request",
            "Only one of client_id, object_id and msi_res_id may be given",
        ),
        (line(&format!("GET {path}?{QUERY}"), "Metadata: false\r\n"), 400, "invalid_request", missing),
        (line(&format!("GET {path}?{QUERY}"), "Metadata: true\r\nMetadata: true\r\n"), 400, "invalid_request", missing),
        // The header check comes first.
        (line(&format!("POST {path}"), "X-Forwarded-For: 10.0.0.1\r\n"), 400, "invalid_request", missing),
        (
            line(&format!("GET {path}?{QUERY}"), &format!("{meta}X-Forwarded-For: 10.0.0.1\r\n")),
            400,
            "invalid_request",
            "Requests with an X-Forwarded-For header are rejected",
        ),
        (
            line(&format!("POST {path}?{QUERY}"), &format!("{meta}Content-Length: 0\r\n")),
            405,
            "method_not_allowed",
            "The verb isn't supported on the endpoint: use GET",
        ),
        (line(&format!("GET {path}/../token?{QUERY}"), meta), 400, "invalid_request", "The path has a dot segment"),
        (
            line(&format!("GET /metadata%2fidentity/oauth2/token?{QUERY}"), meta),
            400,
            "invalid_request",
            "The path has a character that is not allowed in it",
        ),
        (
            line(&format!("GET /metadata/identity/oauth2/token;a?{QUERY}"), meta),
            400,
            "invalid_request",
            "The path has a character that is not allowed in it",
        ),
        (
            line(&format!("GET http://169.254.169.254{path}?{QUERY}"), meta),
            400,
            "invalid_request",
            "The request target must be an absolute path",
        ),
        (line("GET /metadata/identity/infos?api-version=2018-02-01", meta), 404, "not_found", "Not found"),
        (
            line("GET /metadata/instance?api-version=2021-02-01", meta),
            403,
            "access_denied",
            "Access to this path of the metadata service is blocked by the cluster's policy",
        ),
        (
            line("GET /host/token", meta),
            403,
            "access_denied",
            "Access to this path of the metadata service is blocked by the cluster's policy",
        ),
    ] {
        let answer = bench.server.ask(&request).await;
        assert_eq!(answer.error(), (status, error.to_owned(), description.to_owned()), "{request}");
        assert_eq!(answer.headers.get("allow").map(String::as_str), (status == 405).then_some("GET"));
        assert!(!answer.headers.contains_key("retry-after"), "{request}");
    }
    assert_eq!(bench.upstream.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn truncated_and_oversized_requests_leave_the_rest_alone() {
    let bench = open_bench().await;
    let mut steady = Client::connect(bench.server.address).await;
    assert_eq!(steady.exchange(&token(QUERY)).await.status, 200);
    let long = |n: usize| "a".repeat(n);
    for (what, request, status) in [
        ("long target", get(&format!("/metadata/identity/oauth2/token?{QUERY}&x={}", long(9000))), 414),
        ("head of a megabyte", format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", long(1 << 20)), 431),
        ("many headers", format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(200)), 431),
        ("not HTTP", "\u{16}\u{3}\u{1}\r\n\r\n".to_owned(), 400),
        ("no version", "GET /metadata/identity/oauth2/token\r\n\r\n".to_owned(), 400),
    ] {
        let mut client = Client::connect(bench.server.address).await;
        // The server may close before it has read all of it.
        client.send_anyway(&request).await;
        if let Some(answer) = client.read().await {
            assert_eq!(answer.status, status, "{what}");
        }
    }
    // Half a request, and gone.
    let mut half = Client::connect(bench.server.address).await;
    half.send("GET /metadata/identity/oauth2/token?api-ver").await;
    drop(half);
    assert_eq!(steady.exchange(&token(QUERY)).await.status, 200);
}

#[tokio::test]
async fn half_a_request_does_not_stay() {
    let limits = ServerConfig { header_timeout: Duration::from_millis(50), ..ServerConfig::default() };
    let bench = bench_with(Rules::new(allow("p", identity("i", KIND))), BrokerConfig::default(), limits).await;
    let mut client = Client::connect(bench.server.address).await;
    client.send("GET /metadata/identity/oauth2/token HTTP/1.1\r\nHost:").await;
    let answer = client.read().await;
    assert!(answer.is_none_or(|answer| answer.status == 408), "closed");
    // Neither does a connection without any.
    assert!(Client::connect(bench.server.address).await.closed().await);
    // Nor one that sends a byte now and then: the time is for the whole head.
    let open = || bench.server.metrics.connections.get();
    until("the others are closed", || open() == 0).await;
    let mut dripping = Client::connect(bench.server.address).await;
    until("open", || open() == 1).await;
    let mut every = tokio::time::interval(Duration::from_millis(5));
    dripping.send("GET /metadata/identity/oauth2/token HTTP/1.1\r\nX: ").await;
    let given_up = async {
        while open() > 0 {
            every.tick().await;
            dripping.send_anyway("x").await;
        }
    };
    tokio::time::timeout(LIMIT, given_up).await.expect("given up");
}

#[tokio::test]
async fn whoever_dials_the_port_directly_is_refused() {
    let bench = open_bench().await;
    for dialled in [bench.server.address.to_string(), "10.42.0.1:2579".into(), "169.254.169.254:8080".into()] {
        *bench.server.dialled.0.lock().unwrap() = dialled.parse().unwrap();
        let mut client = Client::connect(bench.server.address).await;
        let (status, error, _) = client.exchange(&token(QUERY)).await.error();
        assert_eq!((status, &*error), (403, "access_denied"), "{dialled}");
        assert!(client.closed().await);
    }
    assert_eq!(bench.server.metrics.turned(Turned::Direct), 3);
    assert_eq!(bench.upstream.calls.load(Ordering::SeqCst), 0);
    *bench.server.dialled.0.lock().unwrap() = metadata();
    assert_eq!(bench.server.ask(&token(QUERY)).await.status, 200);
}

#[tokio::test]
async fn denials_are_the_endpoints_own_errors_and_recorded() {
    let rules = Rules::new(|_, _| Decision::Deny(Deny::HostNetwork));
    let bench = bench(Arc::clone(&rules)).await;
    let p = pod("p");
    let a = assignment(&p, identity("i", KIND));
    let multiple = "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request";
    for (deny, status, error, description) in [
        (
            Deny::NoBinding(p.clone()),
            400,
            "invalid_request",
            "Identity not found: no AzureIdentityBinding selects this pod. In namespace ns, spec.selector of a binding has to be the pod's label aadpodidbinding, or its spec.podSelector and spec.serviceAccounts have to match the pod",
        ),
        (
            Deny::IdentityNotFound(p.clone()),
            400,
            "invalid_request",
            "Identity not found: none of the identities that are assigned to this pod has the requested id. Name one that an AzureIdentityBinding gives to the pod (spec.clientID, spec.objectID or spec.resourceID of its AzureIdentity), or leave the parameter out",
        ),
        (Deny::MultipleIdentities(p.clone()), 400, "invalid_request", multiple),
        (
            Deny::Audience(p.clone(), a),
            403,
            "access_denied",
            "The requested resource is not among the audiences that AzureIdentityBinding ns/binding and AzureIdentity ns/i allow: add it to spec.audiences",
        ),
        (Deny::HostNetwork, 403, "access_denied", "Pods in the host's network and the node itself get no tokens here"),
    ] {
        let name = format!("{deny:?}");
        rules.set(move |_, _| Decision::Deny(deny.clone()));
        let answer = bench.server.ask(&token(QUERY)).await;
        assert_eq!(answer.error(), (status, error.to_owned(), description.to_owned()), "{name}");
        assert!(!answer.body.contains("unreachable"));
        assert!(!answer.headers.contains_key("retry-after"));
    }
    assert_eq!(
        bench.server.records.all(),
        [
            "denied no_binding p https://vault.azure.net",
            "denied identity_not_found p https://vault.azure.net",
            "denied multiple_identities p https://vault.azure.net",
            "denied audience p https://vault.azure.net",
            "denied host_network ? https://vault.azure.net",
        ]
    );
}

#[tokio::test]
async fn what_is_not_yet_is_held_and_woken_by_the_change() {
    let rules = Rules::new(|_, _| Decision::Wait(Wait::UnknownAddress));
    let hold = BrokerConfig { hold: LIMIT * 10, ..BrokerConfig::default() };
    let bench = bench_with(Arc::clone(&rules), hold, ServerConfig::default()).await;
    bench.upstream.gate.add_permits(10);
    let mut client = Client::connect(bench.server.address).await;
    client.send(&token(QUERY)).await;
    until("held", || bench.server.metrics.held.get() == 1).await;
    // A change that is not the one waited for.
    rules.set(|_, _| Decision::Wait(Wait::Assignment(pod("p"))));
    rules.set(allow("p", identity("i", KIND)));
    assert_eq!(client.read().await.unwrap().status, 200);
    assert_eq!(bench.server.metrics.held.get(), 0);
}

#[tokio::test]
async fn holding_ends() {
    let short = BrokerConfig { hold: Duration::from_millis(30), ..BrokerConfig::default() };
    for (wait, reason) in [
        (Wait::UnknownAddress, Reason::UnknownAddress),
        (Wait::AmbiguousAddress, Reason::AmbiguousAddress),
        (Wait::Assignment(pod("p")), Reason::NotAssignedYet),
    ] {
        let rules = Rules::new(move |_, _| Decision::Wait(wait.clone()));
        let bench = bench_with(rules, short.clone(), ServerConfig::default()).await;
        let answer = bench.server.ask(&token(QUERY)).await;
        let (status, error, _) = answer.error();
        assert_eq!((status, &*error, &*answer.headers["retry-after"]), (503, "service_unavailable", "1"));
        assert_eq!(bench.server.metrics.requests(reason), 1);
        assert_eq!(bench.server.records.all().len(), 1);
    }
}

#[tokio::test]
async fn one_address_holds_only_so_many() {
    let rules = Rules::new(|_, _| Decision::Wait(Wait::UnknownAddress));
    let config = BrokerConfig {
        hold: LIMIT * 10,
        limits: LimitsConfig { waiting: 3, ..LimitsConfig::default() },
        ..BrokerConfig::default()
    };
    let bench = bench_with(Arc::clone(&rules), config, ServerConfig::default()).await;
    bench.upstream.gate.add_permits(10);
    let mut held = Vec::new();
    for n in 1..=3 {
        let mut client = Client::connect(bench.server.address).await;
        client.send(&token(QUERY)).await;
        until("held", || bench.server.metrics.held.get() == n).await;
        held.push(client);
    }
    let answer = bench.server.ask(&token(QUERY)).await;
    assert_eq!(
        (answer.error().0, &*answer.error().1, &*answer.headers["retry-after"]),
        (429, "too_many_requests", "1")
    );
    // A client that goes away frees its place.
    drop(held.pop());
    until("freed", || bench.server.metrics.held.get() == 2).await;
    rules.set(allow("p", identity("i", KIND)));
    for mut client in held {
        assert_eq!(client.read().await.unwrap().status, 200);
    }
    // Every place is free again.
    assert_eq!(bench.server.ask(&token(QUERY)).await.status, 200);
}

#[tokio::test]
async fn what_was_revoked_while_upstream_was_slow_does_not_leave() {
    let rules = Rules::new(allow("p", identity("i", KIND)));
    let bench = bench_with(Arc::clone(&rules), BrokerConfig::default(), ServerConfig::default()).await;
    let mut client = Client::connect(bench.server.address).await;
    client.send(&token(QUERY)).await;
    until("asked", || bench.upstream.calls.load(Ordering::SeqCst) == 1).await;
    rules.set(|_, _| Decision::Deny(Deny::NoBinding(pod("p"))));
    bench.upstream.gate.add_permits(1);
    let answer = client.read().await.unwrap();
    assert_eq!(answer.error().0, 400);
    assert!(!answer.body.contains("very-secret-token"));
    assert_eq!(bench.server.records.all(), ["denied no_binding p https://vault.azure.net"]);
}

#[tokio::test]
async fn an_identity_swapped_while_upstream_was_slow_is_the_one_answered() {
    let rules = Rules::new(allow("p", identity("old", KIND)));
    let bench = bench_with(Arc::clone(&rules), BrokerConfig::default(), ServerConfig::default()).await;
    let mut client = Client::connect(bench.server.address).await;
    client.send(&token(QUERY)).await;
    until("asked", || bench.upstream.calls.load(Ordering::SeqCst) == 1).await;
    let mut new = identity("new", KIND);
    new.client_id = Some("new-client".into());
    rules.set(allow("p", new));
    bench.upstream.gate.add_permits(2);
    assert_eq!(client.read().await.unwrap().json()["client_id"], "new-client");
    assert_eq!(bench.upstream.calls.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_decision_that_changes_while_the_record_is_written_is_the_last_word() {
    // Allowed twice (before and after upstream), denied the third time (after the record).
    let asked = AtomicUsize::new(0);
    let allowed = allow("p", identity("i", KIND));
    let rules = Rules::new(move |caller: &Caller<'_>, request: &Request<'_>| {
        if asked.fetch_add(1, Ordering::SeqCst) < 2 {
            allowed(caller, request)
        } else {
            Decision::Deny(Deny::NoBinding(pod("p")))
        }
    });
    let bench = bench(rules).await;
    let answer = bench.server.ask(&token(QUERY)).await;
    assert_eq!(answer.error().0, 400);
    assert_eq!(
        bench.server.records.all(),
        ["issued issued p https://vault.azure.net", "withdrawn no_binding p https://vault.azure.net"]
    );
}

#[tokio::test]
async fn no_answer_claims_a_life_past_the_permission() {
    let p = pod("p");
    let a = assignment(&p, identity("i", KIND));
    let until = Timestamp::from_second(1_800_000_090).unwrap();
    let rules = Rules::new(move |_, _| {
        Decision::Allow(Allow { pod: Arc::clone(&p), source: Source::Assignment(Arc::clone(&a)), until: Some(until) })
    });
    let bench = bench(rules).await;
    let body = bench.server.ask(&token(QUERY)).await.json();
    assert_eq!(
        (&body["expires_on"], &body["expires_in"], &body["ext_expires_in"]),
        (&"1800000090".into(), &"90".into(), &"90".into())
    );
}

/// What the endpoint can do against CVE-2021-1677 of the predecessor, a pod that takes another's address: a connection is
/// one pod's, and an address that several have is nobody's (see `holding_ends`).
#[tokio::test]
async fn a_connection_stays_with_its_pod() {
    // The address goes from pod a to pod b; the rule is what the lookup promises for pinned callers.
    let rule = |owner: &'static str| {
        let allowed = allow(owner, identity(owner, KIND));
        move |caller: &Caller<'_>, request: &Request<'_>| match caller.pinned {
            Some(pinned) if pinned != format!("uid-{owner}") => Decision::Deny(Deny::AddressChangedHands),
            _ => allowed(caller, request),
        }
    };
    let rules = Rules::new(rule("a"));
    let bench = bench(Arc::clone(&rules)).await;
    let mut kept = Client::connect(bench.server.address).await;
    assert_eq!(kept.exchange(&token(QUERY)).await.status, 200);
    assert_eq!(kept.exchange(&token(QUERY)).await.status, 200);
    rules.set(rule("b"));
    let answer = kept.exchange(&token(QUERY)).await;
    assert_eq!((answer.status, &*answer.headers["connection"]), (503, "close"));
    assert!(kept.closed().await);
    assert_eq!(bench.server.ask(&token(QUERY)).await.status, 200);
}

#[tokio::test]
async fn no_record_no_token() {
    let bench = open_bench().await;
    bench.server.records.fail.store(true, Ordering::SeqCst);
    let answer = bench.server.ask(&token(QUERY)).await;
    assert_eq!((answer.error().0, &*answer.headers["retry-after"]), (503, "5"));
    assert!(!answer.body.contains("very-secret-token"));
    bench.server.records.fail.store(false, Ordering::SeqCst);
    assert_eq!(bench.server.ask(&token(QUERY)).await.status, 200);

    let config = BrokerConfig { on_audit_failure: OnAuditFailure::Allow, ..BrokerConfig::default() };
    let lenient = bench_with(Rules::new(allow("p", identity("i", KIND))), config, ServerConfig::default()).await;
    lenient.upstream.gate.add_permits(1);
    lenient.server.records.fail.store(true, Ordering::SeqCst);
    assert_eq!(lenient.server.ask(&token(QUERY)).await.status, 200);
}

#[tokio::test]
async fn what_upstream_says() {
    for (failure, status, error, retry) in [
        (
            TokenError::Refused(Refusal {
                error: RefusalKind::InvalidResource,
                description: "AADSTS500011: no such principal".into(),
                trace_id: None,
            }),
            400,
            "invalid_resource",
            None,
        ),
        (
            TokenError::Misconfigured { identity: "ns/i".into(), message: "spec.tenantID is missing".into() },
            400,
            "invalid_request",
            None,
        ),
        (
            TokenError::Unavailable { message: "Entra answered 429".into(), retry_after: Duration::from_millis(1500) },
            503,
            "service_unavailable",
            Some("2"),
        ),
    ] {
        let bench = open_bench().await;
        *bench.upstream.fail.lock().unwrap() = Some(failure.clone());
        let answer = bench.server.ask(&token(QUERY)).await;
        assert_eq!(answer.error(), (status, error.to_owned(), failure.to_string()));
        assert_eq!(answer.headers.get("retry-after").map(String::as_str), retry);
        assert!(bench.server.records.all()[0].starts_with("failed "));
    }
}

#[tokio::test]
async fn fifty_at_once_are_one_request_upstream() {
    let rules = Rules::new(allow("p", identity("i", KIND)));
    let bench = bench_with(rules, BrokerConfig::default(), ServerConfig::default()).await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = Client::connect(bench.server.address).await;
        client.send(&token(QUERY)).await;
        clients.push(client);
    }
    until("asked", || bench.upstream.calls.load(Ordering::SeqCst) == 1).await;
    bench.upstream.gate.add_permits(50);
    for mut client in clients {
        assert_eq!(client.read().await.unwrap().status, 200);
    }
    assert_eq!(bench.upstream.calls.load(Ordering::SeqCst), 1);
    assert_eq!(bench.server.records.all().len(), 50);
}

#[tokio::test]
async fn connections_are_limited_and_counted() {
    let limits = ServerConfig { max_connections_per_peer: 2, ..ServerConfig::default() };
    let bench = bench_with(Rules::new(allow("p", identity("i", KIND))), BrokerConfig::default(), limits).await;
    bench.upstream.gate.add_permits(1);
    let mut first = Client::connect(bench.server.address).await;
    let mut second = Client::connect(bench.server.address).await;
    assert_eq!(first.exchange(&token(QUERY)).await.status, 200);
    assert_eq!(second.exchange(&token(QUERY)).await.status, 200);
    assert!(Client::connect(bench.server.address).await.closed().await);
    assert_eq!(bench.server.metrics.turned(Turned::PerPeer), 1);
    drop(first);
    until("freed", || bench.server.metrics.connections.get() == 1).await;
    assert_eq!(bench.server.ask(&token(QUERY)).await.status, 200);
}

#[tokio::test]
async fn stopping_lets_requests_end_but_not_for_ever() {
    let rules = Rules::new(allow("p", identity("i", KIND)));
    let limits = ServerConfig { drain: Duration::from_millis(100), ..ServerConfig::default() };
    let bench = bench_with(rules, BrokerConfig::default(), limits).await;
    let mut idle = Client::connect(bench.server.address).await;
    assert_eq!(idle.exchange(&get("/metadata/instance")).await.status, 403);
    let mut busy = Client::connect(bench.server.address).await;
    busy.send(&token(QUERY)).await;
    until("asked", || bench.upstream.calls.load(Ordering::SeqCst) == 1).await;
    bench.server.shutdown.cancel();
    assert!(idle.closed().await);
    // Upstream never answers: the connection is cut.
    assert!(busy.closed().await);
    tokio::time::timeout(LIMIT, bench.server.done).await.unwrap().unwrap();

    let rules = Rules::new(allow("p", identity("i", KIND)));
    let bench = bench_with(rules, BrokerConfig::default(), ServerConfig::default()).await;
    let mut busy = Client::connect(bench.server.address).await;
    busy.send(&token(QUERY)).await;
    until("asked", || bench.upstream.calls.load(Ordering::SeqCst) == 1).await;
    bench.server.shutdown.cancel();
    bench.upstream.gate.add_permits(1);
    assert_eq!(busy.read().await.unwrap().status, 200);
    tokio::time::timeout(LIMIT, bench.server.done).await.unwrap().unwrap();
}
