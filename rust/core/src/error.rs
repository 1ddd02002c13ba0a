//! What can be wrong with the input, with the numbers that a message needs.

use std::fmt;

/// Every way in which a call can fail. Nothing in this crate panics on any input.
#[derive(Debug, Clone, PartialEq)]
pub enum CoreError {
    /// Two columns that must have one value per row do not have the same length.
    Length {
        /// The column.
        column: &'static str,
        /// Its length.
        given: usize,
        /// The number of rows.
        expected: usize,
    },
    /// A reward that is NaN or infinite.
    NotFinite {
        /// The column.
        column: &'static str,
        /// How many rows.
        count: usize,
        /// The first rows.
        rows: Vec<usize>,
    },
    /// A reward whose square would overflow.
    TooLarge {
        /// The row.
        row: usize,
        /// The reward.
        value: f64,
    },
    /// A negative number of tokens.
    NegativeLength {
        /// The row.
        row: usize,
        /// The length.
        value: i64,
    },
    /// More rows than a u32 can number.
    TooManyRows {
        /// The number of rows.
        given: usize,
    },
    /// A batch in which the rows that statistics are taken over have no tokens.
    ZeroWeight {
        /// The code of the batch.
        batch: usize,
    },
    /// The caller asked to stop.
    Interrupted,
}

impl fmt::Display for CoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { column, given, expected } => {
                write!(f, "{column} has {given} values for {expected} rows")
            }
            Self::NotFinite { column, count, rows } => {
                write!(f, "{column} is NaN or infinite in {count} rows, the first: {rows:?}")
            }
            Self::TooLarge { row, value } => write!(f, "the reward of row {row} is {value}, beyond 1e150"),
            Self::NegativeLength { row, value } => write!(f, "row {row} has length {value}"),
            Self::TooManyRows { given } => write!(f, "{given} rows, at most 4294967294 in one call"),
            Self::ZeroWeight { batch } => write!(f, "batch {batch} has no tokens to average over"),
            Self::Interrupted => write!(f, "interrupted"),
        }
    }
}

impl std::error::Error for CoreError {}
