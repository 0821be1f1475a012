//! What clients choose is no label: however many pods ask for however many audiences, there are as many series as before.

#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod support;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use identity_broker::{
    Broker, BrokerConfig, Freshness, LimitsConfig, Manager, ManagerConfig, Metrics, Rate, Reason, Token, TokenError,
    tokens::{Backend, Issued},
};
use identity_core::lookup::{Allow, Decision, Deny, Identity, Source, Wait};
use identity_crd::IdentityType;
use jiff::Timestamp;
use prometheus_client::{encoding::text::encode, registry::Registry};
use support::{Records, Rules, assignment, identity, pod};
use tower::Service as _;

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

struct Upstream;

impl Backend for Upstream {
    fn credential_version(&self, _: &Identity) -> u64 {
        0
    }

    async fn fetch(&self, _: &Arc<Identity>, resource: &str, _: Freshness) -> Result<Token, TokenError> {
        if resource.ends_with('7') {
            let message = "down".to_owned();
            return Err(TokenError::Unavailable { message, retry_after: Duration::from_secs(1) });
        }
        let expires_on = Timestamp::from_second(1_800_003_600).unwrap();
        let token = Token::issued(&Issued {
            access_token: "t",
            resource,
            client_id: None,
            expires_on,
            now: now(),
            credential: 0,
            request_id: None,
        });
        Ok(token.with_correlation_id("11111111-2222-3333-4444-555555555555".to_owned()))
    }
}

fn series(registry: &Registry) -> Vec<String> {
    let mut text = String::new();
    encode(&mut text, registry).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split("} ").next().unwrap().split(' ').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn ten_thousand_pods_and_audiences_make_no_series() {
    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::new(&mut registry));
    let before = series(&registry);
    let rules = Rules::new(|caller, request| {
        let name = caller.address.to_string();
        let pod = pod(&name);
        match request.resource.len() % 4 {
            0 => Decision::Deny(Deny::NoBinding(pod)),
            1 => Decision::Wait(Wait::UnknownAddress),
            _ => {
                let assignment = assignment(&pod, identity("i", IdentityType::ServicePrincipal));
                Decision::Allow(Allow { pod, source: Source::Assignment(assignment), until: None })
            }
        }
    });
    let tokens = Manager::new(Upstream, now, ManagerConfig::default(), Arc::clone(&metrics));
    let free = Rate::UNLIMITED;
    let limits = LimitsConfig { requests: free, cheap: free, connections: free, ..LimitsConfig::default() };
    let config = BrokerConfig { hold: Duration::ZERO, limits, ..BrokerConfig::default() };
    let broker = Broker::new(rules, tokens, Records::default(), now, config, Arc::clone(&metrics));
    let paths = ["/metadata/identity/oauth2/token", "/metadata/identity/oauth2/token/", "/host/token", "/x"];
    for n in 0..10_000_u32 {
        let [_, a, b, c] = n.to_be_bytes();
        let connection = broker.connection(([10, a, b, c], 1).into());
        let path = if n % 8 == 0 { paths[(n / 8 % 4) as usize] } else { paths[0] };
        let uri = format!("{path}?api-version=2018-02-01&resource=api://{:x<width$}{n}", "", width = (n % 13) as usize);
        let request = Request::get(uri).header("Metadata", "true").body(Empty::<Bytes>::new()).unwrap();
        broker.stack(connection).call(request).await.unwrap();
    }
    assert_eq!(series(&registry), before);
    for reason in [Reason::Issued, Reason::NoBinding, Reason::UnknownAddress, Reason::UpstreamUnavailable] {
        assert!(metrics.requests(reason) > 100, "{reason:?}: {}", metrics.requests(reason));
    }
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    assert!(text.contains("# {correlation_id=\"11111111-2222-3333-4444-555555555555\"} "), "{text}");
    assert!(!text.contains("api:") && !text.contains("10.0."), "{text}");
}
