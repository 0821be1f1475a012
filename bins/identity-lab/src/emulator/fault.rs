//! Faults: a tower layer in front of a service, switched while it runs.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tower::{Layer, Service, ServiceExt as _};

use super::http::{Answered, Call, Dropped, Reply};

/// The longest that a hanging request is kept: by then every client known to us has given up.
const LONGEST_HANG: Duration = Duration::from_mins(10);
/// Kinds of requests that are remembered.
const MOST_STRUCK: usize = 10_000;

/// A service that the emulators play.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceName {
    /// Entra's token service.
    Entra,
    /// The VM's metadata service.
    Imds,
    /// Key Vault.
    KeyVault,
}

/// Something that goes wrong on demand. The name in JSON and on a command line is the one that [`Display`](fmt::Display) gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Fault {
    /// Entra closes connections without an answer.
    EntraDown,
    /// Entra does not answer until the fault is off.
    EntraHang,
    /// Entra throttles: 429 with `Retry-After` and a body that is not JSON.
    Entra429,
    /// Entra is unavailable for a while: 503 `temporarily_unavailable`.
    Entra503,
    /// IMDS closes connections without an answer.
    ImdsDown,
    /// IMDS does not answer until the fault is off.
    ImdsHang,
    /// IMDS is being updated: 404.
    Imds404,
    /// IMDS is gone for up to 70 seconds: 410.
    Imds410,
    /// IMDS throttles: 429 without `Retry-After`.
    Imds429,
    /// IMDS throttles the first request of its kind (path and query) and answers those that follow.
    Imds429Once,
    /// IMDS fails: 500.
    Imds500,
    /// IMDS is unavailable: 503.
    Imds503,
    /// Key Vault closes connections without an answer.
    VaultDown,
    /// Key Vault does not answer until the fault is off.
    VaultHang,
    /// Key Vault refuses whoever has a token, as when the role was taken away: 403.
    VaultForbidden,
    /// Key Vault throttles: 429 with `Retry-After`.
    Vault429,
    /// Key Vault is unavailable: 503.
    Vault503,
}

/// What a fault does to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Down,
    Hang,
    Status(u16),
    StatusOnce(u16),
}

impl Fault {
    /// All of them. Of several that are on for one service the first in this order acts.
    pub const ALL: [Self; 17] = [
        Self::EntraDown,
        Self::EntraHang,
        Self::Entra429,
        Self::Entra503,
        Self::ImdsDown,
        Self::ImdsHang,
        Self::Imds404,
        Self::Imds410,
        Self::Imds429,
        Self::Imds429Once,
        Self::Imds500,
        Self::Imds503,
        Self::VaultDown,
        Self::VaultHang,
        Self::VaultForbidden,
        Self::Vault429,
        Self::Vault503,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::EntraDown => "entra-down",
            Self::EntraHang => "entra-hang",
            Self::Entra429 => "entra-429",
            Self::Entra503 => "entra-503",
            Self::ImdsDown => "imds-down",
            Self::ImdsHang => "imds-hang",
            Self::Imds404 => "imds-404",
            Self::Imds410 => "imds-410",
            Self::Imds429 => "imds-429",
            Self::Imds429Once => "imds-429-once",
            Self::Imds500 => "imds-500",
            Self::Imds503 => "imds-503",
            Self::VaultDown => "vault-down",
            Self::VaultHang => "vault-hang",
            Self::VaultForbidden => "vault-forbidden",
            Self::Vault429 => "vault-429",
            Self::Vault503 => "vault-503",
        }
    }

    /// The service that it strikes.
    pub fn service(self) -> ServiceName {
        match self {
            Self::EntraDown | Self::EntraHang | Self::Entra429 | Self::Entra503 => ServiceName::Entra,
            Self::VaultDown | Self::VaultHang | Self::VaultForbidden | Self::Vault429 | Self::Vault503 => {
                ServiceName::KeyVault
            }
            _ => ServiceName::Imds,
        }
    }

    pub(super) fn effect(self) -> Effect {
        match self {
            Self::EntraDown | Self::ImdsDown | Self::VaultDown => Effect::Down,
            Self::EntraHang | Self::ImdsHang | Self::VaultHang => Effect::Hang,
            Self::VaultForbidden => Effect::Status(403),
            Self::Imds404 => Effect::Status(404),
            Self::Imds410 => Effect::Status(410),
            Self::Entra429 | Self::Imds429 | Self::Vault429 => Effect::Status(429),
            Self::Imds429Once => Effect::StatusOnce(429),
            Self::Imds500 => Effect::Status(500),
            Self::Entra503 | Self::Imds503 | Self::Vault503 => Effect::Status(503),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A name that no fault has.
#[derive(Debug, thiserror::Error)]
#[error("there is no fault `{name}`; there are: {}", Fault::ALL.map(Fault::name).join(", "))]
pub struct UnknownFault {
    name: String,
}

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(name: &str) -> Result<Self, UnknownFault> {
        Self::ALL.into_iter().find(|fault| fault.name() == name).ok_or_else(|| UnknownFault { name: name.to_owned() })
    }
}

impl TryFrom<String> for Fault {
    type Error = UnknownFault;

    fn try_from(name: String) -> Result<Self, UnknownFault> {
        name.parse()
    }
}

impl From<Fault> for &'static str {
    fn from(fault: Fault) -> Self {
        fault.name()
    }
}

