//! Where it happens: the node's network namespace, in which this process and all servers are, and one for all pods, with
//! every pod's address. Between them is what is on a node: a bridge, forwarding, netfilter.

use std::{
    fs::{self, OpenOptions},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use anyhow::{Context as _, bail};
use identity_lab::{
    node::{
        enter,
        kubelet::NODE_ADDRESS,
        network::{METADATA_ADDRESS, Network},
    },
    process::{self, Keeper, Process},
};
use nix::sched::{CloneFlags, setns};
use tokio::net::TcpListener;

use super::{
    generator::{Outcome, Plan},
    now, servers,
};

/// Where the product answers.
pub(crate) const METADATA: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(METADATA_ADDRESS), 80);
/// Where the bare server does.
pub(crate) const BARE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(NODE_ADDRESS), 8000);
/// And where it does behind a redirect like the product's.
pub(crate) const REDIRECTED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(169, 254, 169, 253)), 80);
/// Where the upstream does, on the node's loopback.
pub(crate) const UPSTREAM: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8169);

const READY: Duration = Duration::from_mins(1);
const NODE_PROBE: u16 = 8085;
const CONTROLLER_PROBE: u16 = 8080;

/// Network namespaces; removed when dropped.
pub(crate) struct Namespaces {
    network: Network,
    prefix: String,
}

impl Namespaces {
    /// Makes them, with the addresses of `pods` pods. This process moves into that of the node: it must have one thread.
    pub(crate) fn new(work: &Path, pods: usize) -> anyhow::Result<Self> {
        let network = if nix::unistd::geteuid().is_root() {
            Network::for_root()
        } else {
            enter::become_root()?;
            Network::rootless(&work.join("netns"))?
        };
        let namespaces = Self { network, prefix: format!("load{}", std::process::id()) };
        let network = &namespaces.network;
        let addresses: Vec<Ipv4Addr> = (0..pods).map(address).collect();
        network.add_node(&namespaces.name("node"), &namespaces.name("azure"))?;
        network.add_pod(&namespaces.name("node"), &namespaces.name("pods"), "pods0", &addresses)?;
        network
            .within(&namespaces.name("pods"), || fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535"))?;
        let node = fs::File::open(network.path(&namespaces.name("node")))?;
        setns(node, CloneFlags::CLONE_NEWNET).context("cannot enter the node's network namespace")?;
        Ok(namespaces)
    }

    fn name(&self, which: &str) -> String {
        format!("{}-{which}", self.prefix)
    }

    /// The namespace of the pods.
    pub(crate) fn pods(&self) -> PathBuf {
        self.network.path(&self.name("pods"))
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for which in ["pods", "azure", "node"] {
            self.network.remove(&self.name(which));
        }
    }
}

/// The address of a pod.
pub(crate) fn address(pod: usize) -> Ipv4Addr {
    let [third, fourth] = [1 + pod / 200, 1 + pod % 200].map(|part| u8::try_from(part).unwrap_or(u8::MAX));
    Ipv4Addr::new(10, 42, third, fourth)
}

/// The product's two programs.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) node: PathBuf,
    /// The node daemon with the feature `unaudited`, where that is measured.
    pub(crate) unaudited: Option<PathBuf>,
    pub(crate) controller: PathBuf,
}

/// What runs.
pub(crate) struct Stage {
    pub(crate) node: Process,
    _controller: Process,
    pub(crate) keeper: Keeper,
    program: PathBuf,
    source: Vec<String>,
    logs: PathBuf,
    pub(crate) pods: PathBuf,
    /// How often upstream was asked.
    pub(crate) asked: Arc<AtomicU64>,
    upstream: tokio::task::JoinHandle<()>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.upstream.abort();
    }
}

impl Stage {
    /// Starts upstream, controller and node, each with its own words about where the objects are.
    pub(crate) async fn start(
        programs: &Programs,
        pods: PathBuf,
        work: &Path,
        [controller_source, node_source]: [Vec<String>; 2],
    ) -> anyhow::Result<Self> {
        let asked = Arc::new(AtomicU64::new(0));
        let listener = TcpListener::bind(UPSTREAM).await?;
        let counter = Arc::clone(&asked);
        let upstream = tokio::spawn(async move {
            if let Err(error) = servers::upstream(listener, counter).await {
                super::say(&format!("the upstream has ended: {error}"));
            }
        });
        let keeper = Keeper::new()?;
        // Not beside the manifests: the daemons watch what changes there.
        let logs = work.join("logs");
        fs::create_dir_all(&logs)?;
        let line = [controller_source, words("--log-format=json --holder bench")].concat();
        let mut controller =
            keeper.spawn("controller", &programs.controller, &line, &[], &logs.join("controller.log"))?;
        ready(&mut controller, CONTROLLER_PROBE).await?;
        let node = start_node(&keeper, &programs.node, super::NODE, &node_source, &logs).await?;
        let program = programs.node.clone();
        Ok(Self { node, _controller: controller, keeper, program, source: node_source, logs, pods, asked, upstream })
    }

