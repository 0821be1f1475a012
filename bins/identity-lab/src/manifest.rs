//! Reading manifests: documents of a file, objects of a document. Knows nothing of what the objects mean.

use serde_json::Value;

/// One document of a YAML file (or the whole of a JSON file).
#[derive(Debug)]
pub struct Document<'a> {
    /// Its text, without the separator line.
    pub text: &'a str,
    /// Line of the file (from 1) on which the text begins.
    pub line: usize,
    /// What it says; an error message (with line and column in the file) when it does not parse.
    pub value: Result<Value, String>,
}

/// Splits a file into its documents and parses each for itself, so that one broken document spoils no other.
/// Empty documents (comments only) are `Value::Null`.
pub fn documents(text: &str) -> Vec<Document<'_>> {
    split(text)
        .into_iter()
        .map(|(line, text)| {
            // Parsed with the lines before it left empty, a message's line is the file's line.
            let padded = format!("{}{text}", "\n".repeat(line - 1));
            let value = serde_saphyr::from_str::<Option<Value>>(&padded)
                .map(Option::unwrap_or_default)
                .map_err(|error| error.to_string());
            Document { text, line, value }
        })
        .collect()
}

/// `(first line, text)` of each document. In YAML a line that begins with `---` and a blank (or nothing) always separates,
/// even inside a block scalar, so no parser is needed to find them.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let (mut begin, mut begin_line, mut position) = (0, 1, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end();
        if bare == "---" || bare.starts_with("--- ") || bare.starts_with("---\t") {
            found.push((begin_line, &text[begin..position]));
            // What follows the marker on its own line belongs to the new document.
            begin = position + 3;
            begin_line = number + 1;
        }
        position += line.len();
    }
    found.push((begin_line, &text[begin..]));
    // Nothing but blanks before the first marker is no document.
    if found.len() > 1 && found[0].1.trim().is_empty() {
        found.remove(0);
    }
    found
}

/// Takes `List` objects apart; leaves out nulls.
pub fn flatten(value: Value, into: &mut Vec<Value>) {
    if is_list(&value) {
        if let Some(Value::Array(items)) = value.get("items").cloned() {
            for item in items {
                flatten(item, into);
            }
        }
    } else if !value.is_null() {
        into.push(value);
    }
}

/// Whether it is a `List` (or `PodList`, …) that stands for its items.
pub fn is_list(value: &Value) -> bool {
    value.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List"))
        && value.get("items").is_some_and(Value::is_array)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_told_apart_and_know_their_lines() {
        let text = "# first\na: 1\n---\nb: |\n  x\n--- # note\nc: [\n---\nd: 4\n";
        let documents = documents(text);
        assert_eq!(documents.iter().map(|document| document.line).collect::<Vec<_>>(), [1, 3, 6, 8]);
        assert_eq!(documents[0].value.as_ref().unwrap()["a"], 1);
        assert_eq!(documents[1].value.as_ref().unwrap()["b"], "x\n");
        assert!(documents[2].value.as_ref().unwrap_err().contains("line 7"), "{:?}", documents[2].value);
        assert_eq!(documents[3].value.as_ref().unwrap()["d"], 4);
    }

    #[test]
    fn json_and_lists_are_documents_too() {
        let mut objects = Vec::new();
        for document in
            documents(r#"{"kind": "List", "items": [{"kind": "A"}, {"kind": "BList", "items": [{"kind": "B"}]}]}"#)
        {
            flatten(document.value.unwrap(), &mut objects);
        }
        assert_eq!(objects.iter().map(|object| object["kind"].as_str().unwrap()).collect::<Vec<_>>(), ["A", "B"]);
        assert!(documents("---\n# nothing\n---\n").iter().all(|document| document.value.as_ref().unwrap().is_null()));
    }
}
