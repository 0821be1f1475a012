//! `identity-lab azure`: what an operator does in the Azure portal, done to the emulators.

use std::{fs, io::Write as _, path::PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use identity_lab::emulator::{
    Change, FederatedCredential, TOKEN_EXCHANGE, control,
    vaults::{Attributes, CertificateVersion, KeyFormat, Role, SecretVersion},
};
use identity_lab::node::place::Place;
use jiff::{SignedDuration, Timestamp};

/// The first change of an application, group or vault takes it over from the manifests: what is seeded later changes it no more.
#[derive(Debug, Subcommand)]
pub(crate) enum Azure {
    /// Only takes an application over, so that nothing that is written into manifests becomes right by it.
    Pin {
        /// Client id.
        application: String,
    },
    /// Client secrets of an application.
    #[command(subcommand)]
    Secret(Secret),
    /// Certificates of an application.
    #[command(subcommand)]
    Certificate(Certificate),
    /// Federated credentials of an application.
    #[command(subcommand)]
    Federated(Federated),
    /// Members of a directory group (made when it does not exist). A member's tokens say so from the next one on.
    #[command(subcommand)]
    Group(Group),
    /// Key Vaults.
    #[command(subcommand)]
    Vault(Vault),
    /// Any change, as JSON: `{"addSecret": {"application": "…", "value": "…"}}`.
    Change {
        /// The change.
        json: String,
    },
    /// Print what Azure knows, as JSON, secrets included.
    Show,
    /// How often each thing was asked for (the log of requests is `requests.jsonl` in the lab's directory).
    Requests {
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Begin to count anew, after printing.
        #[arg(long)]
        reset: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Secret {
    /// Add one.
    Add {
        /// Client id.
        application: String,
        /// The secret.
        value: String,
        /// When it stops working (RFC 3339).
        #[arg(long, value_name = "TIME")]
        expires: Option<Timestamp>,
        #[command(flatten)]
        delay: Delay,
    },
    /// Remove one.
    Remove {
        /// Client id.
        application: String,
        /// The secret.
        value: String,
    },
    /// Change when one stops working.
    Expire {
        /// Client id.
        application: String,
        /// The secret.
        value: String,
        /// When (RFC 3339) [default: now].
        #[arg(long, value_name = "TIME")]
        at: Option<Timestamp>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Delay {
    /// For how long Entra does not know it yet, such as 30s.
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    propagation: SignedDuration,
}

impl Delay {
    fn seconds(&self) -> anyhow::Result<u32> {
        u32::try_from(self.propagation.as_secs()).context("--propagation")
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Certificate {
    /// Register one.
    Add {
        /// Client id.
        application: String,
        /// File with the certificate, PEM.
        file: PathBuf,
        #[command(flatten)]
        delay: Delay,
    },
    /// Remove one.
    Remove {
        /// Client id.
        application: String,
        /// File with the certificate, PEM.
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Federated {
    /// Add one.
    Add {
        #[command(flatten)]
        credential: Credential,
        #[command(flatten)]
        delay: Delay,
    },
    /// Remove one.
    Remove {
        #[command(flatten)]
        credential: Credential,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Credential {
    /// Client id.
    application: String,
    /// Issuer, as in the claim `iss`.
    issuer: String,
    /// Subject: `system:serviceaccount:NAMESPACE:NAME`.
    subject: String,
    /// Audience.
    #[arg(long, default_value = TOKEN_EXCHANGE)]
    audience: String,
}

impl Credential {
    fn taken_apart(self) -> (String, FederatedCredential) {
        let Self { application, issuer, subject, audience } = self;
        (application, FederatedCredential { issuer, subject, audience, since: None })
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Group {
    /// Add a member.
    Add {
        /// Object id of the group.
        group: String,
        /// Client id, object id or resource id.
        member: String,
    },
    /// Remove a member.
    Remove {
        /// Object id of the group.
        group: String,
        /// Client id, object id or resource id.
        member: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Vault {
    /// Add a version of a secret, which becomes the current one; prints its name.
    Secret {
        /// The vault's host, such as demo.vault.azure.net.
        vault: String,
        /// The secret's name.
        name: String,
        /// The value.
        value: String,
        /// Its content type.
        #[arg(long)]
        content_type: Option<String>,
        #[command(flatten)]
        version: Version,
    },
    /// Add a version of a certificate, which becomes the current one; prints its name.
    Certificate {
        /// The vault's host.
        vault: String,
        /// The certificate's name.
        name: String,
        /// File with the certificate, PEM.
        certificate: PathBuf,
        /// File with its private key, PEM.
        key: PathBuf,
        /// Its private key is read as PEM instead of PKCS#12.
        #[arg(long)]
        pem: bool,
        #[command(flatten)]
        version: Version,
    },
    /// Let a version be read again.
    Enable {
        /// The vault's host.
        vault: String,
        /// Name of a secret or certificate.
        name: String,
        /// The version [default: the current one].
        #[arg(value_name = "VERSION")]
        which: Option<String>,
    },
    /// Keep a version from being read.
    Disable {
        /// The vault's host.
        vault: String,
        /// Name of a secret or certificate.
        name: String,
        /// The version [default: the current one].
        #[arg(value_name = "VERSION")]
        which: Option<String>,
    },
    /// Delete a secret or certificate.
    Delete {
        /// The vault's host.
        vault: String,
        /// Its name.
        name: String,
    },
    /// Give a role.
    Grant {
        /// The vault's host.
        vault: String,
        /// Client id, object id or resource id, or the id of a group.
        principal: String,
        /// secrets-user, certificate-user, reader or administrator.
        #[arg(long, default_value = "secrets-user", value_parser = role)]
        role: Role,
    },
    /// Take all roles from somebody.
    Revoke {
        /// The vault's host.
        vault: String,
        /// As the role was given.
        principal: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Version {
    /// When it says it expires (RFC 3339).
    #[arg(long, value_name = "TIME")]
    expires: Option<Timestamp>,
    /// From when on it says it is valid (RFC 3339).
    #[arg(long, value_name = "TIME")]
    not_before: Option<Timestamp>,
    /// It cannot be read.
    #[arg(long)]
    disabled: bool,
}

impl From<Version> for Attributes {
    fn from(version: Version) -> Self {
        let Version { expires, not_before, disabled } = version;
        Self { expires, not_before, enabled: !disabled, ..Self::default() }
    }
}

fn role(name: &str) -> Result<Role, String> {
    match name {
        "secrets-user" => Ok(Role::SecretsUser),
        "certificate-user" => Ok(Role::CertificateUser),
        "reader" => Ok(Role::Reader),
        "administrator" => Ok(Role::Administrator),
        _ => Err("there are secrets-user, certificate-user, reader and administrator".to_owned()),
    }
}

/// Obeys, and returns what is to be printed.
pub(crate) async fn obey(place: &Place, azure: Azure) -> anyhow::Result<String> {
    let socket = place.file("emulator.sock");
    let change = match azure {
        Azure::Show => {
            return Ok(format!("{}\n", serde_json::to_string_pretty(&control::directory(&socket).await?)?));
        }
        Azure::Requests { json, reset } => {
            let counts = control::counts(&socket).await?;
            if reset {
                control::reset_counts(&socket).await?;
            }
            if json {
                return Ok(format!("{}\n", serde_json::to_string_pretty(&counts)?));
            }
            let mut text = Vec::new();
            writeln!(text, "REQUESTS  GRANTED  SERVICE   FOR")?;
            for count in counts {
                let service = format!("{:?}", count.service).to_lowercase();
                writeln!(text, "{:>8}  {:>7}  {service:<8}  {}", count.requests, count.granted, count.key)?;
            }
            return Ok(String::from_utf8(text)?);
        }
        other => change(other)?,
    };
    let made = control::change(&socket, &change).await?;
    Ok(made.map(|version| version + "\n").unwrap_or_default())
}

fn change(azure: Azure) -> anyhow::Result<Change> {
    let read = |file: PathBuf| fs::read_to_string(&file).with_context(|| file.display().to_string());
    Ok(match azure {
        Azure::Pin { application } => Change::Pin { application },
        Azure::Secret(Secret::Add { application, value, expires, delay }) => {
            Change::AddSecret { application, value: value.into(), expires, propagation_seconds: delay.seconds()? }
        }
        Azure::Secret(Secret::Remove { application, value }) => {
            Change::RemoveSecret { application, value: value.into() }
        }
        Azure::Secret(Secret::Expire { application, value, at }) => {
            Change::ExpireSecret { application, value: value.into(), at }
        }
        Azure::Certificate(Certificate::Add { application, file, delay }) => Change::AddCertificate {
            application,
            certificate: read(file)?.into(),
            propagation_seconds: delay.seconds()?,
        },
        Azure::Certificate(Certificate::Remove { application, file }) => {
            Change::RemoveCertificate { application, certificate: read(file)?.into() }
        }
        Azure::Federated(Federated::Add { credential, delay }) => {
            let (application, credential) = credential.taken_apart();
            Change::AddFederatedCredential { application, credential, propagation_seconds: delay.seconds()? }
        }
        Azure::Federated(Federated::Remove { credential }) => {
            let (application, credential) = credential.taken_apart();
            Change::RemoveFederatedCredential { application, credential }
        }
        Azure::Group(Group::Add { group, member }) => Change::AddMember { group, member },
        Azure::Group(Group::Remove { group, member }) => Change::RemoveMember { group, member },
        Azure::Vault(Vault::Secret { vault, name, value, content_type, version }) => Change::SetSecret {
            vault,
            name,
            version: SecretVersion { value: value.into(), content_type, attributes: version.into() },
        },
        Azure::Vault(Vault::Certificate { vault, name, certificate, key, pem, version }) => Change::SetCertificate {
            vault,
            name,
            version: CertificateVersion {
                certificate: read(certificate)?.into(),
                key: read(key)?.into(),
                content_type: if pem { KeyFormat::Pem } else { KeyFormat::Pkcs12 },
                attributes: version.into(),
            },
        },
        Azure::Vault(Vault::Enable { vault, name, which }) => {
            Change::EnableVersion { vault, name, version: which, enabled: true }
        }
        Azure::Vault(Vault::Disable { vault, name, which }) => {
            Change::EnableVersion { vault, name, version: which, enabled: false }
        }
        Azure::Vault(Vault::Delete { vault, name }) => Change::Delete { vault, name },
        Azure::Vault(Vault::Grant { vault, principal, role }) => Change::Grant { vault, role, principal },
        Azure::Vault(Vault::Revoke { vault, principal }) => Change::Revoke { vault, principal },
        Azure::Change { json } => serde_json::from_str(&json).context("not a change")?,
        Azure::Show | Azure::Requests { .. } => anyhow::bail!("changes nothing"),
    })
}
