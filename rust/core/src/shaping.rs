//! Stage 1, shape: what is added to a reward because of the answer's length.

use crate::CoreError;

/// DAPO's soft overlong punishment (arXiv:2503.14476, eq. 13), added to `shaped` in place:
/// 0 up to `max_len - cache` tokens, then `((max_len - cache) - |y|) / cache`, and −1 beyond `max_len`.
/// With `cache` 0 it is a step at `max_len`.
///
/// # Errors
/// Columns of different lengths, or a negative length.
pub fn overlong<L: Copy + Into<i64>>(
    lengths: &[L],
    max_len: i64,
    cache: i64,
    shaped: &mut [f64],
) -> Result<(), CoreError> {
    if lengths.len() != shaped.len() {
        return Err(CoreError::Length { column: "response_len", given: lengths.len(), expected: shaped.len() });
    }
    check_lengths(lengths)?;
    let (free, width) = (max_len.saturating_sub(cache), cache as f64);
    for (reward, &length) in shaped.iter_mut().zip(lengths) {
        let length: i64 = length.into();
        *reward += if cache > 0 {
            // True division: a reciprocal would change the bits.
            ((free.saturating_sub(length)) as f64 / width).clamp(-1.0, 0.0)
        } else if length > max_len {
            -1.0
        } else {
            0.0
        };
    }
    Ok(())
}

/// # Errors
/// [`CoreError::NegativeLength`] with the first such row.
pub fn check_lengths<L: Copy + Into<i64>>(lengths: &[L]) -> Result<(), CoreError> {
    if lengths.iter().fold(0, |all, &length| all | length.into()) >= 0 {
        return Ok(());
    }
    let found = lengths.iter().map(|&length| length.into()).enumerate().find(|&(_, length)| length < 0);
    found.map_or(Ok(()), |(row, value)| Err(CoreError::NegativeLength { row, value }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equation_13_exactly() {
        let lengths = [0, 16384, 16385, 18432, 20480, 20481, i64::MAX];
        let mut shaped = [0.0; 7];
        overlong(&lengths, 20480, 4096, &mut shaped).unwrap();
        assert_eq!(shaped, [0.0, 0.0, -1.0 / 4096.0, -0.5, -1.0, -1.0, -1.0]);
        let mut step = [0.0; 3];
        overlong(&[19, 20, 21], 20, 0, &mut step).unwrap();
        assert_eq!(step, [0.0, 0.0, -1.0]);
    }

    #[test]
    fn bad_lengths_are_named() {
        let given = overlong(&[3, -4, -5], 10, 2, &mut [0.0; 3]);
        assert_eq!(given, Err(CoreError::NegativeLength { row: 1, value: -4 }));
        let given = overlong(&[3], 10, 2, &mut [0.0; 2]);
        assert_eq!(given, Err(CoreError::Length { column: "response_len", given: 1, expected: 2 }));
    }

    proptest! {
        #[test]
        fn between_minus_one_and_zero_and_falling(max_len in 0..100i64, cache in 0..100i64, length in 0..300i64) {
            let mut shaped = [0.0; 2];
            overlong(&[length, length + 1], max_len, cache.min(max_len), &mut shaped).unwrap();
            prop_assert!(-1.0 <= shaped[1] && shaped[1] <= shaped[0] && shaped[0] <= 0.0);
        }
    }
}
