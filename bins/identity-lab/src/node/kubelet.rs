//! What a scheduler and a kubelet would add to a pod: UID, node, address, phase, service account. Values only.
//!
//! What a manifest says stays: a pinned `status.podIP` (also one that another pod has), a finished phase, a host-network pod,
//! a pod of another node. An explicit empty `status.podIP: ""` means that the pod runs but its address is not published yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use serde_json::{Map, Value, json};

/// Name of the lab's one node.
pub const NODE_NAME: &str = "lab-node";
/// The node's address on the pods' bridge.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 1);
/// Length of the pods' network prefix.
pub const PREFIX: u8 = 16;
/// First address that is handed out; those below (10.42.0.2 … 10.42.0.255) are for manifests that pin one.
const FIRST: u32 = u32::from_be_bytes([10, 42, 1, 0]);
const LAST: u32 = u32::from_be_bytes([10, 42, 255, 254]);

/// `(namespace, name)`.
pub type PodKey = (String, String);

/// A pod as the node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Addresses for its network namespace; empty for a host-network pod.
    pub addresses: Vec<Ipv4Addr>,
    /// Whether it shares the node's network.
    pub host_network: bool,
    /// Whether it is on this node at all.
    pub here: bool,
    /// Phase.
    pub phase: String,
    /// Service account.
    pub service_account: String,
}

impl PodView {
    /// `(namespace, name)`.
    pub fn key(&self) -> PodKey {
        (self.namespace.clone(), self.name.clone())
    }
}

/// Remembers what it gave to whom.
#[derive(Debug)]
pub struct Kubelet {
    pods: BTreeMap<PodKey, Given>,
    next: u32,
}

#[derive(Clone, Debug)]
struct Given {
    uid: String,
    address: Option<Ipv4Addr>,
    since: String,
}

impl Default for Kubelet {
    fn default() -> Self {
        Self { pods: BTreeMap::new(), next: FIRST }
    }
}

impl Kubelet {
    /// Fills in what `pod` lacks; `new_uid` is used for a pod not seen before. None when it is no pod that could run (no name,
    /// or fields of the wrong type: left alone, so that the product sees the mistake).
    pub fn admit(&mut self, pod: &mut Value, new_uid: impl FnOnce() -> String, now: &str) -> Option<PodView> {
        let name = pod.pointer("/metadata/name").and_then(Value::as_str).filter(|name| !name.is_empty())?.to_owned();
        if !["/spec", "/status"]
            .iter()
            .all(|field| pod.pointer(field).is_none_or(|value| value.is_object() || value.is_null()))
        {
            return None;
        }
        let namespace = default(object(pod, "metadata")?, "namespace", || "default".into())?;
        let key = (namespace.clone(), name.clone());
        let given = self.pods.get(&key).cloned().unwrap_or_else(|| Given {
            uid: new_uid(),
            address: None,
            since: now.to_owned(),
        });

        let metadata = object(pod, "metadata")?;
        let uid = default(metadata, "uid", || given.uid.clone().into())?;
        default(metadata, "creationTimestamp", || given.since.clone().into())?;
        let spec = object(pod, "spec")?;
        let node = default(spec, "nodeName", || NODE_NAME.into())?;
        let service_account = default(spec, "serviceAccountName", || "default".into())?;
        let host_network = spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or(false);
        let here = node == NODE_NAME;
        let status = object(pod, "status")?;
        let phase = default(status, "phase", || "Running".into())?;
        default(status, "startTime", || given.since.clone().into())?;

        let unpublished = status.get("podIP").and_then(Value::as_str) == Some("");
        let mut addresses = pinned(status);
        let mut address = given.address;
        if unpublished {
            status.remove("podIP");
            status.remove("podIPs");
        }
        if here {
            default(status, "hostIP", || NODE_ADDRESS.to_string().into())?;
            if host_network {
                addresses = vec![NODE_ADDRESS];
            } else if addresses.is_empty() {
                let own = address.or_else(|| self.free())?;
                address = Some(own);
                addresses = vec![own];
            }
            if !unpublished {
                let first = addresses[0].to_string();
                default(status, "podIP", || first.clone().into())?;
                let all: Vec<Value> = addresses.iter().map(|address| json!({ "ip": address })).collect();
                status.entry("podIPs").or_insert_with(|| all.into());
            }
        }
        if host_network {
            addresses.clear();
        }
        self.pods.insert(key, Given { uid: uid.clone(), address, since: given.since });
        Some(PodView { namespace, name, uid, addresses, host_network, here, phase, service_account })
    }

    /// Forgets every pod that is not in `present`: a pod of that name that comes later is another one.
    pub fn retain(&mut self, present: &BTreeSet<PodKey>) {
        self.pods.retain(|key, _| present.contains(key));
    }

    /// Forgets one pod.
    pub fn forget(&mut self, key: &PodKey) {
        self.pods.remove(key);
    }

    /// The next address, going round: one that was just given up is not handed out again at once.
    fn free(&mut self) -> Option<Ipv4Addr> {
        let taken: BTreeSet<u32> = self.pods.values().filter_map(|given| given.address.map(u32::from)).collect();
        for _ in FIRST..=LAST {
            let candidate = self.next;
            self.next = if self.next >= LAST { FIRST } else { self.next + 1 };
            let last = candidate & 0xff;
            if last != 0 && last != 255 && !taken.contains(&candidate) {
                return Some(Ipv4Addr::from(candidate));
            }
        }
        None
    }
}

