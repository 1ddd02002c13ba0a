//! Stage 4, advantage: one number a row from the shaped rewards of its group, or of the whole batch.

pub mod within;

use self::within::Baseline;
use crate::CoreError;
use crate::groups::has_signal;
use crate::keys::Codes;
use crate::members::Members;
use crate::rows::Rows;
use crate::threads::{Context, PARALLEL_ROWS, POLL_ROWS, part_size};

/// How advantages are estimated. `R` is the shaped reward, mean and std are its group's over the live rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Estimator {
    /// `(R − mean) / (std + eps)`: GRPO.
    GroupNorm {
        /// What is taken off the count in the variance.
        ddof: f64,
        /// Added to the standard deviation.
        eps: f64,
    },
    /// `R − mean`: Dr.GRPO.
    MeanBaseline,
    /// `R` minus the mean of the others, `n / (n − 1) · (R − mean)`: RLOO.
    LeaveOneOut,
    /// `α (R − mean)`, `α = B / (B − M)` with M of a batch's B groups without signal: GPG.
    RescaledMean,
    /// `R − Σ L R / Σ L` with the answers' lengths L: OPO.
    LengthBaseline,
    /// `R − β log mean exp(R / β)`: OAPL.
    SoftValue {
        /// The temperature.
        beta: f64,
    },
    /// The gradient of pass@k, for rewards that are 0 or 1.
    PassKTraining {
        /// The attempts.
        k: u64,
        /// Added to the standard deviation.
        eps: f64,
    },
    /// The lead of the best over the second best, for the best alone.
    PassKArgmax {
        /// What is taken off the count in the variance; nothing: the lead is not divided by the standard deviation.
        ddof: Option<f64>,
        /// Added to the standard deviation.
        eps: f64,
    },
    /// The gradient of max@k: PKPO.
    Pkpo {
        /// The attempts.
        k: u64,
        /// What is taken off.
        baseline: Baseline,
    },
    /// `(x − mean_batch) / (std_batch + eps)`, `x` the reward or its deviation from the group's mean: REINFORCE++.
    GlobalNorm {
        /// What is taken off the weight in the variance.
        ddof: f64,
        /// Added to the standard deviation.
        eps: f64,
        /// Whether the group's mean is taken off first.
        group_baseline: bool,
    },
}

const BLOCK: usize = 1024;

impl<R: AsRef<[f64]> + Sync> Rows<R> {
    /// The advantages, exactly 0 for dropped rows and, where the estimator is relative to the group, for groups
    /// whose shaped rewards are all equal.
    ///
    /// `weights` (empty: 1 each) and `batches` are read by [`Estimator::GlobalNorm`], a row's share in the batch's
    /// statistics and the batch that it belongs to; [`Estimator::LengthBaseline`] reads the weights, and
    /// [`Estimator::RescaledMean`] the batches.
    ///
    /// # Errors
    /// Columns of different lengths, a batch without weight, a group with fewer rows than attempts are drawn from it, a
    /// reward that is neither 0 nor 1 where it must be, or interrupted.
    pub fn advantages(
        &mut self,
        estimator: Estimator,
        weights: &[f64],
        batches: Option<&Codes>,
        context: &Context<'_>,
    ) -> Result<Vec<f64>, CoreError> {
        self.check_columns(weights, batches)?;
        let mut advantages = match estimator {
            Estimator::GlobalNorm { ddof, eps, group_baseline } => {
                let values = if group_baseline {
                    self.relative(Estimator::MeanBaseline, true, context)?
                } else {
                    self.rewards().to_vec()
                };
                self.whiten(values, ddof, eps, weights, batches)?
            }
            Estimator::RescaledMean => {
                let values = self.relative(Estimator::MeanBaseline, false, context)?;
                self.rescale(values, batches, context)?
            }
            Estimator::GroupNorm { .. } | Estimator::MeanBaseline | Estimator::LeaveOneOut => {
                self.relative(estimator, false, context)?
            }
            _ => self.within(estimator, weights, context)?,
        };
        self.weigh(&mut advantages);
        Ok(advantages)
    }

