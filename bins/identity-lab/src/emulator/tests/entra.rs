//! Entra: tokens, refusals, discovery.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::*;

const V1: &str = "/contoso.example/oauth2/token";

fn secret_request<'a>() -> Vec<(&'a str, &'a str)> {
    vec![
        ("client_id", CLIENT),
        ("client_secret", SECRET),
        ("grant_type", "client_credentials"),
        ("scope", "https://vault.azure.net/.default"),
    ]
}

#[tokio::test]
async fn a_secret_gets_a_token_that_the_served_keys_verify() {
    let lab = Lab::start(|_| {}).await;
    let answer = lab.post(TOKEN, &secret_request()).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers["cache-control"], "no-store, no-cache");
    let body = answer.json();
    let token = body["access_token"].as_str().unwrap();
    assert_eq!(
        body,
        json!({"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": token}),
        "numbers, and no more fields"
    );
    let mut claims = lab.verify(token).await;
    assert_eq!(claims["uti"].as_str().unwrap().len(), 22);
    claims.as_object_mut().unwrap().remove("uti");
    let now = start().as_second();
    assert_eq!(
        claims,
        json!({
            "aud": "https://vault.azure.net", "iss": format!("https://sts.windows.net/{TENANT}/"),
            "iat": now - 300, "nbf": now - 300, "exp": now + 3599,
            "appid": CLIENT, "appidacr": "1", "idp": format!("https://sts.windows.net/{TENANT}/"), "idtyp": "app",
            "oid": OBJECT, "sub": OBJECT, "tid": TENANT, "ver": "1.0",
        })
    );
}

#[tokio::test]
async fn the_older_endpoint_answers_in_strings_and_takes_the_resource_as_it_is() {
    let lab = Lab::start(|config| config["entra"]["tokenLifetimeSeconds"] = json!(600)).await;
    let fields = [
        ("grant_type", "client_credentials"),
        ("client_id", CLIENT),
        ("client_secret", SECRET),
        ("resource", "https://vault.azure.net/"),
    ];
    let mut body = lab.post(V1, &fields).await.json();
    let token = body["access_token"].take();
    let now = start().as_second();
    assert_eq!(
        body,
        json!({
            "token_type": "Bearer", "expires_in": "600", "ext_expires_in": "600", "expires_on": (now + 600).to_string(),
            "not_before": (now - 300).to_string(), "resource": "https://vault.azure.net/", "access_token": null,
        })
    );
    assert_eq!(lab.verify(token.as_str().unwrap()).await["aud"], "https://vault.azure.net/");
}

#[tokio::test]
async fn a_double_slash_keeps_the_slash_of_the_audience() {
    let lab = Lab::start(|_| {}).await;
    let mut fields = secret_request();
    fields[3].1 = "https://vault.azure.net//.default";
    let body = lab.post(TOKEN, &fields).await.json();
    assert_eq!(lab.verify(body["access_token"].as_str().unwrap()).await["aud"], "https://vault.azure.net/");
}

#[tokio::test]
async fn credentials_may_come_in_a_basic_header() {
    let lab = Lab::start(|_| {}).await;
    let basic = |secret: &str| format!("Basic {}", STANDARD.encode(format!("{CLIENT}:{secret}")));
    let body = form(&[("grant_type", "client_credentials"), ("scope", "https://vault.azure.net/.default")]);
    // Each part is form-encoded: the tilde may come as %7E.
    for (header, status) in [
        (basic("s3cr3t%7Evalue"), 200),
        (basic(SECRET), 200),
        (basic("wrong"), 401),
        (basic(""), 401),
        ("Basic %%%".to_owned(), 400),
        ("Bearer x".to_owned(), 400),
    ] {
        let answer = lab.entra(Method::POST, TOKEN, &[FORM, ("authorization", &header)], &body).await;
        assert_eq!(answer.status, status, "{header}: {}", answer.text());
    }
    let both = form(&secret_request());
    let answer = lab.entra(Method::POST, TOKEN, &[FORM, ("authorization", &basic(SECRET))], &both).await;
    assert_eq!(answer.json()["error_codes"], json!([90013]));
}

