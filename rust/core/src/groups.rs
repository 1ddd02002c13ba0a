//! Statistics of groups: two passes in f64, rows of a group in their order.

use crate::CoreError;
use crate::threads::{Context, PARALLEL_ROWS, POLL_ROWS, part_size};
use std::ops::Range;

/// Which rows belong together and which of them count.
#[derive(Clone, Copy)]
pub struct Grouping<'a> {
    /// The group of each row.
    pub codes: &'a [u32],
    /// The number of groups.
    pub groups: usize,
    /// The rows that count; empty when all do.
    pub live: &'a [bool],
    /// How they lie.
    pub order: Order,
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

/// How the rows of the groups lie; it changes the speed, never a bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// One group after another: codes never fall.
    Sorted,
    /// Rows of one group mostly lie together.
    Runs,
    /// Anything else.
    Scattered,
}

impl Order {
    /// Looks at a sample, and where it matters at all codes.
    #[must_use]
    pub fn of(codes: &[u32]) -> Self {
        let sample = &codes[..codes.len().min(2048)];
        if sample.windows(2).filter(|pair| pair[0] == pair[1]).count() * 2 <= sample.len() {
            Self::Scattered
        } else if codes.len() >= PARALLEL_ROWS && codes.is_sorted() {
            Self::Sorted
        } else {
            Self::Runs
        }
    }
}

impl Grouping<'_> {
    /// The first pass: counts, means and extremes.
    ///
    /// # Errors
    /// Interrupted.
    pub fn stats(&self, values: &[f64], context: &Context<'_>) -> Result<Stats, CoreError> {
        let mut sums = vec![EMPTY; self.groups];
        let parts = self.parts(context);
        let shares = carve(&mut sums, parts.iter().map(|part| part.groups.len()));
        context.each(parts.iter().zip(shares).collect(), |(part, sums)| {
            for rows in part.blocks() {
                context.check()?;
                part.sum(&self.codes[rows.clone()], self.live.get(rows.clone()), &values[rows], sums, self.order);
            }
            Ok(())
        })?;
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

    /// The second pass, in place: each row's deviation from its group's mean, 0 for a row that does not count.
    /// Returns each group's sum of squared deviations.
    ///
    /// # Errors
    /// Interrupted.
    pub fn deviations(&self, values: &mut [f64], mean: &[f64], context: &Context<'_>) -> Result<Vec<f64>, CoreError> {
        let mut groups: Vec<[f64; 2]> = mean.iter().map(|&mean| [mean, 0.0]).collect();
        let parts = self.parts(context);
        let shares = carve(&mut groups, parts.iter().map(|part| part.groups.len()));
        let values = carve(values, parts.iter().map(|part| part.rows.len()));
        context.each(parts.iter().zip(shares).zip(values).collect(), |((part, groups), values)| {
            for (rows, values) in part.blocks().zip(values.chunks_mut(POLL_ROWS)) {
                context.check()?;
                part.deviate(&self.codes[rows.clone()], self.live.get(rows), values, groups, self.order);
            }
            Ok(())
        })?;
        Ok(groups.into_iter().map(|group| group[1]).collect())
    }

    /// The parts that threads can work on apart from each other: where codes never fall, a cut between two groups
    /// leaves every group whole, and its rows in their order.
    fn parts(&self, context: &Context<'_>) -> Vec<Part> {
        let rows = self.codes.len();
        let threads = if self.order == Order::Sorted { context.threads_for(rows, PARALLEL_ROWS) } else { 1 };
        let mut parts = Vec::with_capacity(threads);
        let (mut row, mut group) = (0, 0);
        for at in 1..=threads {
            let aim = (part_size(rows, threads) * at).clamp(row, rows);
            let end = (aim..rows).find(|&i| i > 0 && self.codes[i] != self.codes[i - 1]).unwrap_or(rows);
            let next = if end < rows { self.codes[end] as usize } else { self.groups };
            parts.push(Part { rows: row..end, groups: group..next });
            (row, group) = (end, next);
        }
        parts
    }
}

/// Rows and the groups that lie in them, and in no other part.
struct Part {
    rows: Range<usize>,
    groups: Range<usize>,
}

impl Part {
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let end = self.rows.end;
        self.rows.clone().step_by(POLL_ROWS).map(move |start| start..(start + POLL_ROWS).min(end))
    }

    #[inline]
    fn group(&self, code: u32) -> usize {
        code as usize - self.groups.start
    }

    fn sum(&self, codes: &[u32], live: Option<&[bool]>, values: &[f64], sums: &mut [Sums], order: Order) {
        let rows = codes.iter().zip(values);
        if let Some(live) = live {
            for ((&code, &x), _) in rows.zip(live).filter(|(_, live)| **live) {
                sums[self.group(code)].add(x);
            }
        } else if order == Order::Scattered {
            for (&code, &x) in rows {
                sums[self.group(code)].add(x);
            }
        } else {
            // The sums of the run stay in registers.
            let mut last = self.group(codes[0]);
            let mut sum = sums[last];
            for (&code, &x) in rows {
                let group = self.group(code);
                if group != last {
                    sums[last] = sum;
                    last = group;
                    sum = sums[last];
                }
                sum.add(x);
            }
            sums[last] = sum;
        }
    }

    fn deviate(&self, codes: &[u32], live: Option<&[bool]>, values: &mut [f64], groups: &mut [[f64; 2]], order: Order) {
        let rows = codes.iter().zip(values);
        if let Some(live) = live {
            for ((&code, x), &live) in rows.zip(live) {
                let group = &mut groups[self.group(code)];
                *x = if live { *x - group[0] } else { 0.0 };
                group[1] += *x * *x;
            }
        } else if order == Order::Scattered {
            for (&code, x) in rows {
                let group = &mut groups[self.group(code)];
                *x -= group[0];
                group[1] += *x * *x;
            }
        } else {
            let mut last = self.group(codes[0]);
            let [mut mean, mut squares] = groups[last];
            for (&code, x) in rows {
                let group = self.group(code);
                if group != last {
                    groups[last][1] = squares;
                    last = group;
                    [mean, squares] = groups[last];
                }
                *x -= mean;
                squares += *x * *x;
            }
            groups[last][1] = squares;
        }
    }
}

/// Consecutive pieces of a slice, of these lengths.
fn carve<T>(slice: &mut [T], lengths: impl Iterator<Item = usize>) -> Vec<&mut [T]> {
    let mut rest = slice;
    lengths
        .map(|length| {
            let (piece, others) = std::mem::take(&mut rest).split_at_mut(length);
            rest = others;
            piece
        })
        .collect()
}
