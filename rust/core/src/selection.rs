//! Stage 3, select: the rules by which rows and groups are dropped, each seeing what the earlier ones left.
//!
//! Rules read outcomes. Where rows or groups compete, a tie goes to the one that comes first in the table.

use crate::CoreError;
use crate::groups::Stats;
use crate::keys::Codes;
use crate::rows::{
    DOWNSAMPLED, DUPLICATE, LOW_LEARNABILITY, LOW_VARIANCE, NO_SIGNAL, PASS_RATE, Rows, SMALL_GROUP, SOURCE_LIMIT,
    SURPLUS,
};
use crate::threads::Context;

/// Far more than rounding, far less than one answer of any group.
const SLACK: f64 = 1e-12;

/// What groups are ranked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    /// The standard deviation (ddof 1) of the outcomes: StarPO-S, arXiv:2504.20073.
    Deviation,
    /// p(1 − p), p the mean outcome: LILO, arXiv:2502.12272.
    Learnability,
}

/// How many groups of a batch are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Quota {
    /// A share of those that are left, rounded down, but at least one.
    Share(f64),
    /// That many.
    Count(usize),
}

impl Quota {
    fn of(self, groups: usize) -> usize {
        match self {
            // 0.29 * 100 is 28.999999999999996.
            Self::Share(share) => ((share * groups as f64 + 1e-9) as usize).max(1),
            Self::Count(count) => count,
        }
    }
}

/// A score without its last 20 bits: what is equal in the paper's arithmetic shall not differ by rounding.
fn coarse(score: f64) -> f64 {
    // Numbers below 2^-1022 have fewer bits to drop, so they are rounded where they have them all.
    let scale = if score.abs() < 1e-290 { 2f64.powi(200) } else { 1.0 };
    f64::from_bits((plain(score * scale).to_bits() + (1 << 19)) & !((1 << 20) - 1)) / scale
}

/// Without the sign of a zero, so that `total_cmp` orders numbers as `<` does.
fn plain(x: f64) -> f64 {
    x + 0.0
}

impl<R: AsRef<[f64]> + Sync> Rows<R> {
    /// Dynamic sampling (DAPO, arXiv:2503.14476, eq. 11): drops the groups whose outcomes are all equal within
    /// `tolerance`.
    ///
    /// # Errors
    /// Interrupted.
    pub fn drop_without_signal(&mut self, tolerance: f64, context: &Context<'_>) -> Result<(), CoreError> {
        self.drop_groups(NO_SIGNAL, |group, stats| !stats.signal(group, tolerance), context)
    }

    /// Online difficulty filtering: drops the groups whose mean outcome is outside `low ..= high`, but for rounding, and
    /// those in which nothing counts.
    ///
    /// # Errors
    /// Interrupted.
    pub fn drop_outside_pass_rate(&mut self, low: f64, high: f64, context: &Context<'_>) -> Result<(), CoreError> {
        // A mean is rounded, in an order that depends on that of the rows.
        let band = low - SLACK * low.abs()..=high + SLACK * high.abs();
        let outside = |group: usize, stats: &Stats| stats.n[group] == 0.0 || !band.contains(&stats.mean[group]);
        self.drop_groups(PASS_RATE, outside, context)
    }

    /// Drops the groups with fewer live rows than that.
    ///
    /// # Errors
    /// Interrupted.
    pub fn drop_small_groups(&mut self, at_least: usize, context: &Context<'_>) -> Result<(), CoreError> {
        self.drop_groups(SMALL_GROUP, |group, stats| stats.n[group] < at_least as f64, context)
    }

    /// Drops each kept row whose group has an earlier kept row of the same content.
    ///
    /// # Errors
    /// Columns of different lengths.
    pub fn drop_duplicates(&mut self, contents: &Codes, keep_in_statistics: bool) -> Result<(), CoreError> {
        let (first, _) = self.copies(contents)?;
        let dropped: Vec<bool> = first.iter().enumerate().map(|(row, &first)| first as usize != row).collect();
        self.drop_rows(&dropped, DUPLICATE, keep_in_statistics);
        Ok(())
    }

    /// Divides the advantage of each kept row by the number of kept rows of its content in its group.
    ///
    /// # Errors
    /// Columns of different lengths.
    pub fn weigh_duplicates(&mut self, contents: &Codes) -> Result<(), CoreError> {
        let (first, count) = self.copies(contents)?;
        self.weights.resize(self.len(), 1.0);
        for (weight, &first) in self.weights.iter_mut().zip(&first) {
            *weight /= f64::from(count[first as usize].max(1));
        }
        Ok(())
    }

