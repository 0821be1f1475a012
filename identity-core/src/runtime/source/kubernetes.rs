//! One watch of an API server: list, watch, and start over when the server has forgotten where we were (410).

use std::{fmt::Debug, pin::pin, sync::Arc, time::Duration};

use futures::StreamExt as _;
use http::Request;
use identity_crd::{
    AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding, AzureIdentityGrant, AzurePodIdentityException,
    NODE_LABEL,
};
use kube::{
    Api, Client, Resource,
    client::Body,
    core::DeserializeGuard,
    runtime::watcher::{self, Event, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, time::Instant};
use tower::BoxError;
use tracing::{debug, info, warn};

use super::{Change, Gone, Interest, Update};
use crate::{
    assign::node_label,
    runtime::{
        Backoff,
        observe::Observer,
        request::{Failure, describe},
        trim,
        trim::TrimmedPod,
    },
};

/// After an error: soon at first, since most outages are a restart; never all nodes at once.
pub(in crate::runtime) const BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(15) };
/// A dead connection that says nothing is noticed after this time (and 5 s). The server ends a watch after it, too; resuming
/// costs one request.
pub(in crate::runtime) const WATCH_SECONDS: u32 = 150;
/// How long the server may take until it begins to answer. (kube itself would wait for ever.)
const FIRST_BYTE: Duration = Duration::from_secs(30);
/// Objects in one page of a list. Small, since a page is in memory as text, too.
const PAGE: u32 = 100;

pub(super) async fn watch(
    client: Client,
    interest: Interest,
    updates: mpsc::Sender<Update>,
    observer: Arc<dyn Observer>,
) {
    let client = impatient(client);
    let mut config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    let kind = interest.kind();
    let watch = Watch { kind, updates, observer };
    match interest {
        Interest::Pods { node } => {
            if let Some(node) = node {
                config = config.fields(&format!("spec.nodeName={node}"));
            }
            // Lenient by itself: no guard, which would build every pod in full first.
            let convert = |pod: TrimmedPod| pod.pod().map_err(|error| error.to_string());
            watch.run(&Api::<TrimmedPod>::all(client), &config, convert, Update::Pods).await;
        }
        Interest::Identities => {
            watch.run(&guarded::<AzureIdentity>(client), &config, unguard, Update::Identities).await;
        }
        Interest::Bindings => {
            watch.run(&guarded::<AzureIdentityBinding>(client), &config, unguard, Update::Bindings).await;
        }
        Interest::Assigned { node } => {
            if let Some(node) = node {
                config = config.labels(&format!("{NODE_LABEL}={}", node_label(&node)));
            }
            watch.run(&guarded::<AzureAssignedIdentity>(client), &config, unguard, Update::Assigned).await;
        }
        Interest::Grants => {
            watch.run(&guarded::<AzureIdentityGrant>(client), &config, unguard, Update::Grants).await;
        }
        Interest::Exceptions { namespace } => {
            let api = Api::<DeserializeGuard<AzurePodIdentityException>>::namespaced(client, &namespace);
            let wrap = |change| Update::Exceptions { namespace: namespace.clone(), change };
            watch.run(&api, &config, unguard, wrap).await;
        }
    }
}

/// The same client, which gives up when the server does not begin to answer.
pub(in crate::runtime) fn impatient(client: Client) -> Client {
    let namespace = client.default_namespace().to_owned();
    let send = move |request: Request<Body>| {
        let client = client.clone();
        async move {
            match tokio::time::timeout(FIRST_BYTE, client.send(request)).await {
                Ok(answer) => answer.map_err(BoxError::from),
                Err(_) => Err(BoxError::from(Failure::Timeout(FIRST_BYTE))),
            }
        }
    };
    Client::new(tower::service_fn(send), namespace)
}

/// Objects stored before the CRD had its rules may not fit the type; one of them must not hide all others.
fn guarded<K: Resource<DynamicType = ()>>(client: Client) -> Api<DeserializeGuard<K>> {
    Api::all(client)
}

fn unguard<K: Resource>(guarded: DeserializeGuard<K>) -> Result<K, String> {
    guarded
        .0
        .map(|mut object| {
            trim::metadata(object.meta_mut());
            object
        })
        .map_err(|invalid| invalid.error)
}

/// Failures in a row.
#[derive(Debug, Default)]
struct Troubles {
    failures: u32,
    last: Option<Instant>,
    /// A list that works proves little while the watch after it is refused with 410 again and again.
    in_vain: bool,
}

