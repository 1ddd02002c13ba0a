//! Quantiles of any number of values in little memory, that merge.
//!
//! The idea is `DDSketch`'s (Masson, Rim and Lee, arXiv:1908.10693): buckets whose width is proportional to their
//! place. Here a bucket is a sign, an exponent and the leading bits of a mantissa, so no logarithm is taken and
//! nothing depends on the machine. All that a sketch holds are counts, exact sums and extremes; merging two sketches
//! therefore gives, to the bit, the sketch of all their values, in whatever order.

use crate::CoreError;
use crate::threads::{Context, POLL_ROWS};

/// The smallest relative error that can be asked for: 512 buckets for each power of two.
pub const FINEST: f64 = 1e-3;

/// The largest relative error that can be asked for: 2 buckets for each power of two.
pub const COARSEST: f64 = 0.3;

const MANTISSA: u32 = f64::MANTISSA_DIGITS - 1;
/// Exponents of finite numbers, as their bits have them.
const EXPONENTS: usize = 2047;

/// Counts of values by bucket, their exact sums, the smallest and the largest.
#[derive(Debug, Clone, PartialEq)]
pub struct Sketch {
    relative_error: f64,
    bits: u32,
    zeros: u64,
    min: f64,
    max: f64,
    positive: Side,
    negative: Side,
}

/// The values of one sign: octaves of `1 << bits` buckets, from the smallest exponent that occurs to the largest.
#[derive(Debug, Clone, Default, PartialEq)]
struct Side {
    first: usize,
    counts: Vec<u64>,
    /// For each octave, the sum of the mantissas as whole numbers: below 2^117.
    sums: Vec<u128>,
}

impl Sketch {
    /// An empty sketch; `relative_error` is brought between [`FINEST`] and [`COARSEST`].
    #[must_use]
    pub fn new(relative_error: f64) -> Self {
        let relative_error = if relative_error > FINEST { relative_error.min(COARSEST) } else { FINEST };
        // Of a bucket from l to u, 2lu / (l + u) is at most (u - l) / (u + l) away, which is 1 / (2^(bits + 1) + 1) at
        // the start of an octave and less behind it.
        let fine = |bits: &u32| relative_error * f64::from((2 << bits) + 1) >= 1.0;
        let bits = (1..9).find(fine).unwrap_or(9);
        let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
        Self { relative_error, bits, zeros: 0, min, max, positive: Side::default(), negative: Side::default() }
    }

    /// The relative error that was asked for.
    #[must_use]
    pub fn relative_error(&self) -> f64 {
        self.relative_error
    }

    /// How many values were added.
    #[must_use]
    pub fn count(&self) -> u64 {
        let sides = [&self.positive, &self.negative].map(|side| side.counts.iter().fold(0, |n, &c| add(n, c)));
        add(self.zeros, add(sides[0], sides[1]))
    }

    /// The smallest value, +inf where there is none.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.min
    }

    /// The largest value, −inf where there is none.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.max
    }

    /// The mean, from exact sums; NaN where there is no value.
    #[must_use]
    pub fn mean(&self) -> f64 {
        let count = self.count();
        if count == 0 {
            return f64::NAN;
        }
        (self.positive.mean(count) - self.negative.mean(count)).clamp(self.min, self.max)
    }

    /// Adds values. Those below the smallest normal number (2.3e-308) in size keep no relative error.
    ///
    /// # Errors
    /// A value that is not finite (then none is added), or interrupted (then some are).
    pub fn add(&mut self, values: &[f64], context: &Context<'_>) -> Result<(), CoreError> {
        if !values.iter().fold(true, |fine, x| fine & x.is_finite()) {
            let row = values.iter().position(|x| !x.is_finite()).unwrap_or(0);
            return Err(CoreError::Value { column: "values", row, value: values[row], expected: "a finite number" });
        }
        for values in values.chunks(POLL_ROWS) {
            context.check()?;
            for &value in values {
                let size = value.abs().to_bits();
                if size == 0 {
                    self.zeros = add(self.zeros, 1);
                } else if value > 0.0 {
                    self.positive.add(size, self.bits);
                } else {
                    self.negative.add(size, self.bits);
                }
            }
            // Adding 0 makes −0 the same value as 0.
            self.min = values.iter().fold(self.min, |min, &x| if x < min { x + 0.0 } else { min });
            self.max = values.iter().fold(self.max, |max, &x| if x > max { x + 0.0 } else { max });
        }
        Ok(())
    }

    /// Adds all that another sketch holds.
    ///
    /// # Errors
    /// A sketch of another relative error.
    pub fn merge(&mut self, other: &Self) -> Result<(), CoreError> {
        let (given, expected) = (other.relative_error, self.relative_error);
        if given.to_bits() != expected.to_bits() {
            return Err(CoreError::SketchError { given, expected });
        }
        self.zeros = add(self.zeros, other.zeros);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.positive.merge(&other.positive, self.bits);
        self.negative.merge(&other.negative, self.bits);
        Ok(())
    }

    /// The value at rank ⌊q·(n − 1)⌋ of the sorted values, within the relative error; exact for q of 0 and 1. NaN
    /// where there is no value or q is not between 0 and 1.
    #[must_use]
    pub fn quantile(&self, q: f64) -> f64 {
        let count = self.count();
        if count == 0 || !(0.0..=1.0).contains(&q) {
            return f64::NAN;
        }
        let rank = (q * (count - 1) as f64).floor() as u64;
        if rank == 0 || rank >= count - 1 {
            return if rank == 0 { self.min } else { self.max };
        }
        let mut below = 0;
        let mut buckets = self.buckets();
        let found = buckets.find(|bucket| {
            below = add(below, bucket.1);
            below > rank
        });
        found.map_or(self.max, |bucket| bucket.0).clamp(self.min, self.max)
    }

    /// A value for each bucket and its count, in rising order.
    fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let below = self.negative.buckets(self.bits).rev().map(|(value, count)| (-value, count));
        below.chain(std::iter::once((0.0, self.zeros))).chain(self.positive.buckets(self.bits))
    }
}

