//! Rows to ranks that finish together: the largest differencing method (Karmarkar and Karp) for several ranks.
//!
//! Lengths flow in, the rows of each rank flow out. Ties go by row number, so the result is always the same.

use crate::CoreError;
use crate::keys::check_rows;
use crate::packing::{Parts, by_falling};
use crate::shaping::{Length, check_lengths};
use crate::threads::{Context, POLL_ROWS};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

const NONE: u32 = u32::MAX;

/// The cost of a sequence of n tokens: `linear`·n + `quadratic`·n².
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// A token's own cost.
    pub linear: f64,
    /// A pair of tokens' cost: attention.
    pub quadratic: f64,
}

/// The largest differencing method: rows to ranks, so that the most loaded rank has little more than the others.
/// Ranks come out by falling load.
///
/// Each row begins as a state of its own: its cost on one rank, nothing on the others. The two states whose loads
/// differ most are merged, the heaviest rank of the one with the lightest of the other, until one state is left.
/// With `equal_counts` a state begins as `ranks` rows of neighbouring lengths, one on each rank, so that ranks differ
/// by at most one row. Loads are float64: exact for whole numbers below 2^53. No ranks count as one.
///
/// # Errors
/// A negative length, too many rows, or interrupted.
pub fn balance<L: Length>(
    lengths: &[L],
    ranks: usize,
    equal_counts: bool,
    cost: Cost,
    context: &Context<'_>,
) -> Result<Parts<f64>, CoreError> {
    check_rows(lengths.len())?;
    check_lengths("lengths", lengths)?;
    let of = |length: f64| cost.linear * length + cost.quadratic * length * length;
    let costs: Vec<f64> = lengths.iter().map(|length| of(length.as_f64())).collect();
    // A longer row costs more.
    let order = by_falling(lengths);
    let ranks = ranks.max(1);
    // Ranks beyond the rows stay empty.
    let width = ranks.min(costs.len());
    let mut rank_of_row = vec![0; costs.len()];
    let mut loads = vec![0.0; ranks];
    if width > 1 {
        let mut differences = Differences::new(&costs, width);
        let last = differences.merge_all(&order, if equal_counts { width } else { 1 }, context)?;
        differences.name_ranks(last, &mut rank_of_row);
    }
    for (&rank, cost) in rank_of_row.iter().zip(&costs) {
        loads[rank as usize] += cost;
    }
    Ok(Parts::new(&rank_of_row, loads))
}

/// The rows of one rank of a state: a list through `Differences::next`.
#[derive(Clone, Copy)]
struct Share {
    load: f64,
    head: u32,
    tail: u32,
}

const NOTHING: Share = Share { load: 0.0, head: NONE, tail: NONE };

/// States in slots of `width` shares, by falling load; the lightest share's load is taken off all, since only
/// differences matter.
struct Differences<'a> {
    costs: &'a [f64],
    width: usize,
    shares: Vec<Share>,
    free: Vec<u32>,
    next: Vec<u32>,
}

/// A merged state, as one number that compares fast: spread, age and slot. The largest spread comes first; of equal ones
/// a merged state before one that is not, the newest first. (So at most one state has an empty share, and all states
/// together take no more than O(n + ranks) memory.)
type Entry = u128;

fn entry(spread: u64, age: u32, slot: u32) -> Entry {
    (Entry::from(spread) << 64) | (Entry::from(age) << 32) | Entry::from(slot)
}

fn spread_of(state: Entry) -> u64 {
    (state >> 64) as u64
}

fn slot_of(state: Entry) -> u32 {
    state as u32
}

impl<'a> Differences<'a> {
    fn new(costs: &'a [f64], width: usize) -> Self {
        Self { costs, width, shares: Vec::new(), free: Vec::new(), next: vec![NONE; costs.len()] }
    }

    /// Merges the states of `size` rows each, in the order of their spreads, until one is left: its slot.
    fn merge_all(&mut self, order: &[u32], size: usize, context: &Context<'_>) -> Result<u32, CoreError> {
        let (costs, width) = (self.costs, self.width);
        let cost = |row: Option<&u32>| row.map_or(0.0, |&row| costs[row as usize]);
        let spread = |rows: &[u32]| (cost(rows.first()) - cost(rows.get(width - 1))).to_bits();
        let mut fresh: Vec<(u64, &[u32])> = order.chunks(size).map(|rows| (spread(rows), rows)).collect();
        fresh.sort_by_key(|state| Reverse(state.0));
        let (mut fresh, mut merged) = (fresh.into_iter().peekable(), BinaryHeap::new());
        let (mut age, mut since) = (0, POLL_ROWS);
        loop {
            if since >= POLL_ROWS {
                context.check()?;
                since = 0;
            }
            since += width;
            let mut largest = || match (merged.peek(), fresh.peek()) {
                (Some(&state), rows) if rows.is_none_or(|rows| spread_of(state) >= rows.0) => {
                    merged.pop();
                    Some(slot_of(state))
                }
                _ => fresh.next().map(|rows| self.slot(rows.1)),
            };
            let Some(slot) = largest() else { return Ok(0) };
            let Some(other) = largest() else { return Ok(slot) };
            self.merge(slot, other);
            merged.push(entry(self.spread(slot), age, slot));
            age += 1;
        }
    }

