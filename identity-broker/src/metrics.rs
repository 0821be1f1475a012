//! Prometheus metrics. Every label set is bounded and made beforehand: counting is one atomic addition.

mod buckets;
pub mod compat;

use std::time::Duration;

use identity_core::lookup::ObjectRef;
use jiff::Timestamp;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use self::{
    buckets::{Answers, Buckets},
    compat::Compat,
};

pub(crate) use self::buckets::AnsweredBy;

/// Upper ends for what is held, in seconds; it is held for five unless set otherwise.
const HELD: [f64; 8] = [0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// Upper ends for readings of Key Vaults, in seconds; they take 30 at most.
const VAULT_READS: [f64; 8] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];
/// Whom requests upstream go to.
const UPSTREAMS: [&str; 3] = ["entra", "imds", "metadata"];
/// How they end.
const OUTCOMES: [&str; 3] = ["ok", "refused", "failed"];

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident => $word:literal,)*) => {
        /// How a request ended, from a bounded set.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// In a word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

reasons! {
    /// A token was issued.
    Issued => "issued",
    /// The tenant was answered.
    Informed => "informed",
    /// Answered by the node's IMDS.
    Passed => "passed",
    /// The request target is ambiguous or too long.
    BadTarget => "bad_target",
    /// No `Metadata: true`; probes of SDKs end here.
    MetadataHeader => "metadata_header",
    /// `X-Forwarded-For` is present.
    Forwarded => "forwarded",
    /// Not GET.
    Method => "method",
    /// A parameter is wrong.
    BadQuery => "bad_query",
    /// The body is wrong.
    BadBody => "bad_body",
    /// `authority` is not the identity's.
    Authority => "authority",
    /// No such path.
    NotFound => "not_found",
    /// A blocked path.
    Blocked => "blocked",
    /// The pod's share of the node's IMDS is used up.
    MetadataShare => "metadata_share",
    /// The node's IMDS does not answer what is passed to it.
    MetadataUnavailable => "metadata_unavailable",
    /// A host-network pod or the node itself.
    HostNetwork => "host_network",
    /// The address belongs to another pod than the connection began with.
    AddressChangedHands => "address_changed_hands",
    /// No binding selects the pod.
    NoBinding => "no_binding",
    /// The named identity is not the pod's.
    IdentityNotFound => "identity_not_found",
    /// Several identities and none named.
    MultipleIdentities => "multiple_identities",
    /// The audience is not allowed.
    Audience => "audience",
    /// The time box is closed, or the grant is missing.
    Closed => "closed",
    /// No pod has the address yet.
    UnknownAddress => "unknown_address",
    /// Several pods have the address.
    AmbiguousAddress => "ambiguous_address",
    /// The assignment has yet to come.
    NotAssignedYet => "not_assigned_yet",
    /// The decision changed while the token was got.
    Unsettled => "unsettled",
    /// Too many requests are waiting.
    TooManyHeld => "too_many_held",
    /// The pod asks too often.
    RateLimited => "rate_limited",
    /// Entra or IMDS refused.
    UpstreamRefused => "upstream_refused",
    /// Entra, IMDS or the source of secrets does not answer.
    UpstreamUnavailable => "upstream_unavailable",
    /// The identity's objects are wrong.
    Misconfigured => "misconfigured",
    /// The audit record could not be written.
    Audit => "audit",
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct UpstreamLabel {
    upstream: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct IdentityLabel {
    namespace: String,
    identity: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DecisionLabel {
    decision: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FetchLabel {
    wanted: &'static str,
    outcome: &'static str,
}

/// What the first look at a request decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decided {
    /// A token may be had.
    Allow,
    /// Not yet.
    Hold,
    /// No.
    Deny,
}

impl Decided {
    const ALL: [Self; 3] = [Self::Allow, Self::Hold, Self::Deny];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Hold => "hold",
            Self::Deny => "deny",
        }
    }
}

/// For whom a token was got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Somebody waited for it.
    Now,
    /// Nobody did yet: a refresh, or an assignment that is new.
    Ahead,
}

/// How getting a token ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fetched {
    /// With a token.
    Ok,
    /// Without.
    Failed,
    /// Before it was asked for: there was no need any more.
    Abandoned,
}

/// How reading a credential in a Key Vault ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VaultRead {
    /// It was read.
    Ok,
    /// The identity that reads got no token.
    NoToken,
    /// There is none, or it is disabled.
    NotFound,
    /// The identity that reads may not, or the node may not.
    Forbidden,
    /// The vault is asked too much.
    Throttled,
    /// The vault does not answer.
    Unavailable,
    /// What was asked for, or what was answered, is not as it should be.
    Wrong,
}

