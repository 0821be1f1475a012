//! The namespace, the controller's Deployment and the node daemon's DaemonSet.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{
            DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy, Deployment, DeploymentSpec, RollingUpdateDaemonSet,
        },
        core::v1::{
            Affinity, Capabilities, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction,
            HostPathVolumeSource, Namespace, ObjectFieldSelector, PodAffinityTerm, PodAntiAffinity, PodSecurityContext,
            PodSpec, PodTemplateSpec, Probe, ProjectedVolumeSource, ResourceRequirements, SeccompProfile,
            SecurityContext, ServiceAccountTokenProjection, Toleration, Volume, VolumeMount, VolumeProjection,
            WeightedPodAffinityTerm,
        },
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use super::{
    names::{CONTROLLER, LEASE, NAMESPACE, NODE, cluster_meta, labels, meta},
    yaml,
};

const AUDIT: &str = "/var/lib/entra-pod-identity/audit";
const XTABLES_LOCK: &str = "/run/xtables.lock";
/// Where the daemon finds the token that identities of type 3 show to Entra.
const FEDERATION: &str = "/run/entra-pod-identity/federation";

fn image(name: &str) -> String {
    format!("entra-pod-identity/{name}:{}", env!("CARGO_PKG_VERSION"))
}

fn probe(path: &str, port: i32, host: Option<&str>, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            host: host.map(Into::into),
            path: Some(path.into()),
            port: IntOrString::Int(port),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(10),
        timeout_seconds: Some(2),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn port(name: &str, number: i32) -> ContainerPort {
    ContainerPort { name: Some(name.into()), container_port: number, ..ContainerPort::default() }
}

fn resources(cpu: &str, memory: &str, limit: &str) -> ResourceRequirements {
    let quantities = |list: &[(&str, &str)]| -> Option<BTreeMap<String, Quantity>> {
        Some(list.iter().map(|(k, v)| ((*k).into(), Quantity((*v).into()))).collect())
    };
    ResourceRequirements {
        requests: quantities(&[("cpu", cpu), ("memory", memory)]),
        // No limit on CPU: throttling would show as latency of every token.
        limits: quantities(&[("memory", limit)]),
        ..ResourceRequirements::default()
    }
}

fn from_field(variable: &str, path: &str) -> EnvVar {
    EnvVar {
        name: variable.into(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { field_path: path.into(), ..ObjectFieldSelector::default() }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

fn confined(add: &[&str]) -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".into()]),
            add: (!add.is_empty()).then(|| add.iter().map(|c| (*c).into()).collect()),
        }),
        ..SecurityContext::default()
    }
}

fn runtime_default() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".into(), ..SeccompProfile::default() }
}

fn linux() -> BTreeMap<String, String> {
    BTreeMap::from([("kubernetes.io/os".into(), "linux".into())])
}

fn pod_meta(component: &str) -> ObjectMeta {
    ObjectMeta { labels: Some(labels(component)), ..ObjectMeta::default() }
}

fn selector(component: &str) -> LabelSelector {
    LabelSelector { match_labels: Some(labels(component)), ..LabelSelector::default() }
}

/// The namespace of both programs.
pub(super) fn namespace() -> anyhow::Result<String> {
    let mut metadata = cluster_meta(NAMESPACE);
    metadata.labels =
        Some(BTreeMap::from([("pod-security.kubernetes.io/enforce".to_owned(), "privileged".to_owned())]));
    Ok(yaml::render(
        &[
            "`privileged` because the node daemon uses the host's network and its netfilter; nothing else should run here.",
        ],
        &[yaml::document(&Namespace { metadata, ..Namespace::default() })?],
    ))
}

/// The controller.
pub(super) fn controller() -> anyhow::Result<String> {
    let container = Container {
        name: "controller".into(),
        image: Some(image("controller")),
        args: Some(vec![
            format!("--lease-namespace={NAMESPACE}"),
            format!("--lease-name={LEASE}"),
            "--holder=$(POD_NAME)".into(),
            "--probe-address=0.0.0.0:8080".into(),
            "--metrics-address=0.0.0.0:8888".into(),
            "--log-format=json".into(),
        ]),
        env: Some(vec![from_field("POD_NAME", "metadata.name")]),
        ports: Some(vec![port("probes", 8080), port("metrics", 8888)]),
        liveness_probe: Some(probe("/healthz", 8080, None, 3)),
        readiness_probe: Some(probe("/readyz", 8080, None, 1)),
        resources: Some(resources("50m", "64Mi", "512Mi")),
        security_context: Some(confined(&[])),
        ..Container::default()
    };
    let deployment = Deployment {
        metadata: ObjectMeta { labels: Some(labels("controller")), ..meta(CONTROLLER) },
        spec: DeploymentSpec {
            replicas: Some(2),
            selector: selector("controller"),
            template: PodTemplateSpec {
                metadata: Some(pod_meta("controller")),
                spec: Some(PodSpec {
                    service_account_name: Some(CONTROLLER.into()),
                    // A Service of this namespace called entra-pod-identity would set ENTRA_POD_IDENTITY_PORT, a flag.
                    enable_service_links: Some(false),
                    node_selector: Some(linux()),
                    priority_class_name: Some("system-cluster-critical".into()),
                    affinity: Some(Affinity {
                        pod_anti_affinity: Some(PodAntiAffinity {
                            preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                                weight: 100,
                                pod_affinity_term: PodAffinityTerm {
                                    label_selector: Some(selector("controller")),
                                    topology_key: "kubernetes.io/hostname".into(),
                                    ..PodAffinityTerm::default()
                                },
                            }]),
                            ..PodAntiAffinity::default()
                        }),
                        ..Affinity::default()
                    }),
                    security_context: Some(PodSecurityContext {
                        run_as_non_root: Some(true),
                        run_as_user: Some(65532),
                        run_as_group: Some(65532),
                        seccomp_profile: Some(runtime_default()),
                        ..PodSecurityContext::default()
                    }),
                    containers: vec![container],
                    ..PodSpec::default()
                }),
            },
            ..DeploymentSpec::default()
        },
        ..Deployment::default()
    };
    // Draining nodes takes one after the other; one that is not ready is in nobody's way.
    let budget = PodDisruptionBudget {
        metadata: ObjectMeta { labels: Some(labels("controller")), ..meta(CONTROLLER) },
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(selector("controller")),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    };
    Ok(yaml::render(
        &["Two replicas, one of which works (it holds the Lease); the other takes over when it stops renewing."],
        &[yaml::document(&deployment)?, yaml::document(&budget)?],
    ))
}

