//! JSON lines for Python: fields as NumPy arrays, kept lines as bytes.

use crate::calls::{detached, threads};
use grpokit_core::lines;
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// A field of some lines: kinds (u8), integers, numbers, the texts end to end, and where each ends.
type Field<'py> = (
    Bound<'py, PyArray1<u8>>,
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyBytes>,
    Bound<'py, PyArray1<i64>>,
);

/// Some fields of the lines of a block, which ends with a line: how many lines, the fields, and whether a line is broken.
#[pyfunction]
#[pyo3(signature = (block, fields, threads=None))]
pub fn read_lines<'py>(
    py: Python<'py>,
    block: &[u8],
    fields: Vec<String>,
    threads: Option<usize>,
) -> PyResult<(usize, Vec<Field<'py>>, bool)> {
    let threads = self::threads(py, threads)?;
    let found = detached(py, threads, |context| lines::read(block, &fields, context))?;
    let columns = found.fields.into_iter().map(|field| {
        (
            field.kinds.into_pyarray(py),
            field.integers.into_pyarray(py),
            field.numbers.into_pyarray(py),
            PyBytes::new(py, &field.text),
            field.ends.into_pyarray(py),
        )
    });
    Ok((found.count, columns.collect(), found.broken))
}

/// The lines of a block that are kept, and how many lines there are that are not blank.
#[pyfunction]
pub fn select_lines<'py>(
    py: Python<'py>,
    block: &[u8],
    keep: PyReadonlyArray1<'_, bool>,
) -> PyResult<(Bound<'py, PyBytes>, usize)> {
    let keep = keep.as_slice()?;
    let (kept, count) = py.detach(|| lines::select(block, keep));
    Ok((PyBytes::new(py, &kept), count))
}
