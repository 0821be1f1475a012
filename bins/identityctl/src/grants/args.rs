//! The flags of what is about grants.

use std::path::PathBuf;

use jiff::SignedDuration;

/// Which API server, as whom.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Which API server, as whom (as kubectl would, when none of these is given)")]
pub(crate) struct ClusterArgs {
    /// Namespace; that of the context when absent
    #[arg(long, short, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,

    /// kubeconfig of the API server; else KUBECONFIG, ~/.kube/config, or the cluster this runs in
    #[arg(long, value_name = "FILE", env = "ENTRA_POD_IDENTITY_KUBECONFIG")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,

    /// Act as this user; you need the right to impersonate it
    #[arg(long = "as", value_name = "USER")]
    pub(crate) as_user: Option<String>,

    /// Act as a member of this group; may be repeated
    #[arg(long, value_name = "GROUP", requires = "as_user")]
    pub(crate) as_group: Vec<String>,

    // Not with --kubeconfig: its variable may well be set.
    /// Say how grants are given where objects come from a directory of manifests; nothing is written
    #[arg(long, value_name = "DIR", conflicts_with_all = ["context", "as_user"])]
    pub(crate) manifests: Option<PathBuf>,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Request {
    /// The AzureIdentityBinding; it needs `spec.timeBox.grant`
    #[arg(value_name = "BINDING")]
    pub(crate) binding: String,

    /// How long, from the activation on, such as 30m or 1h30m
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub(crate) duration: String,

    /// Why, for those who approve and for the audit
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub(crate) reason: String,

    /// Only for the pod of this name; else for all pods of the binding
    #[arg(long, value_name = "NAME")]
    pub(crate) pod: Option<String>,

    /// Name of the grant; one is made from the binding's when absent
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Open {
    /// Ask, and do not wait
    #[arg(long, conflicts_with = "timeout")]
    pub(crate) no_wait: bool,

    /// How long to wait for approvals and the controller
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    pub(crate) timeout: SignedDuration,

    #[command(flatten)]
    pub(crate) request: Request,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Close {
    /// The AzureIdentityBinding
    #[arg(value_name = "BINDING")]
    pub(crate) binding: String,

    /// Why, for the audit
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub(crate) reason: Option<String>,

    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Say {
    /// The AzureIdentityGrant
    #[arg(value_name = "GRANT")]
    pub(crate) grant: String,

    /// Why, for whoever asked and for the audit
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub(crate) reason: Option<String>,

    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Grants {
    /// Of this binding only
    #[arg(long, value_name = "BINDING")]
    pub(crate) binding: Option<String>,

    /// Of all namespaces
    #[arg(long, short = 'A', conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,

    /// table or json
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub(crate) output: Format,

    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// As the field of a grant has it; whether the binding allows as much is asked later.
fn duration(text: &str) -> Result<String, String> {
    match identity_crd::parse_duration(text) {
        Some(duration) if !duration.is_zero() => Ok(text.to_owned()),
        _ => Err("write hours, minutes and seconds, such as 30m or 1h30m".to_owned()),
    }
}

fn reason(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("say why".to_owned()) } else { Ok(text.to_owned()) }
}
