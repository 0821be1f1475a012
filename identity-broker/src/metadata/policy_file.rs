//! A policy as a file.
//!
//! ```yaml
//! rules:                                  # the first rule that fits decides
//! - namespaces: [monitoring]              # of the pods; left out: every namespace
//!   paths: [/metadata/instance, /metadata/scheduledevents]   # these and everything below them
//!   methods: [GET, POST]                  # left out: GET in a rule that allows, both in one that blocks
//!   action: allow                         # or block; left out: allow
//! otherwise: block                        # what no rule fits; left out: block
//! ```

use std::fmt;

use serde::Deserialize;
use serde_saphyr::{Location, Spanned};
use thiserror::Error;

use super::{
    path::{MetadataPath, PathError},
    policy::{Action, Policy, Rule, Verb},
};

/// The longest file, in bytes.
pub const MAX_FILE: usize = 64 * 1024;
/// The most rules.
pub const MAX_RULES: usize = 256;

/// What is wrong with a policy file, and where.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub struct PolicyError {
    /// Line, from 1; 0 when it is about the file as a whole.
    pub line: u64,
    /// Column, from 1.
    pub column: u64,
    /// The field, such as `rules[1].paths[0]`; empty when the text could not be read as far as that.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}, column {}: ", self.line, self.column)?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    rules: Spanned<Vec<Entry>>,
    #[serde(default)]
    otherwise: Action,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    namespaces: Option<Spanned<Vec<Spanned<String>>>>,
    paths: Spanned<Vec<Spanned<String>>>,
    methods: Option<Spanned<Vec<Spanned<String>>>>,
    action: Option<Action>,
}

impl Policy {
    /// Reads a policy file.
    ///
    /// ```
    /// use identity_broker::metadata::Policy;
    ///
    /// let error = Policy::parse("rules:\n- paths: [/metadata/identity]\n").unwrap_err();
    /// assert!(error.to_string().starts_with("line 2, column 11: rules[0].paths[0]: "));
    /// ```
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let whole = |message: String| PolicyError { line: 0, column: 0, field: String::new(), message };
        if text.len() > MAX_FILE {
            return Err(whole(format!("the file is larger than {MAX_FILE} bytes")));
        }
        let file: File = serde_saphyr::from_str(text).map_err(|error| {
            let message = words(&error);
            match error.location() {
                Some(at) => PolicyError {
                    line: at.line(),
                    column: at.column(),
                    field: key_before(text, at).unwrap_or_default().to_owned(),
                    message,
                },
                None => whole(message),
            }
        })?;
        if file.rules.value.len() > MAX_RULES {
            return Err(at(file.rules.referenced, "rules", format!("more than {MAX_RULES} rules")));
        }
        let rules =
            file.rules.value.into_iter().enumerate().map(|(index, entry)| entry.rule(&format!("rules[{index}]")));
        Ok(Self { rules: rules.collect::<Result<_, _>>()?, otherwise: file.otherwise })
    }
}

/// The parser's message, in words for whoever wrote the file.
fn words(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    match error.without_snippet() {
        Error::AliasError { error, .. } => words(error),
        Error::Eof { .. } => "it ends too early; the least is `rules: []`".to_owned(),
        Error::DuplicateMappingKey { .. } => "this field is there twice".to_owned(),
        Error::MultipleDocuments { .. } => "a second document begins here; a policy is one".to_owned(),
        Error::Unexpected { expected: "mapping start", .. } => "this is to be a mapping of fields".to_owned(),
        Error::Unexpected { expected: "sequence start", .. } => {
            "this is to be a list, such as [/metadata/instance]".to_owned()
        }
        other => {
            let message = other.to_string();
            // The place is said beside it.
            message.split(" at line ").next().unwrap_or_default().trim_end_matches([':', ',']).to_owned()
        }
    }
}

/// The last `key:` on the line before a place: the field whose value cannot be read.
fn key_before(text: &str, at: Location) -> Option<&str> {
    let line = text.lines().nth(usize::try_from(at.line()).ok()?.checked_sub(1)?)?;
    let column = usize::try_from(at.column()).ok()?.checked_sub(1)?;
    let end = line.char_indices().nth(column).map_or(line.len(), |(index, _)| index);
    let (before, _) = line.get(..end)?.rsplit_once(':')?;
    let key = before.trim_start_matches(|c: char| !c.is_ascii_alphabetic()).rsplit([' ', '{', ',', '[']).next()?;
    (!key.is_empty()).then_some(key)
}

fn at(location: Location, field: impl Into<String>, message: impl Into<String>) -> PolicyError {
    PolicyError { line: location.line(), column: location.column(), field: field.into(), message: message.into() }
}

impl Entry {
    fn rule(self, field: &str) -> Result<Rule, PolicyError> {
        let action = self.action.unwrap_or(Action::Allow);
        let namespaces =
            self.namespaces.map(|names| each(names, &format!("{field}.namespaces"), namespace)).transpose()?;
        let paths = each(self.paths, &format!("{field}.paths"), prefix)?;
        let verbs = match (self.methods, action) {
            (Some(methods), _) => each(methods, &format!("{field}.methods"), verb)?,
            (None, Action::Allow) => [Verb::Get].into(),
            (None, Action::Block) => Verb::ALL.into(),
        };
        Ok(Rule { action, namespaces, paths, verbs })
    }
}

/// Reads each item of a list that must not be empty.
fn each<T>(
    list: Spanned<Vec<Spanned<String>>>,
    field: &str,
    read: fn(&str) -> Result<T, String>,
) -> Result<Box<[T]>, PolicyError> {
    if list.value.is_empty() {
        return Err(at(list.referenced, field, "an empty list fits nothing; leave the rule out, or say what it fits"));
    }
    let item = |(index, item): (usize, Spanned<String>)| {
        read(&item.value).map_err(|message| at(item.referenced, format!("{field}[{index}]"), message))
    };
    list.value.into_iter().enumerate().map(item).collect()
}

fn namespace(name: &str) -> Result<Box<str>, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > 63 || !name.bytes().all(plain) || name.starts_with('-') || name.ends_with('-') {
        return Err(format!(
            "`{name}` is not the name of a namespace (lower-case letters, digits and `-`; no patterns); leave the field out \
             for every namespace"
        ));
    }
    Ok(name.into())
}

fn prefix(path: &str) -> Result<Box<str>, String> {
    match MetadataPath::new(path) {
        Ok(canonical) if canonical.as_str() == path => Ok(path.into()),
        Ok(canonical) => Err(format!("write `{canonical}`, not `{path}`")),
        // The whole service: what is never passed on stays so.
        Err(PathError::Outside) if path == "/metadata" => Ok(path.into()),
        Err(PathError::Outside) => Err(format!("`{path}` is not below /metadata/: nothing else is ever passed on")),
        Err(PathError::Credential) => Err(format!(
            "`{path}` leads to credentials: no policy can allow it, and it need not be blocked; leave it out"
        )),
        Err(PathError::Target(error)) => Err(format!("`{path}` is not a plain path: {error}")),
    }
}

fn verb(method: &str) -> Result<Verb, String> {
    Verb::ALL
        .into_iter()
        .find(|verb| verb.as_str() == method)
        .ok_or_else(|| format!("`{method}` is not a method of the metadata service; it has GET and POST"))
}

#[cfg(test)]
#[path = "policy_file_tests.rs"]
mod tests;
