//! Changes to the directory while the emulators run: what an operator does in the Azure portal.
//!
//! The first change of an application, group or vault takes it over: from then on a new directory (a manifest that is seeded
//! again) changes it no more. So a test decides what is right and wrong, whatever it then writes into manifests.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    config::{Application, ClientCertificate, ClientSecret, Directory, FederatedCredential, Group, Pem, Secret},
    directory::{self, Error},
    vaults::{
        Attributes, CertificateVersion, Role, RoleAssignment, SecretVersion, Vault, VaultCertificate, VaultSecret,
    },
};

/// One change. JSON as in `{"addSecret": {"application": "…", "value": "…"}}`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Change {
    /// Only takes an application over: its credentials stay as they are from now on.
    Pin {
        /// Client id.
        application: String,
    },
    /// Adds a client secret to an application.
    AddSecret {
        /// Client id.
        application: String,
        /// The secret.
        value: Secret,
        /// When it stops working.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires: Option<Timestamp>,
        /// For how long Entra refuses it yet, in seconds.
        #[serde(default)]
        propagation_seconds: u32,
    },
    /// Removes a client secret.
    RemoveSecret {
        /// Client id.
        application: String,
        /// The secret.
        value: Secret,
    },
    /// Changes when a client secret stops working: now, when left out.
    ExpireSecret {
        /// Client id.
        application: String,
        /// The secret.
        value: Secret,
        /// When.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<Timestamp>,
    },
    /// Registers a certificate on an application.
    AddCertificate {
        /// Client id.
        application: String,
        /// The certificate, RSA.
        certificate: Pem,
        /// For how long Entra refuses it yet, in seconds.
        #[serde(default)]
        propagation_seconds: u32,
    },
    /// Removes a registered certificate.
    RemoveCertificate {
        /// Client id.
        application: String,
        /// The certificate.
        certificate: Pem,
    },
    /// Adds a federated credential to an application.
    AddFederatedCredential {
        /// Client id.
        application: String,
        /// The credential.
        credential: FederatedCredential,
        /// For how long Entra refuses it yet, in seconds.
        #[serde(default)]
        propagation_seconds: u32,
    },
    /// Removes a federated credential.
    RemoveFederatedCredential {
        /// Client id.
        application: String,
        /// The credential.
        credential: FederatedCredential,
    },
    /// Adds a member to a group, which is made when it does not exist. Tokens that were issued stay as they are.
    AddMember {
        /// Object id of the group.
        group: String,
        /// Client id, object id or resource id.
        member: String,
    },
    /// Removes a member from a group.
    RemoveMember {
        /// Object id of the group.
        group: String,
        /// As it was added.
        member: String,
    },
    /// Adds a version of a secret to a vault, which becomes the current one.
    SetSecret {
        /// The vault's host.
        vault: String,
        /// The secret's name; made when it does not exist.
        name: String,
        /// The new version.
        version: SecretVersion,
    },
    /// Adds a version of a certificate to a vault, which becomes the current one.
    SetCertificate {
        /// The vault's host.
        vault: String,
        /// The certificate's name; made when it does not exist.
        name: String,
        /// The new version.
        version: CertificateVersion,
    },
    /// Enables or disables a version, the current one when none is named.
    EnableVersion {
        /// The vault's host.
        vault: String,
        /// The secret's or certificate's name.
        name: String,
        /// Which.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<String>,
        /// Whether it can be read.
        enabled: bool,
    },
    /// Deletes a secret or certificate with all its versions.
    Delete {
        /// The vault's host.
        vault: String,
        /// The secret's or certificate's name.
        name: String,
    },
    /// Gives a role on a vault.
    Grant {
        /// The vault's host.
        vault: String,
        /// The role.
        #[serde(default)]
        role: Role,
        /// Client id, object id or resource id, or the id of a group.
        principal: String,
    },
    /// Takes all roles on a vault from somebody.
    Revoke {
        /// The vault's host.
        vault: String,
        /// As it was given.
        principal: String,
    },
}

/// What was taken over from the directory: the latest state of each.
#[derive(Clone, Debug, Default)]
pub(super) struct Taken {
    applications: Vec<(String, Application)>,
    groups: Vec<Group>,
    vaults: Vec<Vault>,
}

impl Taken {
    /// The directory with everything that was taken over put in its place.
    pub(super) fn over(&self, directory: &Directory) -> Directory {
        let mut directory = directory.clone();
        for (tenant, application) in &self.applications {
            let Some(tenant) = directory.tenants.iter_mut().find(|known| same(&known.id, tenant)) else { continue };
            put(&mut tenant.applications, application, |known| same(&known.client_id, &application.client_id));
        }
        for group in &self.groups {
            put(&mut directory.groups, group, |known| same(&known.id, &group.id));
        }
        for vault in &self.vaults {
            put(&mut directory.vaults, vault, |known| same(&known.host, &vault.host));
        }
        directory
    }

