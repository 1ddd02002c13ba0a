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
        /// The column.
        column: &'static str,
        /// The row.
        row: usize,
        /// The reward.
        value: f64,
    },
    /// A negative number of tokens.
    NegativeLength {
        /// The column.
        column: &'static str,
        /// The row.
        row: usize,
        /// The length.
        value: i64,
    },
    /// A sequence that no bin can hold.
    TooLong {
        /// The first such row.
        row: usize,
        /// Its length.
        length: u64,
        /// The budget of a bin.
        max_tokens: u64,
        /// How many rows are too long.
        count: usize,
    },
    /// A value that an estimate over attempts, or a sketch, cannot take.
    Value {
        /// The column.
        column: &'static str,
        /// The first such row.
        row: usize,
        /// The value.
        value: f64,
        /// What it should be.
        expected: &'static str,
    },
    /// A group with fewer attempts than are to be drawn from it without replacement.
    TooFewAttempts {
        /// The code of the group.
        group: usize,
        /// Its first row.
        row: usize,
        /// Its attempts.
        attempts: usize,
        /// The attempts to draw.
        k: u64,
    },
    /// Sketches of different relative errors cannot be merged.
    SketchError {
        /// That of the sketch to add.
        given: f64,
        /// That of the sketch to add to.
        expected: f64,
    },
    /// Bytes that are not a sketch.
    SketchBytes {
        /// What is wrong with them.
        reason: &'static str,
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
            Self::TooLarge { column, row, value } => write!(f, "the {column} of row {row} is {value}, beyond 1e150"),
            Self::NegativeLength { column, row, value } => write!(f, "{column} is {value} in row {row}"),
            Self::TooLong { row, length, max_tokens, count } => {
                write!(f, "row {row} has {length} tokens, above {max_tokens}; {count} such rows")
            }
            Self::Value { column, row, value, expected } => {
                write!(f, "{column} is {value} in row {row}, expected {expected}")
            }
            Self::TooFewAttempts { group, row, attempts, k } => {
                write!(f, "group {group}, which starts at row {row}, has {attempts} attempts for k={k}")
            }
            Self::SketchError { given, expected } => {
                write!(f, "a sketch with relative error {given} is to be merged into one with {expected}")
            }
            Self::SketchBytes { reason } => write!(f, "the bytes are not a sketch: {reason}"),
            Self::TooManyRows { given } => write!(f, "{given} rows, at most 4294967294 in one call"),
            Self::ZeroWeight { batch } => write!(f, "batch {batch} has no tokens to average over"),
            Self::Interrupted => write!(f, "interrupted"),
        }
    }
}

impl std::error::Error for CoreError {}