impl Troubles {
    /// One more: how many there were before it.
    fn another(&mut self) -> u32 {
        // A watch that goes on without any event says nothing; that there was no failure for so long does.
        if self.last.is_some_and(|last| last.elapsed() > BACKOFF.longest * 2) {
            *self = Self::default();
        }
        self.last = Some(Instant::now());
        self.failures += 1;
        self.failures - 1
    }

    /// Whether this event ends them.
    fn is_over_with<K>(&mut self, event: &Event<K>) -> bool {
        let proven = match event {
            Event::Apply(_) | Event::Delete(_) => true,
            Event::InitDone => !self.in_vain,
            Event::Init | Event::InitApply(_) => false,
        };
        let over = proven && self.failures > 0;
        if over {
            *self = Self::default();
        }
        over
    }
}

struct Watch {
    kind: &'static str,
    updates: mpsc::Sender<Update>,
    observer: Arc<dyn Observer>,
}

impl Watch {
    /// Returns when nobody listens any more.
    async fn run<K, T>(
        &self,
        api: &Api<K>,
        config: &watcher::Config,
        convert: impl Fn(K) -> Result<T, String>,
        wrap: impl Fn(Change<T>) -> Update,
    ) where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let mut troubles = Troubles::default();
        'restart: loop {
            let mut events = pin!(watcher(api.clone(), config.clone()));
            let mut listing: Option<Vec<T>> = None;
            while let Some(event) = events.next().await {
                let change = match event {
                    Ok(event) => {
                        if troubles.is_over_with(&event) {
                            info!(kind = self.kind, "watching again");
                        }
                        self.change(event, &mut listing, &convert)
                    }
                    Err(error) => {
                        self.fail(&error, &mut troubles).await;
                        if start_was_gone(&error) {
                            // The watcher itself would ask for the same version for ever.
                            continue 'restart;
                        }
                        None
                    }
                };
                if let Some(change) = change
                    && self.updates.send(wrap(change)).await.is_err()
                {
                    return;
                }
            }
        }
    }

    /// Tells of a failure and waits as long as it takes to be polite.
    async fn fail(&self, error: &watcher::Error, troubles: &mut Troubles) {
        let failures = troubles.another();
        let (kind, text) = (self.kind, describe(error));
        if is_gone(error) {
            troubles.in_vain = true;
            if failures == 0 {
                // Nothing is wrong: it was away for longer than the server remembers.
                info!(kind, error = %text, "listing anew");
                return;
            }
        }
        self.observer.watch_failed(kind);
        // Less and less often, but not never.
        if failures == 0 || failures.is_power_of_two() {
            warn!(kind, error = %text, failures, "watch failed; what was seen last stays in force");
        } else {
            debug!(kind, error = %text, failures, "watch failed again");
        }
        tokio::time::sleep(BACKOFF.random_delay(failures, None)).await;
    }

    fn change<K, T>(
        &self,
        event: Event<K>,
        listing: &mut Option<Vec<T>>,
        convert: impl Fn(K) -> Result<T, String>,
    ) -> Option<Change<T>>
    where
        K: Resource<DynamicType = ()>,
    {
        let convert = |object: K| {
            let gone = gone(&object);
            convert(object).map_err(|error| {
                warn!(
                    kind = self.kind, namespace = gone.namespace, name = gone.name, %error,
                    "this object cannot be read and counts as absent"
                );
                gone
            })
        };
        match event {
            Event::Init => {
                *listing = Some(Vec::new());
                None
            }
            Event::InitApply(object) => {
                if let Ok(object) = convert(object) {
                    listing.get_or_insert_default().push(object);
                }
                None
            }
            Event::InitDone => {
                let all = listing.take().unwrap_or_default();
                debug!(kind = self.kind, objects = all.len(), "listed");
                self.observer.relisted(self.kind);
                Some(Change::Relist(all))
            }
            Event::Apply(object) => Some(match convert(object) {
                Ok(object) => Change::Apply(Box::new(object)),
                Err(gone) => Change::Delete(gone),
            }),
            Event::Delete(object) => Some(Change::Delete(gone(&object))),
        }
    }
}

fn gone<K: Resource>(object: &K) -> Gone {
    let meta = object.meta();
    Gone {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone(),
    }
}

/// The server does not know any more what has happened since.
fn is_gone(error: &watcher::Error) -> bool {
    start_was_gone(error) || matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}

/// The same as the answer to the watch request itself. (As an event in the stream the watcher handles it.)
pub(in crate::runtime) fn start_was_gone(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

#[cfg(test)]
#[path = "kubernetes_tests.rs"]
mod tests;
