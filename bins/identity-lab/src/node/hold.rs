//! The process that holds a lab: builds it, keeps it in step with its manifests, takes it down.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub use super::cluster::Parts;
use super::{
    Error,
    accounts::Accounts,
    azure, cleanup,
    clock::{LabClock, machine},
    cluster::{Cluster, Work},
    kubelet::{NODE_ADDRESS, NODE_NAME, PodView},
    network::Network,
    place::Place,
    pods::{Pods, RESOLV},
    projected::{NODE_ACCOUNT, Volume},
    ready::{READY, probe, tools, wait},
    record::{ProcessRecord, Record},
    relay,
    sync::{OVERRIDES, Sync},
    watch::Watch,
};
use crate::{
    files,
    kube::ControlPlane,
    process::{self, Keeper, Process},
    seed::{self, Overrides, World},
};

/// How long it may take to end.
const GRACE: Duration = Duration::from_secs(8);
/// How often it is looked whether the projected token is to be replaced.
const LOOK_AT_TOKEN: Duration = Duration::from_millis(250);
/// Probe ports on the node's loopback.
const NODE_PROBE: u16 = 8085;
const CONTROLLER_PROBE: u16 = 8080;
/// Where the redirect leads.
const BROKER_PORT: u16 = 2579;
/// The file whose presence cuts the node off the API server.
pub const API_DOWN: &str = "api-down";
/// In the lab's directory while the node is cut off indeed.
pub const API_DOWN_IN_FORCE: &str = "api-down-in-force";

/// What kind of lab.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where; must have been [prepared](cleanup::prepare).
    pub place: Place,
    /// The directory to follow.
    pub manifests: Option<PathBuf>,
    /// With a real API server, and where its parts are.
    pub kube: Option<Parts>,
    /// This program, for its hidden subcommands.
    pub program: PathBuf,
    /// Directory with identity-node and identity-controller; none: only the node, the pods and the emulators.
    pub binaries: Option<PathBuf>,
    /// Whether this process is root only in its own user namespace.
    pub rootless: bool,
    /// When a clock of the lab's own begins (`now` or an RFC 3339 time); none: `lab.yaml` says, or it is the machine's.
    pub clock: Option<String>,
}

/// Builds the lab, says `ready`, follows its manifests until `shutdown`, and takes it down. Leaves nothing behind, also when it fails.
///
/// # Errors
/// The lab cannot be built; what it is that fails is in the message, with the end of the log concerned.
pub async fn hold(options: Options, shutdown: CancellationToken, ready: impl FnOnce(&Record)) -> Result<(), Error> {
    let place = options.place.clone();
    let result = run(options, &shutdown, ready).await;
    tokio::task::block_in_place(|| cleanup::clean(&place));
    result
}

async fn run(options: Options, shutdown: &CancellationToken, ready: impl FnOnce(&Record)) -> Result<(), Error> {
    let mut lab = tokio::select! {
        lab = Lab::build(options) => lab?,
        () = shutdown.cancelled() => return Err(Error::Interrupted),
    };
    ready(&lab.record);
    let result = lab.follow(shutdown).await;
    lab.stop().await;
    result
}

struct Lab {
    // Dropped in this order: processes before the keeper whose thread they die with.
    processes: Vec<Process>,
    cluster: Option<Cluster>,
    /// Ends with the lab: the API server's way into the node, and its fault.
    relay: JoinSet<()>,
    keeper: Keeper,
    options: Options,
    overrides: Overrides,
    network: Network,
    pods: Pods,
    accounts: Accounts,
    sync: Option<Sync>,
    watch: Option<Watch>,
    record: Record,
    clock: LabClock,
    volume: Volume,
    world: World,
    seeded: String,
    /// What could not be, and was said.
    unseeded: Vec<String>,
    /// Names of vaults in hosts files.
    vaults: Vec<String>,
}

