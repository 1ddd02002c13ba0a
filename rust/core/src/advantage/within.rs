//! Estimators that look at a group's rewards one by one: functions of one group's rewards, in the order of its rows.
//!
//! A reward that occurs twice gets the same advantage twice, to the bit.

use crate::attempts::fail_at_k;
use std::cmp::Ordering;

/// `R − V`, `V = β log mean exp(R / β)`: OAPL's soft value (arXiv:2602.19362, eq. 2).
pub fn soft_value(rewards: &[f64], beta: f64, advantages: &mut Vec<f64>) {
    let most = rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // expm1 and log1p, since for a large β the exponentials are all but 1.
    let below = rewards.iter().map(|reward| ((reward - most) / beta).exp_m1()).sum::<f64>() / rewards.len() as f64;
    let value = most + beta * below.ln_1p();
    advantages.extend(rewards.iter().map(|reward| reward - value));
}

/// `R − Σ L R / Σ L`, L the answers' lengths: OPO's baseline (arXiv:2505.23585). Exactly 0 where all rewards are equal.
pub fn length_baseline(rewards: &[f64], lengths: impl Iterator<Item = f64> + Clone, advantages: &mut Vec<f64>) {
    let Some(&first) = rewards.first() else { return };
    // Relative to the first reward, so that equal ones leave no rounding.
    let total: f64 = lengths.clone().sum();
    let above: f64 = rewards.iter().zip(lengths).map(|(reward, length)| length * (reward - first)).sum();
    let baseline = if total > 0.0 { first + above / total } else { first };
    advantages.extend(rewards.iter().map(|reward| reward - baseline));
}

/// The advantage that makes the gradient that of pass@k (arXiv:2508.10751), for rewards that are 0 or 1:
/// `(1 − ρ) / (σ + eps)` for those that passed, `(1 − ρ − C(n−c−1, k−1) / C(n−1, k−1)) / (σ + eps)` for the others,
/// with `ρ = 1 − C(n−c, k) / C(n, k)` and `σ = sqrt(ρ (1 − ρ))`.
pub fn pass_k_training(rewards: &[f64], k: u64, eps: f64, advantages: &mut Vec<f64>) {
    let n = rewards.len() as u64;
    let passed = rewards.iter().filter(|&&reward| reward > 0.5).count() as u64;
    let failure = fail_at_k(n, passed, k);
    let spread = ((1.0 - failure) * failure).sqrt() + eps;
    let (right, wrong) = if spread > 0.0 {
        // 1 − ρ = (n − c) / n · C(n−c−1, k−1) / C(n−1, k−1), so the difference for the wrong ones is a product.
        let others = if passed < n { fail_at_k(n - 1, passed, k - 1) } else { 0.0 };
        (failure / spread, -(passed as f64 / n as f64) * others / spread)
    } else {
        (0.0, 0.0)
    };
    // + 0.0 turns −0 into 0.
    advantages.extend(rewards.iter().map(|&reward| if reward > 0.5 { right } else { wrong + 0.0 }));
}

/// Of the best answer of a group what it is better than the second best, over `spread`; 0 for all others, and for all
/// where two are best (arXiv:2503.19595).
pub fn pass_k_argmax(rewards: &[f64], spread: f64, advantages: &mut Vec<f64>) {
    let best = rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let second = rewards.iter().copied().filter(|&reward| reward < best).fold(f64::NEG_INFINITY, f64::max);
    let alone = rewards.iter().filter(|&&reward| reward >= best).count() == 1 && second > f64::NEG_INFINITY;
    let advantage = if alone && spread > 0.0 { (best - second) / spread } else { 0.0 };
    advantages.extend(rewards.iter().map(|&reward| if reward >= best { advantage } else { 0.0 }));
}

/// What is taken off PKPO's transformed reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Baseline {
    /// Nothing.
    None,
    /// The best of k of the other n − 1; needs k < n.
    LeaveOneOut,
    /// The best of the other k − 1 of each subset; needs k > 1.
    LeaveOneOutOfSubset,
}

/// PKPO (arXiv:2505.15201): `s_i = Σ_{S ∋ i, |S| = k} max_S R / C(n, k)`, less a baseline (eqs. 19, 29, 33).
///
/// With the rewards ascending, position i from 1: `C(n, k) s_i = C(i−1, k−1) R_i + Σ_{j>i} C(j−2, k−2) R_j`; less the best
/// of the others of each subset it is `Σ_{j<i} C(j, k−1) (R_{j+1} − R_j)`, in which nothing cancels.
pub fn pkpo(rewards: &[f64], k: u64, baseline: Baseline, advantages: &mut Vec<f64>) {
    let (n, k) = (rewards.len(), k as usize);
    if n == 0 {
        return;
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| rewards[a].total_cmp(&rewards[b]));
    let mut sorted = vec![0.0; n];
    if baseline == Baseline::LeaveOneOutOfSubset {
        // C(j, k−1) / C(n, k) for j = n − 1 down to 1; the next lower is (j − k + 1) / j of it.
        let mut share = vec![0.0; n];
        let mut weight = k as f64 / n as f64;
        for j in (1..n).rev() {
            share[j] = weight;
            weight *= (j + 1).saturating_sub(k) as f64 / j as f64;
        }
        for j in 1..n {
            sorted[j] = sorted[j - 1] + share[j] * (rewards[order[j]] - rewards[order[j - 1]]);
        }
    } else {
        let (mut own, mut above, mut tail) = (k as f64 / n as f64, 0.0, 0.0);
        for i in (1..=n).rev() {
            sorted[i - 1] = own * rewards[order[i - 1]] + tail;
            // C(j−2, k−2) / C(n, k): k (k − 1) / (n (n − 1)) for j = n, (j − k + 1) / (j − 1) of the next higher below.
            above = match i {
                _ if i == n && n > 1 => own * (k - 1) as f64 / (n - 1) as f64,
                _ if i > 1 => above * (i + 1).saturating_sub(k) as f64 / (i - 1) as f64,
                _ => 0.0,
            };
            tail += above * rewards[order[i - 1]];
            own *= i.saturating_sub(k) as f64 / (i.max(2) - 1) as f64;
        }
        if baseline == Baseline::LeaveOneOut {
            // Every subset is with or without i: max@k of the others is n / (n − k) · (max@k − s_i).
            let best: f64 = sorted.iter().sum::<f64>() / k as f64;
            let factor = k as f64 / (n - 1) as f64 * (n as f64 / (n - k) as f64);
            for s in &mut sorted {
                *s -= factor * (best - *s);
            }
        }
    }
    let start = advantages.len();
    advantages.resize(start + n, 0.0);
    for at in 0..n {
        let same = at > 0 && rewards[order[at]].partial_cmp(&rewards[order[at - 1]]).is_some_and(Ordering::is_eq);
        advantages[start + order[at]] = if same { advantages[start + order[at - 1]] } else { sorted[at] + 0.0 };
    }
}