#[tokio::test]
async fn refusals_have_the_status_the_error_and_the_number_of_the_real_ones() {
    let lab = Lab::start(|_| {}).await;
    let with = |name: &'static str, value: Option<&'static str>| {
        let mut fields = secret_request();
        fields.retain(|(other, _)| *other != name);
        fields.extend(value.map(|value| (name, value)));
        fields
    };
    let elsewhere = "/99999999-9999-9999-9999-999999999999/oauth2/v2.0/token";
    let stranger = "88888888-8888-8888-8888-888888888888";
    let mut twice = secret_request();
    twice.push(("scope", "https://other.example/.default"));
    let cases = [
        (TOKEN, with("client_id", Some(stranger)), 400, "unauthorized_client", 700_016),
        (elsewhere, secret_request(), 400, "invalid_request", 90_002),
        (TOKEN, with("client_secret", Some("wr0ng")), 401, "invalid_client", 7_000_215),
        (TOKEN, with("client_secret", Some("stale")), 401, "invalid_client", 7_000_222),
        (TOKEN, with("client_secret", None), 401, "invalid_client", 7_000_218),
        (TOKEN, with("client_secret", Some("")), 401, "invalid_client", 7_000_218),
        (TOKEN, with("scope", Some("https://nowhere.example/.default")), 400, "invalid_resource", 500_011),
        (TOKEN, with("scope", Some("nonsense/.default")), 400, "invalid_resource", 500_011),
        (TOKEN, with("scope", Some("https://vault.azure.net")), 400, "invalid_scope", 70_011),
        (TOKEN, with("scope", Some("https://a/.default https://b/.default")), 400, "invalid_scope", 70_011),
        (TOKEN, with("grant_type", None), 400, "invalid_request", 900_144),
        (TOKEN, with("client_id", None), 400, "invalid_request", 900_144),
        (TOKEN, with("scope", None), 400, "invalid_request", 900_144),
        (V1, secret_request(), 400, "invalid_request", 900_144),
        (TOKEN, with("grant_type", Some("magic")), 400, "unsupported_grant_type", 70_003),
        (TOKEN, twice, 400, "invalid_request", 9_000_411),
    ];
    for (path, fields, status, error, code) in cases {
        let answer = lab.post(path, &fields).await;
        let body = answer.json();
        let shown = format!("{path} {fields:?}: {body}");
        assert_eq!(answer.status, status, "{shown}");
        assert_eq!((&body["error"], &body["error_codes"]), (&json!(error), &json!([code])), "{shown}");
        let description = body["error_description"].as_str().unwrap();
        let (trace, correlation) = (body["trace_id"].as_str().unwrap(), body["correlation_id"].as_str().unwrap());
        let tail = format!(" Trace ID: {trace} Correlation ID: {correlation} Timestamp: 2026-11-24 09:00:00Z");
        assert!(description.starts_with(&format!("AADSTS{code}: ")) && description.ends_with(&tail), "{shown}");
        assert_eq!(body["timestamp"], "2026-11-24 09:00:00Z");
        assert_eq!(body["error_uri"], format!("https://{HOST}/error?code={code}"));
        assert_eq!(answer.headers["x-ms-request-id"], trace);
        assert_eq!(body.as_object().unwrap().len(), 7);
        assert!(!shown.contains("access_token"));
        assert!(!description.contains(SECRET) && !description.contains("wr0ng"), "{shown}");
        assert_eq!(lab.handle.requests().last().unwrap().error_code, Some(code.to_string()));
    }
}

#[tokio::test]
async fn the_clients_request_id_comes_back_as_correlation_id() {
    let lab = Lab::start(|_| {}).await;
    let id = "dcd59dc4-acad-4e4b-9658-e40ea4e43aae";
    let answer = lab.entra(Method::POST, TOKEN, &[FORM, ("client-request-id", id)], "").await;
    assert_eq!(answer.json()["correlation_id"], id);
    let answer = lab.entra(Method::POST, TOKEN, &[FORM, ("client-request-id", "injected")], "").await;
    assert_ne!(answer.json()["correlation_id"], "injected");
}

