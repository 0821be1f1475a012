//! A manifest, YAML and JSON. The input is a manifest in which every `QZXWVJ` is a password.

use std::path::Path;

use identity_core::runtime::source::examine;
use serde_json::Value;

/// What no message may have in it, unless it is a name.
const PASSWORD: &str = "QZXWVJ";

/// Checks one.
pub fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    for file in ["a.yaml", "a.json"] {
        let (objects, problems) = examine(Path::new(file), text);
        assert_eq!((&objects, &problems), (&examine(Path::new(file), text).0, &examine(Path::new(file), text).1));
        // To YAML a carriage return alone ends a line, too.
        let lines = 1 + text.bytes().filter(|byte| matches!(byte, b'\n' | b'\r')).count() as u64;
        for problem in &problems {
            let shown = problem.to_string();
            assert!(shown.starts_with(file), "{shown}");
            assert!(problem.line <= lines, "{shown}: line {} of {lines}", problem.line);
            assert!(!problem.message.is_empty());
            assert!(!problem.message.contains(PASSWORD) || may_be_a_name(text), "quotes a value: {shown}");
        }
        // What is in force is there once.
        let mut once = objects.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), objects.len(), "{objects:?}");
    }
}

/// Whether the password is where names are: in a key, or what says which object it is. Those may be told.
fn may_be_a_name(text: &str) -> bool {
    // Documents that cannot be read tell nothing; those that can are looked at each by itself.
    let mut documents = vec![String::new()];
    for line in text.split_inclusive('\n') {
        if line.starts_with("---") {
            documents.push(String::new());
        }
        if let Some(document) = documents.last_mut() {
            document.push_str(line);
        }
    }
    let read = |text: &str| serde_saphyr::from_str::<Value>(text).ok().or_else(|| serde_json::from_str(text).ok());
    documents.iter().filter_map(|document| read(document)).chain(read(text)).any(|value| named(&value))
}

fn named(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.iter().any(|(name, value)| {
            let says_which = matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
            name.contains(PASSWORD) || named(value) || says_which && value.to_string().contains(PASSWORD)
        }),
        Value::Array(items) => items.iter().any(named),
        _ => false,
    }
}