    /// With `all`, groups that a selection dropped are treated like the others.
    fn relative(&mut self, estimator: Estimator, all: bool, context: &Context<'_>) -> Result<Vec<f64>, CoreError> {
        let stats = match self.outcome_stats.take() {
            Some(stats) if self.shares_statistics() => stats,
            _ => self.grouping().stats(self.rewards(), context)?.into(),
        };
        let mut advantages = self.rewards().to_vec();
        let squares = self.grouping().deviations(&mut advantages, &stats.mean, context)?;
        // Multiplying by 0 and dividing by infinity give the exact 0.
        let factor = |group: usize| {
            let live = stats.signal(group, 0.0) && (all || !self.group_is_dropped(group));
            match estimator {
                Estimator::GroupNorm { ddof, eps } => match stats.std(group, squares[group], ddof) + eps {
                    spread if live && spread > 0.0 => spread,
                    _ => f64::INFINITY,
                },
                Estimator::LeaveOneOut if live => stats.n[group] / (stats.n[group] - 1.0),
                _ => f64::from(u8::from(live)),
            }
        };
        let factors: Vec<f64> = (0..stats.n.len()).map(factor).collect();
        let divide = matches!(estimator, Estimator::GroupNorm { .. });
        let size = part_size(advantages.len(), context.threads_for(advantages.len(), PARALLEL_ROWS));
        let parts = advantages.chunks_mut(size).zip(self.codes().codes.chunks(size)).collect();
        context.each(parts, |(advantages, codes)| {
            apply(advantages, codes, &factors, divide);
            Ok(())
        })?;
        for (advantage, dropped) in advantages.iter_mut().zip(self.row_is_dropped()) {
            if dropped {
                *advantage = 0.0;
            }
        }
        if self.shares_statistics() {
            self.outcome_stats = Some(stats);
        }
        Ok(advantages)
    }

    fn check_columns(&self, weights: &[f64], batches: Option<&Codes>) -> Result<(), CoreError> {
        let n = self.len();
        if !weights.is_empty() && weights.len() != n {
            return Err(CoreError::Length { column: "response_len", given: weights.len(), expected: n });
        }
        if let Some(given) = batches.map(|batches| batches.codes.len()).filter(|&given| given != n) {
            return Err(CoreError::Length { column: "step", given, expected: n });
        }
        Ok(())
    }

    /// Times B / (B − M), with M of the batch's B groups without signal; groups that a selection took away do not count.
    fn rescale(
        &self,
        mut values: Vec<f64>,
        batches: Option<&Codes>,
        context: &Context<'_>,
    ) -> Result<Vec<f64>, CoreError> {
        let stats = self.grouping().stats(self.rewards(), context)?;
        let batch = |row: usize| batches.map_or(0, |batches| batches.codes[row] as usize);
        let mut counts = vec![[0.0; 2]; batches.map_or(1, |batches| batches.first.len())];
        for (group, &kept) in self.kept_groups().iter().enumerate() {
            if kept {
                let count = &mut counts[batch(self.codes().first[group] as usize)];
                count[0] += 1.0;
                count[1] += f64::from(u8::from(stats.signal(group, 0.0)));
            }
        }
        for (row, value) in values.iter_mut().enumerate().filter(|(_, value)| **value != 0.0) {
            let [all, with_signal] = counts[batch(row)];
            *value *= all / with_signal;
        }
        Ok(values)
    }

