//! `GET /metadata/identity/info`: the tenant of the pod's identity (imds-and-clients §1.2).

use identity_core::lookup::Request;

use super::{
    Selector, imds, named,
    parameters::{QueryError, read},
};

/// A well-formed request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InfoRequest {
    /// The named identity, if any: IMDS has no such parameters here, but a pod may have several identities.
    pub identity: Option<(Selector, String)>,
}

impl InfoRequest {
    /// As the decision wants it: for no resource.
    pub fn as_request(&self) -> Request<'_> {
        Request { resource: "", identity: named(self.identity.as_ref()) }
    }
}

/// Reads the query.
pub fn parse(query: &str) -> Result<InfoRequest, QueryError> {
    let parameters = read(query, imds::SELECTORS)?;
    imds::check_version(parameters.version.as_deref())?;
    Ok(InfoRequest { identity: parameters.identity })
}

/// The answer.
pub fn answer(tenant: &str) -> String {
    serde_json::json!({"tenantId": tenant}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        assert_eq!(parse("api-version=2018-02-01"), Ok(InfoRequest::default()));
        assert_eq!(
            parse("api-version=2018-02-01&client_id=c"),
            Ok(InfoRequest { identity: Some((Selector::ClientId, "c".into())) })
        );
        assert_eq!(parse(""), Err(QueryError::ApiVersion));
        assert_eq!(answer("t"), r#"{"tenantId":"t"}"#);
    }
}
