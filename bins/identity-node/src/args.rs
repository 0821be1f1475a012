//! The command line.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use http::Uri;
use identity_broker::{LimitsConfig, Rate};
use identity_netfilter::{Backend, Redirect};
use identity_process::{AuditFailure, LogArgs, ProbeArgs, SourceArgs, TraceArgs, UpstreamArgs, duration_within};

use crate::{audit::AuditArgs, events::EventArgs, metadata::MetadataArgs};

/// Answers the managed-identity endpoint for the pods of one node.
///
/// Redirects what pods send to http://169.254.169.254 to itself, finds the pod by its address, and answers with a token of
/// the identity that is assigned to it. The rules stay when it stops: pods then get "connection refused", never the node's
/// own identities.
#[derive(Clone, Debug, Parser)]
#[command(name = "identity-node", version, after_help = AFTER)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) source: SourceArgs,

    #[command(flatten)]
    pub(crate) node: NodeArgs,

    #[command(flatten)]
    pub(crate) netfilter: NetfilterArgs,

    #[command(flatten)]
    pub(crate) tokens: TokenArgs,

    #[command(flatten)]
    pub(crate) upstream: UpstreamArgs,

    #[command(flatten)]
    pub(crate) metadata: MetadataArgs,

    #[command(flatten)]
    pub(crate) audit: AuditArgs,

    #[command(flatten)]
    pub(crate) events: EventArgs,

    #[command(flatten)]
    pub(crate) probes: ProbeArgs<8085, 9090>,

    #[command(flatten)]
    pub(crate) traces: TraceArgs,

    #[command(flatten)]
    pub(crate) log: LogArgs,
}

const AFTER: &str = "\
Each flag can be given as an environment variable: its name in capitals after ENTRA_POD_IDENTITY_, such as
ENTRA_POD_IDENTITY_HOLD=2s; --node-name and --node-address also as NODE_NAME and NODE_IP. The system's trust roots are
used for Entra and Key Vault; SSL_CERT_FILE or SSL_CERT_DIR name others, --ca-bundle more.

Exit codes: 0 stopped by SIGTERM or SIGINT (or rules removed), 1 failed (the last line says why), 2 wrong flags.";

/// Which node, and where it listens.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Node")]
pub(crate) struct NodeArgs {
    /// Name of the node as in spec.nodeName of its pods
    #[arg(long, value_name = "NAME", env = "NODE_NAME", required_unless_present = "remove_rules")]
    pub(crate) node_name: Option<String>,

    /// IPv4 address of the node: where the redirect leads, and the only one it listens on (not a loopback address)
    #[arg(
        long, value_name = "IPV4", env = "NODE_IP", required_unless_present = "remove_rules", value_parser = node_address
    )]
    pub(crate) node_address: Option<Ipv4Addr>,

    /// Port on that address; whatever was not redirected there is refused
    #[arg(
        long, value_name = "PORT", default_value_t = 2579, env = "ENTRA_POD_IDENTITY_PORT",
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub(crate) port: u16,

    /// Let bindings of every namespace count, as the archived predecessor did; must agree with the controller
    #[arg(long, env = "ENTRA_POD_IDENTITY_CLUSTER_WIDE_MATCHING")]
    pub(crate) cluster_wide_matching: bool,
}

/// How the redirect is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NetfilterChoice {
    /// Whichever of the others this node's own rules are in
    Auto,
    /// A table of its own through nft
    Nft,
    /// Chains through iptables-nft
    IptablesNft,
    /// Chains through iptables-legacy
    IptablesLegacy,
    /// No rules: somebody else redirects (the kernel must know the original destination)
    None,
}

impl NetfilterChoice {
    /// None: to be detected, or no rules at all.
    pub(crate) const fn backend(self) -> Option<Backend> {
        match self {
            Self::Nft => Some(Backend::Nft),
            Self::IptablesNft => Some(Backend::IptablesNft),
            Self::IptablesLegacy => Some(Backend::IptablesLegacy),
            Self::Auto | Self::None => None,
        }
    }
}

/// The redirect.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Redirect")]
pub(crate) struct NetfilterArgs {
    /// How the redirect is made
    #[arg(long, value_name = "BACKEND", default_value = "auto", env = "ENTRA_POD_IDENTITY_NETFILTER")]
    pub(crate) netfilter: NetfilterChoice,

    /// Take this program's rules away, nothing else, and exit. From then on pods reach the node's own endpoint directly
    #[arg(long)]
    pub(crate) remove_rules: bool,
}

