//! Fields that the schema does not know, with the one that was probably meant.

use std::{collections::BTreeMap, sync::LazyLock};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

use crate::{Violation, definitions::crds};

/// Schema of each kind, whole object.
static SCHEMAS: LazyLock<BTreeMap<String, Value>> = LazyLock::new(|| {
    let metadata = serde_json::to_value(
        schemars::generate::SchemaSettings::openapi3()
            .with(|s| s.inline_subschemas = true)
            .into_generator()
            .into_root_schema_for::<ObjectMeta>(),
    )
    .unwrap_or_default();
    crds()
        .into_iter()
        .filter_map(|crd| {
            let schema = crd.spec.versions.into_iter().next()?.schema?.open_api_v3_schema?;
            let mut schema = serde_json::to_value(schema).ok()?;
            let properties = schema.get_mut("properties")?.as_object_mut()?;
            properties.insert("apiVersion".into(), json!({"type": "string"}));
            properties.insert("kind".into(), json!({"type": "string"}));
            properties.insert("metadata".into(), metadata.clone());
            Some((crd.spec.names.kind, schema))
        })
        .collect()
});

/// The fields of a manifest of one of this group's kinds that nothing reads: what an API server says with strict field
/// validation, for objects that come from files. Computed from the CRDs themselves. Empty for other kinds.
///
/// ```
/// let manifest = serde_json::json!({
///     "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity", "metadata": {"name": "demo"},
///     "spec": {"type": 2, "clientPassword": {"Name": "secret"}},
/// });
/// let unknown = identity_crd::unknown_fields("AzureIdentity", &manifest);
/// assert_eq!(unknown[0].to_string(), "spec.clientPassword.Name: unknown field; did you mean `name`? Keys are case-sensitive");
/// ```
pub fn unknown_fields(kind: &str, manifest: &Value) -> Vec<Violation> {
    let mut out = Vec::new();
    if let Some(schema) = SCHEMAS.get(kind) {
        walk(schema, manifest, "", &mut out);
    }
    out
}

fn walk(schema: &Value, value: &Value, path: &str, out: &mut Vec<Violation>) {
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) {
        return;
    }
    match value {
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for (i, item) in items.iter().enumerate() {
                    walk(schema, item, &format!("{path}[{i}]"), out);
                }
            }
        }
        Value::Object(fields) => {
            if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
                for (key, value) in fields {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    match properties.get(key) {
                        Some(schema) => walk(schema, value, &path, out),
                        None => out.push(Violation::new(path, explain(key, properties))),
                    }
                }
            } else if let Some(schema) = schema.get("additionalProperties") {
                for (key, value) in fields {
                    walk(schema, value, &format!("{path}[{key}]"), out);
                }
            }
        }
        _ => {}
    }
}

