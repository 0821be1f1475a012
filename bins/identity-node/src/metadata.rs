//! What is passed on of the rest of the node's metadata service.

use identity_broker::metadata::Policy;

/// The rest of the metadata service.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Metadata service")]
pub(crate) struct MetadataArgs {
    /// What pods may reach of the node's metadata service besides tokens: allow, block, or a YAML file with rules (then
    /// write ./allow for a file of that name). Credentials never. When not given: GET of /metadata/instance and
    /// /metadata/scheduledevents
    #[arg(
        long, value_name = "allow|block|FILE", value_parser = policy, env = "ENTRA_POD_IDENTITY_METADATA_POLICY"
    )]
    pub(crate) metadata_policy: Option<Policy>,

    /// Namespaces whose AzurePodIdentityExceptions count: they give pods the node's own identities. When not given: none
    #[arg(
        long, value_name = "NAMESPACE,…", value_delimiter = ',', value_parser = namespace,
        env = "ENTRA_POD_IDENTITY_EXCEPTION_NAMESPACES"
    )]
    pub(crate) exception_namespaces: Vec<String>,
}

fn namespace(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.is_empty() || text.len() > 63 || !text.bytes().all(plain) {
        return Err("the name of a namespace has lower-case letters, digits and `-`; there are no patterns".to_owned());
    }
    Ok(text.to_owned())
}

fn policy(text: &str) -> Result<Policy, String> {
    match text {
        "allow" => Ok(Policy::allow()),
        "block" => Ok(Policy::block()),
        file => {
            let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
            Policy::parse(&text).map_err(|error| format!("{file}: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_names() {
        assert_eq!(namespace("kube-system").as_deref(), Ok("kube-system"));
        for wrong in ["", "*", "Kube", "a b", "team-*"] {
            assert!(namespace(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_word_or_a_file() {
        assert_eq!(policy("allow"), Ok(Policy::allow()));
        assert_eq!(policy("block"), Ok(Policy::block()));
        assert!(policy("/nonexistent/policy").unwrap_err().starts_with("/nonexistent/policy: No such file"));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("policy.yaml");
        let path = file.to_str().unwrap();
        std::fs::write(&file, "rules: []\n").unwrap();
        assert_eq!(policy(path), Ok(Policy::block()));
        std::fs::write(&file, "rules:\n- paths: [/metadata/identity]\n").unwrap();
        let error = policy(path).unwrap_err();
        assert!(error.starts_with(&format!("{path}: line 2, column 11: rules[0].paths[0]: ")), "{error}");
    }
}
