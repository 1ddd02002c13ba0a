//! What k attempts at a prompt would give: pass@k without replacement, best@k, worst@k and maj@k with it.
//!
//! Values of attempts and their groups flow in; for each group flow out the mean over draws of k attempts, and the
//! standard deviation between draws. pass@k, best@k and worst@k are exact; maj@k is simulated.

use crate::CoreError;
use crate::keys::Codes;
use crate::members::Members;
use crate::rows::LARGEST;
use crate::threads::{Context, POLL_ROWS, part_size};
use std::ops::Range;

/// A draw of k attempts from each group.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Draws {
    /// The mean over draws; NaN for a group without rows.
    pub mean: Vec<f64>,
    /// The standard deviation between draws.
    pub std: Vec<f64>,
}

impl Draws {
    fn of(groups: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let (mean, std) = groups.into_iter().unzip();
        Self { mean, std }
    }
}

/// The probability that k of n attempts, drawn without replacement, hold one of the c that passed:
/// `1 − C(n − c, k) / C(n, k)` (Chen et al., arXiv:2107.03374, eq. 1). 1 where n − c < k.
///
/// Attempt after attempt: the i-th that passed is among the k with probability `k / (n − i)` if none before it was.
/// All terms are positive, so the result is good to some ulp a term also where it is tiny; n and c are of any size.
#[must_use]
pub fn pass_at_k(attempts: u64, passed: u64, k: u64) -> f64 {
    if passed > 0 && attempts.saturating_sub(passed) < k {
        return 1.0;
    }
    // The formula is the same with c and k exchanged; the smaller of them counts the terms.
    let (few, many) = (passed.min(k), passed.max(k) as f64);
    let mut found = 0.0;
    for i in 0..few {
        found += (1.0 - found) * (many / (attempts - i) as f64);
        if found >= 1.0 {
            return 1.0;
        }
    }
    found
}

/// The probability that none of the k passed, `C(n − c, k) / C(n, k)`: a product of positive terms, good to an ulp a term.
#[must_use]
pub fn fail_at_k(attempts: u64, passed: u64, k: u64) -> f64 {
    if attempts.saturating_sub(passed) < k {
        return 0.0;
    }
    let (few, many) = (passed.min(k), passed.max(k));
    (0..few).map(|i| (attempts - i - many) as f64 / (attempts - i) as f64).product()
}

/// [`pass_at_k`] of every group, from outcomes that are 0 or 1.
///
/// # Errors
/// Columns of different lengths, an outcome that is neither 0 nor 1, or a group with fewer than k attempts.
pub fn pass_of_groups(codes: &Codes, outcomes: &[f64], k: u64) -> Result<Draws, CoreError> {
    check("outcomes", codes, outcomes, "0 or 1", |x| [0.0, 1.0].contains(&x))?;
    let mut counts = vec![[0_u64; 2]; codes.first.len()];
    for (&code, &outcome) in codes.codes.iter().zip(outcomes) {
        counts[code as usize][0] += 1;
        counts[code as usize][1] += u64::from(outcome > 0.5);
    }
    if let Some(group) = counts.iter().position(|counts| counts[0] < k) {
        let (row, attempts) = (codes.first[group] as usize, counts[group][0] as usize);
        return Err(CoreError::TooFewAttempts { group, row, attempts, k });
    }
    Ok(Draws::of(counts.into_iter().map(|[attempts, passed]| {
        let p = pass_at_k(attempts, passed, k);
        (p, (p * (1.0 - p)).sqrt())
    })))
}

/// The greatest of k values drawn with replacement from each group (or the least), exactly: with the group's values
/// sorted, `E = x_n − Σ_{i<n} (i/n)^k (x_{i+1} − x_i)`.
///
/// # Errors
/// Columns of different lengths, a value that is not finite or beyond [`LARGEST`], or interrupted.
pub fn best_of_groups(
    codes: &Codes,
    values: &[f64],
    k: u32,
    worst: bool,
    context: &Context<'_>,
) -> Result<Draws, CoreError> {
    check("values", codes, values, "a finite number of at most 1e150 in size", |x| x.abs() <= LARGEST)?;
    let members = Members::new(codes, values, &[])?;
    let sign = if worst { -1.0 } else { 1.0 };
    let (mut sorted, mut since) = (Vec::new(), POLL_ROWS);
    let groups = members.groups().map(|rows| {
        since += rows.len();
        if since >= POLL_ROWS {
            context.check()?;
            since = 0;
        }
        sorted.clear();
        sorted.extend(members.values[rows].iter().map(|value| sign * value));
        sorted.sort_unstable_by(f64::total_cmp);
        let (mean, std) = greatest(&sorted, k);
        Ok((sign * mean, std))
    });
    Ok(Draws::of(groups.collect::<Result<Vec<_>, CoreError>>()?))
}