/// Counts end at 2^64 − 1 rather than begin anew.
fn add(a: u64, b: u64) -> u64 {
    a.saturating_add(b)
}

impl Side {
    #[inline]
    fn add(&mut self, size: u64, bits: u32) {
        let exponent = (size >> MANTISSA) as usize;
        // Below the first octave the difference wraps around, and is too large as well.
        if exponent.wrapping_sub(self.first) >= self.sums.len() {
            self.cover(exponent, exponent, bits);
        }
        let count = &mut self.counts[(size >> (MANTISSA - bits)) as usize - (self.first << bits)];
        *count = add(*count, 1);
        self.sums[exponent - self.first] += u128::from(mantissa(size));
    }

    /// Makes room for the octaves from `first` to `last`, and no more.
    #[cold]
    fn cover(&mut self, first: usize, last: usize, bits: u32) {
        let (mut low, mut high) = (first, last);
        if !self.sums.is_empty() {
            low = low.min(self.first);
            high = high.max(self.first + self.sums.len() - 1);
        }
        let old = std::mem::take(self);
        *self = Self { first: low, counts: vec![0; (high - low + 1) << bits], sums: vec![0; high - low + 1] };
        self.put(&old, bits);
    }

    fn merge(&mut self, other: &Self, bits: u32) {
        if !other.sums.is_empty() {
            self.cover(other.first, other.first + other.sums.len() - 1, bits);
            self.put(other, bits);
        }
    }

    fn put(&mut self, other: &Self, bits: u32) {
        let at = other.first.saturating_sub(self.first);
        for (mine, &theirs) in self.counts.iter_mut().skip(at << bits).zip(&other.counts) {
            *mine = add(*mine, theirs);
        }
        for (mine, &theirs) in self.sums.iter_mut().skip(at).zip(&other.sums) {
            *mine = mine.saturating_add(theirs);
        }
    }

    /// The values' sum over `count`, octave by octave, so that it cannot overflow where the mean does not.
    fn mean(&self, count: u64) -> f64 {
        let octave = |(exponent, &sum): (usize, &u128)| sum as f64 / count as f64 * unit(exponent);
        (self.first..).zip(&self.sums).map(octave).sum()
    }

    fn buckets(&self, bits: u32) -> impl DoubleEndedIterator<Item = (f64, u64)> {
        let edge = move |bucket: usize| f64::from_bits((bucket as u64) << (MANTISSA - bits)).min(f64::MAX);
        self.counts.iter().enumerate().map(move |(i, &count)| {
            let bucket = (self.first << bits) + i;
            let (lower, upper) = (edge(bucket), edge(bucket + 1));
            (lower / (0.5 + 0.5 * (lower / upper)), count)
        })
    }
}

/// The mantissa of a number of this size as a whole number.
#[inline]
fn mantissa(size: u64) -> u64 {
    let fraction = size & ((1 << MANTISSA) - 1);
    fraction | u64::from(size >> MANTISSA != 0) << MANTISSA
}

