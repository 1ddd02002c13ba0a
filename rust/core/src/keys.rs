//! Group ids to dense codes in order of first appearance.
//!
//! Integers in a small range go through a table, others through a hash table; strings are hashed whole, found by the
//! tag of their hash and verified afterwards, block by block, with an exact second run when a verification fails.
//! Rows of one group that lie together are recognised by comparing each id with the one before.

use crate::CoreError;
use crate::table::{Arena, Folded, Hash, Table, mix};
use crate::threads::{Context, PARALLEL_ROWS, POLL_ROWS, part_size};
use std::marker::PhantomData;
use std::ops::Range;

/// Byte strings by row: the ids of a string column, wherever they lie.
pub trait Keys: Sync {
    /// The number of rows.
    fn len(&self) -> usize;
    /// Appends the ids of some rows, all below `len`, to `block`.
    fn fill<'a>(&'a self, rows: Range<usize>, block: &mut Vec<&'a [u8]>);
    /// Whether there is no row.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: AsRef<[u8]> + Sync> Keys for [T] {
    fn len(&self) -> usize {
        <[T]>::len(self)
    }
    fn fill<'a>(&'a self, rows: Range<usize>, block: &mut Vec<&'a [u8]>) {
        block.extend(self[rows].iter().map(AsRef::as_ref));
    }
}

/// Dense codes: row `i` belongs to group `codes[i]`, groups are numbered in order of first appearance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Codes {
    /// The group of each row.
    pub codes: Vec<u32>,
    /// The first row of each group.
    pub first: Vec<u32>,
}

/// # Errors
/// [`CoreError::TooManyRows`] when a u32 cannot number the rows.
pub fn check_rows(rows: usize) -> Result<(), CoreError> {
    if rows >= u32::MAX as usize { Err(CoreError::TooManyRows { given: rows }) } else { Ok(()) }
}

const NONE: u32 = u32::MAX;

/// Codes of integer ids.
///
/// # Errors
/// Too many rows, or interrupted.
pub fn factorize_integers(ids: &[i64], context: &Context<'_>) -> Result<Codes, CoreError> {
    check_rows(ids.len())?;
    // One OR bounds the range: a negative id sets the sign bit.
    let bound = ids.iter().fold(0, |all, &id| all | id.cast_unsigned());
    let mut codes = Vec::with_capacity(ids.len());
    let mut first = Vec::new();
    if bound < (4 * ids.len() as u64).max(1024) {
        let mut table = vec![NONE; (bound as usize + 1).next_power_of_two()];
        for block in ids.chunks(POLL_ROWS) {
            context.check()?;
            let start = codes.len();
            codes.extend(block.iter().enumerate().map(|(i, &id)| {
                let slot = &mut table[id as usize];
                if *slot == NONE {
                    *slot = first.len() as u32;
                    first.push((start + i) as u32);
                }
                *slot
            }));
        }
    } else {
        let mut table = Table::new(ids.len() / 8);
        let mut previous = (0, NONE);
        for block in ids.chunks(POLL_ROWS) {
            context.check()?;
            for &id in block {
                if previous.1 == NONE || previous.0 != id {
                    let (code, new) =
                        table.find_or_insert(mix(id.cast_unsigned()), |code| ids[first[code as usize] as usize] == id);
                    if new {
                        first.push(codes.len() as u32);
                    }
                    previous = (id, code);
                }
                codes.push(previous.1);
            }
        }
    }
    Ok(Codes { codes, first })
}

/// Codes of the pairs of two columns: a composite key.
///
/// # Errors
/// Columns of different lengths, or interrupted.
pub fn combine(a: &Codes, b: &Codes, context: &Context<'_>) -> Result<Codes, CoreError> {
    if a.codes.len() != b.codes.len() {
        return Err(CoreError::Length { column: "key", given: b.codes.len(), expected: a.codes.len() });
    }
    let pairs: Vec<i64> = a.codes.iter().zip(&b.codes).map(|(&a, &b)| (i64::from(a) << 32) | i64::from(b)).collect();
    factorize_integers(&pairs, context)
}

/// Codes of string ids.
///
/// # Errors
/// Too many rows, or interrupted.
pub fn factorize_bytes<K: Keys + ?Sized>(keys: &K, context: &Context<'_>) -> Result<Codes, CoreError> {
    factorize_with::<K, Folded>(keys, context)
}

fn factorize_with<K: Keys + ?Sized, H: Hash>(keys: &K, context: &Context<'_>) -> Result<Codes, CoreError> {
    let mut groups = Factorizer::<H>::new(keys.len());
    groups.extend_all(keys, context)?;
    Ok(groups.codes)
}

/// Ids that are looked at to see how the rest lie.
const SAMPLE: usize = 128;

