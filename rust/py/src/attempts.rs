//! Estimates of k attempts: values and groups in, the mean and the standard deviation of each group's draws out.

use crate::calls::{detached, error, raise, threads};
use crate::columns::{Numbers, floats};
use crate::groups::Groups;
use grpokit_core::attempts::{self, Draws};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

type Found<'py> = (Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<f64>>);

fn found(py: Python<'_>, draws: Draws) -> Found<'_> {
    (draws.mean.into_pyarray(py), draws.std.into_pyarray(py))
}

/// Numbers of which none may be null.
pub fn numbers(column: &str, data: &Bound<'_, PyAny>) -> PyResult<Numbers> {
    let (numbers, known) = floats(column, data)?;
    let nulls: Vec<usize> = (0..known.len()).filter(|&row| !known[row]).collect();
    if nulls.is_empty() {
        return Ok(numbers);
    }
    Err(error(data.py(), "null_value", |context| {
        context.set_item("column", column)?;
        context.set_item("count", nulls.len())?;
        context.set_item("rows", &nulls[..nulls.len().min(5)])
    }))
}

/// pass@k of counts: for each of (N,) attempts and passes.
#[pyfunction]
pub fn pass_of_counts<'py>(
    py: Python<'py>,
    attempts: PyReadonlyArray1<'py, i64>,
    passed: PyReadonlyArray1<'py, i64>,
    k: PyReadonlyArray1<'py, i64>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let (attempts, passed, k) = (attempts.as_slice()?, passed.as_slice()?, k.as_slice()?);
    let values = detached(py, 1, |context| {
        let rows = attempts.iter().zip(passed).zip(k);
        rows.map(|((&attempts, &passed), &k)| {
            context.check()?;
            Ok(attempts::pass_at_k(attempts.unsigned_abs(), passed.unsigned_abs(), k.unsigned_abs()))
        })
        .collect::<Result<Vec<_>, _>>()
    })?;
    Ok(values.into_pyarray(py))
}

/// pass@k of each group.
#[pyfunction]
pub fn pass_at_k<'py>(
    py: Python<'py>,
    outcomes: &Bound<'py, PyAny>,
    groups: &Bound<'py, Groups>,
    k: u64,
) -> PyResult<Found<'py>> {
    let (outcomes, groups) = (numbers("outcomes", outcomes)?, &groups.get().codes);
    let draws = py.detach(|| attempts::pass_of_groups(groups, outcomes.as_ref(), k));
    Ok(found(py, draws.map_err(|failure| raise(py, &failure))?))
}

/// best@k or worst@k of each group.
#[pyfunction]
pub fn best_at_k<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    groups: &Bound<'py, Groups>,
    k: u32,
    worst: bool,
) -> PyResult<Found<'py>> {
    let (values, groups) = (numbers("values", values)?, &groups.get().codes);
    let draws = detached(py, 1, |context| attempts::best_of_groups(groups, values.as_ref(), k, worst, context))?;
    Ok(found(py, draws))
}

/// maj@k of each group.
#[pyfunction]
#[pyo3(signature = (values, groups, answers, k, draws, seed, threads=None))]
#[allow(clippy::too_many_arguments)]
pub fn majority_at_k<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    groups: &Bound<'py, Groups>,
    answers: &Bound<'py, Groups>,
    k: u32,
    draws: u32,
    seed: u64,
    threads: Option<usize>,
) -> PyResult<Found<'py>> {
    let (values, threads) = (numbers("values", values)?, self::threads(py, threads)?);
    let (groups, answers) = (&groups.get().codes, &answers.get().codes);
    let draws = detached(py, threads, |context| {
        attempts::majority_of_groups(groups, values.as_ref(), answers, (k, draws, seed), context)
    })?;
    Ok(found(py, draws))
}
