//! Rules of `AzureIdentity`.

use super::{Check, MAX_AUXILIARY_TENANTS, form};
use crate::form as pattern;

/// It has a credential that is kept somewhere.
const SERVICE_PRINCIPAL: &str = "has(self.type) && self.type in [1, 2]";
/// It signs in to a tenant.
const APPLICATION: &str = "has(self.type) && self.type in [1, 2, 3]";
const HAS_PASSWORD: &str =
    "(has(self.clientPassword) && has(self.clientPassword.name) && self.clientPassword.name != '')";

fn application_needs(field: &str) -> String {
    format!("!({APPLICATION}) || (has(self.{field}) && self.{field} != '')")
}

fn application_form(field: &str, re2: &str) -> String {
    format!("!({APPLICATION}) || {}", form(field, re2))
}

fn password_form(field: &str, re2: &str) -> String {
    let value = form(&format!("clientPassword.{field}"), re2);
    format!("!({SERVICE_PRINCIPAL}) || !has(self.clientPassword) || {value}")
}

pub(crate) const TYPE: Check = Check {
    field: "type",
    message: "unknown identity type; use 0 (user-assigned managed identity), 1 (service principal with a client \
              secret), 2 (service principal with a certificate) or 3 (workload identity federation)",
    required: false,
    cel: || "!has(self.type) || self.type in [0, 1, 2, 3]".into(),
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
    message: "an identity of type 1, 2 or 3 needs its application (client) id",
    required: true,
    cel: || application_needs("clientID"),
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
    message: "an identity of type 1, 2 or 3 needs the directory (tenant) id that it signs in to",
    required: true,
    cel: || application_needs("tenantID"),
};

pub(crate) const TENANT_ID_FORM: Check = Check {
    field: "tenantID",
    message: "neither a GUID nor a domain name; `az account show --query tenantId` prints the tenant id",
    required: false,
    cel: || application_form("tenantID", pattern::TENANT),
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
    message: "a service principal (type 1 or 2) needs its credential: clientPassword: {name: …, namespace: …} for a \
              Secret (the keys are lower case, `Name` and `Namespace` are not read), or keyVault",
    required: true,
    cel: || format!("!({SERVICE_PRINCIPAL}) || {HAS_PASSWORD} || has(self.keyVault)"),
};

pub(crate) const ONE_CREDENTIAL: Check = Check {
    field: "keyVault",
    message: "clientPassword names a credential too; keep the one that is valid and remove the other",
    required: false,
    cel: || format!("!({SERVICE_PRINCIPAL}) || !{HAS_PASSWORD} || !has(self.keyVault)"),
};

pub(crate) const NO_PASSWORD: Check = Check {
    field: "clientPassword",
    message: "an identity of type 3 has no credential; remove it, or use type 1 or 2",
    required: false,
    cel: || format!("!has(self.type) || self.type != 3 || !{HAS_PASSWORD}"),
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
    cel: || application_form("adEndpoint", pattern::HTTPS_ENDPOINT),
};

pub(crate) const KEY_VAULT: Check = Check {
    field: "keyVault",
    message: "only a service principal (type 1 or 2) has a credential in a Key Vault; remove it, or set that type",
    required: false,
    cel: || format!("({SERVICE_PRINCIPAL}) || !has(self.keyVault)"),
};

/// `condition` of `self.keyVault`, where that is looked at.
fn vault(condition: &str) -> String {
    format!("!({SERVICE_PRINCIPAL}) || !has(self.keyVault) || ({condition})")
}

pub(crate) const VAULT_URL: Check = Check {
    field: "keyVault.vaultURL",
    message: "the URL of the vault is needed: https://<name>.vault.azure.net, without a path",
    required: false,
    cel: || vault(&format!("has(self.keyVault.vaultURL) && self.keyVault.vaultURL.matches(r'{}')", pattern::VAULT_URL)),
};

pub(crate) const VAULT_SECRET: Check = Check {
    field: "keyVault.secretName",
    message: "a client secret (type 1) is a secret of the vault: give its name (letters, digits and `-`) as secretName, \
              and no certificateName",
    required: false,
    cel: || {
        vault(&format!(
            "self.type != 1 || (has(self.keyVault.secretName) && self.keyVault.secretName.matches(r'{}') && \
             (!has(self.keyVault.certificateName) || self.keyVault.certificateName == ''))",
            pattern::VAULT_NAME
        ))
    },
};

pub(crate) const VAULT_CERTIFICATE: Check = Check {
    field: "keyVault.certificateName",
    message: "a certificate (type 2) is a certificate of the vault, or a secret that holds one as PKCS#12 or PEM: give the \
              name (letters, digits and `-`) of one of them, as certificateName or as secretName",
    required: false,
    cel: || {
        let given = |field: &str| format!("(has(self.keyVault.{field}) && self.keyVault.{field} != '')");
        let (certificate, secret) = (given("certificateName"), given("secretName"));
        vault(&format!(
            "self.type != 2 || ({certificate} ? (!{secret} && self.keyVault.certificateName.matches(r'{0}')) : \
             ({secret} && self.keyVault.secretName.matches(r'{0}')))",
            pattern::VAULT_NAME
        ))
    },
};

pub(crate) const VAULT_VERSION: Check = Check {
    field: "keyVault.version",
    message: "not a version that an object in a vault can have; copy it from the end of its identifier, or leave it out \
              for the newest",
    required: false,
    cel: || vault(&form("keyVault.version", pattern::VAULT_VERSION)),
};

pub(crate) const VAULT_IDENTITY: Check = Check {
    field: "keyVault.identityRef",
    message: "the name of another AzureIdentity of this namespace, which may read the vault, is needed",
    required: false,
    cel: || {
        vault(&format!(
            "has(self.keyVault.identityRef) && self.keyVault.identityRef.matches(r'{}')",
            pattern::OBJECT_NAME
        ))
    },
};

/// Of the whole object, which alone knows its name.
pub(crate) const VAULT_ITSELF: Check = Check {
    field: "spec.keyVault.identityRef",
    message: "an identity cannot read its own credential; name another AzureIdentity, such as a managed identity (type 0)",
    required: false,
    cel: || {
        "!has(self.spec.keyVault) || !has(self.spec.keyVault.identityRef) || \
         self.spec.keyVault.identityRef != self.metadata.name"
            .into()
    },
};

pub(crate) const FEDERATED: Check = Check {
    field: "federated",
    message: "only an identity of type 3 is federated; remove it, or set type: 3",
    required: false,
    cel: || "(has(self.type) && self.type == 3) || !has(self.federated)".into(),
};

pub(crate) const FEDERATED_AUDIENCE: Check = Check {
    field: "federated.audience",
    message: "white space or a character that no audience has; leave it out for api://AzureADTokenExchange",
    required: false,
    cel: || format!("!has(self.federated) || {}", form("federated.audience", pattern::ONE_WORD)),
};

pub(crate) const NO_GRANT: Check = Check {
    field: "timeBox.grant",
    message: "an identity's time box has no grant; put it into the timeBox of an AzureIdentityBinding",
    required: false,
    cel: || "!has(self.timeBox) || !has(self.timeBox.grant)".into(),
};
