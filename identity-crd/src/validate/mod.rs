//! The same judgement as the API server's, in Rust: with `--manifests` no API server checks anything, and objects from
//! before the rules are in the cluster already. Further, what a schema cannot say.
//!
//! Lengths and counts are stated by the schema, so the API server words those errors itself.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::{
    AzureAssignedIdentitySpec, AzureIdentity, AzureIdentityBindingSpec, AzureIdentitySpec,
    AzurePodIdentityExceptionSpec, IdentityType, KeyVaultReference, Violation, form, rules,
};

mod grant;
mod time_box;

/// The value when it is there and not empty.
fn given(value: Option<&String>) -> Option<&str> {
    value.map(String::as_str).filter(|v| !v.is_empty())
}

fn fits(value: Option<&str>, form: fn(&str) -> bool) -> bool {
    value.is_none_or(form)
}

fn at_most_characters(field: &str, value: Option<&String>, max: usize, out: &mut Vec<Violation>) {
    if value.is_some_and(|v| v.chars().count() > max) {
        out.push(Violation::new(format!("spec.{field}"), format!("longer than {max} characters; shorten it")));
    }
}

fn at_most_items(field: &str, count: usize, max: usize, out: &mut Vec<Violation>) {
    if count > max {
        out.push(Violation::new(
            format!("spec.{field}"),
            format!("{count} entries, at most {max} are allowed; remove some"),
        ));
    }
}

fn audiences(audiences: Option<&Vec<String>>, out: &mut Vec<Violation>) {
    let audiences = audiences.map_or(&[][..], Vec::as_slice);
    at_most_items("audiences", audiences.len(), rules::MAX_AUDIENCES, out);
    for (i, audience) in audiences.iter().enumerate() {
        at_most_characters(&format!("audiences[{i}]"), Some(audience), rules::MAX_AUDIENCE, out);
    }
    rules::AUDIENCES.unless(audiences.iter().all(|a| form::is_audience(a)), out);
}

impl AzureIdentity {
    /// What its spec's `validate` says, and what only the whole object shows.
    pub fn validate(&self) -> Vec<Violation> {
        let mut out = self.spec.validate();
        let reader = self.spec.key_vault.as_ref().and_then(|vault| vault.identity_ref.as_deref());
        if reader.is_some() && reader == self.metadata.name.as_deref() {
            out.push(Violation::new(rules::VAULT_ITSELF.field, rules::VAULT_ITSELF.message));
        }
        out
    }
}

impl AzureIdentitySpec {
    /// Everything that keeps this identity from working as written. References (is the Secret there?) are for whoever
    /// can look them up.
    pub fn validate(&self) -> Vec<Violation> {
        let mut out = Vec::new();
        let kind = self.identity_type();
        let service_principal =
            matches!(kind, Some(IdentityType::ServicePrincipal | IdentityType::ServicePrincipalCertificate));

        at_most_characters("resourceID", self.resource_id.as_ref(), rules::MAX_RESOURCE_ID, &mut out);
        at_most_characters("clientID", self.client_id.as_ref(), rules::MAX_ID, &mut out);
        at_most_characters("objectID", self.object_id.as_ref(), rules::MAX_ID, &mut out);
        at_most_characters("tenantID", self.tenant_id.as_ref(), rules::MAX_ID, &mut out);
        at_most_characters("adEndpoint", self.ad_endpoint.as_ref(), rules::MAX_ENDPOINT, &mut out);

        if let Some(password) = &self.client_password {
            at_most_characters("clientPassword.name", password.name.as_ref(), rules::MAX_OBJECT_NAME, &mut out);
            at_most_characters("clientPassword.namespace", password.namespace.as_ref(), rules::MAX_LABEL, &mut out);
            at_most_characters("clientPassword.key", password.key.as_ref(), rules::MAX_OBJECT_NAME, &mut out);
        }
        if let Some(vault) = &self.key_vault {
            at_most_characters("keyVault.vaultURL", vault.vault_url.as_ref(), rules::MAX_VAULT_URL, &mut out);
            at_most_characters("keyVault.secretName", vault.secret_name.as_ref(), rules::MAX_VAULT_NAME, &mut out);
            at_most_characters(
                "keyVault.certificateName",
                vault.certificate_name.as_ref(),
                rules::MAX_VAULT_NAME,
                &mut out,
            );
            at_most_characters("keyVault.version", vault.version.as_ref(), rules::MAX_VAULT_VERSION, &mut out);
            at_most_characters("keyVault.identityRef", vault.identity_ref.as_ref(), rules::MAX_OBJECT_NAME, &mut out);
        }
        let audience = self.federated.as_ref().and_then(|federated| federated.audience.as_ref());
        at_most_characters("federated.audience", audience, rules::MAX_AUDIENCE, &mut out);
        let tenants = self.auxiliary_tenant_ids.as_deref().unwrap_or_default();
        at_most_items("auxiliaryTenantIDs", tenants.len(), rules::MAX_TENANTS, &mut out);
        for (i, tenant) in tenants.iter().enumerate() {
            at_most_characters(&format!("auxiliaryTenantIDs[{i}]"), Some(tenant), rules::MAX_ID, &mut out);
        }

        rules::TYPE.unless(kind.is_some(), &mut out);
        rules::RESOURCE_ID.unless(
            kind != Some(IdentityType::UserAssignedManagedIdentity)
                || self.resource_id.as_deref().is_some_and(|id| id.parse::<crate::ResourceId>().is_ok()),
            &mut out,
        );
        rules::CLIENT_ID_FORM.unless(fits(given(self.client_id.as_ref()), form::is_one_word), &mut out);
        rules::OBJECT_ID_FORM.unless(fits(given(self.object_id.as_ref()), form::is_guid), &mut out);
        let federated = kind == Some(IdentityType::WorkloadIdentityFederation);
        if service_principal || federated {
            self.validate_application(&mut out);
        }
        if service_principal {
            self.validate_service_principal(kind, &mut out);
        }
        rules::NO_PASSWORD.unless(!federated || !self.has_password(), &mut out);
        rules::KEY_VAULT.unless(service_principal || self.key_vault.is_none(), &mut out);
        rules::FEDERATED.unless(federated || self.federated.is_none(), &mut out);
        rules::FEDERATED_AUDIENCE.unless(audience.is_none_or(|a| form::is_one_word(a)), &mut out);
        if kind == Some(IdentityType::ServicePrincipal) {
            rules::AUXILIARY_TENANTS.unless(
                tenants.len() <= rules::MAX_AUXILIARY_TENANTS && tenants.iter().all(|t| form::is_tenant(t)),
                &mut out,
            );
        }
        audiences(self.audiences.as_ref(), &mut out);
        if let Some(time_box) = &self.time_box {
            rules::NO_GRANT.unless(time_box.grant.is_none(), &mut out);
            time_box::validate(time_box, &mut out);
        }
        out
    }

