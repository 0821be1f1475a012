//! Address → what is there, in three levels of shared pieces: a change copies one path (two rows of 64 pointers and one
//! leaf of a couple of dozen entries at 100,000 addresses), a look-up follows it.

use std::{net::IpAddr, sync::Arc};

use foldhash::fast::FixedState;

use super::entry::PodEntry;

const ROW: usize = 64;

/// What is known about an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// One pod has it.
    Pod(Arc<PodEntry>),
    /// Several pods claim it.
    Ambiguous,
    /// The node has it, or a pod that shares the node's network.
    Host,
}

#[derive(Clone, Debug)]
struct Item {
    address: IpAddr,
    slot: Slot,
}

type Leaf = Arc<[Item]>;

#[derive(Clone, Debug)]
struct Row([Option<Leaf>; ROW]);

/// The table. Cloning shares everything.
#[derive(Clone, Debug)]
pub(super) struct Table {
    rows: [Option<Arc<Row>>; ROW],
}

impl Default for Table {
    fn default() -> Self {
        Self { rows: std::array::from_fn(|_| None) }
    }
}

/// Where an address belongs. The seed is fixed: whoever could choose pod addresses at will has better attacks.
fn place(address: IpAddr) -> (usize, usize) {
    use std::hash::BuildHasher;
    let state = FixedState::with_seed(0);
    let hash = match address {
        IpAddr::V4(v4) => state.hash_one(u32::from(v4)),
        IpAddr::V6(v6) => state.hash_one(u128::from(v6)),
    };
    #[expect(clippy::cast_possible_truncation, reason = "only the low bits are wanted")]
    let hash = hash as usize;
    (hash % ROW, hash / ROW % ROW)
}

impl Table {
    /// What is at a (canonical) address.
    pub(super) fn get(&self, address: IpAddr) -> Option<&Slot> {
        let (row, leaf) = place(address);
        let leaf = self.rows[row].as_ref()?.0[leaf].as_ref()?;
        leaf.iter().find(|item| item.address == address).map(|item| &item.slot)
    }

    /// Puts `slot` at an address, or nothing. Answers whether that changed anything.
    pub(super) fn set(&mut self, address: IpAddr, slot: Option<Slot>) -> bool {
        if self.get(address) == slot.as_ref() {
            return false;
        }
        let (row, leaf) = place(address);
        let row = self.rows[row].get_or_insert_with(|| Arc::new(Row(std::array::from_fn(|_| None))));
        let leaf = &mut Arc::make_mut(row).0[leaf];
        let others = leaf.iter().flat_map(|l| l.iter()).filter(|item| item.address != address).cloned();
        let items: Leaf = others.chain(slot.map(|slot| Item { address, slot })).collect();
        *leaf = (!items.is_empty()).then_some(items);
        true
    }
}
