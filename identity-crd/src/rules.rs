//! The rules for shape, each once: what the API server evaluates (CEL) and the sentence that it and Rust both say.
//!
//! Every rule is at the level of `spec`: values that nobody edits keep working ("ratcheting"), and a field that an
//! identity's type does not use is not looked at, because the predecessor did not look at it either. An empty string is
//! as if absent, as in the predecessor's Go.

use kube::core::{Reason, Rule};

use crate::{Violation, form as pattern};

/// Most entries of `audiences`.
pub(crate) const MAX_AUDIENCES: usize = 64;
/// Longest audience, characters.
pub(crate) const MAX_AUDIENCE: usize = 512;
/// Most entries of `serviceAccounts`.
pub(crate) const MAX_SERVICE_ACCOUNTS: usize = 64;
/// Longest name of an object.
pub(crate) const MAX_OBJECT_NAME: usize = 253;
/// Longest value of a label.
pub(crate) const MAX_LABEL: usize = 63;
/// Most entries of `podSelector.matchLabels`, of `matchExpressions`, and of one expression's `values`.
pub(crate) const MAX_SELECTOR_TERMS: usize = 16;
/// Longest `resourceID` (Azure: 36 + 90 + 128 and the fixed part).
pub(crate) const MAX_RESOURCE_ID: usize = 512;
/// Longest `clientID` or tenant.
pub(crate) const MAX_ID: usize = 256;
/// Longest key of a label: prefix, slash, name.
pub(crate) const MAX_LABEL_KEY: usize = 317;
/// Longest `adEndpoint`.
pub(crate) const MAX_ENDPOINT: usize = 512;
/// `weight` lies between minus this and this.
pub(crate) const MAX_WEIGHT: i32 = 1_000_000;
/// Most `auxiliaryTenantIDs` of any type.
pub(crate) const MAX_TENANTS: usize = 64;
/// Most `auxiliaryTenantIDs` that a type 1 identity can use (the predecessor's token library refused more).
pub(crate) const MAX_AUXILIARY_TENANTS: usize = 3;

/// One rule.
pub(crate) struct Check {
    /// JSON path below `spec`.
    pub(crate) field: &'static str,
    /// The sentence: what is wrong, what to do.
    pub(crate) message: &'static str,
    /// Something necessary is absent, rather than something present wrong.
    pub(crate) required: bool,
    /// `false` (or an evaluation error) when broken; `self` is the spec.
    cel: fn() -> String,
}

impl Check {
    /// For the schema.
    pub(crate) fn rule(&self) -> Rule {
        Rule::new((self.cel)()).message(self.message).field_path(format!(".{}", self.field)).reason(if self.required {
            Reason::FieldValueRequired
        } else {
            Reason::FieldValueInvalid
        })
    }

    /// For Rust: a violation unless `holds`.
    pub(crate) fn unless(&self, holds: bool, out: &mut Vec<Violation>) {
        if !holds {
            out.push(Violation::new(format!("spec.{}", self.field), self.message));
        }
    }
}

const SERVICE_PRINCIPAL: &str = "has(self.type) && self.type in [1, 2]";

/// `field` (one of spec's strings), where present and not empty, matches.
fn form(field: &str, re2: &str) -> String {
    format!("!has(self.{field}) || self.{field} == '' || self.{field}.matches(r'{re2}')")
}

fn principal_needs(field: &str) -> String {
    format!("!({SERVICE_PRINCIPAL}) || (has(self.{field}) && self.{field} != '')")
}

fn principal_form(field: &str, re2: &str) -> String {
    format!("!({SERVICE_PRINCIPAL}) || {}", form(field, re2))
}

fn password_form(field: &str, re2: &str) -> String {
    let value = form(&format!("clientPassword.{field}"), re2);
    format!("!({SERVICE_PRINCIPAL}) || !has(self.clientPassword) || {value}")
}

// AzureIdentity

pub(crate) const TYPE: Check = Check {
    field: "type",
    message: "unknown identity type; use 0 (user-assigned managed identity), 1 (service principal with a client \
              secret) or 2 (service principal with a certificate)",
    required: false,
    cel: || "!has(self.type) || self.type in [0, 1, 2]".into(),
};

pub(crate) const RESOURCE_ID: Check = Check {
    field: "resourceID",
    message: "an identity of type 0 needs the ARM id of a user-assigned managed identity: \
              /subscriptions/<id>/resourceGroups/<group>/providers/Microsoft.ManagedIdentity/userAssignedIdentities/\
              <name> (`az identity show --query id` prints it)",
    required: false,
    cel: || {
        format!(
            "(has(self.type) && self.type != 0) || (has(self.resourceID) && self.resourceID.matches(r'{}'))",
            pattern::RESOURCE_ID
        )
    },
};