    /// Multiplies advantages by what [`Self::weigh_duplicates`] has set.
    pub fn weigh(&self, advantages: &mut [f64]) {
        for (advantage, weight) in advantages.iter_mut().zip(&self.weights) {
            *advantage *= weight;
        }
    }

    /// For each row the first kept one of its content in its group (itself, where it is not kept), and at that row how
    /// many there are.
    fn copies(&self, contents: &Codes) -> Result<(Vec<u32>, Vec<u32>), CoreError> {
        let n = self.len();
        if contents.codes.len() != n {
            return Err(CoreError::Length { column: "content", given: contents.codes.len(), expected: n });
        }
        // `contents` numbers the pairs of group and content, so that a table by number is enough.
        let mut seen = vec![u32::MAX; contents.first.len()];
        let (mut first, mut count): (Vec<u32>, _) = ((0..n as u32).collect(), vec![0; n]);
        for row in (0..n).filter(|&row| self.is_kept(row)) {
            let seen = &mut seen[contents.codes[row] as usize];
            if *seen == u32::MAX {
                *seen = row as u32;
            }
            first[row] = *seen;
            count[*seen as usize] += 1;
        }
        Ok((first, count))
    }

    /// PODS (arXiv:2504.13818, §3.2): of each group's kept rows the `most` whose outcomes vary most; smaller groups
    /// stay whole.
    ///
    /// The best choice is some of the largest and the rest of the smallest. As in the authors' code the `most` largest
    /// are compared with the choices of 0, 1, ... largest, and a later one must be better to be taken.
    pub fn keep_max_variance(&mut self, most: usize, keep_in_statistics: bool) {
        let mut rows: Vec<Vec<u32>> = vec![Vec::new(); self.codes().first.len()];
        for row in (0..self.len()).filter(|&row| self.is_kept(row)) {
            rows[self.codes().codes[row] as usize].push(row as u32);
        }
        let mut dropped = vec![false; self.len()];
        let outcomes = self.outcomes();
        for group in &mut rows {
            if group.len() <= most {
                continue;
            }
            group.sort_by(|&a, &b| plain(outcomes[b as usize]).total_cmp(&plain(outcomes[a as usize])));
            let sorted: Vec<f64> = group.iter().map(|&row| outcomes[row as usize]).collect();
            let largest = most_varied(&sorted, most);
            for &row in &group[largest..group.len() - (most - largest)] {
                dropped[row as usize] = true;
            }
        }
        self.drop_rows(&dropped, DOWNSAMPLED, keep_in_statistics);
    }

