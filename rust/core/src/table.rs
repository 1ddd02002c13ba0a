//! What string ids are found by: a table of hash tags, the ids themselves end to end, and the hash.

/// Ids end to end, since a table that points into the caller's columns would miss the cache on every look.
#[derive(Default)]
pub(crate) struct Arena {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Arena {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    #[inline]
    pub fn get(&self, code: u32) -> &[u8] {
        let code = code as usize;
        let start = if code == 0 { 0 } else { self.ends[code - 1] };
        &self.bytes[start..self.ends[code]]
    }

    pub fn push(&mut self, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.ends.push(self.bytes.len());
    }

    pub fn truncate(&mut self, groups: usize) {
        self.ends.truncate(groups);
        self.bytes.truncate(self.ends.last().copied().unwrap_or(0));
    }
}

/// Open addressing with 8-byte slots: the upper half of the hash as a tag, and the code plus one; 0 is empty.
pub(crate) struct Table {
    slots: Vec<u64>,
    pub hashes: Vec<u64>,
}

const TAG: u64 = 0xffff_ffff_0000_0000;

impl Table {
    pub fn new(expected: usize) -> Self {
        Self { slots: vec![0; (expected * 4).next_power_of_two().max(64)], hashes: Vec::new() }
    }

    #[inline]
    pub fn find_or_insert(&mut self, hash: u64, same: impl Fn(u32) -> bool) -> (u32, bool) {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                break;
            }
            if slot & TAG == hash & TAG && same(slot as u32 - 1) {
                return (slot as u32 - 1, false);
            }
            at = (at + 1) & mask;
        }
        let code = self.hashes.len() as u32;
        self.slots[at] = (hash & TAG) | (u64::from(code) + 1);
        self.hashes.push(hash);
        if self.hashes.len() * 4 > self.slots.len() * 3 / 2 {
            self.grow();
        }
        (code, true)
    }

    #[cold]
    fn grow(&mut self) {
        self.rebuild(self.slots.len() * 4);
    }

    #[cold]
    pub fn truncate(&mut self, groups: usize) {
        self.hashes.truncate(groups);
        self.rebuild(self.slots.len());
    }

    fn rebuild(&mut self, size: usize) {
        self.slots = vec![0; size];
        let mask = size - 1;
        for (code, &hash) in self.hashes.iter().enumerate() {
            let mut at = hash as usize & mask;
            while self.slots[at] != 0 {
                at = (at + 1) & mask;
            }
            self.slots[at] = (hash & TAG) | (code as u64 + 1);
        }
    }
}

const SECRET: [u64; 3] = [0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db, 0x8ebc_6af0_9c88_c6e3];

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[inline]
pub(crate) fn mix(id: u64) -> u64 {
    fold(id ^ SECRET[0], SECRET[1])
}

#[inline]
fn eight(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

/// How ids are hashed; the tests put worse ones in the place of [`Folded`].
pub trait Hash: Send + Sync {
    /// 64 bits of an id.
    fn hash(key: &[u8]) -> u64;
}

/// All the bytes, 16 at a time, by folded multiplication.
pub struct Folded;

impl Hash for Folded {
    #[inline]
    fn hash(key: &[u8]) -> u64 {
        folded(key)
    }
}

#[inline]
fn folded(key: &[u8]) -> u64 {
    let n = key.len();
    let mut state = SECRET[0] ^ n as u64;
    if n >= 16 {
        for at in (0..n - 16).step_by(16) {
            state = fold(eight(key, at) ^ SECRET[1], eight(key, at + 8) ^ state);
        }
        return fold(eight(key, n - 16) ^ SECRET[2], eight(key, n - 8) ^ state);
    }
    if n >= 8 {
        return fold(eight(key, 0) ^ SECRET[1], eight(key, n - 8) ^ state);
    }
    let word = key.iter().fold(0, |word, &byte| (word << 8) | u64::from(byte));
    fold(word ^ SECRET[1], state ^ SECRET[2])
}