impl VaultRead {
    const ALL: [Self; 7] =
        [Self::Ok, Self::NoToken, Self::NotFound, Self::Forbidden, Self::Throttled, Self::Unavailable, Self::Wrong];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NoToken => "no_token",
            Self::NotFound => "not_found",
            Self::Forbidden => "forbidden",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Wrong => "wrong",
        }
    }
}

/// Why a connection was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// It was dialled directly, not redirected.
    Direct,
    /// The peer has too many connections.
    PerPeer,
    /// There are too many connections.
    Total,
}

impl Turned {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::PerPeer => "per_peer_limit",
            Self::Total => "total_limit",
        }
    }
}

/// The metrics of a broker.
#[derive(Debug)]
pub struct Metrics {
    requests: Vec<Counter>,
    turned: [Counter; 3],
    upstream: Family<UpstreamLabel, Histogram>,
    credential_expiry: Family<IdentityLabel, Gauge>,
    answers: Answers,
    compat: Option<Compat>,
    decisions: [Counter; 3],
    /// Those that were settled, and those that were not.
    held_for: [Buckets; 2],
    /// By `Wanted` and `Fetched`.
    fetches: [[Counter; 3]; 2],
    vault_reads: [Buckets; 7],
    /// Connections open now.
    pub connections: Gauge,
    /// Requests held now.
    pub held: Gauge,
    /// Audit records of refusals that were left out, because a pod had too many.
    pub audit_suppressed: Counter,
    /// Tokens answered from the cache.
    pub cache_hits: Counter,
    /// Requests made upstream for the cache.
    pub cache_misses: Counter,
    /// Keys removed to keep the cache small.
    pub cache_evictions: Counter,
}

