//! `POST /oauth2/token`: the VM extension that came before IMDS, and Cloud Shell. The parameters are a form in the body;
//! the VM extension also took them as a query with GET. There is no api-version (imds-and-clients §1.5).

use std::{fmt, time::Duration};

use http::{HeaderMap, header::CONTENT_TYPE};
use http_body_util::BodyExt;

use super::{
    Form, TokenRequest, imds,
    parameters::{QueryError, read},
};
use crate::endpoint::{
    body::RequestBody,
    error::{Row, table},
};

/// The largest body, in bytes.
pub const MAX_FORM: usize = 16 * 1024;

/// Why a form cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FormError {
    /// It is something else.
    ContentType,
    /// Longer than [`MAX_FORM`].
    TooLarge,
    /// It ends too early.
    Incomplete,
    /// It did not arrive in time.
    Timeout,
    /// What is in it.
    Parameters(QueryError),
}

impl FormError {
    pub(in crate::endpoint) const fn row(&self) -> &'static Row {
        match self {
            Self::ContentType => &table::CONTENT_TYPE,
            Self::TooLarge => &table::BODY_TOO_LARGE,
            Self::Incomplete => &table::BODY_INCOMPLETE,
            Self::Timeout => &table::BODY_TIMEOUT,
            Self::Parameters(error) => error.row(),
        }
    }
}

impl fmt::Display for FormError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parameters(error) => error.fmt(f),
            _ => f.write_str(&self.row().fill(&[("longest", &MAX_FORM)])),
        }
    }
}

impl std::error::Error for FormError {}

/// Reads a form's bytes.
pub fn form_body(body: &[u8]) -> Result<TokenRequest, FormError> {
    if body.len() > MAX_FORM {
        return Err(FormError::TooLarge);
    }
    let text = std::str::from_utf8(body).map_err(|_| FormError::Parameters(QueryError::Encoding))?;
    // Some clients end the form with a line feed.
    parse(text.trim_end_matches(['\r', '\n'])).map_err(FormError::Parameters)
}

/// Reads a form, or the query in its place.
pub fn parse(text: &str) -> Result<TokenRequest, QueryError> {
    let mut parameters = read(text, imds::SELECTORS)?;
    Ok(TokenRequest {
        resource: parameters.resource()?,
        identity: parameters.identity,
        authority: parameters.authority,
        bypass_cache: parameters.bypass_cache,
        form: Form::Posted,
    })
}

/// Reads a body, for at most `patience`.
pub(in crate::endpoint) async fn receive(
    headers: &HeaderMap,
    body: RequestBody,
    patience: Duration,
) -> Result<TokenRequest, FormError> {
    // Without one it is taken for a form; curl's -d and every SDK say so.
    let form = headers.get(CONTENT_TYPE).is_none_or(|value| {
        let kind = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        kind.trim_ascii().eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
    });
    if !form {
        return Err(FormError::ContentType);
    }
    let bytes = tokio::time::timeout(patience, collect(body)).await.map_err(|_| FormError::Timeout)??;
    form_body(&bytes)
}

async fn collect(mut body: RequestBody) -> Result<Vec<u8>, FormError> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        // Trailers are of no interest.
        let Ok(data) = frame.map_err(|_| FormError::Incomplete)?.into_data() else { continue };
        if bytes.len() + data.len() > MAX_FORM {
            return Err(FormError::TooLarge);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::Selector, *};

    #[test]
    fn forms() {
        let of = |text: &[u8]| form_body(text).map(|request| (request.resource, request.identity));
        let vault = || "https://vault.azure.net".to_owned();
        assert_eq!(of(b"resource=https%3A%2F%2Fvault.azure.net"), Ok((vault(), None)));
        assert_eq!(of(b"resource=https://vault.azure.net\r\n"), Ok((vault(), None)));
        let named = (vault(), Some((Selector::ClientId, "c".to_owned())));
        assert_eq!(of(b"resource=https://vault.azure.net&client_id=c"), Ok(named));
        for (text, expected) in [
            (&b""[..], FormError::Parameters(QueryError::ResourceMissing)),
            (b"resource=a&resource=b", FormError::Parameters(QueryError::Duplicate("resource".into()))),
            (b"resource=a&client_id=b&object_id=c", FormError::Parameters(QueryError::SeveralSelectors)),
            (b"resource=\xff", FormError::Parameters(QueryError::Encoding)),
            (b"resource=%ff", FormError::Parameters(QueryError::Encoding)),
            (&vec![b'a'; MAX_FORM + 1], FormError::TooLarge),
        ] {
            assert_eq!(of(text), Err(expected), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = form_body(&bytes);
        }
    }
}