/// Which faults are on.
#[derive(Clone, Debug)]
pub(super) struct Switchboard(Arc<watch::Sender<BTreeSet<Fault>>>);

impl Switchboard {
    pub(super) fn new(on: impl IntoIterator<Item = Fault>) -> Self {
        Self(Arc::new(watch::Sender::new(on.into_iter().collect())))
    }

    pub(super) fn set(&self, fault: Fault, on: bool) {
        self.0.send_if_modified(|faults| if on { faults.insert(fault) } else { faults.remove(&fault) });
    }

    /// Requests that are being answered or kept hanging.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.0.receiver_count()
    }

    pub(super) fn on(&self) -> Vec<Fault> {
        self.0.borrow().iter().copied().collect()
    }
}

/// Kinds of requests that a fault has struck once: remembered while the emulators run.
#[derive(Clone, Debug, Default)]
pub(super) struct Struck(Arc<Mutex<BTreeSet<String>>>);

impl Struck {
    /// Whether this is the first request of its kind.
    fn first(&self, call: &Call) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MOST_STRUCK {
            seen.clear();
        }
        seen.insert(format!("{} {:?}", call.path, call.query.0))
    }
}

/// How a service says each status that a fault can make it say.
pub(super) type Saying = Arc<dyn Fn(u16, &Call) -> Reply + Send + Sync>;

/// Puts the faults of one service in front of it.
#[derive(Clone)]
pub(super) struct FaultLayer {
    pub(super) board: Switchboard,
    pub(super) service: ServiceName,
    pub(super) saying: Saying,
    pub(super) struck: Struck,
}

impl<S> Layer<S> for FaultLayer {
    type Service = Faulty<S>;

    fn layer(&self, inner: S) -> Faulty<S> {
        Faulty { layer: self.clone(), inner }
    }
}

/// A service with faults in front.
#[derive(Clone)]
pub(super) struct Faulty<S> {
    layer: FaultLayer,
    inner: S,
}

impl<S> Service<Call> for Faulty<S>
where
    S: Service<Call, Response = Reply, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Answered;
    type Error = Dropped;
    type Future = Pin<Box<dyn Future<Output = Result<Answered, Dropped>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Dropped>> {
        // The inner service is asked for readiness when (and if) the request gets past the faults.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let FaultLayer { board, service, saying, struck } = self.layer.clone();
        let inner = self.inner.clone();
        Box::pin(async move {
            let mut faults = board.0.subscribe();
            let mut hung = None;
            loop {
                let fault = faults.borrow_and_update().iter().copied().find(|fault| fault.service() == service);
                let effect = fault.map(|fault| match fault.effect() {
                    Effect::StatusOnce(status) if struck.first(&call) => Some((fault, Effect::Status(status))),
                    Effect::StatusOnce(_) => None,
                    other => Some((fault, other)),
                });
                match effect.flatten() {
                    None | Some((_, Effect::StatusOnce(_))) => {
                        let reply = match inner.oneshot(call).await {
                            Ok(reply) => reply,
                            Err(never) => match never {},
                        };
                        return Ok(Answered { reply, fault: hung });
                    }
                    Some((fault, Effect::Down)) => return Err(Dropped::Fault(fault)),
                    Some((fault, Effect::Status(status))) => {
                        return Ok(Answered { reply: saying(status, &call), fault: Some(fault) });
                    }
                    Some((fault, Effect::Hang)) => {
                        hung = Some(fault);
                        match tokio::time::timeout(LONGEST_HANG, faults.changed()).await {
                            Ok(Ok(())) => {}
                            Ok(Err(_)) | Err(_) => return Err(Dropped::Fault(fault)),
                        }
                    }
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_found_by_its_name_and_nothing_else_is() {
        for fault in Fault::ALL {
            assert_eq!(fault.name().parse::<Fault>().unwrap(), fault);
            let json = serde_json::to_string(&fault).unwrap();
            assert_eq!(serde_json::from_str::<Fault>(&json).unwrap(), fault);
            let prefix = match fault.service() {
                ServiceName::Entra => "entra-",
                ServiceName::Imds => "imds-",
                ServiceName::KeyVault => "vault-",
            };
            assert!(fault.name().starts_with(prefix), "{fault}");
        }
        assert_eq!(Fault::ALL.into_iter().collect::<BTreeSet<_>>().len(), Fault::ALL.len());
        let error = "imds-418".parse::<Fault>().unwrap_err().to_string();
        assert!(error.contains("`imds-418`") && error.contains("imds-429"), "{error}");
    }
}