fn greatest(sorted: &[f64], k: u32) -> (f64, f64) {
    let n = sorted.len() as f64;
    // The probability that all k are among the first i.
    let below = |i: usize| (i as f64 / n).powi(k as i32);
    let gaps = sorted.windows(2).enumerate().map(|(i, pair)| below(i + 1) * (pair[1] - pair[0]));
    let mean = sorted.last().map_or(f64::NAN, |last| last - gaps.sum::<f64>());
    let squares = sorted.iter().enumerate().map(|(i, x)| (below(i + 1) - below(i)) * (x - mean) * (x - mean));
    (mean, squares.sum::<f64>().sqrt())
}

/// The value of the answer that most of k attempts give, drawn with replacement from each group, over `draws` draws.
///
/// Of answers given equally often the one that was drawn first counts; where attempts with the same answer differ in
/// value, that of the first of them in the draw does. The draws of a group are a hash of the seed and its own rows,
/// so they depend neither on the other groups nor on the number of threads.
///
/// # Errors
/// Columns of different lengths, a value that is not finite or beyond [`LARGEST`], or interrupted.
pub fn majority_of_groups(
    codes: &Codes,
    values: &[f64],
    answers: &Codes,
    (k, draws, seed): (u32, u32, u64),
    context: &Context<'_>,
) -> Result<Draws, CoreError> {
    check("values", codes, values, "a finite number of at most 1e150 in size", |x| x.abs() <= LARGEST)?;
    let members = Members::new(codes, values, &[])?;
    let (given, expected) = (answers.codes.len(), codes.codes.len());
    if given != expected {
        return Err(CoreError::Length { column: "answers", given, expected });
    }
    let groups: Vec<_> = members.groups().collect();
    let work = groups.len().saturating_mul(draws as usize).saturating_mul(k as usize);
    let parts = groups.chunks(part_size(groups.len(), context.threads_for(work, PARALLEL_DRAWS))).collect();
    let found = context.each(parts, |groups| {
        let mut vote = Vote { local: vec![NONE; answers.first.len()], ..Vote::default() };
        groups
            .iter()
            .map(|rows| {
                vote.open(&members, rows.clone(), &answers.codes, seed);
                vote.run(&members.values[rows.clone()], k, draws, context)
            })
            .collect::<Result<Vec<_>, CoreError>>()
    })?;
    Ok(Draws::of(found.into_iter().flatten()))
}

const NONE: u32 = u32::MAX;

/// From that many drawn attempts on, threads are worth their start.
const PARALLEL_DRAWS: usize = 1 << 18;

/// Drawn attempts between two looks at whether the caller wants to stop.
const POLL_DRAWS: usize = 1 << 20;

/// The ballots of one group, and the room to count them in.
#[derive(Default)]
struct Vote {
    local: Vec<u32>,
    answers: Vec<u32>,
    votes: Vec<u32>,
    drawn: Vec<usize>,
    results: Vec<f64>,
    key: u64,
}

impl Vote {
    /// Numbers the group's answers by first appearance and hashes its rows.
    fn open(&mut self, members: &Members<'_>, rows: Range<usize>, answers: &[u32], seed: u64) {
        self.answers.clear();
        self.votes.clear();
        self.key = mix(seed.wrapping_add(STEP));
        for at in rows.clone() {
            let local = &mut self.local[answers[members.rows[at] as usize] as usize];
            if *local == NONE {
                *local = self.votes.len() as u32;
                self.votes.push(0);
            }
            self.answers.push(*local);
            // Adding 0 makes −0 the same value as 0.
            for word in [(members.values[at] + 0.0).to_bits(), u64::from(*local)] {
                self.key = mix((self.key ^ word).wrapping_add(STEP));
            }
        }
        for at in rows {
            self.local[answers[members.rows[at] as usize] as usize] = NONE;
        }
    }

