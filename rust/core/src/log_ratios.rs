//! What some log ratios amount to: sums in a fixed order, bins, ends, counts beyond bounds.
//!
//! All of it is written as loops over a fixed number of lanes, which compilers turn into vector instructions without
//! being told the machine. A sum's order depends on the numbers' places alone: eight lanes, then the lanes in order.

/// Log ratios that are looked at together.
pub(crate) const BLOCK: usize = 1024;

/// Beyond this size a log ratio's exponential is that of the limit.
pub const LIMIT: f32 = 20.0;

/// Bins of a histogram of log ratios: for each sign 32 powers of two, from 2^−27 on, in 16 parts each.
pub const BINS: usize = 1024;

/// Places whose mask is looked at together.
const STRIDE: usize = 32;

const LANES: usize = 8;
const SIDE: usize = BINS / 2;
/// Exponent and leading bits of a mantissa, as the bits of an f32 have them.
const SHIFT: u32 = 19;
const SMALLEST: u32 = (127 - 27) << 4;

/// The sums of some log ratios d, where c is d within ±[`LIMIT`] and ρ = e^c.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// Σ d.
    pub log_ratio: f64,
    /// Σ c.
    pub limited: f64,
    /// Σ ρ.
    pub ratio: f64,
    /// Σ ρ².
    pub square: f64,
    /// Σ (ρ − 1 − c).
    pub convex: f64,
}

impl Sums {
    pub(crate) fn add(&mut self, other: &Self) {
        self.log_ratio += other.log_ratio;
        self.limited += other.limited;
        self.ratio += other.ratio;
        self.square += other.square;
        self.convex += other.convex;
    }
}

/// Log-probs in f32 or f64; their difference is rounded to f32, once.
pub trait Logp: Copy + Sync {
    /// The log ratio: this one, the trainer's, less the sampler's.
    fn minus(self, other: Self) -> f32;
}

impl Logp for f32 {
    #[inline]
    fn minus(self, other: Self) -> f32 {
        self - other
    }
}

impl Logp for f64 {
    #[inline]
    fn minus(self, other: Self) -> f32 {
        (self - other) as f32
    }
}

/// Log ratios in a row, at most [`BLOCK`], with zeros behind them up to the next multiple of the lanes.
pub(crate) struct Block {
    values: [f32; BLOCK + STRIDE],
    len: usize,
    bins: [u16; BLOCK],
    ratios: [f32; BLOCK],
    convex: [f32; BLOCK],
}

impl Block {
    pub(crate) fn new() -> Self {
        Self { values: [0.0; BLOCK + STRIDE], len: 0, bins: [0; BLOCK], ratios: [0.0; BLOCK], convex: [0.0; BLOCK] }
    }

    pub(crate) fn values(&self) -> &[f32] {
        &self.values[..self.len]
    }

    /// Hands the log ratios of live places to `see`, [`BLOCK`] at a time and what is left in the end, so that the
    /// blocks are the same whatever lies between these places. No mask: all places live.
    pub(crate) fn gather<L: Logp>(
        &mut self,
        old: &[L],
        rollout: &[L],
        mask: Option<&[bool]>,
        mut see: impl FnMut(&mut Self),
    ) {
        self.len = 0;
        if let Some(mask) = mask {
            for ((old, rollout), mask) in old.chunks(STRIDE).zip(rollout.chunks(STRIDE)).zip(mask.chunks(STRIDE)) {
                if mask == [true; STRIDE] {
                    self.push(old, rollout);
                } else if mask.contains(&true) {
                    let free = &mut self.values[self.len..][..STRIDE];
                    let mut taken = 0;
                    for ((&old, &rollout), &live) in old.iter().zip(rollout).zip(mask) {
                        free[taken % STRIDE] = old.minus(rollout);
                        taken += usize::from(live);
                    }
                    self.len += taken;
                }
                if self.len >= BLOCK {
                    let (rest, more) =
                        (self.len - BLOCK, *self.values.last_chunk::<STRIDE>().unwrap_or(&[0.0; STRIDE]));
                    self.len = BLOCK;
                    see(self);
                    self.values[..STRIDE].copy_from_slice(&more);
                    self.len = rest;
                }
            }
            self.end(see);
        } else {
            for (old, rollout) in old.chunks(BLOCK).zip(rollout.chunks(BLOCK)) {
                self.len = 0;
                self.push(old, rollout);
                self.end(&mut see);
            }
        }
    }