impl Lab {
    async fn build(options: Options) -> Result<Self, Error> {
        let place = &options.place;
        tools()?;
        for directory in ["logs", "pods", "tmp", "faults", "state"] {
            files::private_directory(&place.file(directory))?;
        }
        let overrides = read_overrides(options.manifests.as_deref())?;
        let clock = match options.clock.as_deref().or(overrides.clock.as_deref()) {
            Some(start) => LabClock::start(place, start)?,
            None => LabClock::default(),
        };
        // Said now rather than when everything else is up.
        clock.environment()?;
        let network = if options.rootless { Network::rootless(&place.file("netns"))? } else { Network::for_root() };
        let record = Record {
            rootless: options.rootless,
            manifests: options.manifests.clone(),
            netns_directory: network.directory().to_owned(),
            ca: place.file("ca.crt"),
            node_netns: place.netns("node"),
            azure_netns: place.netns("azure"),
            clock: clock.file().map(Path::to_owned),
            ..Record::default()
        };
        cleanup::announce(place, &record)?;
        azure::configure(place, &overrides, &clock)?;
        network.add_node(&record.node_netns, &record.azure_netns)?;
        let hosts = azure::hosts(&overrides);
        let node_hosts = format!("127.0.0.1 localhost\n::1 localhost\n{NODE_ADDRESS} {NODE_NAME}\n{hosts}");
        files::write(&place.file("hosts"), node_hosts.as_bytes(), 0o644, place.root())?;
        files::write(&place.file("resolv.conf"), RESOLV.as_bytes(), 0o644, place.root())?;

        let pods = Pods::new(place, &network, &record.node_netns, &hosts);
        let accounts = tokio::task::block_in_place(Accounts::new)?;
        let volume = Volume::new(&place.file("projected"))?;
        let mut lab = Self {
            processes: Vec::new(),
            cluster: None,
            relay: JoinSet::new(),
            keeper: Keeper::new()?,
            overrides,
            network,
            pods,
            world: World::new(accounts.issuer()),
            accounts,
            sync: None,
            watch: None,
            record,
            clock,
            volume,
            seeded: String::new(),
            unseeded: Vec::new(),
            vaults: Vec::new(),
            options,
        };
        lab.start_emulators().await?;
        if let Some(parts) = lab.options.kube.clone() {
            lab.start_cluster(&parts).await?;
        }
        if let Some(source) = lab.options.manifests.clone() {
            let place = &lab.options.place;
            // Watched before it is read: no change falls between.
            lab.watch = Some(Watch::new(&source)?);
            lab.sync = Some(Sync::new(&source, &place.manifests(), &place.file("tmp"))?);
        } else {
            files::private_directory(&lab.options.place.manifests())?;
        }
        lab.follow_manifests(&[]).await?;
        lab.follow_cluster().await?;
        lab.project_token().await?;
        lab.start_binaries().await?;
        if lab.cluster.is_some() {
            lab.settle().await?;
        }
        lab.record.ready = true;
        lab.write_record()?;
        Ok(lab)
    }

    /// Starts a program in a network namespace of the lab.
    fn spawn(
        &mut self,
        name: &str,
        netns: &str,
        line: &[String],
        environment: &[(String, String)],
        address: &str,
    ) -> Result<usize, Error> {
        let place = &self.options.place;
        let bind = |file: &str, over: &str| format!("--bind={}={over}", place.file(file).display());
        let mut arguments = vec![
            "enter".to_owned(),
            format!("--netns={}", self.network.path(netns).display()),
            bind("hosts", "/etc/hosts"),
            bind("resolv.conf", "/etc/resolv.conf"),
        ];
        // Given to `enter`, which gives it to the program alone: a preloaded library is not for what starts the program.
        arguments.extend(environment.iter().map(|(key, value)| format!("--env={key}={value}")));
        arguments.push("--".to_owned());
        arguments.extend_from_slice(line);
        let process = self.keeper.spawn(name, &self.options.program, &arguments, &[], &place.log(name))?;
        self.note(&process, address);
        self.processes.push(process);
        Ok(self.processes.len() - 1)
    }

    fn note(&mut self, process: &Process, address: &str) {
        self.record.processes.push(ProcessRecord {
            name: process.name().to_owned(),
            pid: process.id(),
            started: process::started(process.id()).unwrap_or_default(),
            address: address.to_owned(),
            log: process.log().to_owned(),
        });
    }

