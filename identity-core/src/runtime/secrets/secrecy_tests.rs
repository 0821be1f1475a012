//! No Debug output and no error has a value of a Secret. `bins/xtask/tests/secret_types.rs` says what has to be shown here.

use std::{fmt::Debug, path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{Inner, SecretBytes, SecretData, Secrets, Store, wire::Wire};
use crate::{
    object::ObjectKey,
    runtime::source::{Source, examine},
};

const SECRET: &str = "s3cr3t~of/the+application";

/// Neither as text, nor in base64, nor as a list of bytes.
#[track_caller]
fn absent(what: &str, shown: &str) {
    let packed: String = shown.split_whitespace().collect();
    let bytes: Vec<String> = SECRET.bytes().take(8).map(|byte| byte.to_string()).collect();
    for form in [SECRET, &SECRET[12..], &STANDARD.encode(SECRET)[..30], &bytes.join(",")] {
        assert!(!packed.contains(form), "{what} gives `{form}` away: {shown}");
    }
}

#[track_caller]
fn hides(what: &str, value: &impl Debug) {
    absent(what, &format!("{value:?}\n{value:#?}"));
}

fn data() -> SecretData {
    let mut data = SecretData::new();
    data.insert("clientSecret".into(), SecretBytes::from(SECRET.as_bytes().to_vec()));
    data
}

fn store() -> Arc<Store> {
    let store = Arc::new(Store::default());
    store.put(ObjectKey::new("team", "sp"), Arc::new(data()));
    store.ready();
    store
}

#[test]
fn what_is_given_away_is_found() {
    let bytes = SECRET.as_bytes().to_vec();
    for shown in [format!("{bytes:?}"), format!("{bytes:#?}"), STANDARD.encode(SECRET), format!("({SECRET:?})")] {
        assert!(std::panic::catch_unwind(|| absent("it", &shown)).is_err(), "not found in {shown}");
    }
}

#[tokio::test]
async fn values_are_in_nothing_that_can_be_formatted() {
    hides("SecretData", &data());
    hides("Store", &store());
    let secrets = Secrets(Inner::Manifests(store()));
    hides("Secrets", &secrets);
    hides("all", &secrets.get("team", "sp").await.unwrap());
    hides("Error", &secrets.key("team", "sp", SECRET.split_at(3).0).await.unwrap_err());
    let source = Source::manifests("/nowhere", "/nowhere/state");
    let Source::Manifests(manifests) = &source else { unreachable!() };
    manifests.secrets().put(ObjectKey::new("team", "sp"), Arc::new(data()));
    hides("Manifests", manifests);
    hides("Source", &source);
}

#[test]
fn what_the_api_server_sends_hides_its_values() {
    let object = |data: Value| json!({"metadata": {"name": "sp", "namespace": "team"}, "data": data});
    for value in [
        json!({"clientSecret": STANDARD.encode(SECRET)}),
        json!({"clientSecret": SECRET}),
        json!({"clientSecret": [SECRET]}),
        json!({"clientSecret": {"value": SECRET}}),
        json!(SECRET),
        json!([SECRET]),
    ] {
        let wire: Wire = serde_json::from_value(object(value.clone())).unwrap();
        hides("Wire", &wire);
        match wire.decode() {
            Ok(data) => hides("SecretData", &data),
            Err(error) => absent("what is wrong with it", &error),
        }
    }
}

#[test]
fn what_is_wrong_with_a_manifest_is_said_without_its_values() {
    let head = "apiVersion: v1\nkind: Secret\nmetadata: {name: sp, namespace: team}\n";
    for (what, body) in [
        ("no base64", format!("data: {{clientSecret: '{SECRET}'}}")),
        ("a list", format!("data: {{clientSecret: ['{SECRET}']}}")),
        ("a map", format!("stringData: {{clientSecret: {{value: '{SECRET}'}}}}")),
        ("a text", format!("data: '{SECRET}'")),
        ("a list of texts", format!("stringData: ['{SECRET}']")),
        ("an unknown field", format!("strData: {{clientSecret: '{SECRET}'}}\ndata: 7")),
        ("twice", format!("stringData: {{a: '{SECRET}', a: '{SECRET}'}}")),
        ("not closed", format!("stringData: {{clientSecret: '{SECRET}")),
        ("a tag", format!("stringData: {{clientSecret: !!int '{SECRET}'}}")),
        ("an anchor", format!("stringData: {{a: *{SECRET}}}")),
        ("a wrong indent", format!("stringData:\n    a: '{SECRET}'\n  b: c")),
        ("a tab", format!("stringData:\n\tclientSecret: {SECRET}")),
        ("a colon", format!("stringData:\n  clientSecret: {SECRET}: x")),
    ] {
        let (_, problems) = examine(Path::new("s.yaml"), &format!("{head}{body}\n"));
        assert!(!problems.is_empty(), "{what} is taken");
        for problem in problems {
            absent(what, &format!("{problem} {problem:?} {problem:#?}"));
        }
    }
}
