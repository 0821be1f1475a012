//! What people should be told of credentials.

use identity_core::lookup::ObjectRef;
use jiff::Timestamp;

use super::verdict::{Verdict, explain};
use crate::tokens::TokenError;

/// What people should be told: a log line, and an Event on the `AzureIdentity`. Holds no secret.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Notice {
    /// Upstream refused twice, with a pause between: pods get no token until that changes. Said once.
    Refused {
        /// The identity.
        identity: ObjectRef,
        /// The audience.
        resource: Box<str>,
        /// What it said.
        error: TokenError,
    },
    /// Upstream gave a token again after a refusal that was said.
    Restored {
        /// The identity.
        identity: ObjectRef,
        /// The audience.
        resource: Box<str>,
    },
    /// A new credential was proven and is in use.
    Rotated {
        /// The identity.
        identity: ObjectRef,
        /// Version of the credential, as in [`Token::credential`](crate::Token::credential).
        version: u64,
        /// Where it is: "Secret ns/name", "Key Vault …, version …".
        origin: Box<str>,
        /// When it ends, if that is known.
        expires: Option<Timestamp>,
    },
    /// A new credential does not work; the former stays in use. Said once for each.
    CandidateRefused {
        /// The identity.
        identity: ObjectRef,
        /// Where it is.
        origin: Box<str>,
        /// What is wrong with it, and what to do.
        message: Box<str>,
    },
    /// The credential in use ends soon, or has ended.
    Expiring {
        /// The identity.
        identity: ObjectRef,
        /// Where it is.
        origin: Box<str>,
        /// When it ends.
        expires: Timestamp,
        /// Whether it has ended.
        ended: bool,
    },
    /// Where the credential should be there is none, or it could not be read several times in a row.
    Unreadable {
        /// The identity.
        identity: ObjectRef,
        /// What is wrong, and what to do.
        message: Box<str>,
    },
    /// It can be read again.
    Readable {
        /// The identity.
        identity: ObjectRef,
        /// Where it is.
        origin: Box<str>,
    },
}

impl Notice {
    /// The identity it is about.
    pub const fn identity(&self) -> &ObjectRef {
        match self {
            Self::Refused { identity, .. }
            | Self::Restored { identity, .. }
            | Self::Rotated { identity, .. }
            | Self::CandidateRefused { identity, .. }
            | Self::Expiring { identity, .. }
            | Self::Unreadable { identity, .. }
            | Self::Readable { identity, .. } => identity,
        }
    }

    /// Whether somebody has to do something (a Warning), or not (Normal).
    pub const fn is_warning(&self) -> bool {
        !matches!(self, Self::Restored { .. } | Self::Rotated { .. } | Self::Readable { .. })
    }

    /// In a word, as the `reason` of an Event: `TokenRefused`, `TokenRestored`, `CredentialRotated`, `CredentialRefused`,
    /// `CredentialExpiring`, `CredentialUnreadable`, `CredentialReadable`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Refused { error: TokenError::Refused(refusal), .. } if Verdict::of(refusal).is_credential() => {
                "CredentialRefused"
            }
            Self::Refused { .. } => "TokenRefused",
            Self::Restored { .. } => "TokenRestored",
            Self::Rotated { .. } => "CredentialRotated",
            Self::CandidateRefused { .. } => "CredentialRefused",
            Self::Expiring { .. } => "CredentialExpiring",
            Self::Unreadable { .. } => "CredentialUnreadable",
            Self::Readable { .. } => "CredentialReadable",
        }
    }

    /// In a sentence or two.
    pub fn message(&self) -> String {
        match self {
            Self::Refused { resource, error, .. } => {
                format!("no token for {resource} until this changes: {}", explain(error))
            }
            Self::Restored { resource, .. } => format!("tokens for {resource} are given again"),
            Self::Rotated { origin, expires, .. } => {
                let until = expires.map(|end| format!("; it ends {end}")).unwrap_or_default();
                format!("a new credential from {origin} was tried at Entra and is in use{until}")
            }
            Self::CandidateRefused { origin, message, .. } => {
                format!("the new credential from {origin} is not used, the former one stays in use: {message}")
            }
            Self::Expiring { origin, expires, ended: false, .. } => {
                format!("the credential from {origin} ends {expires}: put a new one there before that")
            }
            Self::Expiring { origin, expires, ended: true, .. } => {
                format!("the credential from {origin} ended {expires}: put a new one there")
            }
            Self::Unreadable { message, .. } => format!("the credential cannot be read: {message}"),
            Self::Readable { origin, .. } => format!("the credential is read again, from {origin}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::{Refusal, RefusalKind};

    #[test]
    fn what_is_refused_is_named() {
        let of = |error, description: &str| {
            let error = TokenError::Refused(Refusal { error, description: description.into(), trace_id: None });
            Notice::Refused { identity: ObjectRef::default(), resource: "r".into(), error }
        };
        let secret = of(RefusalKind::InvalidClient, "AADSTS7000222: The provided client secret keys are expired.");
        assert_eq!((secret.reason(), secret.is_warning()), ("CredentialRefused", true));
        assert_eq!(
            secret.message(),
            "no token for r until this changes: AADSTS7000222: The provided client secret keys are expired: the client secret or \
             certificate has expired: make a new one for the application and put it there"
        );
        let resource = of(RefusalKind::InvalidResource, "AADSTS500011: The resource principal named x was not found.");
        assert_eq!(resource.reason(), "TokenRefused");
    }
}
