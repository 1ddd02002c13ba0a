//! A batch of rollouts on its way through shaping, selection and advantages.
//!
//! Filters read the *outcome* (the gate, or the reward before shaping), advantages the *shaped* reward. Selections
//! run in the order of the calls and see what the earlier ones left.

use crate::CoreError;
use crate::groups::{Grouping, Order, Stats};
use crate::keys::Codes;
use crate::threads::Context;
use std::sync::Arc;

/// The reward could not be scored (null).
pub const UNSCORED: u32 = 1;
/// The reward is NaN or infinite, and the recipe drops such rows.
pub const NOT_FINITE: u32 = 1 << 1;
/// The answer was cut off at the length limit.
pub const TRUNCATED: u32 = 1 << 2;
/// The group's outcomes are all equal: it can teach nothing.
pub const NO_SIGNAL: u32 = 1 << 3;
/// The group's pass rate is outside the band.
pub const PASS_RATE: u32 = 1 << 4;
/// The same answer as an earlier row of its group.
pub const DUPLICATE: u32 = 1 << 5;
/// The group has too few rows.
pub const SMALL_GROUP: u32 = 1 << 6;
/// Not among the rows that the group was sampled down to.
pub const DOWNSAMPLED: u32 = 1 << 7;
/// The group's outcomes vary less than those of the groups that were chosen.
pub const LOW_VARIANCE: u32 = 1 << 8;
/// The group is less learnable than those that were chosen.
pub const LOW_LEARNABILITY: u32 = 1 << 9;
/// Its source has had its share.
pub const SOURCE_LIMIT: u32 = 1 << 10;
/// Sampled by a policy that is too old.
pub const STALE: u32 = 1 << 11;
/// Nothing is wrong with it, but the batch is full.
pub const SURPLUS: u32 = 1 << 12;

/// The largest reward whose square does not overflow, with room for a sum over 2^32 rows.
pub const LARGEST: f64 = 1e150;

/// The rows, their groups, and what has happened to them so far.
pub struct Rows<R> {
    codes: Arc<Codes>,
    order: Order,
    rewards: R,
    gate: Option<R>,
    pub(crate) shaped: Option<Vec<f64>>,
    live: Vec<bool>,
    row_flags: Vec<Flags>,
    group_flags: Vec<Flags>,
    stages: Vec<Stage>,
    pub(crate) weights: Vec<f64>,
    pub(crate) outcome_stats: Option<Arc<Stats>>,
}

/// A selection that has been made: its reason, and for a selection of groups what it read.
struct Stage {
    reason: u32,
    stats: Option<Arc<Stats>>,
}

/// All reasons of a row or a group, and the number of the stage (from 1) that came first.
#[derive(Clone, Copy, Default)]
struct Flags {
    all: u32,
    first: u32,
}

impl Flags {
    fn add(&mut self, reason: u32, stage: u32) {
        self.all |= reason;
        if self.first == 0 {
            self.first = stage;
        }
    }
}

fn first_stage(row: Flags, group: Flags) -> u32 {
    match (row.first, group.first) {
        (0, stage) | (stage, 0) => stage,
        (a, b) => a.min(b),
    }
}

impl<R: AsRef<[f64]> + Sync> Rows<R> {
    /// Rows with their groups, rewards and, where selection shall not read the reward, a gate.
    ///
    /// `scored` says which rows have a reward (empty: all). Where one is NaN or infinite the row is dropped if
    /// `drop_not_finite`, and an error otherwise.
    ///
    /// # Errors
    /// Columns of different lengths, a reward that is not finite, or one beyond [`LARGEST`].
    pub fn new(
        codes: Arc<Codes>,
        rewards: R,
        gate: Option<R>,
        scored: &[bool],
        drop_not_finite: bool,
    ) -> Result<Self, CoreError> {
        let n = codes.codes.len();
        let lengths = [("reward", rewards.as_ref().len()), ("gate", gate.as_ref().map_or(n, |g| g.as_ref().len()))];
        for (column, given) in lengths {
            if given != n {
                return Err(CoreError::Length { column, given, expected: n });
            }
        }
        let order = Order::of(&codes.codes);
        let group_flags = vec![Flags::default(); codes.first.len()];
        let mut rows = Self {
            codes,
            order,
            rewards,
            gate,
            shaped: None,
            live: Vec::new(),
            row_flags: Vec::new(),
            group_flags,
            stages: Vec::new(),
            weights: Vec::new(),
            outcome_stats: None,
        };
        if scored.len() == n && !scored.iter().all(|&scored| scored) {
            let unscored: Vec<bool> = scored.iter().map(|&scored| !scored).collect();
            rows.drop_rows(&unscored, UNSCORED, false);
        }
        rows.check_finite("reward", drop_not_finite)?;
        if rows.gate.is_some() {
            rows.check_finite("gate", drop_not_finite)?;
        }
        Ok(rows)
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.codes.codes.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.codes.codes.is_empty()
    }

