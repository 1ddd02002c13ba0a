//! Which groups a stream has had, by a 64-bit hash of each: 16 to 32 bytes a group, whatever their ids are.

/// A set of hashes. Two ids of one hash are one; with a billion groups that happens once in forty streams.
#[derive(Debug, Default)]
pub struct Seen {
    slots: Vec<u64>,
    len: usize,
}

impl Seen {
    /// The number of hashes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a hash; says whether it is new.
    pub fn insert(&mut self, hash: u64) -> bool {
        if self.len * 2 >= self.slots.len() {
            let old = std::mem::take(&mut self.slots);
            self.slots = vec![0; (old.len() * 2).max(1024)];
            for hash in old.into_iter().filter(|&hash| hash != 0) {
                let at = self.find(hash);
                self.slots[at] = hash;
            }
        }
        // 0 is an empty slot.
        let hash = hash.max(1);
        let at = self.find(hash);
        let new = self.slots[at] == 0;
        self.slots[at] = hash;
        self.len += usize::from(new);
        new
    }

    /// The slot of a hash, or the empty one where it belongs; half of the slots are empty.
    fn find(&self, hash: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = crate::table::mix(hash) as usize & mask;
        while self.slots[at] != 0 && self.slots[at] != hash {
            at = (at + 1) & mask;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        #[test]
        fn it_is_a_set(hashes in prop::collection::vec(prop_oneof![0..50u64, any::<u64>()], 0..3000)) {
            let (mut seen, mut model) = (Seen::default(), HashSet::new());
            for hash in hashes {
                prop_assert_eq!(seen.insert(hash), model.insert(hash.max(1)));
                prop_assert_eq!(seen.len(), model.len());
            }
        }
    }
}
