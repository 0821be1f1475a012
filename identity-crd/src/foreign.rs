//! Fields of a part of an object that this version does not know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What stood beside the known fields of a part that narrows access, kept as it was.
///
/// A newer version may have added a field; nobody here can tell what it forbids. So it must not be dropped unseen: whoever
/// acts on the part asks [`names`](Self::names) first, and what it says is as if the part said "never". It is written back
/// unchanged, so that who reads a copy sees it too.
///
/// Nothing of it is in the schema. An API server with this version's definitions removes such fields before anybody sees them
/// (and says so); they come with newer definitions, from files, and in copies that assignments carry.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(transparent)]
pub struct ForeignFields(BTreeMap<String, Value>);

impl ForeignFields {
    /// Their names. One that is null says nothing.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name.as_str())
    }

    /// Whether none is there that says something.
    pub fn is_empty(&self) -> bool {
        self.names().next().is_none()
    }
}

impl<K: Into<String>> FromIterator<(K, Value)> for ForeignFields {
    fn from_iter<I: IntoIterator<Item = (K, Value)>>(fields: I) -> Self {
        Self(fields.into_iter().map(|(name, value)| (name.into(), value)).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    use crate::{AssignedGrant, AzureIdentityBindingSpec, TimeBox};

    #[test]
    fn what_is_not_known_is_kept_and_named() {
        let written = json!({
            "windows": [{"schedule": "0 0 * * *", "duration": "1h", "timezone": "Europe/Berlin"}, {"schedule": "", "duration": ""}],
            "grant": {"maxDuration": "1h", "perDay": 3, "approvers": {"roles": ["sre"], "users": ["bob"]}},
            "notbefore": "2027-01-01T00:00:00Z", "onlyFrom": null,
        });
        let read: TimeBox = from_value(written.clone()).unwrap();
        assert_eq!(
            read.foreign_fields(),
            ["notbefore", "windows[0].timezone", "grant.perDay", "grant.approvers.roles"],
            "a null says nothing"
        );
        assert_eq!(to_value(&read).unwrap(), written, "it comes back as it was");
        assert_ne!(
            read,
            TimeBox { foreign: super::ForeignFields::default(), ..read.clone() },
            "it counts in comparisons"
        );

        let spec = AzureIdentityBindingSpec {
            azure_identity: Some("a".into()),
            selector: Some("s".into()),
            time_box: Some(TimeBox {
                foreign: [("onlyFrom", json!("10.0.0.0/8"))].into_iter().collect(),
                ..TimeBox::default()
            }),
            ..AzureIdentityBindingSpec::default()
        };
        let said: Vec<_> = spec.validate().iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "spec.timeBox.onlyFrom: not known to this version, which cannot tell what it forbids: the box is closed; correct \
              the name, remove it, or upgrade"
            ]
        );
    }

    #[test]
    fn of_a_grant_in_an_assignment() {
        let written = json!({"name": "g", "until": "2027-01-01T00:00:00Z", "audiences": ["a"]});
        let read: AssignedGrant = from_value(written.clone()).unwrap();
        assert!(!read.foreign.is_empty());
        assert_eq!(to_value(&read).unwrap(), written);
        assert!(AssignedGrant::new("g", "u").foreign.is_empty());
    }
}