impl Metrics {
    /// Makes them and registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let requests = Family::<ReasonLabel, Counter>::default();
        let turned = Family::<ReasonLabel, Counter>::default();
        let upstream = Family::<UpstreamLabel, Histogram>::new_with_constructor(|| {
            Histogram::new([0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
        });
        let registry = registry.sub_registry_with_prefix("entra_pod_identity_broker");
        registry.register("requests", "Requests by how they ended", requests.clone());
        registry.register("connections_refused", "Connections not served, and why", turned.clone());
        registry.register_with_unit("upstream", "Requests to Entra and IMDS", Unit::Seconds, upstream.clone());
        let credential_expiry = Family::<IdentityLabel, Gauge>::default();
        registry.register(
            "credential_expiry_timestamp_seconds",
            "When the credential in use of an identity ends, where that is known; less time(): the seconds until then",
            credential_expiry.clone(),
        );
        for (upstream_name, outcome) in UPSTREAMS.into_iter().flat_map(|name| OUTCOMES.map(|outcome| (name, outcome))) {
            drop(upstream.get_or_create(&UpstreamLabel { upstream: upstream_name, outcome }));
        }
        let answers = Answers::default();
        registry.register_with_unit(
            "token_request_duration",
            "Well-formed requests for tokens, from the first look at them to their answer, by what was answered: a token from \
             the cache, one from upstream, an error",
            Unit::Seconds,
            answers.clone(),
        );
        let decisions = Family::<DecisionLabel, Counter>::default();
        registry.register("decisions", "What the first look at a request decided", decisions.clone());
        let held_for = Family::<OutcomeLabel, Buckets>::new_with_constructor(|| Buckets::new(&HELD));
        registry.register_with_unit(
            "hold_duration",
            "How long requests were held for an address or an assignment that was to come, by whether it came",
            Unit::Seconds,
            held_for.clone(),
        );
        let fetches = Family::<FetchLabel, Counter>::default();
        registry.register(
            "token_fetches",
            "Tokens got from upstream, by whether somebody waited or it was ahead of time (refreshes), and how it ended",
            fetches.clone(),
        );
        let vault_reads = Family::<OutcomeLabel, Buckets>::new_with_constructor(|| Buckets::new(&VAULT_READS));
        registry.register_with_unit(
            "key_vault_read_duration",
            "Readings of credentials in Key Vaults, the reader's token and every request included, by how they ended",
            Unit::Seconds,
            vault_reads.clone(),
        );
        let this = Self {
            answers,
            compat: None,
            decisions: Decided::ALL
                .map(|decided| decisions.get_or_create(&DecisionLabel { decision: decided.as_str() }).clone()),
            held_for: ["settled", "timed_out"].map(|outcome| held_for.get_or_create(&OutcomeLabel { outcome }).clone()),
            fetches: ["now", "ahead"].map(|wanted| {
                ["ok", "failed", "abandoned"]
                    .map(|outcome| fetches.get_or_create(&FetchLabel { wanted, outcome }).clone())
            }),
            vault_reads: VaultRead::ALL
                .map(|read| vault_reads.get_or_create(&OutcomeLabel { outcome: read.as_str() }).clone()),
            credential_expiry,
            requests: Reason::ALL
                .iter()
                .map(|reason| requests.get_or_create(&ReasonLabel { reason: reason.as_str() }).clone())
                .collect(),
            turned: [Turned::Direct, Turned::PerPeer, Turned::Total]
                .map(|turned_away| turned.get_or_create(&ReasonLabel { reason: turned_away.as_str() }).clone()),
            upstream,
            connections: Gauge::default(),
            held: Gauge::default(),
            audit_suppressed: Counter::default(),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
            cache_evictions: Counter::default(),
        };
        registry.register("connections", "Connections open now", this.connections.clone());
        registry.register("held_requests", "Requests held now", this.held.clone());
        registry.register(
            "audit_records_suppressed",
            "Audit records of refusals left out, because a pod had too many",
            this.audit_suppressed.clone(),
        );
        registry.register("cache_hits", "Tokens answered from the cache", this.cache_hits.clone());
        registry.register("cache_misses", "Requests upstream for the cache", this.cache_misses.clone());
        registry.register("cache_evictions", "Keys removed from the cache", this.cache_evictions.clone());
        this
    }

    /// Exports some under the names of the archived predecessor as well: `aadpodidentity_…`.
    #[must_use]
    pub fn with_compat(mut self, registry: &mut Registry) -> Self {
        self.compat = Some(Compat::new(registry));
        self
    }

    /// Counts a request.
    pub fn request(&self, reason: Reason) {
        if let Some(counter) = self.requests.get(reason as usize) {
            counter.inc();
        }
    }

    /// Requests that ended so.
    pub fn requests(&self, reason: Reason) -> u64 {
        self.requests.get(reason as usize).map_or(0, Counter::get)
    }

    /// Counts a connection that is not served.
    pub fn turned_away(&self, turned: Turned) {
        if let Some(counter) = self.turned.get(turned as usize) {
            counter.inc();
        }
    }

    /// Connections that were not served for this reason.
    pub fn turned(&self, turned: Turned) -> u64 {
        self.turned.get(turned as usize).map_or(0, Counter::get)
    }

    /// The credential in use of an identity ends then; `None`: it has none, or one whose end is not known. There is a series for
    /// each identity on the node at most.
    pub fn credential_expiry(&self, identity: &ObjectRef, expires: Option<Timestamp>) {
        let label = IdentityLabel { namespace: identity.namespace.to_string(), identity: identity.name.to_string() };
        match expires {
            Some(expires) => {
                self.credential_expiry.get_or_create(&label).set(expires.as_second());
            }
            None => {
                self.credential_expiry.remove(&label);
            }
        }
    }

    /// Records a request for a token.
    pub(crate) fn answered(&self, by: AnsweredBy<'_>, took: Duration) {
        self.answers.observe(by, took);
        if let Some(compat) = &self.compat {
            compat.answered(by.status(), took);
        }
    }

    /// Counts the first decision on a request.
    pub(crate) fn decided(&self, decided: Decided) {
        self.decisions[decided as usize].inc();
    }

    /// Records how long a request was held.
    pub(crate) fn held_for(&self, settled: bool, took: Duration) {
        self.held_for[usize::from(!settled)].observe(took);
    }

    /// Counts a token that was got, or not.
    pub(crate) fn fetched(&self, wanted: Wanted, fetched: Fetched) {
        self.fetches[wanted as usize][fetched as usize].inc();
    }

    /// Records a reading of a Key Vault.
    pub(crate) fn vault_read(&self, read: VaultRead, took: Duration) {
        self.vault_reads[read as usize].observe(took);
    }

    /// Records a request upstream.
    pub(crate) fn upstream(&self, upstream: &'static str, outcome: &'static str, took: Duration) {
        self.upstream.get_or_create(&UpstreamLabel { upstream, outcome }).observe(took.as_secs_f64());
        if let Some(compat) = &self.compat {
            compat.upstream(upstream, outcome, took);
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(&mut Registry::default())
    }
}