    fn run(&mut self, values: &[f64], k: u32, draws: u32, context: &Context<'_>) -> Result<(f64, f64), CoreError> {
        let (n, mut state, mut since) = (values.len() as u128, self.key, POLL_DRAWS);
        let Some(&first) = values.first() else { return Ok((f64::NAN, f64::NAN)) };
        self.results.clear();
        for _ in 0..draws {
            since += k as usize;
            if since >= POLL_DRAWS {
                context.check()?;
                since = 0;
            }
            self.drawn.clear();
            for _ in 0..k {
                state = state.wrapping_add(STEP);
                let at = ((u128::from(mix(state)) * n) >> 64) as usize;
                self.votes[self.answers[at] as usize] += 1;
                self.drawn.push(at);
            }
            let (mut most, mut value) = (0, first);
            for &at in &self.drawn {
                let votes = self.votes[self.answers[at] as usize];
                if votes > most {
                    (most, value) = (votes, values[at]);
                }
            }
            for &at in &self.drawn {
                self.votes[self.answers[at] as usize] = 0;
            }
            self.results.push(value);
        }
        // Relative to the first result, so that a group of one value has exactly that mean.
        let (start, draws) = (self.results.first().map_or(f64::NAN, |&first| first), f64::from(draws));
        let mean = start + self.results.iter().map(|x| x - start).sum::<f64>() / draws;
        let squares: f64 = self.results.iter().map(|x| (x - mean) * (x - mean)).sum();
        Ok((mean, (squares / draws).sqrt()))
    }
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of `SplitMix64` (Steele, Lea and Flood 2014, 10.1145/2660193.2660195).
fn mix(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

fn check(
    column: &'static str,
    codes: &Codes,
    values: &[f64],
    expected: &'static str,
    fine: impl Fn(f64) -> bool,
) -> Result<(), CoreError> {
    if values.len() != codes.codes.len() {
        return Err(CoreError::Length { column, given: values.len(), expected: codes.codes.len() });
    }
    let bad = values.iter().position(|&value| !fine(value));
    bad.map_or(Ok(()), |row| Err(CoreError::Value { column, row, value: values[row], expected }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one() -> Context<'static> {
        Context::new(1, &|| false)
    }

    fn codes(ids: &[i64]) -> Codes {
        crate::keys::factorize_integers(ids, &one()).unwrap()
    }

    fn binomial(n: u64, k: u64) -> f64 {
        (0..k).fold(1.0, |all, i| all * (n.saturating_sub(i)) as f64 / (i + 1) as f64)
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        let groups = codes(&[7, 7, 8]);
        let value = CoreError::Value { column: "outcomes", row: 1, value: 0.5, expected: "0 or 1" };
        assert_eq!(pass_of_groups(&groups, &[0.0, 0.5, 1.0], 1), Err(value));
        let few = CoreError::TooFewAttempts { group: 1, row: 2, attempts: 1, k: 2 };
        assert_eq!(pass_of_groups(&groups, &[0.0, 1.0, 1.0], 2), Err(few));
        let length = CoreError::Length { column: "values", given: 1, expected: 3 };
        assert_eq!(best_of_groups(&groups, &[0.0], 1, false, &one()), Err(length));
        let length = CoreError::Length { column: "answers", given: 1, expected: 3 };
        assert_eq!(majority_of_groups(&groups, &[0.0; 3], &codes(&[1]), (1, 1, 0), &one()), Err(length));
        assert!(best_of_groups(&groups, &[0.0, f64::NAN, 1.0], 1, false, &one()).is_err());
    }

    #[test]
    fn a_long_call_can_be_stopped() {
        let (groups, stop) = (codes(&[1, 1]), Context::new(1, &|| true));
        let stopped = majority_of_groups(&groups, &[0.0, 1.0], &groups, (2, 10, 0), &stop);
        assert_eq!(stopped, Err(CoreError::Interrupted));
        assert_eq!(best_of_groups(&groups, &[0.0, 1.0], 2, false, &stop), Err(CoreError::Interrupted));
    }

    #[test]
    fn no_count_is_too_large() {
        assert_eq!(pass_at_k(u64::MAX, u64::MAX, u64::MAX), 1.0);
        assert_eq!(pass_at_k(1, 0, 5), 0.0);
        assert_eq!(pass_at_k(0, 3, 5), 1.0);
    }

    proptest! {
        #[test]
        fn pass_at_k_is_the_closed_form(n in 1..60_u64, c in 0..60_u64, k in 1..60_u64) {
            let (c, k) = (c.min(n), k.min(n));
            let expected = 1.0 - binomial(n - c, k) / binomial(n, k);
            prop_assert!((pass_at_k(n, c, k) - expected).abs() < 1e-13);
            prop_assert!(pass_at_k(n, c, k) <= pass_at_k(n, c, (k + 1).min(n)));
        }

        #[test]
        fn best_of_one_is_the_mean(values in prop::collection::vec(-1e3..1e3, 1..20)) {
            let groups = codes(&vec![0; values.len()]);
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            for worst in [false, true] {
                let draws = best_of_groups(&groups, &values, 1, worst, &one()).unwrap();
                prop_assert!((draws.mean[0] - mean).abs() < 1e-10);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn threads_do_not_change_the_draws(
            rows in prop::collection::vec((0..40_i64, 0..3_i64, -1..2_i32), 1..200), seed: u64, threads in 2..5_usize,
        ) {
            let groups = codes(&rows.iter().map(|row| row.0).collect::<Vec<_>>());
            let answers = codes(&rows.iter().map(|row| row.1).collect::<Vec<_>>());
            let values: Vec<f64> = rows.iter().map(|row| f64::from(row.2)).collect();
            // Enough draws for the threads to be used.
            let draws = (PARALLEL_DRAWS / groups.first.len() / 8) as u32 + 1;
            let run = |threads| {
                majority_of_groups(&groups, &values, &answers, (8, draws, seed), &Context::new(threads, &|| false))
            };
            prop_assert_eq!(run(1), run(threads));
        }
    }
}
