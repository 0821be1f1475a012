//! Drives the machine against a `coordination.k8s.io/v1` Lease, with resourceVersion as the lock.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::future::{Either, select};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::{
    Client, Resource as _,
    api::{GetParams, ObjectMeta, PostParams},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Command, Config, Fence, Input, Leadership, Machine, Record, Terms, Written};
use crate::runtime::{
    FIELD_MANAGER,
    clock::Clock,
    request::{Failure, micro_time, send},
};

/// Keeps trying to lead until `stop`, then releases the lease and returns.
pub(crate) async fn run(
    client: Client,
    config: Config,
    clock: Arc<dyn Clock>,
    fence: Arc<Fence>,
    leadership: watch::Sender<Leadership>,
    stop: CancellationToken,
) {
    let terms = Terms::new(config.duration);
    // Long enough for a slow server, short enough for several attempts before the lease runs out.
    let limit = (terms.duration / 3).min(Duration::from_secs(5));
    let mut driver = Driver {
        machine: Machine::new(terms, config.holder.clone()),
        api: kube::core::Request::new(Lease::url_path(&(), Some(&config.namespace))),
        client,
        config,
        limit,
        complained: false,
    };
    let mut input = Input::Wake;
    let mut stopping = false;
    loop {
        let command = driver.machine.step(clock.uptime(), clock.now(), rand::random(), input);
        let deadline = driver.machine.deadline(clock.uptime());
        fence.set(deadline);
        publish(&driver.machine, deadline.is_some(), &leadership);
        input = match command {
            Command::Done => return,
            Command::Sleep { until } => {
                let now = clock.uptime();
                // The lease may run out before: then this is no leader any more, and must say so.
                let until = deadline.map_or(until, |deadline| until.min(deadline));
                tokio::select! {
                    biased;
                    () = stop.cancelled(), if !stopping => {
                        stopping = true;
                        Input::Stop
                    }
                    () = tokio::time::sleep(until.saturating_sub(now)) => Input::Wake,
                }
            }
            request => {
                let lapse = async {
                    match deadline {
                        Some(deadline) => tokio::time::sleep(deadline.saturating_sub(clock.uptime())).await,
                        None => std::future::pending().await,
                    }
                };
                let leader = driver.machine.leader().unwrap_or_default().to_owned();
                let answer = pin!(driver.request(request));
                match select(answer, pin!(lapse)).await {
                    Either::Left((input, _)) => input,
                    Either::Right(((), answer)) => {
                        // The lease ran out while the server was asked: nothing waits for the answer.
                        tell(Leadership::Standby { leader }, &leadership);
                        answer.await
                    }
                }
            }
        };
        if stop.is_cancelled() && !stopping {
            stopping = true;
            // The result of the last request counts first.
            let command = driver.machine.step(clock.uptime(), clock.now(), rand::random(), input);
            drop(command);
            input = Input::Stop;
        }
    }
}

fn publish(machine: &Machine, leading: bool, leadership: &watch::Sender<Leadership>) {
    let now = match machine.leader() {
        _ if leading => Leadership::Leading,
        None => Leadership::Unknown,
        Some(leader) => Leadership::Standby { leader: leader.to_owned() },
    };
    tell(now, leadership);
}

fn tell(now: Leadership, leadership: &watch::Sender<Leadership>) {
    leadership.send_if_modified(|current| {
        let changed = *current != now;
        if changed {
            info!(from = ?current, to = ?now, "leadership changed");
            *current = now;
        }
        changed
    });
}

struct Driver {
    machine: Machine,
    client: Client,
    api: kube::core::Request,
    config: Config,
    limit: Duration,
    complained: bool,
}

impl Driver {
    async fn request(&mut self, command: Command) -> Input {
        match command {
            Command::Write { record, version } => Input::Written(self.write(record, version).await),
            _ => self.read().await,
        }
    }

    async fn read(&mut self) -> Input {
        let request = match self.api.get(&self.config.name, &GetParams::default()) {
            Ok(request) => request,
            Err(error) => return self.failed("read", &error.to_string(), Input::ReadFailed),
        };
        match send::<Lease>(&self.client, request, self.limit).await {
            Ok(lease) => {
                self.complained = false;
                Input::Read(from_lease(lease))
            }
            Err(Failure::NotFound(_)) => Input::Read(None),
            Err(failure) => self.failed("read", &failure.to_string(), Input::ReadFailed),
        }
    }

    async fn write(&mut self, record: Record, version: Option<String>) -> Written {
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let lease = to_lease(&self.config, record, version.clone());
        let request = serde_json::to_vec(&lease).map_err(|error| error.to_string()).and_then(|body| {
            match version {
                Some(_) => self.api.replace(&self.config.name, &parameters, body),
                None => self.api.create(&parameters, body),
            }
            .map_err(|error| error.to_string())
        });
        let request = match request {
            Ok(request) => request,
            Err(error) => return self.failed("write", &error, Written::Failed),
        };
        match send::<Lease>(&self.client, request, self.limit).await {
            Ok(lease) => match lease.metadata.resource_version {
                Some(version) => {
                    self.complained = false;
                    Written::Done { version }
                }
                None => Written::Failed,
            },
            Err(Failure::Conflict(_) | Failure::NotFound(_)) => Written::Conflict,
            Err(failure) => self.failed("write", &failure.to_string(), Written::Failed),
        }
    }

    fn failed<T>(&mut self, what: &str, error: &str, result: T) -> T {
        if !std::mem::replace(&mut self.complained, true) {
            let Config { namespace, name, .. } = &self.config;
            warn!(%error, "cannot {what} Lease {namespace}/{name}; without it nothing is written. Trying again");
        }
        result
    }
}

fn from_lease(lease: Lease) -> Option<(Record, String)> {
    let version = lease.metadata.resource_version?;
    let spec = lease.spec.unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0);
    let record = Record {
        holder: spec.holder_identity.unwrap_or_default(),
        duration: Duration::from_secs(seconds.max(1)),
        acquired: spec.acquire_time.map(|t| t.0).unwrap_or_default(),
        renewed: spec.renew_time.map(|t| t.0).unwrap_or_default(),
        transitions: spec.lease_transitions.unwrap_or(0),
    };
    Some((record, version))
}

fn to_lease(config: &Config, record: Record, version: Option<String>) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(config.name.clone()),
            namespace: Some(config.namespace.clone()),
            resource_version: version,
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(record.holder),
            lease_duration_seconds: Some(i32::try_from(record.duration.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: Some(micro_time(record.acquired)),
            renew_time: Some(micro_time(record.renewed)),
            lease_transitions: Some(record.transitions),
            ..LeaseSpec::default()
        }),
    }
}

#[cfg(test)]
#[path = "kubernetes_tests.rs"]
mod tests;
