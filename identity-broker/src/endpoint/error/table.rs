//! The table of everything the endpoint refuses: reason, status, `error`, text, and what to do about it.
//!
//! Statuses follow what SDKs do with them (imds-and-clients §2.3): 400 and 403 end a request at once in every SDK, 404
//! would be retried for up to two minutes, 503 with `Retry-After` is waited for. Texts that SDKs compare are the real
//! endpoint's, letter by letter. A 403 never says "unreachable": Python and Go take that for a proxy's answer. No text
//! names an object of a namespace that is not the pod's.

use std::{
    fmt::{Display, Write as _},
    time::Duration,
};

use http::StatusCode;

use crate::metrics::Reason;

/// When a client may ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Asking again changes nothing.
    Never,
    /// `Retry-After` with this many seconds.
    After(u64),
    /// `Retry-After` with what has been learnt: from the upstream, or from the limit.
    Learnt,
}

/// One line of the table.
#[derive(Debug)]
pub struct Row {
    /// In metrics and audit records.
    pub reason: Reason,
    /// On the wire.
    pub status: StatusCode,
    /// `error` of the answer. Empty: the upstream's.
    pub error: &'static str,
    /// `Retry-After`.
    pub retry: Retry,
    /// `error_description`, with `{placeholders}`.
    pub text: &'static str,
    /// What to do about it, for the reference.
    pub remedy: &'static str,
}

impl Row {
    /// The text with its placeholders filled in. Control characters do not get into it.
    pub fn fill(&self, values: &[(&str, &dyn Display)]) -> String {
        let mut text = String::with_capacity(self.text.len() + 64);
        let mut rest = self.text;
        while let Some((before, after)) = rest.split_once('{') {
            text.push_str(before);
            let (name, after) = after.split_once('}').unwrap_or((after, ""));
            if let Some((_, value)) = values.iter().find(|(known, _)| *known == name) {
                text.extend(value.to_string().chars().filter(|c| !c.is_control()));
            }
            rest = after;
        }
        text.push_str(rest);
        text
    }

    /// Its `Retry-After`, when it does not have to be learnt.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self.retry {
            After(seconds) => Some(Duration::from_secs(seconds)),
            Never | Learnt => None,
        }
    }
}

macro_rules! rows {
    ($($name:ident: $reason:ident, $status:ident, $error:literal, $retry:expr, $text:literal, $remedy:literal;)*) => {
        $(pub(in crate::endpoint) static $name: Row = Row {
            reason: Reason::$reason, status: StatusCode::$status, error: $error, retry: $retry, text: $text, remedy: $remedy,
        };)*

        /// All lines.
        pub static TABLE: &[&Row] = &[$(&$name,)*];
    };
}

use Retry::{After, Learnt, Never};