    /// Makes one change to `directory` (which has everything in its place); returns the version that it made.
    pub(super) fn change(
        &mut self,
        directory: &Directory,
        change: &Change,
        now: Timestamp,
    ) -> Result<Option<String>, Error> {
        let since = |seconds: u32| {
            (seconds > 0).then(|| now.checked_add(SignedDuration::from_secs(seconds.into())).unwrap_or(Timestamp::MAX))
        };
        match change {
            Change::Pin { application } => self.application(directory, application, |_| Ok(())),
            Change::AddSecret { application, value, expires, propagation_seconds } => {
                self.application(directory, application, |application| {
                    let since = since(*propagation_seconds);
                    application.secrets.push(ClientSecret { value: value.clone(), expires: *expires, since });
                    Ok(())
                })
            }
            Change::RemoveSecret { application, value } => self.application(directory, application, |application| {
                take(&mut application.secrets, |known| known.value.expose() == value.expose(), "client secret")
            }),
            Change::ExpireSecret { application, value, at } => {
                self.application(directory, application, |application| {
                    let mut found = false;
                    for secret in application.secrets.iter_mut().filter(|known| known.value.expose() == value.expose())
                    {
                        (secret.expires, found) = (Some(at.unwrap_or(now)), true);
                    }
                    if found { Ok(()) } else { Err(absent("client secret")) }
                })
            }
            Change::AddCertificate { application, certificate, propagation_seconds } => {
                self.application(directory, application, |application| {
                    let since = since(*propagation_seconds);
                    application.certificates.push(ClientCertificate { pem: certificate.clone(), since });
                    Ok(())
                })
            }
            Change::RemoveCertificate { application, certificate } => {
                let digest = directory::thumbprint(certificate)?;
                self.application(directory, application, |application| {
                    let is_it =
                        |known: &ClientCertificate| directory::thumbprint(&known.pem).is_ok_and(|it| it == digest);
                    take(&mut application.certificates, is_it, "certificate")
                })
            }
            Change::AddFederatedCredential { application, credential, propagation_seconds } => {
                self.application(directory, application, |application| {
                    let since = since(*propagation_seconds).or(credential.since);
                    application.federated_credentials.push(FederatedCredential { since, ..credential.clone() });
                    Ok(())
                })
            }
            Change::RemoveFederatedCredential { application, credential } => {
                self.application(directory, application, |application| {
                    let key =
                        |one: &FederatedCredential| (one.issuer.clone(), one.subject.clone(), one.audience.clone());
                    let is_it = |known: &FederatedCredential| key(known) == key(credential);
                    take(&mut application.federated_credentials, is_it, "federated credential")
                })
            }
            Change::AddMember { group, member } => self.group(directory, group, |group| {
                if !group.members.iter().any(|known| same(known, member)) {
                    group.members.push(member.clone());
                }
                Ok(())
            }),
            Change::RemoveMember { group, member } => {
                self.group(directory, group, |group| take(&mut group.members, |known| same(known, member), "member"))
            }
            Change::SetSecret { vault, name, version } => self.vault(directory, vault, |vault| {
                let mut version = version.clone();
                let made = stamped(&mut version.attributes, now);
                match vault.secrets.iter_mut().find(|known| same(&known.name, name)) {
                    Some(known) => known.versions.push(version),
                    None => vault.secrets.push(VaultSecret { name: name.clone(), versions: vec![version] }),
                }
                Ok(Some(made))
            }),
            Change::SetCertificate { vault, name, version } => self.vault(directory, vault, |vault| {
                let mut version = version.clone();
                let made = stamped(&mut version.attributes, now);
                match vault.certificates.iter_mut().find(|known| same(&known.name, name)) {
                    Some(known) => known.versions.push(version),
                    None => vault.certificates.push(VaultCertificate { name: name.clone(), versions: vec![version] }),
                }
                Ok(Some(made))
            }),
            Change::EnableVersion { vault, name, version, enabled } => self.vault(directory, vault, |vault| {
                let mut all = attributes(vault, name);
                let chosen = match version {
                    None => all.pop(),
                    Some(version) => all.into_iter().find(|known| known.version.as_deref() == Some(version)),
                };
                chosen.ok_or_else(|| absent("version"))?.enabled = *enabled;
                Ok(None)
            }),
            Change::Delete { vault, name } => self.vault(directory, vault, |vault| {
                let before = vault.secrets.len() + vault.certificates.len();
                vault.secrets.retain(|known| !same(&known.name, name));
                vault.certificates.retain(|known| !same(&known.name, name));
                if vault.secrets.len() + vault.certificates.len() == before {
                    return Err(absent("secret or certificate"));
                }
                Ok(None)
            }),
            Change::Grant { vault, role, principal } => self.vault(directory, vault, |vault| {
                vault.access.push(RoleAssignment { role: *role, principal: principal.clone() });
                Ok(None)
            }),
            Change::Revoke { vault, principal } => self.vault(directory, vault, |vault| {
                take(&mut vault.access, |known| same(&known.principal, principal), "role").map(|()| None)
            }),
        }
    }

