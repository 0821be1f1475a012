//! Objects in, actions out: which identity is assigned to which pod through which binding, and the fewest writes that get
//! there.
//!
//! [`Index`] joins pods, identities and bindings as they change and knows from each change which assignments it can
//! concern; [`Index::plan`] compares these, and only these, with what was observed. There is one `AzureAssignedIdentity`
//! for each pod and binding, in the pod's namespace, owned by the pod; what belongs to somebody else (it lacks the label
//! [`MANAGED_BY_LABEL`]) is never touched.
//!
//! | | |
//! |---|---|
//! | assigned | pods with a node that have not finished; while they terminate, too |
//! | not assigned | pods without a node, finished pods, pods in the node's network |
//! | rewritten | when the spec, UID or generation of identity or binding changed, the pod's node, or somebody altered it |
//! | not rewritten | when labels, annotations or status of identity or binding changed |
//! | stamped | with name and deadline of the grant that lasts longest of those that are active for its binding and pod |
//! | deleted | when no longer wanted; of a pod that is gone, only what the garbage collector leaves |

mod action;
mod boxes;
mod clock;
mod credential;
mod explain;
mod grants;
mod join;
mod object;
mod observed;
mod plan;
mod status;
mod told;

pub use action::{
    Action, Apply, CredentialVerdict, Delete, Event, GrantReference, Notice, Options, Outcome, Precondition, Relist,
    StatusPlan, StatusTarget, StatusUpdate,
};
pub use grants::{GrantUpdate, JudgedBy, ProofAnswer};
pub use object::node_label;
pub use told::{SeriesId, Telling, Told, ToldNext, ToldOutcome, ToldReason};

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use identity_crd::{AzureIdentity, AzureIdentityBinding};
use jiff::Timestamp;

use crate::{
    lookup::IdentityError,
    object::ObjectKey,
    pod::Pod,
    selector::{Catalog, Selection},
};
use boxes::Boxes;
use grants::Grants;
use observed::Observed;
use plan::Hold;
use status::StatusBook;

/// Type of the condition: the spec means something and can be used.
pub const VALID: &str = "Valid";
/// Type of a binding's condition: its identity exists, and has the client id that the binding asks for.
pub const IDENTITY_FOUND: &str = "IdentityFound";
/// Type of an identity's condition: Entra takes its credential. Only of identities that have one of their own.
pub const CREDENTIAL_READY: &str = "CredentialReady";
/// Type of a binding's condition: its time box is open. Only of bindings that have one, or whose identity has.
pub const OPEN: &str = "Open";
/// Type of a binding's condition, a warning: what is handed out while its time box is open works for long after it has closed.
pub const TOKENS_OUTLIVE_BOX: &str = "TokensOutliveBox";
/// Reason of a binding's `Valid=False`: its identity exists, but cannot be used.
pub const IDENTITY_UNUSABLE: &str = "IdentityUnusable";
/// Reason of a binding's `IdentityFound=False`: its identity exists, but not with the client id that the binding asks for.
pub const OTHER_CLIENT_ID: &str = "OtherClientID";
/// Label that marks an assignment as ours (Kubernetes "Recommended Labels").
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Its value.
pub const MANAGED_BY_VALUE: &str = "entra-pod-identity";