/// Whether most ids are those of the row before.
fn in_runs(sample: &[&[u8]]) -> bool {
    sample.windows(2).filter(|pair| pair[0] == pair[1]).count() * 2 > sample.len()
}

/// From that many scattered ids on, looking them up is worth threads.
pub const PARALLEL_IDS: usize = 1 << 15;

/// The most rows that [`Factorizer::extend`] works on at a time.
pub const BLOCK: usize = 2048;

/// String ids to codes, some rows at a time; it keeps a copy of each group's id and nothing of the caller's.
pub struct Factorizer<H = Folded> {
    codes: Codes,
    table: Table,
    arena: Arena,
    hashes: Vec<u64>,
    exact: bool,
    hash: PhantomData<H>,
}

impl<H: Hash> Factorizer<H> {
    /// For about that many rows.
    #[must_use]
    pub fn new(rows: usize) -> Self {
        let mut codes = Codes::default();
        codes.codes.reserve(rows);
        let (table, hashes) = (Table::new(rows / 16), Vec::with_capacity(BLOCK));
        Self { codes, table, arena: Arena::default(), hashes, exact: false, hash: PhantomData }
    }

    /// The codes of all rows so far.
    #[must_use]
    pub fn finish(self) -> Codes {
        self.codes
    }

    /// The next rows, any number of them.
    ///
    /// # Errors
    /// Too many rows, or interrupted.
    pub fn extend_all<K: Keys + ?Sized>(&mut self, keys: &K, context: &Context<'_>) -> Result<(), CoreError> {
        let rows = keys.len();
        check_rows(self.codes.codes.len() + rows)?;
        let mut block = Vec::new();
        keys.fill(0..rows.min(SAMPLE), &mut block);
        let enough = if in_runs(&block) { PARALLEL_ROWS } else { PARALLEL_IDS };
        let size = part_size(rows, context.threads_for(rows, enough));
        let mut mine = Some(&mut *self);
        let parts = (0..rows).step_by(size).map(|start| (mine.take(), start..(start + size).min(rows))).collect();
        let others = context.each(parts, |(mine, part)| {
            let mut other = mine.is_none().then(|| Self::new(part.len()));
            let Some(groups) = mine.or(other.as_mut()) else { return Ok(None) };
            let mut block = Vec::with_capacity(BLOCK);
            for start in part.clone().step_by(BLOCK) {
                if (start - part.start) % POLL_ROWS == 0 {
                    context.check()?;
                }
                block.clear();
                keys.fill(start..(start + BLOCK).min(part.end), &mut block);
                groups.extend(&block);
            }
            Ok(other)
        })?;
        // Each part numbers its groups by first appearance, so merging the parts in order keeps that for the whole.
        for other in others.into_iter().flatten() {
            self.merge(&other);
        }
        Ok(())
    }

    /// The next rows, at best [`BLOCK`] of them.
    pub fn extend(&mut self, keys: &[&[u8]]) {
        if self.exact || in_runs(&keys[..keys.len().min(SAMPLE)]) {
            return self.extend_runs(keys);
        }
        // Hits are taken by their tag and compared afterwards, all at once: a loop of loads that wait for nothing.
        let (rows, groups) = (self.codes.codes.len(), self.arena.len());
        self.hashes.clear();
        self.hashes.extend(keys.iter().map(|key| H::hash(key)));
        for (i, key) in keys.iter().enumerate() {
            let code = self.find(key, self.hashes[i], false);
            self.codes.codes.push(code);
        }
        let codes = &self.codes.codes[rows..];
        if keys.iter().zip(codes).any(|(&key, &code)| self.arena.get(code) != key) {
            // Two ids share a tag. What this block added is taken back, and hits are compared at once from here on.
            self.codes.codes.truncate(rows);
            self.codes.first.truncate(groups);
            self.arena.truncate(groups);
            self.table.truncate(groups);
            self.exact = true;
            self.extend_runs(keys);
        }
    }

    fn extend_runs(&mut self, keys: &[&[u8]]) {
        let mut rest = keys;
        while let [key, others @ ..] = rest {
            let run = 1 + others.iter().take_while(|other| *other == key).count();
            let code = self.find(key, H::hash(key), true);
            let rows = self.codes.codes.len() + run;
            self.codes.codes.resize(rows, code);
            rest = &rest[run..];
        }
    }

    #[inline]
    fn find(&mut self, key: &[u8], hash: u64, exact: bool) -> u32 {
        let (code, new) = self.table.find_or_insert(hash, |code| !exact || self.arena.get(code) == key);
        if new {
            self.arena.push(key);
            self.codes.first.push(self.codes.codes.len() as u32);
        }
        code
    }

