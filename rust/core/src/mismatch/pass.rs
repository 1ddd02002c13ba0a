//! The one pass over the tokens, by threads that share nothing but histograms and extremes.

use super::{EXTREMES, Extreme, Found, Grouping, Level, Mismatch, Rule, Sequences, insert};
use crate::CoreError;
use crate::log_ratios::{BINS, Block, Histogram, LIMIT, Logp};
use crate::threads::{Context, POLL_ROWS};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Below this many places, one thread is enough.
const PARALLEL_PLACES: usize = 1 << 16;

/// The statistics of all sequences, then of the first grouping's groups, then of the next one's.
///
/// # Errors
/// Columns of different lengths, starts that are no rising places, codes beyond the number of groups, or interrupted.
pub fn measure<L: Logp>(
    sequences: Sequences<'_, L>,
    rules: &[Rule],
    groupings: &[Grouping<'_>],
    context: &Context<'_>,
) -> Result<Vec<Mismatch>, CoreError> {
    let ranges = check(sequences, groupings)?;
    let groups = 1 + groupings.iter().map(|grouping| grouping.groups).sum::<usize>();
    // Sequences of the same groups follow each other, so that a histogram is filled for all of them at once.
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    if !groupings.is_empty() {
        order.sort_by_key(|&sequence| Of { groupings, sequence }.key());
    }
    let shared = Mutex::new(vec![Shared::default(); groups]);
    let threads = context.threads_for(sequences.old.len(), PARALLEL_PLACES);
    let parts = context.each(cut(&order, &ranges, threads), |part| {
        let mut worker = Worker::new(rules, &shared);
        let mut places = 0;
        for (i, &sequence) in part.iter().enumerate() {
            let of = Of { groupings, sequence };
            worker.see(sequences, ranges[sequence].clone(), sequence);
            places += ranges[sequence].len();
            if places > POLL_ROWS {
                places = 0;
                context.check()?;
            }
            let last = part.get(i + 1).is_none_or(|&next| Of { groupings, sequence: next }.key() != of.key());
            if last || worker.counted > Histogram::ROOM / 2 {
                worker.hand_over(&of);
            }
        }
        Ok((worker.found, worker.outside))
    })?;
    let mut found = vec![Found::default(); ranges.len()];
    let mut outside = vec![0; ranges.len() * rules.len()];
    let mut at = order.iter();
    for (founds, outsides) in parts {
        for (i, one) in founds.into_iter().enumerate() {
            let Some(&sequence) = at.next() else { break };
            found[sequence] = one;
            let counts = &outsides[i * rules.len()..][..rules.len()];
            outside[sequence * rules.len()..][..rules.len()].copy_from_slice(counts);
        }
    }
    let shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut all: Vec<Mismatch> =
        shared.into_iter().map(|one| Mismatch::start(one.bins, one.lowest, one.highest, rules.len())).collect();
    let mut largest = vec![f64::NEG_INFINITY; groups];
    for (sequence, one) in found.iter().enumerate() {
        for group in (Of { groupings, sequence }).groups() {
            all[group].add(sequence, one, rules, &outside[sequence * rules.len()..][..rules.len()]);
            if one.counts() {
                largest[group] = largest[group].max(one.sums.log_ratio);
            }
        }
    }
    let mut weights = vec![[0.0; 2]; groups];
    for (sequence, one) in found.iter().enumerate().filter(|pair| pair.1.counts()) {
        for group in (Of { groupings, sequence }).groups() {
            let weight = (one.sums.log_ratio - largest[group]).exp();
            weights[group][0] += weight;
            weights[group][1] += weight * weight;
        }
    }
    for ((one, [weight, square]), largest) in all.iter_mut().zip(weights).zip(largest) {
        if one.sequences > 0 {
            (one.log_weights, one.log_squares) = (largest + weight.ln(), 2.0 * largest + square.ln());
        }
        one.find_places(sequences, &ranges);
    }
    Ok(all)
}

/// The places of each sequence, once everything fits.
fn check<L: Logp>(sequences: Sequences<'_, L>, groupings: &[Grouping<'_>]) -> Result<Vec<Range<usize>>, CoreError> {
    let places = sequences.old.len();
    let rollout = ("rollout_logps", sequences.rollout.len());
    let mask = sequences.mask.map(|mask| ("mask", mask.len()));
    for (column, given) in std::iter::once(rollout).chain(mask) {
        if given != places {
            return Err(CoreError::Length { column, given, expected: places });
        }
    }
    let mut ranges = Vec::with_capacity(sequences.starts.len());
    for (row, pair) in sequences.starts.windows(2).enumerate() {
        match (usize::try_from(pair[0]), usize::try_from(pair[1])) {
            (Ok(start), Ok(end)) if start <= end && end <= places => ranges.push(start..end),
            _ => {
                let (column, expected) = ("cu_seqlens", "a place that is not before the last one or behind the end");
                return Err(CoreError::Value { column, row: row + 1, value: pair[1] as f64, expected });
            }
        }
    }
    for grouping in groupings {
        if grouping.codes.len() != ranges.len() {
            return Err(CoreError::Length { column: "group", given: grouping.codes.len(), expected: ranges.len() });
        }
        if let Some(row) = grouping.codes.iter().position(|&code| code as usize >= grouping.groups) {
            let value = f64::from(grouping.codes[row]);
            return Err(CoreError::Value { column: "group", row, value, expected: "the code of a group" });
        }
    }
    Ok(ranges)
}

