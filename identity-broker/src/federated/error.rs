//! Why there is no assertion, and what to do.

use std::time::Duration;

use jiff::Timestamp;
use thiserror::Error;

/// Why there is no assertion. Holds nothing of a token but what it says of itself.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AssertionError {
    /// The binary was given no token file.
    #[error(
        "identities of type 3 need the node's projected token, and this node was given none: mount a projected volume with a \
         serviceAccountToken for audience {audience} into the node daemon, and name its file with --federated-token-file"
    )]
    NoFileGiven {
        /// The audience that was asked for.
        audience: String,
    },
    /// There is no such file.
    #[error(
        "there is no token at {path}: mount a projected volume with a serviceAccountToken for audience {audience} into the node \
         daemon there (volumes: projected: sources: serviceAccountToken, as in deploy/node.yaml), or correct --federated-token-file"
    )]
    NoFile {
        /// Where it should be.
        path: String,
        /// The audience that was asked for.
        audience: String,
    },
    /// The file cannot be read.
    #[error("the token at {path} cannot be read: {reason}")]
    Unreadable {
        /// Where it is.
        path: String,
        /// Why.
        reason: String,
    },
    /// What is there is no token.
    #[error("{origin} is no service account's token: {reason}")]
    NotAToken {
        /// Where it is from.
        origin: String,
        /// What is wrong with it; nothing of it.
        reason: String,
    },
    /// It is for another audience.
    #[error(
        "{origin} is for audience {found}, and what is wanted is {wanted}: set `audience` of the projected serviceAccountToken, or \
         spec.federated.audience, so that they agree"
    )]
    Audience {
        /// Where it is from.
        origin: String,
        /// What was asked for.
        wanted: String,
        /// What it is for.
        found: String,
    },
    /// It is over.
    #[error(
        "{origin} ended {end}, and this node's clock says {now}: the kubelet renews it in time, so either it is away, or the clock \
         is wrong"
    )]
    Expired {
        /// Where it is from.
        origin: String,
        /// Its end.
        end: Timestamp,
        /// When that was looked at.
        now: Timestamp,
    },
    /// The operator did not allow tokens in pods' names.
    #[error(
        "spec.federated.subject Pod is off on this node, because it needs the right to make tokens of pods' service accounts: the \
         operator may turn it on with --federated-pod-subjects (docs/federation.md says what that means), or use the subject Broker"
    )]
    PodsNotAllowed,
    /// A pod's own token is wanted, and nobody said which pod asks. The controller, which serves none, sees this.
    #[error("spec.federated.subject Pod: only a node can tell, when a pod asks")]
    NoPod,
    /// The cluster made no token for the pod.
    #[error(transparent)]
    Pod(#[from] PodTokenError),
}

/// Why the cluster made no token for a pod.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PodTokenError {
    /// It will not, as things are.
    #[error("{0}")]
    Refused(String),
    /// Not now.
    #[error("{message}")]
    Unavailable {
        /// What did not work.
        message: String,
        /// When it is worth asking again, if that is known.
        retry_after: Option<Duration>,
    },
}

impl AssertionError {
    /// Whether it may be gone in a moment by itself.
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            // A projected volume is put in place, and a token renewed, by the kubelet.
            Self::NoFile { .. }
                | Self::NotAToken { .. }
                | Self::Unreadable { .. }
                | Self::Expired { .. }
                | Self::Pod(PodTokenError::Unavailable { .. })
        )
    }
}
