//! Changing running emulators from another process: one line of JSON each way on a Unix socket, which, unlike a loopback
//! address, reaches across network namespaces.

use std::{
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
};
use tokio_util::sync::CancellationToken;

use super::{Change, Count, Shared, config::Directory, fault::Fault};

/// For one exchange.
const PATIENCE: Duration = Duration::from_secs(10);
/// A directory of some thousand applications with certificates.
const LONGEST_LINE: u64 = 16 * 1024 * 1024;

/// What can go wrong on the socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers there.
    #[error("cannot reach the emulators on {path}: {source}; is the lab running?")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// What came back is not an answer.
    #[error("the emulators on {path} gave an unreadable answer: {source}")]
    Unreadable {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// They refuse.
    #[error("{0}")]
    Refused(String),
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Order {
    Fault { name: String, on: bool },
    Faults {},
    Directory(Box<Directory>),
    Change(Box<Change>),
    Show {},
    Counts {},
    ResetCounts {},
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
enum Outcome {
    /// The faults that are on now.
    Faults(Vec<Fault>),
    /// The version that a change made, if it made one.
    Changed(Option<String>),
    Directory(Box<Directory>),
    Counts(Vec<Count>),
    Refused(String),
}

/// Turns the fault with this name on or off; returns those that are on now.
///
/// # Errors
/// No emulator on this socket; no such fault (the error lists those there are).
pub async fn set_fault(socket: &Path, name: &str, on: bool) -> Result<Vec<Fault>, Error> {
    match order(socket, &Order::Fault { name: name.to_owned(), on }).await? {
        Outcome::Faults(faults) => Ok(faults),
        _ => Err(unexpected()),
    }
}

/// The faults that are on.
///
/// # Errors
/// No emulator on this socket.
pub async fn faults(socket: &Path) -> Result<Vec<Fault>, Error> {
    match order(socket, &Order::Faults {}).await? {
        Outcome::Faults(faults) => Ok(faults),
        _ => Err(unexpected()),
    }
}

/// Replaces tenants, applications, identities, groups, vaults and issuers, but for those that a [`change`] took over. Tokens
/// that were issued stay valid, as in Azure; IMDS forgets those that it keeps for identities that are gone.
///
/// # Errors
/// No emulator on this socket; the directory is wrong (and the old one stays).
pub async fn set_directory(socket: &Path, directory: &Directory) -> Result<(), Error> {
    order(socket, &Order::Directory(Box::new(directory.clone()))).await.map(drop)
}

/// Makes one change; returns the version of a secret or certificate that it made.
///
/// # Errors
/// No emulator on this socket; what is to be changed does not exist, or would be wrong afterwards (and all stays as it was).
pub async fn change(socket: &Path, change: &Change) -> Result<Option<String>, Error> {
    match order(socket, &Order::Change(Box::new(change.clone()))).await? {
        Outcome::Changed(made) => Ok(made),
        _ => Err(unexpected()),
    }
}

/// What is in force: the directory with all changes, secrets included.
///
/// # Errors
/// No emulator on this socket.
pub async fn directory(socket: &Path) -> Result<Directory, Error> {
    match order(socket, &Order::Show {}).await? {
        Outcome::Directory(directory) => Ok(*directory),
        _ => Err(unexpected()),
    }
}

/// How often each thing was asked for, since the start or the last [`reset_counts`].
///
/// # Errors
/// No emulator on this socket.
pub async fn counts(socket: &Path) -> Result<Vec<Count>, Error> {
    match order(socket, &Order::Counts {}).await? {
        Outcome::Counts(counts) => Ok(counts),
        _ => Err(unexpected()),
    }
}

/// Begins to count anew.
///
/// # Errors
/// No emulator on this socket.
pub async fn reset_counts(socket: &Path) -> Result<(), Error> {
    order(socket, &Order::ResetCounts {}).await.map(drop)
}

fn unexpected() -> Error {
    Error::Refused("the emulators answered something else; are they of another version?".to_owned())
}

async fn order(socket: &Path, order: &Order) -> Result<Outcome, Error> {
    let unreachable = |source| Error::Unreachable { path: socket.to_owned(), source };
    let unreadable = |source| Error::Unreadable { path: socket.to_owned(), source };
    let mut line = serde_json::to_vec(order).map_err(unreadable)?;
    line.push(b'\n');
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(&line).await?;
        let mut answer = Vec::new();
        stream.take(LONGEST_LINE).read_to_end(&mut answer).await?;
        Ok(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, exchange)
        .await
        .map_err(|_| unreachable(io::ErrorKind::TimedOut.into()))?
        .map_err(unreachable)?;
    match serde_json::from_slice(&answer).map_err(unreadable)? {
        Outcome::Refused(why) => Err(Error::Refused(why)),
        outcome => Ok(outcome),
    }
}

/// Binds the socket, over one that a killed emulator left behind but not over one that is served.
pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "other emulators are listening there")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves the socket until `shutdown` and removes it. One order at a time: there is one operator.
pub(super) async fn serve(
    listener: UnixListener,
    path: PathBuf,
    shared: std::sync::Arc<Shared>,
    shutdown: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let exchange = async {
            let (stream, _) = accepted?;
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            (&mut stream).take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
            let outcome = obey(&shared, &line);
            let mut answer = serde_json::to_vec(&outcome)?;
            answer.push(b'\n');
            stream.write_all(&answer).await?;
            stream.shutdown().await
        };
        let ended = tokio::select! {
            () = shutdown.cancelled() => break,
            ended = tokio::time::timeout(PATIENCE, exchange) => ended,
        };
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "control socket"),
            Err(_) => tracing::warn!("control socket: a client took too long"),
        }
    }
    let _ = std::fs::remove_file(path);
}

fn obey(shared: &Shared, line: &[u8]) -> Outcome {
    match serde_json::from_slice(line) {
        Err(error) => return Outcome::Refused(format!("not an order: {error}")),
        Ok(Order::Faults {}) => {}
        Ok(Order::Fault { name, on }) => match name.parse() {
            Ok(fault) => {
                tracing::info!(%fault, on, "fault");
                shared.faults.set(fault, on);
            }
            Err(unknown) => return Outcome::Refused(unknown.to_string()),
        },
        Ok(Order::Directory(directory)) => {
            if let Err(error) = shared.set_directory(&directory) {
                return Outcome::Refused(error.to_string());
            }
        }
        Ok(Order::Change(change)) => {
            return shared.change(&change).map_or_else(|error| Outcome::Refused(error.to_string()), Outcome::Changed);
        }
        Ok(Order::Show {}) => return Outcome::Directory(Box::new(shared.directory())),
        Ok(Order::Counts {}) => return Outcome::Counts(shared.log.counts()),
        Ok(Order::ResetCounts {}) => shared.log.reset_counts(),
    }
    Outcome::Faults(shared.faults.on())
}
