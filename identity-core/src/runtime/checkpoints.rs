//! Says at the API server where a node's audit journal is: the last checkpoint, in the annotations of a Lease that only this
//! node may write ([`identity_crd::policies::checkpoints`]). Whoever cuts the end off the journal later has to explain it.
//!
//! At most one write in each interval, of the newest checkpoint only. Nothing that is there is overwritten unread, and within one
//! journal it never goes back: what is published beyond what the journal has means that the journal has lost its end.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use http::Request;
use identity_crd::policies::{
    CHECKPOINT_HEAD, CHECKPOINT_JOURNAL, CHECKPOINT_KEY, CHECKPOINT_LEASE, CHECKPOINT_SEQ, CHECKPOINT_TIME,
};
use jiff::Timestamp;
use kube::{
    Client,
    api::{GetParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::{error, warn};

use super::{
    Backoff,
    request::{Failure, send},
};

/// Of these fields; nobody else's.
const FIELD_MANAGER: &str = "entra-pod-identity-audit";
/// For reading what the journal has of a number: it may be in the last of many files.
const READING: Duration = Duration::from_secs(30);
/// For one request.
const LIMIT: Duration = Duration::from_secs(5);
/// Between attempts, after failures.
const AGAIN: Backoff = Backoff { first: Duration::from_secs(2), longest: Duration::from_mins(1) };
/// Longest name of an object (RFC 1123 subdomain).
const LONGEST_NAME: usize = 253;

/// What is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Id of the journal.
    pub journal: String,
    /// Number of its last record.
    pub seq: u64,
    /// The hash of that, 64 hexadecimal digits.
    pub head: String,
    /// When the checkpoint was made.
    pub time: Timestamp,
    /// Name of the key that signed it, if one did.
    pub key: Option<String>,
}

/// Why nothing was published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The node's name is too long for a name with it.
    #[error(
        "a node name of {0} characters is too long for a Lease `{CHECKPOINT_LEASE}<node>`, which may have {LONGEST_NAME}"
    )]
    Name(usize),
    /// More is published than the journal has.
    #[error(
        "record {published} of this journal is published in Lease {lease}, and the journal is at {at}: its end is missing. \
         Keep both as they are and find out why; to publish again, give the journal a new directory"
    )]
    Behind {
        /// Namespace and name.
        lease: String,
        /// What is there.
        published: u64,
        /// What was to be.
        at: u64,
    },
    /// The request.
    #[error("Lease {lease}: {failure}")]
    Request {
        /// Namespace and name.
        lease: String,
        /// Why.
        failure: Failure,
    },
}

/// How it goes, for metrics.
#[derive(Debug, Default)]
pub struct Progress {
    published: AtomicU64,
    writes: AtomicU64,
    failures: AtomicU64,
}

impl Progress {
    /// The last record that is published; 0 before the first.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Checkpoints that were published.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Attempts that failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// What the journal has under a number: the hash of that record, as long as it has it.
pub type HashOf = Box<dyn Fn(u64) -> BoxFuture<'static, Option<String>> + Send + Sync>;

/// What is known of the Lease.
#[derive(Default)]
struct There {
    version: Option<String>,
    checkpoint: Option<(String, u64)>,
    head: String,
}

/// Publishes for one node.
pub struct Publisher {
    client: Client,
    namespace: String,
    node: String,
    name: String,
    /// What is there, as far as is known; `None`: to be asked.
    there: Option<There>,
    hash_of: Option<HashOf>,
    /// A head that is known to be the journal's, or was said not to be.
    compared: Option<String>,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("lease", &self.lease()).finish_non_exhaustive()
    }
}

