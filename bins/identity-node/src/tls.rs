//! Whom the node trusts: the system's roots, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.

use std::sync::Arc;

use anyhow::Context as _;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use tracing::warn;

/// For connections to Entra.
pub(crate) fn client_config() -> anyhow::Result<ClientConfig> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        warn!(%error, "a trust root cannot be read");
    }
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        warn!(
            ignored,
            "no trust roots: service principals get no tokens; install ca-certificates or set SSL_CERT_FILE"
        );
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .context("TLS")?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
