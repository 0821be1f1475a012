//! What is wrong with a text, in words that quote none of it: parsers like to show what they stumbled over, and a manifest may
//! hold a password, also where it does not belong. Lines and columns are said beside it.

use serde_saphyr::Error;

/// Why a text is not YAML.
pub(super) fn syntax(error: &Error) -> String {
    match error.without_snippet() {
        Error::AliasError { error, .. } => syntax(error),
        Error::Eof { .. } => "it ends too early".to_owned(),
        Error::DuplicateMappingKey { .. } => "this key is there twice in one mapping".to_owned(),
        Error::UnknownAnchor { .. } => "an alias (`*name`) without its anchor (`&name`)".to_owned(),
        Error::MultipleDocuments { .. } => {
            "more follows after its end; documents are separated by a line `---`".to_owned()
        }
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            "too large, too deep, or with too many aliases to be a manifest".to_owned()
        }
        // The scanner's messages are fixed, but for one that names a character.
        Error::ExternalMessage { msg, .. } if msg.contains("unexpected character") => {
            "this character cannot be here".to_owned()
        }
        Error::ExternalMessage { msg, .. } => msg.clone(),
        _ => "it cannot be read".to_owned(),
    }
}

/// Why a text is not JSON.
pub(super) fn json_syntax(error: &serde_json::Error) -> String {
    // The messages of its scanner are fixed.
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_owned()
}

/// Which value of a YAML document does not fit its field.
pub(super) fn yaml_type(error: &Error) -> String {
    match error.without_snippet() {
        Error::AliasError { error, .. } => yaml_type(error),
        Error::SerdeInvalidType { unexpected, expected, .. }
        | Error::SerdeInvalidValue { unexpected, expected, .. } => mismatch(unexpected, expected),
        Error::SerdeMissingField { field, .. } => missing(field),
        Error::InvalidScalar { ty, .. } => format!("{UNFIT}, which takes {ty}"),
        Error::Unexpected { expected, .. } => {
            let expected = match *expected {
                "mapping start" => "a mapping",
                "sequence start" => "a list",
                "string scalar" => "a string",
                other => other,
            };
            format!("{UNFIT}, which takes {expected}")
        }
        Error::NullIntoString { .. } => mismatch("nothing", "a string"),
        _ => UNFIT.to_owned(),
    }
}

/// The same for JSON.
pub(super) fn json_type(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    let wrong = text.strip_prefix("invalid type: ").or_else(|| text.strip_prefix("invalid value: "));
    if let Some((unexpected, expected)) = wrong.and_then(|wrong| wrong.rsplit_once(", expected ")) {
        return mismatch(unexpected, expected);
    }
    let field = |kind: &str| text.strip_prefix(kind)?.strip_prefix(" field `")?.strip_suffix('`');
    match (field("missing"), field("duplicate")) {
        (Some(field), _) => missing(field),
        (_, Some(field)) => format!("`{field}` is there twice"),
        _ => UNFIT.to_owned(),
    }
}

const UNFIT: &str = "this value does not fit its field";

fn missing(field: &str) -> String {
    format!("`{field}` is missing")
}

/// `unexpected` is serde's: the kind of value, then the value itself in quotes or backticks.
fn mismatch(unexpected: &str, expected: &str) -> String {
    let kind = unexpected.split(['`', '"']).next().unwrap_or_default().trim_end();
    format!("{UNFIT}: {kind}, not {expected}")
}
