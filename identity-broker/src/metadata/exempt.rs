//! Tokens of the node's own identities, for pods that an `AzurePodIdentityException` exempts: their own request, asked of the
//! node's own metadata service with the identity that it names. Nothing is kept, nothing is shared with other pods.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header::USER_AGENT, uri::PathAndQuery};
use http_body_util::BodyExt as _;
use identity_core::pod::PodRef;
use jiff::Timestamp;

use super::{
    policy::Verb,
    proxy::{Ask, Proxy, ProxyError},
};
use crate::{
    endpoint::forms::TokenRequest,
    tokens::{Token, TokenError},
    upstream::{Failure, ImdsBudget, imds},
};

/// The largest answer that is read, in bytes.
pub(super) const MAX_ANSWER: usize = 256 * 1024;

/// Asks once. Whoever waits for the answer may ask again: the endpoint's answers say when.
pub(super) async fn token(
    proxy: &Proxy,
    budget: Option<&ImdsBudget>,
    pod: &PodRef,
    request: &TokenRequest,
    now: Timestamp,
) -> Result<Token, TokenError> {
    let target = target(request).ok_or_else(|| unavailable("the request could not be written".to_owned()))?;
    let mut headers = HeaderMap::new();
    headers.insert("metadata", HeaderValue::from_static("true"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("entra-pod-identity/", env!("CARGO_PKG_VERSION"))));
    let ask = Ask { verb: Verb::Get, target: &target, headers: &headers };
    let answer = match proxy.enter(&pod.uid) {
        Ok(place) => {
            // The pod's own share first, then the node's.
            let _turn = match budget {
                Some(budget) => Some(budget.turn(&pod.namespace, &pod.uid, WAIT).await.map_err(busy)?),
                None => None,
            };
            proxy.ask(place, ask, Bytes::new()).await
        }
        Err(error) => Err(error),
    };
    let (parts, body) = match answer {
        Ok(answer) => answer.into_parts(),
        Err(ProxyError::Share(refused)) => {
            return Err(TokenError::Unavailable {
                message: "the pod, or all exempted pods together, ask for too many tokens".to_owned(),
                retry_after: refused.retry_after,
            });
        }
        Err(error) => return Err(unavailable(error.to_string())),
    };
    let body = match body {
        Some(body) => body.collect().await.map_err(|error| unavailable(error.to_string()))?.to_bytes(),
        None => Bytes::new(),
    };
    let answer = Response::from_parts(parts, body);
    imds::exempt(&answer, &request.resource, now).map_err(|failure| match failure {
        Failure::Permanent(error) | Failure::Credential { error, .. } => error,
        Failure::Transient { message, retry_after } => {
            if let (Some(budget), Some(pause)) = (budget, retry_after) {
                budget.pause(pause);
            }
            TokenError::Unavailable { message, retry_after: retry_after.unwrap_or(SOON) }
        }
    })
}

const SOON: std::time::Duration = std::time::Duration::from_secs(2);

/// The longest that a turn is waited for.
const WAIT: std::time::Duration = std::time::Duration::from_secs(10);

fn busy(retry_after: std::time::Duration) -> TokenError {
    let message = "the node asks its IMDS as often as it may; others came first".to_owned();
    TokenError::Unavailable { message, retry_after }
}

fn unavailable(message: String) -> TokenError {
    TokenError::Unavailable { message, retry_after: SOON }
}

/// The pod's request, written once more: what names the identity is what the pod sent, and so is what else decides about the
/// token.
fn target(request: &TokenRequest) -> Option<PathAndQuery> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    // The version that knows `bypass_cache`, for those who ask for it.
    query.append_pair("api-version", if request.bypass_cache { "2023-07-01" } else { "2018-02-01" });
    query.append_pair("resource", &request.resource);
    if let Some((selector, id)) = &request.identity {
        query.append_pair(selector.name(), id);
    }
    if let Some(authority) = &request.authority {
        let tenant = authority.tenant.as_deref().unwrap_or_default();
        query.append_pair("authority", &format!("https://{}/{tenant}", authority.host));
    }
    if request.bypass_cache {
        query.append_pair("bypass_cache", "true");
    }
    format!("/metadata/identity/oauth2/token?{}", query.finish()).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::forms::{Selector, imds};

    #[test]
    fn the_request_is_the_pods() {
        for (sent, expected) in [
            (
                "api-version=2018-02-01&resource=https://vault.azure.net/",
                "api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net%2F",
            ),
            (
                "resource=a%20b&mi_res_id=/subscriptions/s&api-version=2019-08-01",
                "api-version=2018-02-01&resource=a+b&msi_res_id=%2Fsubscriptions%2Fs",
            ),
            (
                "resource=r&client_id=C%26x%3D1&api-version=2019-08-01&xms_cc=CP1",
                "api-version=2018-02-01&resource=r&client_id=C%26x%3D1",
            ),
            (
                "resource=r&object_id=o&api-version=2023-07-01&bypass_cache=true",
                "api-version=2023-07-01&resource=r&object_id=o&bypass_cache=true",
            ),
        ] {
            let target = target(&imds::parse(sent).unwrap()).unwrap();
            assert_eq!(target.as_str(), format!("/metadata/identity/oauth2/token?{expected}"));
        }
        assert_eq!(Selector::ResourceId.name(), "msi_res_id");
    }
}
