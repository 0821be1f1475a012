//! A real control plane for tests and for the lab: etcd, kube-apiserver, kube-controller-manager (garbage collector, namespace
//! and service account controllers) on loopback, RBAC on, every request in an audit log; optionally kwok's fake nodes.
//!
//! ```no_run
//! # async fn example() -> Result<(), identity_lab::kube::Error> {
//! use identity_lab::kube::ControlPlane;
//! let work = std::path::Path::new("/tmp/cluster");
//! let plane = ControlPlane::start_with("/opt/kubebuilder/bin".as_ref(), work, &["…CRDs…".to_owned()]).await?;
//! plane.apply_yaml("apiVersion: v1\nkind: Namespace\nmetadata: {name: team}\n").await?;
//! let client = plane.client();                                             // cluster administrator
//! let controller = plane.kubeconfig_for("system:serviceaccount:kube-system:identity-controller", &[])?;
//! // … run something with that kubeconfig …
//! let writes = plane.audit_events().await?.into_iter().filter(|event| event.is_write()).count();
//! plane.stop().await;
//! # Ok(()) }
//! ```
//!
//! Everything ends with the process that started it, even when that is killed (see [`crate::process`]).

mod apply;
mod audit;
mod etcd;
mod pki;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Node, ServiceAccount},
};
use kube::{
    Api, Client, Config,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

pub use self::audit::AuditEvent;
use self::pki::{Pki, Proof};
use crate::{
    files,
    process::{self, Keeper, Process},
};

/// How long the parts may take to be ready. The API server itself needs 2–5 s on an idle machine.
const READY: Duration = Duration::from_mins(2);
/// The issuer of service accounts' tokens. Its keys are RSA, the only ones that Entra takes for federated credentials.
pub const SERVICE_ACCOUNT_ISSUER: &str = "https://kubernetes.default.svc";
/// How long a part may take to end by itself.
const GRACE: Duration = Duration::from_secs(8);

/// What can go wrong with a control plane.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A binary is missing.
    #[error(
        "{path} does not exist: `cargo xtask test kube` builds the Kubernetes binaries, or set KUBEBUILDER_ASSETS to a directory that has them"
    )]
    Asset {
        /// Where it was expected.
        path: PathBuf,
    },
    /// Files, sockets.
    #[error("control plane files: {0}")]
    Io(#[from] io::Error),
    /// A process could not be started.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// A part ended while it should be running.
    #[error("{name} ended ({status}); its last words:\n{logs}")]
    Ended {
        /// Which.
        name: String,
        /// How.
        status: String,
        /// The end of its log.
        logs: String,
    },
    /// A bounded wait is over.
    #[error("timed out waiting for {what}\n{logs}")]
    Timeout {
        /// For what.
        what: String,
        /// The end of the relevant log.
        logs: String,
    },
    /// Certificates.
    #[error("cannot make certificates: {0}")]
    Certificate(#[from] rcgen::Error),
    /// Our own kubeconfig is refused.
    #[error("kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The API server refuses.
    #[error("API server: {0}")]
    Api(#[from] Box<kube::Error>),
    /// A manifest cannot be read.
    #[error("{origin}: {message}")]
    Manifest {
        /// File or object.
        origin: String,
        /// What is wrong with it.
        message: String,
    },
    /// No such resource, even after waiting.
    #[error("{what}: the API server does not serve {api_version} {kind}; apply its CustomResourceDefinition first")]
    NoSuchKind {
        /// The object.
        what: String,
        /// Its apiVersion.
        api_version: String,
        /// Its kind.
        kind: String,
    },
    /// An object is refused.
    #[error("cannot apply {what}: {source}")]
    Apply {
        /// The object.
        what: String,
        /// The API server's answer.
        source: Box<kube::Error>,
    },
    /// etcd refuses.
    #[error("etcd: {0}")]
    Etcd(String),
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// A port of 127.0.0.1 that nobody else gets: the socket is kept bound (not listening) with `SO_REUSEPORT`, and the server
/// binds beside it with the same option.
#[derive(Debug)]
struct Port {
    number: u16,
    _held: Socket,
}

impl Port {
    fn reserve() -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_port(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        let number =
            socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("a TCP socket without an address"))?.port();
        Ok(Self { number, _held: socket })
    }
}

/// A running control plane. Dropping it ends everything at once; [`ControlPlane::stop`] does so gracefully.
pub struct ControlPlane {
    // Order matters: what is declared first is dropped first, and the keeper's thread must outlive the processes.
    kwok: Vec<Process>,
    controllers: Option<Process>,
    apiserver: Process,
    etcd: Process,
    keeper: Keeper,
    assets: PathBuf,
    work: PathBuf,
    pki: Pki,
    port: Port,
    etcd_port: Port,
    _peer_port: Port,
    client: Client,
}

impl std::fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlPlane").field("url", &self.url()).field("work", &self.work).finish_non_exhaustive()
    }
}

