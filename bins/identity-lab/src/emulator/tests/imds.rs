//! IMDS: the identity category to the letter, the rest in outline.

use jiff::SignedDuration;

use super::*;

const PATH: &str = "/metadata/identity/oauth2/token";
const ASK: &str = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net";

#[tokio::test]
async fn a_token_has_the_real_shape_and_verifies_with_entras_keys() {
    let lab = Lab::start(|_| {}).await;
    let answer = lab.imds(&format!("{ASK}&client_id=c1")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.headers["server"].to_str().unwrap().starts_with("IMDS/"));
    let mut body = answer.json();
    let token = body["access_token"].take();
    let now = start().as_second();
    assert_eq!(
        body,
        json!({
            "access_token": null, "client_id": "c1", "expires_in": "86399", "expires_on": (now + 86399).to_string(),
            "ext_expires_in": "86399", "not_before": (now - 300).to_string(), "resource": "https://vault.azure.net",
            "token_type": "Bearer",
        })
    );
    let claims = lab.verify(token.as_str().unwrap()).await;
    for (name, value) in [
        ("tid", TENANT),
        ("appid", "c1"),
        ("oid", "o1"),
        ("sub", "o1"),
        ("aud", "https://vault.azure.net"),
        ("xms_mirid", ONE),
    ] {
        assert_eq!(claims[name], value, "{name}");
    }
}

#[tokio::test]
async fn the_identity_is_selected_by_any_of_its_ids() {
    let lab = Lab::start(|config| config["imds"]["limits"]["requestsPerSecond"] = Value::Null).await;
    let upper = TWO.to_uppercase();
    for (selector, expected) in [
        (("client_id", "c1"), "c1"),
        (("object_id", "O2"), "c2"),
        (("msi_res_id", TWO), "c2"),
        (("mi_res_id", upper.as_str()), "c2"),
    ] {
        let body = lab.imds(&format!("{ASK}&{}", form(&[selector]))).await.json();
        assert_eq!(body["client_id"], expected, "{selector:?}");
    }
    // Some clients send names and slashes as they are, some a parameter with nothing in it.
    let unescaped =
        format!("{PATH}?resource=https://vault.azure.net&msi_res_id={ONE}&api-version=2025-04-07&client_id=");
    assert_eq!(lab.imds(&unescaped).await.json()["client_id"], "c1");
}

#[tokio::test]
async fn who_is_meant_when_nobody_is_named() {
    let identities = |count: usize| {
        let mut directory = directory();
        directory["managedIdentities"].as_array_mut().unwrap().truncate(count);
        serde_json::from_value(directory).unwrap()
    };
    let lab = Lab::start(|_| {}).await;
    let body = lab.imds(ASK).await.json();
    assert_eq!(
        body,
        json!({
            "error": "invalid_request",
            "error_description": "Multiple user assigned identities exist, please specify the clientId / resourceId of the \
                                  identity in the token request",
        })
    );
    lab.handle.set_directory(&identities(1)).unwrap();
    assert_eq!(lab.imds(ASK).await.json()["client_id"], "c1");
    lab.handle.set_directory(&identities(0)).unwrap();
    assert_eq!(lab.imds(ASK).await.json()["error_description"], "Identity not found");
    let mut own = directory();
    own["systemAssigned"] = json!({"clientId": "cs", "tenantId": TENANT});
    lab.handle.set_directory(&serde_json::from_value(own).unwrap()).unwrap();
    let body = lab.imds(ASK).await.json();
    assert_eq!(body["client_id"], "cs");
    let claims = lab.verify(body["access_token"].as_str().unwrap()).await;
    assert!(claims["xms_mirid"].as_str().unwrap().ends_with("/virtualMachines/lab-vm-0"));
}

