//! The command line.

use std::{net::Ipv4Addr, path::PathBuf};

use clap::builder::NonEmptyStringValueParser;
use identity_broker::audit::journal::chain::Hash;
use identity_netfilter::Backend;
use identity_process::SourceArgs;
use jiff::SignedDuration;

use crate::grants::args::{Close, Grants, Open, Request, Say};

/// Why a pod gets a token or not, what the daemons install, what they recorded; access for a while
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
    /// Read an audit journal of identity-node
    #[command(subcommand)]
    Audit(Audit),
    /// Ask for access by a binding for a while: creates an AzureIdentityGrant in your name
    ///
    /// A pipe gets the name of the grant and nothing else.
    ///
    /// Exit codes: 0 asked, 3 refused or not possible, 1 failed, 2 wrong flags.
    Request(Box<Request>),
    /// As request, and wait until there is access
    ///
    /// A pipe gets the name of the grant and when its access ends, with a tab between.
    ///
    /// Exit codes: 0 open, 3 refused, denied or not possible, 4 not open within --timeout (the grant stays and waits), 1 failed,
    /// 2 wrong flags.
    Open(Box<Open>),
    /// Revoke the active grants of a binding, and say whether anything still keeps it open
    ///
    /// Exit codes: 0 closed, 3 refused, or still open by its own windows, 1 failed, 2 wrong flags.
    Close(Box<Close>),
    /// Approve a grant that somebody else has asked for
    ///
    /// Exit codes: 0 your approval is there, 3 refused or not possible, 1 failed, 2 wrong flags.
    Approve(Box<Say>),
    /// Refuse a grant; one that is active already ends
    ///
    /// For approvers of the binding and for whoever has asked.
    ///
    /// Exit codes: 0 it gives no access, 3 refused, 1 failed, 2 wrong flags.
    Deny(Box<Say>),
    /// End a grant before its time
    ///
    /// For approvers of the binding and for whoever has asked.
    ///
    /// Exit codes: 0 it gives no access, 3 refused, 1 failed, 2 wrong flags.
    Revoke(Box<Say>),
    /// List grants: who, what, how many approvals, until when
    ///
    /// Active ones first, then those that wait, then those that are over, the newest first. A pipe gets the same columns with
    /// tabs between them and no head.
    ///
    /// Exit codes: 0 listed, 3 refused, 1 failed, 2 wrong flags.
    Grants(Box<Grants>),
}

#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Audit {
    /// Say whether a journal is whole: any record removed, altered or out of order, any gap
    ///
    /// Up to the last checkpoint of a given key (--public-key) or the last given head (--head) nothing can have been changed
    /// unnoticed. Without either, records cut off the end and a journal that was written anew cannot be told. A pipe gets the
    /// findings only: nothing when there are none.
    ///
    /// Exit codes: 0 whole, 3 not whole, 1 failed, 2 wrong flags.
    Verify(Verify),
    /// Print the records of a journal
    Show(Show),
    /// Print the last records of a journal, and those that come
    Tail(Tail),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Verify {
    /// Directory of the journal, or files of it (`-`: standard input). Of a directory it is also said when files are missing
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,

    /// Ed25519 public key (PEM) that checkpoints are signed with; may be repeated. There must be a checkpoint of one of them
    #[arg(long, value_name = "FILE")]
    pub(crate) public_key: Vec<PathBuf>,

    /// Hash of a record that is known to have been written, such as the log of identity-node says them; may be repeated
    #[arg(long, value_name = "HASH")]
    pub(crate) head: Vec<Hash>,

    /// The last checkpoint must not be older: one is written each minute, so that a tail that was cut off shows
    #[arg(long, value_name = "DURATION", requires = "public_key")]
    pub(crate) max_age: Option<SignedDuration>,

    /// JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which records.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Filter {
    /// Of this pod
    #[arg(long, value_name = "NAMESPACE/POD", value_parser = pod)]
    pub(crate) pod: Option<(String, String)>,

    /// By this binding
    #[arg(long, value_name = "NAMESPACE/BINDING")]
    pub(crate) binding: Option<String>,

    /// With this identity
    #[arg(long, value_name = "NAMESPACE/IDENTITY")]
    pub(crate) identity: Option<String>,

    /// issued, denied, failed or withdrawn
    #[arg(long, value_name = "VERDICT", value_parser = ["issued", "denied", "failed", "withdrawn"])]
    pub(crate) verdict: Option<String>,

    /// The token with this `uti` claim (`uniqueTokenIdentifier` in Entra's sign-in log)
    #[arg(long, value_name = "UTI")]
    pub(crate) uti: Option<String>,

    /// What the journal says about itself as well
    #[arg(long, conflicts_with_all = ["pod", "binding", "identity", "verdict", "uti"])]
    pub(crate) all: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Show {
    /// Directory of the journal, or files of it (`-`: standard input)
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) filter: Filter,

    /// The records as they are, one JSON object in each line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Tail {
    /// Directory of the journal, or files of it
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,

    /// How many
    #[arg(long, short = 'n', value_name = "N", default_value_t = 10)]
    pub(crate) lines: usize,

    /// Go on with what comes; needs the directory
    #[arg(long, short)]
    pub(crate) follow: bool,

    #[command(flatten)]
    pub(crate) filter: Filter,

    /// The records as they are, one JSON object in each line
    #[arg(long)]
    pub(crate) json: bool,
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
            (&["audit", "verify", "dir"], true),
            (&["audit", "verify"], false),
            (&["audit", "verify", "dir", "--head", "abc"], false),
            (&["audit", "verify", "dir", "--max-age", "5m"], false),
            (&["audit", "verify", "dir", "--max-age", "5m", "--public-key", "k"], true),
            (&["audit", "show", "dir", "--verdict", "maybe"], false),
            (&["audit", "tail", "dir", "-n", "3", "-f", "--pod", "demo/app"], true),
            (&["request", "vault", "--for", "30m", "--reason", "incident 4711"], true),
            (&["request", "vault", "--for", "30m"], false),
            (&["request", "vault", "--reason", "incident 4711"], false),
            (&["request", "vault", "--for", "30", "--reason", "r"], false),
            (&["request", "vault", "--for", "0s", "--reason", "r"], false),
            (&["request", "vault", "--for", "30m", "--reason", " "], false),
            (&["open", "vault", "--for", "30m", "--reason", "r", "--no-wait"], true),
            (&["open", "vault", "--for", "30m", "--reason", "r", "--no-wait", "--timeout", "1m"], false),
            (&["close", "vault", "-n", "demo"], true),
            (&["approve", "g", "--as", "bob", "--as-group", "a", "--as-group", "b"], true),
            (&["approve", "g", "--as-group", "a"], false),
            (&["deny", "g", "--reason", "no"], true),
            (&["revoke"], false),
            (&["grants", "-A", "--binding", "vault", "-o", "json"], true),
            (&["grants", "-A", "-n", "demo"], false),
            (&["grants", "-o", "xml"], false),
            (&["grants", "--manifests", "dir", "--as", "bob"], false),
        ] {
            let parsed = Args::try_parse_from(["identityctl"].iter().chain(words));
            assert_eq!(parsed.is_ok(), good, "{words:?}");
        }
    }
}