/// The daemon's own token, for Entra alone; the kubelet renews it in time.
fn federation() -> Volume {
    Volume {
        name: "federation".into(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![VolumeProjection {
                service_account_token: Some(ServiceAccountTokenProjection {
                    audience: Some(identity_crd::FEDERATED_AUDIENCE.into()),
                    expiration_seconds: Some(3600),
                    path: "token".into(),
                    ..ServiceAccountTokenProjection::default()
                }),
                ..VolumeProjection::default()
            }]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// The node daemon.
pub(super) fn node() -> anyhow::Result<String> {
    let container = Container {
        name: "node".into(),
        image: Some(image("node")),
        args: Some(vec![
            "--node-address=$(NODE_IP)".into(),
            "--probe-address=127.0.0.1:8085".into(),
            "--metrics-address=127.0.0.1:9090".into(),
            "--log-format=json".into(),
            format!("--audit-journal={AUDIT}"),
        ]),
        env: Some(vec![
            from_field("NODE_NAME", "spec.nodeName"),
            from_field("NODE_IP", "status.hostIP"),
            EnvVar {
                name: "ENTRA_POD_IDENTITY_FEDERATED_TOKEN_FILE".into(),
                value: Some(format!("{FEDERATION}/token")),
                ..EnvVar::default()
            },
        ]),
        liveness_probe: Some(probe("/healthz", 8085, Some("127.0.0.1"), 3)),
        readiness_probe: Some(probe("/readyz", 8085, Some("127.0.0.1"), 1)),
        resources: Some(resources("20m", "24Mi", "128Mi")),
        security_context: Some(SecurityContext {
            run_as_user: Some(0),
            // NET_ADMIN: the redirect; NET_RAW: iptables of the legacy variant reads its tables through a raw socket.
            ..confined(&["NET_ADMIN", "NET_RAW"])
        }),
        volume_mounts: Some(vec![
            VolumeMount { name: "xtables-lock".into(), mount_path: XTABLES_LOCK.into(), ..VolumeMount::default() },
            VolumeMount {
                name: "federation".into(),
                mount_path: FEDERATION.into(),
                read_only: Some(true),
                ..VolumeMount::default()
            },
            VolumeMount { name: "audit".into(), mount_path: AUDIT.into(), ..VolumeMount::default() },
        ]),
        ..Container::default()
    };
    let daemon_set = DaemonSet {
        metadata: ObjectMeta { labels: Some(labels("node")), ..meta(NODE) },
        spec: DaemonSetSpec {
            selector: selector("node"),
            update_strategy: Some(DaemonSetUpdateStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateDaemonSet {
                    max_unavailable: Some(IntOrString::Int(1)),
                    ..RollingUpdateDaemonSet::default()
                }),
            }),
            template: PodTemplateSpec {
                metadata: Some(pod_meta("node")),
                spec: Some(PodSpec {
                    service_account_name: Some(NODE.into()),
                    enable_service_links: Some(false),
                    host_network: Some(true),
                    // The node's own resolver: tokens must not wait for the cluster's DNS.
                    dns_policy: Some("Default".into()),
                    node_selector: Some(linux()),
                    priority_class_name: Some("system-node-critical".into()),
                    tolerations: Some(vec![Toleration { operator: Some("Exists".into()), ..Toleration::default() }]),
                    security_context: Some(PodSecurityContext {
                        seccomp_profile: Some(runtime_default()),
                        ..PodSecurityContext::default()
                    }),
                    containers: vec![container],
                    volumes: Some(vec![
                        Volume {
                            name: "xtables-lock".into(),
                            host_path: Some(HostPathVolumeSource {
                                path: XTABLES_LOCK.into(),
                                type_: Some("FileOrCreate".into()),
                            }),
                            ..Volume::default()
                        },
                        federation(),
                        // The journal outlives the pod: an upgrade must not take the records with it.
                        Volume {
                            name: "audit".into(),
                            host_path: Some(HostPathVolumeSource {
                                path: AUDIT.into(),
                                type_: Some("DirectoryOrCreate".into()),
                            }),
                            ..Volume::default()
                        },
                    ]),
                    ..PodSpec::default()
                }),
            },
            ..DaemonSetSpec::default()
        },
        ..DaemonSet::default()
    };
    Ok(yaml::render(
        &[
            "Rules stay when this stops, so that pods get \"connection refused\" and never the node's own identities. To take",
            "them away for good: identity-node --remove-rules on each node.",
        ],
        &[yaml::document(&daemon_set)?],
    ))
}
