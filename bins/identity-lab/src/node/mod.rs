//! A node without a cluster: its network namespace, its pods' namespaces, Azure's, and what runs in them.
//!
//! One process holds a lab ([`hold::hold`]); everybody else finds it by its directory ([`place::Place`]) and the record that it
//! keeps there ([`record::Record`]).

mod accounts;
mod azure;
pub mod cleanup;
pub mod clock;
mod cluster;
mod deployed;
pub mod enter;
pub mod hold;
pub mod kubelet;
pub mod network;
pub mod place;
mod pods;
pub mod projected;
mod ready;
pub mod record;
mod relay;
pub mod sync;
mod watch;

use std::{io, path::PathBuf};

/// What can go wrong with a lab.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One is running.
    #[error(
        "a lab is already running in {directory} (pid {pid}): `identity-lab down` ends it, `--directory` or IDENTITY_LAB_DIR names another place"
    )]
    Running {
        /// Where.
        directory: PathBuf,
        /// Who holds it.
        pid: u32,
    },
    /// The directory is used for something else.
    #[error("{directory} is not empty and not a lab's: name another place by `--directory` or IDENTITY_LAB_DIR")]
    NotALab {
        /// Which.
        directory: PathBuf,
    },
    /// Something of the lab stays.
    #[error("{directory} could not be removed: see what is still written there, end that, and say `down` again")]
    NotRemoved {
        /// Which.
        directory: PathBuf,
    },
    /// Something that the lab needs is missing.
    #[error("`{program}` is needed and cannot be run ({source}): apt-get install {package}")]
    Missing {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
        /// Why it cannot be run.
        source: io::Error,
    },
    /// A file.
    #[error("lab files: {0}")]
    Io(#[from] io::Error),
    /// The network.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// A process.
    #[error(transparent)]
    Process(#[from] crate::process::Error),
    /// A process ended instead of being ready, or takes too long.
    #[error("{name} is not ready: {why}\nthe end of {log}:\n{words}")]
    NotReady {
        /// Which.
        name: String,
        /// What happened.
        why: String,
        /// Its log.
        log: PathBuf,
        /// The end of it.
        words: String,
    },
    /// Keys and certificates.
    #[error("cannot make certificates: {0}")]
    Authority(String),
    /// `lab.yaml`.
    #[error("{path}: {message}")]
    Overrides {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A file that the lab writes.
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Watching a directory.
    #[error("cannot watch the manifests: {0}")]
    Watch(#[from] notify::Error),
    /// A time that is none.
    #[error("clock: {message}")]
    Clock {
        /// What is wrong with it.
        message: String,
    },
    /// The library that shows programs another time is missing.
    #[error("libfaketime is needed for a clock of the lab's own and is not installed: apt-get install faketime")]
    NoFaketime,
    /// The API server.
    #[error(transparent)]
    Kube(#[from] crate::kube::Error),
    /// Told to end before everything was ready.
    #[error("told to end before the lab was ready")]
    Interrupted,
    /// A process that we may not signal.
    #[error("cannot signal pid {pid}: {source}; is it another user's lab?")]
    Signal {
        /// Which.
        pid: u32,
        /// The system's answer.
        source: io::Error,
    },
}
