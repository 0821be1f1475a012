//! The command line.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use identity_process::{LogArgs, SourceArgs};
use jiff::SignedDuration;

/// Writes which pod may use which identity.
///
/// Watches pods, AzureIdentity and AzureIdentityBinding, and keeps one AzureAssignedIdentity for each pod and binding that
/// selects it. Any number may run: one holds the Lease and writes, the others take over when it stops renewing.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "identity-controller", version, after_help = AFTER)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) source: SourceArgs,

    /// Let a binding select pods of every namespace, as the archived predecessor did; set it on the nodes, too. By default
    /// binding, identity and pod are in one namespace
    #[arg(long, env = "ENTRA_POD_IDENTITY_CLUSTER_WIDE_MATCHING")]
    pub(crate) cluster_wide_matching: bool,

    /// Namespace of the Lease
    #[arg(
        long,
        value_name = "NAMESPACE",
        default_value = "entra-pod-identity",
        help_heading = "Lease",
        env = "ENTRA_POD_IDENTITY_LEASE_NAMESPACE"
    )]
    pub(crate) lease_namespace: String,

    /// Name of the Lease
    #[arg(
        long,
        value_name = "NAME",
        default_value = "entra-pod-identity-controller",
        help_heading = "Lease",
        env = "ENTRA_POD_IDENTITY_LEASE_NAME"
    )]
    pub(crate) lease_name: String,

    /// How long the Lease lasts without being renewed (1s to 10m); it is renewed every fifth of that
    #[arg(
        long, value_name = "DURATION", default_value = "15s", value_parser = duration, help_heading = "Lease",
        env = "ENTRA_POD_IDENTITY_LEASE_DURATION"
    )]
    lease_duration: SignedDuration,

    /// Name as a holder of the Lease; a random suffix is added, since a restarted process is another one. Default: host name
    #[arg(long, value_name = "NAME", help_heading = "Lease", env = "ENTRA_POD_IDENTITY_HOLDER")]
    holder: Option<String>,

    /// Address of /healthz and /readyz
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080",
        help_heading = "Probes and metrics",
        env = "ENTRA_POD_IDENTITY_PROBE_ADDRESS"
    )]
    pub(crate) probe_address: SocketAddr,

    /// Address of /metrics
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8888",
        help_heading = "Probes and metrics",
        env = "ENTRA_POD_IDENTITY_METRICS_ADDRESS"
    )]
    pub(crate) metrics_address: SocketAddr,

    #[command(flatten)]
    pub(crate) log: LogArgs,
}

const AFTER: &str = "\
Each flag can be given as an environment variable: its name in capitals after ENTRA_POD_IDENTITY_, such as
ENTRA_POD_IDENTITY_LEASE_DURATION=30s.

Exit codes: 0 stopped by SIGTERM or SIGINT, 1 failed (the last line says why), 2 wrong flags.";

fn duration(text: &str) -> Result<SignedDuration, String> {
    let duration: SignedDuration = text.parse().map_err(|error| format!("{error}; write 15s or 1m"))?;
    if duration < SignedDuration::from_secs(1) || duration > SignedDuration::from_mins(10) {
        return Err("from 1s to 10m".to_owned());
    }
    Ok(duration)
}

impl Args {
    pub(crate) fn lease_duration(&self) -> Duration {
        self.lease_duration.unsigned_abs()
    }

    /// Differs from every other process, this one's predecessor and successor included.
    pub(crate) fn holder(&self) -> anyhow::Result<String> {
        let name = match &self.holder {
            Some(name) => name.clone(),
            None => {
                nix::unistd::gethostname().context("the host has no name; set --holder")?.to_string_lossy().into_owned()
            }
        };
        Ok(format!("{name}_{}", uuid::Uuid::new_v4()))
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
        let args = Args::try_parse_from(["identity-controller", "--lease-duration", "3s", "--holder", "a"]).unwrap();
        assert_eq!(args.lease_duration(), Duration::from_secs(3));
        assert!(args.holder().unwrap().starts_with("a_"));
        assert_ne!(args.holder().unwrap(), args.holder().unwrap());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for flags in [
            &["--manifests", "m"][..],
            &["--state-dir", "s"],
            &["--manifests", "m", "--state-dir", "s", "--kubeconfig", "k"],
            &["--lease-duration", "0s"],
            &["--lease-duration", "soon"],
            &["--probe-address", "8080"],
            &["--log-level", "a=loud"],
        ] {
            let error = Args::try_parse_from(["identity-controller"].iter().chain(flags)).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{flags:?}");
        }
    }
}
