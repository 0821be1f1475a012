//! The engine of pod identity: what is assigned, who is calling, may they.
//!
//! Everything outside the feature `runtime` is pure: no I/O, no clock (time is an argument), no randomness; effects are
//! returned as data.
//!
//! | module | question it answers |
//! |---|---|
//! | [`schedule`] | is this time box open, and when does that next change? |
//! | [`selector`] | which bindings select this pod? |
//! | [`assign`] | objects in: which identity is assigned to which pod, and the fewest writes that get there |
//! | [`lookup`] | pods and assignments of one node in: may this caller have this token? |
//! | [`grant`] | the life of a just-in-time grant: what becomes of it next? |
//! | [`explain`] | why? (the code that decides and the code that explains are one) |
//! | `runtime` (feature) | watches or a directory of manifests in, server-side apply or files out |
//!
//! # From objects to a decision
//!
//! The controller's part, [`assign::Index`], learns of objects and plans writes; the node's part, [`lookup::NodeIndex`],
//! learns of what was written and publishes snapshots, on which requests are decided.
//!
//! ```
//! use identity_core::{
//!     assign::{self, Action, Event, Index, Outcome, Relist},
//!     lookup::{self, Binding, Caller, Decision, NodeIndex, Published, Request, RequestedIdentity, Source},
//!     pod::Pod,
//! };
//! use identity_crd::{AzureIdentity, AzureIdentityBinding};
//! use jiff::Timestamp;
//! use serde_json::{from_value, json};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let identity: AzureIdentity = from_value(json!({
//!     "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
//!     "metadata": {"namespace": "demo", "name": "reader", "uid": "identity-1"},
//!     "spec": {"type": 0, "clientID": "aaaaaaaa-0000-4000-8000-000000000001", "resourceID":
//!         "/subscriptions/1/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/reader"},
//! }))?;
//! let binding: AzureIdentityBinding = from_value(json!({
//!     "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
//!     "metadata": {"namespace": "demo", "name": "web-reads", "uid": "binding-1"},
//!     "spec": {"azureIdentity": "reader", "selector": "web", "audiences": ["https://vault.azure.net"]},
//! }))?;
//! let pod: k8s_openapi::api::core::v1::Pod = from_value(json!({
//!     "metadata": {"namespace": "demo", "name": "web-0", "uid": "pod-1", "labels": {"aadpodidbinding": "web"}},
//!     "spec": {"nodeName": "node-1", "containers": []},
//!     "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.7"}]},
//! }))?;
//! let pod = Pod::try_from(&pod)?;
//! let now = Timestamp::UNIX_EPOCH;
//!
//! // The controller: objects in, writes out.
//! let mut index = Index::new(assign::Options::default());
//! index.apply(Event::Relist(Relist::Pods(vec![pod.clone()])));
//! index.apply(Event::Relist(Relist::Identities(vec![identity])));
//! index.apply(Event::Relist(Relist::Bindings(vec![binding.clone()])));
//! index.apply(Event::Relist(Relist::Assigned(vec![])));
//! let plan = index.plan(now);
//! let [action @ Action::Apply(apply)] = plan.as_slice() else { panic!("one assignment is to be written: {plan:?}") };
//! let mut written = apply.object.clone(); // here the server would write it, and give it these:
//! written.metadata.uid = Some("assigned-1".into());
//! written.metadata.resource_version = Some("1".into());
//! index.done(action, Outcome::Applied(Box::new(written.clone())));
//! assert!(index.plan(now).is_empty());
//!
//! // The node: its pods, bindings and assignments in, snapshots out.
//! let (mut node, published) = (NodeIndex::new(lookup::Options::default()), Published::default());
//! node.apply_pod(pod);
//! node.apply_binding(Binding::from(&binding));
//! node.publish(&published);
//! let caller = Caller { address: "10.0.0.7".parse()?, pinned: None };
//! let request = Request { resource: "https://vault.azure.net/", identity: RequestedIdentity::Default };
//! assert!(matches!(published.load().decide(&caller, &request, now), Decision::Wait(_)), "selected, not yet assigned");
//!
//! node.apply_assignment(&written)?;
//! node.publish(&published);
//! let Decision::Allow(allow) = published.load().decide(&caller, &request, now) else { panic!() };
//! let Source::Assignment(assignment) = &allow.source else { panic!() };
//! assert_eq!((&*allow.pod.name, &*assignment.identity.object.name), ("web-0", "reader"));
//!
//! // The same again, with its reasons.
//! let other = Request { resource: "https://graph.microsoft.com", ..request };
//! let (decision, reasons) = published.load().explain(&caller, &other, now);
//! assert!(matches!(decision, Decision::Deny(_)));
//! assert!(reasons.to_string().contains("audiences of the binding: [https://vault.azure.net]"), "{reasons}");
//! # Ok(())
//! # }
//! ```

pub mod assign;
pub mod explain;
pub mod grant;
pub mod lookup;
pub mod object;
pub mod pod;
#[cfg(feature = "runtime")]
pub mod runtime;
pub mod schedule;
pub mod selector;
