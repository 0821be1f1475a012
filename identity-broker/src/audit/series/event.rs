//! How a series looks as an Event.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::seen::{Object, Seen};
use crate::audit::json;

/// The API's limit for a note, in bytes.
const LONGEST_NOTE: usize = 1024;
/// The longest audience of a series, in bytes; what is longer is cut. Pods choose it.
pub(super) const LONGEST_AUDIENCE: usize = 256;
/// The most of the name of an object that goes into the name of an Event: with a digest it must stay below 253.
const LONGEST_PREFIX: usize = 200;
/// `reportingController` of the Events.
const CONTROLLER: &str = "entra-pod-identity";

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident: $verdict:literal, $kind:literal,)*) => {
        /// Why there is an Event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum EventReason { $($(#[$doc])* $variant,)* }

        impl EventReason {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// `reason` of the Event.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)* }
            }

            /// Of the verdict of a record.
            pub fn of(verdict: &str) -> Option<Self> {
                match verdict { $($verdict => Some(Self::$variant),)* _ => None }
            }

            /// `type` of the Event.
            pub const fn kind(self) -> &'static str {
                match self { $(Self::$variant => $kind,)* }
            }
        }
    };
}

reasons! {
    /// A token left.
    TokenIssued: "issued", "Normal",
    /// The caller may not have one.
    TokenDenied: "denied", "Warning",
    /// The caller may have one, but there was none.
    TokenUnavailable: "failed", "Warning",
    /// Counted as issued, but the decision changed before it left.
    TokenWithdrawn: "withdrawn", "Warning",
}

/// An object that an Event names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Named {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

impl From<&Object<'_>> for Named {
    fn from(object: &Object<'_>) -> Self {
        let owned = |text: &str| text.to_owned();
        Self { namespace: owned(&object.namespace), name: owned(&object.name), uid: owned(&object.uid) }
    }
}

/// What an Event is about: the binding; without one the pod; without a pod the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Regarding {
    Binding(Named),
    Pod,
    Node,
}

/// What of an Event never changes: the API server allows no more than the count to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fixed {
    pub(super) reason: EventReason,
    pub(super) regarding: Regarding,
    pub(super) pod: Option<Named>,
    pub(super) note: String,
    pub(super) first: Timestamp,
}

impl Fixed {
    /// Of the first record of a series; `audience` as the series has it.
    pub(super) fn new(seen: &Seen<'_>, audience: &str, node: &str, each: bool) -> Self {
        let regarding = match (&seen.binding, &seen.pod) {
            (Some(binding), _) => Regarding::Binding(binding.into()),
            (None, Some(_)) => Regarding::Pod,
            (None, None) => Regarding::Node,
        };
        let pod = seen.pod.as_ref().map(Named::from);
        let text = note(seen, audience, node, each);
        Self { reason: seen.event, regarding, pod, note: text, first: seen.time }
    }

    /// Where the Event is: beside what it is about.
    pub(super) fn namespace(&self) -> &str {
        match (&self.regarding, &self.pod) {
            (Regarding::Binding(binding), _) => &binding.namespace,
            (Regarding::Pod, Some(pod)) => &pod.namespace,
            // The API wants Events on what is in no namespace there.
            _ => "default",
        }
    }

    /// The name of the Event, the same after each restart.
    pub(super) fn name(&self, node: &str, digest: u128, epoch: u64) -> String {
        let about = match (&self.regarding, &self.pod) {
            (Regarding::Binding(binding), _) => &binding.name,
            (Regarding::Pod, Some(pod)) => &pod.name,
            _ => node,
        };
        let mut end = about.len().min(LONGEST_PREFIX);
        while !about.is_char_boundary(end) {
            end -= 1;
        }
        let about = about[..end].trim_end_matches(['.', '-']);
        // 80 bits tell the series of one object apart.
        let mut name = format!("{about}.{:020x}", digest >> 48);
        if epoch > 0 {
            // Writing into a String cannot fail, here and below.
            let _ = write!(name, ".{epoch}");
        }
        name
    }

    /// The whole object.
    pub(super) fn object(&self, name: &str, node: &str, count: u64, last: Timestamp) -> Value {
        let pod = self.pod.as_ref().map(|pod| reference("v1", "Pod", pod));
        let (regarding, related) = match &self.regarding {
            Regarding::Binding(binding) => {
                let version = format!("{}/{}", identity_crd::GROUP, identity_crd::VERSION);
                (reference(&version, "AzureIdentityBinding", binding), pod)
            }
            Regarding::Pod => (pod.unwrap_or_default(), None),
            // As kubelets name their nodes in Events.
            Regarding::Node => (json!({"apiVersion": "v1", "kind": "Node", "name": node, "uid": node}), None),
        };
        let mut object = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": self.namespace()},
            "eventTime": micros(self.first),
            "type": self.reason.kind(),
            "reason": self.reason.as_str(),
            "action": "Token",
            "note": self.note,
            "regarding": regarding,
            "reportingController": CONTROLLER,
            "reportingInstance": cut(node, 128),
        });
        if let Some(related) = related {
            object["related"] = related;
        }
        if count > 1 {
            object["series"] = series(count, last);
        }
        object
    }
}

/// What is changed of an Event that is there: nothing else may be.
pub(super) fn patch(count: u64, last: Timestamp) -> Value {
    json!({"series": if count > 1 { series(count, last) } else { Value::Null }})
}

fn series(count: u64, last: Timestamp) -> Value {
    // The API's number has 32 bits.
    json!({"count": count.min(i32::MAX as u64), "lastObservedTime": micros(last)})
}

fn reference(version: &str, kind: &str, object: &Named) -> Value {
    let mut reference =
        json!({"apiVersion": version, "kind": kind, "namespace": object.namespace, "name": object.name});
    if !object.uid.is_empty() {
        reference["uid"] = object.uid.as_str().into();
    }
    reference
}

fn micros(time: Timestamp) -> String {
    let mut text = Vec::with_capacity(27);
    json::micros(&mut text, time);
    String::from_utf8_lossy(&text).into_owned()
}

fn note(seen: &Seen<'_>, audience: &str, node: &str, each: bool) -> String {
    let whom = match &seen.pod {
        Some(pod) => format!("pod {}/{} ({})", pod.namespace, pod.name, seen.address),
        None => format!("address {}, which is no pod's", seen.address),
    };
    let mut text = match seen.event {
        EventReason::TokenIssued => format!("token for {audience} issued to {whom}"),
        EventReason::TokenDenied => format!("token for {audience} denied to {whom}: {}", seen.reason),
        EventReason::TokenUnavailable => format!("no token for {audience} to be had for {whom}: {}", seen.reason),
        EventReason::TokenWithdrawn => {
            format!("token for {audience} not handed out to {whom}, though counted as issued: {}", seen.reason)
        }
    };
    if let Some(identity) = &seen.identity {
        let _ = write!(text, ", identity {identity}");
    }
    if let Some(client) = &seen.client_id {
        let _ = write!(text, ", client id {client}");
    }
    let what = if each { "record" } else { "the first is record" };
    let _ = write!(text, "; {what} {} of node {node}", seen.seq);
    if !seen.detail.is_empty() {
        let _ = write!(text, ": {}", seen.detail);
    }
    cut(&text, LONGEST_NOTE).to_owned()
}

/// At most so many bytes, between characters.
pub(super) fn cut(text: &str, longest: usize) -> &str {
    let mut end = text.len().min(longest);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