/// Everything the controller knows, joined. One task owns it.
///
/// ```
/// use identity_core::assign::{Event, Index, Options, Relist};
///
/// let mut index = Index::new(Options::default());
/// for list in [Relist::Pods(vec![]), Relist::Identities(vec![]), Relist::Bindings(vec![]), Relist::Assigned(vec![])] {
///     index.apply(Event::Relist(list));
/// }
/// assert!(index.plan(jiff::Timestamp::UNIX_EPOCH).is_empty());
/// ```
#[derive(Debug)]
pub struct Index {
    options: Options,
    listed: [bool; 4],
    pods: HashMap<ObjectKey, PodState>,
    /// Pods by scope (namespace, or everything) and by the value of the binding label.
    wards: HashMap<Arc<str>, Ward>,
    identities: HashMap<ObjectKey, IdentityState>,
    bindings: HashMap<ObjectKey, BindingState>,
    /// Bindings that name an identity, whether it exists or not.
    naming: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    catalog: Catalog,
    /// Assignments that should exist.
    wanted: HashMap<ObjectKey, Pair>,
    observed: HashMap<ObjectKey, Observed>,
    /// The same by the name of the pod they are for.
    by_pod: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// UIDs of objects that were deleted at our request, until the watch says so too.
    buried: HashMap<ObjectKey, Vec<String>>,
    /// Since when an assignment's pod is known to be gone.
    orphans: HashMap<ObjectKey, Timestamp>,
    /// Assignments to compare at the next plan.
    dirty: BTreeSet<ObjectKey>,
    /// Assignments to compare when a time comes.
    later: BTreeSet<(Timestamp, ObjectKey)>,
    /// What it showed when something was last planned.
    clock: Option<Timestamp>,
    holds: HashMap<ObjectKey, Hold>,
    statuses: StatusBook,
    boxes: Boxes,
    grants: Grants,
    told: Told,
}

/// Which pod, through which binding.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pair {
    pod: ObjectKey,
    binding: ObjectKey,
}

#[derive(Debug)]
struct PodState {
    pod: Pod,
    /// Bindings that select it, and the assignment that each stands for.
    selected: BTreeMap<ObjectKey, ObjectKey>,
}

#[derive(Debug, Default)]
struct Ward {
    all: BTreeSet<ObjectKey>,
    by_label: HashMap<Box<str>, BTreeSet<ObjectKey>>,
}

#[derive(Debug)]
struct IdentityState {
    object: Box<AzureIdentity>,
    embedded: AzureIdentity,
    /// Restricted to its own namespace even under cluster-wide matching.
    namespaced: bool,
    usable: Result<(), IdentityError>,
    /// What was said of the credential of this generation.
    credential: Option<CredentialVerdict>,
}

#[derive(Debug)]
struct BindingState {
    object: Box<AzureIdentityBinding>,
    embedded: AzureIdentityBinding,
    selection: Selection,
    /// The identity it names, if it names one.
    identity: Option<ObjectKey>,
    /// Pods it selects.
    pods: BTreeSet<ObjectKey>,
}

impl Index {
    /// An empty index.
    pub fn new(options: Options) -> Self {
        Self {
            catalog: Catalog::new(options.cluster_wide),
            statuses: StatusBook::default(),
            options,
            listed: [false; 4],
            pods: HashMap::new(),
            wards: HashMap::new(),
            identities: HashMap::new(),
            bindings: HashMap::new(),
            naming: HashMap::new(),
            wanted: HashMap::new(),
            observed: HashMap::new(),
            by_pod: HashMap::new(),
            buried: HashMap::new(),
            orphans: HashMap::new(),
            dirty: BTreeSet::new(),
            later: BTreeSet::new(),
            clock: None,
            holds: HashMap::new(),
            boxes: Boxes::default(),
            grants: Grants::default(),
            told: Told::default(),
        }
    }

    /// Takes in what happened.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Pod(pod) => self.set_pod(pod),
            Event::PodDeleted(key) => self.remove_pod(&key),
            Event::Identity(identity) => self.set_identity(identity),
            Event::IdentityDeleted(key) => self.remove_identity(&key),
            Event::Binding(binding) => self.set_binding(binding),
            Event::BindingDeleted(key) => self.remove_binding(&key),
            Event::Assigned(object) => self.observe(&object),
            Event::AssignedDeleted { key, uid } => self.observe_deleted(&key, uid.as_deref()),
            Event::Grant(grant) => self.set_grant(grant),
            Event::GrantDeleted { key, uid } => self.remove_grant(&key, uid.as_deref()),
            Event::Proof(answer) => self.set_proof(answer),
            Event::Credential(verdict) => self.set_credential(*verdict),
            Event::Relist(list) => self.relist(list),
        }
    }

    /// What people are to be told of assignments that come and go.
    pub const fn tellings(&mut self) -> &mut Told {
        &mut self.told
    }

    /// Whether every kind was listed once, so that what is not there is known to be absent. Grants do not count: a cluster
    /// without their definition works as well.
    pub fn is_synced(&self) -> bool {
        self.listed.iter().all(|listed| *listed)
    }
}
