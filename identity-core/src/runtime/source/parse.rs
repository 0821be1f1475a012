//! One manifest file: documents into objects, each mistake with its line and column, no document spoiling another.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use identity_crd::{
    AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding, AzureIdentityBindingStatus, AzureIdentityGrant,
    AzureIdentityGrantStatus, AzureIdentityStatus, AzurePodIdentityException,
};
use kube::{Resource, api::ObjectMeta};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    locate::{Node, Place},
    words,
};
use crate::{
    object::ObjectKey,
    pod::Pod,
    runtime::{
        secrets::{SecretBytes, SecretData},
        state_dir::{derived_number, derived_uid, is_object_name},
        trim,
        trim::TrimmedPod,
    },
};

/// Something wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// In which file.
    pub file: PathBuf,
    /// Line, from 1; 0 when it is about the file as a whole.
    pub line: u64,
    /// Column, from 1.
    pub column: u64,
    /// Kind, namespace and name, as far as known.
    pub object: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        write!(f, ": {}", self.message)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Pod,
    Secret,
    Identity,
    Binding,
    Assigned,
    Exception,
    Grant,
    /// The status of an identity, in a file of its own.
    IdentityStatus,
    /// The status of a binding.
    BindingStatus,
    /// The status of a grant.
    GrantStatus,
}

impl Kind {
    const ALL: [(Self, &str); 10] = [
        (Self::Pod, "Pod"),
        (Self::Secret, "Secret"),
        (Self::Identity, "AzureIdentity"),
        (Self::Binding, "AzureIdentityBinding"),
        (Self::Assigned, "AzureAssignedIdentity"),
        (Self::Exception, "AzurePodIdentityException"),
        (Self::Grant, "AzureIdentityGrant"),
        (Self::IdentityStatus, "AzureIdentity"),
        (Self::BindingStatus, "AzureIdentityBinding"),
        (Self::GrantStatus, "AzureIdentityGrant"),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    const fn api_version(self) -> &'static str {
        match self {
            Self::Pod | Self::Secret => "v1",
            Self::Grant | Self::GrantStatus => "aadpodidentity.k8s.io/v1alpha1",
            _ => "aadpodidentity.k8s.io/v1",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) object: ObjectKey,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.object)
    }
}

#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a directory holds few, and most are of the large kinds")]
pub(super) enum Object {
    Pod(Pod),
    Secret(Arc<SecretData>),
    Identity(AzureIdentity),
    Binding(AzureIdentityBinding),
    Assigned(AzureAssignedIdentity),
    Exception(AzurePodIdentityException),
    Grant(AzureIdentityGrant),
    IdentityStatus(Written<AzureIdentityStatus>),
    BindingStatus(Written<AzureIdentityBindingStatus>),
    GrantStatus(Written<AzureIdentityGrantStatus>),
}

/// A status, and of which object.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Written<T> {
    pub(super) uid: Option<String>,
    pub(super) version: Option<String>,
    pub(super) status: T,
}

#[derive(Clone, Debug)]
pub(super) struct Located {
    pub(super) key: Key,
    pub(super) object: Arc<Object>,
    pub(super) place: Place,
}

#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) objects: Vec<Located>,
    pub(super) problems: Vec<Problem>,
}

/// What a manifest comes to, without a directory around it: its objects as `Kind namespace/name`, and what is wrong with it.
/// For whoever wants to know before it is written there. The end of the file's name says whether it is JSON.
pub fn examine(file: &Path, text: &str) -> (Vec<String>, Vec<Problem>) {
    let kinds = &[Kind::Pod, Kind::Secret, Kind::Identity, Kind::Binding, Kind::Exception, Kind::Grant];
    let Parsed { objects, problems } = parse(file, text, kinds);
    (objects.iter().map(|located| located.key.to_string()).collect(), problems)
}

/// Reads a file's text. Only objects of `kinds` are taken; one of our own kinds that is not among them is a mistake, and a
/// kind that is not ours is passed over.
pub(super) fn parse(file: &Path, text: &str, kinds: &[Kind]) -> Parsed {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let json = file.extension().is_some_and(|end| end == "json");
    let mut reader = Reader { file, json, kinds, lines_before: 0, lines: HashMap::new(), parsed: Parsed::default() };
    if json {
        reader.json(text);
    } else {
        for (lines_before, document) in split(text) {
            reader.lines_before = lines_before;
            reader.yaml(document);
        }
    }
    reader.parsed
}

