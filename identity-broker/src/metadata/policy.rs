//! Which pods may reach which paths of the node's metadata service.
//!
//! A policy is a list of rules; the first that fits a request decides, and what none fits is blocked unless the policy says
//! `otherwise: allow`. No rule reaches a credential: those paths are never a [`MetadataPath`].

use std::fmt;

use http::Method;
use serde::Deserialize;

use super::path::MetadataPath;

/// The verbs that the service knows: GET everywhere, POST to approve scheduled events. All others are 405.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// GET.
    Get,
    /// POST.
    Post,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Get, Self::Post];

    /// The verb of a request, if it is one of these.
    pub fn of(method: &Method) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.as_str() == method.as_str())
    }

    /// As in a request.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is passed on.
    Allow,
    /// It is answered with 403.
    #[default]
    Block,
}

/// One rule: fits a request when namespace, path and verb all do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What happens to what it fits.
    pub(super) action: Action,
    /// Namespaces of the pods; none: of every pod.
    pub(super) namespaces: Option<Box<[Box<str>]>>,
    /// Canonical path prefixes, without ASCII case.
    pub(super) paths: Box<[Box<str>]>,
    /// Verbs.
    pub(super) verbs: Box<[Verb]>,
}

impl Rule {
    fn fits(&self, namespace: &str, verb: Verb, path: &MetadataPath) -> bool {
        self.namespaces.as_ref().is_none_or(|names| names.iter().any(|name| **name == *namespace))
            && self.verbs.contains(&verb)
            && self.paths.iter().any(|prefix| path.is_below(prefix))
    }
}

/// The policy of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub(super) rules: Box<[Rule]>,
    pub(super) otherwise: Action,
}

impl Default for Policy {
    /// GET of `instance` and `scheduledevents` for every pod, nothing else.
    fn default() -> Self {
        let paths = ["/metadata/instance", "/metadata/scheduledevents"].map(Box::from).into();
        let verbs = [Verb::Get].into();
        Self {
            rules: [Rule { action: Action::Allow, namespaces: None, paths, verbs }].into(),
            otherwise: Action::Block,
        }
    }
}

impl Policy {
    /// Everything but credentials, for every pod.
    pub fn allow() -> Self {
        Self { rules: Box::default(), otherwise: Action::Allow }
    }

    /// Nothing.
    pub fn block() -> Self {
        Self { rules: Box::default(), otherwise: Action::Block }
    }

    /// What happens to a request of a pod in `namespace`.
    pub fn decide(&self, namespace: &str, verb: Verb, path: &MetadataPath) -> Action {
        self.rules.iter().find(|rule| rule.fits(namespace, verb, path)).map_or(self.otherwise, |rule| rule.action)
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
