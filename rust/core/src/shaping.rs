//! Stage 1, shape: what is added to a reward because of the answer's length.

use crate::CoreError;

/// A column of numbers of tokens.
pub trait Length: Copy + Into<i64> + Sync {
    /// As f64: exact below 2^53, and above it so far beyond any limit that it does not matter.
    fn as_f64(self) -> f64;
}

impl Length for i64 {
    #[inline]
    fn as_f64(self) -> f64 {
        self as f64
    }
}

impl Length for i32 {
    #[inline]
    fn as_f64(self) -> f64 {
        f64::from(self)
    }
}

/// DAPO's soft overlong punishment (arXiv:2503.14476, eq. 13), added to the rewards:
/// 0 up to `max_len - cache` tokens, then `((max_len - cache) - |y|) / cache`, and −1 beyond `max_len`.
/// With `cache` 0 it is a step at `max_len`.
///
/// # Errors
/// Columns of different lengths, or a negative length.
pub fn overlong<L: Length>(rewards: &[f64], lengths: &[L], max_len: u64, cache: u64) -> Result<Vec<f64>, CoreError> {
    if lengths.len() != rewards.len() {
        return Err(CoreError::Length { column: "response_len", given: lengths.len(), expected: rewards.len() });
    }
    check_lengths("response_len", lengths)?;
    let (limit, width) = (max_len as f64, cache as f64);
    let free = limit - width;
    let rows = rewards.iter().zip(lengths);
    if cache == 0 {
        return Ok(rows
            .map(|(&reward, &length)| if length.as_f64() > limit { reward - 1.0 } else { reward })
            .collect());
    }
    // True division: a reciprocal would change the bits.
    let ramp = |length: f64| (free - length) / width;
    let shaped = |(&reward, &length): (&f64, &L)| {
        let x = ramp(length.as_f64());
        let x = if x > 0.0 { 0.0 } else { x };
        reward + if x < -1.0 { -1.0 } else { x }
    };
    Ok(rows.map(shaped).collect())
}

/// # Errors
/// [`CoreError::NegativeLength`] with the first such row.
pub fn check_lengths<L: Length>(column: &'static str, lengths: &[L]) -> Result<(), CoreError> {
    // One OR finds a sign bit without a branch a row.
    if lengths.iter().fold(0, |all, &length| all | length.into()) >= 0 {
        return Ok(());
    }
    let found = lengths.iter().map(|&length| length.into()).enumerate().find(|&(_, length)| length < 0);
    found.map_or(Ok(()), |(row, value)| Err(CoreError::NegativeLength { column, row, value }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equation_13_exactly() {
        let lengths = [0, 16384, 16385, 18432, 20480, 20481, i64::MAX];
        let shaped = overlong(&[0.0; 7], &lengths, 20480, 4096).unwrap();
        assert_eq!(shaped, [0.0, 0.0, -1.0 / 4096.0, -0.5, -1.0, -1.0, -1.0]);
        assert_eq!(overlong(&[0.5; 3], &[19, 20, 21], 20, 0).unwrap(), [0.5, 0.5, -0.5]);
    }

    #[test]
    fn bad_lengths_are_named() {
        let given = overlong(&[0.0; 3], &[3, -4, -5], 10, 2);
        assert_eq!(given, Err(CoreError::NegativeLength { column: "response_len", row: 1, value: -4 }));
        let given = overlong(&[0.0; 2], &[3], 10, 2);
        assert_eq!(given, Err(CoreError::Length { column: "response_len", given: 1, expected: 2 }));
    }

    proptest! {
        #[test]
        fn between_minus_one_and_zero_and_falling(max_len in 0..100u64, cache in 0..100u64, length in 0..300i64) {
            let shaped = overlong(&[0.0; 2], &[length, length + 1], max_len, cache.min(max_len)).unwrap();
            prop_assert!(-1.0 <= shaped[1] && shaped[1] <= shaped[0] && shaped[0] <= 0.0);
            let narrow = [length as i32, length as i32 + 1];
            prop_assert_eq!(overlong(&[0.0; 2], &narrow, max_len, cache.min(max_len)).unwrap(), shaped);
        }
    }
}