/// A sequence among the groups that it is in.
#[derive(Clone, Copy)]
struct Of<'a> {
    groupings: &'a [Grouping<'a>],
    sequence: usize,
}

impl Of<'_> {
    fn key(&self) -> impl Ord + use<> {
        let mut codes = self.groupings.iter().map(|grouping| grouping.codes[self.sequence]);
        [codes.next(), codes.next()]
    }

    /// The numbers of its statistics: those of all sequences, and one for each grouping.
    fn groups(&self) -> impl Iterator<Item = usize> {
        let mut before = 1;
        let own = self.groupings.iter().map(move |grouping| {
            let group = before + grouping.codes[self.sequence] as usize;
            before += grouping.groups;
            group
        });
        std::iter::once(0).chain(own)
    }
}

/// The sequences in order, cut into parts of about as many places.
fn cut<'a>(order: &'a [usize], ranges: &[Range<usize>], parts: usize) -> Vec<&'a [usize]> {
    let all: usize = ranges.iter().map(ExactSizeIterator::len).sum();
    let (mut cut, mut start, mut places) = (Vec::with_capacity(parts), 0, 0);
    for (i, &sequence) in order.iter().enumerate() {
        places += ranges[sequence].len();
        if places * parts >= all * (cut.len() + 1) && places > 0 {
            cut.push(&order[start..=i]);
            start = i + 1;
        }
    }
    if start < order.len() {
        cut.push(&order[start..]);
    }
    cut
}

/// What threads add to: histograms and the extremes of tokens, whose order is none.
#[derive(Clone, Default)]
struct Shared {
    bins: Vec<u64>,
    lowest: Vec<Extreme>,
    highest: Vec<Extreme>,
}

/// One thread's work: the histogram and the extremes since it last handed them over, and what each sequence gave.
struct Worker<'a> {
    rules: &'a [Rule],
    shared: &'a Mutex<Vec<Shared>>,
    block: Box<Block>,
    histogram: Box<Histogram>,
    counted: u64,
    lowest: Vec<Extreme>,
    highest: Vec<Extreme>,
    found: Vec<Found>,
    outside: Vec<u64>,
}

impl<'a> Worker<'a> {
    fn new(rules: &'a [Rule], shared: &'a Mutex<Vec<Shared>>) -> Self {
        let (block, histogram) = (Box::new(Block::new()), Histogram::new());
        let (lowest, highest, found, outside) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { rules, shared, block, histogram, counted: 0, lowest, highest, found, outside }
    }

