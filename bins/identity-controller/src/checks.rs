//! Tries credentials for the controller, with the code by which nodes use them.

use std::sync::Arc;

use futures::{FutureExt as _, future::BoxFuture};
use identity_broker::{Checker, Clock};
use identity_core::{
    lookup::Identity,
    runtime::controller::{Check, Checked},
};

/// [`Checker`] for the runtime.
pub(crate) struct Tried<C>(pub(crate) Checker<C>);

impl<C: Clock> Check for Tried<C> {
    fn check<'a>(&'a self, identity: &'a Arc<Identity>) -> BoxFuture<'a, Checked> {
        async move {
            let identity_broker::Checked { ready, reason, message, expires } = self.0.check(identity).await;
            // Whether the nodes may is another question.
            let ready = ready.filter(|_| reason != "SecretForbidden");
            Checked { ready, reason: reason.to_owned(), message, expires }
        }
        .boxed()
    }
}