/// `(lines before it, text)` of each document, with its marker. A line `---` separates documents wherever it is (YAML 1.2
/// §9.1), so the parts can be found without parsing, and one that does not parse spoils no other.
fn split(text: &str) -> Vec<(u64, &str)> {
    let mut documents = Vec::new();
    let (mut begin, mut lines_before, mut offset) = (0, 0, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker {
            documents.push((lines_before, &text[begin..offset]));
            begin = offset;
            lines_before = index as u64;
        }
        offset += line.len();
    }
    documents.push((lines_before, &text[begin..]));
    // Nothing at all, or only what belongs to the marker after it: comments and directives (`%YAML`).
    let says_nothing = |line: &str| line.trim().is_empty() || line.starts_with(['#', '%']);
    documents.retain(|(_, document)| !document.lines().all(says_nothing));
    documents
}

struct Reader<'a> {
    file: &'a Path,
    json: bool,
    kinds: &'a [Kind],
    /// Parsers count lines from the beginning of the document.
    lines_before: u64,
    /// Where each object was defined.
    lines: HashMap<Key, u64>,
    parsed: Parsed,
}

impl Reader<'_> {
    fn at(&self, place: Place) -> Place {
        Place { line: if place.line == 0 { 0 } else { place.line + self.lines_before }, ..place }
    }

    fn problem(&mut self, place: Place, object: Option<String>, message: impl Into<String>) {
        let (file, message, place) = (self.file.to_owned(), message.into(), self.at(place));
        self.parsed.problems.push(Problem { file, line: place.line, column: place.column, object, message });
    }

    fn yaml(&mut self, text: &str) {
        match serde_saphyr::from_str::<Option<Node>>(text) {
            Ok(None | Some(Node::Scalar(Value::Null))) => {}
            Ok(Some(node)) => self.whole(&node, text),
            Err(error) => {
                let place = error.location().map(Place::from).unwrap_or_default();
                self.problem(place, None, format!("malformed YAML: {}", words::syntax(&error)));
            }
        }
    }

    fn json(&mut self, text: &str) {
        // What JSON is, its own parser says; YAML's is only asked for places.
        match serde_json::from_str::<Value>(text) {
            Ok(value) => {
                let node = serde_saphyr::from_str(text).unwrap_or_else(|_| Node::from(value));
                self.whole(&node, text);
            }
            Err(error) => {
                let message = format!("malformed JSON: {}", words::json_syntax(&error));
                self.problem(Place::from(&error), None, message);
            }
        }
    }

    fn whole(&mut self, node: &Node, text: &str) {
        let place = first(node).unwrap_or(Place { line: 1, column: 1 });
        self.node(node, place, Some(text));
    }

    /// `text`: the document, when the node is all of it.
    fn node(&mut self, node: &Node, place: Place, text: Option<&str>) {
        let Node::Map(_) = node else {
            return self.problem(place, None, "not an object: a manifest has apiVersion, kind and metadata");
        };
        let (Some(api_version), Some(kind)) = (node.text("apiVersion"), node.text("kind")) else {
            return self.problem(place, None, "apiVersion or kind is missing");
        };
        if kind.ends_with("List")
            && let Some(Node::List(items)) = node.get("items")
        {
            for (place, item) in items {
                self.node(item, *place, None);
            }
            return;
        }
        // The group alone, when the version was forgotten.
        let group = api_version.rsplit_once('/').map_or(api_version, |(group, _)| group);
        let core = !api_version.contains('/');
        let wanted = self.kinds.iter().copied().find(|wanted| wanted.name() == kind);
        let known = || Kind::ALL.iter().find(|(_, name)| *name == kind).map(|(kind, _)| *kind);
        match wanted.or_else(known) {
            Some(kind) if kind.api_version() == api_version => self.known(kind, node, place, text),
            // Other groups may well have a kind `Pod`; ours are nobody else's.
            Some(kind) if core || !matches!(kind, Kind::Pod | Kind::Secret) => {
                let at = node.place("apiVersion").unwrap_or(place);
                let message = format!("{} is served as {}, not {api_version}", kind.name(), kind.api_version());
                self.problem(at, None, message);
            }
            None if group == identity_crd::GROUP => {
                let at = node.place("kind").unwrap_or(place);
                let kinds = "AzureIdentity, AzureIdentityBinding, AzureIdentityGrant, AzurePodIdentityException";
                self.problem(at, None, format!("there is no kind `{kind}` in {group}; its kinds are {kinds}"));
            }
            _ => {
                tracing::debug!(file = %self.file.display(), kind, api_version, "passed over: a kind that is not read here");
            }
        }
    }

    fn known(&mut self, kind: Kind, node: &Node, place: Place, text: Option<&str>) {
        let metadata = node.get("metadata");
        let field = |name| metadata.and_then(|m| m.text(name)).filter(|text| !text.is_empty());
        let namespace = field("namespace").unwrap_or("default");
        let Some(name) = field("name") else {
            let at = node.place("metadata").unwrap_or(place);
            return self.problem(at, Some(kind.name().into()), "metadata.name is missing");
        };
        let key = Key { kind, object: ObjectKey::new(namespace, name) };
        let label = Some(key.to_string());
        for (field, value) in [("metadata.name", name), ("metadata.namespace", namespace)] {
            if !is_object_name(value) {
                let at = node.place(field).unwrap_or(place);
                return self.problem(
                    at,
                    label,
                    format!("{field}: not a name: lower-case letters, digits, `-` and `.` only"),
                );
            }
        }
        if !self.kinds.contains(&kind) {
            let message = match kind {
                _ if self.kinds.contains(&Kind::IdentityStatus) => "passed over: only status belongs here",
                Kind::Assigned => {
                    "passed over: assignments are the controller's to write, and live in its state directory"
                }
                _ => "passed over: only assignments belong here",
            };
            return self.problem(place, label, message);
        }
        let value = node.value();
        let unknown = identity_crd::unknown_fields(kind.name(), &value);
        if !unknown.is_empty() {
            for violation in unknown {
                let at = node.place(&violation.field).unwrap_or(place);
                self.problem(at, label.clone(), violation.to_string());
            }
            return;
        }
        let object = match kind {
            Kind::Pod => self.typed::<TrimmedPod>(&key, value, place, text).and_then(|pod| match pod.pod() {
                Ok(pod) => Some(Object::Pod(pod)),
                Err(error) => {
                    self.problem(place, label.clone(), error.to_string());
                    None
                }
            }),
            // As with an API server, nobody but the controller says what the status is.
            Kind::Identity => self
                .typed(&key, value, place, text)
                .map(|identity: AzureIdentity| Object::Identity(AzureIdentity { status: None, ..identity })),
            Kind::Binding => self
                .typed(&key, value, place, text)
                .map(|binding: AzureIdentityBinding| Object::Binding(AzureIdentityBinding { status: None, ..binding })),
            Kind::Assigned => self.typed(&key, value, place, text).map(Object::Assigned),
            Kind::Exception => self.typed(&key, value, place, text).map(Object::Exception),
            Kind::Grant => self.typed(&key, value, place, text).map(|mut grant: AzureIdentityGrant| {
                grant.status = None;
                if node.get("metadata").and_then(|m| m.text("uid")).is_none_or(str::is_empty) {
                    grant.metadata.uid = Some(derived_uid(&request(&key, &grant)));
                }
                Object::Grant(grant)
            }),
            Kind::GrantStatus => self.status(&key, value, place).map(Object::GrantStatus),
            Kind::Secret => self.secret(&key, node, value, place),
            Kind::IdentityStatus => self.status(&key, value, place).map(Object::IdentityStatus),
            Kind::BindingStatus => self.status(&key, value, place).map(Object::BindingStatus),
        };
        if let Some(object) = object {
            if let Some(first) = self.lines.get(&key) {
                let message = format!("defined twice in this file; the one on line {first} is used");
                return self.problem(place, label, message);
            }
            let place = self.at(place);
            self.lines.insert(key.clone(), place.line);
            self.parsed.objects.push(Located { key, object: Arc::new(object), place });
        }
    }

    fn typed<T>(&mut self, key: &Key, value: Value, place: Place, text: Option<&str>) -> Option<T>
    where
        T: DeserializeOwned + Resource<DynamicType = ()>,
    {
        let generation = derived_number(&value["spec"].to_string());
        let read = match text {
            Some(text) if self.json => {
                serde_json::from_str::<T>(text).map_err(|error| (Place::from(&error), words::json_type(&error)))
            }
            Some(text) => serde_saphyr::from_str::<T>(text)
                .map_err(|error| (error.location().map_or(place, Place::from), words::yaml_type(&error))),
            // An item of a list: its own text is not to be had, its beginning has to do.
            None => serde_json::from_value::<T>(value).map_err(|error| (place, words::json_type(&error))),
        };
        match read {
            Ok(mut object) => {
                complete(object.meta_mut(), key);
                if matches!(key.kind, Kind::Identity | Kind::Binding | Kind::Grant) {
                    // Grows in an API server; here it only differs. Conditions say by it of which spec they speak.
                    object.meta_mut().generation = Some(generation);
                }
                Some(object)
            }
            Err((place, message)) => {
                self.problem(place, Some(key.to_string()), message);
                None
            }
        }
    }

    fn status<T: DeserializeOwned>(&mut self, key: &Key, mut value: Value, place: Place) -> Option<Written<T>> {
        let field = |name| value["metadata"][name].as_str().map(str::to_owned);
        let (uid, version) = (field("uid"), field("resourceVersion"));
        match serde_json::from_value(value["status"].take()) {
            Ok(status) => Some(Written { uid, version, status }),
            Err(error) => {
                self.problem(place, Some(key.to_string()), format!("status: {}", words::json_type(&error)));
                None
            }
        }
    }

    fn secret(&mut self, key: &Key, node: &Node, value: Value, place: Place) -> Option<Object> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire {
            #[serde(default)]
            data: Option<BTreeMap<String, Option<String>>>,
            #[serde(default)]
            string_data: Option<BTreeMap<String, Option<String>>>,
        }
        let Ok(wire) = serde_json::from_value::<Wire>(value) else {
            let message =
                "`data` (base64) and `stringData` (plain) map keys to strings; quote numbers and truth values";
            let at = ["data", "stringData"].iter().find_map(|field| not_text(node, field)).unwrap_or(place);
            self.problem(at, Some(key.to_string()), message);
            return None;
        };
        let mut data = SecretData::new();
        for (field, encoded) in wire.data.unwrap_or_default() {
            let compact: String = encoded.unwrap_or_default().split_ascii_whitespace().collect();
            let Ok(bytes) = STANDARD.decode(compact) else {
                let path = format!("data[{field}]");
                let at = node.place(&path).unwrap_or(place);
                self.problem(at, Some(key.to_string()), format!("{path}: not base64; use stringData for plain text"));
                return None;
            };
            data.insert(field, SecretBytes::from(bytes));
        }
        // As the API server does: stringData wins.
        for (field, plain) in wire.string_data.unwrap_or_default() {
            data.insert(field, SecretBytes::from(plain.unwrap_or_default().into_bytes()));
        }
        Some(Object::Secret(Arc::new(data)))
    }
}

