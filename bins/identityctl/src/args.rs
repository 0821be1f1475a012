//! The command line.

use std::net::Ipv4Addr;

use clap::builder::NonEmptyStringValueParser;
use identity_netfilter::Backend;
use identity_process::SourceArgs;

/// Why a pod gets a token or not, and what the daemons install. Reads; changes nothing.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "identityctl", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Say which identities a pod has and why, decided by the code of the daemons
    ///
    /// Exit codes: 0 the pod may have a token, 3 it may not, 1 failed, 2 wrong flags.
    Explain(Box<Explain>),
    /// Print the CustomResourceDefinitions
    Crds,
    /// Print the netfilter rules that identity-node installs on an empty node
    Rules(Rules),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Explain {
    /// The pod
    #[arg(value_name = "NAMESPACE/POD", value_parser = pod)]
    pub(crate) pod: (String, String),

    /// The resource that a token is asked for
    #[arg(long, value_name = "URI", default_value = "https://management.azure.com/", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) resource: String,

    /// The identity that the request names
    #[arg(long, value_name = "ID", group = "identity")]
    pub(crate) client_id: Option<String>,

    /// As --client-id, by the identity's object id
    #[arg(long, value_name = "ID", group = "identity")]
    pub(crate) object_id: Option<String>,

    /// As --client-id, by the resource id of a managed identity
    #[arg(long, value_name = "ID", group = "identity")]
    pub(crate) resource_id: Option<String>,

    /// As the daemons' flag of this name
    #[arg(long)]
    pub(crate) cluster_wide_matching: bool,

    /// As the flag of identity-node
    #[arg(long, value_name = "NAMESPACE,…", value_delimiter = ',')]
    pub(crate) exception_namespaces: Vec<String>,

    /// JSON instead of an indented tree
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Rules {
    /// nft, iptables-nft or iptables-legacy
    #[arg(long, value_name = "BACKEND", default_value = "nft")]
    pub(crate) backend: Backend,

    /// IPv4 address of the node
    #[arg(long, value_name = "IPV4")]
    pub(crate) node_address: Ipv4Addr,

    /// Port of identity-node on that address
    #[arg(long, value_name = "PORT", default_value_t = 2579, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: u16,
}

fn pod(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("write NAMESPACE/POD".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
        for (words, good) in [
            (&["explain", "demo/app"][..], true),
            (&["explain", "app"], false),
            (&["explain", "demo/app", "--client-id", "a", "--object-id", "b"], false),
            (&["rules", "--node-address", "10.0.0.1", "--backend", "iptables-nft"], true),
            (&["rules", "--node-address", "10.0.0.1", "--backend", "ebtables"], false),
            (&["crds"], true),
        ] {
            let parsed = Args::try_parse_from(["identityctl"].iter().chain(words));
            assert_eq!(parsed.is_ok(), good, "{words:?}");
        }
    }
}