    /// Appends the rows of another, its groups found among these or added in their order.
    fn merge(&mut self, other: &Self) {
        let offset = self.codes.codes.len() as u32;
        let mut map = Vec::with_capacity(other.codes.first.len());
        for (code, (&row, &hash)) in other.codes.first.iter().zip(&other.table.hashes).enumerate() {
            let key = other.arena.get(code as u32);
            let (code, new) = self.table.find_or_insert(hash, |code| self.arena.get(code) == key);
            if new {
                self.arena.push(key);
                self.codes.first.push(offset + row);
            }
            map.push(code);
        }
        self.codes.codes.extend(other.codes.codes.iter().map(|&code| map[code as usize]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    struct Zero;
    impl Hash for Zero {
        fn hash(_: &[u8]) -> u64 {
            0
        }
    }

    struct Length;
    impl Hash for Length {
        fn hash(key: &[u8]) -> u64 {
            key.len() as u64
        }
    }

    fn by_dictionary<T: std::hash::Hash + Eq + Clone>(ids: &[T]) -> Codes {
        let mut seen = HashMap::new();
        let mut all = Codes::default();
        for (row, id) in ids.iter().enumerate() {
            let next = seen.len() as u32;
            let code = *seen.entry(id.clone()).or_insert(next);
            if code == next {
                all.first.push(row as u32);
            }
            all.codes.push(code);
        }
        all
    }

    fn one() -> Context<'static> {
        Context::new(1, &|| false)
    }

    /// Many rows, so that more than one thread has work.
    fn many(seed: u64, rows: usize, groups: u64, run: usize) -> Vec<i64> {
        (0..rows).map(|i| (mix(seed ^ (mix((i / run) as u64) % groups)) >> 20).cast_signed()).collect()
    }

    proptest! {
        #[test]
        fn integers_are_numbered_by_first_appearance(
            ids in prop_oneof![
                prop::collection::vec(0..40i64, 0..300),
                prop::collection::vec(-3..3i64, 0..100),
                prop::collection::vec(any::<i64>(), 0..300),
                prop::collection::vec(prop_oneof![Just(i64::MIN), Just(i64::MAX), Just(0), Just(-1)], 0..50),
            ]
        ) {
            prop_assert_eq!(factorize_integers(&ids, &one()).unwrap(), by_dictionary(&ids));
        }

        #[test]
        fn strings_are_numbered_by_first_appearance(
            ids in prop_oneof![
                prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..200),
                prop::collection::vec(prop::collection::vec(0..2u8, 0..4), 0..400),
            ],
            repeat in 1..20usize,
        ) {
            let ids: Vec<Vec<u8>> = ids.into_iter().flat_map(|id| vec![id; repeat]).collect();
            let expected = by_dictionary(&ids);
            prop_assert_eq!(&factorize_bytes(&ids[..], &one()).unwrap(), &expected);
            // Hashes that collide, wholly or in the tag alone, must not merge groups.
            prop_assert_eq!(&factorize_with::<_, Zero>(&ids[..], &one()).unwrap(), &expected);
            prop_assert_eq!(&factorize_with::<_, Length>(&ids[..], &one()).unwrap(), &expected);
        }

        #[test]
        fn pairs_are_numbered_by_first_appearance(ids in prop::collection::vec((0..9i64, 0..9i64), 0..200)) {
            let (a, b): (Vec<_>, Vec<_>) = ids.iter().copied().unzip();
            let (a, b) = (factorize_integers(&a, &one()).unwrap(), factorize_integers(&b, &one()).unwrap());
            prop_assert_eq!(combine(&a, &b, &one()).unwrap(), by_dictionary(&ids));
        }
    }

    #[test]
    fn threads_do_not_change_the_codes() {
        for (groups, run) in [(50_000, 1), (50_000, 7), (3, 1), (u64::MAX, 1)] {
            let ids: Vec<Vec<u8>> = many(1, crate::threads::PARALLEL_ROWS + 4321, groups, run)
                .iter()
                .map(|id| id.to_string().into_bytes())
                .collect();
            let expected = by_dictionary(&ids);
            for threads in [1, 2, 3, 7] {
                assert_eq!(factorize_bytes(&ids[..], &Context::new(threads, &|| false)).unwrap(), expected);
            }
        }
    }

    #[test]
    fn a_long_call_can_be_stopped() {
        let ids = vec![0; 10];
        assert_eq!(factorize_integers(&ids, &Context::new(1, &|| true)), Err(CoreError::Interrupted));
        let ids = [b"a"; 10];
        assert_eq!(factorize_bytes(&ids[..], &Context::new(1, &|| true)), Err(CoreError::Interrupted));
    }

    #[test]
    fn unequal_columns_are_refused() {
        let (a, b) = (factorize_integers(&[1], &one()).unwrap(), factorize_integers(&[1, 2], &one()).unwrap());
        assert_eq!(combine(&a, &b, &one()), Err(CoreError::Length { column: "key", given: 2, expected: 1 }));
    }
}