#[tokio::test]
async fn refusals_have_the_words_of_the_real_ones() {
    let lab = Lab::start(|config| config["imds"]["limits"]["requestsPerSecond"] = Value::Null).await;
    let metadata = vec![("metadata", "true")];
    let with_id = format!("{ASK}&client_id=c1");
    let cases = [
        (Method::GET, ASK.to_owned(), vec![], 400, "invalid_request", "Required metadata header not specified"),
        // The header comes before everything else: clients probe with neither header nor parameters.
        (Method::GET, PATH.to_owned(), vec![], 400, "invalid_request", "Required metadata header not specified"),
        (Method::POST, PATH.to_owned(), vec![], 400, "invalid_request", "Required metadata header not specified"),
        (
            Method::GET,
            ASK.to_owned(),
            vec![("metadata", "false")],
            400,
            "invalid_request",
            "Required metadata header not specified",
        ),
        (
            Method::GET,
            with_id.clone(),
            vec![("metadata", "true"), ("x-forwarded-for", "10.0.0.1")],
            400,
            "invalid_request",
            "Request header 'X-Forwarded-For' is not allowed",
        ),
        (Method::POST, with_id.clone(), metadata.clone(), 405, "method_not_allowed", "Not allowed"),
        (Method::HEAD, with_id.clone(), metadata.clone(), 405, "", ""),
        (
            Method::GET,
            format!("{PATH}?api-version=2018-02-01"),
            metadata.clone(),
            400,
            "invalid_request",
            "Required query variable 'resource' is missing",
        ),
        (
            Method::GET,
            format!("{PATH}?api-version=2018-02-01&resource="),
            metadata.clone(),
            400,
            "invalid_request",
            "Required query variable 'resource' is missing",
        ),
        (
            Method::GET,
            format!("{with_id}&resource=https%3A%2F%2Fother.example"),
            metadata.clone(),
            400,
            "invalid_request",
            "Query variable 'resource' is specified more than once",
        ),
        (Method::GET, format!("{ASK}&client_id=c9"), metadata.clone(), 400, "invalid_request", "Identity not found"),
        (
            Method::GET,
            format!("{with_id}&object_id=o1"),
            metadata.clone(),
            400,
            "invalid_request",
            "Only one of the query variables 'client_id', 'object_id' and 'msi_res_id' may be specified",
        ),
        (
            Method::GET,
            format!("{with_id}&bypass_cache=false"),
            metadata.clone(),
            400,
            "invalid_request",
            "Query variable 'bypass_cache' must be 'true'",
        ),
        // Absent, or MSAL for .NET believes that the second version of the protocol is there.
        (
            Method::GET,
            "/metadata/identity/getplatformmetadata?cred-api-version=2.0".to_owned(),
            vec![],
            404,
            "not_found",
            "Not found",
        ),
        (Method::POST, "/metadata/identity/issuecredential".to_owned(), vec![], 404, "not_found", "Not found"),
        (Method::GET, format!("{PATH}/"), metadata.clone(), 404, "not_found", "Not found"),
    ];
    for (method, path, headers, status, error, description) in cases {
        let answer = lab.try_imds(method.clone(), &path, &headers).await.unwrap();
        let shown = format!("{method} {path} {headers:?}");
        assert_eq!(answer.status, status, "{shown}");
        assert!(answer.headers["server"].to_str().unwrap().starts_with("IMDS/"), "{shown}");
        if method != Method::HEAD {
            assert_eq!(answer.json(), json!({"error": error, "error_description": description}), "{shown}");
        }
    }
    for resource in ["https://nowhere.example", "nonsense"] {
        let path = format!("{PATH}?api-version=2018-02-01&resource={resource}&client_id=c1");
        let answer = lab.imds(&path).await;
        assert_eq!((answer.status, &answer.json()["error"]), (StatusCode::BAD_REQUEST, &json!("invalid_resource")));
        assert!(answer.text().contains("AADSTS500011: ") && answer.text().contains(resource), "{}", answer.text());
    }
    for version in ["", "api-version=2017-12-01&", "api-version=2018-02-02&", "api-version=latest&"] {
        let answer = lab.imds(&format!("{PATH}?{version}resource=https://vault.azure.net&client_id=c1")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{version}");
        assert_eq!(answer.json()["newest-versions"], json!(["2025-04-07", "2024-07-17", "2024-03-15"]));
    }
    let answer = lab.imds(&format!("{with_id}&authority=https://login.example.com")).await;
    assert_eq!(answer.json()["operation"], "a token with the parameter 'authority'");
}

#[tokio::test]
async fn the_platform_keeps_a_token_for_half_of_its_life() {
    let lab = Lab::start(|_| {}).await;
    let ask = async |suffix: &str| {
        let body = lab.imds(&format!("{ASK}&client_id=c1{suffix}")).await.json();
        (body["access_token"].as_str().unwrap().to_owned(), body["expires_in"].as_str().unwrap().to_owned())
    };
    let (first, _) = ask("").await;
    lab.clock.advance(SignedDuration::from_secs(43_199));
    let (again, expires_in) = ask("").await;
    assert_eq!((again == first, expires_in.as_str()), (true, "43200"), "the same token, with what is left of its life");
    lab.clock.advance(SignedDuration::from_secs(1));
    let (second, expires_in) = ask("").await;
    assert_eq!((second == first, expires_in.as_str()), (false, "86399"));
    let (third, _) = ask("&bypass_cache=true").await;
    assert_ne!(third, second);
    assert_eq!(ask("").await.0, third, "what was fetched past the cache is kept in it");
}

#[tokio::test]
async fn twenty_requests_a_second_and_no_more() {
    let lab = Lab::start(|_| {}).await;
    for _ in 0..20 {
        assert_eq!(lab.imds(&format!("{ASK}&client_id=c1")).await.status, StatusCode::OK);
    }
    let refused = lab.imds(&format!("{ASK}&client_id=c1")).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.json(), json!({"error": "too_many_requests", "error_description": "Too many requests"}));
    assert!(!refused.headers.contains_key("retry-after"), "the real one has none");
    lab.clock.advance(SignedDuration::from_millis(999));
    assert_eq!(lab.imds(ASK).await.status, StatusCode::TOO_MANY_REQUESTS);
    lab.clock.advance(SignedDuration::from_millis(1));
    assert_eq!(lab.imds(&format!("{ASK}&client_id=c1")).await.status, StatusCode::OK);

    for _ in 0..5 {
        assert_eq!(lab.imds("/metadata/versions").await.status, StatusCode::OK);
    }
    let refused = lab.imds("/metadata/versions").await;
    assert_eq!(
        (refused.status, refused.json()),
        (StatusCode::TOO_MANY_REQUESTS, json!({"error": "Too many requests"}))
    );
}