    /// Drops all groups of a batch but those that rank highest; without `batches` all rows are one.
    ///
    /// # Errors
    /// Columns of different lengths, or interrupted.
    pub fn keep_highest_groups(
        &mut self,
        rank: Rank,
        quota: Quota,
        batches: Option<&Codes>,
        context: &Context<'_>,
    ) -> Result<(), CoreError> {
        let batch = self.batch_of_groups(batches)?;
        let stats = self.outcome_stats(context)?;
        let squares = match rank {
            Rank::Deviation => {
                let mut deviations = self.outcomes().to_vec();
                self.grouping().deviations(&mut deviations, &stats.mean, context)?
            }
            Rank::Learnability => Vec::new(),
        };
        let score = |group: usize| {
            coarse(match rank {
                Rank::Deviation => stats.std(group, squares[group], 1.0),
                Rank::Learnability => stats.mean[group] * (1.0 - stats.mean[group]),
            })
        };
        let kept = self.kept_groups();
        let mut groups: Vec<(u32, f64, usize)> =
            (0..kept.len()).filter(|&group| kept[group]).map(|group| (batch[group], score(group), group)).collect();
        groups.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)).then(a.2.cmp(&b.2)));
        let mut dropped = vec![false; kept.len()];
        for batch in groups.chunk_by(|a, b| a.0 == b.0) {
            for &(_, _, group) in batch.iter().skip(quota.of(batch.len())) {
                dropped[group] = true;
            }
        }
        let reason = if rank == Rank::Deviation { LOW_VARIANCE } else { LOW_LEARNABILITY };
        self.drop_groups(reason, |group, _| dropped[group], context)
    }

    /// Drops the groups of a source, or of every source, beyond the first `most` of a batch that are left.
    ///
    /// # Errors
    /// Columns of different lengths, or interrupted.
    pub fn limit_sources(
        &mut self,
        most: usize,
        sources: &Codes,
        only: Option<u32>,
        batches: Option<&Codes>,
        context: &Context<'_>,
    ) -> Result<(), CoreError> {
        let batch = self.batch_of_groups(batches)?;
        let source = self.of_groups("source", sources)?;
        let batches = batches.map_or(1, |batches| batches.first.len());
        let mut taken = vec![0; batches * sources.first.len()];
        let kept = self.kept_groups();
        let over = |group: usize| {
            let taken = &mut taken[source[group] as usize * batches + batch[group] as usize];
            let counts = kept[group] && only.is_none_or(|only| only == source[group]);
            *taken += usize::from(counts);
            counts && *taken > most
        };
        let dropped: Vec<bool> = (0..kept.len()).map(over).collect();
        self.drop_groups(SOURCE_LIMIT, |group, _| dropped[group], context)
    }

    /// Drops the groups that a batch of `need` groups has no room for, and says how many groups it holds.
    ///
    /// The groups come by their `ranks`, one each.
    ///
    /// # Errors
    /// Columns of different lengths, or interrupted.
    pub fn drop_surplus(&mut self, need: usize, ranks: &[i64], context: &Context<'_>) -> Result<usize, CoreError> {
        let groups = self.codes().first.len();
        if ranks.len() != groups {
            return Err(CoreError::Length { column: "rank", given: ranks.len(), expected: groups });
        }
        let kept = self.kept_groups();
        let mut order: Vec<usize> = (0..groups).filter(|&group| kept[group]).collect();
        order.sort_by_key(|&group| (ranks[group], group));
        let mut dropped = vec![false; groups];
        for &group in order.iter().skip(need) {
            dropped[group] = true;
        }
        self.drop_groups(SURPLUS, |group, _| dropped[group], context)?;
        Ok(order.len().min(need))
    }

    fn batch_of_groups(&self, batches: Option<&Codes>) -> Result<Vec<u32>, CoreError> {
        batches.map_or_else(|| Ok(vec![0; self.codes().first.len()]), |batches| self.of_groups("step", batches))
    }

    /// A column's code at each group's first row.
    fn of_groups(&self, column: &'static str, codes: &Codes) -> Result<Vec<u32>, CoreError> {
        if codes.codes.len() != self.len() {
            return Err(CoreError::Length { column, given: codes.codes.len(), expected: self.len() });
        }
        Ok(self.codes().first.iter().map(|&row| codes.codes[row as usize]).collect())
    }
}