    /// Estimators that look at the rewards of a group one by one.
    fn within(&self, estimator: Estimator, weights: &[f64], context: &Context<'_>) -> Result<Vec<f64>, CoreError> {
        let rewards = self.rewards();
        let stats = match estimator {
            Estimator::PassKArgmax { ddof: Some(_), .. } => Some(self.grouping().stats(rewards, context)?),
            _ => None,
        };
        let squares = match &stats {
            Some(stats) => self.grouping().deviations(&mut rewards.to_vec(), &stats.mean, context)?,
            None => Vec::new(),
        };
        let members = Members::new(self.codes(), rewards, self.grouping().live)?;
        let (mut found, mut advantages, mut since) = (Vec::new(), vec![0.0; self.len()], 0);
        for (group, at) in members.groups().enumerate() {
            since += at.len();
            if since >= POLL_ROWS {
                context.check()?;
                since = 0;
            }
            if at.is_empty() || self.group_is_dropped(group) {
                continue;
            }
            let (rows, values) = (&members.rows[at.clone()], &members.values[at]);
            let too_few = |k| CoreError::TooFewAttempts { group, row: rows[0] as usize, attempts: rows.len(), k };
            found.clear();
            match estimator {
                Estimator::SoftValue { beta } => within::soft_value(values, beta, &mut found),
                Estimator::LengthBaseline => {
                    let lengths = rows.iter().map(|&row| weights.get(row as usize).copied().unwrap_or(1.0));
                    within::length_baseline(values, lengths, &mut found);
                }
                Estimator::PassKTraining { k, eps } => {
                    if let Some(wrong) = values.iter().position(|reward| ![0.0, 1.0].contains(reward)) {
                        let (row, value) = (rows[wrong] as usize, values[wrong]);
                        return Err(CoreError::Value { column: "reward", row, value, expected: "0 or 1" });
                    }
                    if (rows.len() as u64) < k {
                        return Err(too_few(k));
                    }
                    within::pass_k_training(values, k, eps, &mut found);
                }
                Estimator::PassKArgmax { ddof, eps } => {
                    let std = ddof.zip(stats.as_ref()).map(|(ddof, stats)| stats.std(group, squares[group], ddof));
                    within::pass_k_argmax(values, std.map_or(1.0, |std| std + eps), &mut found);
                }
                Estimator::Pkpo { k, baseline } => {
                    let needed = k + u64::from(baseline == Baseline::LeaveOneOut);
                    if (rows.len() as u64) < needed {
                        return Err(too_few(needed));
                    }
                    within::pkpo(values, k, baseline, &mut found);
                }
                _ => {}
            }
            for (&row, &advantage) in rows.iter().zip(&found) {
                advantages[row as usize] = advantage;
            }
        }
        for (advantage, dropped) in advantages.iter_mut().zip(self.row_is_dropped()) {
            if dropped {
                *advantage = 0.0;
            }
        }
        Ok(advantages)
    }

    fn whiten(
        &self,
        mut values: Vec<f64>,
        ddof: f64,
        eps: f64,
        weights: &[f64],
        batches: Option<&Codes>,
    ) -> Result<Vec<f64>, CoreError> {
        let n = self.len();
        let batch = |row: usize| batches.map_or(0, |batches| batches.codes[row] as usize);
        let weight = |row: usize| if weights.is_empty() { 1.0 } else { weights[row] };
        let keep = self.keep();
        let kept = || (0..n).filter(|&row| keep[row]);
        let mut sums = vec![Batch::default(); batches.map_or(1, |batches| batches.first.len())];
        for row in kept() {
            sums[batch(row)].add(values[row], weight(row));
        }
        if let Some(batch) = sums.iter().position(|sum| sum.rows > 0 && sum.weight <= 0.0) {
            return Err(CoreError::ZeroWeight { batch });
        }
        for row in kept() {
            sums[batch(row)].deviate(values[row], weight(row));
        }
        for (row, value) in values.iter_mut().enumerate() {
            *value = if keep[row] { sums[batch(row)].whiten(*value, ddof, eps) } else { 0.0 };
        }
        Ok(values)
    }
}

/// Weighted statistics of one batch.
#[derive(Clone)]
struct Batch {
    rows: usize,
    weight: f64,
    sum: f64,
    squares: f64,
    min: f64,
    max: f64,
}

