//! The real binary as a child process.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
};

use identity_lab::process::{Keeper, Process};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{eventually, until};

/// A running controller; dropping it kills it, and shows the end of its log when the test has failed.
pub(crate) struct Controller {
    process: Process,
    // After the process: it must outlive it.
    _keeper: Keeper,
    log: PathBuf,
    probes: SocketAddr,
    metrics: SocketAddr,
}

impl Controller {
    /// Starts it as `holder` and waits until it is ready: it has listed every kind and knows who leads.
    pub(crate) async fn start(directory: &Path, kubeconfig: &Path, holder: &str, lease: &str) -> Self {
        Self::start_with(directory, kubeconfig, holder, lease, &[]).await
    }

    /// The same, with further flags.
    pub(crate) async fn start_with(
        directory: &Path,
        kubeconfig: &Path,
        holder: &str,
        lease: &str,
        flags: &[&str],
    ) -> Self {
        let mut controller = Self::spawn(directory, kubeconfig, holder, lease, flags).await;
        eventually(&format!("{holder} to be ready"), async || {
            controller.alive();
            controller.ready().await
        })
        .await;
        controller
    }

    /// Starts it and waits until it listens.
    pub(crate) async fn spawn(directory: &Path, kubeconfig: &Path, holder: &str, lease: &str, flags: &[&str]) -> Self {
        let log = directory.join(format!("{holder}.log"));
        let mut arguments = vec![
            format!("--kubeconfig={}", kubeconfig.display()),
            "--probe-address=127.0.0.1:0".to_owned(),
            "--metrics-address=127.0.0.1:0".to_owned(),
            // As deploy/ has them: its Role allows no others.
            "--lease-namespace=entra-pod-identity".to_owned(),
            "--lease-name=entra-pod-identity-controller".to_owned(),
            format!("--lease-duration={lease}"),
            format!("--holder={holder}"),
            "--log-format=json".to_owned(),
            "--log-level=info,identity_core=debug".to_owned(),
        ];
        if !flags.iter().any(|flag| flag.starts_with("--credential-interval")) {
            // What it costs to try credentials is another test's business.
            arguments.push("--credential-interval=0s".to_owned());
        }
        arguments.extend(flags.iter().map(|&flag| flag.to_owned()));
        let keeper = Keeper::new().unwrap();
        let binary = Path::new(env!("CARGO_BIN_EXE_identity-controller"));
        let process = keeper.spawn(holder, binary, &arguments, &[], &log).unwrap();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut controller = Self { process, _keeper: keeper, log, probes: nowhere, metrics: nowhere };
        for listener in ["probes", "metrics"] {
            let what = format!("{holder} to listen for {listener}");
            let said = format!("\"message\":\"{listener}\"");
            let address = until(&what, async || {
                controller.alive();
                controller.lines(&[&said]).first()?["address"].as_str()?.parse().ok()
            })
            .await;
            if listener == "probes" { controller.probes = address } else { controller.metrics = address }
        }
        controller
    }

    /// Fails the test when it has ended.
    pub(crate) fn alive(&mut self) {
        if let Some(status) = self.process.exited() {
            panic!("{} ended ({status}):\n{}", self.process.name(), self.process.last_words());
        }
    }

    pub(crate) async fn ready(&self) -> bool {
        fetch(self.probes, "/readyz").await.is_some_and(|(code, _)| code == 200)
    }

    pub(crate) async fn healthy(&self) -> bool {
        fetch(self.probes, "/healthz").await.is_some_and(|(code, _)| code == 200)
    }

    /// The sum of a metric's samples whose labels contain `label`.
    pub(crate) async fn metric(&self, name: &str, label: &str) -> Option<f64> {
        let (_, text) = fetch(self.metrics, "/metrics").await.unwrap();
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (metric, labels) = series.split_once('{').unwrap_or((series, ""));
            let found = (metric == name || metric.ends_with(&format!("_{name}"))) && labels.contains(label);
            found.then(|| value.parse::<f64>().unwrap())
        });
        let samples: Vec<f64> = samples.collect();
        // A family that has counted nothing yet is not shown.
        (!samples.is_empty()).then(|| samples.into_iter().sum())
    }

    pub(crate) async fn leads(&self) -> bool {
        self.metric("leading", "").await.expect("the metric `leading`") > 0.5
    }

    /// Lines of the log that contain all of `words`.
    pub(crate) fn lines(&self, words: &[&str]) -> Vec<Value> {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().filter(|line| words.iter().all(|word| line.contains(word)));
        lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The whole log.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for its end.
    pub(crate) async fn ended(mut self) -> ExitStatus {
        until(&format!("{} to end", self.process.name()), async || self.process.exited()).await
    }

    /// SIGTERM, and waits for its end.
    pub(crate) async fn stop(self) {
        self.signal(Signal::SIGTERM);
        let log = self.log.clone();
        let status = self.ended().await;
        assert!(status.success(), "{status}:\n{}", std::fs::read_to_string(log).unwrap());
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of {}:\n{}", self.log.display(), self.process.last_words());
        }
    }
}

/// A GET as probes do it: code and body.
async fn fetch(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}