/// How many of the largest are among the `most` numbers of greatest variance; `sorted` falls, and has more than that.
fn most_varied(sorted: &[f64], most: usize) -> usize {
    let n = sorted.len();
    let (high, low) = (sorted[0], sorted[n - 1]);
    if most == 0 || high <= low {
        return most;
    }
    // From 0 to 1, two values are exactly 0 and 1, and sums of them exact.
    let scaled: Vec<f64> = sorted.iter().map(|&x| (x - low) / (high - low)).collect();
    let mut sums = vec![(0.0, 0.0)];
    for y in &scaled {
        let (sum, squares) = sums[sums.len() - 1];
        sums.push((sum + y, squares + y * y));
    }
    let spread = |largest: usize| {
        let rest = n - (most - largest);
        let sum = sums[largest].0 + (sums[n].0 - sums[rest].0);
        let squares = sums[largest].1 + (sums[n].1 - sums[rest].1);
        most as f64 * squares - sum * sum
    };
    let (mut best, mut found) = (spread(most), most);
    for largest in 0..most {
        let here = spread(largest);
        // Ties are ties although sums are rounded.
        if here > best + 1e-12 * best.abs() + 1e-12 {
            (best, found) = (here, largest);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::factorize_integers;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn codes(ids: &[i64]) -> Codes {
        factorize_integers(ids, &Context::new(1, &|| false)).unwrap()
    }

    fn rows(ids: &[i64], rewards: &[f64]) -> Rows<Vec<f64>> {
        Rows::new(Arc::new(codes(ids)), rewards.to_vec(), None, &[], false).unwrap()
    }

    fn variance(values: &[f64]) -> f64 {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        values.iter().map(|x| (x - mean) * (x - mean)).sum()
    }

    #[test]
    fn groups_compete_within_their_batch() {
        let context = Context::new(1, &|| false);
        let ids = [1, 1, 2, 2, 3, 3, 4, 4];
        let mut both = rows(&ids, &[0.0, 1.0, 0.0, 4.0, 0.0, 2.0, 5.0, 5.0]);
        let steps = codes(&[7, 7, 7, 7, 8, 8, 8, 8]);
        both.keep_highest_groups(Rank::Deviation, Quota::Share(0.5), Some(&steps), &context).unwrap();
        assert_eq!(both.kept_groups(), [false, true, true, false]);
        let mut one = rows(&ids, &[0.0, 1.0, 0.0, 4.0, 0.0, 2.0, 5.0, 5.0]);
        one.keep_highest_groups(Rank::Deviation, Quota::Share(0.5), None, &context).unwrap();
        assert_eq!(one.kept_groups(), [false, true, true, false]);
        one.limit_sources(1, &codes(&ids.map(|_| 1)), None, None, &context).unwrap();
        assert_eq!(one.kept_groups(), [false, true, false, false]);
    }

    #[test]
    fn the_smallest_scores_differ() {
        let tiny = f64::from_bits(1);
        assert!(coarse(0.0) < coarse(tiny) && coarse(tiny) < coarse(3.0 * tiny));
        assert_eq!(coarse(tiny), tiny);
        assert_eq!(coarse(f64::from_bits((1 << 40) + 1)), f64::from_bits(1 << 40));
        assert_eq!(coarse(0.1 + 0.2), coarse(0.3));
        assert!(coarse(-tiny) < 0.0 && coarse(-0.0).is_sign_positive());
    }

    #[test]
    fn shares_round_as_people_do() {
        assert_eq!(Quota::Share(0.29).of(100), 29);
        assert_eq!(Quota::Share(0.25).of(3), 1);
    }

    #[test]
    fn a_batch_is_filled_by_rank() {
        let context = Context::new(1, &|| false);
        let mut rows = rows(&[1, 2, 2, 3, 1], &[0.0; 5]);
        assert_eq!(rows.drop_surplus(1, &[4, 2, 3], &context), Ok(1));
        assert_eq!(rows.kept_groups(), [false, true, false]);
        assert_eq!(rows.first_stage_of(0), 1);
        assert_eq!(rows.reason(1), SURPLUS);
        assert_eq!(rows.counts(None, &[]), [[5, 2, 3]]);
    }

    proptest! {
        #[test]
        fn the_most_varied_are_as_brute_force_finds_them(
            values in prop::collection::vec(prop_oneof![Just(0.0), Just(1.0), Just(0.1), -3.0..3.0f64], 2..11),
            most in 1..8usize,
        ) {
            prop_assume!(most < values.len());
            let mut table = rows(&vec![1; values.len()], &values);
            table.keep_max_variance(most, false);
            let keep = table.keep();
            let chosen: Vec<f64> = values.iter().zip(&keep).filter(|(_, keep)| **keep).map(|(x, _)| *x).collect();
            prop_assert_eq!(chosen.len(), most);
            let best = (0u32..1 << values.len()).filter(|set| set.count_ones() as usize == most).map(|set| {
                variance(&(0..values.len()).filter(|i| set >> i & 1 == 1).map(|i| values[i]).collect::<Vec<_>>())
            });
            prop_assert!(variance(&chosen) >= best.fold(0.0, f64::max) * (1.0 - 1e-9) - 1e-9);
        }

        #[test]
        fn every_source_has_at_most_its_share(
            data in prop::collection::vec((0..8i64, 0..3i64), 0..60), most in 0..4usize
        ) {
            let ids: Vec<i64> = data.iter().map(|row| row.0).collect();
            let sources = codes(&data.iter().map(|row| row.1).collect::<Vec<_>>());
            let mut rows = rows(&ids, &vec![0.0; ids.len()]);
            rows.limit_sources(most, &sources, None, None, &Context::new(1, &|| false)).unwrap();
            let mut taken = vec![0; sources.first.len()];
            for (group, kept) in rows.kept_groups().into_iter().enumerate() {
                taken[sources.codes[rows.codes().first[group] as usize] as usize] += usize::from(kept);
            }
            prop_assert!(taken.iter().all(|&taken| taken <= most));
            let all: usize = taken.iter().sum();
            prop_assert!(all == rows.codes().first.len() || taken.contains(&most));
        }
    }
}
