//! A request for a token as text: the query in the first line, `Name: value` lines below it. The query is read in all
//! forms that come as one.

use http::HeaderValue;
use identity_broker::endpoint::{
    EndpointError,
    forms::{Form, app_service, imds, info},
    imds_request,
};

use super::model;

/// Checks one.
pub fn check(head: &[u8]) {
    let read = imds_request(head);
    assert_eq!(format!("{read:?}"), format!("{:?}", imds_request(head)), "read differently the second time");
    let mut lines = head.split(|byte| *byte == b'\n');
    let query = String::from_utf8_lossy(lines.next().unwrap_or_default());

    // The header check comes first, whatever the query is.
    let headers: Vec<(Vec<u8>, &[u8])> = lines.take(100).filter_map(header).collect();
    let values = |name: &[u8]| headers.iter().filter(|h| h.0 == name).map(|h| h.1).collect::<Vec<_>>();
    let guarded = matches!(values(b"metadata")[..], [value] if value.eq_ignore_ascii_case(b"true"));
    let forwarded = !values(b"x-forwarded-for").is_empty();
    match &read {
        Err(EndpointError::MetadataHeader) => assert!(!guarded, "refused a header that is right"),
        Err(EndpointError::Forwarded) => assert!(guarded && forwarded, "no forwarding header"),
        _ => assert!(guarded && !forwarded, "passed without the header check"),
    }

    let parsed = imds::parse(&query);
    assert_eq!(parsed.as_ref().ok(), model::token_request(&query, Form::Imds).as_ref(), "{parsed:?}");
    match (&read, &parsed) {
        (Ok(read), Ok(parsed)) => {
            assert_eq!(read, parsed);
            if let Some(text) = model::encoded(read) {
                assert_eq!(imds::parse(&text).as_ref(), Ok(read), "not the same, re-encoded");
            }
        }
        (Err(EndpointError::Query(error)), Err(parsed)) => assert_eq!(error, parsed),
        (Err(EndpointError::MetadataHeader | EndpointError::Forwarded), _) => {}
        _ => panic!("{read:?}, but {parsed:?}"),
    }
    let posted = app_service::parse(&query);
    assert_eq!(posted.as_ref().ok(), model::token_request(&query, Form::AppService).as_ref(), "{posted:?}");
    if let Ok(request) = &posted
        && let Some(text) = model::encoded(request)
    {
        assert_eq!(app_service::parse(&text).as_ref(), Ok(request), "not the same, re-encoded");
    }
    let info = info::parse(&query);
    assert!(info.is_ok() || parsed.is_err(), "{info:?}, though a token could be asked so");
    if model::has_duplicates(&query) {
        assert!(parsed.is_err() && posted.is_err() && info.is_err(), "took duplicates");
    }
    if let Err(error) = read {
        refusal(error);
    }
}

/// What is answered: the client's mistake, told in a bounded line.
pub fn refusal(error: EndpointError) {
    let text = error.to_string();
    assert!(text.len() < 1024 && !text.chars().any(char::is_control), "{text:?}");
    let answer = error.into_response();
    assert!(answer.status().is_client_error(), "{}", answer.status());
}

/// Name in lower case and value, if a server would take it for a header.
fn header(line: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let value = line[colon + 1..].trim_ascii();
    HeaderValue::from_bytes(value).ok()?;
    Some((line[..colon].to_ascii_lowercase(), value))
}