pub(crate) const CLIENT_ID: Check = Check {
    field: "clientID",
    message: "a service principal (type 1 or 2) needs its application (client) id",
    required: true,
    cel: || principal_needs("clientID"),
};

pub(crate) const CLIENT_ID_FORM: Check = Check {
    field: "clientID",
    message: "white space or a character that no client id has; copy the application (client) id alone",
    required: false,
    cel: || form("clientID", pattern::ONE_WORD),
};

pub(crate) const OBJECT_ID_FORM: Check = Check {
    field: "objectID",
    message: "not a GUID; `az identity show --query principalId` or `az ad sp show --query id` prints it",
    required: false,
    cel: || form("objectID", pattern::GUID),
};

pub(crate) const TENANT_ID: Check = Check {
    field: "tenantID",
    message: "a service principal (type 1 or 2) needs the directory (tenant) id that it signs in to",
    required: true,
    cel: || principal_needs("tenantID"),
};

pub(crate) const TENANT_ID_FORM: Check = Check {
    field: "tenantID",
    message: "neither a GUID nor a domain name; `az account show --query tenantId` prints the tenant id",
    required: false,
    cel: || principal_form("tenantID", pattern::TENANT),
};

pub(crate) const AUXILIARY_TENANTS: Check = Check {
    field: "auxiliaryTenantIDs",
    message: "at most three further tenants, each a GUID or a domain name",
    required: false,
    cel: || {
        format!(
            "!has(self.type) || self.type != 1 || !has(self.auxiliaryTenantIDs) || \
             (size(self.auxiliaryTenantIDs) <= {MAX_AUXILIARY_TENANTS} && \
             self.auxiliaryTenantIDs.all(t, t.matches(r'{}')))",
            pattern::TENANT
        )
    },
};

pub(crate) const PASSWORD: Check = Check {
    field: "clientPassword",
    message: "a service principal (type 1 or 2) needs the Secret with its credential: clientPassword: {name: …, \
              namespace: …}; the keys are lower case, `Name` and `Namespace` are not read",
    required: true,
    cel: || {
        format!(
            "!({SERVICE_PRINCIPAL}) || (has(self.clientPassword) && has(self.clientPassword.name) && \
             self.clientPassword.name != '')"
        )
    },
};

pub(crate) const PASSWORD_NAME_FORM: Check = Check {
    field: "clientPassword.name",
    message: "not a name that a Secret can have: lower-case letters, digits, `-` and `.`, beginning and ending with a \
              letter or digit",
    required: false,
    cel: || password_form("name", pattern::OBJECT_NAME),
};

pub(crate) const PASSWORD_NAMESPACE_FORM: Check = Check {
    field: "clientPassword.namespace",
    message: "not a name that a namespace can have: lower-case letters, digits and `-`; leave it out for the \
              identity's own namespace",
    required: false,
    // `namespace` is a reserved word of CEL; this is how Kubernetes escapes it.
    cel: || password_form("__namespace__", pattern::OBJECT_NAME),
};

pub(crate) const PASSWORD_KEY_FORM: Check = Check {
    field: "clientPassword.key",
    message: "not a key that a Secret can have: letters, digits, `-`, `_` and `.`",
    required: false,
    cel: || password_form("key", pattern::SECRET_KEY),
};

pub(crate) const AD_ENDPOINT: Check = Check {
    field: "adEndpoint",
    message: "the credential is only sent over https to a named host; write https://<host>/ or leave it out for \
              https://login.microsoftonline.com/",
    required: false,
    cel: || principal_form("adEndpoint", pattern::HTTPS_ENDPOINT),
};

pub(crate) const AUDIENCES: Check = Check {
    field: "audiences",
    message: "an entry is empty or has white space; write each resource as applications ask for it, such as \
              https://vault.azure.net",
    required: false,
    cel: || format!("!has(self.audiences) || self.audiences.all(a, a.matches(r'{}'))", pattern::AUDIENCE),
};

// AzureIdentityBinding

pub(crate) const AZURE_IDENTITY: Check = Check {
    field: "azureIdentity",
    message: "the name of an AzureIdentity of this namespace is needed: lower-case letters, digits, `-` and `.`",
    required: false,
    cel: || format!("has(self.azureIdentity) && self.azureIdentity.matches(r'{}')", pattern::OBJECT_NAME),
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
