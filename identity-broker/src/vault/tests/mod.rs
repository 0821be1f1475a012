//! What a vault answered real clients, what one must not get away with, and the lab's Key Vault over TLS.

mod lab;
mod recorded;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use identity_core::lookup::{VaultObject, VaultRef};
use secrecy::{ExposeSecret as _, SecretString};

use super::{Bundle, Error, Reader};
use crate::tokens::TokenError;

const HOST: &str = "myvault.vault.azure.net";
const TENANT: &str = "11111111-1111-1111-1111-111111111111";

fn secret(name: &str) -> VaultRef {
    VaultRef {
        url: format!("https://{HOST}/").into(),
        object: VaultObject::Secret(name.into()),
        version: None,
        identity: "reader".into(),
    }
}

fn certificate(name: &str) -> VaultRef {
    VaultRef { object: VaultObject::Certificate(name.into()), ..secret("") }
}

fn version(of: VaultRef, version: &str) -> VaultRef {
    VaultRef { version: Some(version.into()), ..of }
}

fn text(bundle: &Bundle) -> &str {
    str::from_utf8(bundle.value.expose_secret()).unwrap()
}

/// Gives a token, and counts how often it was asked for one.
#[derive(Clone, Default)]
struct Giving {
    token: String,
    asked: Arc<AtomicUsize>,
}

impl Giving {
    fn new(token: impl Into<String>) -> Self {
        Self { token: token.into(), asked: Arc::default() }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    async fn read(&self, reader: &Reader, reference: &VaultRef) -> Result<Bundle, Error> {
        let read = reader.read(reference, async |resource: String| {
            assert_eq!(resource, "https://vault.azure.net");
            self.asked.fetch_add(1, Ordering::SeqCst);
            Ok::<_, TokenError>(SecretString::from(self.token.as_str()))
        });
        read.await
    }
}