#[tokio::test]
async fn five_requests_at_a_time_and_no_more() {
    // Held back by far longer than six connections take, so that they are all in at once.
    let lab = Lab::start(|config| config["imds"]["latencyMs"] = json!(1000)).await;
    let path = format!("{ASK}&client_id=c1");
    let answers = futures::future::join_all((0..6).map(|_| lab.imds(&path))).await;
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(StatusCode::OK), count(StatusCode::TOO_MANY_REQUESTS)), (5, 1));
    assert_eq!(lab.imds(&path).await.status, StatusCode::OK, "places are free again");
}

#[tokio::test]
async fn the_rest_of_the_service_in_outline() {
    let lab = Lab::start(|config| config["imds"]["limits"]["otherRequestsPerSecond"] = Value::Null).await;
    assert_eq!(lab.imds("/metadata/identity/info?api-version=2018-02-01").await.json(), json!({"tenantId": TENANT}));
    let versions = lab.imds("/metadata/versions").await.json();
    assert_eq!(versions["apiVersions"].as_array().unwrap().len(), 35);

    let at = |path: &str| format!("/metadata/instance{path}api-version=2021-02-01");
    let document = lab.imds(&at("?")).await.json();
    assert_eq!(document["compute"]["name"], "lab-vm-0");
    let address = "/network/interface/0/ipv4/ipAddress/0/privateIpAddress";
    for (path, status, text) in [
        (format!("{address}?format=text&"), 200, "10.240.0.4"),
        ("/compute/osType?format=text&".to_owned(), 200, "Linux"),
        ("?format=text&".to_owned(), 200, "compute/\nnetwork/"),
        ("/network/interface?format=text&".to_owned(), 200, "0/"),
        (
            format!("{address}?"),
            400,
            r#"{"error":"Bad request. The requested element is a leaf: specify format=text"}"#,
        ),
        ("/compute/nothing?".to_owned(), 404, r#"{"error":"Not found"}"#),
        ("/network/interface/1?".to_owned(), 404, r#"{"error":"Not found"}"#),
        ("?format=xml&".to_owned(), 400, r#"{"error":"Bad request. Unsupported value of 'format'"}"#),
    ] {
        let answer = lab.imds(&at(&path)).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (status, text), "{path}");
    }
    assert_eq!(lab.imds("/metadata/instance?api-version=2020-01-01").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(lab.imds("/metadata/nothing").await.json(), json!({"error": "Not found"}));
    let bare = lab.try_imds(Method::GET, "/metadata/versions", &[]).await.unwrap();
    assert_eq!(bare.json(), json!({"error": "Bad request. Required metadata header not specified"}));
    let answer = lab.imds("/metadata/attested/nothing?api-version=2020-07-01").await;
    assert_eq!(
        (answer.status, &answer.json()["operation"]),
        (StatusCode::NOT_IMPLEMENTED, &json!("GET /metadata/attested/nothing"))
    );
}

#[tokio::test]
async fn attested_document_and_load_balancer_in_outline() {
    let lab = Lab::start(|config| config["imds"]["limits"]["otherRequestsPerSecond"] = Value::Null).await;
    let attested = lab.imds("/metadata/attested/document?api-version=2020-09-01&nonce=abc").await.json();
    assert_eq!(attested["encoding"], "pkcs7");
    assert!(attested["signature"].as_str().unwrap().len() > 100);
    let long = format!("/metadata/attested/document?api-version=2020-09-01&nonce={}", "x".repeat(33));
    assert_eq!(lab.imds(&long).await.status, StatusCode::BAD_REQUEST);
    let balancer = lab.imds("/metadata/loadbalancer?api-version=2020-10-01").await.json();
    assert_eq!(balancer["loadbalancer"]["publicIpAddresses"][0]["privateIpAddress"], "10.240.0.4");
    assert_eq!(lab.imds("/metadata/loadbalancer?api-version=2020-09-01").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_scheduled_event_starts_when_it_is_approved() {
    const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";
    let lab = Lab::start(|config| config["imds"]["limits"]["otherRequestsPerSecond"] = Value::Null).await;
    let before = lab.imds(EVENTS).await.json();
    assert_eq!((&before["DocumentIncarnation"], &before["Events"][0]["EventStatus"]), (&json!(1), &json!("Scheduled")));
    let id = before["Events"][0]["EventId"].as_str().unwrap();
    for (body, status) in [
        ("nonsense".to_owned(), 400),
        (json!({"StartRequests": []}).to_string(), 400),
        (json!({"StartRequests": [{"EventId": "other"}]}).to_string(), 400),
        (json!({"StartRequests": [{"EventId": id}]}).to_string(), 200),
        (json!({"StartRequests": [{"EventId": id}]}).to_string(), 200),
    ] {
        let answer = lab.post_imds(EVENTS, &body).await;
        assert_eq!(answer.status, status, "{body}");
    }
    let after = lab.imds(EVENTS).await.json();
    assert_eq!((&after["DocumentIncarnation"], &after["Events"][0]["EventStatus"]), (&json!(2), &json!("Started")));
    let put = lab.try_imds(Method::PUT, EVENTS, &[("metadata", "true")]).await.unwrap();
    assert_eq!((put.status.as_u16(), put.headers["allow"].to_str().unwrap()), (405, "GET, POST"));
    assert_eq!(lab.imds("/metadata/scheduledevents?api-version=2021-02-01").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(lab.try_imds(Method::POST, EVENTS, &[]).await.unwrap().status, StatusCode::BAD_REQUEST);
}