/// Where tokens come from.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Tokens")]
pub(crate) struct TokenArgs {
    /// The node's own metadata endpoint, for managed identities
    #[arg(
        long, value_name = "URL", default_value = "http://169.254.169.254", value_parser = metadata_endpoint,
        env = "ENTRA_POD_IDENTITY_METADATA_ENDPOINT"
    )]
    pub(crate) metadata_endpoint: Uri,

    /// File with the node's own token, projected by the kubelet: what identities of type 3 show Entra (`subject: Broker`). Its
    /// audience must be api://AzureADTokenExchange (or the cloud's own)
    #[arg(long, value_name = "FILE", env = "ENTRA_POD_IDENTITY_FEDERATED_TOKEN_FILE")]
    pub(crate) federated_token_file: Option<PathBuf>,

    /// Serve identities of type 3 with `subject: Pod`: the node then makes tokens of its pods' service accounts. It needs the
    /// right to (verb create on serviceaccounts/token), which is worth as much as those accounts are: confine it first
    #[arg(long, env = "ENTRA_POD_IDENTITY_FEDERATED_POD_SUBJECTS")]
    pub(crate) federated_pod_subjects: bool,

    /// Get tokens when an identity is assigned to a pod of this node, before the pod asks: for so many of the resources that
    /// were asked for last with that identity. 0: wait until a pod asks
    #[arg(
        long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(..=16),
        env = "ENTRA_POD_IDENTITY_PREFETCH"
    )]
    pub(crate) prefetch: u8,

    /// How often a Key Vault is read for new versions of a credential (from 1s to 24h)
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = pause, env = "ENTRA_POD_IDENTITY_VAULT_POLL")]
    pub(crate) vault_poll: Duration,

    /// How long a request waits for an address that no pod has yet, or for an assignment that is to come (at most 60s)
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = hold, env = "ENTRA_POD_IDENTITY_HOLD")]
    pub(crate) hold: Duration,

    /// Requests a second that one pod is answered, with bursts of twice as many; above it 429. 0: no limit
    #[arg(long, value_name = "N", default_value_t = 2000, env = "ENTRA_POD_IDENTITY_POD_REQUESTS_PER_SECOND")]
    pub(crate) pod_requests_per_second: u32,

    /// What happens to a token whose audit record cannot be written
    #[arg(long, value_name = "POLICY", default_value = "deny", env = "ENTRA_POD_IDENTITY_AUDIT_ON_FAILURE")]
    pub(crate) audit_on_failure: AuditFailure,
}

impl TokenArgs {
    pub(crate) fn limits(&self) -> LimitsConfig {
        let rate = match self.pod_requests_per_second {
            0 => Rate::UNLIMITED,
            n => Rate::per_second(n, n.saturating_mul(2)),
        };
        LimitsConfig { requests: rate, cheap: rate, connections: rate, ..LimitsConfig::default() }
    }
}

/// Not for the redirect: the kernel drops what is led to a loopback address from outside.
fn node_address(text: &str) -> Result<Ipv4Addr, String> {
    let address: Ipv4Addr = text.parse().map_err(|error| format!("{error}"))?;
    let redirect = Redirect::new(Redirect::METADATA, SocketAddrV4::new(address, 1));
    redirect.map(|_| address).map_err(|error| error.to_string())
}

fn hold(text: &str) -> Result<Duration, String> {
    duration_within(text, Duration::ZERO..=Duration::from_mins(1))
}

fn pause(text: &str) -> Result<Duration, String> {
    duration_within(text, Duration::from_secs(1)..=Duration::from_hours(24))
}

fn metadata_endpoint(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
    let plain = uri.path_and_query().is_none_or(|path| path.as_str() == "/");
    if uri.scheme_str() != Some("http") || uri.host().is_none() || !plain {
        return Err("http://HOST[:PORT], nothing after it".to_owned());
    }
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    const NODE: [&str; 5] = ["identity-node", "--node-name", "n", "--node-address", "10.42.0.1"];

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
        let args = Args::try_parse_from(NODE).unwrap();
        assert_eq!(args.tokens.hold, Duration::from_secs(5));
        assert_eq!((args.tokens.prefetch, args.tokens.federated_pod_subjects), (4, false));
        assert_eq!(args.tokens.vault_poll, Duration::from_mins(5));
        let args = Args::try_parse_from(NODE.iter().chain(&["--prefetch", "0", "--hold", "250ms"])).unwrap();
        assert_eq!(args.tokens.prefetch, 0);
        assert_eq!(args.tokens.hold, Duration::from_millis(250));
        assert!(Args::try_parse_from(["identity-node", "--remove-rules"]).unwrap().netfilter.remove_rules);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for flags in [
            &["--port", "0"][..],
            &["--hold", "2m"],
            &["--hold", "-1s"],
            &["--vault-poll", "0s"],
            &["--metadata-endpoint", "https://169.254.169.254"],
            &["--metadata-endpoint", "http://169.254.169.254/metadata"],
            &["--node-address", "::1"],
            &["--node-address", "127.0.0.1"],
            &["--node-address", "0.0.0.0"],
            &["--authority-hosts", "https://login.microsoftonline.com"],
            &["--prefetch", "17"],
            &["--prefetch", "yes"],
            &["--netfilter", "ebtables"],
            &["--metadata-policy", "/nonexistent/policy.yaml"],
            &["--exception-namespaces", "kube-system,*"],
            &["--manifests", "m"],
        ] {
            let error = Args::try_parse_from(NODE.iter().chain(flags)).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{flags:?}");
        }
        assert!(Args::try_parse_from(["identity-node"]).is_err());
    }
}
