//! A Secret as the API server sends it.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::NamespaceResourceScope;
use kube::{Resource, api::ObjectMeta};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Deserializer, de::IgnoredAny};

use super::{SecretBytes, store::SecretData};

/// Name and data. `Debug` shows no value.
#[derive(Clone)]
pub(super) struct Wire {
    metadata: ObjectMeta,
    data: Option<Data>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Data {
    Encoded(BTreeMap<String, Wiped>),
    /// Not what Kubernetes stores.
    Other(Other),
}

#[derive(Clone)]
struct Other;

impl<'de> Deserialize<'de> for Other {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl<'de> Deserialize<'de> for Wire {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Meta {
            name: Option<String>,
            namespace: Option<String>,
            uid: Option<String>,
            resource_version: Option<String>,
        }
        #[derive(Deserialize)]
        struct Raw {
            metadata: Meta,
            #[serde(default)]
            data: Option<Data>,
        }
        let Raw { metadata: Meta { name, namespace, uid, resource_version }, data } = Raw::deserialize(deserializer)?;
        Ok(Self { metadata: ObjectMeta { name, namespace, uid, resource_version, ..ObjectMeta::default() }, data })
    }
}

impl Wire {
    /// Its keys and values, or what is wrong with it, without a value.
    pub(super) fn decode(self) -> Result<SecretData, String> {
        let mut data = SecretData::new();
        let encoded = match self.data {
            None => return Ok(data),
            Some(Data::Other(Other)) => return Err("its `data` is no map of texts".to_owned()),
            Some(Data::Encoded(encoded)) => encoded,
        };
        for (key, Wiped(text)) in encoded {
            let Ok(bytes) = STANDARD.decode(text.expose_secret()) else {
                return Err(format!("the value of key `{key}` is not base64"));
            };
            data.insert(key, SecretBytes::from(bytes));
        }
        Ok(data)
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("name", &self.metadata.name).finish_non_exhaustive()
    }
}

impl Resource for Wire {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Secret".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "secrets".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// A string that is wiped after use.
#[derive(Clone)]
struct Wiped(SecretString);

impl<'de> Deserialize<'de> for Wiped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(text.into()))
    }
}
