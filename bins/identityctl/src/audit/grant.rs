//! Records of grants in the columns of records of tokens.

use serde_json::{Map, Value};

use crate::table::harmless;

fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    fields.get(name).and_then(Value::as_str)
}

/// Whether a grant is for this pod, by namespace and name. One for all pods of its binding is for none of them in particular.
pub(super) fn is_for(fields: &Map<String, Value>, (namespace, name): &(String, String)) -> bool {
    let of = text(fields, "binding").and_then(|binding| binding.split_once('/')).map(|(namespace, _)| namespace);
    text(fields, "pod") == Some(name) && of == Some(namespace)
}

/// The cells of one: what it becomes in place of a verdict, and in the last column which one, and in words what happened.
pub(super) fn cells(fields: &Map<String, Value>, seq: String) -> Vec<String> {
    let get = |name: &str| text(fields, name).unwrap_or("-");
    let withdrawn = text(fields, "withdrawn");
    let becomes = if withdrawn.is_some() { "withdrawn".to_owned() } else { get("to").to_lowercase() };
    let until = text(fields, "active_until").filter(|_| get("to") != "Active").map(|until| format!(" (until {until})"));
    let not = withdrawn.map(|why| format!(" — not written: {why}")).unwrap_or_default();
    let what = format!(
        "grant {} of {}: {}{}{not}",
        get("grant"),
        get("requested_by"),
        get("detail"),
        until.unwrap_or_default()
    );
    let all = [&becomes, get("reason"), get("pod"), get("binding"), "-", "-", &what];
    let mut cells = vec![seq, harmless(get("time"))];
    cells.extend(all.map(harmless));
    cells
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(more: &Value) -> Map<String, Value> {
        let mut all = json!({"seq": 9, "kind": "grant", "time": "2027-01-15T08:00:00.000000Z", "reason": "GrantActivated",
            "detail": "active for 30m until 2027-01-15T08:30:00Z", "from": "Pending", "to": "Active", "grant": "demo/g",
            "binding": "demo/vault", "pod": "shell-0", "requested_by": "ann\u{1b}[2J", "active_until": "2027-01-15T08:30:00Z"});
        for (key, value) in more.as_object().unwrap() {
            all[key] = value.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn in_cells() {
        let expected = [
            "9",
            "2027-01-15T08:00:00.000000Z",
            "active",
            "GrantActivated",
            "shell-0",
            "demo/vault",
            "-",
            "-",
            "grant demo/g of ann\\u{1b}[2J: active for 30m until 2027-01-15T08:30:00Z",
        ];
        assert_eq!(cells(&fields(&json!({})), "9".into()), expected);
        let revoked = json!({"to": "Revoked", "reason": "GrantRevoked", "detail": "revoked by bob: enough"});
        let said = cells(&fields(&revoked), "9".into());
        assert_eq!(said[2], "revoked");
        assert!(said[8].ends_with(": revoked by bob: enough (until 2027-01-15T08:30:00Z)"), "{said:?}");
        let said = cells(&fields(&json!({"withdrawn": "conflict: x"})), "9".into());
        assert_eq!(said[2], "withdrawn");
        assert!(said[8].ends_with("not written: conflict: x"), "{said:?}");
    }

    #[test]
    fn of_which_pod() {
        let pod = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        let one = fields(&json!({}));
        assert!(is_for(&one, &pod("demo", "shell-0")));
        assert!(!is_for(&one, &pod("other", "shell-0")) && !is_for(&one, &pod("demo", "shell-1")));
        assert!(!is_for(&fields(&json!({"pod": null})), &pod("demo", "shell-0")));
    }
}