/// What 1 in a mantissa is worth.
fn unit(exponent: usize) -> f64 {
    let bit = exponent.max(1) as u64 - 1;
    f64::from_bits(if bit < u64::from(MANTISSA) { 1 << bit } else { (bit - u64::from(MANTISSA) + 1) << MANTISSA })
}

const MAGIC: &[u8; 16] = b"grpokit sketch 1";

impl Sketch {
    /// The sketch as bytes, the same for equal sketches: a name with the version, the fields, a checksum.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.relative_error.to_le_bytes());
        bytes.extend(self.zeros.to_le_bytes());
        bytes.extend(self.min.to_le_bytes());
        bytes.extend(self.max.to_le_bytes());
        for side in [&self.positive, &self.negative] {
            bytes.extend((side.first as u64).to_le_bytes());
            bytes.extend((side.sums.len() as u64).to_le_bytes());
            bytes.extend(side.counts.iter().flat_map(|count| count.to_le_bytes()));
            bytes.extend(side.sums.iter().flat_map(|sum| sum.to_le_bytes()));
        }
        bytes.extend(checksum(&bytes).to_le_bytes());
        bytes
    }

    /// The sketch that [`Sketch::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`CoreError::SketchBytes`] for anything else, with what is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CoreError> {
        let wrong = |reason| CoreError::SketchBytes { reason };
        let Some(rest) = bytes.strip_prefix(&MAGIC[..15]) else { return Err(wrong("they do not start as one")) };
        let Some(rest) = rest.strip_prefix(&MAGIC[15..]) else { return Err(wrong("they are of another version")) };
        let Some((body, &sum)) = rest.split_last_chunk() else { return Err(wrong("they end too early")) };
        if checksum(&bytes[..bytes.len() - sum.len()]) != u64::from_le_bytes(sum) {
            return Err(wrong("their checksum does not fit"));
        }
        let mut reader = Reader(body);
        let sketch = reader.sketch().ok_or(wrong("they end too early"))?;
        if !reader.0.is_empty() {
            return Err(wrong("something follows their end"));
        }
        if sketch.is_sound() { Ok(sketch) } else { Err(wrong("their numbers contradict each other")) }
    }

    /// Whether the numbers are in their ranges and the counts fit the sums.
    fn is_sound(&self) -> bool {
        let extremes = if self.count() == 0 {
            (self.min, self.max) == (f64::INFINITY, f64::NEG_INFINITY)
        } else {
            self.min <= self.max && self.min.is_finite() && self.max.is_finite()
        };
        let known = self.relative_error.to_bits() == Self::new(self.relative_error).relative_error.to_bits();
        extremes && known && self.positive.is_sound(self.bits) && self.negative.is_sound(self.bits)
    }
}

impl Side {
    fn is_sound(&self, bits: u32) -> bool {
        let mut octaves = self.counts.chunks(1 << bits).zip(&self.sums).enumerate();
        let fits = octaves.all(|(i, (counts, &sum))| {
            let count: u128 = counts.iter().map(|&count| u128::from(count)).sum();
            let least = if self.first + i == 0 { 1 } else { 1 << MANTISSA };
            count * least <= sum && sum <= count * ((2 << MANTISSA) - 1)
        });
        // Equal sketches have equal bytes, so there are no empty octaves at the ends.
        let full = [self.sums.first(), self.sums.last()].into_iter().flatten().all(|&sum| sum > 0);
        fits && full && self.first + self.sums.len() <= EXPONENTS && (self.first == 0 || !self.sums.is_empty())
    }
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn next<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (&chunk, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(chunk)
    }

    fn float(&mut self) -> Option<f64> {
        self.next().map(f64::from_le_bytes)
    }

    fn number(&mut self) -> Option<u64> {
        self.next().map(u64::from_le_bytes)
    }

    fn sketch(&mut self) -> Option<Sketch> {
        let relative_error = self.float()?;
        let mut sketch = Sketch::new(relative_error);
        sketch.relative_error = relative_error;
        sketch.zeros = self.number()?;
        sketch.min = self.float()?;
        sketch.max = self.float()?;
        sketch.positive = self.side(sketch.bits)?;
        sketch.negative = self.side(sketch.bits)?;
        Some(sketch)
    }