    fn push<L: Logp>(&mut self, old: &[L], rollout: &[L]) {
        for ((mine, &old), &rollout) in self.values[self.len..].iter_mut().zip(old).zip(rollout) {
            *mine = old.minus(rollout);
        }
        self.len += old.len();
    }

    /// Hands over what there is.
    fn end(&mut self, mut see: impl FnMut(&mut Self)) {
        if self.len > 0 {
            self.pad();
            see(self);
        }
    }

    fn pad(&mut self) {
        let end = self.len.next_multiple_of(LANES);
        self.values[self.len..end].fill(0.0);
    }

    /// Leaves what is finite.
    pub(crate) fn drop_not_finite(&mut self) {
        let mut left = 0;
        for at in 0..self.len {
            if self.values[at].is_finite() {
                self.values[left] = self.values[at];
                left += 1;
            }
        }
        self.len = left;
        self.pad();
    }

    fn lanes(&self) -> &[[f32; LANES]] {
        self.values[..self.len.next_multiple_of(LANES)].as_chunks().0
    }

    /// The sum, in f64, and the smallest and the largest value; the zeros behind the end are seen too. The sum is
    /// finite where all values are.
    pub(crate) fn ends(&self) -> (f64, f32, f32) {
        let mut sum = [0.0; LANES];
        for values in self.lanes() {
            for lane in 0..LANES {
                sum[lane] += f64::from(values[lane]);
            }
        }
        let less = |a, b| if b < a { b } else { a };
        let more = |a, b| if b > a { b } else { a };
        (sum.iter().sum(), self.fold(f32::INFINITY, less), self.fold(f32::NEG_INFINITY, more))
    }

    fn fold(&self, start: f32, with: impl Fn(f32, f32) -> f32) -> f32 {
        let mut kept = [start; LANES];
        for values in self.lanes() {
            for lane in 0..LANES {
                kept[lane] = with(kept[lane], values[lane]);
            }
        }
        kept.into_iter().fold(start, with)
    }

    /// The sums, given that of the values. Values beyond [`LIMIT`] become the limit with `LIMITED`, and must not be
    /// there without.
    pub(crate) fn sums<const LIMITED: bool>(&mut self, log_ratio: f64) -> Sums {
        let end = self.len.next_multiple_of(LANES);
        let mut excess = 0.0;
        if LIMITED {
            for c in &mut self.values[..end] {
                let d = *c;
                *c = if d > LIMIT { LIMIT } else { d };
                *c = if *c < -LIMIT { -LIMIT } else { *c };
                excess += f64::from(d) - f64::from(*c);
            }
        }
        for ((&c, ratio), convex) in self.values[..end].iter().zip(&mut self.ratios).zip(&mut self.convex) {
            (*ratio, *convex) = exponential(c);
        }
        self.ratios[self.len..end].fill(0.0);
        let (mut sum, mut square, mut convex) = ([0_f32; LANES], [0_f32; LANES], [0_f32; LANES]);
        let lanes = self.ratios[..end].as_chunks::<LANES>().0.iter().zip(self.convex.as_chunks::<LANES>().0);
        for (ratios, convexes) in lanes {
            for lane in 0..LANES {
                sum[lane] += ratios[lane];
                square[lane] += ratios[lane] * ratios[lane];
                convex[lane] += convexes[lane];
            }
        }
        let total = |lanes: [f32; LANES]| lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
        let (ratio, square, convex) = (total(sum), total(square), total(convex));
        Sums { log_ratio, limited: log_ratio - excess, ratio, square, convex }
    }