impl Publisher {
    /// In the Lease of `node` in `namespace`.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn new(client: Client, namespace: impl Into<String>, node: impl Into<String>) -> Result<Self, Error> {
        let (namespace, node) = (namespace.into(), node.into());
        let name = format!("{CHECKPOINT_LEASE}{node}");
        if name.len() > LONGEST_NAME {
            return Err(Error::Name(node.len()));
        }
        Ok(Self { client, namespace, node, name, there: None, hash_of: None, compared: None })
    }

    /// What is found in the Lease is compared with the journal before it is overwritten: a number that is less than the
    /// journal's says nothing of a journal whose end was cut off and that has grown since.
    #[must_use]
    pub fn comparing(self, hash_of: HashOf) -> Self {
        Self { hash_of: Some(hash_of), ..self }
    }

    fn lease(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// One or two requests, at most 5 s each. Whether it was written; `false`: it is there already.
    ///
    /// # Errors
    /// [`Error::Behind`], or why the request failed. What is there is then asked for the next time.
    pub async fn publish(&mut self, checkpoint: &Published) -> Result<bool, Error> {
        let there = if let Some(there) = self.there.take() {
            there
        } else {
            let there = self.look().await?;
            if let Some(contradiction) = self.contradiction(&there, checkpoint).await {
                error!(lease = self.lease(), "{contradiction}");
            }
            self.compared = Some(there.head.clone());
            there
        };
        match &there.checkpoint {
            Some((journal, seq)) if *journal == checkpoint.journal && *seq >= checkpoint.seq => {
                let published = *seq;
                let lease = self.lease();
                if published == checkpoint.seq {
                    self.there = Some(there);
                    return Ok(false);
                }
                return Err(Error::Behind { lease, published, at: checkpoint.seq });
            }
            Some((journal, seq)) if *journal != checkpoint.journal => {
                warn!(
                    lease = self.lease(),
                    former = journal,
                    at = seq,
                    head = there.head,
                    journal = checkpoint.journal,
                    "another journal is published than before"
                );
            }
            _ => {}
        }
        let request = self.request(checkpoint, there.version.as_deref());
        let written: Value = self.send(request).await?;
        self.there = Some(There::read(&written));
        self.compared = Some(checkpoint.head.clone());
        Ok(true)
    }

    /// What is published of this journal and is not in it. Publishing goes on all the same: a power failure takes records as
    /// well, and what was published is in what is said here.
    async fn contradiction(&self, there: &There, checkpoint: &Published) -> Option<String> {
        let (journal, seq) = there.checkpoint.as_ref()?;
        let known = self.compared.as_ref() == Some(&there.head);
        if *journal != checkpoint.journal || *seq > checkpoint.seq || known {
            return None;
        }
        let reading = (self.hash_of.as_ref()?)(*seq);
        let found = tokio::time::timeout(READING, reading).await.ok()??;
        (found != there.head).then(|| {
            format!(
                "record {seq} of the audit journal was published with the hash {}, and has {found}: the journal was written \
                 anew from there or before, or its end was cut off, or a power failure has taken it",
                there.head
            )
        })
    }

    async fn look(&self) -> Result<There, Error> {
        match self.send(self.collection().get(&self.name, &GetParams::default()).map_err(|e| e.to_string())).await {
            Ok(object) => Ok(There::read(&object)),
            Err(Error::Request { failure: Failure::NotFound(_), .. }) => Ok(There::default()),
            Err(error) => Err(error),
        }
    }

    async fn send(&self, request: Result<Request<Vec<u8>>, String>) -> Result<Value, Error> {
        let sent = async {
            let request = request.map_err(|message| Failure::Refused { code: 0, message })?;
            send(&self.client, request, LIMIT).await
        };
        sent.await.map_err(|failure| Error::Request { lease: self.lease(), failure })
    }

    fn collection(&self) -> kube::core::Request {
        kube::core::Request::new(format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace))
    }

    fn request(&self, checkpoint: &Published, version: Option<&str>) -> Result<Request<Vec<u8>>, String> {
        let mut lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.name, "namespace": self.namespace, "annotations": {
                CHECKPOINT_JOURNAL: checkpoint.journal,
                CHECKPOINT_SEQ: checkpoint.seq.to_string(),
                CHECKPOINT_HEAD: checkpoint.head,
                CHECKPOINT_TIME: checkpoint.time.to_string(),
                CHECKPOINT_KEY: checkpoint.key.as_deref().unwrap_or_default(),
            }},
            "spec": {"holderIdentity": self.node, "renewTime": format!("{:.6}", checkpoint.time)},
        });
        // 1 is the version of no object: what is not there is made, and nothing that is there is overwritten unread.
        lease["metadata"]["resourceVersion"] = json!(version.unwrap_or("1"));
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.collection().patch(&self.name, &params, &Patch::Apply(lease)).map_err(|error| error.to_string())
    }
}

