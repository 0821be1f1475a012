//! Why a vault could not be read. Every message says what, where, and what to do; none holds a secret or a token.

use std::time::Duration;

use thiserror::Error;

use crate::tokens::TokenError;

/// Why a Key Vault's object could not be read.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// `vaultURL` is no address of a vault.
    #[error("spec.keyVault.vaultURL '{url}' {why}; it is such as https://my-vault.vault.azure.net/")]
    Url {
        /// As written, shortened.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// A host that the operator does not allow. Nothing was sent, no token was asked for.
    #[error(
        "the host of spec.keyVault.vaultURL, '{host}', is not a vault of the allowed clouds (hosts under {allowed}); nothing was \
         sent. The operator of the node may allow it with --vault-suffixes"
    )]
    HostNotAllowed {
        /// The host.
        host: String,
        /// What is allowed.
        allowed: String,
    },
    /// A name or version that no object of a vault can have.
    #[error("spec.keyVault.{field} '{value}' {rule}")]
    Name {
        /// The field.
        field: &'static str,
        /// As written, shortened.
        value: String,
        /// What it has to be.
        rule: &'static str,
    },
    /// The host has no address.
    #[error(
        "Key Vault {host}: the name cannot be resolved: there is no such vault (check spec.keyVault.vaultURL), or this node's DNS \
         does not know its private endpoint"
    )]
    NameNotResolvable {
        /// The vault's host.
        host: String,
    },
    /// No such object, or no such version of it.
    #[error(
        "Key Vault {host}: it has no {object}: check spec.keyVault; if it was deleted lately it can be recovered (az keyvault \
         {kind} recover)"
    )]
    NotFound {
        /// The vault's host.
        host: String,
        /// What was looked for: "secret 'name'", "certificate 'name' of version …".
        object: String,
        /// `secret` or `certificate`.
        kind: &'static str,
    },
    /// The reading identity may not.
    #[error(
        "Key Vault {host}: AzureIdentity '{reader}' (spec.keyVault.identityRef) may not read {object}: give {caller} the role \
         '{}' on the vault, or, where the vault has access policies, {}. A role given just now \
         takes minutes to hold",
        needs.role(), needs.permissions()
    )]
    Forbidden {
        /// The vault's host.
        host: String,
        /// What was to be read.
        object: String,
        /// The reading identity's name.
        reader: String,
        /// Who the vault says it was: "its principal (application …, object …)".
        caller: String,
        /// What is missing.
        needs: Access,
    },
    /// The vault's firewall.
    #[error(
        "Key Vault {host}: its firewall does not let this node in ({code}): allow the node's address or subnet in the vault's \
         networking, or give the vault a private endpoint that this node reaches"
    )]
    Firewall {
        /// The vault's host.
        host: String,
        /// `ForbiddenByFirewall` or `ForbiddenByConnection`.
        code: &'static str,
    },
    /// The object is disabled.
    #[error("Key Vault {host}: {object} is disabled: enable it, or put a new version there")]
    Disabled {
        /// The vault's host.
        host: String,
        /// The object.
        object: String,
    },
    /// The certificate was never issued, so that there is no key to read.
    #[error(
        "Key Vault {host}: {object} has not been issued yet: complete its request (az keyvault certificate pending show)"
    )]
    NotIssued {
        /// The vault's host.
        host: String,
        /// The certificate.
        object: String,
    },
    /// The certificate's key stays in the vault.
    #[error(
        "Key Vault {host}: the private key of {object} is not exportable, so that no client can sign with it: create the \
         certificate with a policy whose key_props.exportable is true"
    )]
    NotExportable {
        /// The vault's host.
        host: String,
        /// The certificate.
        object: String,
    },
    /// The vault is asked too often.
    #[error("Key Vault {host}: it is asked too often (by everything that reads it); next try in {} s", retry_after.as_secs())]
    Throttled {
        /// The vault's host.
        host: String,
        /// For how long it wants to be left alone.
        retry_after: Duration,
    },
    /// Not now: no connection, no answer in time, an error of the service.
    #[error("Key Vault {host}: not now: {reason}")]
    Unavailable {
        /// The vault's host.
        host: String,
        /// What did not work.
        reason: String,
        /// For how long it wants to be left alone, if it said so.
        retry_after: Option<Duration>,
    },
    /// What the vault says about its tokens is not to be followed. No token was asked for.
    #[error("Key Vault {host}: its challenge is not followed: {reason}; no token was asked for")]
    Challenge {
        /// The vault's host.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The reading identity got no token.
    #[error(
        "Key Vault {host}: AzureIdentity '{reader}' (spec.keyVault.identityRef) got no token for {resource}: {error}"
    )]
    NoToken {
        /// The vault's host.
        host: String,
        /// The reading identity's name.
        reader: String,
        /// What the token was to be for.
        resource: String,
        /// Why.
        error: Box<TokenError>,
    },
    /// The vault does not take the token.
    #[error(
        "Key Vault {host}: it does not take the token of AzureIdentity '{reader}' (spec.keyVault.identityRef): {message}. The \
         identity has to be of the vault's own tenant{tenant}"
    )]
    TokenRefused {
        /// The vault's host.
        host: String,
        /// The reading identity's name.
        reader: String,
        /// What the vault said, shortened.
        message: String,
        /// Which that is: " (…)", or nothing.
        tenant: String,
    },
    /// The answer is not Key Vault's.
    #[error("Key Vault {host}: the answer is not as it should be: {reason}")]
    Malformed {
        /// The vault's host.
        host: String,
        /// What is wrong; nothing of the answer.
        reason: String,
    },
}