    async fn start_emulators(&mut self) -> Result<(), Error> {
        let line = [
            self.options.program.display().to_string(),
            "emulate".to_owned(),
            "--config".to_owned(),
            self.options.place.file("emulator.json").display().to_string(),
        ];
        let netns = self.record.azure_netns.clone();
        let address = "Entra and Key Vault 10.43.0.2:443, IMDS 169.254.169.254:80";
        let index = self.spawn("emulators", &netns, &line, &[], address)?;
        let place = self.options.place.clone();
        wait(&mut self.processes[index], || azure::answers(&place)).await
    }

    async fn start_cluster(&mut self, parts: &Parts) -> Result<(), Error> {
        let place = self.options.place.clone();
        let cluster = Cluster::start(parts, &place).await?;
        let port = cluster.plane().port();
        let listener = self.network.within(&self.record.node_netns, move || relay::bind(port))?;
        // The emulated Entra fetches the keys of the API server's tokens, whatever is between it and the node.
        let other = self.network.within(&self.record.azure_netns, move || relay::bind(port))?;
        self.relay.spawn(async move {
            let (_up, always) = watch::channel(false);
            if let Err(error) = relay::run(other, port, always, |_| {}).await {
                tracing::error!(%error, "Entra is cut off the API server");
            }
        });
        self.world = World::new(cluster.issuer(&place));
        let (fault, down) = watch::channel(false);
        let sign = place.file(API_DOWN_IN_FORCE);
        let in_force = move |down| {
            // For `fault`, which waits for it. A lab whose directory is gone has nobody who waits.
            let _ = if down { fs::write(&sign, "") } else { fs::remove_file(&sign) };
        };
        self.relay.spawn(async move {
            if let Err(error) = relay::run(listener, port, down, in_force).await {
                tracing::error!(%error, "the node is cut off the API server");
            }
        });
        let mut faults = Watch::new(&place.file("faults"))?;
        let switch = place.file("faults").join(API_DOWN);
        self.relay.spawn(async move {
            loop {
                let now = switch.exists();
                fault.send_if_modified(|down| std::mem::replace(down, now) != now);
                faults.changed().await;
            }
        });
        let address = format!("127.0.0.1:{port}");
        self.record.kubeconfig = Some(cluster.plane().kubeconfig());
        let records: Vec<ProcessRecord> = plane_records(cluster.plane(), &address);
        self.record.processes.extend(records);
        self.cluster = Some(cluster);
        Ok(())
    }

    async fn start_binaries(&mut self) -> Result<(), Error> {
        let Some(directory) = self.options.binaries.clone() else { return Ok(()) };
        let place = self.options.place.clone();
        let mut environment = vec![
            ("SSL_CERT_FILE".to_owned(), self.record.ca.display().to_string()),
            // The flag --federated-token-file, in the form that those who do not know it pass over.
            ("ENTRA_POD_IDENTITY_FEDERATED_TOKEN_FILE".to_owned(), self.volume.file().display().to_string()),
        ];
        environment.extend(self.clock.environment()?);
        let source = |lab: &Self, account: &str| -> Result<Vec<String>, Error> {
            Ok(match &lab.cluster {
                Some(cluster) => vec!["--kubeconfig".to_owned(), cluster.kubeconfig(account)?.display().to_string()],
                None => [
                    "--manifests",
                    &place.manifests().display().to_string(),
                    "--state-dir",
                    &place.state().display().to_string(),
                ]
                .map(str::to_owned)
                .to_vec(),
            })
        };
        let node_address = NODE_ADDRESS.to_string();
        let node = ["--node-name", NODE_NAME, "--node-address", &node_address].map(str::to_owned).to_vec();
        let mut started = Vec::new();
        for (name, port, extra, more, address) in [
            (
                "identity-controller",
                CONTROLLER_PROBE,
                Vec::new(),
                self.overrides.controller_arguments.clone(),
                format!("probes 127.0.0.1:{CONTROLLER_PROBE}"),
            ),
            (
                "identity-node",
                NODE_PROBE,
                node,
                self.overrides.node_arguments.clone(),
                format!("{NODE_ADDRESS}:{BROKER_PORT}, probes 127.0.0.1:{NODE_PROBE}"),
            ),
        ] {
            let program = directory.join(name);
            if !program.is_file() {
                let why = format!("{} does not exist; `cargo build` makes it", program.display());
                return Err(Error::NotReady { name: name.to_owned(), why, log: place.log(name), words: String::new() });
            }
            let mut line = vec![program.display().to_string()];
            line.extend(source(self, &format!("entra-pod-{name}"))?);
            line.extend(extra);
            line.extend(more);
            let netns = self.record.node_netns.clone();
            started.push((self.spawn(name, &netns, &line, &environment, &address)?, port));
        }
        for (index, port) in started {
            let (network, netns) = (self.network.clone(), self.record.node_netns.clone());
            let probe = move || {
                let (network, netns) = (network.clone(), netns.clone());
                async move {
                    tokio::task::spawn_blocking(move || network.within(&netns, move || probe(port)).is_ok())
                        .await
                        .unwrap_or(false)
                }
            };
            wait(&mut self.processes[index], probe).await?;
        }
        Ok(())
    }

