//! The class of groups that a stream has had.

use grpokit_core::seen;
use numpy::PyReadonlyArray1;
use pyo3::prelude::*;
use std::sync::{Mutex, PoisonError};

/// Which groups a stream has had, by a 64-bit hash of each.
#[pyclass(frozen, module = "grpokit._native")]
#[derive(Default)]
pub struct Seen {
    hashes: Mutex<seen::Seen>,
}

#[pymethods]
impl Seen {
    /// None yet.
    #[new]
    fn new() -> Self {
        Self::default()
    }

    fn __len__(&self) -> usize {
        self.hashes.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Adds hashes, (G,) int64; the place of the first that was there already, or None.
    fn add(&self, hashes: PyReadonlyArray1<'_, i64>) -> PyResult<Option<usize>> {
        let mut seen = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(hashes.as_slice()?.iter().position(|&hash| !seen.insert(hash.cast_unsigned())))
    }
}
