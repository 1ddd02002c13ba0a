//! `pack` and `balance`: lengths in, the rows of each bin or rank out.

use crate::calls::detached;
use crate::columns::{Lengths, lengths};
use grpokit_core::balancing::{self, Cost};
use grpokit_core::packing::{self, Parts};
use numpy::{Element, IntoPyArray, PyArray1};
use pyo3::prelude::*;

type Found<'py, T> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<T>>);

fn found<T: Element>(py: Python<'_>, parts: Parts<T>) -> Found<'_, T> {
    (parts.rows.into_pyarray(py), parts.starts.into_pyarray(py), parts.loads.into_pyarray(py))
}

/// First-fit decreasing: the rows bin after bin, where each bin starts, its tokens.
#[pyfunction]
pub fn pack<'py>(py: Python<'py>, lengths: &Bound<'py, PyAny>, max_tokens: u64) -> PyResult<Found<'py, i64>> {
    let parts = match self::lengths(lengths)? {
        Lengths::Wide(array) => {
            let lengths = array.as_slice()?;
            detached(py, 1, |context| packing::pack(lengths, max_tokens, context))?
        }
        Lengths::Narrow(array) => {
            let lengths = array.as_slice()?;
            detached(py, 1, |context| packing::pack(lengths, max_tokens, context))?
        }
    };
    Ok(found(py, parts))
}

/// Largest differencing: the rows rank after rank, where each rank starts, its load.
#[pyfunction]
pub fn balance<'py>(
    py: Python<'py>,
    lengths: &Bound<'py, PyAny>,
    ranks: usize,
    equal_counts: bool,
    linear: f64,
    quadratic: f64,
) -> PyResult<Found<'py, f64>> {
    let cost = Cost { linear, quadratic };
    let parts = match self::lengths(lengths)? {
        Lengths::Wide(array) => {
            let lengths = array.as_slice()?;
            detached(py, 1, |context| balancing::balance(lengths, ranks, equal_counts, cost, context))?
        }
        Lengths::Narrow(array) => {
            let lengths = array.as_slice()?;
            detached(py, 1, |context| balancing::balance(lengths, ranks, equal_counts, cost, context))?
        }
    };
    Ok(found(py, parts))
}
