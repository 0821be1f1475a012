//! Emulators of what lives in Azure: Entra's token service and Key Vault (TLS), and a VM's instance metadata service.
//!
//! They are strict: what the real service refuses is refused with the same words, as far as these are public, and an operation
//! that the real service offers and the emulator does not is answered `501` with its name, and logged as an error. They share no
//! code with the product. Sources: Microsoft's documentation and OpenAPI of the services; where a source is silent the comment
//! says so.
//!
//! Access tokens are signed (RS256) and verify against the key set that the Entra emulator serves, those from IMDS included.
//!
//! ```
//! use identity_lab::emulator::{self, Config};
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config: Config = serde_json::from_str(r#"{"imds": {"listen": "127.0.0.1:0"}}"#)?;
//! let shutdown = tokio_util::sync::CancellationToken::new();
//! let emulators = emulator::run(config, shutdown.clone()).await?;
//! assert_ne!(emulators.imds_address().expect("it is configured").port(), 0);
//! shutdown.cancel();
//! emulators.stopped().await;
//! # Ok(()) }
//! ```

pub mod ca;
mod change;
mod clock;
mod config;
pub mod control;
pub mod credentials;
mod directory;
mod entra;
mod fault;
mod http;
mod imds;
mod keyvault;
mod log;
mod oidc;
mod signer;
#[cfg(test)]
mod tests;
pub mod vaults;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::{Layer as _, util::BoxCloneSyncService};

pub(crate) use self::clock::distance;
pub use self::{
    change::Change,
    clock::{Clock, ManualClock},
    config::{
        Application, ClientCertificate, ClientSecret, Config, Directory, EntraConfig, FederatedCredential, Group,
        ImdsConfig, Issuer, IssuerServer, KeyVaultConfig, Limits, ManagedIdentity, Pem, Secret, SystemAssigned,
        TOKEN_EXCHANGE, Tenant, TrustedSubject, VirtualMachine,
    },
    directory::Error as DirectoryError,
    fault::{Fault, ServiceName, UnknownFault},
    log::{Count, Record},
};
use self::{
    change::Taken,
    directory::Known,
    fault::{FaultLayer, Struck, Switchboard},
    http::{Front, Route},
    log::RequestLog,
    signer::Signer,
};

/// Why the emulators cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be bound.
    #[error("{field}: cannot listen on {address}: {source}")]
    Bind {
        /// The configuration's field.
        field: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The control socket cannot be bound.
    #[error("control: cannot listen on {path}: {source}")]
    Control {
        /// The path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The request log cannot be opened.
    #[error("requestLog: cannot append to {path}: {source}")]
    Log {
        /// The path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The certificate or key of the Entra emulator is unusable.
    #[error("entra.{0}")]
    Certificate(String),
    /// The directory is wrong.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// There is no key to sign tokens with.
    #[error("cannot make a key to sign tokens with: {0}")]
    Key(String),
}

/// What the services and the control socket share.
#[derive(Debug)]
struct Shared {
    faults: Switchboard,
    signer: Signer,
    log: Arc<RequestLog>,
    clock: Clock,
    /// Resource id of the VM.
    vm: String,
    state: RwLock<State>,
}

/// The directory as given, what was changed since, and what comes of both.
#[derive(Debug)]
struct State {
    given: Directory,
    taken: Taken,
    known: Arc<Known>,
}

impl Shared {
    fn known(&self) -> Arc<Known> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner).known)
    }

    /// What is in force: the directory with all changes.
    fn directory(&self) -> Directory {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.taken.over(&state.given)
    }

    fn set_directory(&self, directory: &Directory) -> Result<(), DirectoryError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.known = Arc::new(Known::new(&state.taken.over(directory), &self.vm)?);
        state.given = directory.clone();
        Ok(())
    }

    fn change(&self, change: &Change) -> Result<Option<String>, DirectoryError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut taken = state.taken.clone();
        let made = taken.change(&taken.over(&state.given), change, self.clock.now())?;
        state.known = Arc::new(Known::new(&taken.over(&state.given), &self.vm)?);
        state.taken = taken;
        Ok(made)
    }
}

/// Running emulators. Dropping it stops them.
#[derive(Debug)]
pub struct Handle {
    entra: Option<SocketAddr>,
    imds: Option<SocketAddr>,
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    _stop: DropGuard,
}

impl Handle {
    /// Where Entra listens.
    pub fn entra_address(&self) -> Option<SocketAddr> {
        self.entra
    }

    /// Where IMDS listens.
    pub fn imds_address(&self) -> Option<SocketAddr> {
        self.imds
    }

    /// The keys that access tokens verify with, as a JSON Web Key Set.
    pub fn jwks(&self) -> serde_json::Value {
        self.shared.signer.jwks(None)
    }

    /// Turns a fault on or off.
    pub fn set_fault(&self, fault: Fault, on: bool) {
        self.shared.faults.set(fault, on);
    }

    /// The faults that are on.
    pub fn faults(&self) -> Vec<Fault> {
        self.shared.faults.on()
    }