    /// The groups.
    pub fn codes(&self) -> &Codes {
        &self.codes
    }

    /// What filters and metrics read.
    pub fn outcomes(&self) -> &[f64] {
        self.gate.as_ref().unwrap_or(&self.rewards).as_ref()
    }

    /// The rewards before shaping.
    pub fn scores(&self) -> &[f64] {
        self.rewards.as_ref()
    }

    /// Which rows count in their groups' statistics.
    pub fn live(&self) -> Vec<bool> {
        if self.live.is_empty() { vec![true; self.len()] } else { self.live.clone() }
    }

    /// What advantages read.
    pub fn rewards(&self) -> &[f64] {
        self.shaped.as_deref().unwrap_or(self.rewards.as_ref())
    }

    /// Puts shaped rewards in the place of those so far.
    ///
    /// # Errors
    /// What `shape` returns, or a different number of rows.
    pub fn shape(&mut self, shape: impl FnOnce(&[f64]) -> Result<Vec<f64>, CoreError>) -> Result<(), CoreError> {
        let shaped = shape(self.rewards())?;
        if shaped.len() != self.len() {
            return Err(CoreError::Length { column: "shaped reward", given: shaped.len(), expected: self.len() });
        }
        self.shaped = Some(shaped);
        Ok(())
    }

    /// Whether the advantage reads the very column that the filters read.
    pub(crate) fn shares_statistics(&self) -> bool {
        self.gate.is_none() && self.shaped.is_none()
    }

