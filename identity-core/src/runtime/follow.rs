//! What controller and node have in common: updates become events of an index, many at once.

use super::source::{self, Change, Gone, Update};
use crate::assign::{Event, Relist};

/// At most this many updates are taken in at once, so that results are not kept waiting by a flood.
pub(super) const BURST: usize = 4096;

/// Why objects are not followed any more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Objects cannot be watched.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// All watches ended, or the task that keeps the lease: only a bug or a panic does that.
    #[error("the watches have ended; this is a bug")]
    WatchesEnded,
}

/// What an update is for an index; none if it is of a kind that only nodes know.
pub(super) fn event(update: Update) -> Option<Event> {
    Some(match update {
        Update::Pods(Change::Apply(pod)) => Event::Pod(*pod),
        Update::Pods(Change::Delete(gone)) => Event::PodDeleted(gone.key()),
        Update::Pods(Change::Relist(all)) => Event::Relist(Relist::Pods(all)),
        Update::Identities(Change::Apply(identity)) => Event::Identity(identity),
        Update::Identities(Change::Delete(gone)) => Event::IdentityDeleted(gone.key()),
        Update::Identities(Change::Relist(all)) => Event::Relist(Relist::Identities(all)),
        Update::Bindings(Change::Apply(binding)) => Event::Binding(binding),
        Update::Bindings(Change::Delete(gone)) => Event::BindingDeleted(gone.key()),
        Update::Bindings(Change::Relist(all)) => Event::Relist(Relist::Bindings(all)),
        Update::Assigned(Change::Apply(assigned)) => Event::Assigned(assigned),
        Update::Assigned(Change::Delete(gone)) => {
            let key = gone.key();
            let Gone { uid, .. } = gone;
            Event::AssignedDeleted { key, uid }
        }
        Update::Assigned(Change::Relist(all)) => Event::Relist(Relist::Assigned(all)),
        Update::Grants(Change::Apply(grant)) => Event::Grant(grant),
        Update::Grants(Change::Delete(gone)) => {
            let key = gone.key();
            Event::GrantDeleted { key, uid: gone.uid }
        }
        Update::Grants(Change::Relist(all)) => Event::Relist(Relist::Grants(all)),
        Update::Exceptions { .. } => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deletion_says_of_which_object() {
        let gone = Gone { namespace: "team".into(), name: "a".into(), uid: Some("u".into()) };
        let Some(Event::AssignedDeleted { key, uid }) = event(Update::Assigned(Change::Delete(gone))) else { panic!() };
        assert_eq!((key.to_string().as_str(), uid.as_deref()), ("team/a", Some("u")));
    }
}
