//! Statistics of groups: two passes in f64, rows of a group in their order.

use crate::CoreError;
use crate::threads::{Context, POLL_ROWS};

/// Which rows belong together and which of them count.
#[derive(Clone, Copy)]
pub struct Grouping<'a> {
    /// The group of each row.
    pub codes: &'a [u32],
    /// The number of groups.
    pub groups: usize,
    /// The rows that count; empty when all do.
    pub live: &'a [bool],
    /// Whether rows of one group mostly lie together; changes the speed, never a bit.
    pub contiguous: bool,
}

/// The sum and the extremes of a group, packed for two 16-byte updates a row.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Sums {
    total: [f64; 2], // the sum, the count
    reach: [f64; 2], // max(-x), max(x)
}

const EMPTY: Sums = Sums { total: [0.0; 2], reach: [f64::NEG_INFINITY; 2] };

impl Sums {
    #[inline]
    fn add(&mut self, x: f64) {
        self.total = [self.total[0] + x, self.total[1] + 1.0];
        self.reach = [greater(self.reach[0], -x), greater(self.reach[1], x)];
    }
}

/// Rows that are worked on at a time where a buffer lies between two loops.
const BLOCK: usize = 1024;

#[inline]
fn greater(a: f64, b: f64) -> f64 {
    if b > a { b } else { a }
}

/// Statistics of every group over its live rows. A group without any has count 0, mean 0 and no signal.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Live rows.
    pub n: Vec<f64>,
    /// The mean; exactly the common value where all are equal.
    pub mean: Vec<f64>,
    /// The smallest, +inf without rows.
    pub min: Vec<f64>,
    /// The largest, −inf without rows.
    pub max: Vec<f64>,
}

/// The one test of whether a group can teach anything: max > min, beyond a tolerance.
#[inline]
#[must_use]
pub fn has_signal(min: f64, max: f64, tolerance: f64) -> bool {
    max - min > tolerance
}

impl Stats {
    /// [`has_signal`] of a group.
    #[must_use]
    pub fn signal(&self, group: usize, tolerance: f64) -> bool {
        has_signal(self.min[group], self.max[group], tolerance)
    }

    /// The standard deviation from a group's sum of squared deviations; 0 where all are equal or `n <= ddof`.
    #[must_use]
    pub fn std(&self, group: usize, squares: f64, ddof: f64) -> f64 {
        let free = self.n[group] - ddof;
        if free > 0.0 && self.signal(group, 0.0) { (squares / free).sqrt() } else { 0.0 }
    }
}

/// Whether rows of one group mostly lie together.
#[must_use]
pub fn is_contiguous(codes: &[u32]) -> bool {
    let sample = &codes[..codes.len().min(2048)];
    sample.windows(2).filter(|pair| pair[0] == pair[1]).count() * 2 > sample.len()
}

impl Grouping<'_> {
    /// The first pass: counts, means and extremes.
    ///
    /// # Errors
    /// Interrupted.
    pub fn stats(&self, values: &[f64], context: &Context<'_>) -> Result<Stats, CoreError> {
        let mut sums = vec![EMPTY; self.groups];
        for (at, (codes, values)) in self.blocks(values).enumerate() {
            context.check()?;
            let live = self.live_block(at);
            if !live.is_empty() {
                for ((&code, &x), &live) in codes.iter().zip(values).zip(live) {
                    if live {
                        sums[code as usize].add(x);
                    }
                }
            } else if self.contiguous {
                let mut last = codes[0];
                let mut sum = sums[last as usize];
                for (&code, &x) in codes.iter().zip(values) {
                    if code != last {
                        sums[last as usize] = sum;
                        last = code;
                        sum = sums[last as usize];
                    }
                    sum.add(x);
                }
                sums[last as usize] = sum;
            } else {
                for (&code, &x) in codes.iter().zip(values) {
                    sums[code as usize].add(x);
                }
            }
        }
        let mean = |sum: &Sums| match sum.total {
            [_, 0.0] => 0.0,
            _ if -sum.reach[0] >= sum.reach[1] => sum.reach[1],
            [total, n] => total / n,
        };
        Ok(Stats {
            n: sums.iter().map(|sum| sum.total[1]).collect(),
            mean: sums.iter().map(mean).collect(),
            min: sums.iter().map(|sum| -sum.reach[0]).collect(),
            max: sums.iter().map(|sum| sum.reach[1]).collect(),
        })
    }

    /// The second pass: each row's deviation from its group's mean, into `deviations`, and each group's sum of
    /// squared deviations over its live rows.
    ///
    /// # Errors
    /// Interrupted.
    pub fn deviations(
        &self,
        values: &[f64],
        mean: &[f64],
        deviations: &mut Vec<f64>,
        context: &Context<'_>,
    ) -> Result<Vec<f64>, CoreError> {
        let mut groups: Vec<[f64; 2]> = mean.iter().map(|&mean| [mean, 0.0]).collect();
        deviations.clear();
        deviations.reserve_exact(values.len());
        let mut buffer = [0.0; BLOCK];
        for (at, (codes, values)) in self.codes.chunks(BLOCK).zip(values.chunks(BLOCK)).enumerate() {
            if at % (POLL_ROWS / BLOCK) == 0 {
                context.check()?;
            }
            let live = self.live.chunks(BLOCK).nth(at).unwrap_or(&[]);
            let buffer = &mut buffer[..values.len()];
            if !live.is_empty() {
                for (((d, &code), &x), &live) in buffer.iter_mut().zip(codes).zip(values).zip(live) {
                    let group = &mut groups[code as usize];
                    *d = if live { x - group[0] } else { 0.0 };
                    group[1] += *d * *d;
                }
            } else if self.contiguous {
                let mut last = codes[0];
                let [mut mean, mut squares] = groups[last as usize];
                for ((d, &code), &x) in buffer.iter_mut().zip(codes).zip(values) {
                    if code != last {
                        groups[last as usize][1] = squares;
                        last = code;
                        [mean, squares] = groups[last as usize];
                    }
                    *d = x - mean;
                    squares += *d * *d;
                }
                groups[last as usize][1] = squares;
            } else {
                for ((d, &code), &x) in buffer.iter_mut().zip(codes).zip(values) {
                    let group = &mut groups[code as usize];
                    *d = x - group[0];
                    group[1] += *d * *d;
                }
            }
            deviations.extend_from_slice(buffer);
        }
        Ok(groups.into_iter().map(|group| group[1]).collect())
    }

    fn blocks<'b>(&self, values: &'b [f64]) -> impl Iterator<Item = (&'b [u32], &'b [f64])>
    where
        Self: 'b,
    {
        self.codes.chunks(POLL_ROWS).zip(values.chunks(POLL_ROWS))
    }

    fn live_block(&self, at: usize) -> &[bool] {
        self.live.chunks(POLL_ROWS).nth(at).unwrap_or(&[])
    }
}
