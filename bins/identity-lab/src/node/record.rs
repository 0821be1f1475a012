//! What a running lab writes about itself, for `exec`, `status`, `fault` and `down`.

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::place::Place;
use crate::{files, process};

/// The contents of `lab.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The process that holds the lab.
    pub pid: u32,
    /// Its start time, so that another process with the same id is never mistaken for it.
    pub started: u64,
    /// Everything is up: node, pods, emulators, both binaries.
    pub ready: bool,
    /// Whether it lives in a user namespace of its own.
    pub rootless: bool,
    /// The directory of manifests it follows.
    pub manifests: Option<PathBuf>,
    /// The administrator's kubeconfig, with `--kube`.
    pub kubeconfig: Option<PathBuf>,
    /// Directory of network namespaces (seen from the holding process).
    pub netns_directory: PathBuf,
    /// Certificate of the emulators' authority.
    pub ca: PathBuf,
    /// The file of the lab's own clock, if it has one.
    #[serde(default)]
    pub clock: Option<PathBuf>,
    /// The node's network namespace.
    pub node_netns: String,
    /// The emulators' network namespace.
    pub azure_netns: String,
    /// Processes.
    pub processes: Vec<ProcessRecord>,
    /// Pods with a network namespace.
    pub pods: Vec<PodRecord>,
}

/// One process of the lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessRecord {
    /// Name.
    pub name: String,
    /// Process id.
    pub pid: u32,
    /// Start time.
    pub started: u64,
    /// Where it answers, for people.
    pub address: String,
    /// Its output.
    pub log: PathBuf,
}

/// One pod of the lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRecord {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Addresses inside its network namespace.
    pub addresses: Vec<Ipv4Addr>,
    /// Phase as published.
    pub phase: String,
    /// Service account.
    pub service_account: String,
    /// Its network namespace (the node's for a host-network pod).
    pub netns: String,
    /// Its files: see [`Place::pod`].
    pub files: PathBuf,
}

impl Record {
    /// Reads the record of the lab at `place`, if there is one.
    pub fn read(place: &Place) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(place.record()).ok()?).ok()
    }

    /// Writes it.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write(&self, place: &Place) -> std::io::Result<()> {
        files::write_secret(&place.record(), &serde_json::to_vec_pretty(self)?)
    }

    /// Whether the process that holds the lab is alive.
    pub fn alive(&self) -> bool {
        process::started(self.pid) == Some(self.started)
    }

    /// The pod `NAMESPACE/NAME`.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&PodRecord> {
        self.pods.iter().find(|pod| pod.namespace == namespace && pod.name == name)
    }

    /// What is not as it should be: empty when the lab is ready and every process runs.
    pub fn complaints(&self) -> Vec<String> {
        let mut found = Vec::new();
        if !self.alive() {
            found.push(format!(
                "the process that held the lab (pid {}) is gone; `identity-lab down` cleans up",
                self.pid
            ));
        } else if !self.ready {
            found.push("not ready yet".to_owned());
        }
        let ended = self.processes.iter().filter(|process| process::started(process.pid) != Some(process.started));
        found.extend(ended.map(|process| format!("{} has ended, see {}", process.name, process.log.display())));
        found
    }

    /// A table for people.
    pub fn table(&self, place: &Place) -> String {
        let mut text =
            format!("lab       {} ({})\n", place.root().display(), if self.ready { "ready" } else { "not ready" });
        let mut line = |name: &str, value: Option<&Path>| {
            if let Some(value) = value {
                let _ = writeln!(text, "{name:<9} {}", value.display());
            }
        };
        line("manifests", self.manifests.as_deref());
        line(
            "kubectl",
            self.kubeconfig.as_ref().map(|path| PathBuf::from(format!("--kubeconfig {}", path.display()))).as_deref(),
        );
        line("CA", Some(&self.ca));
        let state = |process: &ProcessRecord| {
            if process::started(process.pid) == Some(process.started) { "running" } else { "ended" }.to_owned()
        };
        let mut processes = vec![["PROCESS", "PID", "STATE", "ADDRESS", "LOG"].map(str::to_owned).to_vec()];
        processes.extend(self.processes.iter().map(|process| {
            vec![
                process.name.clone(),
                process.pid.to_string(),
                state(process),
                process.address.clone(),
                process.log.display().to_string(),
            ]
        }));
        let mut pods =
            vec![["POD", "ADDRESS", "PHASE", "SERVICE ACCOUNT", "NETWORK NAMESPACE"].map(str::to_owned).to_vec()];
        pods.extend(self.pods.iter().map(|pod| {
            let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
            vec![
                format!("{}/{}", pod.namespace, pod.name),
                addresses.join(","),
                pod.phase.clone(),
                pod.service_account.clone(),
                pod.netns.clone(),
            ]
        }));
        text + "\n" + &align(&processes) + "\n" + &align(&pods)
    }
}

/// Columns as wide as their widest cell.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_says_what_is_wrong() {
        let process = |name: &str, pid| ProcessRecord {
            name: name.to_owned(),
            pid,
            started: 0,
            address: "a".to_owned(),
            log: "/l".into(),
        };
        let record =
            Record { pid: 0, processes: vec![process("node", 0), process("controller", 0)], ..Record::default() };
        let table = record.table(&Place::new(Path::new("/x")));
        assert!(table.contains("PROCESS     PID  STATE"), "{table}");
        assert!(table.contains("controller  0    ended"), "{table}");
        assert_eq!(record.complaints().len(), 3);
    }
}
