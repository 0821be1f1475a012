//! The pods' network namespaces and files, brought in step with the pods there should be.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use super::{
    Error, accounts, azure,
    kubelet::{NODE_ADDRESS, NODE_NAME, PodKey, PodView},
    network::Network,
    place::Place,
    record::PodRecord,
};
use crate::files;

/// A resolver that answers nothing at once: the lab has no DNS, its names are in the hosts files.
pub(super) const RESOLV: &str = "# The lab has no DNS: see /etc/hosts.\noptions timeout:1 attempts:1\n";

/// The pods with a network namespace.
pub(super) struct Pods {
    place: Place,
    network: Network,
    node: String,
    hosts: String,
    live: BTreeMap<PodKey, Live>,
    wires: u32,
}

struct Live {
    view: PodView,
    wire: Option<String>,
    record: PodRecord,
}

impl Pods {
    pub(super) fn new(place: &Place, network: &Network, node: &str, hosts: &str) -> Self {
        Self {
            place: place.clone(),
            network: network.clone(),
            node: node.to_owned(),
            hosts: hosts.to_owned(),
            live: BTreeMap::new(),
            wires: 0,
        }
    }

    /// Adds a line to every pod's hosts file, those to come included.
    pub(super) fn add_hosts(&mut self, line: &str) -> std::io::Result<()> {
        self.hosts.push_str(line);
        self.live.values().try_for_each(|live| azure::append(&live.record.files.join("hosts"), line))
    }

    /// Pods of `desired` that have no namespace yet, or one that no longer fits.
    pub(super) fn missing(&self, desired: &[PodView]) -> Vec<PodView> {
        let fits = |pod: &PodView| self.live.get(&pod.key()).is_some_and(|live| fits(&live.view, pod));
        desired.iter().filter(|pod| pod.here && !fits(pod)).cloned().collect()
    }

    /// Makes a pod's namespace and files.
    pub(super) fn add(&mut self, pod: &PodView, token: &str) -> Result<(), Error> {
        self.remove(&pod.key());
        let directory = self.place.pod(&pod.namespace, &pod.name);
        files::private_directory(&directory)?;
        let mut hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
        let address = pod.addresses.first().copied().unwrap_or(NODE_ADDRESS);
        let name = if pod.host_network { NODE_NAME } else { &pod.name };
        let _ = writeln!(hosts, "{address} {name}");
        hosts.push_str(&self.hosts);
        files::write(&directory.join("hosts"), hosts.as_bytes(), 0o644, &directory)?;
        files::write(&directory.join("resolv.conf"), RESOLV.as_bytes(), 0o644, &directory)?;
        accounts::write(&directory.join("serviceaccount"), &pod.namespace, token, &self.place.file("ca.crt"))?;

        let (netns, wire) = if pod.host_network {
            (self.node.clone(), None)
        } else {
            self.wires += 1;
            let (netns, wire) = (self.place.pod_netns(&pod.namespace, &pod.name), format!("pod{}", self.wires));
            self.network.add_pod(&self.node, &netns, &wire, &pod.addresses)?;
            (netns, Some(wire))
        };
        let record = PodRecord {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            addresses: if pod.host_network { vec![NODE_ADDRESS] } else { pod.addresses.clone() },
            phase: pod.phase.clone(),
            service_account: pod.service_account.clone(),
            netns,
            files: directory,
        };
        self.live.insert(pod.key(), Live { view: pod.clone(), wire, record });
        Ok(())
    }

    /// Removes what is not in `desired`, and notes what changed about the rest.
    pub(super) fn retain(&mut self, desired: &[PodView]) {
        let gone: Vec<PodKey> =
            self.live.keys().filter(|key| !desired.iter().any(|pod| pod.here && pod.key() == **key)).cloned().collect();
        for key in gone {
            self.remove(&key);
        }
        for pod in desired {
            if let Some(live) = self.live.get_mut(&pod.key()) {
                live.view = pod.clone();
                live.record.phase.clone_from(&pod.phase);
                live.record.service_account.clone_from(&pod.service_account);
            }
        }
    }

    /// Removes one pod's namespace and files.
    pub(super) fn remove(&mut self, key: &PodKey) {
        let Some(live) = self.live.remove(key) else { return };
        if let Some(wire) = live.wire {
            self.network.remove_pod(&self.node, &live.record.netns, &wire);
        }
        let _ = fs::remove_dir_all(live.record.files);
    }

    /// For the lab's record.
    pub(super) fn records(&self) -> Vec<PodRecord> {
        self.live.values().map(|live| live.record.clone()).collect()
    }
}

/// Whether a namespace made for `one` serves `other`.
fn fits(one: &PodView, other: &PodView) -> bool {
    (&one.uid, &one.addresses, one.host_network) == (&other.uid, &other.addresses, other.host_network)
}