/// What a reading needs on the vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read a secret.
    Secret,
    /// To read a certificate and its private key.
    Certificate,
}

impl Access {
    /// The role.
    pub const fn role(self) -> &'static str {
        match self {
            Self::Secret => "Key Vault Secrets User",
            Self::Certificate => "Key Vault Certificate User",
        }
    }

    /// The same in a vault with access policies.
    pub const fn permissions(self) -> &'static str {
        match self {
            Self::Secret => "the permission secret Get",
            Self::Certificate => "the permissions certificate Get and secret Get",
        }
    }
}

impl Error {
    /// Whether it may be gone in a moment by itself.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Throttled { .. } | Self::Unavailable { .. } => true,
            Self::NoToken { error, .. } => matches!(**error, TokenError::Unavailable { .. }),
            _ => false,
        }
    }

    /// Before when it should not be asked again, if the vault said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } => Some(*retry_after),
            Self::NoToken { error, .. } => match &**error {
                TokenError::Unavailable { retry_after, .. } => Some(*retry_after),
                _ => None,
            },
            Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// In a word, as the `reason` of a condition: CamelCase.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Url { .. } | Self::Name { .. } => "KeyVaultReferenceWrong",
            Self::HostNotAllowed { .. } => "KeyVaultNotAllowed",
            Self::NameNotResolvable { .. } => "KeyVaultNameNotResolvable",
            Self::NotFound { .. } => "KeyVaultNotFound",
            Self::Forbidden { .. } | Self::Firewall { .. } => "KeyVaultForbidden",
            Self::Disabled { .. } => "KeyVaultDisabled",
            Self::NotIssued { .. } | Self::NotExportable { .. } => "KeyVaultNoPrivateKey",
            Self::Throttled { .. } => "KeyVaultThrottled",
            Self::Unavailable { .. } => "KeyVaultUnavailable",
            Self::Challenge { .. } | Self::Malformed { .. } => "KeyVaultAnswerWrong",
            Self::NoToken { .. } => "KeyVaultNoToken",
            Self::TokenRefused { .. } => "KeyVaultTokenRefused",
        }
    }
}