    /// Counts the values by bin.
    pub(crate) fn count(&mut self, histogram: &mut Histogram) {
        for (&d, at) in self.values[..self.len].iter().zip(&mut self.bins) {
            *at = bin(d) as u16;
        }
        let (fours, rest) = self.bins[..self.len].as_chunks::<4>();
        let [a, b, c, d] = &mut histogram.lanes;
        for four in fours {
            a[four[0] as usize % BINS] += 1;
            b[four[1] as usize % BINS] += 1;
            c[four[2] as usize % BINS] += 1;
            d[four[3] as usize % BINS] += 1;
        }
        for &bin in rest {
            a[bin as usize % BINS] += 1;
        }
    }

    /// How many values are below `low` or above `high`.
    pub(crate) fn outside(&self, low: f32, high: f32) -> u64 {
        self.values().iter().map(|&x| u32::from(x < low) | u32::from(x > high)).sum::<u32>().into()
    }
}

/// Counts by bin, spread over four arrays so that equal neighbours need not wait for each other.
pub(crate) struct Histogram {
    lanes: [[u32; BINS]; 4],
}

impl Histogram {
    /// The most values that it counts before it must be emptied.
    pub(crate) const ROOM: u64 = u32::MAX as u64;

    pub(crate) fn new() -> Box<Self> {
        Box::new(Self { lanes: [[0; BINS]; 4] })
    }

    /// Adds the counts to `all` and begins anew.
    pub(crate) fn empty_into(&mut self, all: &mut [u64]) {
        for lane in &mut self.lanes {
            for (all, count) in all.iter_mut().zip(lane) {
                *all += u64::from(std::mem::take(count));
            }
        }
    }
}

/// The bin of a log ratio: rising with it, those below 2^−27 in size in the two in the middle.
#[inline(always)]
#[allow(clippy::inline_always)] // or the loop around it stays scalar
pub(crate) fn bin(d: f32) -> usize {
    let bits = d.to_bits();
    let size = ((bits & 0x7fff_ffff) >> SHIFT) as i32 - SMALLEST as i32;
    let size = if size < 0 { 0 } else { size };
    let size = if size > SIDE as i32 - 1 { SIDE as i32 - 1 } else { size };
    // All ones for a negative number, which turn a size into −1 − size.
    let sign = (bits as i32) >> 31;
    (SIDE as i32 + (size ^ sign)) as usize
}

/// A log ratio for each bin, at most 1/33 of itself away from any in the bin, where that is between 2^−27 and 31 in
/// size; 0 for what is smaller, ±31 for what is larger.
#[must_use]
pub fn bin_values() -> Vec<f64> {
    let edge = |size: usize| f64::from(f32::from_bits((size as u32 + SMALLEST) << SHIFT));
    let value = |size: usize| match size {
        0 => 0.0,
        size if size == SIDE - 1 => edge(size),
        size => 2.0 / (1.0 / edge(size) + 1.0 / edge(size + 1)),
    };
    (0..SIDE).rev().map(|size| -value(size)).chain((0..SIDE).map(value)).collect()
}

