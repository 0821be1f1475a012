//! Secrets for the demo's and the tests' service principals: made anew for each run, never kept.

use std::{fmt::Write as _, path::Path};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{files, run::Cmd};

/// A `Secret` manifest.
pub fn secret(name: &str, data: &[(&str, &[u8])]) -> String {
    let mut text =
        format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: demo}}\ntype: Opaque\ndata:\n");
    for (key, value) in data {
        let _ = writeln!(text, "  {key}: {}", STANDARD.encode(value));
    }
    text
}

/// A new self-signed certificate with its key as a PKCS#12 archive under `password`, made by OpenSSL.
///
/// # Errors
/// What OpenSSL says.
pub fn pkcs12(password: &str) -> anyhow::Result<Vec<u8>> {
    let directory = tempfile::tempdir().context("no temporary directory")?;
    let at = |name: &str| directory.path().join(name);
    let [key, certificate, archive, passfile] = ["key.pem", "certificate.pem", "archive.p12", "password"].map(at);
    Cmd::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=demo", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .run_quietly()?;
    // Through a file: arguments can be read by every user of the machine.
    files::replace(&passfile, password)?;
    Cmd::new("openssl")
        .args(["pkcs12", "-export", "-passout"])
        .arg(format!("file:{}", passfile.display()))
        .arg("-inkey")
        .arg(&key)
        .arg("-in")
        .arg(&certificate)
        .arg("-out")
        .arg(&archive)
        .run_quietly()?;
    std::fs::read(&archive).context("OpenSSL wrote no archive")
}

/// A password that nobody has used before.
///
/// # Errors
/// When the system has no randomness.
pub fn password() -> anyhow::Result<String> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("cannot read a random number")?;
    Ok(uuid.trim().to_owned())
}

/// Copies the manifests of `examples/demo` into `directory` and adds the secrets that they refer to.
///
/// # Errors
/// Of the file system, or of OpenSSL.
pub fn fill(directory: &Path) -> anyhow::Result<()> {
    let source = crate::paths::root().join("examples/demo");
    for entry in std::fs::read_dir(&source).with_context(|| format!("cannot read {}", source.display()))? {
        let path = entry.context("cannot read the directory")?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files::replace(&directory.join(name), &files::read(&path)?)?;
        }
    }
    let archive_password = password()?;
    let secrets = [
        secret("app-secret", &[("clientSecret", password()?.as_bytes())]),
        secret("app-next", &[("clientSecret", password()?.as_bytes())]),
        secret(
            "app-certificate",
            &[("certificate", &pkcs12(&archive_password)?), ("password", archive_password.as_bytes())],
        ),
    ];
    files::replace(&directory.join("secrets.yaml"), &secrets.join("---\n"))
}

#[cfg(test)]
mod tests {
    use super::secret;

    #[test]
    fn secrets_are_base64() {
        assert!(secret("a", &[("k", b"hello")]).ends_with("data:\n  k: aGVsbG8=\n"));
    }
}
