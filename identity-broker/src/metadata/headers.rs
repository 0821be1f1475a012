//! What of a message's head is for the next hop only (RFC 9110 §7.6.1) and therefore not passed on.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        CONNECTION, CONTENT_LENGTH, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE,
    },
};

const HOP_BY_HOP: [HeaderName; 10] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authentication-info"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Headers of a request for the node's metadata service. `Host` and the length of the body are the client's to write, and no
/// `Via` or `Forwarded` is added: the service refuses what comes through a proxy.
pub(super) fn of_request(headers: &HeaderMap) -> HeaderMap {
    passed_on(headers, |name| ![HOST, CONTENT_LENGTH, EXPECT].contains(name))
}

/// Headers of an answer for a pod.
pub(super) fn of_answer(headers: &HeaderMap, length: Option<u64>) -> HeaderMap {
    let mut passed = passed_on(headers, |name| *name != CONTENT_LENGTH);
    if let Some(length) = length {
        passed.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    passed
}

fn passed_on(headers: &HeaderMap, wanted: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    // `Connection` names further ones. A value that is no list of names names nothing.
    let named: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let stays = |name: &HeaderName| {
        !HOP_BY_HOP.contains(name) && !named.iter().any(|other| other.as_str() == name.as_str()) && wanted(name)
    };
    headers.iter().filter(|(name, _)| stays(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        headers.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn what_is_for_the_next_hop_is_dropped() {
        let sent = headers(&[
            ("host", "169.254.169.254"),
            ("metadata", "true"),
            ("connection", "Keep-Alive, X-One,x-two"),
            ("connection", "x-three"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic xyz"),
            ("te", "trailers"),
            ("trailer", "x-end"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("content-length", "17"),
            ("content-type", "application/json"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("x-ms-client-request-id", "id"),
            ("accept", "a"),
            ("accept", "b"),
        ]);
        let passed = of_request(&sent);
        assert_eq!(names(&passed), ["metadata", "content-type", "x-ms-client-request-id", "accept", "accept"]);
    }

    #[test]
    fn the_way_back_likewise() {
        let sent = headers(&[
            ("server", "IMDS/1"),
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("proxy-authenticate", "Basic"),
            ("content-type", "application/json; charset=utf-8"),
        ]);
        assert_eq!(names(&of_answer(&sent, None)), ["server", "content-type"]);
        let passed = of_answer(&sent, Some(7));
        assert_eq!(names(&passed), ["server", "content-type", "content-length"]);
        assert_eq!(passed[CONTENT_LENGTH], "7");
    }
}
