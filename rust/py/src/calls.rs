//! How a call into the core runs: threads, Ctrl-C, and the errors that come back.

use grpokit_core::CoreError;
use grpokit_core::threads::Context;
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::OnceLock;

/// Asked once: the answer takes 20 µs, since control groups are files.
static CORES: OnceLock<usize> = OnceLock::new();

/// The threads to use: the argument, else `GRPOKIT_NUM_THREADS`, else the cores that the process may use.
pub fn threads(py: Python<'_>, given: Option<usize>) -> PyResult<usize> {
    let variable = "GRPOKIT_NUM_THREADS";
    let bad = |source: &str, given: &str| {
        Err(error(py, "bad_threads", |context| {
            context.set_item("source", source)?;
            context.set_item("given", given)
        }))
    };
    match (given, std::env::var(variable)) {
        (Some(0), _) => bad("threads", "0"),
        (Some(threads), _) => Ok(threads),
        (None, Ok(text)) => match text.trim().parse() {
            Ok(threads) if threads > 0 => Ok(threads),
            _ => bad(variable, &text),
        },
        (None, Err(_)) => Ok(*CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, Into::into))),
    }
}

/// Runs `work` with the interpreter released; Ctrl-C is looked for on the calling thread.
pub fn detached<T: Send>(
    py: Python<'_>,
    threads: usize,
    work: impl FnOnce(&Context<'_>) -> Result<T, CoreError> + Send,
) -> PyResult<T> {
    let caller = std::thread::current().id();
    // Another thread must not wait for the interpreter here: the caller may hold it while it waits for that thread.
    let poll = || std::thread::current().id() == caller && Python::attach(|py| py.check_signals()).is_err();
    py.detach(|| work(&Context::new(threads, &poll))).map_err(|failure| raise(py, &failure))
}

/// The exception of a kind in `grpokit.errors`.
pub fn error(py: Python<'_>, kind: &str, fill: impl FnOnce(&Bound<'_, PyDict>) -> PyResult<()>) -> PyErr {
    let make = || {
        let context = PyDict::new(py);
        fill(&context)?;
        py.import("grpokit.errors")?.call_method("error", (kind,), Some(&context))
    };
    make().map_or_else(|failure| failure, PyErr::from_value)
}

/// What the core found, as an exception of the table.
pub fn raise(py: Python<'_>, failure: &CoreError) -> PyErr {
    match failure {
        // check_signals has taken the KeyboardInterrupt away; it is raised again where Python can see it.
        CoreError::Interrupted => PyKeyboardInterrupt::new_err(()),
        CoreError::Length { column, given, expected } => error(py, "column_length", |context| {
            context.set_item("column", column)?;
            context.set_item("length", given)?;
            context.set_item("other", "group_id")?;
            context.set_item("expected", expected)
        }),
        CoreError::NotFinite { column, count, rows } => error(py, "not_finite", |context| {
            context.set_item("column", column)?;
            context.set_item("count", count)?;
            context.set_item("rows", rows)
        }),
        CoreError::TooLarge { column, row, value } => error(py, "too_large", |context| {
            context.set_item("column", column)?;
            context.set_item("row", row)?;
            context.set_item("value", value)
        }),
        CoreError::NegativeLength { column, row, value } => error(py, "negative_length", |context| {
            context.set_item("column", column)?;
            context.set_item("row", row)?;
            context.set_item("value", value)
        }),
        CoreError::TooLong { row, length, max_tokens, count } => error(py, "too_long", |context| {
            context.set_item("row", row)?;
            context.set_item("length", length)?;
            context.set_item("max_tokens", max_tokens)?;
            context.set_item("count", count)
        }),
        CoreError::Value { column, row, value, expected } => error(py, "bad_value", |context| {
            context.set_item("column", column)?;
            context.set_item("row", row)?;
            context.set_item("given", value)?;
            context.set_item("expected", expected)
        }),
        CoreError::TooFewAttempts { group, row, attempts, k } => error(py, "too_few_attempts", |context| {
            context.set_item("group", group)?;
            context.set_item("row", row)?;
            context.set_item("attempts", attempts)?;
            context.set_item("k", k)
        }),
        CoreError::SketchError { given, expected } => error(py, "bad_parameter", |context| {
            context.set_item("owner", "QuantileSketch.merge")?;
            context.set_item("name", "relative_error")?;
            context.set_item("given", given)?;
            context.set_item("expected", format!("{expected}, as the sketch that it is merged into has"))
        }),
        CoreError::SketchBytes { reason } => error(py, "bad_sketch", |context| context.set_item("reason", reason)),
        CoreError::TooManyRows { given } => error(py, "too_many_rows", |context| context.set_item("given", given)),
        CoreError::ZeroWeight { batch } => error(py, "zero_weight", |context| context.set_item("batch", batch)),
    }
}