    /// The groups and the live rows.
    pub fn grouping(&self) -> Grouping<'_> {
        Grouping { codes: &self.codes.codes, groups: self.codes.first.len(), live: &self.live, order: self.order }
    }

    /// The outcome's statistics over the rows that are live now.
    ///
    /// # Errors
    /// Interrupted.
    pub fn outcome_stats(&mut self, context: &Context<'_>) -> Result<Arc<Stats>, CoreError> {
        let stats = match self.outcome_stats.take() {
            Some(stats) => stats,
            None => self.grouping().stats(self.outcomes(), context)?.into(),
        };
        Ok(self.outcome_stats.insert(stats).clone())
    }

    /// Drops rows. With `keep_in_statistics` they still count in what their group's statistics are made of.
    pub fn drop_rows(&mut self, dropped: &[bool], reason: u32, keep_in_statistics: bool) {
        self.stages.push(Stage { reason, stats: None });
        let stage = self.stages.len() as u32;
        self.row_flags.resize(self.len(), Flags::default());
        for (flags, _) in self.row_flags.iter_mut().zip(dropped).filter(|(_, dropped)| **dropped) {
            flags.add(reason, stage);
        }
        // A row is first dropped by its group if that came earlier; `first_stages` compares the stages' numbers.
        if !keep_in_statistics && dropped.contains(&true) {
            self.live.resize(self.codes.codes.len(), true);
            for (live, &dropped) in self.live.iter_mut().zip(dropped) {
                *live &= !dropped;
            }
            self.outcome_stats = None;
        }
    }

    /// Drops whole groups, by their number and their outcomes' statistics.
    ///
    /// # Errors
    /// Interrupted.
    pub fn drop_groups(
        &mut self,
        reason: u32,
        dropped: impl Fn(usize, &Stats) -> bool,
        context: &Context<'_>,
    ) -> Result<(), CoreError> {
        let stats = self.outcome_stats(context)?;
        self.stages.push(Stage { reason, stats: Some(stats.clone()) });
        let stage = self.stages.len() as u32;
        for (group, flags) in self.group_flags.iter_mut().enumerate() {
            if dropped(group, &stats) {
                flags.add(reason, stage);
            }
        }
        Ok(())
    }

    /// Which rows are kept.
    pub fn keep(&self) -> Vec<bool> {
        self.by_row(|row, group| row.all | group.all == 0)
    }

    /// Every reason that applies to each row; 0 when kept.
    pub fn reasons(&self) -> Vec<u32> {
        self.by_row(|row, group| row.all | group.all)
    }

    /// The reason of the stage that dropped each row first; 0 when kept.
    pub fn first_reasons(&self) -> Vec<u32> {
        self.by_row(|row, group| self.reason(first_stage(row, group)))
    }

    /// The stage, counted from 1, that dropped a row first; 0 when it is kept.
    pub fn first_stage_of(&self, row: usize) -> u32 {
        let group = self.group_flags[self.codes.codes[row] as usize];
        first_stage(self.row_flags.get(row).copied().unwrap_or_default(), group)
    }

    /// The number of selections so far.
    pub fn stages(&self) -> usize {
        self.stages.len()
    }

    /// The reason that a stage, counted from 1, gives; 0 for none.
    pub fn reason(&self, stage: u32) -> u32 {
        stage.checked_sub(1).map_or(0, |at| self.stages[at as usize].reason)
    }

    /// What a selection of groups, counted from 1, read; nothing for a selection of rows.
    pub fn stats_at(&self, stage: u32) -> Option<&Stats> {
        stage.checked_sub(1).and_then(|at| self.stages[at as usize].stats.as_deref())
    }

    /// How many rows of each source came in, were kept, and were first dropped by each stage: one list a source.
    ///
    /// `sources` says which source a row is of (none: there is one), `weights` how many rows of the caller's it stands
    /// for (empty: one).
    pub fn counts(&self, sources: Option<&Codes>, weights: &[i64]) -> Vec<Vec<i64>> {
        let mut counts = vec![vec![0; 2 + self.stages.len()]; sources.map_or(1, |sources| sources.first.len())];
        let rows = self.row_flags.iter().copied().chain(std::iter::repeat(Flags::default()));
        for (row, (&code, flags)) in self.codes.codes.iter().zip(rows).enumerate() {
            let weight = weights.get(row).copied().unwrap_or(1);
            let group = self.group_flags[code as usize];
            let of = &mut counts[sources.map_or(0, |sources| sources.codes[row] as usize)];
            of[0] += weight;
            of[1] += if flags.all | group.all == 0 { weight } else { 0 };
            if let Some(stage @ 1..) = Some(first_stage(flags, group) as usize) {
                of[1 + stage] += weight;
            }
        }
        counts
    }

    /// Whether a row is kept.
    pub(crate) fn is_kept(&self, row: usize) -> bool {
        let group = self.group_flags[self.codes.codes[row] as usize].all;
        group | self.row_flags.get(row).map_or(0, |flags| flags.all) == 0
    }

    /// Which groups have a row that is kept.
    pub fn kept_groups(&self) -> Vec<bool> {
        let mut kept: Vec<bool> = self.group_flags.iter().map(|flags| flags.all == 0).collect();
        if !self.row_flags.is_empty() {
            kept.fill(false);
            for row in (0..self.len()).filter(|&row| self.is_kept(row)) {
                kept[self.codes.codes[row] as usize] = true;
            }
        }
        kept
    }

    /// Whether a group was dropped as a whole.
    pub(crate) fn group_is_dropped(&self, group: usize) -> bool {
        self.group_flags[group].all != 0
    }

    /// Rows that were dropped one by one; empty when there is none.
    pub(crate) fn row_is_dropped(&self) -> impl Iterator<Item = bool> {
        self.row_flags.iter().map(|flags| flags.all != 0)
    }

    fn by_row<T: Clone>(&self, of: impl Fn(Flags, Flags) -> T) -> Vec<T> {
        if self.row_flags.is_empty() {
            let groups: Vec<T> = self.group_flags.iter().map(|&group| of(Flags::default(), group)).collect();
            return self.codes.codes.iter().map(|&code| groups[code as usize].clone()).collect();
        }
        let rows = self.codes.codes.iter().zip(&self.row_flags);
        rows.map(|(&code, &row)| of(row, self.group_flags[code as usize])).collect()
    }

    fn check_finite(&mut self, column: &'static str, drop: bool) -> Result<(), CoreError> {
        let values = if column == "gate" { self.outcomes() } else { self.rewards.as_ref() };
        // One branch-free reduction settles the usual case; NaN fails every comparison.
        if values.iter().fold(true, |fine, x| fine & (x.abs() <= LARGEST)) {
            return Ok(());
        }
        let live = |row: usize| self.live.get(row).copied().unwrap_or(true);
        let bad: Vec<bool> = values.iter().enumerate().map(|(row, x)| live(row) && !x.is_finite()).collect();
        let large = values.iter().enumerate().find(|&(row, x)| live(row) && x.is_finite() && x.abs() > LARGEST);
        if let Some((row, &value)) = large {
            return Err(CoreError::TooLarge { column, row, value });
        }
        let rows: Vec<usize> = (0..bad.len()).filter(|&row| bad[row]).collect();
        if rows.is_empty() {
            return Ok(());
        }
        if !drop {
            return Err(CoreError::NotFinite { column, count: rows.len(), rows: rows[..rows.len().min(5)].to_vec() });
        }
        self.drop_rows(&bad, NOT_FINITE, false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::factorize_integers;
    use proptest::prelude::*;

    fn rows(ids: &[i64], rewards: &[f64]) -> Rows<Vec<f64>> {
        let codes = factorize_integers(ids, &Context::new(1, &|| false)).unwrap();
        Rows::new(Arc::new(codes), rewards.to_vec(), None, &[], false).unwrap()
    }

    #[test]
    fn the_first_reason_is_that_of_the_earlier_stage() {
        let context = Context::new(1, &|| false);
        // Group 1 is constant only once its row 1 is gone; group 2 has signal throughout.
        let mut rows = rows(&[1, 1, 1, 2, 2], &[1.0, 0.0, 1.0, 0.0, 1.0]);
        rows.drop_without_signal(0.0, &context).unwrap();
        assert_eq!(rows.reasons(), [0; 5]);
        rows.drop_rows(&[false, true, false, true, false], TRUNCATED, false);
        rows.drop_without_signal(0.0, &context).unwrap();
        let both = TRUNCATED | NO_SIGNAL;
        assert_eq!(rows.reasons(), [NO_SIGNAL, both, NO_SIGNAL, both, NO_SIGNAL]);
        assert_eq!(rows.first_reasons(), [NO_SIGNAL, TRUNCATED, NO_SIGNAL, TRUNCATED, NO_SIGNAL]);
        assert_eq!(rows.keep(), [false; 5]);
    }

    #[test]
    fn rows_may_stay_in_the_statistics() {
        let context = Context::new(1, &|| false);
        let mut rows = rows(&[1, 1], &[1.0, 0.0]);
        rows.drop_rows(&[false, true], TRUNCATED, true);
        rows.drop_without_signal(0.0, &context).unwrap();
        assert_eq!(rows.reasons(), [0, TRUNCATED]);
    }

    #[test]
    fn what_is_not_finite_is_named_or_dropped() {
        let codes = Arc::new(Codes { codes: vec![0, 0, 0], first: vec![0] });
        let given = |drop| Rows::new(codes.clone(), vec![1.0, f64::NAN, f64::INFINITY], None, &[], drop);
        let expected = CoreError::NotFinite { column: "reward", count: 2, rows: vec![1, 2] };
        assert_eq!(given(false).err(), Some(expected));
        assert_eq!(given(true).unwrap().reasons(), [0, NOT_FINITE, NOT_FINITE]);
        let large = Rows::new(codes.clone(), vec![1.0, 1e151, 0.0], None, &[], true);
        assert_eq!(large.err(), Some(CoreError::TooLarge { column: "reward", row: 1, value: 1e151 }));
        let unscored = Rows::new(codes, vec![1.0, f64::NAN, 0.0], None, &[true, false, true], false).unwrap();
        assert_eq!(unscored.reasons(), [0, UNSCORED, 0]);
    }

    proptest! {
        #[test]
        fn a_row_is_kept_iff_it_has_no_reason(
            data in prop::collection::vec((0..5i64, 0..3i32, any::<bool>(), any::<bool>()), 0..60)
        ) {
            let ids: Vec<i64> = data.iter().map(|row| row.0).collect();
            let rewards: Vec<f64> = data.iter().map(|row| f64::from(row.1) * 0.1).collect();
            let mut rows = rows(&ids, &rewards);
            let context = Context::new(1, &|| false);
            rows.drop_rows(&data.iter().map(|row| row.2).collect::<Vec<_>>(), TRUNCATED, true);
            rows.drop_without_signal(0.0, &context).unwrap();
            rows.drop_rows(&data.iter().map(|row| row.3).collect::<Vec<_>>(), 1 << 9, false);
            rows.drop_without_signal(0.1, &context).unwrap();
            let (reasons, first) = (rows.reasons(), rows.first_reasons());
            for (row, keep) in rows.keep().into_iter().enumerate() {
                prop_assert_eq!(keep, reasons[row] == 0);
                prop_assert_eq!(keep, first[row] == 0);
                prop_assert_eq!(first[row] & reasons[row], first[row]);
            }
        }
    }
}
