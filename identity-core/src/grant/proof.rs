//! What proves who asked and who approved.

use jiff::{SignedDuration, Timestamp};

/// API servers take some seconds until an admission policy is in force; a grant proves nothing about itself unless the
/// policy was there for this long before.
pub const SETTLING: SignedDuration = SignedDuration::from_secs(60);

/// Whether the names in a grant are those of the people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The admission policy and its binding have been as they should be since then, by the API server's clock
    /// ([`identity_crd`]'s policies say so).
    Since(Timestamp),
    /// They are not; the text says what is wrong and what to do.
    Missing(String),
    /// Nobody asks: the operator takes every name for true (`--unproven-grants`).
    Waived,
}

/// What a proof says about one grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Proven {
    /// What it says is true.
    Yes,
    /// Not as things are; what it waits for may come.
    NotNow(String),
    /// Never: it was there before what would prove it.
    Never(String),
}

impl Proof {
    /// Whether it covers a grant that was created at `created`, by the API server's clock. `waits`: whether a grant has to
    /// be so much younger.
    pub(super) fn covers(&self, created: Option<Timestamp>, waits: bool) -> Proven {
        match (self, created) {
            (Self::Waived, _) => Proven::Yes,
            (Self::Missing(why), _) => Proven::NotNow(format!("nothing proves who asked and who approved: {why}")),
            (Self::Since(_), None) => Proven::NotNow("metadata.creationTimestamp is missing".to_owned()),
            (Self::Since(since), Some(created)) => {
                let least = since.checked_add(SETTLING).unwrap_or(Timestamp::MAX);
                if created >= least || !waits {
                    return Proven::Yes;
                }
                Proven::Never(format!(
                    "it was created at {created}, and the admission policy that proves who asked and who approved is in \
                     force for grants created since {least} only: ask again with a new grant"
                ))
            }
        }
    }
}
