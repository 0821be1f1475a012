//! What an API server says, in words that a person can act on.

use kube::core::Status;

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Trouble {
    /// It was understood, and is not to be: trying the same again is no use.
    #[error("{text}")]
    Refused {
        /// The HTTP status; 0 when nobody was asked.
        code: u16,
        /// Why, and what to do.
        text: String,
    },
    /// It may work another time.
    #[error("{0}")]
    Failed(String),
}

impl Trouble {
    /// Something that need not even be asked for.
    pub(super) fn refused(text: impl Into<String>) -> Self {
        Self::Refused { code: 0, text: text.into() }
    }

    pub(super) const fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Failed(_) => None,
        }
    }
}

/// What is meant by an error status.
pub(super) fn of_status(status: &Status) -> Trouble {
    let said = status.message.trim();
    let text = match status.code {
        401 => format!("the API server does not know who you are ({said}); sign in anew, or see to the kubeconfig's user"),
        403 | 422 if let Some(text) = by_policy(said) => text,
        403 if let Some(text) = missing_right(said) => text,
        422 => invalid(status).unwrap_or_else(|| said.to_owned()),
        404 if status.details.as_ref().is_none_or(|details| details.name.is_empty()) => {
            "this API server has no such kind of object: install the CustomResourceDefinitions (identityctl crds | kubectl \
             apply --server-side -f -)"
                .to_owned()
        }
        404 => {
            let (kind, name) = status.details.as_ref().map_or(("", ""), |d| (d.kind.as_str(), d.name.as_str()));
            format!("there is no {} {name}", singular(kind))
        }
        400..=499 if status.code != 429 && status.code != 408 => said.to_owned(),
        code => return Trouble::Failed(format!("the API server cannot answer now ({code}): {said}")),
    };
    Trouble::Refused { code: status.code, text }
}

/// The words of an admission policy, without the frame around them.
fn by_policy(said: &str) -> Option<String> {
    let (_, rest) = said.split_once("ValidatingAdmissionPolicy '")?;
    let (policy, rest) = rest.split_once('\'')?;
    let (_, words) = rest.split_once("denied request: ")?;
    Some(format!("{words} (admission policy {policy})"))
}

/// `User "x" cannot VERB resource "R" in API group "G" in the namespace "N"` of RBAC.
fn missing_right(said: &str) -> Option<String> {
    let quoted = |after: &str| {
        let (_, rest) = said.split_once(after)?;
        rest.split_once('"').map(|(text, _)| text)
    };
    let user = quoted("User \"")?;
    let (_, rest) = said.split_once(" cannot ")?;
    let (verb, _) = rest.split_once(" resource ")?;
    let resource = quoted(" resource \"")?;
    let group =
        quoted("API group \"").filter(|group| !group.is_empty()).map_or(String::new(), |group| format!(".{group}"));
    let place =
        quoted("in the namespace \"").map_or("in the whole cluster".to_owned(), |name| format!("in namespace {name}"));
    let hint = if verb == "impersonate" {
        "--as and --as-group need it"
    } else {
        "it takes a Role or ClusterRole that has it and a binding of it to you or a group of yours (examples/grant/roles.yaml)"
    };
    Some(format!("{user} lacks the right to `{verb}` {resource}{group} {place}: {hint}"))
}

/// What is wrong with which field.
fn invalid(status: &Status) -> Option<String> {
    let causes = &status.details.as_ref()?.causes;
    // Of a rule the message says "Invalid value: …: " first, and the value is known to whoever wrote it.
    let words = |text: &str| text.rsplit_once("\": ").map_or(text, |(_, words)| words).to_owned();
    let texts: Vec<_> = causes
        .iter()
        .map(|cause| {
            if cause.field.is_empty() {
                words(&cause.message)
            } else {
                format!("{}: {}", cause.field, words(&cause.message))
            }
        })
        .collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

fn singular(plural: &str) -> &str {
    match plural {
        "azureidentitygrants" => "AzureIdentityGrant",
        "azureidentitybindings" => "AzureIdentityBinding",
        "azureidentities" => "AzureIdentity",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str, details: &serde_json::Value) -> Status {
        serde_json::from_value(serde_json::json!({"code": code, "message": message, "details": details})).unwrap()
    }

    #[test]
    fn in_words() {
        let none = serde_json::Value::Null;
        let named = serde_json::json!({"kind": "azureidentitygrants", "name": "g"});
        let wrong = serde_json::json!({"causes": [
            {"field": "spec.duration", "message": "Invalid value: \"string\": a duration of up to 168h is needed"},
            {"field": "", "message": "too much"},
        ]});
        let cases = [
            status(
                403,
                "azureidentitygrants.aadpodidentity.k8s.io is forbidden: User \"ann@example.com\" cannot create resource \"azureidentitygrants\" in API group \"aadpodidentity.k8s.io\" in the namespace \"demo\"",
                &none,
            ),
            status(
                403,
                "users \"bob\" is forbidden: User \"ann\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
                &none,
            ),
            status(
                403,
                "azureidentitygrants.aadpodidentity.k8s.io \"g\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: spec.denied.by must be your own name, which is ann",
                &none,
            ),
            status(403, "azureidentitygrants \"g\" is forbidden: another webhook says no", &none),
            status(422, "AzureIdentityGrant \"g\" is invalid", &wrong),
            status(404, "the server could not find the requested resource", &none),
            status(404, "azureidentitygrants.aadpodidentity.k8s.io \"g\" not found", &named),
            status(401, "Unauthorized", &none),
            status(409, "the object has been modified", &named),
            status(429, "too many requests", &none),
            status(503, "etcd is away", &none),
        ];
        let said: Vec<_> = cases.iter().map(|status| (status.code, of_status(status))).collect();
        let lines: Vec<_> = said
            .iter()
            .map(|(code, trouble)| match trouble {
                Trouble::Refused { code: kept, text } => format!("{code} refused {kept} {text}"),
                Trouble::Failed(text) => format!("{code} failed {text}"),
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
    }
}
