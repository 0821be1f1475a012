//! The body of a posted form.

use identity_broker::endpoint::{
    form_body,
    forms::{Form, FormError, MAX_ID, MAX_RESOURCE, posted::MAX_FORM},
};

use super::{imds_request::refusal, model};

/// Checks one.
pub fn check(body: &[u8]) {
    let read = form_body(body);
    assert_eq!(read, form_body(body), "read differently the second time");
    assert_eq!(read == Err(FormError::TooLarge), body.len() > MAX_FORM, "{} bytes", body.len());
    let text = std::str::from_utf8(body).ok().filter(|_| body.len() <= MAX_FORM);
    let text = text.map(|text| text.trim_end_matches(['\r', '\n']));
    let expected = text.and_then(|text| model::token_request(text, Form::Posted));
    assert_eq!(read.as_ref().ok(), expected.as_ref(), "{read:?}");
    if text.is_some_and(model::has_duplicates) {
        assert!(read.is_err(), "took duplicates");
    }
    match read {
        Ok(request) => {
            assert!(request.resource.len() <= MAX_RESOURCE);
            assert!(request.identity.as_ref().is_none_or(|(_, id)| !id.is_empty() && id.len() <= MAX_ID));
            if let Some(text) = model::encoded(&request) {
                assert_eq!(form_body(text.as_bytes()), Ok(request), "not the same, re-encoded");
            }
        }
        Err(error) => refusal(error.into()),
    }
}