/// What a grant asks for: one that asks for something else under the same name is another grant, and what became of the first is
/// not said of it.
fn request(key: &Key, grant: &AzureIdentityGrant) -> String {
    let spec = &grant.spec;
    let asked = (&spec.binding_name, &spec.pod_name, &spec.reason, &spec.duration, &spec.requested_by);
    format!("{}/{} {asked:?}", key.kind.name(), key.object)
}

/// What an API server would have filled in. The UID stays the same over restarts, and for an object that comes back.
fn complete(meta: &mut ObjectMeta, key: &Key) {
    trim::metadata(meta);
    meta.namespace = Some(key.object.namespace.to_string());
    if meta.uid.as_deref().is_none_or(str::is_empty) {
        meta.uid = Some(derived_uid(&format!("{}/{}", key.kind.name(), key.object)));
    }
}

/// Where something in the map `field` is not a string, or the field itself when that is no map.
fn not_text(node: &Node, field: &str) -> Option<Place> {
    match node.get(field)? {
        Node::Scalar(Value::Null) => None,
        Node::Map(entries) => entries
            .iter()
            .find(|(.., value)| !matches!(value, Node::Scalar(Value::String(_) | Value::Null)))
            .map(|(_, place, _)| *place),
        _ => node.place(field),
    }
}

fn first(node: &Node) -> Option<Place> {
    match node {
        Node::Map(entries) => entries.first().map(|(_, place, _)| *place),
        _ => None,
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
