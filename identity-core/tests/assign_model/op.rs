//! What may happen.

use std::collections::BTreeSet;

use identity_core::{
    assign::{CredentialVerdict, Event},
    object::ObjectKey,
    pod::PodPhase,
};
use identity_crd::AzureAssignedIdentity;
use jiff::SignedDuration;
use proptest::prelude::*;

use crate::{
    World,
    common::{binding, key, labels, managed_identity, match_labels, pod, service_principal},
    grants::policy,
    target,
};

/// Three of each, in two namespaces.
fn name_of(i: u8) -> ObjectKey {
    [key("a", "x"), key("a", "y"), key("b", "x")][usize::from(i % 3)].clone()
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    PutPod { i: u8, label: u8, app: bool, account: bool, node: bool, phase: u8, host: bool, deleting: bool },
    RecreatePod(u8),
    DeletePod(u8),
    PutIdentity { i: u8, form: u8 },
    TouchIdentity { i: u8, namespaced: bool },
    RecreateIdentity(u8),
    DeleteIdentity(u8),
    PutBinding { i: u8, identity: u8, form: u8, weight: i32 },
    TouchBinding(u8),
    RecreateBinding(u8),
    DeleteBinding(u8),
    Interfere { which: u8, how: u8 },
    CollectGarbage,
    Deliver { kind: u8, count: u8 },
    Relist(u8),
    Plan,
    Execute { which: u8, fate: u8 },
    Forget,
    Advance(u8),
    Ask { i: u8, binding: u8, pod: Option<u8>, minutes: u8 },
    Revoke(u8),
    DeleteGrant(u8),
    Judge { i: u8, generation: i64, ready: Option<bool> },
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let i = any::<u8>;
    prop_oneof![
        6 => (i(), 0..3u8, any::<bool>(), any::<bool>(), prop::bool::weighted(0.9), 0..8u8,
              prop::bool::weighted(0.1), any::<bool>())
            .prop_map(|(i, label, app, account, node, phase, host, deleting)| {
                Op::PutPod { i, label, app, account, node, phase, host, deleting }
            }),
        2 => i().prop_map(Op::RecreatePod),
        2 => i().prop_map(Op::DeletePod),
        5 => (i(), 0..8u8).prop_map(|(i, form)| Op::PutIdentity { i, form }),
        2 => (i(), any::<bool>()).prop_map(|(i, namespaced)| Op::TouchIdentity { i, namespaced }),
        1 => i().prop_map(Op::RecreateIdentity),
        1 => i().prop_map(Op::DeleteIdentity),
        6 => (i(), i(), 0..8u8, 0..3i32).prop_map(|(i, identity, form, weight)| {
            Op::PutBinding { i, identity, form, weight }
        }),
        1 => i().prop_map(Op::TouchBinding),
        1 => i().prop_map(Op::RecreateBinding),
        1 => i().prop_map(Op::DeleteBinding),
        2 => (i(), 0..6u8).prop_map(|(which, how)| Op::Interfere { which, how }),
        1 => Just(Op::CollectGarbage),
        12 => (0..5u8, 1..6u8).prop_map(|(kind, count)| Op::Deliver { kind, count }),
        2 => (0..5u8).prop_map(Op::Relist),
        8 => Just(Op::Plan),
        10 => (i(), 0..8u8).prop_map(|(which, fate)| Op::Execute { which, fate }),
        1 => Just(Op::Forget),
        2 => (0..90u8).prop_map(Op::Advance),
        4 => (i(), i(), prop::option::weighted(0.3, i()), 1..12u8)
            .prop_map(|(i, binding, pod, minutes)| Op::Ask { i, binding, pod, minutes }),
        1 => i().prop_map(Op::Revoke),
        1 => i().prop_map(Op::DeleteGrant),
        2 => (i(), 0..4i64, any::<Option<bool>>()).prop_map(|(i, generation, ready)| Op::Judge { i, generation, ready }),
    ]
}
impl World {
    pub(crate) fn step(&mut self, op: Op) {
        match op {
            Op::PutPod { i, label, app, account, node, phase, host, deleting } => {
                let name = name_of(i);
                let uid = match self.pods.get(&name) {
                    Some(pod) => pod.reference.uid.to_string(),
                    None => format!("pod-{}", self.next()),
                };
                let mut object = pod(&name.namespace, &name.name, &uid);
                object.labels = match label {
                    0 => labels(&[]),
                    1 => labels(&[("aadpodidbinding", "demo")]),
                    _ => labels(&[("aadpodidbinding", "other")]),
                };
                if app {
                    object.labels.insert("app".into(), "web".into());
                }
                object.service_account = if account { "builder" } else { "default" }.into();
                object.node = node.then(|| "node-1".into());
                object.phase = [PodPhase::Succeeded, PodPhase::Failed, PodPhase::Pending, PodPhase::Unknown]
                    .get(usize::from(phase))
                    .copied()
                    .unwrap_or(PodPhase::Running);
                object.host_network = host;
                object.deleting = deleting;
                self.put_pod(object);
            }
            Op::RecreatePod(i) => {
                let name = name_of(i);
                let Some(mut object) = self.pods.get(&name).cloned() else { return };
                let uid = format!("pod-{}", self.next());
                object.reference = pod(&name.namespace, &name.name, &uid).reference;
                // The watch may compress the deletion away.
                if self.serial % 2 == 0 {
                    self.delete_pod(&name);
                }
                self.put_pod(object);
            }
            Op::DeletePod(i) => self.delete_pod(&name_of(i)),
            Op::PutIdentity { i, form } => {
                let name = name_of(i);
                let serial = self.next();
                let old = self.identities.get(&name).cloned();
                let uid =
                    old.as_ref().map_or_else(|| format!("identity-{serial}"), |o| o.metadata.uid.clone().unwrap());
                let mut object = match form {
                    0 | 1 | 6 | 7 => managed_identity(&name.namespace, &name.name, &uid),
                    _ => service_principal(&name.namespace, &name.name, &uid),
                };
                match form {
                    1 => object.spec.resource_id = Some("nonsense".into()),
                    3 => object.spec.tenant_id = None,
                    4 => object.spec.client_password.as_mut().unwrap().namespace = Some("elsewhere".into()),
                    5 => object.spec.type_ = Some(9),
                    6 => object.spec.client_id = None,
                    7 => object.spec.client_id = Some("client-X".into()),
                    _ => {}
                }
                if let Some(old) = old {
                    object.metadata.annotations = old.metadata.annotations;
                    let same = old.spec == object.spec;
                    object.metadata.generation = old.metadata.generation.map(|g| if same { g } else { g + 1 });
                }
                self.put_identity(name, object);
            }
            Op::TouchIdentity { i, namespaced } => {
                let name = name_of(i);
                let Some(mut object) = self.identities.get(&name).cloned() else { return };
                let value = if namespaced { "namespaced" } else { "Namespaced" };
                object.metadata.annotations = Some(labels(&[("aadpodidentity.k8s.io/Behavior", value)]));
                object.metadata.labels = Some(labels(&[("serial", &self.next().to_string())]));
                self.put_identity(name, object);
            }
            Op::RecreateIdentity(i) => {
                let name = name_of(i);
                let Some(mut object) = self.identities.get(&name).cloned() else { return };
                object.metadata.uid = Some(format!("identity-{}", self.next()));
                self.put_identity(name, object);
            }
            Op::DeleteIdentity(i) => {
                if self.identities.remove(&name_of(i)).is_some() {
                    self.queues[1].push_back(Event::IdentityDeleted(name_of(i)));
                }
            }
            Op::PutBinding { i, identity, form, weight } => {
                let name = name_of(i);
                let serial = self.next();
                let old = self.bindings.get(&name).cloned();
                let uid = old.as_ref().map_or_else(|| format!("binding-{serial}"), |o| o.metadata.uid.clone().unwrap());
                let mut object = binding(&name.namespace, &name.name, &uid, &name_of(identity).name);
                let spec = &mut object.spec;
                spec.weight = Some(weight);
                // Two of three take grants.
                spec.time_box = (weight > 0).then(policy);
                match form {
                    0 => {}
                    1 => spec.selector = Some("other".into()),
                    2 => {
                        spec.selector = None;
                        spec.pod_selector = Some(match_labels(&[("app", "web")]));
                    }
                    3 => {
                        spec.selector = None;
                        spec.service_accounts = Some(vec!["builder".into(), "x".into()]);
                    }
                    4 => spec.azure_identity = None,
                    6 => spec.client_id = Some("CLIENT-x".into()),
                    7 => spec.client_id = Some("client-y".into()),
                    _ => spec.service_accounts = Some(vec!["default".into()]),
                }
                if let Some(old) = old {
                    let same = old.spec == object.spec;
                    object.metadata.generation = old.metadata.generation.map(|g| if same { g } else { g + 1 });
                }
                self.put_binding(name, object);
            }
            Op::TouchBinding(i) => {
                let name = name_of(i);
                let Some(mut object) = self.bindings.get(&name).cloned() else { return };
                object.metadata.labels = Some(labels(&[("serial", &self.next().to_string())]));
                object.status.get_or_insert_default().matched_pods = Some(7);
                self.put_binding(name, object);
            }
            Op::RecreateBinding(i) => {
                let name = name_of(i);
                let Some(mut object) = self.bindings.get(&name).cloned() else { return };
                object.metadata.uid = Some(format!("binding-{}", self.next()));
                self.put_binding(name, object);
            }
            Op::DeleteBinding(i) => {
                if self.bindings.remove(&name_of(i)).is_some() {
                    self.queues[2].push_back(Event::BindingDeleted(name_of(i)));
                }
            }
            Op::Interfere { which, how } => self.interfere(which, how),
            Op::CollectGarbage => {
                let alive: BTreeSet<String> = self.pods.values().map(|p| p.reference.uid.to_string()).collect();
                let dead: Vec<ObjectKey> = self
                    .assigned
                    .iter()
                    .filter(|(_, o)| o.metadata.owner_references.iter().flatten().any(|r| !alive.contains(&r.uid)))
                    .map(|(key, _)| key.clone())
                    .collect();
                for key in dead {
                    // A pod that the index still believes in loses its assignment: it will try to write it again.
                    self.disturbed.insert(key.clone());
                    self.delete_assigned(&key);
                }
            }
            Op::Deliver { kind, count } => {
                for _ in 0..count {
                    if let Some(event) = self.queues[usize::from(kind)].pop_front() {
                        self.tell(event);
                    }
                }
            }
            Op::Relist(kind) => self.relist(kind),
            // What is thought of a credential takes nothing from a pod, and gives it nothing.
            Op::Judge { i, generation, ready } => {
                let identity = name_of(i);
                let uid = self.identities.get(&identity).and_then(|object| object.metadata.uid.clone());
                self.index.apply(Event::Credential(Box::new(CredentialVerdict {
                    identity,
                    uid,
                    generation: Some(generation),
                    ready,
                    reason: "Reason".into(),
                    message: String::new(),
                    expires: None,
                })));
            }
            Op::Ask { i, binding, pod, minutes } => {
                let pod = pod.map(|pod| name_of(pod).name.to_string());
                let (name, binding) = (name_of(i), name_of(binding));
                self.ask(&key(&binding.namespace, &name.name), &binding, pod.as_deref(), minutes);
            }
            Op::Revoke(i) => self.revoke(&name_of(i)),
            Op::DeleteGrant(i) => self.delete_grant(&name_of(i)),
            Op::Plan => self.plan(),
            Op::Execute { which, fate } => {
                if !self.flying.is_empty() {
                    let action = self.flying.remove(usize::from(which) % self.flying.len());
                    self.execute(&action, fate);
                }
            }
            Op::Forget => {
                for action in std::mem::take(&mut self.flying) {
                    self.disturbed.insert(target(&action));
                }
                self.index.forget_in_flight();
            }
            Op::Advance(seconds) => self.now += SignedDuration::from_secs(seconds.into()),
        }
    }

    /// People, and other controllers.
    fn interfere(&mut self, which: u8, how: u8) {
        if how == 5 {
            let mut object = AzureAssignedIdentity::new("stranger", Default::default());
            object.metadata.namespace = Some("a".into());
            self.put_assigned(object);
            return;
        }
        let keys: Vec<ObjectKey> = self.assigned.keys().cloned().collect();
        let Some(key) = keys.get(usize::from(which) % keys.len().max(1)) else { return };
        self.disturbed.insert(key.clone());
        let mut object = self.assigned[key].clone();
        match how {
            0 => return self.delete_assigned(key),
            1 => object.spec.pod = Some("somebody-else".into()),
            2 => object.metadata.labels = None,
            3 => object.status = None,
            _ => object.metadata.owner_references = None,
        }
        self.put_assigned(object);
    }
}
