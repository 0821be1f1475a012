//! The predecessor's manifests: read, written back unchanged, judged; and the CRDs as they are installed.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use identity_crd::{
    AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding, AzureIdentityGrant, AzurePodIdentityException,
    IdentityType, crds, unknown_fields,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

fn round_trip<T: DeserializeOwned + Serialize>(file: &str, manifest: &Value) -> T {
    let object: T = serde_json::from_value(manifest.clone()).unwrap_or_else(|e| panic!("{file}: {e}"));
    assert_eq!(&serde_json::to_value(&object).unwrap(), manifest, "{file} comes back as it was");
    object
}

#[test]
fn every_sample_reads_and_comes_back_unchanged() {
    let mut types = Vec::new();
    for (file, documents) in common::samples() {
        for manifest in documents {
            let kind = manifest["kind"].as_str().unwrap();
            if kind == "Secret" || file == "wrong-key-case.yaml" {
                continue;
            }
            assert_eq!(unknown_fields(kind, &manifest), [], "{file}");
            let violations = match kind {
                "AzureIdentity" => {
                    let identity = round_trip::<AzureIdentity>(&file, &manifest);
                    types.extend(identity.spec.identity_type());
                    identity.spec.validate()
                }
                "AzureIdentityBinding" => round_trip::<AzureIdentityBinding>(&file, &manifest).spec.validate(),
                "AzurePodIdentityException" => {
                    round_trip::<AzurePodIdentityException>(&file, &manifest).spec.validate()
                }
                "AzureAssignedIdentity" => {
                    let assigned = round_trip::<AzureAssignedIdentity>(&file, &manifest);
                    assert!(assigned.is_assigned());
                    assigned.spec.validate()
                }
                other => panic!("{file}: unexpected kind {other}"),
            };
            assert_eq!(violations, [], "{file}");
        }
    }
    for type_ in [
        IdentityType::UserAssignedManagedIdentity,
        IdentityType::ServicePrincipal,
        IdentityType::ServicePrincipalCertificate,
    ] {
        assert!(types.contains(&type_), "no sample of type {type_}");
    }
}

#[test]
fn every_example_means_something() {
    let mut directories = std::collections::BTreeSet::new();
    for (file, manifest) in common::examples() {
        let kind = manifest["kind"].as_str().unwrap();
        assert_eq!(unknown_fields(kind, &manifest), [], "{file}");
        let violations = match kind {
            "AzureIdentity" => round_trip::<AzureIdentity>(&file, &manifest).validate(),
            "AzureIdentityBinding" => round_trip::<AzureIdentityBinding>(&file, &manifest).spec.validate(),
            "AzureIdentityGrant" => round_trip::<AzureIdentityGrant>(&file, &manifest).spec.validate(),
            other => panic!("{file}: unexpected kind {other}"),
        };
        assert_eq!(violations, [], "{file}");
        directories.insert(file.split('/').next().unwrap().to_owned());
    }
    for expected in ["delegation", "demo", "federated", "federated-pod", "grant", "key-vault", "time-box"] {
        assert!(directories.contains(expected), "no object in examples/{expected}: {directories:?}");
    }
}

#[test]
fn the_wrong_sample_is_told_what_to_write() {
    let samples = common::samples();
    let (_, documents) = samples.iter().find(|(file, _)| file == "wrong-key-case.yaml").unwrap();
    let unknown: Vec<_> = unknown_fields("AzureIdentity", &documents[0]).iter().map(ToString::to_string).collect();
    assert_eq!(
        unknown,
        [
            "spec.clientPassword.Name: unknown field; did you mean `name`? Keys are case-sensitive",
            "spec.clientPassword.Namespace: unknown field; did you mean `namespace`? Keys are case-sensitive",
        ]
    );
    let identity: AzureIdentity = serde_json::from_value(documents[0].clone()).unwrap();
    let violations = identity.spec.validate();
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert!(violations[0].message.contains("`Name` and `Namespace` are not read"), "{}", violations[0]);
}

#[test]
fn the_predecessors_dead_metadata_is_dropped() {
    let manifest = serde_json::json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding", "metadata": {"name": "a"},
        "spec": {"metadata": {"creationTimestamp": null}, "azureIdentity": "demo", "selector": "s"},
        "status": {"metadata": {}, "availableReplicas": 0},
    });
    assert_eq!(unknown_fields("AzureIdentityBinding", &manifest), []);
    let binding: AzureIdentityBinding = serde_json::from_value(manifest).unwrap();
    assert_eq!(binding.spec.selector.as_deref(), Some("s"));
    assert!(serde_json::to_value(&binding).unwrap()["spec"].get("metadata").is_none());
}

#[test]
fn the_definitions() {
    for crd in crds() {
        insta::assert_yaml_snapshot!(format!("crd-{}", crd.spec.names.plural), crd);
    }
}

#[test]
fn status_is_a_subresource_everywhere_but_on_assignments() {
    for crd in crds() {
        let has = crd.spec.versions.iter().all(|v| v.subresources.as_ref().is_some_and(|s| s.status.is_some()));
        assert_eq!(has, crd.spec.names.kind != "AzureAssignedIdentity", "{}", crd.spec.names.kind);
    }
}
