//! `grpokit._native`: checks and conversion around `grpokit-core`, and nothing else.
// The doc comments here are docstrings in Python.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::doc_markdown,
    clippy::needless_pass_by_value,
    clippy::redundant_closure_for_method_calls
)]

mod arrow;
mod attempts;
mod calls;
mod columns;
mod groups;
mod ledger;
mod lines;
mod memory;
mod mismatch;
mod packing;
mod rows;
mod seen;
mod sketch;

use pyo3::prelude::*;

#[global_allocator]
static MEMORY: memory::Memory = memory::Memory;

/// The native core of grpokit: group ids, statistics, filters and advantages of rollouts.
#[pymodule(gil_used = true)]
mod _native {
    #[pymodule_export]
    use super::arrow::{ArrowColumn, Table};
    #[pymodule_export]
    use super::attempts::{best_at_k, majority_at_k, pass_at_k, pass_of_counts};
    #[pymodule_export]
    use super::columns::numbers;
    #[pymodule_export]
    use super::groups::Groups;
    #[pymodule_export]
    use super::ledger::{LagStatistics, StalenessLedger, TakenBatch, VersionSpan};
    #[pymodule_export]
    use super::lines::{read_lines, select_lines};
    #[pymodule_export]
    use super::mismatch::{mismatch, mismatch_bins};
    #[pymodule_export]
    use super::packing::{balance, pack};
    #[pymodule_export]
    use super::rows::Rows;
    #[pymodule_export]
    use super::seen::Seen;
    #[pymodule_export]
    use super::sketch::Sketch;
    use pyo3::exceptions::PyRuntimeWarning;
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        if cfg!(debug_assertions) {
            let message =
                c"grpokit's extension is a debug build, slow and large; `make setup` builds it in release mode";
            PyErr::warn(module.py(), &module.py().get_type::<PyRuntimeWarning>(), message, 1)?;
        }
        let functions = ["balance", "best_at_k", "majority_at_k", "numbers", "pack", "pass_at_k", "pass_of_counts"];
        let lines = ["read_lines", "select_lines"];
        let mismatch = ["mismatch", "mismatch_bins"];
        let classes = ["ArrowColumn", "Groups", "Rows", "Seen", "Sketch", "Table"];
        let ledger = ["LagStatistics", "StalenessLedger", "TakenBatch", "VersionSpan"];
        module.add("__all__", [&classes[..], &ledger, &functions, &lines, &mismatch].concat())
    }
}
