use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::EncodingKey;
use serde_json::Value;

use super::*;

fn certificate(chain: &[&str]) -> Certificate {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    Certificate {
        key: EncodingKey::from_rsa_pem(key.serialize_pem().as_bytes()).unwrap(),
        thumbprint: "thumb".to_owned(),
        chain: chain.iter().map(ToString::to_string).collect(),
        not_before: None,
        not_after: None,
    }
}

/// Header and claims.
fn read(certificate: &Certificate) -> (Value, Value) {
    let endpoint: Url = "https://login.example/t/oauth2/v2.0/token".parse().unwrap();
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    let token = assertion(certificate, "client", &endpoint, now).unwrap();
    let mut parts =
        token.split('.').map(|part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap_or_default()));
    (parts.next().unwrap().unwrap(), parts.next().unwrap().unwrap())
}

#[test]
fn an_assertion_is_as_microsoft_documents_it() {
    let alone = certificate(&[]);
    let (header, mut claims) = read(&alone);
    assert_eq!(header, serde_json::json!({"alg": "PS256", "typ": "JWT", "x5t#S256": "thumb"}));
    let id = claims["jti"].take();
    assert_ne!(id, read(&alone).1["jti"], "each is another one");
    assert_eq!(
        claims,
        serde_json::json!({
            "aud": "https://login.example/t/oauth2/v2.0/token", "iss": "client", "sub": "client", "jti": null,
            "nbf": 1_800_000_000, "iat": 1_800_000_000, "exp": 1_800_000_300,
        })
    );
    // With its issuers, when it came with any (ADR 15).
    assert_eq!(read(&certificate(&["leaf", "ca"])).0["x5c"], serde_json::json!(["leaf", "ca"]));
}

#[test]
fn a_clock_that_is_off_is_said_in_minutes() {
    assert_eq!(clock(SignedDuration::from_secs(-659)), "this node's clock is 11 minutes behind Entra's");
    assert_eq!(clock(SignedDuration::from_mins(20)), "this node's clock is 20 minutes ahead of Entra's");
}

#[test]
fn what_entra_says_is_bounded() {
    let answer = EntraError {
        error: "invalid_client".to_owned(),
        error_description: format!("AADSTS7000222: {}\nmore", "x".repeat(100_000)),
        error_codes: vec![7_000_222],
        trace_id: Some(format!("line\r\n{}", "y".repeat(100_000))),
    };
    let error = RequestTokenError::<std::io::Error, _>::ServerResponse(answer);
    let secret = Credential::Secret(std::sync::Arc::new("s3cr3t-value".to_owned().into()));
    let Failure::Credential { error: TokenError::Refused(refusal), spreads: false } = failure(error, &secret, None)
    else {
        panic!("a refusal");
    };
    assert_eq!(refusal.trace_id.unwrap(), format!("line{}", "y".repeat(60)));
    assert_eq!(refusal.description.len(), 500);
}
