//! The quantile sketch as a class.

use crate::attempts::numbers;
use crate::calls::{detached, raise};
use grpokit_core::sketch;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::PyBytes;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counts of values in buckets whose width is proportional to their place.
#[pyclass(frozen, module = "grpokit._native")]
pub struct Sketch {
    sketch: Mutex<sketch::Sketch>,
}

#[pymethods]
impl Sketch {
    /// An empty sketch.
    #[new]
    fn new(relative_error: f64) -> Self {
        Self { sketch: Mutex::new(sketch::Sketch::new(relative_error)) }
    }

    /// The sketch that `to_bytes` wrote.
    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &[u8]) -> PyResult<Self> {
        let sketch = sketch::Sketch::from_bytes(data).map_err(|failure| raise(py, &failure))?;
        Ok(Self { sketch: Mutex::new(sketch) })
    }

    /// The same bytes for equal sketches.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.lock(py).to_bytes())
    }

    /// Adds a column of numbers.
    fn add(&self, py: Python<'_>, values: &Bound<'_, PyAny>) -> PyResult<()> {
        let values = numbers("values", values)?;
        let mut sketch = self.lock(py);
        let sketch = &mut *sketch;
        detached(py, 1, |context| sketch.add(values.as_ref(), context))
    }

    /// Adds what another sketch holds.
    fn merge(&self, py: Python<'_>, other: &Bound<'_, Self>) -> PyResult<()> {
        // A copy, since the other may be this one, or be merged with this one by another thread.
        let other = other.get().lock(py).clone();
        self.lock(py).merge(&other).map_err(|failure| raise(py, &failure))
    }

    /// The values at these shares of the sorted ones.
    fn quantiles(&self, py: Python<'_>, shares: Vec<f64>) -> Vec<f64> {
        let sketch = self.lock(py);
        shares.into_iter().map(|share| sketch.quantile(share)).collect()
    }

    /// What was asked for.
    #[getter]
    fn relative_error(&self, py: Python<'_>) -> f64 {
        self.lock(py).relative_error()
    }

    /// The number of values.
    #[getter]
    fn count(&self, py: Python<'_>) -> u64 {
        self.lock(py).count()
    }

    /// The smallest value, inf where there is none.
    #[getter]
    fn min(&self, py: Python<'_>) -> f64 {
        self.lock(py).min()
    }

    /// The largest value, −inf where there is none.
    #[getter]
    fn max(&self, py: Python<'_>) -> f64 {
        self.lock(py).max()
    }

    /// The mean, NaN where there is no value.
    #[getter]
    fn mean(&self, py: Python<'_>) -> f64 {
        self.lock(py).mean()
    }
}

impl Sketch {
    /// The sketch; another thread that has it may need the interpreter, so it is given away while waiting.
    fn lock(&self, py: Python<'_>) -> MutexGuard<'_, sketch::Sketch> {
        self.sketch.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }
}
