//! `/metadata/scheduledevents`: what the platform is about to do to the VM, and the VM's word that it may
//! (<https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events>).

use http::{HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::generic;
use crate::emulator::http::{Call, Reply};

const API_VERSIONS: [&str; 7] =
    ["2017-03-01", "2017-08-01", "2017-11-01", "2019-01-01", "2019-04-01", "2019-08-01", "2020-07-01"];
/// The one event that there is.
const EVENT: &str = "C7061BAC-AFDC-4513-B24B-AA5F13A16123";

/// One event of one VM, scheduled or started.
#[derive(Debug)]
pub(super) struct Events {
    vm: String,
    incarnation: u64,
    started: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Approval {
    start_requests: Vec<Start>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Start {
    event_id: String,
}

impl Events {
    pub(super) fn new(vm: &str) -> Self {
        Self { vm: vm.to_owned(), incarnation: 1, started: false }
    }

    pub(super) fn answer(&mut self, call: &Call) -> Result<Reply, Reply> {
        if !call.query.get("api-version").is_some_and(|version| API_VERSIONS.contains(&version)) {
            return Err(generic(StatusCode::BAD_REQUEST, "Bad request. api-version is invalid or was not specified"));
        }
        match call.method {
            Method::GET => Ok(Reply::json(StatusCode::OK, &self.document())),
            Method::POST => self.approve(&call.body),
            _ => Err(generic(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed")
                .with_header(header::ALLOW, HeaderValue::from_static("GET, POST"))),
        }
    }

    fn approve(&mut self, body: &[u8]) -> Result<Reply, Reply> {
        let approval: Approval = serde_json::from_slice(body)
            .map_err(|_| generic(StatusCode::BAD_REQUEST, "Bad request. The body is not {\"StartRequests\": […]}"))?;
        if approval.start_requests.is_empty() || approval.start_requests.iter().any(|start| start.event_id != EVENT) {
            return Err(generic(StatusCode::BAD_REQUEST, "Bad request. There is no such event"));
        }
        if !self.started {
            self.started = true;
            self.incarnation += 1;
        }
        Ok(Reply::text(StatusCode::OK, ""))
    }

    fn document(&self) -> Value {
        json!({
            "DocumentIncarnation": self.incarnation,
            "Events": [{
                "EventId": EVENT,
                "EventStatus": if self.started { "Started" } else { "Scheduled" },
                "EventType": "Reboot",
                "ResourceType": "VirtualMachine",
                "Resources": [self.vm],
                "NotBefore": if self.started { "" } else { "Mon, 30 Nov 2026 22:26:58 GMT" },
                "Description": "Virtual machine is going to be restarted as requested by authorized user.",
                "EventSource": "User",
                "DurationInSeconds": -1,
            }],
        })
    }
}
