//! How much a request upstream matters, while it is under way.

use thiserror::Error;
use tokio::sync::watch;

use super::{Freshness, TokenError};

/// How much a request upstream matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Somebody waits, and has no token at all or one of little life.
    Urgent,
    /// There is a token; this is for a better one.
    Early,
    /// Nobody wants it any more. What has not begun need not begin; what has begun goes on, its token will be of use.
    Nobody,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Where the token may come from.
    pub freshness: Freshness,
    /// How much it matters.
    pub interest: Interest,
}

impl Ask {
    /// Asks with an urgency that stays as it is.
    pub fn constant(freshness: Freshness, urgency: Urgency) -> Self {
        Self { freshness, interest: Interest(watch::channel(urgency).1) }
    }
}

/// Follows how much a request matters.
#[derive(Clone, Debug)]
pub struct Interest(watch::Receiver<Urgency>);

impl Interest {
    pub(crate) fn new(urgency: Urgency) -> (watch::Sender<Urgency>, Self) {
        let (sender, receiver) = watch::channel(urgency);
        (sender, Self(receiver))
    }

    /// Now.
    pub fn urgency(&self) -> Urgency {
        *self.0.borrow()
    }

    /// Waits until it changes, for ever if it does not.
    pub async fn changed(&mut self) -> Urgency {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        *self.0.borrow_and_update()
    }
}

/// Why nothing was fetched.
#[derive(Clone, Debug, Error)]
pub enum FetchError {
    /// It did not begin, because nobody wanted it any more.
    #[error("nobody wants it any more")]
    Abandoned,
    /// It failed.
    #[error(transparent)]
    Failed(#[from] TokenError),
}
