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

use super::{Shared, config::Directory, fault::Fault};

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
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
enum Outcome {
    /// The faults that are on now.
    Faults(Vec<Fault>),
    Refused(String),
}

/// Turns the fault with this name on or off; returns those that are on now.
///
/// # Errors
/// No emulator on this socket; no such fault (the error lists those there are).
pub async fn set_fault(socket: &Path, name: &str, on: bool) -> Result<Vec<Fault>, Error> {
    order(socket, &Order::Fault { name: name.to_owned(), on }).await
}

/// The faults that are on.
///
/// # Errors
/// No emulator on this socket.
pub async fn faults(socket: &Path) -> Result<Vec<Fault>, Error> {
    order(socket, &Order::Faults {}).await
}

/// Replaces tenants, applications and identities. Tokens that were issued stay valid, as in Azure; IMDS forgets those that it
/// keeps for identities that are gone.
///
/// # Errors
/// No emulator on this socket; the directory is wrong (and the old one stays).
pub async fn set_directory(socket: &Path, directory: &Directory) -> Result<(), Error> {
    order(socket, &Order::Directory(Box::new(directory.clone()))).await.map(drop)
}

async fn order(socket: &Path, order: &Order) -> Result<Vec<Fault>, Error> {
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
        Outcome::Faults(faults) => Ok(faults),
        Outcome::Refused(why) => Err(Error::Refused(why)),
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
    }
    Outcome::Faults(shared.faults.on())
}
