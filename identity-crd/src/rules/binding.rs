//! Rules of `AzureIdentityBinding`.

use super::{Check, MAX_LABEL, MAX_WEIGHT};
use crate::form as pattern;

pub(crate) const AZURE_IDENTITY: Check = Check {
    field: "azureIdentity",
    message: "the name of an AzureIdentity of this namespace is needed: lower-case letters, digits, `-` and `.`",
    required: false,
    cel: || format!("has(self.azureIdentity) && self.azureIdentity.matches(r'{}')", pattern::OBJECT_NAME),
};

pub(crate) const PINNED_CLIENT_ID: Check = Check {
    field: "clientID",
    message: "not a GUID; `az identity show --query clientId` or `az ad sp show --query appId` prints it; leave it out for \
              an identity of any client id",
    required: false,
    // What a template left empty does not mean "any".
    cel: || format!("!has(self.clientID) || self.clientID.matches(r'{}')", pattern::GUID),
};

pub(crate) const SELECTOR: Check = Check {
    field: "selector",
    message: "no pod label can have this value: up to 63 letters, digits, `-`, `_` and `.`, beginning and ending with \
              a letter or digit",
    required: false,
    cel: || {
        format!(
            "!has(self.selector) || (size(self.selector) <= {MAX_LABEL} && self.selector.matches(r'{}'))",
            pattern::LABEL_VALUE
        )
    },
};

pub(crate) const WEIGHT: Check = Check {
    field: "weight",
    message: "use a weight from -1000000 to 1000000; the highest wins",
    required: false,
    cel: || format!("!has(self.weight) || (self.weight >= -{MAX_WEIGHT} && self.weight <= {MAX_WEIGHT})"),
};

pub(crate) const POD_SELECTOR: Check = Check {
    field: "podSelector",
    message: "an empty label selector selects nothing here; give matchLabels or matchExpressions, or leave it out",
    required: true,
    cel: || {
        "!has(self.podSelector) || (has(self.podSelector.matchLabels) && size(self.podSelector.matchLabels) > 0) || \
         (has(self.podSelector.matchExpressions) && size(self.podSelector.matchExpressions) > 0)"
            .into()
    },
};

pub(crate) const POD_SELECTOR_LABELS: Check = Check {
    field: "podSelector.matchLabels",
    message: "a key or a value that no label can have",
    required: false,
    cel: || {
        format!(
            "!has(self.podSelector) || !has(self.podSelector.matchLabels) || self.podSelector.matchLabels.all(k, \
             k.matches(r'{}') && self.podSelector.matchLabels[k].matches(r'{}'))",
            pattern::LABEL_KEY,
            pattern::LABEL_VALUE
        )
    },
};

pub(crate) const POD_SELECTOR_EXPRESSIONS: Check = Check {
    field: "podSelector.matchExpressions",
    message: "each expression needs a key that a label can have, an operator (In, NotIn, Exists, DoesNotExist), and \
              values for In and NotIn only",
    required: false,
    cel: || {
        format!(
            "!has(self.podSelector) || !has(self.podSelector.matchExpressions) || \
             self.podSelector.matchExpressions.all(e, e.key.matches(r'{}') && (e.operator in ['In', 'NotIn'] ? \
             (has(e.values) && size(e.values) > 0 && e.values.all(v, v.matches(r'{}'))) : \
             (e.operator in ['Exists', 'DoesNotExist'] && (!has(e.values) || size(e.values) == 0))))",
            pattern::LABEL_KEY,
            pattern::LABEL_VALUE
        )
    },
};

pub(crate) const SERVICE_ACCOUNTS: Check = Check {
    field: "serviceAccounts",
    message: "an entry is not a name that a service account can have; write the name alone, without its namespace",
    required: false,
    cel: || {
        format!("!has(self.serviceAccounts) || self.serviceAccounts.all(s, s.matches(r'{}'))", pattern::OBJECT_NAME)
    },
};