fn explain(key: &str, properties: &Map<String, Value>) -> String {
    if let Some(meant) = properties.keys().find(|k| k.eq_ignore_ascii_case(key)) {
        return format!("unknown field; did you mean `{meant}`? Keys are case-sensitive");
    }
    let nearest = properties
        .keys()
        .map(|k| (strsim::osa_distance(&k.to_lowercase(), &key.to_lowercase()), k))
        .min()
        .filter(|(distance, k)| *distance <= 1 + k.len() / 6);
    if let Some((_, meant)) = nearest {
        return format!("unknown field; did you mean `{meant}`?");
    }
    let known: Vec<_> = properties.keys().map(String::as_str).collect();
    format!("unknown field; known here: {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown(kind: &str, manifest: &Value) -> Vec<String> {
        unknown_fields(kind, manifest).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_what_was_probably_meant() {
        let manifest = json!({
            "apiVersion": "aadpodidentity.k8s.io/v1",
            "kind": "AzureIdentity",
            "metadata": {"name": "a", "lables": {"x": "y"}, "labels": {"Any": "key"}},
            "spec": {
                "metadata": {"creationTimestamp": null},
                "ClientID": "x",
                "tenantId": "t",
                "adEndpiont": "e",
                "colour": "blue",
                "clientPassword": {"Name": "n", "Namespace": "d", "key": "k"},
            },
            "stauts": {},
        });
        insta::assert_yaml_snapshot!(unknown("AzureIdentity", &manifest));
    }

    #[test]
    fn knows_every_field_that_the_types_write() {
        let binding = json!({"spec": {
            "azureIdentity": "a", "selector": "s", "weight": 1, "audiences": ["a"], "serviceAccounts": ["s"],
            "podSelector": {
                "matchLabels": {"Any": "key"}, "matchExpressions": [{"key": "k", "operator": "In", "values": ["v"]}]},
        }});
        assert_eq!(unknown("AzureIdentityBinding", &binding), [""; 0]);
        let identity = json!({"spec": {
            "keyVault": {"vaultURL": "u", "secretName": "s", "certificateName": "c", "version": "v", "identityRef": "i"},
            "federated": {"subject": "Pod", "audience": "a"},
            "timeBox": {"notBefore": "b", "notAfter": "a",
                "windows": [{"schedule": "s", "duration": "d", "timeZone": "z", "excludeDates": ["d"]}],
                "grant": {"required": true, "maxDuration": "m", "minApprovals": 1,
                    "approvers": {"users": ["u"], "groups": ["g"]}}},
        }});
        assert_eq!(unknown("AzureIdentity", &identity), [""; 0]);
        let grant = json!({"spec": {
            "bindingName": "b", "podName": "p", "reason": "r", "duration": "d", "requestedBy": "a",
            "requesterGroups": ["g"], "approvals": [{"by": "b", "groups": ["g"], "reason": "r"}],
            "denied": {"by": "b", "reason": "r"}, "revoked": {"by": "b", "reason": "r"}}});
        assert_eq!(unknown("AzureIdentityGrant", &grant), [""; 0]);
        let assigned = json!({
            "metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]},
            "spec": {"azureIdentityRef": {"anything": {"at": "all"}}, "podUID": "u"},
        });
        assert_eq!(unknown("AzureAssignedIdentity", &assigned), [""; 0]);
    }

    #[test]
    fn looks_inside_lists() {
        let binding = json!({"spec": {"podSelector": {"matchExpressions": [{"key": "k", "Operator": "Exists"}]}}});
        assert_eq!(
            unknown("AzureIdentityBinding", &binding),
            [
                "spec.podSelector.matchExpressions[0].Operator: unknown field; did you mean `operator`? Keys are case-sensitive"
            ]
        );
    }

    #[test]
    fn looks_inside_what_is_new() {
        let wrong = json!({"spec": {
            "keyVault": {"vaultUrl": "u"}, "federated": {"issuer": "i"},
            "timeBox": {"notbefore": "b", "windows": [{"timezone": "z"}], "grant": {"approvers": {"user": ["u"]}}}}});
        assert_eq!(
            unknown("AzureIdentity", &wrong),
            [
                "spec.federated.issuer: unknown field; known here: audience, subject",
                "spec.keyVault.vaultUrl: unknown field; did you mean `vaultURL`? Keys are case-sensitive",
                "spec.timeBox.grant.approvers.user: unknown field; did you mean `users`?",
                "spec.timeBox.notbefore: unknown field; did you mean `notBefore`? Keys are case-sensitive",
                "spec.timeBox.windows[0].timezone: unknown field; did you mean `timeZone`? Keys are case-sensitive",
            ]
        );
        let wrong = json!({"spec": {"approvals": [{"user": "u"}], "revoked": {"because": "r"}}});
        assert_eq!(
            unknown("AzureIdentityGrant", &wrong),
            [
                "spec.approvals[0].user: unknown field; known here: by, groups, reason",
                "spec.revoked.because: unknown field; known here: by, reason",
            ]
        );
    }

    #[test]
    fn leaves_other_kinds_alone() {
        assert_eq!(unknown("Pod", &json!({"spec": {"anything": 1}})), [""; 0]);
    }
}
