//! Bindings filed by what a pod must have for them to be worth a look.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use identity_crd::BINDING_LABEL;

use super::Selection;
use crate::{object::ObjectKey, pod::Pod};

/// Bindings by namespace and by one necessary condition, so that a changed pod is compared with the bindings that can
/// select it and no others.
#[derive(Debug)]
pub(crate) struct Catalog {
    cluster_wide: bool,
    scopes: HashMap<Arc<str>, Candidates>,
}

#[derive(Debug, Default)]
struct Candidates {
    by_label: HashMap<Box<str>, BTreeSet<ObjectKey>>,
    by_account: HashMap<Box<str>, BTreeSet<ObjectKey>>,
    others: BTreeSet<ObjectKey>,
}

impl Catalog {
    pub(crate) fn new(cluster_wide: bool) -> Self {
        Self { cluster_wide, scopes: HashMap::new() }
    }

    /// Where objects of a namespace are filed.
    pub(crate) fn scope<'a>(&self, namespace: &'a str) -> &'a str {
        if self.cluster_wide { "" } else { namespace }
    }

    pub(crate) fn insert(&mut self, key: &ObjectKey, selection: &Selection) {
        let filed = self.scopes.entry(Arc::from(self.scope(&key.namespace))).or_default();
        if let Some(label) = &selection.label {
            filed.by_label.entry(label.clone()).or_default().insert(key.clone());
        } else if !selection.accounts.is_empty() {
            for account in &selection.accounts {
                filed.by_account.entry(account.clone()).or_default().insert(key.clone());
            }
        } else if selection.pods.is_some() {
            filed.others.insert(key.clone());
        }
    }

    pub(crate) fn remove(&mut self, key: &ObjectKey, selection: &Selection) {
        let scope = self.scope(&key.namespace);
        let Some(filed) = self.scopes.get_mut(scope) else { return };
        if let Some(label) = &selection.label {
            take(&mut filed.by_label, label, key);
        } else {
            for account in &selection.accounts {
                take(&mut filed.by_account, account, key);
            }
            filed.others.remove(key);
        }
        if filed.by_label.is_empty() && filed.by_account.is_empty() && filed.others.is_empty() {
            self.scopes.remove(scope);
        }
    }

    /// Every binding that might select `pod`, and few that do not.
    pub(crate) fn candidates(&self, pod: &Pod) -> impl Iterator<Item = &ObjectKey> {
        let filed = self.scopes.get(self.scope(&pod.reference.namespace));
        let label = pod.labels.get(BINDING_LABEL);
        filed.into_iter().flat_map(move |filed| {
            let by_label = label.and_then(|value| filed.by_label.get(value.as_str()));
            let by_account = filed.by_account.get(&*pod.service_account);
            by_label.into_iter().flatten().chain(by_account.into_iter().flatten()).chain(&filed.others)
        })
    }
}

fn take(shelf: &mut HashMap<Box<str>, BTreeSet<ObjectKey>>, at: &str, key: &ObjectKey) {
    if let Some(keys) = shelf.get_mut(at) {
        keys.remove(key);
        if keys.is_empty() {
            shelf.remove(at);
        }
    }
}

impl Selection {
    /// The value of the label that a selected pod necessarily has.
    pub(crate) fn necessary_label(&self) -> Option<&str> {
        self.label.as_deref()
    }
}