    /// Ends the node daemon and starts one for the node of another name.
    pub(crate) async fn move_to(&mut self, node: &str) -> anyhow::Result<()> {
        self.restart(node, &[]).await
    }

    /// Ends the node daemon and starts one with further words on its command line.
    pub(crate) async fn restart(&mut self, node: &str, more: &[&str]) -> anyhow::Result<()> {
        let program = self.program.clone();
        self.restart_as(&program, node, more).await
    }

    /// Ends the node daemon and starts this one.
    pub(crate) async fn restart_as(&mut self, program: &Path, node: &str, more: &[&str]) -> anyhow::Result<()> {
        self.node.stop(Duration::from_secs(10)).await;
        let source = [self.source.clone(), more.iter().map(|word| (*word).to_owned()).collect()].concat();
        self.node = start_node(&self.keeper, program, node, &source, &self.logs).await?;
        Ok(())
    }

    /// Starts the bare server with bodies of `size` bytes.
    pub(crate) async fn bare(&self, work: &Path, size: usize) -> anyhow::Result<Process> {
        let line = ["bare".to_owned(), BARE.to_string(), size.to_string()];
        let mut bare = self.keeper.spawn("bare", &std::env::current_exe()?, &line, &[], &work.join("bare.log"))?;
        wait(&mut bare, || std::net::TcpStream::connect(BARE).is_ok()).await?;
        let rule = format!(
            "add table ip load; add chain ip load prerouting {{ type nat hook prerouting priority dstnat; }}; \
             add rule ip load prerouting ip daddr {} tcp dport {} dnat to {BARE}",
            REDIRECTED.ip(),
            REDIRECTED.port()
        );
        process::run("nft", &[&rule])?;
        Ok(bare)
    }

    /// Empties the node's log: a run writes hundreds of megabytes.
    pub(crate) fn empty_log(&self) -> anyhow::Result<()> {
        OpenOptions::new().write(true).open(self.node.log())?.set_len(0)?;
        Ok(())
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

async fn start_node(
    keeper: &Keeper,
    program: &Path,
    name: &str,
    source: &[String],
    logs: &Path,
) -> anyhow::Result<Process> {
    // As in the manifests in deploy/: the log, and so the audit, as JSON; here into a file.
    let more = words(&format!(
        "--log-format=json --node-name {name} --node-address {NODE_ADDRESS} --metadata-endpoint http://{UPSTREAM}"
    ));
    let line = [source.to_vec(), more].concat();
    let mut node = keeper.spawn("node", program, &line, &[], &logs.join("node.log"))?;
    ready(&mut node, NODE_PROBE).await?;
    Ok(node)
}

/// Runs a load in a process of its own.
pub(crate) async fn load(plan: &Plan) -> anyhow::Result<Outcome> {
    let plan = serde_json::to_string(plan)?;
    let program = std::env::current_exe()?;
    let output = tokio::task::spawn_blocking(move || -> std::io::Result<Output> {
        process::command(program)
            .args(["generate", &plan])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?
            .wait_with_output()
    })
    .await??;
    if !output.status.success() {
        bail!("the load generator failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Processor time of a process so far.
pub(crate) fn processor(process: u32) -> anyhow::Result<Duration> {
    // Nanoseconds of each thread (`/proc/PID/stat` has the same sum in hundredths of a second).
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        sum += text.split_whitespace().next().context("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}

/// Anonymous resident memory, MiB.
pub(crate) fn memory(process: &Process) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

async fn ready(process: &mut Process, port: u16) -> anyhow::Result<()> {
    use std::io::{Read as _, Write as _};
    let ask = move || -> std::io::Result<bool> {
        let mut stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    };
    wait(process, || ask().unwrap_or(false)).await
}

async fn wait(process: &mut Process, done: impl Fn() -> bool) -> anyhow::Result<()> {
    let began = now();
    loop {
        if let Some(status) = process.exited() {
            bail!("{} has ended ({status}):\n{}", process.name(), process.last_words());
        }
        if done() {
            return Ok(());
        }
        if now() > began + READY {
            bail!("{} is not ready after {} s:\n{}", process.name(), READY.as_secs(), process.last_words());
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}
