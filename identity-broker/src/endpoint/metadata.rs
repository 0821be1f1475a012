//! The seam to the rest of the metadata service: everything that is not a credential path.

use std::{net::IpAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use http::{Response, request::Parts};
use identity_core::pod::PodRef;

use super::{
    body::{Body, RequestBody},
    error::{EndpointError, Row, table},
    forms::TokenRequest,
    target::CanonicalPath,
};
use crate::tokens::{Token, TokenError};

/// The largest body of a request that is passed on, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// Answers requests outside the credential paths, and gets tokens for pods that an exception exempts.
pub trait Metadata: Send + Sync + 'static {
    /// Answers `request`. Path, length and form of the target have been checked; header, method and policy have not.
    fn call<'a>(
        &'a self,
        request: MetadataRequest,
        caller: MetadataCaller<'a>,
    ) -> BoxFuture<'a, Result<Response<Body>, EndpointError>>;

    /// A token of the node's own identities for an exempted pod. Decided before and after by the endpoint, and recorded.
    fn exempt_token<'a>(
        &'a self,
        pod: &'a PodRef,
        request: &'a TokenRequest,
    ) -> BoxFuture<'a, Result<Arc<Token>, TokenError>>;
}

/// A request outside the credential paths.
#[derive(Debug)]
pub struct MetadataRequest {
    /// The path that was decided on, and the only one that may be forwarded.
    pub path: CanonicalPath,
    /// Method, headers and query, as sent.
    pub parts: Parts,
    /// The body, not read yet, at most [`MAX_BODY`] bytes.
    pub body: RequestBody,
}

/// Who sent it.
pub struct MetadataCaller<'a> {
    /// Peer address.
    pub address: IpAddr,
    pub(super) identify: Box<dyn Identify + 'a>,
}

/// Finds out which pod a connection is of.
pub(super) trait Identify: Send + Sync {
    fn pod(&self) -> BoxFuture<'_, Result<Arc<PodRef>, EndpointError>>;
    fn still(&self, pod: &PodRef) -> bool;
}

impl MetadataCaller<'_> {
    /// The calling pod. Held, for as long as a token request would be, while the address is not known; an error is the
    /// finished answer.
    pub async fn pod(&self) -> Result<Arc<PodRef>, EndpointError> {
        self.identify.pod().await
    }

    /// Whether the address is still that pod's.
    pub fn still(&self, pod: &PodRef) -> bool {
        self.identify.still(pod)
    }
}

impl std::fmt::Debug for MetadataCaller<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MetadataCaller").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Blocks everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Block;

impl Metadata for Block {
    fn call<'a>(
        &'a self,
        _: MetadataRequest,
        _: MetadataCaller<'a>,
    ) -> BoxFuture<'a, Result<Response<Body>, EndpointError>> {
        Box::pin(std::future::ready(Err(MetadataError::Blocked.into())))
    }

    fn exempt_token<'a>(&'a self, _: &'a PodRef, _: &'a TokenRequest) -> BoxFuture<'a, Result<Arc<Token>, TokenError>> {
        Box::pin(std::future::ready(Err(TokenError::Unavailable {
            message: "This broker passes no requests on to the node's IMDS".to_owned(),
            retry_after: Duration::from_mins(1),
        })))
    }
}

/// Why a request outside the credential paths is not answered by the node's IMDS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataError {
    /// Policy.
    Blocked,
    /// Not with this method; the value is that of `Allow`.
    Method(&'static str),
    /// The pod's share of the VM's requests is used up.
    Share {
        /// When there is room again.
        retry_after: Duration,
    },
    /// The node's IMDS could not be asked.
    Unavailable {
        /// What did not work.
        message: String,
        /// When it is worth asking again.
        retry_after: Duration,
    },
    /// The node's IMDS did not answer in time.
    Timeout,
}

impl MetadataError {
    pub(super) const fn row(&self) -> &'static Row {
        match self {
            Self::Blocked => &table::BLOCKED,
            Self::Method(_) => &table::METHOD,
            Self::Share { .. } => &table::METADATA_SHARE,
            Self::Unavailable { .. } => &table::METADATA_UNAVAILABLE,
            Self::Timeout => &table::METADATA_TIMEOUT,
        }
    }

    pub(super) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Share { retry_after } | Self::Unavailable { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }
}

impl std::fmt::Display for MetadataError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let none: &dyn std::fmt::Display = &"";
        let (allow, message): (&dyn std::fmt::Display, _) = match self {
            Self::Method(allow) => (allow, none),
            Self::Unavailable { message, .. } => (none, message as &dyn std::fmt::Display),
            _ => (none, none),
        };
        f.write_str(&self.row().fill(&[("allow", allow), ("message", message)]))
    }
}

impl std::error::Error for MetadataError {}
