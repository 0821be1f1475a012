//! Address → what is there, in levels of shared pieces: a change copies one path (three rows of 32 pointers and one leaf of
//! about three entries at 100,000 addresses), a look-up follows it.

use std::{
    hash::{BuildHasher, Hash},
    net::IpAddr,
    sync::Arc,
};

use foldhash::fast::FixedState;

use super::entry::Slot;

/// Children of a row, a power of two.
const WIDTH: usize = 32;

/// The table. Cloning shares everything.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    v4: Trie<u32>,
    v6: Trie<u128>,
}

impl Table {
    /// What is at a (canonical) address.
    #[inline]
    pub(super) fn get(&self, address: IpAddr) -> Option<&Slot> {
        match address {
            IpAddr::V4(v4) => self.v4.get(v4.to_bits()),
            IpAddr::V6(v6) => self.v6.get(v6.to_bits()),
        }
    }

    /// Puts `slot` at an address, or nothing. Answers whether that changed anything.
    pub(super) fn set(&mut self, address: IpAddr, slot: Option<Slot>) -> bool {
        if self.get(address) == slot.as_ref() {
            return false;
        }
        match address {
            IpAddr::V4(v4) => self.v4.set(v4.to_bits(), slot),
            IpAddr::V6(v6) => self.v6.set(v6.to_bits(), slot),
        }
        true
    }
}

#[derive(Clone, Debug)]
struct Item<K> {
    key: K,
    slot: Slot,
}

#[derive(Clone, Debug)]
struct Row<C>([Option<C>; WIDTH]);

impl<C> Default for Row<C> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| None))
    }
}

type Leaf<K> = Arc<[Item<K>]>;
type Shelf<K> = Arc<Row<Leaf<K>>>;

#[derive(Clone, Debug)]
struct Trie<K> {
    root: Row<Arc<Row<Shelf<K>>>>,
}

impl<K> Default for Trie<K> {
    fn default() -> Self {
        Self { root: Row::default() }
    }
}

/// The way to a key. The seed is fixed: whoever could choose pod addresses at will has better attacks.
fn path<K: Hash>(key: K) -> [usize; 3] {
    #[expect(clippy::cast_possible_truncation, reason = "only the low bits are wanted")]
    let hash = FixedState::with_seed(0).hash_one(key) as usize;
    [hash % WIDTH, hash / WIDTH % WIDTH, hash / (WIDTH * WIDTH) % WIDTH]
}

impl<K: Copy + Eq + Hash> Trie<K> {
    #[inline]
    fn get(&self, key: K) -> Option<&Slot> {
        let [a, b, c] = path(key);
        let leaf = self.root.0[a].as_ref()?.0[b].as_ref()?.0[c].as_ref()?;
        leaf.iter().find(|item| item.key == key).map(|item| &item.slot)
    }

    fn set(&mut self, key: K, slot: Option<Slot>) {
        let [a, b, c] = path(key);
        let row = Arc::make_mut(self.root.0[a].get_or_insert_default());
        let row = Arc::make_mut(row.0[b].get_or_insert_default());
        let leaf = &mut row.0[c];
        let others = leaf.iter().flat_map(|l| l.iter()).filter(|item| item.key != key).cloned();
        let items: Leaf<K> = others.chain(slot.map(|slot| Item { key, slot })).collect();
        *leaf = (!items.is_empty()).then_some(items);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::Ipv4Addr};

    use super::*;
    use crate::{
        lookup::entry::{Other, PodEntry, Sole},
        pod::PodRef,
    };

    fn slot(uid: u32) -> Slot {
        let pod = Arc::new(PodRef {
            namespace: "n".into(),
            name: "p".into(),
            uid: uid.to_string().into(),
            service_account: "sa".into(),
        });
        match uid % 5 {
            0 => Slot::Other(Other::Ambiguous),
            1 => Slot::Other(Other::Host),
            _ => Slot::Other(Other::Pod(Arc::new(PodEntry {
                pod,
                assignments: smallvec::SmallVec::new(),
                expected: [].into(),
                stuck: false,
                exempt: None,
            }))),
        }
    }

    /// Enough addresses that leaves are shared by several, of both families.
    fn address(n: u32) -> IpAddr {
        match n % 4 {
            0 => IpAddr::V6((u128::from(n) << 64).into()),
            _ => IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n)),
        }
    }

    #[test]
    fn agrees_with_a_map_and_leaves_older_snapshots_alone() {
        let (mut table, mut map, mut kept) = (Table::default(), HashMap::new(), Vec::new());
        let mut random = 1_u64;
        for step in 0..150_000_u32 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let address = address((random >> 33) as u32 % 50_000);
            let value = (!random.is_multiple_of(3)).then(|| slot((random >> 40) as u32 % 7));
            let before = map.get(&address).cloned();
            assert_eq!(table.set(address, value.clone()), before != value, "{address}");
            match value {
                Some(value) => map.insert(address, value),
                None => map.remove(&address),
            };
            if step % 50_000 == 0 {
                kept.push((table.clone(), map.clone()));
            }
        }
        kept.push((table, map));
        assert!(kept.last().is_some_and(|(_, map)| map.len() > 20_000));
        for (table, map) in &kept {
            for n in 0..50_000 {
                assert_eq!(table.get(address(n)), map.get(&address(n)));
            }
        }
    }

    #[test]
    fn what_most_pods_are_is_in_the_leaf() {
        assert_eq!(size_of::<Sole>(), 24);
        assert_eq!(size_of::<Item<u32>>(), 32, "two to a cache line");
    }
}