    /// Changes an application in every tenant that has it.
    fn application(
        &mut self,
        directory: &Directory,
        client_id: &str,
        edit: impl Fn(&mut Application) -> Result<(), Error>,
    ) -> Result<Option<String>, Error> {
        let mut edited = Vec::new();
        for tenant in &directory.tenants {
            for application in tenant.applications.iter().filter(|known| same(&known.client_id, client_id)) {
                let mut application = application.clone();
                edit(&mut application).map_err(|error| of(error, &format!("application {client_id}")))?;
                edited.push((tenant.id.clone(), application));
            }
        }
        if edited.is_empty() {
            return Err(of(absent("application in any tenant"), &format!("application {client_id}")));
        }
        for (tenant, application) in edited {
            let known = &mut self.applications;
            known.retain(|(of, known)| !(same(of, &tenant) && same(&known.client_id, client_id)));
            known.push((tenant, application));
        }
        Ok(None)
    }

    fn group(
        &mut self,
        directory: &Directory,
        id: &str,
        edit: impl FnOnce(&mut Group) -> Result<(), Error>,
    ) -> Result<Option<String>, Error> {
        let known = directory.groups.iter().find(|known| same(&known.id, id)).cloned();
        let mut group = known.unwrap_or_else(|| Group { id: id.to_owned(), members: Vec::new() });
        edit(&mut group).map_err(|error| of(error, &format!("group {id}")))?;
        put(&mut self.groups, &group, |known| same(&known.id, id));
        Ok(None)
    }

    fn vault(
        &mut self,
        directory: &Directory,
        host: &str,
        edit: impl FnOnce(&mut Vault) -> Result<Option<String>, Error>,
    ) -> Result<Option<String>, Error> {
        let what = format!("vault {host}");
        let known = directory.vaults.iter().find(|known| same(&known.host, host));
        let mut vault = known.cloned().ok_or_else(|| of(absent("vault"), &what))?;
        let made = edit(&mut vault).map_err(|error| of(error, &what))?;
        put(&mut self.vaults, &vault, |known| same(&known.host, host));
        Ok(made)
    }
}

fn same(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

/// Replaces what `is_it` finds, or adds it.
fn put<T: Clone>(all: &mut Vec<T>, new: &T, is_it: impl Fn(&T) -> bool) {
    match all.iter_mut().find(|known| is_it(known)) {
        Some(known) => known.clone_from(new),
        None => all.push(new.clone()),
    }
}

fn take<T>(all: &mut Vec<T>, is_it: impl Fn(&T) -> bool, what: &str) -> Result<(), Error> {
    let before = all.len();
    all.retain(|known| !is_it(known));
    if all.len() == before { Err(absent(what)) } else { Ok(()) }
}

fn absent(what: &str) -> Error {
    Error { field: String::new(), message: format!("has no such {what}") }
}

fn of(error: Error, what: &str) -> Error {
    if error.field.is_empty() { Error { field: what.to_owned(), ..error } } else { error }
}

/// All versions of what has this name, the current one last.
fn attributes<'a>(vault: &'a mut Vault, name: &str) -> Vec<&'a mut Attributes> {
    let secrets = vault.secrets.iter_mut().filter(|known| same(&known.name, name));
    let certificates = vault.certificates.iter_mut().filter(|known| same(&known.name, name));
    secrets
        .flat_map(|secret| secret.versions.iter_mut().map(|version| &mut version.attributes))
        .chain(certificates.flat_map(|known| known.versions.iter_mut().map(|version| &mut version.attributes)))
        .collect()
}

/// Gives a new version its name and time, where it has none.
fn stamped(attributes: &mut Attributes, now: Timestamp) -> String {
    attributes.created.get_or_insert(now);
    attributes.version.get_or_insert_with(|| uuid::Uuid::new_v4().simple().to_string()).clone()
}

/// The name of a version that the directory leaves unnamed: the same for the same place.
pub(super) fn version_of(host: &str, name: &str, place: usize) -> String {
    let hash = Sha256::digest(format!("{host}/{name}/{place}").to_ascii_lowercase());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    uuid::Builder::from_bytes(bytes).into_uuid().simple().to_string()
}
