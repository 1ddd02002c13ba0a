//! The class of groups that Python sees.

use crate::calls::{detached, raise, threads};
use crate::columns::codes;
use grpokit_core::CoreError;
use grpokit_core::keys::{Codes, combine, factorize_integers};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use std::sync::Arc;

/// Which rows belong together: dense codes in order of first appearance.
#[pyclass(frozen, module = "grpokit._native")]
pub struct Groups {
    pub codes: Arc<Codes>,
    pub threads: usize,
}

fn factorize(keys: &[Bound<'_, PyAny>], names: &[String], threads: usize, py: Python<'_>) -> PyResult<Codes> {
    let mut all: Option<Codes> = None;
    for (key, name) in keys.iter().zip(names) {
        let next = codes(key, name, threads)?;
        all = Some(match all {
            None => next,
            Some(all) => detached(py, threads, |context| combine(&all, &next, context))?,
        });
    }
    Ok(all.unwrap_or_default())
}

#[pymethods]
impl Groups {
    /// Groups of one or several id columns.
    #[new]
    #[pyo3(signature = (keys, names, threads=None))]
    fn new(py: Python<'_>, keys: Vec<Bound<'_, PyAny>>, names: Vec<String>, threads: Option<usize>) -> PyResult<Self> {
        let threads = self::threads(py, threads)?;
        Ok(Self { codes: factorize(&keys, &names, threads, py)?.into(), threads })
    }

    /// The number of groups.
    fn __len__(&self) -> usize {
        self.codes.first.len()
    }

    /// The group of each row: (N,) uint32.
    #[getter]
    fn codes<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u32>> {
        py.detach(|| self.codes.codes.clone()).into_pyarray(py)
    }

    /// The first row of each group: (G,) int64.
    #[getter]
    fn first<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        PyArray1::from_iter(py, self.codes.first.iter().map(|&row| i64::from(row)))
    }

    /// The rows in each group: (G,) int64.
    #[getter]
    fn sizes<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        PyArray1::from_vec(py, py.detach(|| self.count()))
    }

    /// The rows sorted by group, in their order within each: (N,) int64.
    #[getter]
    fn order<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        py.detach(|| {
            let mut next: Vec<i64> = self.count();
            let mut start = 0;
            for size in &mut next {
                start += std::mem::replace(size, start);
            }
            let mut order = vec![0; self.codes.codes.len()];
            for (row, &code) in (0..).zip(&self.codes.codes) {
                let at = &mut next[code as usize];
                order[usize::try_from(*at).unwrap_or(0)] = row;
                *at += 1;
            }
            order
        })
        .into_pyarray(py)
    }

    /// The groups of some of the rows, numbered anew.
    fn take(&self, py: Python<'_>, keep: PyReadonlyArray1<'_, bool>) -> PyResult<Self> {
        let keep = flags(py, "keep", &keep, self.codes.codes.len())?;
        let ids: Vec<i64> =
            self.codes.codes.iter().zip(keep).filter(|(_, keep)| **keep).map(|(&code, _)| i64::from(code)).collect();
        let codes = detached(py, self.threads, |context| factorize_integers(&ids, context))?;
        Ok(Self { codes: codes.into(), threads: self.threads })
    }
}

impl Groups {
    fn count(&self) -> Vec<i64> {
        let mut sizes = vec![0; self.codes.first.len()];
        for &code in &self.codes.codes {
            sizes[code as usize] += 1;
        }
        sizes
    }
}

/// A column of flags, one a row.
pub fn flags<'a>(
    py: Python<'_>,
    column: &'static str,
    given: &'a PyReadonlyArray1<'_, bool>,
    expected: usize,
) -> PyResult<&'a [bool]> {
    let flags = given.as_slice()?;
    if flags.len() == expected {
        return Ok(flags);
    }
    Err(raise(py, &CoreError::Length { column, given: flags.len(), expected }))
}
