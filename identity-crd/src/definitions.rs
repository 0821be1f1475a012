//! The CustomResourceDefinitions as they are installed.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, ValidationRule,
};
use kube::CustomResourceExt;

use crate::{
    AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding, AzureIdentityGrant, AzurePodIdentityException, rules,
};

/// The CRDs, in the order in which they are best installed.
///
/// Use these rather than the types' own `crd()`: they carry what a derive cannot say. No `/status` subresource on
/// `AzureAssignedIdentity` (one write creates it complete); the predecessor's dead `metadata` inside `spec` and
/// `status` is accepted and dropped.
///
/// ```
/// let names: Vec<_> = identity_crd::crds().into_iter().map(|c| c.spec.names.plural).collect();
/// assert_eq!(names[0], "azureidentities");
/// ```
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut assigned = AzureAssignedIdentity::crd();
    for version in &mut assigned.spec.versions {
        version.subresources = None;
    }
    [identity(), AzureIdentityBinding::crd(), assigned, AzurePodIdentityException::crd(), AzureIdentityGrant::crd()]
        .into_iter()
        .map(finish)
        .collect()
}

/// [`rules::VAULT_ITSELF`] is the one rule that needs an object's name.
fn identity() -> CustomResourceDefinition {
    let mut crd = AzureIdentity::crd();
    for version in &mut crd.spec.versions {
        if let Some(root) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) {
            root.x_kubernetes_validations = Some(vec![ValidationRule {
                rule: rules::VAULT_ITSELF.expression(),
                message: Some(rules::VAULT_ITSELF.message.into()),
                field_path: Some(format!(".{}", rules::VAULT_ITSELF.field)),
                reason: Some("FieldValueInvalid".into()),
                ..ValidationRule::default()
            }]);
        }
    }
    crd
}

fn finish(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    crd.metadata.annotations = Some(BTreeMap::from([(
        "api-approved.kubernetes.io".into(),
        "unapproved, continues the group of the archived project".into(),
    )]));
    crd.spec.names.list_kind = Some(format!("{}List", crd.spec.names.kind));
    for version in &mut crd.spec.versions {
        let Some(root) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) else { continue };
        tidy(root);
        root.description = root.properties.as_ref().and_then(|p| p.get("spec")?.description.clone());
        // The predecessor never had grants; and what its policy says would fail on a null, in words that help nobody.
        if crd.spec.names.kind == "AzureIdentityGrant"
            && let Some(spec) = root.properties.as_mut().and_then(|p| p.get_mut("spec"))
        {
            never_null(spec);
        }
        let dead: &[&str] = if crd.spec.names.kind == "AzureIdentityGrant" { &[] } else { &["spec", "status"] };
        for part in dead {
            let Some(part) = root.properties.as_mut().and_then(|p| p.get_mut(*part)) else { continue };
            part.properties.get_or_insert_default().insert(
                "metadata".into(),
                JSONSchemaProps {
                    description: Some("Not read; the predecessor's schema had it by mistake.".into()),
                    type_: Some("object".into()),
                    nullable: Some(true),
                    ..JSONSchemaProps::default()
                },
            );
        }
    }
    crd
}

fn never_null(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    schema.properties.iter_mut().flatten().for_each(|(_, property)| never_null(property));
    if let Some(JSONSchemaPropsOrArray::Schema(item)) = &mut schema.items {
        never_null(item);
    }
}

/// Titles repeat the name of the Rust type; doc comments are broken into lines where `kubectl explain` breaks them anew.
fn tidy(schema: &mut JSONSchemaProps) {
    schema.title = None;
    if let Some(text) = &mut schema.description {
        let paragraphs: Vec<_> = text.split("\n\n").map(|p| p.replace('\n', " ")).collect();
        *text = paragraphs.join("\n\n");
    }
    for property in schema.properties.iter_mut().flatten().map(|(_, p)| p) {
        tidy(property);
    }
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(item)) => tidy(item),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(tidy),
        None => {}
    }
}
