//! What goes in and what comes out.

use std::time::Duration;

use jiff::Timestamp;

use crate::tokens::TokenError;

/// Names a credential: equal only if what it is made of is.
pub(in crate::credentials) type Version = u64;

/// The present by both clocks: when credentials end is by the wall clock, which may be set; waiting is by one that only
/// goes on.
#[derive(Clone, Copy, Debug)]
pub(in crate::credentials) struct Now {
    pub(in crate::credentials) wall: Timestamp,
    /// Since some beginning.
    pub(in crate::credentials) mono: Duration,
}

impl Now {
    /// When, by the clock that only goes on, the wall clock will show this.
    pub(super) fn when(&self, at: Timestamp) -> Duration {
        self.mono + Duration::try_from(at.duration_since(self.wall)).unwrap_or_default()
    }
}

/// How it is known that a source has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::credentials) enum Freshness {
    /// Somebody says so.
    Followed,
    /// It is read again when a credential of this age is wanted.
    OnDemand(Duration),
    /// It is read again this often, as long as it is in use.
    Polled(Duration),
}

/// What happens.
#[derive(Clone, Debug)]
pub(in crate::credentials) enum Input {
    /// Somebody wants a credential, and for whom Entra has refused this version.
    Wanted { refused: Option<Version> },
    /// The source may have changed.
    Changed,
    /// It is known in another way from now on that the source has changed.
    Freshness(Freshness),
    /// A reading came to an end.
    Read(Reading),
    /// A try came to an end.
    Tried { version: Version, outcome: Outcome },
    /// Somebody got a token with this version.
    Worked { version: Version },
    /// The time of the last [`Effect::SetTimer`] has come; or any other time.
    Timer,
}

/// What a source holds.
#[derive(Clone, Debug)]
pub(in crate::credentials) enum Reading {
    /// A credential.
    Found { version: Version, expires: Option<Timestamp> },
    /// Something that cannot be used, why, and from when on it can be.
    Wrong { version: Version, error: TokenError, until: Option<Timestamp> },
    /// Nothing any more, or nothing that may be read: for certain.
    Gone(TokenError),
    /// It cannot be told now.
    Unclear(TokenError),
}

/// What came of a try.
#[derive(Clone, Debug)]
pub(in crate::credentials) enum Outcome {
    /// Entra gave a token.
    Proven,
    /// Entra refused; `spreads`: that may be a matter of time.
    Refused { message: Box<str>, spreads: bool },
    /// Nothing can be said.
    Unclear,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub(in crate::credentials) enum Effect {
    /// Read the source. One [`Input::Read`] is expected.
    Read,
    /// Ask Entra for a token with this version. One [`Input::Tried`] is expected.
    Try { version: Version },
    /// Send [`Input::Timer`] then, and not before.
    SetTimer { at: Option<Duration> },
    /// Tell people.
    Say(Saying),
}

/// What people should be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::credentials) enum Saying {
    /// This version is in use now.
    Rotated { version: Version },
    /// This version is not used.
    CandidateRefused { version: Version, message: Box<str> },
    /// The version in use ends soon, or has ended.
    Expiring { version: Version, expires: Timestamp, ended: bool },
    /// The source holds no credential, or has not been readable for a while.
    Unreadable { message: Box<str> },
    /// It is readable again, after that was said.
    Readable,
}

/// What whoever wants a credential is told.
#[derive(Clone, Debug)]
pub(in crate::credentials) enum Outlook {
    /// Use this.
    Serve(Version),
    /// It will be known in a moment.
    Wait,
    /// There is none.
    None(TokenError),
}
