//! What the ledger answers: a batch, the versions of a rollout's tokens, statistics of lags.

use grpokit_core::ledger::{self, Counts, Source, Taken, Versions};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::collections::BTreeMap;

/// A batch for training: rollouts in order of admission.
///
/// Attributes
/// ----------
/// version : int
///     The trainer's version when it was taken.
/// tickets : list of int
///     All of them.
/// minibatches : list of list of int
///     The tickets of each step; their numbers differ by one at most.
/// staleness : list of int or None
///     For each ticket, the version that it trains (version + k in the k-th minibatch) minus that of its oldest token;
///     None where that is not known.
/// spans : list of VersionSpan or None
///     For each ticket, the versions of its tokens.
/// lags : LagStatistics
///     Of the staleness of all of them.
#[pyclass(frozen, module = "grpokit._native")]
pub struct TakenBatch(pub Taken);

#[pymethods]
impl TakenBatch {
    fn __len__(&self) -> usize {
        self.0.tickets.len()
    }

    /// The trainer's version when it was taken.
    #[getter]
    fn version(&self) -> u64 {
        self.0.version
    }

    /// The tickets.
    #[getter]
    fn tickets(&self) -> Vec<u64> {
        self.0.tickets.clone()
    }

    /// The tickets of each step.
    #[getter]
    fn minibatches(&self) -> Vec<Vec<u64>> {
        let starts = std::iter::once(0).chain(self.0.ends.iter().copied());
        starts.zip(&self.0.ends).map(|(start, &end)| self.0.tickets[start..end].to_vec()).collect()
    }

    /// Versions between each rollout's oldest token and the step that trains it; None where not known.
    #[getter]
    fn staleness(&self) -> Vec<Option<u64>> {
        let lag = |(versions, trains): (&Option<Versions>, u64)| versions.map(|versions| versions.lag(trains));
        self.0.versions.iter().zip(self.0.trains()).map(lag).collect()
    }

    /// The versions of each rollout's tokens; None where not known.
    #[getter]
    fn spans(&self) -> Vec<Option<VersionSpan>> {
        self.0.versions.iter().map(|versions| versions.map(VersionSpan::of)).collect()
    }

    /// Statistics of the staleness.
    #[getter]
    fn lags(&self) -> LagStatistics {
        LagStatistics::of(ledger::LagStatistics::of(self.0.versions.iter().copied().zip(self.0.trains())))
    }

    fn __repr__(&self) -> String {
        let Taken { version, ends, tickets, .. } = &self.0;
        format!("<TakenBatch version={version} rollouts={} minibatches={}>", tickets.len(), ends.len())
    }
}

/// The policy versions of one rollout's tokens.
///
/// Attributes
/// ----------
/// oldest, newest : int
///     The extremes.
/// mean : float
///     Over tokens.
/// tokens : int or None
///     How many there are; None where nobody counted them.
#[pyclass(frozen, get_all, eq, module = "grpokit._native")]
#[derive(PartialEq)]
pub struct VersionSpan {
    oldest: u64,
    newest: u64,
    mean: f64,
    tokens: Option<u64>,
}

#[pymethods]
impl VersionSpan {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let Self { oldest, newest, mean, tokens } = self;
        let (mean, tokens) = (python(py, *mean)?, python(py, *tokens)?);
        Ok(format!("VersionSpan(oldest={oldest}, newest={newest}, mean={mean}, tokens={tokens})"))
    }
}

impl VersionSpan {
    pub fn of(versions: Versions) -> Self {
        Self {
            oldest: versions.oldest(),
            newest: versions.newest(),
            mean: versions.mean(),
            tokens: Some(versions.tokens()).filter(|&tokens| tokens > 0),
        }
    }
}

/// Lags of some rollouts, in versions between the oldest token and the trainer.
///
/// Attributes
/// ----------
/// rollouts : int
///     How many.
/// unknown : int
///     Those whose versions are not known. They are in none of the following: no lag is not a lag of 0.
/// min, max : int or None
///     The extremes; None without any.
/// mean : float or None
///     Over rollouts.
/// tokens : int
///     Tokens of the rollouts that were completed with `versions` or `spans`.
/// token_mean : float or None
///     The mean over these tokens, each with its own version.
/// histogram : dict of int to int
///     Rollouts by lag, smallest lag first.
#[pyclass(frozen, get_all, eq, module = "grpokit._native")]
#[derive(PartialEq)]
pub struct LagStatistics {
    rollouts: u64,
    unknown: u64,
    min: Option<u64>,
    max: Option<u64>,
    mean: Option<f64>,
    tokens: u64,
    token_mean: Option<f64>,
    histogram: BTreeMap<u64, u64>,
}

#[pymethods]
impl LagStatistics {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let mean = |value: Option<f64>| python(py, value);
        Ok(format!(
            "LagStatistics(rollouts={}, unknown={}, min={}, max={}, mean={}, tokens={}, token_mean={}, histogram={})",
            self.rollouts,
            self.unknown,
            python(py, self.min)?,
            python(py, self.max)?,
            mean(self.mean)?,
            self.tokens,
            mean(self.token_mean)?,
            python(py, self.histogram.clone())?,
        ))
    }
}

impl LagStatistics {
    pub fn of(lags: ledger::LagStatistics) -> Self {
        Self {
            rollouts: lags.rollouts,
            unknown: lags.unknown,
            min: lags.min(),
            max: lags.max(),
            mean: lags.mean,
            tokens: lags.tokens,
            token_mean: lags.token_mean,
            histogram: lags.histogram,
        }
    }
}

/// The counts with their names.
pub fn rows_of(counts: &Counts) -> [(&'static str, u64); 6] {
    let Counts { admitted, running, ready, consumed, evicted, aborted } = *counts;
    [
        ("admitted", admitted),
        ("running", running),
        ("ready", ready),
        ("consumed", consumed),
        ("evicted", evicted),
        ("aborted", aborted),
    ]
}

/// What became of each source's rollouts, as a dict of dicts.
#[allow(clippy::cast_precision_loss)]
pub fn starvation<'py>(
    py: Python<'py>,
    sources: &[Source],
    under_way: &[(u64, u64)],
    counts: &Counts,
) -> PyResult<Bound<'py, PyDict>> {
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    let all = PyDict::new(py);
    for (source, &(running, ready)) in sources.iter().zip(under_way) {
        let books = PyDict::new(py);
        books.set_item("admitted", source.admitted)?;
        books.set_item("running", running)?;
        books.set_item("ready", ready)?;
        books.set_item("consumed", source.consumed)?;
        books.set_item("evicted", source.evicted)?;
        books.set_item("aborted", source.aborted.iter().sum::<u64>())?;
        books.set_item("requeued", source.requeued)?;
        books.set_item("evicted_since_consumed", source.evicted_since_consumed)?;
        books.set_item("share_admitted", share(source.admitted, counts.admitted))?;
        books.set_item("share_consumed", share(source.consumed, counts.consumed))?;
        all.set_item(&source.name, books)?;
    }
    Ok(all)
}

fn python<'py>(py: Python<'py>, value: impl IntoPyObjectExt<'py>) -> PyResult<String> {
    Ok(value.into_py_any(py)?.bind(py).repr()?.to_string())
}