impl There {
    fn read(object: &Value) -> Self {
        let annotations = &object["metadata"]["annotations"];
        let text = |name: &str| annotations[name].as_str().unwrap_or_default();
        let seq = text(CHECKPOINT_SEQ).parse().ok().filter(|_| !text(CHECKPOINT_JOURNAL).is_empty());
        Self {
            version: object["metadata"]["resourceVersion"].as_str().map(str::to_owned),
            checkpoint: seq.map(|seq| (text(CHECKPOINT_JOURNAL).to_owned(), seq)),
            head: text(CHECKPOINT_HEAD).to_owned(),
        }
    }
}

/// Publishes what `newest` says, once in each `interval` at most, until its sender is gone; then once more.
pub async fn run(
    mut publisher: Publisher,
    mut newest: watch::Receiver<Option<Published>>,
    interval: Duration,
    progress: Arc<Progress>,
) {
    let mut failures = 0_u32;
    // Nodes that start together must not come together for ever.
    let mut not_before = Instant::now() + interval.mul_f64(rand::random::<f64>() * 0.1);
    loop {
        // Ends when the sender is gone, and everything it said was seen.
        let mut last = newest.changed().await.is_err();
        if !last {
            last = is_last(&mut newest, sleep_until(not_before)).await;
        }
        let checkpoint = newest.borrow_and_update().clone();
        let Some(checkpoint) = checkpoint.filter(|checkpoint| !last || checkpoint.seq != progress.published()) else {
            if last {
                return;
            }
            continue;
        };
        match publisher.publish(&checkpoint).await {
            Ok(written) => {
                progress.published.store(checkpoint.seq, Ordering::Relaxed);
                progress.writes.fetch_add(u64::from(written), Ordering::Relaxed);
                failures = 0;
                not_before = Instant::now() + interval.mul_f64(1.0 + rand::random::<f64>() * 0.1);
            }
            Err(failed) => {
                progress.failures.fetch_add(1, Ordering::Relaxed);
                let pause = match &failed {
                    Error::Behind { .. } => {
                        if failures == 0 {
                            error!(error = %failed, "a checkpoint of the audit journal is not published");
                        }
                        interval.max(AGAIN.longest)
                    }
                    Error::Request { failure, .. } => {
                        if failures == 0 {
                            warn!(error = %failed, "a checkpoint of the audit journal is not published; trying again");
                        }
                        AGAIN.random_delay(failures, failure.retry_after())
                    }
                    Error::Name(_) => interval,
                };
                failures = failures.saturating_add(1);
                not_before = Instant::now() + pause;
                if !last {
                    // The same, or a newer one, again.
                    newest.mark_changed();
                }
            }
        }
        if last {
            return;
        }
    }
}

/// Waits; whether the sender went in the meantime.
async fn is_last(newest: &mut watch::Receiver<Option<Published>>, wait: impl Future<Output = ()>) -> bool {
    let gone = async { while newest.changed().await.is_ok() {} };
    tokio::select! {
        () = gone => true,
        () = wait => false,
    }
}

#[cfg(test)]
#[path = "checkpoints_tests.rs"]
mod tests;
