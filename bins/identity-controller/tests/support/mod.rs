//! A real control plane with the CRDs and `deploy/` in force, and the real binary as its controller.

pub(crate) mod cluster;
pub(crate) mod controller;
pub(crate) mod proxy;

use std::{path::PathBuf, time::Duration};

use tokio::time::Instant;

/// How long a condition may take. Everything here takes milliseconds to a few seconds; this is for a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// The user that the controller is.
pub(crate) const CONTROLLER: &str = "system:serviceaccount:entra-pod-identity:entra-pod-identity-controller";
/// The user that removes what lost its owner.
pub(crate) const COLLECTOR: &str = "system:serviceaccount:kube-system:generic-garbage-collector";

/// Waits until `probe` has an answer.
pub(crate) async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(answer) = probe().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let Ok(answer) = tokio::time::timeout(PATIENCE, wait).await else { panic!("timed out waiting for {what}") };
    answer
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    until(what, async || condition().await.then_some(())).await;
}

/// Runs one part of a test and says how long it took.
pub(crate) async fn part<T>(name: &str, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    eprintln!("… {name}");
    let result = work.await;
    eprintln!("  {name}: {:.1} s", began.elapsed().as_secs_f64());
    result
}

/// The repository.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[expect(clippy::disallowed_methods, reason = "the tier's runner says where the binaries are")]
pub(crate) fn assets() -> PathBuf {
    std::env::var_os("KUBEBUILDER_ASSETS")
        .expect("KUBEBUILDER_ASSETS must name the directory with etcd and kube-apiserver")
        .into()
}