impl ControlPlane {
    /// Starts everything from the binaries in `assets` (`KUBEBUILDER_ASSETS`), keeping data, logs and kubeconfigs in `work_dir`.
    ///
    /// # Errors
    /// A binary is missing or does not become ready within two minutes; the message carries the end of its log.
    pub async fn start(assets: &Path, work_dir: &Path) -> Result<Self, Error> {
        Self::start_with(assets, work_dir, &[]).await
    }

    /// As [`ControlPlane::start`], with manifests (CRDs above all) applied before kube-controller-manager starts: the garbage
    /// collector then knows the kinds at once, instead of up to 40 s later.
    ///
    /// # Errors
    /// As for `start`, or the manifests are refused.
    pub async fn start_with(assets: &Path, work_dir: &Path, manifests: &[String]) -> Result<Self, Error> {
        for binary in ["etcd", "kube-apiserver", "kube-controller-manager"] {
            asset(assets, binary)?;
        }
        files::private_directory(work_dir)?;
        let work = work_dir.canonicalize()?;
        let pki = Pki::new()?;
        pki.write(&work)?;
        files::write_secret(&work.join("audit-policy.yaml"), audit::POLICY.as_bytes())?;
        let (port, etcd_port, peer_port) = (Port::reserve()?, Port::reserve()?, Port::reserve()?);
        let admin =
            pki.kubeconfig(port.number, &Proof::Certificate { user: "system:admin", groups: &["system:masters"] })?;
        files::write_secret(&work.join("kubeconfig"), pretty(&admin).as_bytes())?;

        let keeper = Keeper::new()?;
        let etcd = etcd::start(&keeper, assets, &work, etcd_port.number, peer_port.number)?;
        let apiserver = start_apiserver(&keeper, assets, &work, port.number, etcd_port.number)?;
        let client = connect(admin).await?;
        let mut plane = Self {
            kwok: Vec::new(),
            controllers: None,
            apiserver,
            etcd,
            keeper,
            assets: assets.to_owned(),
            work,
            pki,
            port,
            etcd_port,
            _peer_port: peer_port,
            client,
        };
        plane.ready().await?;
        for manifest in manifests {
            plane.apply_yaml(manifest).await?;
        }
        plane.start_controllers()?;
        Ok(plane)
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port.number)
    }

    /// The port of the API server on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// File with the cluster administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.work.join("kubeconfig")
    }

    /// A client with all rights.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The processes and their logs, for tables and messages.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        [&self.etcd, &self.apiserver].into_iter().chain(&self.controllers).chain(&self.kwok)
    }

    /// Writes a kubeconfig for `user` in `groups`, proven by a client certificate, and returns its path. For a service account's
    /// name (`system:serviceaccount:NAMESPACE:NAME`) the groups that Kubernetes itself gives are added; the account need not exist.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn kubeconfig_for(&self, user: &str, groups: &[&str]) -> Result<PathBuf, Error> {
        let mut all: Vec<String> = groups.iter().map(|&group| group.to_owned()).collect();
        if let Some((namespace, _)) = user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
        {
            all.extend(["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]);
        }
        let groups: Vec<&str> = all.iter().map(String::as_str).collect();
        let config = self.pki.kubeconfig(self.port.number, &Proof::Certificate { user, groups: &groups })?;
        self.write_kubeconfig(user, &config)
    }

    /// Writes a kubeconfig with a token of an existing service account (`TokenRequest`, one hour) and returns its path.
    ///
    /// # Errors
    /// There is no such service account, or the file cannot be written.
    pub async fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> Result<PathBuf, Error> {
        let config = self.service_account_config(namespace, name).await?;
        self.write_kubeconfig(&format!("token-{namespace}-{name}"), &config)
    }

    /// A client with a token of an existing service account.
    ///
    /// # Errors
    /// There is no such service account.
    pub async fn client_for_service_account(&self, namespace: &str, name: &str) -> Result<Client, Error> {
        connect(self.service_account_config(namespace, name).await?).await
    }

    /// A client for `user` in `groups`, as [`ControlPlane::kubeconfig_for`] would name them.
    ///
    /// # Errors
    /// The certificate cannot be made.
    pub async fn client_for(&self, user: &str, groups: &[&str]) -> Result<Client, Error> {
        connect(self.pki.kubeconfig(self.port.number, &Proof::Certificate { user, groups })?).await
    }

    async fn service_account_config(&self, namespace: &str, name: &str) -> Result<Value, Error> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        let spec = TokenRequestSpec { expiration_seconds: Some(3600), ..TokenRequestSpec::default() };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let answer = accounts.create_token_request(name, &PostParams::default(), &request).await?;
        let token = answer.status.and_then(|status| status.token).unwrap_or_default();
        self.pki.kubeconfig(self.port.number, &Proof::Token(&token))
    }

    fn write_kubeconfig(&self, name: &str, config: &Value) -> Result<PathBuf, Error> {
        let path = self.work.join(format!("kubeconfig-{}", name.replace([':', '/'], "-")));
        files::write_secret(&path, pretty(config).as_bytes())?;
        Ok(path)
    }

    /// Server-side applies a (multi-document) YAML or JSON text as the administrator, forcing conflicts; CRDs first (and
    /// served before this goes on), namespaces next.
    ///
    /// # Errors
    /// The text does not parse, a kind is unknown, or the API server refuses an object: the first error ends it.
    pub async fn apply_yaml(&self, text: &str) -> Result<Vec<DynamicObject>, Error> {
        apply::apply(&self.client, apply::objects("manifest", text)?).await
    }

    /// As [`ControlPlane::apply_yaml`], for all `*.yaml`, `*.yml` and `*.json` files of a directory (not below it) together.
    ///
    /// # Errors
    /// As for `apply_yaml`.
    pub async fn apply_dir(&self, directory: &Path) -> Result<Vec<DynamicObject>, Error> {
        let mut objects = Vec::new();
        for path in apply::files(directory)? {
            let text = std::fs::read_to_string(&path)?;
            objects.extend(apply::objects(&path.display().to_string(), &text)?);
        }
        apply::apply(&self.client, objects).await
    }

    /// Deletes an object (given with its apiVersion, kind and names); no error when there is none.
    ///
    /// # Errors
    /// The kind is unknown, or the API server refuses.
    pub async fn delete(&self, object: &Value) -> Result<(), Error> {
        apply::delete(&self.client, object).await
    }

    /// Every finished request since the start (watches appear when they end). The log is written as a request ends, so a
    /// marker request is sent first and waited for: what was answered before this call is in the result.
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn audit_events(&self) -> Result<Vec<AuditEvent>, Error> {
        let marker = format!("/version?audit-marker={}", uuid::Uuid::new_v4());
        let request = http::Request::get(&marker).body(Vec::new()).map_err(|error| Error::Etcd(error.to_string()))?;
        self.client.request_text(request).await?;
        let path = self.work.join("audit.log");
        let read = async {
            loop {
                let text = tokio::fs::read_to_string(&path).await.unwrap_or_default();
                if text.contains(&marker) {
                    let events =
                        text.lines().filter_map(AuditEvent::parse).filter(|event| !event.uri.contains("audit-marker="));
                    break events.collect();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(READY, read)
            .await
            .map_err(|_| Error::Timeout { what: "the audit log to be written".to_owned(), logs: String::new() })
    }

    /// Forgets all of etcd's history, so that a watch from an older resource version is answered 410 Gone.
    ///
    /// # Errors
    /// etcd does not answer.
    pub async fn compact(&self) -> Result<(), Error> {
        etcd::compact(self.etcd_port.number).await
    }

    /// Freezes the API server: connections stay open, nothing is answered (a hung API server). [`ControlPlane::thaw_apiserver`] ends it.
    pub fn freeze_apiserver(&self) {
        self.apiserver.signal(Signal::SIGSTOP);
    }

    /// Ends [`ControlPlane::freeze_apiserver`].
    pub fn thaw_apiserver(&self) {
        self.apiserver.signal(Signal::SIGCONT);
    }

    /// Stops the API server: connections are closed and refused. The rest keeps running.
    pub async fn stop_apiserver(&mut self) {
        self.apiserver.stop(GRACE).await;
    }

    /// Starts the API server again, on the same port with the same data, and waits until it is ready.
    ///
    /// # Errors
    /// As for `start`.
    pub async fn start_apiserver(&mut self) -> Result<(), Error> {
        self.apiserver.stop(GRACE).await;
        self.apiserver =
            start_apiserver(&self.keeper, &self.assets, &self.work, self.port.number, self.etcd_port.number)?;
        self.ready().await
    }

    /// Creates `nodes` fake nodes `kwok-node-0`… and starts kwok as their kubelet: pods bound to them become Running with an
    /// address at once, deleted pods go at once. Returns when all nodes are Ready.
    ///
    /// # Errors
    /// The kwok binary is missing, or the nodes do not become Ready.
    pub async fn start_kwok(&mut self, nodes: usize) -> Result<(), Error> {
        let kwok = asset(&self.assets, "kwok")?;
        let stages = self.work.join("stages.yaml");
        files::write_secret(&stages, include_bytes!("stages.yaml"))?;
        let api: Api<Node> = Api::all(self.client());
        for number in 0..nodes {
            let name = format!("kwok-node-{number}");
            let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": { "type": "kwok" } } });
            api.patch(&name, &PatchParams::apply(apply::MANAGER).force(), &Patch::Apply(&node)).await?;
        }
        let arguments = [
            format!("--kubeconfig={}", self.kubeconfig().display()),
            format!("--config={}", stages.display()),
            "--manage-all-nodes=true".to_owned(),
            "--cidr=10.128.0.0/12".to_owned(),
            "--node-ip=10.255.0.1".to_owned(),
            "--node-lease-duration-seconds=0".to_owned(),
        ];
        self.kwok.push(self.keeper.spawn("kwok", &kwok, &arguments, &[], &self.work.join("kwok.log"))?);
        let ready = async {
            loop {
                let list = api.list(&kube::api::ListParams::default().labels("type=kwok")).await?;
                let is_ready = |node: &&Node| {
                    node.status
                        .iter()
                        .flat_map(|status| status.conditions.iter().flatten())
                        .any(|c| c.type_ == "Ready" && c.status == "True")
                };
                if list.iter().filter(is_ready).count() >= nodes {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let logs = || self.kwok.last().map(Process::last_words).unwrap_or_default();
        tokio::time::timeout(READY, ready)
            .await
            .map_err(|_| Error::Timeout { what: format!("{nodes} kwok nodes to be Ready"), logs: logs() })?
    }

    /// Ends everything, in the order in which they need each other. The files in the working directory stay.
    pub async fn stop(mut self) {
        for process in &mut self.kwok {
            process.stop(GRACE).await;
        }
        if let Some(controllers) = &mut self.controllers {
            controllers.stop(GRACE).await;
        }
        // Not gracefully: it would wait 5 s for connections that a client has opened and not used. All is in etcd.
        drop(self.apiserver);
        self.etcd.stop(GRACE).await;
    }

    /// Waits until the API server says it is ready and has made the `default` namespace.
    async fn ready(&mut self) -> Result<(), Error> {
        let client = self.client.clone();
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client.clone());
        let ready = async {
            loop {
                for part in [&mut self.etcd, &mut self.apiserver] {
                    if let Some(status) = part.exited() {
                        return Err(Error::Ended {
                            name: part.name().to_owned(),
                            status: status.to_string(),
                            logs: part.last_words(),
                        });
                    }
                }
                let request =
                    http::Request::get("/readyz").body(Vec::new()).map_err(|error| Error::Etcd(error.to_string()))?;
                if client.request_text(request).await.is_ok_and(|text| text == "ok")
                    && namespaces.get("default").await.is_ok()
                {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        match tokio::time::timeout(READY, ready).await {
            Ok(result) => result,
            Err(_) => {
                Err(Error::Timeout { what: "kube-apiserver to be ready".to_owned(), logs: self.apiserver.last_words() })
            }
        }
    }

    fn start_controllers(&mut self) -> Result<(), Error> {
        let work = &self.work;
        let arguments = [
            format!("--kubeconfig={}", self.kubeconfig().display()),
            "--controllers=garbage-collector-controller,namespace-controller,serviceaccount-controller".to_owned(),
            "--leader-elect=false".to_owned(),
            // Without it the collector may not read custom resources.
            "--use-service-account-credentials=true".to_owned(),
            "--secure-port=0".to_owned(),
            format!("--service-account-private-key-file={}", work.join("service-account.key").display()),
            format!("--root-ca-file={}", work.join("ca.crt").display()),
            "--kube-api-qps=200".to_owned(),
            "--kube-api-burst=400".to_owned(),
        ];
        let binary = asset(&self.assets, "kube-controller-manager")?;
        let log = work.join("kube-controller-manager.log");
        self.controllers = Some(self.keeper.spawn("kube-controller-manager", &binary, &arguments, &[], &log)?);
        Ok(())
    }
}

fn start_apiserver(keeper: &Keeper, assets: &Path, work: &Path, port: u16, etcd: u16) -> Result<Process, Error> {
    let file = |name: &str| work.join(name).display().to_string();
    let arguments = [
        format!("--etcd-servers=http://127.0.0.1:{etcd}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        format!("--secure-port={port}"),
        "--permit-port-sharing=true".to_owned(),
        format!("--cert-dir={}", work.display()),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        format!("--client-ca-file={}", file("ca.crt")),
        "--authorization-mode=RBAC".to_owned(),
        format!("--service-account-issuer={SERVICE_ACCOUNT_ISSUER}"),
        format!("--service-account-key-file={}", file("service-account.pub")),
        format!("--service-account-signing-key-file={}", file("service-account.key")),
        "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
        "--disable-admission-plugins=ServiceAccount".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--audit-policy-file={}", file("audit-policy.yaml")),
        format!("--audit-log-path={}", file("audit.log")),
        "--audit-log-maxsize=4096".to_owned(),
    ];
    Ok(keeper.spawn(
        "kube-apiserver",
        &asset(assets, "kube-apiserver")?,
        &arguments,
        &[],
        &work.join("kube-apiserver.log"),
    )?)
}

async fn connect(config: Value) -> Result<Client, Error> {
    let config: Kubeconfig = serde_json::from_value(config)
        .map_err(|source| Error::Manifest { origin: "kubeconfig".to_owned(), message: source.to_string() })?;
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

fn asset(assets: &Path, name: &str) -> Result<PathBuf, Error> {
    let path = assets.join(name);
    if path.is_file() { Ok(path) } else { Err(Error::Asset { path }) }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
