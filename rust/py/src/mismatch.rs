//! `mismatch`: log-probs in, the statistics of all sequences and of each group out.

use crate::calls::{detached, threads};
use grpokit_core::log_ratios::{Logp, bin_values};
use grpokit_core::mismatch::{Extreme, Grouping, Level, Mismatch, Rule, Sequences, measure};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

/// A rule's level and its bounds in log space, infinite where there is none.
type Bounds = (String, f64, f64);

/// Tokens, sequences, the same where a log ratio is not finite; the first of these; the sums; those of the sequences'
/// weights in log space; per rule the tokens and sequences outside; two
/// histograms; the ends of sequences' means; four lists of extremes.
type Found<'py> = (
    [u64; 4],
    Option<(usize, usize)>,
    [f64; 5],
    [f64; 2],
    Vec<[u64; 2]>,
    Bound<'py, PyArray1<u64>>,
    Bound<'py, PyArray1<u64>>,
    [f64; 2],
    Vec<Vec<(usize, usize, f64)>>,
);

fn found(py: Python<'_>, one: Mismatch) -> Found<'_> {
    let extremes = |list: Vec<Extreme>| list.into_iter().map(|x| (x.sequence, x.place, x.log_ratio)).collect();
    (
        [one.tokens, one.sequences, one.not_finite, one.sequences_not_finite],
        one.first_not_finite,
        [one.sums.log_ratio, one.sums.limited, one.sums.ratio, one.sums.square, one.sums.convex],
        [one.log_weights, one.log_squares],
        one.outside,
        one.token_bins.into_pyarray(py),
        one.sequence_bins.into_pyarray(py),
        one.means,
        one.extremes.into_iter().map(extremes).collect(),
    )
}

fn rule((level, low, high): &Bounds) -> Rule {
    let level = match level.as_str() {
        "sequence" => Level::Sequence,
        "geometric" => Level::Geometric,
        "worst" => Level::Worst,
        _ => Level::Token,
    };
    Rule { level, low: *low, high: *high }
}

/// The statistics of all sequences, then of each grouping's groups; a grouping is codes and the number of groups.
#[pyfunction]
#[pyo3(signature = (old, rollout, mask, starts, rules, groupings, threads=None))]
#[allow(clippy::too_many_arguments)]
pub fn mismatch<'py>(
    py: Python<'py>,
    old: &Bound<'py, PyAny>,
    rollout: &Bound<'py, PyAny>,
    mask: Option<PyReadonlyArray1<'py, bool>>,
    starts: PyReadonlyArray1<'py, i64>,
    rules: Vec<Bounds>,
    groupings: Vec<(PyReadonlyArray1<'py, u32>, usize)>,
    threads: Option<usize>,
) -> PyResult<Vec<Found<'py>>> {
    let threads = self::threads(py, threads)?;
    let rules: Vec<Rule> = rules.iter().map(rule).collect();
    let mut given = Vec::with_capacity(groupings.len());
    for (codes, groups) in &groupings {
        given.push(Grouping { codes: codes.as_slice()?, groups: *groups });
    }
    let (mask, starts) = (mask.as_ref().map(|mask| mask.as_slice()).transpose()?, starts.as_slice()?);
    let all = if let Ok(old) = old.extract::<PyReadonlyArray1<'_, f32>>() {
        let rollout = rollout.extract::<PyReadonlyArray1<'_, f32>>()?;
        let sequences = Sequences { old: old.as_slice()?, rollout: rollout.as_slice()?, mask, starts };
        run(py, sequences, &rules, &given, threads)?
    } else {
        let (old, rollout) =
            (old.extract::<PyReadonlyArray1<'_, f64>>()?, rollout.extract::<PyReadonlyArray1<'_, f64>>()?);
        let sequences = Sequences { old: old.as_slice()?, rollout: rollout.as_slice()?, mask, starts };
        run(py, sequences, &rules, &given, threads)?
    };
    Ok(all.into_iter().map(|one| found(py, one)).collect())
}

fn run<L: Logp>(
    py: Python<'_>,
    sequences: Sequences<'_, L>,
    rules: &[Rule],
    groupings: &[Grouping<'_>],
    threads: usize,
) -> PyResult<Vec<Mismatch>> {
    detached(py, threads, |context| measure(sequences, rules, groupings, context))
}

/// A log ratio for each bin of a histogram.
#[pyfunction]
pub fn mismatch_bins(py: Python<'_>) -> Bound<'_, PyArray1<f64>> {
    bin_values().into_pyarray(py)
}