    /// Follows whatever changes until told to end.
    async fn follow(&mut self, shutdown: &CancellationToken) -> Result<(), Error> {
        let mut tokens = tokio::time::interval(LOOK_AT_TOKEN);
        tokens.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let manifests = async {
                match &mut self.watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            let cluster = async {
                match &mut self.cluster {
                    Some(cluster) => cluster.changed().await,
                    None => std::future::pending().await,
                }
            };
            // A change that cannot be followed is said and leaves the lab as it is: the next one may repair it.
            let result = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                deleted = manifests => self.follow_manifests(&deleted).await,
                () = cluster => self.follow_cluster().await,
                _ = tokens.tick() => self.project_token().await,
            };
            if let Err(error) = result {
                tracing::error!(%error, "cannot follow a change");
            }
        }
    }

    /// Directory → emulators, pods, copy (or API server), in this order: what the product learns of is there.
    async fn follow_manifests(&mut self, deleted: &[OsString]) -> Result<(), Error> {
        let Some(sync) = &mut self.sync else { return Ok(()) };
        let now = self.clock.now().to_string();
        let changes = sync.scan(deleted, || uuid::Uuid::new_v4().to_string(), &now)?;
        for broken in &changes.broken {
            tracing::warn!("{broken}");
        }
        if let Some(cluster) = &mut self.cluster {
            for failure in cluster.apply(&changes.objects).await {
                tracing::warn!("{failure}");
            }
            return Ok(());
        }
        self.tell_azure(&changes.objects).await;
        self.add_pods(&changes.pods).await?;
        if let Some(sync) = &self.sync {
            sync.apply(&changes)?;
        }
        tokio::task::block_in_place(|| self.pods.retain(&changes.pods));
        self.write_record()
    }

    /// API server → emulators and pods → API server.
    async fn follow_cluster(&mut self) -> Result<(), Error> {
        let Some(cluster) = &mut self.cluster else { return Ok(()) };
        let objects = cluster.objects();
        let work = cluster.work(&self.clock.now().to_string());
        self.tell_azure(&objects).await;
        let Some(work) = work else { return Ok(()) };
        self.follow_pods(&work).await
    }

    async fn follow_pods(&mut self, work: &Work) -> Result<(), Error> {
        self.add_pods(&work.desired).await?;
        tokio::task::block_in_place(|| self.pods.retain(&work.desired));
        if let Some(cluster) = &self.cluster {
            for failure in cluster.report(work).await {
                tracing::warn!("{failure}");
            }
        }
        self.write_record()
    }

    /// Waits until every pod that the manifests put into the API server has its namespace here.
    async fn settle(&mut self) -> Result<(), Error> {
        let settled = async {
            loop {
                self.follow_cluster().await?;
                let Some(cluster) = &mut self.cluster else { return Ok(()) };
                if cluster.settled() {
                    return Ok(());
                }
                cluster.changed().await;
            }
        };
        match tokio::time::timeout(READY, settled).await {
            Ok(result) => result,
            Err(_) => Err(Error::NotReady {
                name: "pods".to_owned(),
                why: "the API server did not accept or show all of them in time".to_owned(),
                log: self.options.place.log("lab"),
                words: String::new(),
            }),
        }
    }

    async fn add_pods(&mut self, desired: &[PodView]) -> Result<(), Error> {
        for pod in self.pods.missing(desired) {
            let from_cluster = match &self.cluster {
                Some(cluster) => cluster.token(&pod).await,
                None => None,
            };
            let token = match from_cluster {
                Some(token) => token,
                None => self.accounts.token(&pod, self.clock.now())?,
            };
            if let Err(error) = tokio::task::block_in_place(|| self.pods.add(&pod, &token)) {
                tracing::error!(%error, pod = format!("{}/{}", pod.namespace, pod.name), "no network for a pod");
            }
        }
        Ok(())
    }

    /// Seeds the emulators, when what they must know changed.
    async fn tell_azure(&mut self, objects: &[Value]) {
        let seed = tokio::task::block_in_place(|| seed::seed(objects, &self.overrides, &mut self.world));
        for warning in seed.warnings.iter().filter(|warning| !self.unseeded.contains(warning)) {
            tracing::warn!("not seeded: {warning}");
        }
        self.unseeded = seed.warnings;
        let text = serde_json::to_string(&seed.directory).unwrap_or_default();
        if text == self.seeded {
            return;
        }
        match azure::tell(&self.options.place, &seed.directory).await {
            Ok(()) => self.seeded = text,
            Err(error) => tracing::error!(%error, "the emulators refuse what the manifests say"),
        }
        let hosts = seed.directory.vaults.iter().map(|vault| vault.host.to_ascii_lowercase());
        let new: Vec<String> = hosts.filter(|host| !self.vaults.contains(host)).collect();
        if new.is_empty() {
            return;
        }
        let line = azure::line(new.iter().map(String::as_str));
        let named = tokio::task::block_in_place(|| {
            azure::append(&self.options.place.file("hosts"), &line)?;
            self.pods.add_hosts(&line)
        });
        match named {
            Ok(()) => self.vaults.extend(new),
            Err(error) => tracing::error!(%error, "vaults have no address in hosts files"),
        }
    }

    /// Replaces identity-node's projected token when it is time.
    async fn project_token(&mut self) -> Result<(), Error> {
        // A real API server's clock is the machine's.
        let now = if self.cluster.is_some() { machine() } else { self.clock.now() };
        if !self.volume.due(now) {
            return Ok(());
        }
        let told = &self.overrides.projected_token;
        let (audience, lifetime) = (told.audience.as_str(), told.lifetime_seconds);
        let (token, lifetime) = match &self.cluster {
            None => (self.accounts.projected(NODE_ACCOUNT, audience, lifetime, now)?, lifetime),
            Some(cluster) => {
                let token = cluster.projected(NODE_ACCOUNT, audience, lifetime).await;
                token.inspect_err(|_| self.volume.postpone(now))?
            }
        };
        Ok(self.volume.put(&token, now, lifetime)?)
    }

    fn write_record(&mut self) -> Result<(), Error> {
        self.record.pods = self.pods.records();
        cleanup::announce(&self.options.place, &self.record)
    }

    async fn stop(mut self) {
        // The binaries end before what they talk to.
        while let Some(mut process) = self.processes.pop() {
            process.stop(GRACE).await;
        }
        if let Some(cluster) = self.cluster.take() {
            cluster.stop().await;
        }
    }
}

fn plane_records(plane: &ControlPlane, address: &str) -> Vec<ProcessRecord> {
    let record = |process: &Process| ProcessRecord {
        name: process.name().to_owned(),
        pid: process.id(),
        started: process::started(process.id()).unwrap_or_default(),
        address: if process.name() == "kube-apiserver" { address.to_owned() } else { String::new() },
        log: process.log().to_owned(),
    };
    plane.processes().map(record).collect()
}

fn read_overrides(manifests: Option<&Path>) -> Result<Overrides, Error> {
    let Some(path) = manifests.map(|directory| directory.join(OVERRIDES)).filter(|path| path.exists()) else {
        return Ok(Overrides::default());
    };
    Overrides::parse(&fs::read_to_string(&path)?).map_err(|message| Error::Overrides { path, message })
}
