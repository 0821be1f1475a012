//! Becoming a process inside a pod or on the node: network namespace, and a mount namespace in which only a few files differ.
//!
//! Must run while the process has one thread (a user namespace cannot be joined otherwise): before any runtime is started.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    unistd::{Gid, Uid, getegid, geteuid},
};

use super::network::Error;
use crate::process::command;

/// Where containers find their service account.
const SERVICE_ACCOUNT: &str = "secrets/kubernetes.io/serviceaccount";

/// What to enter.
#[derive(Clone, Debug, Default)]
pub struct Enter {
    /// The network namespace's file.
    pub netns: PathBuf,
    /// A process whose user namespace is joined first, and in whose mount namespace `netns` is looked up.
    pub join: Option<u32>,
    /// `(file, what it replaces)`.
    pub binds: Vec<(PathBuf, PathBuf)>,
    /// Directory to appear as the service account's files.
    pub service_account: Option<PathBuf>,
}

impl Enter {
    /// Enters. On success the calling process is inside.
    ///
    /// # Errors
    /// As the system says: the namespace is gone, or the rights are missing.
    pub fn enter(&self) -> Result<(), Error> {
        let (user, group) = (geteuid(), getegid());
        let mut netns = self.netns.clone();
        if let Some(pid) = self.join {
            let path = format!("/proc/{pid}/ns/user");
            let joined = File::open(&path).and_then(|file| Ok(setns(file, CloneFlags::CLONE_NEWUSER)?));
            joined.map_err(|source| Error::system(format!("cannot join the lab's user namespace {path}"), source))?;
            netns = PathBuf::from(format!("/proc/{pid}/root{}", self.netns.display()));
        }
        let joined = File::open(&netns).and_then(|file| Ok(setns(file, CloneFlags::CLONE_NEWNET)?));
        joined
            .map_err(|source| Error::system(format!("cannot enter network namespace {}", netns.display()), source))?;
        let private = unshare(CloneFlags::CLONE_NEWNS).and_then(|()| {
            // What the host unmounts later goes here too (else a removed network namespace would live on); nothing goes back.
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        });
        private.map_err(|source| Error::system("cannot make a mount namespace", source))?;
        for (from, to) in &self.binds {
            // A file that this machine does not have needs no replacement.
            if to.exists() {
                bind(from, to)?;
            }
        }
        if let Some(directory) = &self.service_account {
            place_service_account(directory)?;
        }
        if self.join.is_some() {
            map_user(user, group, Uid::from_raw(0), Gid::from_raw(0))?;
        }
        Ok(())
    }

    /// Enters and becomes `arguments`. Returns only when that fails, with the exit code that shells use.
    pub fn exec(&self, arguments: &[std::ffi::OsString], environment: &[(&str, &str)]) -> (u8, String) {
        let Some((program, rest)) = arguments.split_first() else {
            return (125, "no command given".to_owned());
        };
        if let Err(error) = self.enter() {
            return (125, error.to_string());
        }
        let error = command(program).args(rest).envs(environment.iter().copied()).exec();
        let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
        (code, format!("cannot run {}: {error}", program.to_string_lossy()))
    }
}

/// Makes the calling process root of a new user namespace with a mount namespace of its own.
///
/// # Errors
/// The kernel does not allow it; the message says what would.
pub fn become_root() -> Result<(), Error> {
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(|source| {
        Error::system(
            "not root, and this kernel gives users no namespaces of their own. Run as root, or allow it: \
             sysctl user.max_user_namespaces=10000 (and, where they exist, kernel.unprivileged_userns_clone=1, \
             kernel.apparmor_restrict_unprivileged_userns=0)",
            source,
        )
    })?;
    write_maps(Uid::from_raw(0), Gid::from_raw(0), user, group)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(|source| Error::system("cannot make a mount namespace", source))
}

/// Shows the caller its own user again instead of root.
fn map_user(user: Uid, group: Gid, outer_user: Uid, outer_group: Gid) -> Result<(), Error> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|source| Error::system("cannot make a user namespace", source))?;
    write_maps(user, group, outer_user, outer_group)
}

fn write_maps(user: Uid, group: Gid, outer_user: Uid, outer_group: Gid) -> Result<(), Error> {
    let put = |file: &str, text: String| {
        let path = format!("/proc/self/{file}");
        fs::write(&path, text).map_err(|source| Error::system(format!("cannot write {path}"), source))
    };
    put("setgroups", "deny".to_owned())?;
    put("uid_map", format!("{user} {outer_user} 1"))?;
    put("gid_map", format!("{group} {outer_group} 1"))
}

fn bind(from: &Path, to: &Path) -> Result<(), Error> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(|source| Error::system(format!("cannot mount {} over {}", from.display(), to.display()), source))
}

/// Shows `directory` at `/var/run/secrets/kubernetes.io/serviceaccount`. Where there is no such directory to mount on, none is
/// made on the host: this mount namespace gets a `/run` of its own with everything the real one has, and the mount point.
fn place_service_account(directory: &Path) -> Result<(), Error> {
    let run = fs::canonicalize("/var/run").unwrap_or_else(|_| PathBuf::from("/run"));
    let target = run.join(SERVICE_ACCOUNT);
    if target.is_dir() {
        return bind(directory, &target);
    }
    let failed =
        |source: io::Error| Error::system(format!("cannot make {} in a mount namespace", target.display()), source);
    // The new tree is built on a directory that this hides for a moment, so what is needed from there is opened before.
    let opened = File::open(directory).map_err(failed)?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    let stage = Path::new("/tmp");
    mount(Some("tmpfs"), stage, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        .map_err(|error| failed(error.into()))?;
    for entry in fs::read_dir(&run).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let here = stage.join(entry.file_name());
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path()).map_err(failed)?, &here).map_err(failed)?;
            continue;
        }
        if kind.is_dir() {
            fs::create_dir(&here).map_err(failed)?;
        } else {
            OpenOptions::new().write(true).create_new(true).open(&here).map_err(failed)?;
        }
        // What cannot be bound (a vanished socket, say) is left out rather than failing the command.
        let _ = bind(&entry.path(), &here);
    }
    let inner = stage.join(SERVICE_ACCOUNT);
    fs::create_dir_all(&inner).map_err(failed)?;
    bind(&source, &inner)?;
    drop(opened);
    mount(Some(stage), &run, None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(|error| failed(error.into()))
}
