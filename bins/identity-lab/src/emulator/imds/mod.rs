//! A VM's instance metadata service: the identity category, and enough of the rest to show what a proxy does with it.

mod error;
mod events;
mod instance;
mod limits;
mod token;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{Method, StatusCode};
use serde_json::{Value, json};

use self::{
    error::{generic, identity, said},
    events::Events,
    limits::Limiter,
};
use super::{
    Shared, behind_faults,
    config::ImdsConfig,
    directory::Principal,
    fault::ServiceName,
    http::{Call, Reply, Stack, service},
    signer::Issued,
};

/// Supported versions (the documentation's list of 2025); the identity category began with 2018-02-01.
const API_VERSIONS: [&str; 35] = [
    "2017-03-01",
    "2017-04-02",
    "2017-08-01",
    "2017-10-01",
    "2017-12-01",
    "2018-02-01",
    "2018-04-02",
    "2018-10-01",
    "2019-02-01",
    "2019-03-11",
    "2019-04-30",
    "2019-06-01",
    "2019-06-04",
    "2019-08-01",
    "2019-08-15",
    "2019-11-01",
    "2020-06-01",
    "2020-07-15",
    "2020-09-01",
    "2020-10-01",
    "2020-12-01",
    "2021-01-01",
    "2021-02-01",
    "2021-03-01",
    "2021-05-01",
    "2021-08-01",
    "2021-10-01",
    "2021-11-01",
    "2021-11-15",
    "2021-12-13",
    "2023-07-01",
    "2023-11-15",
    "2024-03-15",
    "2024-07-17",
    "2025-04-07",
];
const FIRST_WITH_IDENTITY: &str = "2018-02-01";

/// The service's state.
#[derive(Debug)]
struct Imds {
    config: ImdsConfig,
    shared: Arc<Shared>,
    identity: Limiter,
    rest: Limiter,
    /// The platform's cache: by resource id (or client id) and resource.
    tokens: Mutex<HashMap<(String, String), (Principal, Issued)>>,
    events: Mutex<Events>,
}

/// The service behind its faults.
pub(super) fn stack(config: ImdsConfig, shared: &Arc<Shared>) -> Stack {
    let limits = config.limits;
    let imds = Arc::new(Imds {
        identity: Limiter::new(limits.requests_per_second, limits.concurrent),
        rest: Limiter::new(limits.other_requests_per_second, None),
        events: Mutex::new(Events::new(&config.virtual_machine.name)),
        config,
        shared: Arc::clone(shared),
        tokens: Mutex::default(),
    });
    let answer = service(move |call: Call| {
        let imds = Arc::clone(&imds);
        async move { said(imds.limited(&call).await) }
    });
    let saying = |status, call: &Call| {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        said(if is_identity(call) { identity::fault(status) } else { generic(status, "Service unavailable") })
    };
    behind_faults(answer, ServiceName::Imds, shared, Arc::new(saying))
}

fn is_identity(call: &Call) -> bool {
    call.path.starts_with("/metadata/identity/")
}

impl Imds {
    async fn limited(&self, call: &Call) -> Reply {
        let limiter = if is_identity(call) { &self.identity } else { &self.rest };
        let Some(_permit) = limiter.enter(call.received) else {
            return if is_identity(call) {
                identity::too_many_requests()
            } else {
                generic(StatusCode::TOO_MANY_REQUESTS, "Too many requests")
            };
        };
        if self.config.latency_ms > 0 {
            tokio::time::sleep(Duration::from_millis(self.config.latency_ms)).await;
        }
        self.answer(call).unwrap_or_else(|refusal| refusal)
    }

    fn answer(&self, call: &Call) -> Result<Reply, Reply> {
        let segments: Vec<&str> = call.path.split('/').skip(1).collect();
        match segments.as_slice() {
            ["metadata", "identity", "oauth2", "token"] => self.token(call),
            ["metadata", "identity", "info"] => self.info(call),
            // Absent where the second version of the protocol is: a client takes a 400 here for its presence.
            ["metadata", "identity", ..] => Err(identity::not_found()),
            ["metadata", "versions"] => {
                generic_checks(call)?;
                Ok(Reply::json(StatusCode::OK, &json!({"apiVersions": &API_VERSIONS[..]})))
            }
            ["metadata", "instance", path @ ..] => {
                generic_checks(call)?;
                api_version(call, API_VERSIONS[0])?;
                instance::answer(&self.config.virtual_machine, path, call)
            }
            ["metadata", "attested", "document"] => {
                generic_checks(call)?;
                api_version(call, "2018-10-01")?;
                instance::attested(&self.config.virtual_machine, call)
            }
            ["metadata", "loadbalancer"] => {
                generic_checks(call)?;
                api_version(call, "2020-10-01")?;
                Ok(Reply::json(StatusCode::OK, &instance::load_balancer()))
            }
            ["metadata", "scheduledevents"] => {
                header_checks(call)?;
                self.events.lock().unwrap_or_else(PoisonError::into_inner).answer(call)
            }
            ["metadata", "attested" | "loadbalancer" | "scheduledevents", ..] => {
                Err(Reply::not_emulated(ServiceName::Imds, &format!("{} {}", call.method, call.path)))
            }
            _ => Err(generic(StatusCode::NOT_FOUND, "Not found")),
        }
    }

    /// `GET /metadata/identity/info`: the tenant of the VM's identities.
    fn info(&self, call: &Call) -> Result<Reply, Reply> {
        identity::checks(call)?;
        api_version(call, FIRST_WITH_IDENTITY)?;
        let known = self.shared.known();
        let principal = known.system.as_ref().or(known.managed.first());
        let tenant = &principal.ok_or_else(identity::unknown_identity)?.tenant;
        Ok(Reply::json(StatusCode::OK, &json!({"tenantId": tenant})))
    }
}

/// What every category but the scheduled events' asks of a request.
fn generic_checks(call: &Call) -> Result<(), Reply> {
    header_checks(call)?;
    if call.method != Method::GET {
        return Err(generic(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed"));
    }
    Ok(())
}

/// What every category asks of a request.
fn header_checks(call: &Call) -> Result<(), Reply> {
    if call.header("metadata") != Some("true") {
        let message = "Bad request. Required metadata header not specified";
        return Err(generic(StatusCode::BAD_REQUEST, message));
    }
    if call.headers.contains_key("x-forwarded-for") {
        return Err(generic(StatusCode::BAD_REQUEST, "Bad request. Request header 'X-Forwarded-For' is not allowed"));
    }
    Ok(())
}

/// The version, which must be supported and not before `first`.
fn api_version(call: &Call, first: &str) -> Result<(), Reply> {
    // The dates compare as strings.
    if call.query.get("api-version").is_some_and(|version| version >= first && API_VERSIONS.contains(&version)) {
        return Ok(());
    }
    let newest: Vec<Value> = API_VERSIONS.iter().rev().take(3).map(|&version| Value::from(version)).collect();
    let body = json!({
        "error": "Bad request. api-version is invalid or was not specified in the request. For more information refer to \
                  aka.ms/azureimds",
        "newest-versions": newest,
    });
    Err(Reply::json(StatusCode::BAD_REQUEST, &body).with_code("api-version"))
}
