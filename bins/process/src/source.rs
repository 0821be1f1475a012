//! Where objects come from: the flags.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use identity_core::runtime::{self, source::Source};
use kube::config::{KubeConfigOptions, Kubeconfig};

/// Objects come from a directory of manifests, or from an API server.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Where objects come from (none of these: the API server of the cluster this runs in)")]
pub struct SourceArgs {
    /// Directory of manifests (*.yaml, *.yml, *.json), watched; needs --state-dir
    #[arg(
        long,
        value_name = "DIR",
        env = "ENTRA_POD_IDENTITY_MANIFESTS",
        requires = "state_dir",
        conflicts_with = "kubeconfig"
    )]
    manifests: Option<PathBuf>,
    /// Directory for what is written with --manifests (assignments, status, Events); the same for controller and node
    #[arg(long, value_name = "DIR", env = "ENTRA_POD_IDENTITY_STATE_DIR", requires = "manifests")]
    state_dir: Option<PathBuf>,
    /// kubeconfig of an API server
    #[arg(long, value_name = "FILE", env = "ENTRA_POD_IDENTITY_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
}

impl SourceArgs {
    /// Whether objects come from a directory.
    pub const fn is_manifests(&self) -> bool {
        self.manifests.is_some()
    }

    /// Opens it. With an API server: reads the configuration, asks nothing yet.
    pub async fn open(&self) -> anyhow::Result<Source> {
        if let (Some(manifests), Some(state)) = (&self.manifests, &self.state_dir) {
            if !manifests.is_dir() {
                bail!("--manifests {}: there is no such directory", manifests.display());
            }
            if state.exists() && !state.is_dir() {
                bail!("--state-dir {}: this is no directory", state.display());
            }
            return Ok(Source::manifests(manifests, state));
        }
        let config = match &self.kubeconfig {
            Some(file) => {
                let read = Kubeconfig::read_from(file).with_context(|| format!("--kubeconfig {}", file.display()))?;
                kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                    .await
                    .with_context(|| format!("--kubeconfig {}", file.display()))?
            }
            None => kube::Config::incluster().context(
                "this does not run in a cluster; name a kubeconfig (--kubeconfig FILE) or a directory of manifests \
                 (--manifests DIR --state-dir DIR)",
            )?,
        };
        let client = runtime::client(config).context("cannot make a client of the API server")?;
        Ok(Source::kubernetes(client))
    }
}
