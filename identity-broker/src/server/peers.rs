//! How many connections there are, in all and of each address.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use crate::metrics::Turned;

/// Counts connections. Touched when one opens or closes, never by a request.
#[derive(Clone, Debug)]
pub(super) struct Peers {
    shared: Arc<Mutex<Counts>>,
    total: usize,
    each: usize,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_peer: HashMap<IpAddr, usize>,
}

/// A counted connection, until dropped.
#[derive(Debug)]
pub(super) struct Place {
    shared: Arc<Mutex<Counts>>,
    peer: IpAddr,
}

impl Peers {
    pub(super) fn new(total: usize, each: usize) -> Self {
        Self { shared: Arc::default(), total, each }
    }

    /// Counts a connection of `peer`, or says which limit it would break.
    pub(super) fn enter(&self, peer: IpAddr) -> Result<Place, Turned> {
        let mut counts = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.total >= self.total {
            return Err(Turned::Total);
        }
        let of_peer = counts.by_peer.entry(peer).or_default();
        if *of_peer >= self.each {
            return Err(Turned::PerPeer);
        }
        *of_peer += 1;
        counts.total += 1;
        Ok(Place { shared: Arc::clone(&self.shared), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total -= 1;
        if let Some(of_peer) = counts.by_peer.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                counts.by_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_and_places_come_back() {
        let peers = Peers::new(3, 2);
        let (one, other): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let first = peers.enter(one).unwrap();
        let second = peers.enter(one).unwrap();
        assert_eq!(peers.enter(one).unwrap_err(), Turned::PerPeer);
        let third = peers.enter(other).unwrap();
        assert_eq!(peers.enter([10, 0, 0, 3].into()).unwrap_err(), Turned::Total);
        drop(second);
        assert!(peers.enter(one).is_ok());
        drop((first, third));
        assert!(peers.shared.lock().unwrap().by_peer.is_empty());
    }
}
