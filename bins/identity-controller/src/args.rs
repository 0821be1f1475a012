//! The command line.

use std::time::Duration;

use anyhow::Context as _;
use identity_process::{LogArgs, ProbeArgs, SourceArgs, TraceArgs, UpstreamArgs, duration_within};

use crate::audit::AuditArgs;

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

    /// Take every name in an AzureIdentityGrant for true. Needed for grants in manifests, where nothing proves who asked and who
    /// approved; with an API server the admission policy does, and this flag does away with that
    #[arg(long, env = "ENTRA_POD_IDENTITY_UNPROVEN_GRANTS")]
    pub(crate) unproven_grants: bool,

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
        long, value_name = "DURATION", default_value = "15s", value_parser = lease, help_heading = "Lease",
        env = "ENTRA_POD_IDENTITY_LEASE_DURATION"
    )]
    pub(crate) lease_duration: Duration,

    /// Name as a holder of the Lease; a random suffix is added, since a restarted process is another one. Default: host name
    #[arg(long, value_name = "NAME", help_heading = "Lease", env = "ENTRA_POD_IDENTITY_HOLDER")]
    holder: Option<String>,

    #[command(flatten)]
    pub(crate) upstream: UpstreamArgs,

    /// How often a credential that Entra takes is tried again (1m to 24h), on average; one that it does not take, sooner. What
    /// is found is the condition CredentialReady of the identity. 0s: credentials are not tried at all
    #[arg(
        long, value_name = "DURATION", default_value = "1h", value_parser = interval, help_heading = "Entra and Key Vault",
        env = "ENTRA_POD_IDENTITY_CREDENTIAL_INTERVAL"
    )]
    credential_interval: Duration,

    #[command(flatten)]
    pub(crate) audit: AuditArgs,

    #[command(flatten)]
    pub(crate) probes: ProbeArgs<8080, 8888>,

    #[command(flatten)]
    pub(crate) traces: TraceArgs,

    #[command(flatten)]
    pub(crate) log: LogArgs,
}

const AFTER: &str = "\
Each flag can be given as an environment variable: its name in capitals after ENTRA_POD_IDENTITY_, such as
ENTRA_POD_IDENTITY_LEASE_DURATION=30s. The system's trust roots are used for Entra and Key Vault; SSL_CERT_FILE or
SSL_CERT_DIR name others, --ca-bundle more.

Exit codes: 0 stopped by SIGTERM or SIGINT, 1 failed (the last line says why), 2 wrong flags.";

fn lease(text: &str) -> Result<Duration, String> {
    duration_within(text, Duration::from_secs(1)..=Duration::from_mins(10))
}

/// Zero says never.
fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration_within(text, Duration::ZERO..=Duration::from_hours(24))?;
    let often = interval > Duration::ZERO && interval < Duration::from_mins(1);
    if often { Err("0s, or from 1m to 24h".to_owned()) } else { Ok(interval) }
}

impl Args {
    /// None: credentials are not tried.
    pub(crate) fn credential_interval(&self) -> Option<Duration> {
        Some(self.credential_interval).filter(|interval| !interval.is_zero())
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
        assert_eq!(args.lease_duration, Duration::from_secs(3));
        assert!(args.holder().unwrap().starts_with("a_"));
        assert_eq!(args.credential_interval(), Some(Duration::from_hours(1)));
        let never = Args::try_parse_from(["identity-controller", "--credential-interval", "0s"]).unwrap();
        assert_eq!(never.credential_interval(), None);
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
            &["--credential-interval", "1s"],
            &["--vault-suffixes", "*"],
            &["--audit-journal-keep", "3"],
            &["--audit-on-failure", "perhaps"],
        ] {
            let error = Args::try_parse_from(["identity-controller"].iter().chain(flags)).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{flags:?}");
        }
    }
}
