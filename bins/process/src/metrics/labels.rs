//! Which labels there are, and what bounds their values.

/// A label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// What bounds its values; `None`: there are those which a daemon shows from its start on, and no others.
    pub bound: Option<&'static str>,
}

/// All of them. None has a value that a pod can choose.
pub const LABELS: &[Label] = &[
    fixed("answer"),
    fixed("change"),
    fixed("decision"),
    fixed("kind"),
    fixed("operation_type"),
    fixed("outcome"),
    fixed("reason"),
    fixed("sink"),
    fixed("status_code"),
    fixed("upstream"),
    fixed("wanted"),
    Label { name: "version", bound: Some("one") },
    Label { name: "namespace", bound: Some("those of the identities followed") },
    Label { name: "identity", bound: Some("the identities followed") },
];

const fn fixed(name: &'static str) -> Label {
    Label { name, bound: None }
}