    fn has_password(&self) -> bool {
        self.client_password.as_ref().is_some_and(|password| given(password.name.as_ref()).is_some())
    }

    fn validate_application(&self, out: &mut Vec<Violation>) {
        let tenant = given(self.tenant_id.as_ref());
        rules::CLIENT_ID.unless(given(self.client_id.as_ref()).is_some(), out);
        rules::TENANT_ID.unless(tenant.is_some(), out);
        rules::TENANT_ID_FORM.unless(fits(tenant, form::is_tenant), out);
        rules::AD_ENDPOINT.unless(fits(given(self.ad_endpoint.as_ref()), form::is_https_endpoint), out);
    }

    fn validate_service_principal(&self, kind: Option<IdentityType>, out: &mut Vec<Violation>) {
        let password = self.client_password.clone().unwrap_or_default();
        let (name, namespace) = (given(password.name.as_ref()), given(password.namespace.as_ref()));
        rules::PASSWORD.unless(name.is_some() || self.key_vault.is_some(), out);
        rules::PASSWORD_NAME_FORM.unless(fits(name, form::is_object_name), out);
        rules::PASSWORD_NAMESPACE_FORM.unless(fits(namespace, form::is_object_name), out);
        rules::PASSWORD_KEY_FORM.unless(fits(given(password.key.as_ref()), form::is_secret_key), out);
        if let Some(vault) = &self.key_vault {
            rules::ONE_CREDENTIAL.unless(name.is_none(), out);
            validate_vault(vault, kind == Some(IdentityType::ServicePrincipalCertificate), out);
        }
    }
}

fn validate_vault(vault: &KeyVaultReference, certificate: bool, out: &mut Vec<Violation>) {
    let [url, secret, cert, version, reader] =
        [&vault.vault_url, &vault.secret_name, &vault.certificate_name, &vault.version, &vault.identity_ref]
            .map(|value| given(value.as_ref()));
    let only = |this: Option<&str>, other: Option<&str>| this.is_some_and(form::is_vault_name) && other.is_none();
    rules::VAULT_URL.unless(url.is_some_and(form::is_vault_url), out);
    rules::VAULT_SECRET.unless(certificate || only(secret, cert), out);
    rules::VAULT_CERTIFICATE.unless(!certificate || only(cert, secret) || only(secret, cert), out);
    rules::VAULT_VERSION.unless(fits(version, form::is_vault_version), out);
    rules::VAULT_IDENTITY.unless(reader.is_some_and(form::is_object_name), out);
}

