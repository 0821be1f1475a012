//! YAML (or JSON) that remembers where each key was, so that a message can name line and column.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// A place in a file; both count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) line: u64,
    pub(super) column: u64,
}

impl From<serde_saphyr::Location> for Place {
    fn from(location: serde_saphyr::Location) -> Self {
        Self { line: location.line(), column: location.column() }
    }
}

impl From<&serde_json::Error> for Place {
    fn from(error: &serde_json::Error) -> Self {
        Self { line: error.line() as u64, column: error.column() as u64 }
    }
}

/// A value and the places of what is in it.
#[derive(Debug)]
pub(super) enum Node {
    Map(Vec<(String, Place, Node)>),
    List(Vec<(Place, Node)>),
    Scalar(Value),
}

impl Node {
    /// The value without places.
    pub(super) fn value(&self) -> Value {
        match self {
            Self::Map(entries) => {
                Value::Object(entries.iter().map(|(k, _, v)| (k.clone(), v.value())).collect::<Map<_, _>>())
            }
            Self::List(items) => Value::Array(items.iter().map(|(_, item)| item.value()).collect()),
            Self::Scalar(value) => value.clone(),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => entries.iter().find(|(k, ..)| k == key).map(|(.., node)| node),
            _ => None,
        }
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some(Self::Scalar(Value::String(text))) => Some(text),
            _ => None,
        }
    }

    /// Where the field at a path such as `spec.podSelector.matchExpressions[0].key` is; the nearest field around it when
    /// it is not there.
    pub(super) fn place(&self, path: &str) -> Option<Place> {
        let mut node = self;
        let mut found = None;
        for step in steps(path) {
            let next = match node {
                Self::Map(entries) => entries.iter().find(|(k, ..)| k == step).map(|(_, place, node)| (place, node)),
                Self::List(items) => step.parse().ok().and_then(|i: usize| items.get(i)).map(|(p, n)| (p, n)),
                Self::Scalar(_) => None,
            };
            let Some((place, inner)) = next else { break };
            found = Some(*place);
            node = inner;
        }
        found
    }
}

/// The steps of a path: names between dots, and what is in brackets (where a key may hold dots).
fn steps(path: &str) -> Vec<&str> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let (step, after) = inner.split_once(']').unwrap_or((inner, ""));
            steps.push(step);
            rest = after;
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            if end > 0 {
                steps.push(&rest[..end]);
            }
            rest = &rest[end..];
        }
        rest = rest.strip_prefix('.').unwrap_or(rest);
    }
    steps
}

/// Without places.
impl From<Value> for Node {
    fn from(value: Value) -> Self {
        match value {
            Value::Object(map) => {
                Self::Map(map.into_iter().map(|(key, value)| (key, Place::default(), value.into())).collect())
            }
            Value::Array(items) => Self::List(items.into_iter().map(|item| (Place::default(), item.into())).collect()),
            scalar => Self::Scalar(scalar),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Node>>()? {
            items.push((item.defined.into(), item.value));
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            entries.push((key.value, key.defined.into(), map.next_value()?));
        }
        Ok(Node::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn knows_where_keys_are() {
        let text = "kind: A\nspec:\n  list:\n  - x: 1\n    y.z: [true, null]\n  - 2\n";
        let node: Node = serde_saphyr::from_str(text).unwrap();
        assert_eq!(node.value(), json!({"kind": "A", "spec": {"list": [{"x": 1, "y.z": [true, null]}, 2]}}));
        let at = |path: &str| node.place(path).map(|p| (p.line, p.column));
        assert_eq!(at("kind"), Some((1, 1)));
        assert_eq!(at("spec.list"), Some((3, 3)));
        assert_eq!(at("spec.list[0].x"), Some((4, 5)));
        assert_eq!(at("spec.list[0][y.z]"), Some((5, 5)));
        assert_eq!(at("spec.list[1]"), Some((6, 5)));
        assert_eq!(at("spec.list[7].q"), Some((3, 3)));
        assert_eq!(at("absent"), None);
    }

    #[test]
    fn json_is_yaml() {
        let text = "{\n\t\"kind\": \"A\",\n\t\"spec\": {\"a\": \"\\u00e9\\/\", \"b\": 1.5}}";
        let node: Node = serde_saphyr::from_str(text).unwrap();
        assert_eq!(node.value(), json!({"kind": "A", "spec": {"a": "é/", "b": 1.5}}));
        assert_eq!(node.place("spec.b").map(|p| p.line), Some(3));
    }
}
