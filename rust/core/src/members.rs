//! The values of each group together, in the order of its rows.

use crate::CoreError;
use crate::keys::Codes;
use std::ops::Range;

/// Values sorted by group; those of a group keep the order of their rows.
pub(crate) struct Members<'a> {
    codes: &'a Codes,
    starts: Vec<usize>,
    /// The row of each value.
    pub(crate) rows: Vec<u32>,
    /// The values.
    pub(crate) values: Vec<f64>,
}

impl<'a> Members<'a> {
    /// All values, or those of the rows that are `live` (empty: all).
    ///
    /// # Errors
    /// Columns of different lengths.
    pub(crate) fn new(codes: &'a Codes, values: &[f64], live: &[bool]) -> Result<Self, CoreError> {
        let n = codes.codes.len();
        if values.len() != n {
            return Err(CoreError::Length { column: "values", given: values.len(), expected: n });
        }
        let counts = |row: usize| live.get(row).copied().unwrap_or(true);
        let mut starts = vec![0; codes.first.len() + 1];
        for (row, &code) in codes.codes.iter().enumerate() {
            starts[code as usize + 1] += usize::from(counts(row));
        }
        for group in 0..codes.first.len() {
            starts[group + 1] += starts[group];
        }
        let (mut next, mut rows) = (starts.clone(), vec![0; *starts.last().unwrap_or(&0)]);
        for (row, &code) in (0_u32..).zip(&codes.codes) {
            if counts(row as usize) {
                let at = &mut next[code as usize];
                rows[*at] = row;
                *at += 1;
            }
        }
        let values = rows.iter().map(|&row| values[row as usize]).collect();
        Ok(Self { codes, starts, rows, values })
    }

    /// Where each group's values lie.
    pub(crate) fn groups(&self) -> impl Iterator<Item = Range<usize>> {
        (0..self.codes.first.len()).map(|group| self.starts[group]..self.starts[group + 1])
    }
}