#[tokio::test]
async fn what_is_not_emulated_says_so_by_name() {
    let lab = Lab::start(|_| {}).await;
    let host = |host| vec![("host", host)];
    let cases = [
        (
            Method::GET,
            "/subscriptions",
            host("management.azure.com:443"),
            "GET https://management.azure.com/subscriptions",
        ),
        (Method::GET, "/t/oauth2/v2.0/authorize", vec![], "GET /t/oauth2/v2.0/authorize"),
        (Method::DELETE, "/common/discovery/instance", vec![], "DELETE /common/discovery/instance"),
        (Method::POST, "/common/oauth2/v2.0/token", vec![FORM], "a token from the tenant-independent endpoint /common"),
    ];
    for (method, path, headers, operation) in cases {
        let answer = lab.entra(method, path, &headers, "").await;
        assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED, "{operation}");
        assert_eq!((&answer.json()["error"], &answer.json()["operation"]), (&json!("not_emulated"), &json!(operation)));
    }
    let mut fields = secret_request();
    fields[2].1 = "refresh_token";
    assert_eq!(lab.post(TOKEN, &fields).await.json()["operation"], "grant_type=refresh_token");
    let mut fields = secret_request();
    fields.push(("client_assertion", "a.b.c"));
    assert_eq!(lab.post(TOKEN, &fields).await.status, StatusCode::NOT_IMPLEMENTED);
    let answer = lab.entra(Method::GET, TOKEN, &[], "").await;
    assert_eq!((answer.status, &answer.json()["error_codes"]), (StatusCode::METHOD_NOT_ALLOWED, &json!([900_561])));
}

#[tokio::test]
async fn discovery_leads_to_the_token_endpoint_and_the_keys() {
    let lab = Lab::start(|_| {}).await;
    let get = |path: String| async move { lab.entra(Method::GET, &path, &[], "").await };
    let configuration = get(format!("/{TENANT}/v2.0/.well-known/openid-configuration")).await.json();
    assert_eq!(configuration["token_endpoint"], format!("https://{HOST}{TOKEN}"));
    assert_eq!(configuration["issuer"], format!("https://{HOST}/{TENANT}/v2.0"));
    let keys = configuration["jwks_uri"].as_str().unwrap().strip_prefix(&format!("https://{HOST}")).unwrap().to_owned();
    let lab = Lab::start(|_| {}).await;
    let key = lab.entra(Method::GET, &keys, &[], "").await.json()["keys"][0].clone();
    assert_eq!((&key["kty"], &key["use"], &key["e"]), (&json!("RSA"), &json!("sig"), &json!("AQAB")));
    assert_eq!(key["issuer"], format!("https://{HOST}/{TENANT}/v2.0"));
    assert_eq!(lab.handle.jwks()["keys"][0]["n"], key["n"]);

    let older = lab.entra(Method::GET, "/contoso.example/.well-known/openid-configuration", &[], "").await.json();
    assert_eq!(older["token_endpoint"], format!("https://{HOST}/contoso.example/oauth2/token"));
    assert_eq!(older["issuer"], format!("https://sts.windows.net/{TENANT}/"));
    let any = lab.entra(Method::GET, "/common/v2.0/.well-known/openid-configuration", &[], "").await.json();
    assert_eq!(any["issuer"], format!("https://{HOST}/{{tenantid}}/v2.0"));
    let nobody = lab.entra(Method::GET, "/nobody.example/v2.0/.well-known/openid-configuration", &[], "").await.json();
    assert_eq!((&nobody["error"], &nobody["error_codes"]), (&json!("invalid_tenant"), &json!([90002])));

    let instance = |endpoint: &str| {
        let query = form(&[("api-version", "1.1"), ("authorization_endpoint", endpoint)]);
        format!("/common/discovery/instance?{query}")
    };
    let known = instance(&format!("https://login.microsoftonline.us/{TENANT}/oauth2/v2.0/authorize"));
    let answer = lab.entra(Method::GET, &known, &[], "").await.json();
    assert_eq!(
        answer["tenant_discovery_endpoint"],
        format!("https://login.microsoftonline.us/{TENANT}/v2.0/.well-known/openid-configuration")
    );
    assert!(answer["metadata"].as_array().unwrap().iter().any(|cloud| cloud["preferred_network"] == HOST));
    let answer = lab.entra(Method::GET, &instance("https://login.example.com/t/authorize"), &[], "").await.json();
    assert_eq!((&answer["error"], &answer["error_codes"]), (&json!("invalid_instance"), &json!([50049])));
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let lab = Lab::start(|_| {}).await;
    let body = format!("grant_type={}", "x".repeat(65 * 1024));
    let answer = lab.entra(Method::POST, TOKEN, &[FORM], &body).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(lab.handle.requests().last().unwrap().status, 413);
}