impl AzureIdentityBindingSpec {
    /// Everything that keeps this binding from working as written. Whether the identity exists is for whoever can look
    /// it up.
    pub fn validate(&self) -> Vec<Violation> {
        let mut out = Vec::new();
        at_most_characters("azureIdentity", self.azure_identity.as_ref(), rules::MAX_OBJECT_NAME, &mut out);
        rules::AZURE_IDENTITY.unless(self.azure_identity.as_deref().is_some_and(form::is_object_name), &mut out);
        at_most_characters("clientID", self.client_id.as_ref(), rules::MAX_ID, &mut out);
        rules::PINNED_CLIENT_ID.unless(self.client_id.as_deref().is_none_or(form::is_guid), &mut out);
        rules::SELECTOR.unless(
            self.selector.as_deref().is_none_or(|s| s.len() <= rules::MAX_LABEL && form::is_label_value(s)),
            &mut out,
        );
        rules::WEIGHT
            .unless(self.weight.is_none_or(|w| (-rules::MAX_WEIGHT..=rules::MAX_WEIGHT).contains(&w)), &mut out);
        if let Some(selector) = &self.pod_selector {
            validate_pod_selector(selector, &mut out);
        }
        let accounts = self.service_accounts.as_deref().unwrap_or_default();
        at_most_items("serviceAccounts", accounts.len(), rules::MAX_SERVICE_ACCOUNTS, &mut out);
        for (i, account) in accounts.iter().enumerate() {
            at_most_characters(&format!("serviceAccounts[{i}]"), Some(account), rules::MAX_OBJECT_NAME, &mut out);
        }
        rules::SERVICE_ACCOUNTS.unless(accounts.iter().all(|s| form::is_object_name(s)), &mut out);
        audiences(self.audiences.as_ref(), &mut out);
        if let Some(time_box) = &self.time_box {
            time_box::validate(time_box, &mut out);
        }

        // Valid in the predecessor, where it selected nothing, so the API server accepts it.
        if given(self.selector.as_ref()).is_none() && self.pod_selector.is_none() && accounts.is_empty() {
            out.push(Violation::new(
                "spec.selector",
                "this binding selects no pod; give selector (the value of the pod label `aadpodidbinding`), podSelector or \
                 serviceAccounts",
            ));
        }
        out
    }
}

fn validate_pod_selector(selector: &LabelSelector, out: &mut Vec<Violation>) {
    let labels = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.as_deref().unwrap_or_default();
    let label_count = labels.clone().count();
    at_most_items("podSelector.matchLabels", label_count, rules::MAX_SELECTOR_TERMS, out);
    at_most_items("podSelector.matchExpressions", expressions.len(), rules::MAX_SELECTOR_TERMS, out);
    for (i, expression) in expressions.iter().enumerate() {
        at_most_characters(
            &format!("podSelector.matchExpressions[{i}].key"),
            Some(&expression.key),
            rules::MAX_LABEL_KEY,
            out,
        );
        let count = expression.values.as_ref().map_or(0, Vec::len);
        at_most_items(&format!("podSelector.matchExpressions[{i}].values"), count, rules::MAX_SELECTOR_TERMS, out);
    }
    let value = |v: &String| v.len() <= rules::MAX_LABEL && form::is_label_value(v);
    rules::POD_SELECTOR.unless(label_count + expressions.len() > 0, out);
    rules::POD_SELECTOR_LABELS.unless(labels.clone().all(|(k, v)| form::is_label_key(k) && value(v)), out);
    rules::POD_SELECTOR_EXPRESSIONS.unless(
        expressions.iter().all(|e| {
            let values = e.values.as_deref().unwrap_or_default();
            form::is_label_key(&e.key)
                && match e.operator.as_str() {
                    "In" | "NotIn" => !values.is_empty() && values.iter().all(value),
                    "Exists" | "DoesNotExist" => values.is_empty(),
                    _ => false,
                }
        }),
        out,
    );
}

impl AzurePodIdentityExceptionSpec {
    /// Everything that keeps this exception from working as written.
    pub fn validate(&self) -> Vec<Violation> {
        let labels = self.pod_labels.iter().flatten();
        if labels.clone().next().is_none() {
            return vec![Violation::new("spec.podLabels", "this exception matches no pod; give at least one label")];
        }
        labels
            .filter(|(key, value)| {
                !form::is_label_key(key) || !form::is_label_value(value) || value.len() > rules::MAX_LABEL
            })
            .map(|(key, value)| {
                Violation::new(format!("spec.podLabels[{key}]"), format!("no pod can carry the label {key}={value}"))
            })
            .collect()
    }
}

impl AzureAssignedIdentitySpec {
    /// What a node needs to decide and this assignment lacks. Nobody but the controller writes these, so the API
    /// server checks none of it.
    pub fn validate(&self) -> Vec<Violation> {
        [
            ("spec.pod", given(self.pod.as_ref()).is_some()),
            ("spec.podNamespace", given(self.pod_namespace.as_ref()).is_some()),
            ("spec.azureIdentityRef", self.azure_identity_ref.is_some()),
            ("spec.azureBindingRef", self.azure_binding_ref.is_some()),
        ]
        .into_iter()
        .filter(|(_, present)| !present)
        .map(|(field, _)| Violation::new(field, "missing; only the controller writes assignments: delete this one"))
        .collect()
    }
}
