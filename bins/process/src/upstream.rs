//! Where credentials go and may come from: the flags that both daemons have, since both try credentials.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use identity_broker::{
    AuthorityHosts, DEFAULT_HOSTS, RotationConfig, UpstreamConfig,
    vault::{DEFAULT_SUFFIXES, VaultSuffixes},
};
use rustls::ClientConfig;

use crate::{duration_within, tls};

/// Entra and Key Vault.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Entra and Key Vault")]
pub struct UpstreamArgs {
    /// Hosts that credentials may be sent to, whatever spec.adEndpoint of an identity says: HOST or HOST:PORT
    #[arg(
        long, value_name = "HOST,…", value_delimiter = ',', default_values = DEFAULT_HOSTS, num_args = 1.., value_parser = host,
        env = "ENTRA_POD_IDENTITY_AUTHORITY_HOSTS"
    )]
    authority_hosts: Vec<String>,

    /// Key Vaults that credentials may be read from, whatever spec.keyVault.vaultURL of an identity says: hosts of one more
    /// name before SUFFIX or SUFFIX:PORT. It is also what their tokens are for: https://SUFFIX
    #[arg(
        long, value_name = "SUFFIX,…", value_delimiter = ',', default_values = DEFAULT_SUFFIXES, num_args = 1..,
        value_parser = suffix, env = "ENTRA_POD_IDENTITY_VAULT_SUFFIXES"
    )]
    vault_suffixes: Vec<String>,

    /// Certificates (PEM) of authorities that are trusted beside the system's, such as those of a private cloud or a proxy that
    /// inspects TLS; read when the program starts
    #[arg(long, value_name = "FILE", env = "ENTRA_POD_IDENTITY_CA_BUNDLE")]
    ca_bundle: Option<PathBuf>,

    /// For so long Entra may not know a new secret or certificate yet: until then its refusal is not final, and the former one
    /// serves (from 1s to 24h)
    #[arg(
        long, value_name = "DURATION", default_value = "10m", value_parser = propagation,
        env = "ENTRA_POD_IDENTITY_CREDENTIAL_PROPAGATION"
    )]
    credential_propagation: Duration,
}

impl UpstreamArgs {
    /// What they say, and everything else at its default.
    pub fn config(&self) -> UpstreamConfig {
        UpstreamConfig {
            authority_hosts: AuthorityHosts::new(&self.authority_hosts),
            vault_suffixes: VaultSuffixes::new(&self.vault_suffixes),
            rotation: RotationConfig { propagation: self.credential_propagation, ..RotationConfig::default() },
            ..UpstreamConfig::default()
        }
    }

    /// For connections to them. Reads trust roots.
    pub fn tls(&self) -> anyhow::Result<ClientConfig> {
        tls::client_config(self.ca_bundle.as_deref())
    }
}

fn propagation(text: &str) -> Result<Duration, String> {
    duration_within(text, Duration::from_secs(1)..=Duration::from_hours(24))
}

fn is_name(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn host(text: &str) -> Result<String, String> {
    if !is_name(text) {
        return Err("HOST or HOST:PORT, such as login.microsoftonline.com; no scheme, no path, no wildcard".to_owned());
    }
    Ok(text.to_owned())
}

fn suffix(text: &str) -> Result<String, String> {
    let name = text.strip_prefix('.').unwrap_or(text);
    if !is_name(name) || !name.contains('.') {
        return Err("SUFFIX or SUFFIX:PORT, such as vault.azure.net; no scheme, no path, no wildcard".to_owned());
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Daemon {
        #[command(flatten)]
        upstream: UpstreamArgs,
    }

    fn parse(flags: &[&str]) -> Result<UpstreamArgs, clap::Error> {
        Daemon::try_parse_from(["daemon"].iter().chain(flags)).map(|daemon| daemon.upstream)
    }

    #[test]
    fn hosts_and_suffixes_are_names() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.authority_hosts, DEFAULT_HOSTS);
        assert_eq!(args.vault_suffixes, DEFAULT_SUFFIXES);
        assert_eq!(args.config().rotation.propagation, Duration::from_mins(10));
        let args =
            parse(&["--authority-hosts", "a,b:8443", "--vault-suffixes", ".vault.example:8443,v.example"]).unwrap();
        assert_eq!(args.authority_hosts, ["a", "b:8443"]);
        assert_eq!(args.vault_suffixes, ["vault.example:8443", "v.example"]);
        for flags in [
            ["--authority-hosts", ""],
            ["--authority-hosts", "https://login.microsoftonline.com"],
            ["--authority-hosts", "login.microsoftonline.com,*.example.org"],
            ["--authority-hosts", "host:99999"],
            ["--vault-suffixes", ""],
            // Every host of a top-level domain would be a vault.
            ["--vault-suffixes", "net"],
            ["--vault-suffixes", "*.vault.azure.net"],
            ["--vault-suffixes", "https://vault.azure.net"],
            ["--credential-propagation", "0s"],
            ["--credential-propagation", "25h"],
        ] {
            assert_eq!(parse(&flags).unwrap_err().exit_code(), 2, "{flags:?}");
        }
    }
}
