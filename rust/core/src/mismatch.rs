//! How far the trainer's policy is from the sampler's: what the log ratios d, the trainer's log-probs less the
//! sampler's, amount to, per token and per sequence, in one pass.
//!
//! Sequences of log-probs flow in, statistics that merge flow out: of all sequences, and of each group of them. Sums
//! are taken in f32 over the lanes of a block of 1,024 live tokens and in f64 over blocks and sequences, in their
//! order; everything else is counted or compared. So the bits depend neither on the number of threads nor on what
//! lies between live tokens.

mod pass;

use crate::log_ratios::{BINS, Logp, Sums, bin};
pub use pass::measure;
use std::ops::Range;

/// How many of the smallest and of the largest log ratios are kept.
pub const EXTREMES: usize = 5;

/// The log-probs of sequences that lie one after another.
#[derive(Clone, Copy)]
pub struct Sequences<'a, L> {
    /// The trainer's at each place.
    pub old: &'a [L],
    /// The sampler's at each place.
    pub rollout: &'a [L],
    /// The places that live; all of them where there is no mask.
    pub mask: Option<&'a [bool]>,
    /// Where each sequence starts, and where the last one ends.
    pub starts: &'a [i64],
}

/// What a rule's bounds are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// d of each token.
    Token,
    /// Σ d of a sequence.
    Sequence,
    /// The mean d of a sequence.
    Geometric,
    /// Each d of a sequence, which is outside as a whole if one of them is.
    Worst,
}

/// Bounds of log ratios, inclusive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// What is compared.
    pub level: Level,
    /// The lowest that is inside; those of tokens are rounded to f32.
    pub low: f64,
    /// The highest that is inside.
    pub high: f64,
}

/// A group for each sequence.
#[derive(Clone, Copy)]
pub struct Grouping<'a> {
    /// The group of each sequence.
    pub codes: &'a [u32],
    /// How many groups there are.
    pub groups: usize,
}

/// A log ratio and where it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extreme {
    /// The number of the sequence.
    pub sequence: usize,
    /// The place in it, places that do not live included; 0 for a sequence's own log ratio.
    pub place: usize,
    /// d, or Σ d.
    pub log_ratio: f64,
}

/// The statistics of some sequences. What has a log ratio that is NaN or infinite is counted and left out: the token
/// of all sums over tokens, its sequence of all that is per sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Mismatch {
    /// Live tokens whose d is finite.
    pub tokens: u64,
    /// Sequences with a live token, and none whose d is not finite.
    pub sequences: u64,
    /// Live tokens whose d is not finite.
    pub not_finite: u64,
    /// Sequences with such a token.
    pub sequences_not_finite: u64,
    /// The first such token, as sequence and place.
    pub first_not_finite: Option<(usize, usize)>,
    /// Sums over the tokens.
    pub sums: Sums,
    /// log Σ e^S over the sequences, where S is a sequence's Σ d; −inf without any.
    pub log_weights: f64,
    /// log Σ e^2S.
    pub log_squares: f64,
    /// For each rule the tokens and the sequences outside.
    pub outside: Vec<[u64; 2]>,
    /// Tokens by the bin of d.
    pub token_bins: Vec<u64>,
    /// Sequences by the bin of their mean d.
    pub sequence_bins: Vec<u64>,
    /// The smallest and the largest mean d of a sequence; +inf and −inf without any.
    pub means: [f64; 2],
    /// The smallest and the largest d, then the smallest and the largest S, the most extreme first.
    pub extremes: [Vec<Extreme>; 4],
}

/// What was found of a sequence.
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    tokens: u64,
    not_finite: u64,
    first: usize,
    sums: Sums,
}

impl Found {
    /// Whether it is part of what is per sequence.
    fn counts(&self) -> bool {
        self.tokens > 0 && self.not_finite == 0
    }
}

/// Puts a log ratio among the most extreme, those of largest sign · d; of equal ones the first in the batch.
fn insert(kept: &mut Vec<Extreme>, extreme: Extreme, sign: f64) {
    let key = |one: &Extreme| (-sign * one.log_ratio, one.sequence, one.place);
    let at = kept.partition_point(|one| key(one) < key(&extreme));
    if at < EXTREMES {
        kept.truncate(EXTREMES - 1);
        kept.insert(at, extreme);
    }
}

impl Mismatch {
    /// Nothing but a histogram of tokens and their extremes.
    fn start(mut token_bins: Vec<u64>, lowest: Vec<Extreme>, highest: Vec<Extreme>, rules: usize) -> Self {
        token_bins.resize(BINS, 0);
        Self {
            tokens: 0,
            sequences: 0,
            not_finite: 0,
            sequences_not_finite: 0,
            first_not_finite: None,
            sums: Sums::default(),
            log_weights: f64::NEG_INFINITY,
            log_squares: f64::NEG_INFINITY,
            outside: vec![[0; 2]; rules],
            token_bins,
            sequence_bins: vec![0; BINS],
            means: [f64::INFINITY, f64::NEG_INFINITY],
            extremes: [lowest, highest, Vec::new(), Vec::new()],
        }
    }

    /// Adds what was found of a sequence, but for its weight.
    fn add(&mut self, sequence: usize, found: &Found, rules: &[Rule], outside: &[u64]) {
        self.tokens += found.tokens;
        self.not_finite += found.not_finite;
        self.sums.add(&found.sums);
        if found.not_finite > 0 {
            self.sequences_not_finite += 1;
            self.first_not_finite = self.first_not_finite.or(Some((sequence, found.first)));
        }
        let (total, mean) = (found.sums.log_ratio, found.sums.log_ratio / found.tokens as f64);
        for ((counts, rule), &tokens) in self.outside.iter_mut().zip(rules).zip(outside) {
            let beyond = |x: f64| x < rule.low || x > rule.high;
            let out = match rule.level {
                Level::Token | Level::Worst => tokens > 0,
                Level::Sequence => found.counts() && beyond(total),
                Level::Geometric => found.counts() && beyond(mean),
            };
            counts[0] += if rule.level == Level::Token { tokens } else { found.tokens * u64::from(out) };
            counts[1] += u64::from(out && found.counts());
        }
        if found.counts() {
            self.sequences += 1;
            self.sequence_bins[bin(mean as f32)] += 1;
            self.means = [self.means[0].min(mean), self.means[1].max(mean)];
            let extreme = Extreme { sequence, place: 0, log_ratio: total };
            insert(&mut self.extremes[2], extreme, -1.0);
            insert(&mut self.extremes[3], extreme, 1.0);
        }
    }

    /// Turns places that are counted over live tokens into places of the sequence.
    fn find_places<L: Logp>(&mut self, sequences: Sequences<'_, L>, ranges: &[Range<usize>]) {
        let Some(mask) = sequences.mask else { return };
        let place = |sequence: usize, live: usize| {
            let mut places = mask[ranges[sequence].clone()].iter().enumerate().filter(|pair| *pair.1);
            places.nth(live).map_or(live, |pair| pair.0)
        };
        for extreme in self.extremes[..2].iter_mut().flatten() {
            extreme.place = place(extreme.sequence, extreme.place);
        }
        if let Some((sequence, live)) = &mut self.first_not_finite {
            *live = place(*sequence, *live);
        }
    }
}