impl Default for Batch {
    fn default() -> Self {
        Self { rows: 0, weight: 0.0, sum: 0.0, squares: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl Batch {
    fn add(&mut self, value: f64, weight: f64) {
        self.rows += 1;
        self.weight += weight;
        self.sum += weight * value;
        if weight > 0.0 {
            self.min = self.min.min(value);
            self.max = self.max.max(value);
        }
    }

    fn mean(&self) -> f64 {
        if self.min >= self.max { self.max } else { self.sum / self.weight }
    }

    fn deviate(&mut self, value: f64, weight: f64) {
        let d = value - self.mean();
        self.squares += weight * d * d;
    }

    fn whiten(&self, value: f64, ddof: f64, eps: f64) -> f64 {
        let free = self.weight - ddof;
        let constant = !has_signal(self.min, self.max, 0.0);
        let std = if constant || free <= 0.0 { 0.0 } else { (self.squares / free).sqrt() };
        let d = value - self.mean();
        if d == 0.0 || std + eps == 0.0 { 0.0 } else { d / (std + eps) }
    }
}

fn apply(advantages: &mut [f64], codes: &[u32], factors: &[f64], divide: bool) {
    let mut buffer = [0.0; BLOCK];
    for (advantages, codes) in advantages.chunks_mut(BLOCK).zip(codes.chunks(BLOCK)) {
        // The gather and the arithmetic are apart so that the arithmetic is done in vectors; + 0.0 turns −0 into 0.
        for (factor, &code) in buffer.iter_mut().zip(codes) {
            *factor = factors[code as usize];
        }
        if divide {
            for (advantage, factor) in advantages.iter_mut().zip(&buffer) {
                *advantage = *advantage / factor + 0.0;
            }
        } else {
            for (advantage, factor) in advantages.iter_mut().zip(&buffer) {
                *advantage = *advantage * factor + 0.0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::factorize_integers;
    use proptest::prelude::*;

    const ALL: [Estimator; 11] = [
        Estimator::GroupNorm { ddof: 0.0, eps: 0.0 },
        Estimator::GroupNorm { ddof: 3.0, eps: 0.0 },
        Estimator::GroupNorm { ddof: 1.0, eps: 1e-4 },
        Estimator::MeanBaseline,
        Estimator::LeaveOneOut,
        Estimator::RescaledMean,
        Estimator::LengthBaseline,
        Estimator::PassKArgmax { ddof: Some(1.0), eps: 1e-6 },
        Estimator::SoftValue { beta: 0.5 },
        Estimator::GlobalNorm { ddof: 0.0, eps: 1e-8, group_baseline: false },
        Estimator::GlobalNorm { ddof: 1.0, eps: 1e-8, group_baseline: true },
    ];

    fn advantages(ids: &[i64], rewards: &[f64], estimator: Estimator, threads: usize) -> Vec<f64> {
        let context = Context::new(threads, &|| false);
        let codes = factorize_integers(ids, &context).unwrap();
        let mut rows = Rows::new(codes.into(), rewards.to_vec(), None, &[], false).unwrap();
        rows.advantages(estimator, &[], None, &context).unwrap()
    }

    fn bits(values: &[f64]) -> Vec<u64> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    proptest! {
        #[test]
        fn a_constant_group_gets_exactly_zero(value in -1e3..1e3f64, n in 1..70usize) {
            for estimator in ALL {
                let given = advantages(&vec![7; n], &vec![value; n], estimator, 1);
                prop_assert_eq!(bits(&given), vec![0; n]);
            }
        }

        #[test]
        fn any_finite_input_gives_finite_output(
            data in prop::collection::vec((-3..3i64, prop_oneof![-1e150..1e150f64, Just(0.0), Just(-0.0), Just(5e-324)]), 0..50)
        ) {
            let (ids, rewards): (Vec<_>, Vec<_>) = data.into_iter().unzip();
            for estimator in ALL {
                prop_assert!(advantages(&ids, &rewards, estimator, 1).iter().all(|x| x.is_finite()));
            }
        }

        #[test]
        fn deviations_sum_to_zero(rewards in prop::collection::vec(-10.0..10.0f64, 2..40)) {
            let ids = vec![0; rewards.len()];
            let not_centred = |e: &Estimator| matches!(e, Estimator::PassKArgmax { .. } | Estimator::SoftValue { .. });
            for estimator in ALL.into_iter().filter(|e| !not_centred(e)) {
                let given = advantages(&ids, &rewards, estimator, 1);
                let size: f64 = given.iter().map(|x| x.abs()).sum();
                prop_assert!(given.iter().sum::<f64>().abs() <= 1e-12 * size.max(1e-3));
            }
        }

        #[test]
        fn leave_one_out_is_the_mean_of_the_others(rewards in prop::collection::vec(-10.0..10.0f64, 2..20)) {
            let given = advantages(&vec![0; rewards.len()], &rewards, Estimator::LeaveOneOut, 1);
            for (i, advantage) in given.iter().enumerate() {
                let others: f64 = rewards.iter().enumerate().filter(|&(j, _)| j != i).map(|(_, r)| r).sum();
                let expected = rewards[i] - others / (rewards.len() - 1) as f64;
                prop_assert!((advantage - expected).abs() <= 1e-12);
            }
        }
    }

    #[test]
    fn a_group_that_is_too_small_for_k_or_not_binary_is_named() {
        let context = Context::new(1, &|| false);
        let given = |estimator| {
            let codes = factorize_integers(&[5, 5, 6, 6], &context).unwrap();
            let mut rows = Rows::new(codes.into(), vec![1.0, 0.0, 1.0, 0.5], None, &[], false).unwrap();
            rows.advantages(estimator, &[], None, &context)
        };
        let few = CoreError::TooFewAttempts { group: 0, row: 0, attempts: 2, k: 3 };
        assert_eq!(given(Estimator::PassKTraining { k: 3, eps: 0.0 }), Err(few.clone()));
        assert_eq!(given(Estimator::Pkpo { k: 2, baseline: Baseline::LeaveOneOut }), Err(few));
        let value = CoreError::Value { column: "reward", row: 3, value: 0.5, expected: "0 or 1" };
        assert_eq!(given(Estimator::PassKTraining { k: 2, eps: 0.0 }), Err(value));
        assert_eq!(given(Estimator::Pkpo { k: 2, baseline: Baseline::None }), Ok(vec![1.0, 1.0, 1.0, 1.0]));
    }

    #[test]
    fn the_bits_do_not_depend_on_threads_or_on_how_groups_lie() {
        let n = crate::threads::PARALLEL_ROWS + 977;
        let rewards: Vec<f64> = (0..n).map(|i| ((i * 7919) % 1009) as f64 * 0.1).collect();
        let runs: Vec<i64> = (0..n as i64).map(|i| i / 16).collect();
        for estimator in ALL {
            let expected = bits(&advantages(&runs, &rewards, estimator, 1));
            for threads in [2, 3, 7] {
                assert_eq!(bits(&advantages(&runs, &rewards, estimator, threads)), expected);
            }
        }
        // Cuts between threads that find no boundary, or only late ones.
        for few in [vec![0; n], (0..n).map(|i| i64::from(i > 9) + i64::from(i + 2 > n)).collect::<Vec<_>>()] {
            for estimator in ALL {
                let expected = bits(&advantages(&few, &rewards, estimator, 1));
                assert_eq!(bits(&advantages(&few, &rewards, estimator, 5)), expected);
            }
        }
        // The same groups, transposed: row r of group g was at 16 g + r and is now at G r + g.
        let groups = n / 16;
        let at = |g: usize, r: usize| 16 * g + r;
        let scattered: Vec<i64> = (0..16 * groups).map(|i| (i % groups) as i64).collect();
        let moved: Vec<f64> = (0..16 * groups).map(|i| rewards[at(i % groups, i / groups)]).collect();
        for estimator in &ALL[..9] {
            let expected = advantages(&runs[..16 * groups], &rewards[..16 * groups], *estimator, 1);
            let given = advantages(&scattered, &moved, *estimator, 2);
            for (i, advantage) in given.iter().enumerate() {
                assert_eq!(advantage.to_bits(), expected[at(i % groups, i / groups)].to_bits());
            }
        }
    }

    #[test]
    fn weights_and_batches() {
        let context = Context::new(1, &|| false);
        let codes = |ids: &[i64]| factorize_integers(ids, &context).unwrap();
        let mut rows = Rows::new(codes(&[0, 1, 2, 3]).into(), vec![1.0, 4.0, 5.0, 5.0], None, &[], false).unwrap();
        let plain = Estimator::GlobalNorm { ddof: 0.0, eps: 0.0, group_baseline: false };
        let steps = codes(&[8, 8, 9, 9]);
        // Step 8: weights 2 and 1, mean 2, variance (2·1 + 1·4) / 3 = 2. Step 9 is constant.
        let given = rows.advantages(plain, &[2.0, 1.0, 1.0, 3.0], Some(&steps), &context).unwrap();
        let root = 2f64.sqrt();
        assert_eq!(given, [-1.0 / root, 2.0 / root, 0.0, 0.0]);
        let given = rows.advantages(plain, &[0.0, 0.0, 1.0, 3.0], Some(&steps), &context);
        assert_eq!(given, Err(CoreError::ZeroWeight { batch: 0 }));
        let given = rows.advantages(plain, &[1.0], None, &context);
        assert_eq!(given, Err(CoreError::Length { column: "response_len", given: 1, expected: 4 }));
    }
}