    fn see<L: Logp>(&mut self, sequences: Sequences<'_, L>, places: Range<usize>, sequence: usize) {
        let (old, rollout) = (&sequences.old[places.clone()], &sequences.rollout[places.clone()]);
        let mask = sequences.mask.map(|mask| &mask[places]);
        let mut found = Found::default();
        let start = self.outside.len();
        self.outside.resize(start + self.rules.len(), 0);
        let (outside, lowest, highest) = (&mut self.outside[start..], &mut self.lowest, &mut self.highest);
        let (rules, histogram) = (self.rules, &mut self.histogram);
        self.block.gather(old, rollout, mask, |block| {
            let (mut sum, mut min, mut max) = block.ends();
            let live = (found.tokens + found.not_finite) as usize;
            if !sum.is_finite() {
                let values = block.values();
                if found.not_finite == 0 {
                    found.first = live + values.iter().position(|d| !d.is_finite()).unwrap_or(0);
                }
                found.not_finite += values.iter().filter(|d| !d.is_finite()).count() as u64;
            }
            keep(lowest, block, min, sequence, live, -1.0);
            keep(highest, block, -max, sequence, live, 1.0);
            if !sum.is_finite() {
                block.drop_not_finite();
                (sum, min, max) = block.ends();
            }
            found.tokens += block.values().len() as u64;
            block.count(histogram);
            for (outside, rule) in outside.iter_mut().zip(rules) {
                let (low, high) = (rule.low as f32, rule.high as f32);
                if matches!(rule.level, Level::Token | Level::Worst) && (min < low || max > high) {
                    *outside += block.outside(low, high);
                }
            }
            let limited = min < -LIMIT || max > LIMIT;
            found.sums.add(&if limited { block.sums::<true>(sum) } else { block.sums::<false>(sum) });
        });
        self.counted += found.tokens;
        self.found.push(found);
    }

    /// Adds the histogram and the extremes to all groups that the sequence is in.
    fn hand_over(&mut self, of: &Of<'_>) {
        let mut bins = vec![0; BINS];
        self.histogram.empty_into(&mut bins);
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        for group in of.groups() {
            let group = &mut shared[group];
            group.bins.resize(BINS, 0);
            for (all, count) in group.bins.iter_mut().zip(&bins) {
                *all += count;
            }
            for &extreme in &self.lowest {
                insert(&mut group.lowest, extreme, -1.0);
            }
            for &extreme in &self.highest {
                insert(&mut group.highest, extreme, 1.0);
            }
        }
        self.lowest.clear();
        self.highest.clear();
        self.counted = 0;
    }
}

/// Keeps the block's most extreme values, where `best` is the least of their negatives (`sign` 1) or of themselves
/// (−1). Their places are counted over the live ones, of which `live` came before the block.
#[inline]
fn keep(kept: &mut Vec<Extreme>, block: &Block, best: f32, sequence: usize, live: usize, sign: f64) {
    // Of equal ones the first in the batch are kept, and these were here before.
    let mut worst = bar(kept, sign);
    if f64::from(best) >= worst {
        return;
    }
    for (i, &d) in block.values().iter().enumerate() {
        if -sign * f64::from(d) < worst && d.is_finite() {
            insert(kept, Extreme { sequence, place: live + i, log_ratio: d.into() }, sign);
            worst = bar(kept, sign);
        }
    }
}