/// e^x and e^x − 1 − x for x within ±[`LIMIT`], to a few units in the last place; of the latter where |x| > ln 2 / 2,
/// of max(e^x, |x|).
///
/// e^x = 2^n e^r with |r| ≤ ln 2 / 2, where e^r − 1 − r is r² times Cephes' polynomial (`expf`); so nothing cancels
/// where n is 0.
#[inline(always)]
#[allow(clippy::inline_always)] // or the loop around it stays scalar
fn exponential(x: f32) -> (f32, f32) {
    // Adding 1.5·2^23 rounds to a whole number, whose last bits are then those of the sum.
    const ROUND: f32 = 12_582_912.0;
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let q = ((((1.987_569_1e-4 * r + 1.398_199_9e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 1.666_666_5e-1)
        * r
        + 0.5;
    let near = r * r * q;
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3f80_0000));
    let far = (near + r) * power + ((power - 1.0) - x);
    ((near + r + 1.0) * power, if n == 0.0 { near } else { far })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(values: &[f32]) -> Block {
        let mut block = Block::new();
        block.gather(values, &vec![0.0; values.len()], None, |_| ());
        block
    }

    fn log_ratios() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(
            prop_oneof![-1e-3..1e-3_f32, -2.0..2.0_f32, -40.0..40.0_f32, Just(0.0), Just(-0.0)],
            0..60,
        )
    }

    #[test]
    fn bins_rise_and_hold_their_values() {
        let values = bin_values();
        assert!(values.is_sorted());
        for (at, &value) in values.iter().enumerate().filter(|pair| *pair.1 != 0.0) {
            assert_eq!(bin(value as f32), at);
        }
        assert_eq!((bin(0.0), bin(-0.0), bin(1e9), bin(-1e9)), (512, 511, 1023, 0));
    }

    #[test]
    fn what_is_not_finite_is_dropped() {
        let mut block = block(&[1.0, f32::NAN, 2.0, f32::INFINITY, f32::NEG_INFINITY]);
        assert!(!block.ends().0.is_finite());
        block.drop_not_finite();
        assert_eq!(block.values(), [1.0, 2.0]);
        assert_eq!(block.ends().0, 3.0);
    }

    proptest! {
        #[test]
        fn the_exponential_is_right_to_a_few_units(x in prop_oneof![-20.0..20.0_f32, -1e-3..1e-3_f32, -0.4..0.4_f32]) {
            let (wide, (ratio, convex)) = (f64::from(x), exponential(x));
            // Near 0 the difference would cancel, and four terms of the series are exact.
            let series = wide * wide / 2.0 * (1.0 + wide / 3.0 * (1.0 + wide / 4.0 * (1.0 + wide / 5.0)));
            let exact = if x.abs() < 1e-3 { series } else { wide.exp_m1() - wide };
            let size = if x.abs() < 0.34 { exact } else { wide.exp().max(wide.abs()) };
            let unit = f64::from(f32::EPSILON);
            prop_assert!((f64::from(convex) - exact).abs() <= 3.0 * unit * size);
            prop_assert!((f64::from(ratio) - wide.exp()).abs() <= 2.0 * unit * wide.exp());
        }

        #[test]
        fn sums_are_those_of_the_values(values in log_ratios()) {
            let mut block = block(&values);
            let (sum, min, max) = block.ends();
            prop_assert!(values.iter().all(|&d| min <= d && d <= max));
            let fast = block.sums::<false>(sum);
            let sums = block.sums::<true>(sum);
            let cut = |d: f32| f64::from(d.clamp(-LIMIT, LIMIT));
            let exact = |f: &dyn Fn(f32) -> f64| values.iter().map(|&d| f(d)).sum::<f64>();
            let close = |a: f64, b: f64, size: f64| (a - b).abs() <= 1e-5 * size + 1e-12;
            prop_assert!(close(sums.log_ratio, exact(&f64::from), exact(&|d| f64::from(d).abs())));
            prop_assert!(close(sums.limited, exact(&cut), exact(&|d| f64::from(d).abs())));
            prop_assert!(close(sums.convex, exact(&|d| cut(d).exp_m1() - cut(d)), exact(&|d| cut(d).exp_m1().abs())));
            let (ratio, square) = (exact(&|d| cut(d).exp()), exact(&|d| cut(d).exp().powi(2)));
            prop_assert!(close(sums.ratio, ratio, ratio) && close(sums.square, square, square));
            if values.iter().all(|d| d.abs() <= LIMIT) {
                prop_assert_eq!(fast, sums);
            }
        }

        #[test]
        fn counts_are_those_of_the_values(values in log_ratios(), low in -3.0..0.0_f32, high in 0.0..3.0_f32) {
            let mut block = block(&values);
            let mut histogram = Histogram::new();
            block.count(&mut histogram);
            let (mut counts, mut expected) = (vec![0; BINS], vec![0; BINS]);
            histogram.empty_into(&mut counts);
            for &d in &values {
                expected[bin(d)] += 1;
            }
            prop_assert_eq!(counts, expected);
            let outside = values.iter().filter(|d| !(low..=high).contains(*d)).count();
            prop_assert_eq!(block.outside(low, high), outside as u64);
        }
    }
}
