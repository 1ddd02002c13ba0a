//! Rows to bins of a token budget: first-fit decreasing.
//!
//! Lengths flow in, the rows of each bin flow out. Ties go by row number, so the result is always the same.

use crate::CoreError;
use crate::keys::check_rows;
use crate::shaping::{Length, check_lengths};
use crate::threads::{Context, POLL_ROWS};

/// Rows in parts: every row in exactly one, in rising order within it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parts<T> {
    /// The rows, one part after another.
    pub rows: Vec<i64>,
    /// Where each part starts in `rows`, and where the last one ends.
    pub starts: Vec<i64>,
    /// What each part holds: tokens, or cost.
    pub loads: Vec<T>,
}

impl<T> Parts<T> {
    pub(crate) fn new(part_of_row: &[u32], loads: Vec<T>) -> Self {
        let mut starts = vec![0; loads.len() + 1];
        for &part in part_of_row {
            starts[part as usize + 1] += 1;
        }
        for part in 0..loads.len() {
            starts[part + 1] += starts[part];
        }
        let (mut next, mut rows) = (starts.clone(), vec![0; part_of_row.len()]);
        for (row, &part) in (0..).zip(part_of_row) {
            let at = &mut next[part as usize];
            rows[*at as usize] = row;
            *at += 1;
        }
        Self { rows, starts, loads }
    }
}

/// First-fit decreasing: rows by falling length, each into the first bin that has room for it. It needs at most
/// 11/9 OPT + 6/9 bins (Dósa 2007, 10.1007/978-3-540-74450-4_1) and O(n log n) time. A length of 0 goes to the
/// first bin.
///
/// # Errors
/// A length that is negative or above `max_tokens`, too many rows, or interrupted.
pub fn pack<L: Length>(lengths: &[L], max_tokens: u64, context: &Context<'_>) -> Result<Parts<i64>, CoreError> {
    check_rows(lengths.len())?;
    check_lengths("lengths", lengths)?;
    let tokens = |row: usize| lengths[row].into().cast_unsigned();
    let mut long = (0..lengths.len()).filter(|&row| tokens(row) > max_tokens);
    if let Some(row) = long.next() {
        return Err(CoreError::TooLong { row, length: tokens(row), max_tokens, count: 1 + long.count() });
    }
    let mut bins = Bins { room: vec![0; 2], leaves: 1, opened: 0, max_tokens };
    let mut bin_of_row = vec![0; lengths.len()];
    for rows in by_falling(lengths).chunks(POLL_ROWS) {
        context.check()?;
        for &row in rows {
            bin_of_row[row as usize] = bins.put(tokens(row as usize)) as u32;
        }
    }
    let room = &bins.room[bins.leaves..][..bins.opened];
    Ok(Parts::new(&bin_of_row, room.iter().map(|room| (max_tokens - room).cast_signed()).collect()))
}

/// The room in each bin as the leaves of a tree, whose nodes hold the most of what is below them.
struct Bins {
    room: Vec<u64>,
    leaves: usize,
    opened: usize,
    max_tokens: u64,
}

impl Bins {
    /// The first bin with room for that many tokens, which it takes; a new one where none has.
    fn put(&mut self, tokens: u64) -> usize {
        let mut node = 1;
        if self.opened == 0 || self.room[1] < tokens {
            if self.opened == self.leaves {
                self.grow();
            }
            node = self.leaves + self.opened;
            self.room[node] = self.max_tokens;
            self.opened += 1;
        } else {
            while node < self.leaves {
                node *= 2;
                node += usize::from(self.room[node] < tokens);
            }
        }
        let bin = node - self.leaves;
        self.room[node] -= tokens;
        while node > 1 {
            node /= 2;
            self.room[node] = self.room[2 * node].max(self.room[2 * node + 1]);
        }
        bin
    }

    fn grow(&mut self) {
        let mut room = vec![0; 4 * self.leaves];
        room[2 * self.leaves..][..self.leaves].copy_from_slice(&self.room[self.leaves..]);
        self.leaves *= 2;
        for node in (1..self.leaves).rev() {
            room[node] = room[2 * node].max(room[2 * node + 1]);
        }
        self.room = room;
    }
}

/// Rows by falling length, rows of equal length in their order: a radix sort, whose digits are as large as the number of
/// rows is worth, and which skips those in which no two lengths differ. Lengths are not negative.
pub(crate) fn by_falling<L: Length>(lengths: &[L]) -> Vec<u32> {
    let mut pairs: Vec<(u64, u32)> = lengths.iter().map(|&length| !length.into().cast_unsigned()).zip(0..).collect();
    let varying = pairs.iter().fold(0, |all, pair| all | (pair.0 ^ pairs[0].0));
    let mut sorted = vec![(0, 0); pairs.len()];
    let bits = lengths.len().max(1).ilog2().clamp(4, 16);
    for shift in (0..u64::BITS).step_by(bits as usize) {
        let digit = |key: u64| (key >> shift) as usize & ((1 << bits) - 1);
        if digit(varying) == 0 {
            continue;
        }
        let mut next = vec![0_u32; 1 << bits];
        for pair in &pairs {
            next[digit(pair.0)] += 1;
        }
        let mut start = 0;
        for count in &mut next {
            start += std::mem::replace(count, start);
        }
        for &pair in &pairs {
            let at = &mut next[digit(pair.0)];
            sorted[*at as usize] = pair;
            *at += 1;
        }
        std::mem::swap(&mut pairs, &mut sorted);
    }
    pairs.into_iter().map(|pair| pair.1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one() -> Context<'static> {
        Context::new(1, &|| false)
    }

    fn first_fit(lengths: &[i64], max_tokens: i64) -> Vec<i64> {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&row| -lengths[row]);
        let mut loads: Vec<i64> = Vec::new();
        for row in order {
            match loads.iter_mut().find(|load| **load + lengths[row] <= max_tokens) {
                Some(load) => *load += lengths[row],
                None => loads.push(lengths[row]),
            }
        }
        loads
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        let long = CoreError::TooLong { row: 1, length: 9, max_tokens: 8, count: 2 };
        assert_eq!(pack(&[3, 9, 10], 8, &one()), Err(long));
        let negative = CoreError::NegativeLength { column: "lengths", row: 1, value: -1 };
        assert_eq!(pack(&[3, -1], 8, &one()), Err(negative));
    }

    #[test]
    fn a_long_call_can_be_stopped() {
        assert_eq!(pack(&[1], 8, &Context::new(1, &|| true)), Err(CoreError::Interrupted));
    }

    proptest! {
        #[test]
        fn packing_is_first_fit_decreasing(lengths in prop::collection::vec(0..100_i64, 0..300), more in 0..100_i64) {
            let max_tokens = 100 + more;
            let parts = pack(&lengths, max_tokens.cast_unsigned(), &one()).unwrap();
            prop_assert_eq!(&parts.loads, &first_fit(&lengths, max_tokens));
            let mut rows = parts.rows.clone();
            rows.sort_unstable();
            prop_assert_eq!(rows, (0..lengths.len() as i64).collect::<Vec<_>>());
        }

        #[test]
        fn lengths_fall_and_rows_of_equal_length_rise(
            lengths in prop::collection::vec(
                prop_oneof![0..9_i64, 0..i64::MAX, (0..9_i64).prop_map(|length| length << 50)], 0..99
            )
        ) {
            let mut expected: Vec<u32> = (0..lengths.len() as u32).collect();
            expected.sort_by_key(|&row| std::cmp::Reverse(lengths[row as usize]));
            prop_assert_eq!(by_falling(&lengths), expected);
        }
    }
}