/// What a value must be below, times the negative of its sign, to be kept.
fn bar(kept: &[Extreme], sign: f64) -> f64 {
    kept.get(EXTREMES - 1).map_or(f64::INFINITY, |worst| -sign * worst.log_ratio)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: [Rule; 4] = [
        Rule { level: Level::Token, low: -0.5, high: 0.5 },
        Rule { level: Level::Worst, low: -0.5, high: f64::INFINITY },
        Rule { level: Level::Sequence, low: -0.5, high: 0.5 },
        Rule { level: Level::Geometric, low: f64::NEG_INFINITY, high: 0.1 },
    ];

    fn run(d: &[f32], starts: &[i64], groupings: &[Grouping<'_>], threads: usize) -> Result<Vec<Mismatch>, CoreError> {
        let rollout = vec![0.0; d.len()];
        let sequences = Sequences { old: d, rollout: &rollout, mask: None, starts };
        measure(sequences, &RULES, groupings, &Context::new(threads, &|| false))
    }

    /// Many sequences of all sizes, and log ratios of all kinds.
    fn long() -> (Vec<f32>, Vec<i64>) {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        let mut starts = vec![0];
        while starts.len() < 80 {
            starts.push(starts[starts.len() - 1] + (next() * 4000.0) as i64);
        }
        let mut d: Vec<f32> = (0..starts[79]).map(|_| next() - 0.5).collect();
        (d[5_000], d[9_000], d[20_000]) = (f32::NAN, 50.0, -50.0);
        (d, starts)
    }

    #[test]
    fn threads_change_no_bit() {
        let (d, starts) = long();
        assert!(d.len() > PARALLEL_PLACES);
        let codes: Vec<u32> = (0..79).map(|i| i * 7 % 3).collect();
        let groupings = [Grouping { codes: &codes, groups: 3 }];
        let one = run(&d, &starts, &groupings, 1).unwrap();
        for threads in [2, 3, 80] {
            assert_eq!(run(&d, &starts, &groupings, threads).unwrap(), one);
        }
        let of_groups = one[1..].iter().fold((0, 0, 0), |n, group| {
            (n.0 + group.tokens, n.1 + group.sequences_not_finite, n.2 + group.outside[3][1])
        });
        assert_eq!(of_groups, (one[0].tokens, one[0].sequences_not_finite, one[0].outside[3][1]));
        assert_eq!(one[0].tokens + one[0].not_finite, d.len() as u64);
        assert_eq!(one[0].token_bins.iter().sum::<u64>(), one[0].tokens);
        assert_eq!((one[0].extremes[0][0].log_ratio, one[0].extremes[1][0].log_ratio), (-50.0, 50.0));
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        let wrong = |starts: &[i64], row, value| {
            let expected = "a place that is not before the last one or behind the end";
            let error = CoreError::Value { column: "cu_seqlens", row, value, expected };
            assert_eq!(run(&[0.0, 1.0], starts, &[], 1), Err(error));
        };
        wrong(&[0, 3], 1, 3.0);
        wrong(&[-1, 2], 1, 2.0);
        wrong(&[0, 2, 1], 2, 1.0);
        let sequences = Sequences { old: &[0.0_f32], rollout: &[0.0], mask: Some(&[]), starts: &[0, 1] };
        let error = CoreError::Length { column: "mask", given: 0, expected: 1 };
        assert_eq!(measure(sequences, &[], &[], &Context::new(1, &|| false)), Err(error));
        let error = CoreError::Length { column: "group", given: 0, expected: 1 };
        assert_eq!(run(&[0.0], &[0, 1], &[Grouping { codes: &[], groups: 0 }], 1), Err(error));
        let error = CoreError::Value { column: "group", row: 0, value: 2.0, expected: "the code of a group" };
        assert_eq!(run(&[0.0], &[0, 1], &[Grouping { codes: &[2], groups: 2 }], 1), Err(error));
    }

    #[test]
    fn a_long_call_can_be_stopped() {
        let d = vec![0.0_f32; POLL_ROWS + 1];
        let sequences = Sequences { old: &d[..], rollout: &d, mask: None, starts: &[0, d.len() as i64] };
        assert_eq!(measure(sequences, &[], &[], &Context::new(1, &|| true)), Err(CoreError::Interrupted));
    }

    proptest! {
        #[test]
        fn what_lies_between_live_tokens_changes_nothing(
            places in prop::collection::vec((-3.0..3.0_f32, any::<bool>()), 0..3000), cut in 0..3000_usize
        ) {
            let (old, mask): (Vec<f32>, Vec<bool>) = places.into_iter().unzip();
            let middle = cut.min(old.len());
            let starts = [0, middle as i64, old.len() as i64];
            let rollout = vec![0.0; old.len()];
            let sequences = Sequences { old: &old[..], rollout: &rollout, mask: Some(&mask), starts: &starts };
            let mut masked = measure(sequences, &RULES, &[], &Context::new(1, &|| false)).unwrap();
            let live = |range: Range<usize>| range.filter(|&place| mask[place]).map(|place| old[place]);
            let d: Vec<f32> = live(0..old.len()).collect();
            let middle = live(0..middle).count() as i64;
            let mut packed = run(&d, &[0, middle, d.len() as i64], &[], 1).unwrap();
            for extreme in masked[0].extremes.iter_mut().chain(&mut packed[0].extremes).flatten() {
                extreme.place = 0;
            }
            prop_assert_eq!(masked, packed);
        }
    }
}
