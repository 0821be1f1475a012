//! Whom the daemons trust: the system's roots, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name; and the operator's own.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, bail};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tracing::warn;

/// For connections to Entra and Key Vault: trusts the system's roots, and those in `bundle` (PEM).
pub(crate) fn client_config(bundle: Option<&Path>) -> anyhow::Result<ClientConfig> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        warn!(%error, "a trust root cannot be read");
    }
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    let own = bundle.map(read).transpose()?.unwrap_or_default();
    if added == 0 && own.is_empty() {
        warn!(
            ignored,
            "no trust roots: service principals get no tokens; install ca-certificates, set SSL_CERT_FILE or --ca-bundle"
        );
    }
    for (number, certificate) in own.into_iter().enumerate() {
        let number = number + 1;
        roots
            .add(certificate)
            .with_context(|| format!("--ca-bundle: certificate {number} of the file cannot be used"))?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .context("TLS")?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn read(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let what = || format!("--ca-bundle {}", file.display());
    let pem = std::fs::read(file).with_context(what)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().with_context(what)?;
    if certificates.is_empty() {
        bail!("{}: there is no certificate in it; it must be PEM (-----BEGIN CERTIFICATE-----)", what());
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_must_be_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.pem");
        let error = |file: &Path| format!("{:#}", client_config(Some(file)).unwrap_err());
        assert!(error(&file).contains("No such file"), "{}", error(&file));
        std::fs::write(&file, "nothing\n").unwrap();
        assert!(error(&file).contains("there is no certificate in it"), "{}", error(&file));
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(error(&file).contains("certificate 1 of the file cannot be used"), "{}", error(&file));
        let made = rcgen::generate_simple_self_signed(["ca.example".to_owned()]).unwrap();
        std::fs::write(&file, made.cert.pem()).unwrap();
        client_config(Some(&file)).unwrap();
    }
}
