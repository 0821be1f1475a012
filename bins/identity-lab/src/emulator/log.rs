//! The request log: what was asked of the emulators, without what must stay secret.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{File, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{
    fault::{Fault, ServiceName},
    http::{Call, Pairs},
};

/// Records kept in memory; the file, if there is one, keeps all.
const KEPT: usize = 10_000;
/// Things that are counted apart.
const COUNTED: usize = 10_000;
/// In place of a value that must stay secret.
const REDACTED: &str = "[redacted]";

/// One request and how it was answered: one line of the request log.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// When it arrived.
    pub time: Timestamp,
    /// Who was asked.
    pub service: ServiceName,
    /// HTTP method.
    pub method: String,
    /// Host (and port) that the client meant.
    pub host: String,
    /// Path as sent.
    pub path: String,
    /// Decoded query; a name given several times has a list. Secrets are redacted.
    pub query: Map<String, Value>,
    /// Decoded form; as `query`. Empty when the body was none.
    pub form: Map<String, Value>,
    /// HTTP status; 0 when the connection was closed without an answer, or the client left before it.
    pub status: u16,
    /// Entra's number or the `error` of IMDS.
    pub error_code: Option<String>,
    /// Who asked.
    pub caller: SocketAddr,
    /// How long the answer took, in milliseconds.
    pub elapsed_ms: u64,
    /// The fault that made or delayed the answer.
    pub fault: Option<Fault>,
}

/// How often one thing was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Count {
    /// Who was asked.
    pub service: ServiceName,
    /// What for. A token: who wants it and for which resource, as in `CLIENT_ID https://vault.azure.net` (IMDS: what selects
    /// the identity, `-` when nothing does). In a vault: host and path. Anything else: the path.
    pub key: String,
    /// Requests in all.
    pub requests: u64,
    /// Those that were answered with what was asked for (2xx).
    pub granted: u64,
}

/// Where records go.
#[derive(Debug)]
pub(super) struct RequestLog {
    kept: Mutex<VecDeque<Record>>,
    counts: Mutex<BTreeMap<(ServiceName, String), (u64, u64)>>,
    file: Option<Mutex<File>>,
}

impl RequestLog {
    pub(super) fn open(path: Option<&Path>) -> io::Result<Self> {
        let file = path.map(|path| OpenOptions::new().create(true).append(true).open(path)).transpose()?;
        Ok(Self { kept: Mutex::default(), counts: Mutex::default(), file: file.map(Mutex::new) })
    }

    pub(super) fn records(&self) -> Vec<Record> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    pub(super) fn counts(&self) -> Vec<Count> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |((service, key), &(requests, granted)): (&(ServiceName, String), &(u64, u64))| Count {
            service: *service,
            key: key.clone(),
            requests,
            granted,
        };
        counts.iter().map(count).collect()
    }

    pub(super) fn reset_counts(&self) {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn count(&self, record: &Record) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (record.service, key(record));
        if counts.len() >= COUNTED && !counts.contains_key(&key) {
            return;
        }
        let (requests, granted) = counts.entry(key).or_default();
        *requests += 1;
        *granted += u64::from((200..300).contains(&record.status));
    }

    fn write(&self, record: Record) {
        self.count(&record);
        if let Some(file) = &self.file {
            let written = serde_json::to_vec(&record).map_err(io::Error::other).and_then(|mut line| {
                line.push(b'\n');
                file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)
            });
            if let Err(error) = written {
                tracing::error!(%error, "cannot write the request log");
            }
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(record);
    }
}

/// A request that is being answered.
pub(super) struct Open {
    log: Arc<RequestLog>,
    record: Option<Record>,
    begun: Instant,
}

impl Open {
    pub(super) fn new(log: Arc<RequestLog>, service: ServiceName, call: &Call) -> Self {
        let record = Record {
            time: call.received,
            service,
            method: call.method.to_string(),
            host: call.host.clone(),
            path: call.path.clone(),
            query: readable(&call.query),
            form: call.form.as_ref().map(readable).unwrap_or_default(),
            status: 0,
            error_code: None,
            caller: call.caller,
            elapsed_ms: 0,
            fault: None,
        };
        Self { log, record: Some(record), begun: Instant::now() }
    }

    pub(super) fn close(mut self, status: u16, error_code: Option<String>, fault: Option<Fault>) {
        if let Some(record) = &mut self.record {
            (record.status, record.error_code, record.fault) = (status, error_code, fault);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.elapsed_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.log.write(record);
        }
    }
}

/// What a request is counted as.
fn key(record: &Record) -> String {
    let field = |map: &Map<String, Value>, name: &str| map.get(name).and_then(Value::as_str).map(str::to_owned);
    let token = record.path.ends_with("/token");
    match record.service {
        ServiceName::Entra if token => {
            let scope = field(&record.form, "scope").map(|scope| scope.trim_end_matches("/.default").to_owned());
            let resource = scope.or_else(|| field(&record.form, "resource")).unwrap_or_default();
            format!("{} {resource}", field(&record.form, "client_id").as_deref().unwrap_or("-"))
        }
        ServiceName::Imds if token => {
            let names = ["client_id", "object_id", "msi_res_id", "mi_res_id"];
            let identity = names.into_iter().find_map(|name| field(&record.query, name));
            let resource = field(&record.query, "resource").unwrap_or_default();
            format!("{} {resource}", identity.as_deref().unwrap_or("-"))
        }
        ServiceName::KeyVault => format!("{}{}", record.host, record.path.trim_end_matches('/')),
        ServiceName::Entra | ServiceName::Imds => record.path.clone(),
    }
}

fn readable(pairs: &Pairs) -> Map<String, Value> {
    let mut map = Map::new();
    for (name, value) in &pairs.0 {
        let value = Value::from(if is_secret(name) { REDACTED } else { value.as_str() });
        match map.get_mut(name) {
            None => {
                map.insert(name.clone(), value);
            }
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    map
}

/// Whether a field may hold a credential: by parts of the name, so that a misspelt `clientSecret` does not get through.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    if matches!(name.as_str(), "client_assertion_type" | "requested_token_use" | "token_type") {
        return false;
    }
    ["secret", "assertion", "password", "token", "code", "key"].iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_redacted_by_name_and_repetition_shows() {
        let pairs = Pairs::parse(b"client_id=c&client_secret=one&client_secret=two&clientSecret=three&scope=a&scope=b");
        let map = readable(&pairs);
        assert_eq!(map["client_id"], "c");
        assert_eq!(map["client_secret"], serde_json::json!([REDACTED, REDACTED]));
        assert_eq!(map["clientSecret"], REDACTED);
        assert_eq!(map["scope"], serde_json::json!(["a", "b"]));
    }
}