    fn side(&mut self, bits: u32) -> Option<Side> {
        let first = self.number()?.min(EXPONENTS as u64) as usize;
        let octaves = self.number()?.min(EXPONENTS as u64) as usize;
        let counts = (0..octaves << bits).map(|_| self.number()).collect::<Option<_>>()?;
        let sums = (0..octaves).map(|_| self.next().map(u128::from_le_bytes)).collect::<Option<_>>()?;
        Some(Side { first, counts, sums })
    }
}

/// FNV-1a of 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sketch(values: &[f64], relative_error: f64) -> Sketch {
        let mut sketch = Sketch::new(relative_error);
        sketch.add(values, &Context::new(1, &|| false)).unwrap();
        sketch
    }

    fn numbers() -> impl Strategy<Value = Vec<f64>> {
        let number = prop_oneof![
            (0..40_000_i32).prop_map(f64::from),
            any::<f64>().prop_filter("finite", |x| x.is_finite()),
            prop::sample::select(vec![0.0, -0.0, 1.0, -1.0, f64::MAX, f64::MIN, f64::MIN_POSITIVE, 5e-324]),
        ];
        prop::collection::vec(number, 0..50)
    }

    #[test]
    fn buckets_are_as_wide_as_the_error_allows() {
        for (relative_error, bits) in [(FINEST, 9), (0.01, 6), (1.0 / 129.0, 6), (0.2, 1), (COARSEST, 1), (1e-9, 9)] {
            assert_eq!(Sketch::new(relative_error).bits, bits);
        }
        assert_eq!(Sketch::new(f64::NAN).relative_error, FINEST);
    }

    #[test]
    fn what_is_not_finite_is_named_and_a_call_can_be_stopped() {
        let mut sketch = Sketch::new(0.01);
        let (row, value) = (1, f64::INFINITY);
        let expected = CoreError::Value { column: "values", row, value, expected: "a finite number" };
        assert_eq!(sketch.add(&[1.0, value], &Context::new(1, &|| false)), Err(expected));
        assert_eq!(sketch.add(&[1.0], &Context::new(1, &|| true)), Err(CoreError::Interrupted));
        assert_eq!(sketch, Sketch::new(0.01));
    }

    #[test]
    fn sums_of_the_largest_numbers_do_not_overflow() {
        assert_eq!(sketch(&[f64::MAX; 3], 0.01).mean(), f64::MAX);
        assert_eq!(sketch(&[f64::MAX, f64::MIN], 0.01).mean(), 0.0);
        assert_eq!(sketch(&[5e-324; 3], 0.01).mean(), 5e-324);
    }

    proptest! {
        #[test]
        fn quantiles_are_within_the_error(values in numbers(), q in 0.0..=1.0_f64, error in prop_oneof![0.02..COARSEST, Just(0.01)]) {
            let (sketch, mut sorted) = (sketch(&values, error), values);
            sorted.sort_by(f64::total_cmp);
            prop_assert_eq!(sketch.count(), sorted.len() as u64);
            if let Some(last) = sorted.len().checked_sub(1) {
                let exact: f64 = sorted[(q * last as f64).floor() as usize];
                let off = (sketch.quantile(q) - exact).abs();
                prop_assert!(off <= error * exact.abs() * (1.0 + 1e-12) + f64::MIN_POSITIVE);
            } else {
                prop_assert!(sketch.quantile(q).is_nan() && sketch.mean().is_nan());
            }
        }

        #[test]
        fn merging_and_bytes_are_exact(a in numbers(), b in numbers(), error in 0.1..COARSEST) {
            let both = sketch(&[&a[..], &b[..]].concat(), error);
            let (mut left, mut right) = (sketch(&a, error), sketch(&b, error));
            let other = left.clone();
            left.merge(&right).unwrap();
            right.merge(&other).unwrap();
            prop_assert_eq!(left.to_bytes(), both.to_bytes());
            prop_assert_eq!(right.to_bytes(), both.to_bytes());
            prop_assert_eq!(&Sketch::from_bytes(&both.to_bytes()).unwrap(), &both);
            prop_assert_eq!(&left, &both);
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..400), sealed: bool) {
            if sealed {
                bytes.splice(0..0, sketch(&[3.0], 0.3).to_bytes()[..24].iter().copied());
                bytes.extend(checksum(&bytes).to_le_bytes());
            }
            if let Ok(mut sketch) = Sketch::from_bytes(&bytes) {
                prop_assert!(sealed);
                sketch.merge(&sketch.clone()).unwrap();
                prop_assert!(sketch.count() == 0 || sketch.mean().is_finite());
            }
        }
    }
}