    fn at(&mut self, slot: u32) -> &mut [Share] {
        &mut self.shares[slot as usize * self.width..][..self.width]
    }

    /// A state of these rows, by falling cost, one on each of the first ranks.
    fn slot(&mut self, rows: &[u32]) -> u32 {
        let slot = self.free.pop().unwrap_or((self.shares.len() / self.width) as u32);
        let end = (slot as usize + 1) * self.width;
        if self.shares.len() < end {
            self.shares.resize(end, NOTHING);
        }
        let costs = self.costs;
        let shares = self.at(slot);
        shares.fill(NOTHING);
        for (share, &row) in shares.iter_mut().zip(rows) {
            *share = Share { load: costs[row as usize], head: row, tail: row };
        }
        self.settle(slot);
        slot
    }

    fn spread(&self, slot: u32) -> u64 {
        self.shares[slot as usize * self.width].load.to_bits()
    }

    /// The heaviest share of one with the lightest of the other; the first slot holds the result.
    fn merge(&mut self, slot: u32, other: u32) {
        for i in 0..self.width {
            let (mine, theirs) = (slot as usize * self.width + i, (other as usize + 1) * self.width - 1 - i);
            self.shares[mine] = join(&mut self.next, self.shares[mine], self.shares[theirs]);
        }
        self.free.push(other);
        self.settle(slot);
    }

    fn settle(&mut self, slot: u32) {
        let shares = self.at(slot);
        // Loads are not negative, so their bits are in the order of the numbers.
        shares.sort_by_key(|share| Reverse(share.load.to_bits()));
        let least = shares.last().map_or(0.0, |share| share.load);
        if least > 0.0 {
            for share in shares {
                share.load -= least;
            }
        }
    }

    fn name_ranks(&mut self, slot: u32, rank_of_row: &mut [u32]) {
        let heads: Vec<u32> = self.at(slot).iter().map(|share| share.head).collect();
        for (rank, mut row) in (0..).zip(heads) {
            while row != NONE {
                rank_of_row[row as usize] = rank;
                row = self.next[row as usize];
            }
        }
    }
}

fn join(next: &mut [u32], a: Share, b: Share) -> Share {
    let load = a.load + b.load;
    match (a.head, b.head) {
        (_, NONE) => Share { load, ..a },
        (NONE, _) => Share { load, ..b },
        _ => {
            next[a.tail as usize] = b.head;
            Share { load, head: a.head, tail: b.tail }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TOKENS: Cost = Cost { linear: 1.0, quadratic: 0.0 };

    fn one() -> Context<'static> {
        Context::new(1, &|| false)
    }

    #[test]
    fn a_negative_length_is_named() {
        let negative = CoreError::NegativeLength { column: "lengths", row: 1, value: -1 };
        assert_eq!(balance(&[3, -1], 2, false, TOKENS, &one()), Err(negative));
    }

    #[test]
    fn a_long_call_can_be_stopped() {
        let stop = Context::new(1, &|| true);
        for equal_counts in [false, true] {
            assert_eq!(balance(&[1; 9], 2, equal_counts, TOKENS, &stop), Err(CoreError::Interrupted));
        }
    }

    #[test]
    fn no_ranks_and_no_rows() {
        assert_eq!(balance(&[1, 2], 0, false, TOKENS, &one()).unwrap().loads, [3.0]);
        assert_eq!(balance::<i64>(&[], 2, true, TOKENS, &one()).unwrap().starts, [0, 0, 0]);
    }

    #[test]
    fn little_is_held_at_a_time() {
        let lengths: Vec<i32> = (0..20_000).map(|i| i % 97).collect();
        let costs: Vec<f64> = lengths.iter().map(|&length| f64::from(length)).collect();
        let mut differences = Differences::new(&costs, 16);
        differences.merge_all(&by_falling(&lengths), 1, &one()).unwrap();
        assert!(differences.shares.len() <= costs.len() + 4 * 16, "{}", differences.shares.len());
    }

    proptest! {
        #[test]
        fn ranks_are_balanced(
            lengths in prop::collection::vec(0..1000_i32, 0..120), ranks in 1..20_usize, equal_counts: bool,
            quadratic in prop::sample::select(vec![0.0, 1.0]),
        ) {
            let cost = Cost { linear: 1.0, quadratic };
            let parts = balance(&lengths, ranks, equal_counts, cost, &one()).unwrap();
            let most = lengths.iter().map(|&n| f64::from(n) + quadratic * f64::from(n * n)).fold(0.0, f64::max);
            prop_assert!(parts.loads.is_sorted_by(|a, b| a >= b));
            prop_assert!(parts.loads[0] - parts.loads[ranks - 1] <= most);
            let counts: Vec<i64> = parts.starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            let uneven = i64::from(!lengths.len().is_multiple_of(ranks));
            prop_assert!(!equal_counts || most - least <= uneven);
        }
    }
}
