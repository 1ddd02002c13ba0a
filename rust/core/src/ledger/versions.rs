//! The policy versions of one rollout's tokens, and statistics of how far they lag behind the trainer.

use super::{LARGEST, LedgerError};
use std::collections::BTreeMap;

/// The versions of one rollout's tokens: weights may have been updated while it was generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    oldest: u64,
    newest: u64,
    tokens: u64,
    /// Σ over tokens of (version − oldest).
    beyond: u128,
}

impl Versions {
    /// All tokens of one version, nobody knows how many.
    #[must_use]
    pub fn all_of(version: u64) -> Self {
        Self { oldest: version, newest: version, tokens: 0, beyond: 0 }
    }

    /// From (version, tokens) of each span, in any order; spans without tokens do not count.
    ///
    /// # Errors
    /// A version or a number of tokens that cannot be meant, or no token at all.
    pub fn of_spans(spans: impl IntoIterator<Item = (i64, i64)>) -> Result<Self, LedgerError> {
        let (mut oldest, mut newest, mut tokens, mut sum) = (u64::MAX, 0, 0_u64, 0_u128);
        for (place, (version, count)) in spans.into_iter().enumerate() {
            let known = u64::try_from(version).ok().filter(|&version| version < LARGEST);
            let known = known.ok_or(LedgerError::BadVersion { place, given: version })?;
            let counted = u64::try_from(count).ok().and_then(|count| tokens.checked_add(count));
            let counted = counted.filter(|&counted| counted < LARGEST);
            let counted = counted.ok_or(LedgerError::BadTokens { place, given: count })?;
            if counted > tokens {
                (oldest, newest) = (oldest.min(known), newest.max(known));
                sum += u128::from(known) * u128::from(counted - tokens);
                tokens = counted;
            }
        }
        if tokens == 0 {
            return Err(LedgerError::NoTokens);
        }
        Ok(Self { oldest, newest, tokens, beyond: sum - u128::from(oldest) * u128::from(tokens) })
    }

    /// From parts that were written down; [`Self::is_sound`] says whether they can be right.
    pub(super) fn of_parts(oldest: u64, newest: u64, tokens: u64, beyond: u128) -> Self {
        Self { oldest, newest, tokens, beyond }
    }

    pub(super) fn parts(&self) -> (u64, u64, u64, u128) {
        (self.oldest, self.newest, self.tokens, self.beyond)
    }

    /// Whether some tokens could have these versions.
    pub(super) fn is_sound(&self) -> bool {
        if self.oldest > self.newest || self.newest >= LARGEST || self.tokens >= LARGEST {
            return false;
        }
        let spread = u128::from(self.newest - self.oldest);
        match self.tokens {
            0 | 1 => spread == 0 && self.beyond == 0,
            // One token is of the newest version and one of the oldest.
            tokens => spread <= self.beyond && self.beyond <= spread * u128::from(tokens - 1),
        }
    }

    /// The version of the oldest token.
    #[must_use]
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// The version of the newest token.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// How many tokens there are; 0 where nobody counted them.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The mean version of the tokens.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.oldest as f64 + self.beyond as f64 / self.tokens.max(1) as f64
    }

    /// How far the oldest token lies behind a version, 0 where it does not.
    #[must_use]
    pub fn lag(&self, version: u64) -> u64 {
        version.saturating_sub(self.oldest)
    }
}

/// Lags of some rollouts: versions between their oldest token and the trainer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LagStatistics {
    /// Rollouts.
    pub rollouts: u64,
    /// Those whose versions are not known; they are in nothing that follows.
    pub unknown: u64,
    /// How many rollouts have each lag.
    pub histogram: BTreeMap<u64, u64>,
    /// The mean over rollouts; None without any.
    pub mean: Option<f64>,
    /// The tokens of those rollouts whose tokens were counted.
    pub tokens: u64,
    /// The mean over these tokens, each with its own version; None without any.
    pub token_mean: Option<f64>,
}

impl LagStatistics {
    /// From the versions of each rollout and the version that it trains.
    #[must_use]
    pub fn of(rollouts: impl IntoIterator<Item = (Option<Versions>, u64)>) -> Self {
        let mut all = Self::default();
        let (mut sum, mut tokens, mut token_sum) = (0_u128, 0_u128, 0_u128);
        for (versions, trains) in rollouts {
            all.rollouts += 1;
            let Some(versions) = versions else {
                all.unknown += 1;
                continue;
            };
            let lag = versions.lag(trains);
            *all.histogram.entry(lag).or_default() += 1;
            sum += u128::from(lag);
            tokens += u128::from(versions.tokens);
            let whole = u128::from(lag) * u128::from(versions.tokens);
            token_sum = token_sum.saturating_add(whole.saturating_sub(versions.beyond));
        }
        let known = all.rollouts - all.unknown;
        all.mean = (known > 0).then(|| sum as f64 / known as f64);
        all.tokens = u64::try_from(tokens).unwrap_or(u64::MAX);
        all.token_mean = (tokens > 0).then(|| token_sum as f64 / tokens as f64);
        all
    }

    /// The smallest lag; None without any.
    #[must_use]
    pub fn min(&self) -> Option<u64> {
        self.histogram.keys().next().copied()
    }

    /// The largest lag; None without any.
    #[must_use]
    pub fn max(&self) -> Option<u64> {
        self.histogram.keys().next_back().copied()
    }
}