    /// Replaces tenants, applications and identities.
    ///
    /// # Errors
    /// The directory is wrong (and the old one stays).
    pub fn set_directory(&self, directory: &Directory) -> Result<(), DirectoryError> {
        self.shared.set_directory(directory)
    }

    /// Makes one change to what was given, and keeps it when another directory is given later; returns the version of a secret
    /// or certificate that it made.
    ///
    /// # Errors
    /// What is to be changed does not exist, or would be wrong afterwards (and all stays as it was).
    pub fn change(&self, change: &Change) -> Result<Option<String>, DirectoryError> {
        self.shared.change(change)
    }

    /// What is in force: the directory with all changes. It has secrets in it.
    pub fn directory(&self) -> Directory {
        self.shared.directory()
    }

    /// How often each thing was asked for, since the start or [`reset_counts`](Self::reset_counts).
    pub fn counts(&self) -> Vec<Count> {
        self.shared.log.counts()
    }

    /// Begins to count anew.
    pub fn reset_counts(&self) {
        self.shared.log.reset_counts();
    }

    /// The last 10,000 requests. A request is recorded before its answer leaves.
    pub fn requests(&self) -> Vec<Record> {
        self.shared.log.records()
    }

    /// Waits until everything has stopped, which [`run`]'s shutdown token begins.
    pub async fn stopped(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Starts what `config` names. Listeners are bound when it returns; `shutdown` stops everything.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<Handle, Error> {
    let clock = config.clock.as_deref().map_or_else(Clock::system, Clock::following);
    run_with_clock(config, clock, shutdown).await
}

/// [`run`] with a clock of one's own. It rules token times, limits and the request log; latency and timeouts are real.
pub async fn run_with_clock(config: Config, clock: Clock, shutdown: CancellationToken) -> Result<Handle, Error> {
    let Config { entra, imds, key_vault, directory, faults, control, request_log, clock: _ } = config;
    let log = RequestLog::open(request_log.as_deref())
        .map_err(|source| Error::Log { path: request_log.unwrap_or_default(), source })?;
    let vm = imds.as_ref().map(|imds| imds.virtual_machine.resource_id()).unwrap_or_default();
    let known = Known::new(&directory, &vm)?;
    let signer = tokio::task::spawn_blocking(Signer::generate)
        .await
        .map_err(|error| Error::Key(error.to_string()))?
        .map_err(|error| Error::Key(error.to_string()))?;
    let shared = Arc::new(Shared {
        faults: Switchboard::new(faults),
        signer,
        log: Arc::new(log),
        clock: clock.clone(),
        vm,
        state: RwLock::new(State { given: directory, taken: Taken::default(), known: Arc::new(known) }),
    });

    let stop = shutdown.child_token();
    let mut handle = Handle {
        entra: None,
        imds: None,
        shared: Arc::clone(&shared),
        tasks: JoinSet::new(),
        _stop: stop.clone().drop_guard(),
    };
    if let Some(config) = entra {
        let read = |field: &'static str, pem: &Pem| {
            pem.load().map_err(|error| Error::Certificate(format!("{field}: {error}")))
        };
        let tls = ca::server_config(&read("certificate", &config.certificate)?, &read("key", &config.key)?)
            .map_err(Error::Certificate)?;
        let (listener, address) = http::bind(config.listen).await.map_err(|source| Error::Bind {
            field: "entra.listen",
            address: config.listen,
            source,
        })?;
        handle.entra = Some(address);
        let vaults = Arc::clone(&shared);
        let front = Front {
            tls: Some(TlsAcceptor::from(Arc::new(tls))),
            routes: vec![
                Route {
                    service: ServiceName::KeyVault,
                    takes: Box::new(move |host| keyvault::is_vault(&vaults.known(), host)),
                    stack: keyvault::stack(key_vault, &shared),
                },
                Route::all(ServiceName::Entra, entra::stack(config, &shared)),
            ],
            clock: clock.clone(),
            log: Arc::clone(&shared.log),
        };
        handle.tasks.spawn(front.serve(listener, stop.clone()));
    }
    if let Some(config) = imds {
        let (listener, address) = http::bind(config.listen).await.map_err(|source| Error::Bind {
            field: "imds.listen",
            address: config.listen,
            source,
        })?;
        handle.imds = Some(address);
        let front = Front {
            tls: None,
            routes: vec![Route::all(ServiceName::Imds, imds::stack(config, &shared))],
            clock,
            log: Arc::clone(&shared.log),
        };
        handle.tasks.spawn(front.serve(listener, stop.clone()));
    }
    if let Some(path) = control {
        let listener = control::bind(&path).map_err(|source| Error::Control { path: path.clone(), source })?;
        handle.tasks.spawn(control::serve(listener, path, shared, stop));
    }
    Ok(handle)
}

/// Puts the faults of a service in front of it.
fn behind_faults<S>(service: S, name: ServiceName, shared: &Shared, saying: fault::Saying) -> http::Stack
where
    S: tower::Service<http::Call, Response = http::Reply, Error = std::convert::Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    let layer = FaultLayer { board: shared.faults.clone(), service: name, saying, struck: Struck::default() };
    BoxCloneSyncService::new(layer.layer(service))
}
