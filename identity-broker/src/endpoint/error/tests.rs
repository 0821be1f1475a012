use std::{collections::BTreeSet, sync::Arc};

use identity_core::{
    lookup::{CredentialSource, Identity, ObjectRef},
    pod::PodRef,
};
use identity_crd::IdentityType;

use super::{table::TABLE, *};
use crate::tokens::{Refusal, RefusalKind};

fn pod() -> Arc<PodRef> {
    Arc::new(PodRef { namespace: "ns".into(), name: "p".into(), uid: "u".into(), service_account: "sa".into() })
}

fn assignment(namespace: &str) -> Arc<Assignment> {
    let object = |name: &str| ObjectRef { namespace: namespace.into(), name: name.into(), ..ObjectRef::default() };
    let window = identity_crd::Window { schedule: "0 0 30 2 *".into(), duration: "1h".into(), ..Default::default() };
    let unreadable = identity_crd::TimeBox { windows: Some(vec![window]), ..Default::default() };
    Arc::new(Assignment {
        object: object("a"),
        pod_uid: "u".into(),
        binding: object("b"),
        weight: 0,
        binding_audiences: Box::default(),
        identity: Arc::new(Identity {
            object: object("i"),
            kind: IdentityType::ServicePrincipal,
            client_id: None,
            object_id: None,
            resource_id: None,
            tenant_id: None,
            authority: None,
            credential: CredentialSource::None,
            audiences: Box::default(),
        }),
        ready: true,
        gate: identity_core::schedule::Gate::new(Some(&unreadable), None).map(Arc::new),
        granted: None,
    })
}

fn closed(namespace: &str, opens: Option<i64>, reason: Closed) -> EndpointError {
    let opens = opens.map(|second| jiff::Timestamp::from_second(second).unwrap());
    EndpointError::Denied(Deny::Closed { pod: pod(), assignment: assignment(namespace), opens, reason }, None)
}

/// One error for each line, and more.
fn errors() -> Vec<EndpointError> {
    let second = Duration::from_secs(1);
    let misconfigured = TokenError::Misconfigured { identity: "other/i".into(), message: "spec.tenantID".into() };
    let unavailable = TokenError::Unavailable { message: "Secret other/s".into(), retry_after: second };
    let refused = TokenError::Refused(Refusal {
        error: RefusalKind::InvalidResource,
        description: "AADSTS".into(),
        trace_id: None,
    });
    let mut all: Vec<EndpointError> = vec![
        EndpointError::MetadataHeader,
        EndpointError::AppServiceHeader,
        EndpointError::Forwarded,
        EndpointError::Method("GET"),
        EndpointError::Authority,
        EndpointError::NotFound,
        MetadataError::Blocked.into(),
        MetadataError::Method("GET, POST").into(),
        MetadataError::Share { retry_after: second }.into(),
        MetadataError::Unavailable { message: "no".into(), retry_after: second }.into(),
        MetadataError::Timeout.into(),
        EndpointError::Denied(Deny::HostNetwork, None),
        EndpointError::Denied(Deny::AddressChangedHands, None),
        EndpointError::Denied(Deny::NoBinding(pod()), None),
        EndpointError::Denied(Deny::IdentityNotFound(pod()), Some(Selector::ObjectId)),
        EndpointError::Denied(Deny::MultipleIdentities(pod()), None),
        EndpointError::Denied(Deny::Audience(pod(), assignment("ns")), None),
        EndpointError::Denied(Deny::Audience(pod(), assignment("other")), None),
        closed("ns", Some(0), Closed::BetweenWindows),
        closed("ns", None, Closed::Over),
        closed("ns", None, Closed::NoGrant),
        closed("ns", None, Closed::Unreadable),
        closed("other", Some(0), Closed::ClockWentBack),
        closed("other", None, Closed::Unreadable),
        EndpointError::NotYet(Wait::UnknownAddress),
        EndpointError::NotYet(Wait::AmbiguousAddress),
        EndpointError::NotYet(Wait::Assignment(pod())),
        EndpointError::Unsettled,
        EndpointError::TenantUnknown,
        EndpointError::TooManyHeld(3),
        EndpointError::TooManyHeldInAll,
        EndpointError::Rate(RateLimit::Requests, second),
        EndpointError::Rate(RateLimit::Cold, second),
        EndpointError::Rate(RateLimit::Bypass, second),
        EndpointError::Token { error: refused.clone(), foreign: false },
        EndpointError::Token { error: refused, foreign: true },
        EndpointError::Token { error: misconfigured.clone(), foreign: false },
        EndpointError::Token { error: misconfigured, foreign: true },
        EndpointError::Token { error: unavailable.clone(), foreign: false },
        EndpointError::Token { error: unavailable, foreign: true },
        EndpointError::Audit,
    ];
    for error in [
        TargetError::TooLong,
        TargetError::NotAPath,
        TargetError::Encoding,
        TargetError::Character,
        TargetError::DotSegment,
    ] {
        all.push(error.into());
    }
    for error in [
        QueryError::ResourceMissing,
        QueryError::ApiVersion,
        QueryError::Duplicate("a\nb".into()),
        QueryError::SeveralSelectors,
        QueryError::Empty("client_id"),
        QueryError::Value("resource"),
        QueryError::Encoding,
        QueryError::TooMany,
        QueryError::BypassCache,
        QueryError::Authority,
    ] {
        all.push(error.into());
    }
    for error in [FormError::ContentType, FormError::TooLarge, FormError::Incomplete, FormError::Timeout] {
        all.push(error.into());
    }
    all
}

