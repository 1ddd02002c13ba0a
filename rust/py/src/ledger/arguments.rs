//! What a caller may give to the ledger, and what is wrong with it.

use crate::calls::error;
use grpokit_core::ledger::{LARGEST, LedgerError, Versions};
use numpy::PyReadonlyArray1;
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyMemoryView};

/// A ticket as it was given: a whole number, and not True.
pub struct Ticket(pub u64);

impl<'py> FromPyObject<'_, 'py> for Ticket {
    type Error = PyErr;

    fn extract(given: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match given.extract() {
            Ok(ticket) if !given.is_instance_of::<PyBool>() => Ok(Self(ticket)),
            _ => Err(error(given.py(), "ledger_ticket", |context| {
                context.set_item("given", given)?;
                context.set_item("problem", "it is no whole number from 0 on")
            })),
        }
    }
}

pub fn whole(method: &str, name: &str, given: &Bound<'_, PyAny>, least: u64) -> PyResult<u64> {
    match given.extract() {
        Ok(number) if (least..LARGEST).contains(&number) && !given.is_instance_of::<PyBool>() => Ok(number),
        _ => Err(bad(given.py(), method, name, given, &format!("a whole number, {least} or more and below 2**53"))),
    }
}

/// The number of a word among those that are known.
pub fn word(method: &str, name: &str, given: &Bound<'_, PyAny>, known: &[&str]) -> PyResult<usize> {
    let text: Option<String> = given.extract().ok();
    let number = text.and_then(|text| known.iter().position(|word| *word == text));
    number.ok_or_else(|| bad(given.py(), method, name, given, &format!("one of {}", quoted(known))))
}

/// The argument `unknown`, which two methods have.
pub fn flag(given: &Bound<'_, PyAny>) -> PyResult<bool> {
    given.extract().map_err(|_| bad(given.py(), "", "unknown", given, "True or False"))
}

/// A copy of a snapshot, so that nobody changes it while it is read.
pub fn bytes_of<'py>(snapshot: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let view = PyMemoryView::from(snapshot).map_err(|_| {
        error(snapshot.py(), "parameter_type", |context| {
            context.set_item("owner", "StalenessLedger.restore")?;
            context.set_item("name", "snapshot")?;
            context.set_item("given", snapshot.get_type().qualname()?)?;
            context.set_item("expected", "the bytes that snapshot() returned")
        })
    })?;
    Ok(view.call_method0("tobytes")?.cast_into()?)
}

pub fn bad<'py>(py: Python<'py>, method: &str, name: &str, given: impl IntoPyObject<'py>, expected: &str) -> PyErr {
    let given = given.into_bound_py_any(py);
    error(py, "bad_parameter", |context| {
        context.set_item("owner", format!("StalenessLedger{method}"))?;
        context.set_item("name", name)?;
        context.set_item("given", given?)?;
        context.set_item("expected", expected)
    })
}

pub fn of_versions(given: &Bound<'_, PyAny>) -> PyResult<Versions> {
    const EXPECTED: &str = "whole numbers, one version for each token of the completion";
    let one = |version: i64| (version, 1);
    let wrong = |_| bad(given.py(), ".complete", "versions", given, EXPECTED);
    let versions = if let Ok(array) = given.extract::<PyReadonlyArray1<'_, i64>>() {
        Versions::of_spans(array.as_array().iter().map(|&version| one(version)))
    } else {
        let list: Vec<i64> = given.extract().map_err(wrong)?;
        Versions::of_spans(list.into_iter().map(one))
    };
    versions.map_err(|failure| refused(given, "versions", &failure))
}

pub fn of_spans(given: &Bound<'_, PyAny>) -> PyResult<Versions> {
    let expected = "pairs of whole numbers: (version, tokens)";
    let spans: Vec<(i64, i64)> = given.extract().map_err(|_| bad(given.py(), ".complete", "spans", given, expected))?;
    Versions::of_spans(spans).map_err(|failure| refused(given, "spans", &failure))
}

fn refused(given: &Bound<'_, PyAny>, name: &str, failure: &LedgerError) -> PyErr {
    let expected = match failure {
        LedgerError::BadVersion { .. } => "versions from 0 on, of the completion's tokens alone",
        LedgerError::BadTokens { .. } => "counts of tokens from 0 on, below 2**53 together",
        _ => {
            let expected = "one token at least; where versions are missing, unknown=True";
            return bad(given.py(), ".complete", name, given, expected);
        }
    };
    bad(given.py(), ".complete", name, failure.to_string(), expected)
}

pub fn raise(py: Python<'_>, failure: &LedgerError) -> PyErr {
    let ticket = |ticket: u64, problem: String| {
        error(py, "ledger_ticket", |context| {
            context.set_item("given", ticket)?;
            context.set_item("problem", problem)
        })
    };
    let version = |what: &str, given: u64, version: u64, remedy: &str| {
        error(py, "ledger_version", |context| {
            context.set_item("what", what)?;
            context.set_item("given", given)?;
            context.set_item("version", version)?;
            context.set_item("remedy", remedy)
        })
    };
    match *failure {
        LedgerError::NeverIssued { ticket: given, issued } => {
            ticket(given, format!("{issued} were given out, from 0 on"))
        }
        LedgerError::Forgotten { ticket: given, remembered } => ticket(
            given,
            format!("it is finished, and older than the last {remembered} finished ones, which alone are remembered"),
        ),
        LedgerError::State { ticket, state, action } => error(py, "ledger_state", |context| {
            let (action, expected) = action.needs();
            context.set_item("ticket", ticket)?;
            context.set_item("state", state.name())?;
            context.set_item("action", action)?;
            context.set_item("expected", expected)
        }),
        LedgerError::Ahead { given, version: now } => {
            version("the newest token's version", given, now, "Call advance() before new weights go to the engines.")
        }
        LedgerError::Back { given, version: now } => {
            version("the new version", given, now, "Versions never fall; to go back, restore a snapshot.")
        }
        LedgerError::Steps { n, steps } => {
            bad(py, ".take", "steps", steps, &format!("from 1 to the {n} rollouts that are taken"))
        }
        LedgerError::Parameter(name) => bad(py, "", name, LARGEST, "a number below 2**53"),
        _ => error(py, "ledger_snapshot", |context| context.set_item("problem", failure.to_string())),
    }
}

pub fn quoted(names: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    names.into_iter().map(|name| format!("'{}'", name.as_ref())).collect::<Vec<_>>().join(", ")
}