/// The IPv4 addresses that a manifest pins, `podIP` first.
fn pinned(status: &Map<String, Value>) -> Vec<Ipv4Addr> {
    let first = status.get("podIP").and_then(Value::as_str);
    let rest = status.get("podIPs").and_then(Value::as_array).into_iter().flatten();
    let rest = rest.filter_map(|entry| entry.get("ip").and_then(Value::as_str));
    let mut found = Vec::new();
    for address in first.into_iter().chain(rest).filter_map(|text| text.parse().ok()) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

fn object<'a>(value: &'a mut Value, field: &str) -> Option<&'a mut Map<String, Value>> {
    let entry = value.as_object_mut()?.entry(field).or_insert_with(|| json!({}));
    if entry.is_null() {
        *entry = json!({});
    }
    entry.as_object_mut()
}

/// The string in `field`, set to `value` when there is none; none when it is something else than a string.
fn default(object: &mut Map<String, Value>, field: &str, value: impl FnOnce() -> Value) -> Option<String> {
    let entry = object.entry(field).or_insert(Value::Null);
    if entry.is_null() || entry.as_str() == Some("") {
        *entry = value();
    }
    entry.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(kubelet: &mut Kubelet, pod: &Value) -> (Value, Option<PodView>) {
        let mut pod = pod.clone();
        let view = kubelet.admit(&mut pod, || "fresh".to_owned(), "2026-01-01T00:00:00Z");
        (pod, view)
    }

    #[test]
    fn supplies_what_is_missing_and_remembers_it() {
        let mut kubelet = Kubelet::default();
        let manifest = json!({ "kind": "Pod", "metadata": { "name": "a" } });
        let (pod, view) = admit(&mut kubelet, &manifest);
        assert_eq!(pod["metadata"]["namespace"], "default");
        assert_eq!(pod["metadata"]["uid"], "fresh");
        assert_eq!(pod["spec"]["nodeName"], NODE_NAME);
        assert_eq!(pod["spec"]["serviceAccountName"], "default");
        assert_eq!(pod["status"]["phase"], "Running");
        assert_eq!(pod["status"]["podIP"], "10.42.1.1");
        assert_eq!(pod["status"]["podIPs"], json!([{ "ip": "10.42.1.1" }]));
        assert_eq!(pod["status"]["hostIP"], "10.42.0.1");
        assert_eq!(admit(&mut kubelet, &manifest), (pod, view.clone()), "the same pod again is the same pod");

        // Gone and back: another pod, and not at the same address.
        kubelet.retain(&BTreeSet::new());
        let (_, again) = admit(&mut kubelet, &manifest);
        assert_ne!(again.unwrap().addresses, view.unwrap().addresses);
    }

    #[test]
    fn what_the_manifest_says_stays() {
        let mut kubelet = Kubelet::default();
        let pinned = |name: &str| json!({ "metadata": { "name": name, "uid": "mine" }, "status": { "podIP": "10.42.0.9", "phase": "Succeeded" } });
        let (pod, view) = admit(&mut kubelet, &pinned("a"));
        assert_eq!(pod["status"]["phase"], "Succeeded");
        let view = view.unwrap();
        assert_eq!((view.uid.as_str(), view.addresses), ("mine", vec![Ipv4Addr::new(10, 42, 0, 9)]));
        assert_eq!(admit(&mut kubelet, &pinned("b")).1.unwrap().addresses, [Ipv4Addr::new(10, 42, 0, 9)]);

        let (pod, view) =
            admit(&mut kubelet, &json!({ "metadata": { "name": "host" }, "spec": { "hostNetwork": true } }));
        assert_eq!(pod["status"]["podIP"], "10.42.0.1");
        assert!(view.as_ref().unwrap().host_network && view.unwrap().addresses.is_empty());

        let (pod, view) =
            admit(&mut kubelet, &json!({ "metadata": { "name": "far" }, "spec": { "nodeName": "other" } }));
        assert!(pod["status"].get("podIP").is_none());
        assert!(!view.unwrap().here);

        let (pod, view) = admit(&mut kubelet, &json!({ "metadata": { "name": "early" }, "status": { "podIP": "" } }));
        assert!(pod["status"].get("podIP").is_none(), "{pod}");
        assert_eq!(view.unwrap().addresses.len(), 1, "it has an address all the same");
    }

    #[test]
    fn a_mistake_is_left_for_the_product_to_find() {
        let mut kubelet = Kubelet::default();
        for wrong in
            [json!({}), json!({ "metadata": { "name": 3 } }), json!({ "metadata": { "name": "a" }, "spec": [] })]
        {
            let (after, view) = admit(&mut kubelet, &wrong);
            assert_eq!((after, view), (wrong, None));
        }
    }

    #[test]
    fn no_address_is_given_twice() {
        let mut kubelet = Kubelet::default();
        let mut seen = BTreeSet::new();
        for number in 0..600 {
            let (_, view) = admit(&mut kubelet, &json!({ "metadata": { "name": format!("p{number}") } }));
            assert!(seen.insert(view.unwrap().addresses[0]));
        }
        assert!(seen.iter().all(|address| !matches!(address.octets()[3], 0 | 255)));
    }
}