#[test]
fn every_line_is_reached_and_every_text_is_complete() {
    let mut reached = BTreeSet::new();
    for error in errors() {
        let text = error.to_string();
        assert!(!text.is_empty() && !text.contains(['{', '}', '\n']), "{text}");
        reached.insert(std::ptr::from_ref(error.row()) as usize);
        let boxed = EndpointError::AppService(Box::new(error.clone()));
        assert_eq!((boxed.to_string(), boxed.reason(), boxed.detail()), (text, error.reason(), error.detail()));
        let (plain, boxed) = (error.into_response(), boxed.into_response());
        assert_eq!((plain.status(), plain.headers()), (boxed.status(), boxed.headers()));
    }
    for row in TABLE {
        assert!(reached.contains(&(std::ptr::from_ref::<Row>(row) as usize)), "{row:?} is never answered");
    }
}

#[test]
fn what_sdks_do_with_it() {
    for row in TABLE {
        let status = row.status.as_u16();
        // A 404 is retried for up to two minutes; "unreachable" in a 403 is taken for a proxy's.
        assert!(status != 404 || row.error == "not_found", "{row:?}");
        assert!(!row.text.contains("unreachable"), "{row:?}");
        // .NET wants no "Identity not found" in the answer to its probe.
        assert!(row.reason != Reason::MetadataHeader || !row.text.contains("Identity not found"));
        // What passes says when; what does not says nothing. JS retries 429 only so.
        assert_eq!(matches!(status, 429 | 503), row.retry != Retry::Never, "{row:?}");
        assert!(!row.remedy.is_empty());
    }
}

#[test]
fn pods_are_not_told_of_other_namespaces() {
    for error in errors() {
        let foreign = match &error {
            EndpointError::Token { foreign, .. } => *foreign,
            EndpointError::Denied(Deny::Audience(_, assignment) | Deny::Closed { assignment, .. }, _) => {
                *assignment.binding.namespace == *"other"
            }
            _ => continue,
        };
        assert!(!foreign || !error.to_string().contains("other/"), "{error}");
    }
    // The operator is.
    let error = TokenError::Unavailable { message: "Secret other/s".into(), retry_after: Duration::ZERO };
    let error = EndpointError::Token { error, foreign: true };
    assert!(error.detail().contains("other/s") && !error.to_string().contains("other/s"));
}

#[test]
fn what_is_closed_says_when_it_opens() {
    for (error, expected) in [
        (
            closed("ns", Some(1_800_000_000), Closed::BetweenWindows),
            "The time box of AzureIdentityBinding ns/b and AzureIdentity ns/i is closed: none of its windows is open; \
             it opens next at 2027-01-15T08:00:00Z",
        ),
        (
            closed("ns", None, Closed::Over),
            "The time box of AzureIdentityBinding ns/b and AzureIdentity ns/i is closed: notAfter has passed; \
             it does not open by itself",
        ),
        (
            closed("ns", None, Closed::Unreadable),
            "The time box of AzureIdentityBinding ns/b and AzureIdentity ns/i cannot be read, so nobody can say that it \
             is open: spec.timeBox.windows[0].schedule: `0 0 30 2 *` never comes: no month it names has such a day",
        ),
        (
            closed("other", None, Closed::Unreadable),
            "The time box of an AzureIdentityBinding of another namespace and an AzureIdentity of another namespace \
             cannot be read, so nobody can say that it is open: see the audit record",
        ),
    ] {
        assert_eq!(error.to_string(), expected);
        let response = error.into_response();
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        assert!(!response.headers().contains_key(RETRY_AFTER));
    }
}

#[test]
fn the_table_as_markdown() {
    insta::assert_snapshot!(table::error_table());
}
