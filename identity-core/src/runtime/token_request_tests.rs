use serde_json::{Value, json};

use super::*;
use crate::runtime::{
    clock::testing::TokioClock,
    testing::{Call, Handle, answer, mock, status},
};

const AUDIENCE: &str = "api://AzureADTokenExchange";

fn pod(name: &str, uid: &str) -> PodRef {
    PodRef { namespace: "team".into(), name: name.into(), uid: uid.into(), service_account: "worker".into() }
}

fn tokens() -> (TokenRequests, Handle) {
    let (client, handle) = mock();
    (TokenRequests::new(client, Arc::new(TokioClock::new())), handle)
}

fn made(token: &str, seconds: u32) -> Value {
    json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {"audiences": [AUDIENCE], "expirationSeconds": seconds},
           "status": {"token": token, "expirationTimestamp": "2027-01-15T09:00:00Z"}})
}

/// Asks, and answers the one request that comes of it.
async fn asked(
    tokens: &TokenRequests,
    handle: &mut Handle,
    pod: &PodRef,
    code: u16,
    body: Value,
) -> (Call, Result<String, Error>) {
    let server = async {
        let (request, reply) = handle.next_request().await.unwrap();
        let call = Call::read(request).await;
        reply.send_response(answer(code, &body));
        call
    };
    let (call, token) = tokio::join!(server, tokens.token(pod, AUDIENCE));
    (call, token.map(|token| token.expose_secret().to_owned()))
}

/// Asks, with nobody to answer.
async fn kept(tokens: &TokenRequests, pod: &PodRef, audience: &str) -> String {
    tokens.token(pod, audience).await.unwrap().expose_secret().to_owned()
}

#[tokio::test(start_paused = true)]
async fn is_bound_to_its_pod_and_kept_for_it() {
    let (tokens, mut handle) = tokens();
    let (call, token) = asked(&tokens, &mut handle, &pod("a", "u1"), 201, made("t1", 3600)).await;
    assert_eq!(token.unwrap(), "t1");
    insta::assert_snapshot!(call.text());
    assert_eq!(kept(&tokens, &pod("a", "u1"), AUDIENCE).await, "t1");
    // Another pod of the same account, and the same name with another UID, are others.
    assert_eq!(asked(&tokens, &mut handle, &pod("a", "u2"), 201, made("t2", 3600)).await.1.unwrap(), "t2");
    assert_eq!(kept(&tokens, &pod("a", "u1"), AUDIENCE).await, "t1");
    tokens.forget("u1");
    assert_eq!(asked(&tokens, &mut handle, &pod("a", "u1"), 201, made("t3", 3600)).await.1.unwrap(), "t3");
    assert!(!format!("{tokens:?}").contains("t3"), "{tokens:?}");
}

#[tokio::test(start_paused = true)]
async fn is_renewed_before_its_end_and_outlives_an_outage() {
    let (tokens, mut handle) = tokens();
    let pod = pod("a", "u1");
    // The server gives less than was asked for.
    asked(&tokens, &mut handle, &pod, 201, made("t1", 1000)).await.1.unwrap();
    tokio::time::advance(Duration::from_secs(799)).await;
    assert_eq!(kept(&tokens, &pod, AUDIENCE).await, "t1");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(asked(&tokens, &mut handle, &pod, 201, made("t2", 1000)).await.1.unwrap(), "t2");
    // Away: what is kept is used until five minutes before its end.
    tokio::time::advance(Duration::from_secs(699)).await;
    assert_eq!(kept(&tokens, &pod, AUDIENCE).await, "t2");
    let (tokens_, mut handle_) = self::tokens();
    asked(&tokens_, &mut handle_, &pod, 201, made("t1", 3600)).await.1.unwrap();
    tokio::time::advance(Duration::from_secs(2900)).await;
    let busy = status(503, "no leader");
    assert_eq!(asked(&tokens_, &mut handle_, &pod, 503, busy.clone()).await.1.unwrap(), "t1");
    tokio::time::advance(Duration::from_secs(400)).await;
    let error = asked(&tokens_, &mut handle_, &pod, 503, busy).await.1.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_is_certain_ends_it() {
    let cases = [
        (404, "pods \"a\" not found", "the pod or the account is gone (pods"),
        (409, "the UID in the bound object reference does not match", "is gone (the UID"),
        (403, "serviceaccounts \"worker\" is forbidden", "grant verb `create` on resource `serviceaccounts/token`"),
        (422, "the node daemon makes tokens for Entra only", "deploy/admission-policy-tokens.yaml allows the audience"),
    ];
    for (code, message, said) in cases {
        let (tokens, mut handle) = tokens();
        let pod = pod("a", "u1");
        asked(&tokens, &mut handle, &pod, 201, made("t1", 3600)).await.1.unwrap();
        tokio::time::advance(Duration::from_secs(2900)).await;
        let error = asked(&tokens, &mut handle, &pod, code, status(code, message)).await.1.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        // Nothing is left of the former.
        let error = asked(&tokens, &mut handle, &pod, 503, status(503, "x")).await.1.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_used_is_no_token_and_is_not_said() {
    for body in
        [json!({}), made("", 3600), made(&"x".repeat(LONGEST + 1), 3600), json!({"status": {"token": ["hunter2"]}})]
    {
        let (tokens, mut handle) = tokens();
        let error = asked(&tokens, &mut handle, &pod("a", "u1"), 201, body).await.1.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        assert!(!error.to_string().contains("hunter2") && error.to_string().len() < 300, "{error}");
    }
    let (tokens, _handle) = tokens();
    let nobody = PodRef { service_account: "".into(), ..pod("a", "u1") };
    assert!(matches!(tokens.token(&nobody, AUDIENCE).await, Err(Error::NoServiceAccount { .. })));
}

#[tokio::test(start_paused = true)]
async fn many_at_once_make_one_request_and_the_number_kept_is_bounded() {
    let (tokens, mut handle) = tokens();
    let pod_ = pod("a", "u1");
    let all = futures::future::join_all((0..50).map(|_| tokens.token(&pod_, AUDIENCE)));
    let server = async {
        let (_, reply) = handle.next_request().await.unwrap();
        reply.send_response(answer(201, &made("t", 3600)));
    };
    let (all, ()) = tokio::join!(all, server);
    assert!(all.into_iter().all(|token| token.unwrap().expose_secret() == "t"));
    for n in 0..2 * CAPACITY {
        tokens.place((format!("uid-{n}").into(), AUDIENCE.into()));
        assert!(tokens.lock().len() <= CAPACITY);
    }
    // Places without a token are given away first.
    assert_eq!(kept(&tokens, &pod_, AUDIENCE).await, "t");
}
