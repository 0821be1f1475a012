//! The command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::{SignedDuration, civil::Date};

use crate::azure::Azure;

/// A node without a cluster: emulators of Entra, IMDS and Key Vault, pods in network namespaces, and the two binaries between them.
#[derive(Debug, Parser)]
#[command(name = "identity-lab", version, propagate_version = true)]
pub(crate) struct Cli {
    /// Where the lab keeps its state (created by `up`, removed by `down`). Labs in different directories run side by side.
    #[arg(long, global = true, env = "IDENTITY_LAB_DIR", value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start emulators, node, the manifests' pods and both binaries; return when everything is ready.
    Up(Up),
    /// Run a command inside a pod: its network, hosts file, resolver and service-account files; everything else is the caller's.
    Exec(Exec),
    /// Switch faults on or off: `fault NAME on|off [NAME on|off]…`.
    ///
    /// Of Entra: entra-down entra-429 entra-503 entra-hang. Of IMDS: imds-down imds-404 imds-410 imds-429
    /// imds-429-once imds-500 imds-503 imds-hang. Of Key Vault: vault-down vault-forbidden vault-429 vault-503 vault-hang.
    /// Of the API server, with --kube: api-down.
    Fault {
        /// Pairs of a fault's name and `on` or `off`.
        #[arg(required = true, num_args = 2.., value_name = "NAME on|off")]
        switches: Vec<String>,
    },
    /// Change what Azure knows while the lab runs: credentials, groups, Key Vaults; count what was asked of it.
    #[command(subcommand)]
    Azure(Azure),
    /// Show or move the lab's own clock: what both binaries, the emulators and what the lab stamps go by.
    ///
    /// For a lab that was started with `up --clock`. Timers (the monotonic clock) and kube-apiserver keep the machine's time.
    Clock {
        #[command(subcommand)]
        change: Option<Clock>,
    },
    /// Make a key with a self-signed certificate for an application: certificate.pem, key.pem, bundle.pem (both) and
    /// credential.p12 in a directory.
    Credential(NewCredential),
    /// Show the lab. Succeeds when it is ready and all its processes run.
    Status,
    /// Take the lab down, whatever state it is in; nothing stays behind.
    Down,
    /// A Kubernetes control plane on loopback, without node or product.
    #[command(subcommand)]
    Kube(Kube),
    /// Run the emulators.
    #[command(hide = true)]
    Emulate {
        #[arg(long)]
        config: PathBuf,
    },
    /// Run a command in a network namespace with some files replaced.
    #[command(hide = true)]
    Enter {
        #[arg(long)]
        netns: PathBuf,
        /// `FILE=REPLACED`
        #[arg(long)]
        bind: Vec<String>,
        /// `NAME=VALUE` for the command.
        #[arg(long)]
        env: Vec<String>,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct Up {
    /// Directory of manifests (*.yaml, *.yml, *.json) to follow; `lab.yaml` in it sets up the lab itself.
    #[arg(long, value_name = "DIR")]
    pub(crate) manifests: Option<PathBuf>,
    /// Keep the objects in a real kube-apiserver.
    #[arg(long)]
    pub(crate) kube: bool,
    /// Stay in the foreground until `down` or a signal.
    #[arg(long)]
    pub(crate) hold: bool,
    /// The project's deploy directory, for --kube [default: that of the checkout this program was built in].
    #[arg(long, value_name = "DIR")]
    pub(crate) deploy: Option<PathBuf>,
    /// Have both binaries and the emulators follow a clock of the lab's own, which begins now or at this time (RFC 3339).
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "now")]
    pub(crate) clock: Option<String>,
    /// Only node, pods and emulators.
    #[arg(long, hide = true)]
    pub(crate) no_binaries: bool,
    /// The directory is prepared, and nobody sits at the terminal.
    #[arg(long, hide = true)]
    pub(crate) detached: bool,
    #[command(flatten)]
    pub(crate) assets: Assets,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Clock {
    /// Set it to a time, from where it goes on.
    Set {
        /// Such as 2026-11-27T23:59:00-08:00.
        time: String,
    },
    /// Set it ahead of the machine's by this much, or behind: `offset 1h30m`, `offset -10s`.
    Offset {
        /// Such as 1h30m or -10s.
        #[arg(allow_hyphen_values = true)]
        by: SignedDuration,
    },
    /// Back to the machine's time.
    Off,
}

#[derive(Debug, Args)]
pub(crate) struct NewCredential {
    /// Where to.
    pub(crate) directory: PathBuf,
    /// The certificate's common name.
    #[arg(long, default_value = "identity-lab")]
    pub(crate) name: String,
    /// First day of its validity.
    #[arg(long, value_name = "DATE", default_value = "2020-01-01")]
    pub(crate) from: Date,
    /// The day on which its validity ends.
    #[arg(long, value_name = "DATE", default_value = "2049-12-31")]
    pub(crate) to: Date,
    /// Password of the PKCS#12 file.
    #[arg(long, default_value = "")]
    pub(crate) password: String,
}

#[derive(Debug, Args)]
pub(crate) struct Assets {
    /// Directory with etcd, kube-apiserver and kube-controller-manager [default: where `cargo xtask` builds them].
    #[arg(long, env = "KUBEBUILDER_ASSETS", value_name = "DIR")]
    pub(crate) assets: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Which environment to imitate by variables; `imds` adds none.
    #[arg(long, value_enum, default_value_t = Style::Imds)]
    pub(crate) style: Style,
    /// NAMESPACE/POD
    #[arg(value_name = "NAMESPACE/POD")]
    pub(crate) pod: String,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Style {
    /// A virtual machine.
    Imds,
    /// Azure App Service: IDENTITY_ENDPOINT and IDENTITY_HEADER.
    AppService,
    /// Azure Cloud Shell: MSI_ENDPOINT.
    CloudShell,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Kube {
    /// Start etcd, kube-apiserver and kube-controller-manager; print the administrator's kubeconfig.
    Up {
        #[command(flatten)]
        assets: Assets,
    },
    /// Stop them and remove their data.
    Down,
    /// Hold them.
    #[command(hide = true)]
    Hold {
        #[command(flatten)]
        assets: Assets,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_command_line_is_well_formed() {
        Cli::command().debug_assert();
        let up = Cli::try_parse_from(["identity-lab", "up", "--clock", "--kube"]).unwrap();
        assert!(matches!(up.command, Command::Up(Up { clock: Some(start), kube: true, .. }) if start == "now"));
        let offset = Cli::try_parse_from(["identity-lab", "clock", "offset", "-1h30m"]).unwrap();
        assert!(
            matches!(offset.command, Command::Clock { change: Some(Clock::Offset { by }) } if by.as_secs() == -5400)
        );
    }
}