rows! {
    // === the request line ===
    TARGET_TOO_LONG: BadTarget, URI_TOO_LONG, "invalid_request", Never,
        "The request target is longer than {longest} bytes",
        "Shorten the query; no client of the endpoint needs a tenth of that.";
    TARGET_NOT_A_PATH: BadTarget, BAD_REQUEST, "invalid_request", Never,
        "The request target must be an absolute path",
        "Ask the address itself, not as a proxy: exempt 169.254.169.254 from the client's proxy (NO_PROXY).";
    TARGET_ENCODING: BadTarget, BAD_REQUEST, "invalid_request", Never,
        "The path has an invalid percent-encoding",
        "Write the path as documented, without percent-encoding.";
    TARGET_CHARACTER: BadTarget, BAD_REQUEST, "invalid_request", Never,
        "The path has a character that is not allowed in it",
        "Write the path as documented: letters, digits, `.`, `-`, `_` and `/`.";
    TARGET_DOT_SEGMENT: BadTarget, BAD_REQUEST, "invalid_request", Never,
        "The path has a dot segment",
        "Write the path as documented, without `.` and `..`.";

    // === headers, method, body ===
    METADATA_HEADER: MetadataHeader, BAD_REQUEST, "invalid_request", Never,
        "Required metadata header not specified",
        "Send `Metadata: true` once. The probes of SDKs leave it out on purpose and expect this answer.";
    APP_SERVICE_HEADER: MetadataHeader, BAD_REQUEST, "invalid_request", Never,
        "Required header X-IDENTITY-HEADER (or, for api-version 2017-09-01, secret) not specified",
        "Set IDENTITY_HEADER (or MSI_SECRET) in the pod to any value; the SDK sends it.";
    FORWARDED: Forwarded, BAD_REQUEST, "invalid_request", Never,
        "Requests with an X-Forwarded-For header are rejected",
        "Do not send requests for tokens through a proxy.";
    METHOD: Method, METHOD_NOT_ALLOWED, "method_not_allowed", Never,
        "The verb isn't supported on the endpoint: use {allow}",
        "Use one of the methods in the answer's `Allow` header.";
    CONTENT_TYPE: BadBody, BAD_REQUEST, "invalid_request", Never,
        "The Content-Type of the body must be application/x-www-form-urlencoded",
        "Send the parameters as a form.";
    BODY_TOO_LARGE: BadBody, PAYLOAD_TOO_LARGE, "invalid_request", Never,
        "The body is longer than {longest} bytes",
        "Send only the documented parameters.";
    BODY_INCOMPLETE: BadBody, BAD_REQUEST, "invalid_request", Never,
        "The body ends before it is complete",
        "Send as many bytes as Content-Length says.";
    BODY_TIMEOUT: BadBody, REQUEST_TIMEOUT, "invalid_request", Never,
        "The body did not arrive in time",
        "Send the body with the head.";

    // === parameters ===
    RESOURCE_MISSING: BadQuery, BAD_REQUEST, "invalid_request", Never,
        "Required query variable 'resource' is missing",
        "Name the resource the token is for, such as `https://vault.azure.net`.";
    API_VERSION: BadQuery, BAD_REQUEST, "invalid_request", Never,
        "Bad request. api-version is invalid or was not specified in the request. For more information refer to aka.ms/azureimds",
        "Send `api-version=2018-02-01`, or any later date (App Service forms: 2017-09-01, or any date from 2019-08-01 on).";
    DUPLICATE: BadQuery, BAD_REQUEST, "invalid_request", Never,
        "Query variable '{name}' is given more than once",
        "Send each parameter once.";
    SEVERAL_SELECTORS: BadQuery, BAD_REQUEST, "invalid_request", Never,
        "Only one of client_id, object_id and msi_res_id may be given",
        "Name the identity in one way.";
    EMPTY: BadQuery, BAD_REQUEST, "invalid_request", Never,
        "Query variable '{name}' is empty: leave it out or give it a value",
        "Often an environment variable of the application that is set to nothing.";
    VALUE: BadQuery, BAD_REQUEST, "invalid_request", Never,
        "Query variable '{name}' is too long or has a control character",
        "Check what the application puts there.";
    QUERY_ENCODING: BadQuery, BAD_REQUEST, "invalid_request", Never,
        "The query is not percent-encoded UTF-8",
        "Encode the parameters as a form.";
    TOO_MANY_PARAMETERS: BadQuery, BAD_REQUEST, "invalid_request", Never,
        "More than {most} query variables",
        "Send only the documented parameters.";
    BYPASS_VALUE: BadQuery, BAD_REQUEST, "invalid_request", Never,
        "Query variable 'bypass_cache' may only be true",
        "Leave it out to be answered from the cache.";
    AUTHORITY_VALUE: BadQuery, BAD_REQUEST, "invalid_request", Never,
        "Query variable 'authority' must be a URL such as https://login.microsoftonline.com/<tenant id>",
        "Leave it out: the identity's own authority is asked.";
    AUTHORITY: Authority, BAD_REQUEST, "invalid_request", Never,
        "Query variable 'authority' is not the authority of the identity: leave it out, or name the AzureIdentity's spec.adEndpoint and spec.tenantID",
        "The identity's own authority is always asked; tokens of other tenants are not issued.";

    // === paths ===
    NOT_FOUND: NotFound, NOT_FOUND, "not_found", Never,
        "Not found",
        "There is no such path. The newer protocol (getplatformmetadata, issuecredential) is not offered; SDKs go on with the present one.";
    BLOCKED: Blocked, FORBIDDEN, "access_denied", Never,
        "Access to this path of the metadata service is blocked by the cluster's policy",
        "The operator of the node may allow the path with --metadata-policy.";
    METADATA_SHARE: MetadataShare, TOO_MANY_REQUESTS, "too_many_requests", Learnt,
        "This pod's share of the virtual machine's requests to the metadata service is used up",
        "Ask less often: all pods of a node share five requests a second.";
    METADATA_UNAVAILABLE: MetadataUnavailable, SERVICE_UNAVAILABLE, "service_unavailable", Learnt,
        "The node's metadata service does not answer: {message}",
        "See the log of identity-node.";
    METADATA_TIMEOUT: MetadataUnavailable, GATEWAY_TIMEOUT, "service_unavailable", Never,
        "The node's metadata service did not answer in time",
        "See the log of identity-node.";

    // === the decision ===
    HOST_NETWORK: HostNetwork, FORBIDDEN, "access_denied", Never,
        "Pods in the host's network and the node itself get no tokens here",
        "Give the pod a network of its own (hostNetwork: false): the node cannot tell host-network pods from each other.";
    CHANGED_HANDS: AddressChangedHands, SERVICE_UNAVAILABLE, "service_unavailable", After(1),
        "This address now belongs to another pod than the connection began with; open a new connection",
        "Ask again on a new connection; this one is closed.";
    NO_BINDING: NoBinding, BAD_REQUEST, "invalid_request", Never,
        "Identity not found: no AzureIdentityBinding selects this pod. In namespace {namespace}, spec.selector of a binding has to be the pod's label aadpodidbinding, or its spec.podSelector and spec.serviceAccounts have to match the pod",
        "Create the binding, or label the pod. `identityctl explain` shows which bindings there are and why none selects the pod.";
    IDENTITY_NOT_FOUND: IdentityNotFound, BAD_REQUEST, "invalid_request", Never,
        "Identity not found: none of the identities that are assigned to this pod has the requested {parameter}. Name one that an AzureIdentityBinding gives to the pod (spec.clientID, spec.objectID or spec.resourceID of its AzureIdentity), or leave the parameter out",
        "Compare the application's parameter with the AzureIdentity. An object id is only known if spec.objectID is set.";
    MULTIPLE: MultipleIdentities, BAD_REQUEST, "invalid_request", Never,
        "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request",
        "Name the identity in the request, or give one AzureIdentityBinding a higher spec.weight.";
    AUDIENCE: Audience, FORBIDDEN, "access_denied", Never,
        "The requested resource is not among the audiences that {binding} and {identity} allow: add it to spec.audiences",
        "Add the resource to spec.audiences of both (where they are given), as the client sends it; one trailing slash is ignored.";
    CLOSED: Closed, FORBIDDEN, "access_denied", Never,
        "The time box of {binding} and {identity} is closed: {why}; it opens next at {opens}",
        "Ask again then. Whoever may create an AzureIdentityGrant can have a binding with spec.timeBox.grant opened before.";
    CLOSED_FOR_GOOD: Closed, FORBIDDEN, "access_denied", Never,
        "The time box of {binding} and {identity} is closed: {why}; it does not open by itself",
        "Give spec.timeBox a later notAfter or other windows, or have the binding opened by an AzureIdentityGrant.";
    GRANT_NEEDED: Closed, FORBIDDEN, "access_denied", Never,
        "{binding} opens only with an active grant, and there is none for this pod: create an AzureIdentityGrant and have it approved",
        "`identityctl request`, then `identityctl approve` by somebody else.";
    TIME_BOX_UNREADABLE: Closed, FORBIDDEN, "access_denied", Never,
        "The time box of {binding} and {identity} cannot be read, so nobody can say that it is open: {error}",
        "Correct the named field of spec.timeBox.";
    UNKNOWN_ADDRESS: UnknownAddress, SERVICE_UNAVAILABLE, "service_unavailable", After(1),
        "The node does not know yet which pod has this address; try again",
        "Passes when the pod's address is published, usually within a second or two.";
    AMBIGUOUS_ADDRESS: AmbiguousAddress, SERVICE_UNAVAILABLE, "service_unavailable", After(1),
        "More than one pod has this address at the moment; try again",
        "Passes when the pod that had the address before is gone.";
    NOT_ASSIGNED_YET: NotAssignedYet, SERVICE_UNAVAILABLE, "service_unavailable", After(1),
        "An AzureIdentityBinding selects this pod, and its identity is being assigned; try again",
        "Passes when identity-controller has written the AzureAssignedIdentity; if it does not, see the conditions of the AzureIdentityBinding.";
    UNSETTLED: Unsettled, SERVICE_UNAVAILABLE, "service_unavailable", After(1),
        "The assignment changed while the token was obtained; try again",
        "Ask again.";
    TENANT_UNKNOWN: Misconfigured, BAD_REQUEST, "invalid_request", Never,
        "The tenant of the identity is not known: set spec.tenantID of its AzureIdentity to the directory's id",
        "Set spec.tenantID.";

    // === limits ===
    RATE: RateLimited, TOO_MANY_REQUESTS, "too_many_requests", Learnt,
        "This pod asks for tokens too often; keep the token until it expires",
        "SDKs keep tokens when one credential object is kept; do not make a new one for each call.";
    COLD_RATE: RateLimited, TOO_MANY_REQUESTS, "too_many_requests", Learnt,
        "This pod asks for tokens of too many different resources at once",
        "Ask for fewer resources, or more slowly: what is not in the cache has to be got upstream.";
    BYPASS_RATE: RateLimited, TOO_MANY_REQUESTS, "too_many_requests", Learnt,
        "This pod uses bypass_cache too often; leave it out to be answered from the cache",
        "Only bypass the cache after a token has been rejected.";
    TOO_MANY_HELD: TooManyHeld, TOO_MANY_REQUESTS, "too_many_requests", After(1),
        "Too many requests of this pod are waiting; the limit is {most}",
        "Ask for a token once and share it among the application's threads.";
    TOO_MANY_HELD_IN_ALL: TooManyHeld, SERVICE_UNAVAILABLE, "service_unavailable", After(1),
        "Too many requests of this node are waiting; try again",
        "Ask again. If it stays so, see why tokens are slow in the log of identity-node.";

    // === what backs the identity ===
    UPSTREAM_REFUSED: UpstreamRefused, BAD_REQUEST, "", Never,
        "{message}",
        "The text is Entra's or the node's IMDS's, with its AADSTS code.";
    MISCONFIGURED: Misconfigured, BAD_REQUEST, "invalid_request", Never,
        "AzureIdentity {identity}: {message}",
        "Correct the named field.";
    FOREIGN_MISCONFIGURED: Misconfigured, BAD_REQUEST, "invalid_request", Never,
        "The AzureIdentity that is assigned to this pod, of another namespace, cannot be used as it is; the audit record of this request says why",
        "The operator finds the text in the audit record.";
    UPSTREAM_UNAVAILABLE: UpstreamUnavailable, SERVICE_UNAVAILABLE, "service_unavailable", Learnt,
        "{message}",
        "Ask again after `Retry-After`; it is the upstream's own where it said one.";
    FOREIGN_UNAVAILABLE: UpstreamUnavailable, SERVICE_UNAVAILABLE, "service_unavailable", Learnt,
        "What backs the AzureIdentity that is assigned to this pod, of another namespace, is not available; the audit record of this request says why",
        "Ask again after `Retry-After`. The operator finds the text in the audit record.";
    AUDIT: Audit, SERVICE_UNAVAILABLE, "service_unavailable", After(5),
        "The audit record could not be written, and no token is issued without one",
        "See the log of identity-node. The operator may choose --audit-on-failure=allow.";
}

/// The table as Markdown, for the reference.
pub fn error_table() -> String {
    let mut text = String::from(
        "| status | `error` | reason | `error_description` | `Retry-After` | what to do |\n|---|---|---|---|---|---|\n",
    );
    let mut rows: Vec<_> = TABLE.to_vec();
    rows.sort_by_key(|row| row.status.as_u16());
    for row in rows {
        let error = if row.error.is_empty() { "the upstream's".to_owned() } else { format!("`{}`", row.error) };
        let retry = match row.retry {
            Never => "–".to_owned(),
            After(seconds) => format!("{seconds} s"),
            Learnt => "learnt".to_owned(),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {error} | `{}` | {} | {retry} | {} |",
            row.status.as_u16(),
            row.reason.as_str(),
            escape(row.text),
            escape(row.remedy),
        );
    }
    text
}

/// So that the text is shown as it is, but for what is in backticks anyway.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut is_code = false;
    for c in text.chars() {
        is_code ^= c == '`';
        if c == '|' || (!is_code && matches!(c, '<' | '*' | '_')) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
