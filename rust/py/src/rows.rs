//! The class that Python sees of a batch of rows on its way through stages 1 to 4.

use crate::calls::{detached, error, raise};
use crate::columns::{Lengths, Numbers, floats, lengths};
use crate::groups::{Groups, flags};
use grpokit_core::CoreError;
use grpokit_core::advantage::Estimator;
use grpokit_core::advantage::within::Baseline;
use grpokit_core::keys::Codes;
use grpokit_core::selection::{Quota, Rank};
use grpokit_core::threads::Context;
use grpokit_core::{groups, rows, shaping};
use numpy::{Element, IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Statistics<'py> = (
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<f64>>,
);

/// A batch of rollouts on its way through shaping, selection and advantages.
#[pyclass(frozen, module = "grpokit._native")]
pub struct Rows {
    rows: Mutex<rows::Rows<Numbers>>,
    threads: usize,
}

#[pymethods]
impl Rows {
    /// Rows with ids, rewards (null: not scored) and, where selection shall not read the reward, a gate.
    #[new]
    #[pyo3(signature = (groups, reward, gate=None, drop_not_finite=false))]
    fn new(
        py: Python<'_>,
        groups: &Groups,
        reward: &Bound<'_, PyAny>,
        gate: Option<&Bound<'_, PyAny>>,
        drop_not_finite: bool,
    ) -> PyResult<Self> {
        Self::of(py, groups.codes.clone(), groups.threads, reward, gate, drop_not_finite)
    }

    /// The number of rows.
    #[getter]
    fn n(&self, py: Python<'_>) -> usize {
        self.lock(py).len()
    }

    /// What filters read: (N,) float64.
    fn outcomes<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        PyArray1::from_slice(py, self.lock(py).outcomes())
    }

    /// The rewards before shaping: (N,) float64.
    fn scores<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        PyArray1::from_slice(py, self.lock(py).scores())
    }

    /// Which rows count in their groups' statistics: (N,) bool.
    fn live<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<bool>> {
        self.read(py, rows::Rows::live)
    }

    /// Advantages, divided by what `weigh_duplicates` says: (N,) float64.
    fn weigh<'py>(
        &self,
        py: Python<'py>,
        advantages: PyReadonlyArray1<'py, f64>,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let mut weighed = advantages.as_slice()?.to_vec();
        self.lock(py).weigh(&mut weighed);
        Ok(weighed.into_pyarray(py))
    }

    /// What advantages read: (N,) float64.
    fn shaped<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        PyArray1::from_slice(py, self.lock(py).rewards())
    }

    /// Adds to the shaped rewards.
    fn add(&self, py: Python<'_>, amounts: PyReadonlyArray1<'_, f64>) -> PyResult<()> {
        let amounts = amounts.as_slice()?;
        let add = |rewards: &[f64]| Ok(rewards.iter().zip(amounts).map(|(reward, amount)| reward + amount).collect());
        let mut rows = self.lock(py);
        let rows = &mut *rows;
        py.detach(|| rows.shape(add)).map_err(|failure| raise(py, &failure))
    }

    /// Adds the soft overlong punishment to the shaped rewards.
    fn overlong(&self, py: Python<'_>, response_len: &Bound<'_, PyAny>, max_len: u64, cache: u64) -> PyResult<()> {
        let given = lengths(response_len)?;
        let given = slice(&given)?;
        let shape = |rewards: &[f64]| match given {
            Slice::Wide(lengths) => shaping::overlong(rewards, lengths, max_len, cache),
            Slice::Narrow(lengths) => shaping::overlong(rewards, lengths, max_len, cache),
        };
        let mut rows = self.lock(py);
        let rows = &mut *rows;
        py.detach(|| rows.shape(shape)).map_err(|failure| raise(py, &failure))
    }

    /// Drops the rows that are marked.
    fn drop(
        &self,
        py: Python<'_>,
        marked: PyReadonlyArray1<'_, bool>,
        reason: u32,
        keep_in_statistics: bool,
    ) -> PyResult<()> {
        let mut rows = self.lock(py);
        let rows = &mut *rows;
        let marked = flags(py, "drop", &marked, rows.len())?;
        py.detach(|| rows.drop_rows(marked, reason, keep_in_statistics));
        Ok(())
    }

    /// Drops the groups whose outcomes are all equal within the tolerance.
    fn drop_without_signal(&self, py: Python<'_>, tolerance: f64) -> PyResult<()> {
        self.select(py, |rows, context| rows.drop_without_signal(tolerance, context))
    }

    /// Drops the groups whose mean outcome is outside the band, whose ends belong to it.
    fn drop_outside_pass_rate(&self, py: Python<'_>, low: f64, high: f64) -> PyResult<()> {
        self.select(py, |rows, context| rows.drop_outside_pass_rate(low, high, context))
    }

    /// Drops the groups with fewer live rows.
    fn drop_small_groups(&self, py: Python<'_>, at_least: usize) -> PyResult<()> {
        self.select(py, |rows, context| rows.drop_small_groups(at_least, context))
    }

    /// Drops the kept rows that are copies of an earlier kept one; `contents` are the groups of group and content.
    fn drop_duplicates(&self, py: Python<'_>, contents: &Groups, keep_in_statistics: bool) -> PyResult<()> {
        self.select(py, |rows, _| rows.drop_duplicates(&contents.codes, keep_in_statistics))
    }

    /// Divides the advantage of each kept row by the number of its copies, itself included.
    fn weigh_duplicates(&self, py: Python<'_>, contents: &Groups) -> PyResult<()> {
        self.select(py, |rows, _| rows.weigh_duplicates(&contents.codes))
    }

    /// Of each group keeps that many of the kept rows, those whose outcomes vary most.
    fn keep_max_variance(&self, py: Python<'_>, most: usize, keep_in_statistics: bool) -> PyResult<()> {
        self.select(py, |rows, _| {
            rows.keep_max_variance(most, keep_in_statistics);
            Ok(())
        })
    }

    /// Of each batch keeps the groups with the highest deviation or learnability: a share of them, or that many.
    #[pyo3(signature = (learnability, share=None, count=None, batches=None))]
    fn keep_highest_groups(
        &self,
        py: Python<'_>,
        learnability: bool,
        share: Option<f64>,
        count: Option<usize>,
        batches: Option<&Groups>,
    ) -> PyResult<()> {
        let rank = if learnability { Rank::Learnability } else { Rank::Deviation };
        let quota = share.map_or(Quota::Count(count.unwrap_or(0)), Quota::Share);
        let batches = batches.map(|groups| &*groups.codes);
        self.select(py, |rows, context| rows.keep_highest_groups(rank, quota, batches, context))
    }

    /// Of each batch keeps the first groups of each source, or of one.
    #[pyo3(signature = (most, sources, only=None, batches=None))]
    fn limit_sources(
        &self,
        py: Python<'_>,
        most: usize,
        sources: &Groups,
        only: Option<u32>,
        batches: Option<&Groups>,
    ) -> PyResult<()> {
        let batches = batches.map(|groups| &*groups.codes);
        self.select(py, |rows, context| rows.limit_sources(most, &sources.codes, only, batches, context))
    }

    /// Keeps the first `need` of the groups that are left, by their ranks, and says how many there are.
    fn drop_surplus(&self, py: Python<'_>, need: usize, ranks: PyReadonlyArray1<'_, i64>) -> PyResult<usize> {
        let ranks = ranks.as_slice()?;
        self.select(py, |rows, context| rows.drop_surplus(need, ranks, context))
    }

    /// Rows in, kept, and first dropped by each stage: one list a source; a row counts as `weights` says.
    #[pyo3(signature = (sources=None, weights=None))]
    fn counts(
        &self,
        py: Python<'_>,
        sources: Option<&Groups>,
        weights: Option<PyReadonlyArray1<'_, i64>>,
    ) -> PyResult<Vec<Vec<i64>>> {
        let weights = weights.as_ref().map(|weights| weights.as_slice()).transpose()?.unwrap_or_default();
        self.select(py, |rows, _| {
            for given in [sources.map(|sources| sources.codes.codes.len()), Some(weights.len()).filter(|&n| n > 0)] {
                if let Some(given) = given.filter(|&given| given != rows.len()) {
                    return Err(CoreError::Length { column: "source", given, expected: rows.len() });
                }
            }
            Ok(rows.counts(sources.map(|sources| &*sources.codes), weights))
        })
    }

    /// The number of selections so far, those of rows without a reward included.
    #[getter]
    fn stages(&self, py: Python<'_>) -> usize {
        self.lock(py).stages()
    }

    /// The reason that a stage, counted from 1, gives.
    fn reason(&self, py: Python<'_>, stage: u32) -> PyResult<u32> {
        let rows = self.lock(py);
        if stage as usize <= rows.stages() {
            Ok(rows.reason(stage))
        } else {
            Err(out_of_range("stage", stage as usize))
        }
    }

    /// The stage, counted from 1, that dropped a row first; 0 when it is kept.
    fn first_stage(&self, py: Python<'_>, row: usize) -> PyResult<u32> {
        let rows = self.lock(py);
        if row < rows.len() { Ok(rows.first_stage_of(row)) } else { Err(out_of_range("row", row)) }
    }

    /// Count, mean, minimum and maximum of a group's outcomes when a selection of groups, counted from 1, was made.
    fn read_at(&self, py: Python<'_>, stage: u32, group: usize) -> Option<(i64, f64, f64, f64)> {
        let rows = self.lock(py);
        let stats = rows.stats_at(stage).filter(|stats| group < stats.n.len())?;
        Some((stats.n[group] as i64, stats.mean[group], stats.min[group], stats.max[group]))
    }

    /// Which groups have a row that is kept: (G,) bool.
    fn kept_groups<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<bool>> {
        self.read(py, rows::Rows::kept_groups)
    }

    /// The advantages, by the estimator's name; it takes of the parameters what it needs.
    #[pyo3(signature = (estimator, ddof=None, eps=0.0, *, k=1, beta=1.0, weights=None, batches=None))]
    #[allow(clippy::too_many_arguments)]
    fn advantages<'py>(
        &self,
        py: Python<'py>,
        estimator: &str,
        ddof: Option<f64>,
        eps: f64,
        k: u64,
        beta: f64,
        weights: Option<&Bound<'py, PyAny>>,
        batches: Option<&Groups>,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let free = ddof;
        let ddof = ddof.unwrap_or(0.0);
        let estimator = match estimator {
            "group_norm" => Estimator::GroupNorm { ddof, eps },
            "mean_baseline" => Estimator::MeanBaseline,
            "leave_one_out" => Estimator::LeaveOneOut,
            "rescaled_mean" => Estimator::RescaledMean,
            "length_baseline" => Estimator::LengthBaseline,
            "soft_value" => Estimator::SoftValue { beta },
            "pass_k_training" => Estimator::PassKTraining { k, eps },
            "pass_k_argmax" => Estimator::PassKArgmax { ddof: free, eps },
            "pkpo" => Estimator::Pkpo { k, baseline: Baseline::None },
            "pkpo_loo" => Estimator::Pkpo { k, baseline: Baseline::LeaveOneOut },
            "pkpo_loo-1" => Estimator::Pkpo { k, baseline: Baseline::LeaveOneOutOfSubset },
            "global_norm" => Estimator::GlobalNorm { ddof, eps, group_baseline: false },
            "global_norm_baseline" => Estimator::GlobalNorm { ddof, eps, group_baseline: true },
            other => {
                return Err(error(py, "unknown_stage", |context| {
                    context.set_item("kind", "native advantage")?;
                    context.set_item("given", other)?;
                    context.set_item("nearest", "")?;
                    context.set_item("known", "those that grpokit.advantage calls")
                }));
            }
        };
        let weights = match weights {
            None => Vec::new(),
            Some(data) => {
                let given = lengths(data)?;
                weights_of(slice(&given)?).map_err(|failure| raise(py, &failure))?
            }
        };
        let batches = batches.map(|groups| &*groups.codes);
        let values = self.select(py, |rows, context| rows.advantages(estimator, &weights, batches, context))?;
        Ok(values.into_pyarray(py))
    }

    /// Which rows are kept: (N,) bool.
    fn keep<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<bool>> {
        self.read(py, rows::Rows::keep)
    }

    /// Every reason that applies to each row: (N,) uint32, 0 when kept.
    fn reasons<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u32>> {
        self.read(py, rows::Rows::reasons)
    }

    /// The reason that came first for each row: (N,) uint32, 0 when kept.
    fn first_reasons<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u32>> {
        self.read(py, rows::Rows::first_reasons)
    }

    /// Count, mean, standard deviation, minimum and maximum of each group's live outcomes.
    fn statistics<'py>(&self, py: Python<'py>, ddof: f64) -> PyResult<Statistics<'py>> {
        let (stats, std) = self.select(py, |rows, context| {
            let stats = (*rows.outcome_stats(context)?).clone();
            let mut deviations = rows.outcomes().to_vec();
            let squares = rows.grouping().deviations(&mut deviations, &stats.mean, context)?;
            let std: Vec<f64> = (0..squares.len()).map(|group| stats.std(group, squares[group], ddof)).collect();
            Ok((stats, std))
        })?;
        let n: Vec<i64> = stats.n.iter().map(|&n| n as i64).collect();
        Ok((
            n.into_pyarray(py),
            stats.mean.into_pyarray(py),
            std.into_pyarray(py),
            stats.min.into_pyarray(py),
            stats.max.into_pyarray(py),
        ))
    }

    /// Whether each group has signal: max − min beyond the tolerance, over its live outcomes.
    fn signal<'py>(&self, py: Python<'py>, tolerance: f64) -> PyResult<Bound<'py, PyArray1<bool>>> {
        let signal = self.select(py, |rows, context| {
            let stats = rows.outcome_stats(context)?;
            let test = |(&min, &max): (&f64, &f64)| groups::has_signal(min, max, tolerance);
            Ok(stats.min.iter().zip(&stats.max).map(test).collect::<Vec<bool>>())
        })?;
        Ok(signal.into_pyarray(py))
    }
}

impl Rows {
    fn of(
        py: Python<'_>,
        codes: Arc<Codes>,
        threads: usize,
        reward: &Bound<'_, PyAny>,
        gate: Option<&Bound<'_, PyAny>>,
        drop_not_finite: bool,
    ) -> PyResult<Self> {
        let (rewards, mut scored) = floats("reward", reward)?;
        let gate = match gate {
            None => None,
            Some(gate) => {
                let (values, known) = floats("gate", gate)?;
                if scored.is_empty() {
                    scored = known;
                } else if scored.len() == known.len() {
                    scored.iter_mut().zip(known).for_each(|(scored, known)| *scored &= known);
                }
                Some(values)
            }
        };
        let rows = py.detach(|| rows::Rows::new(codes, rewards, gate, &scored, drop_not_finite));
        Ok(Self { rows: Mutex::new(rows.map_err(|failure| raise(py, &failure))?), threads })
    }

    fn select<T: Send>(
        &self,
        py: Python<'_>,
        select: impl FnOnce(&mut rows::Rows<Numbers>, &Context<'_>) -> Result<T, CoreError> + Send,
    ) -> PyResult<T> {
        let mut rows = self.lock(py);
        let rows = &mut *rows;
        detached(py, self.threads, |context| select(rows, context))
    }

    /// The rows; another thread that has them may need the interpreter, so it is given away while waiting.
    fn lock(&self, py: Python<'_>) -> MutexGuard<'_, rows::Rows<Numbers>> {
        self.rows.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }

    fn read<'py, T: Element + Send>(
        &self,
        py: Python<'py>,
        of: fn(&rows::Rows<Numbers>) -> Vec<T>,
    ) -> Bound<'py, PyArray1<T>> {
        let rows = self.lock(py);
        let rows = &*rows;
        py.detach(|| of(rows)).into_pyarray(py)
    }
}

fn out_of_range(what: &str, given: usize) -> PyErr {
    PyIndexError::new_err(format!("there is no {what} {given}"))
}

#[derive(Clone, Copy)]
enum Slice<'a> {
    Wide(&'a [i64]),
    Narrow(&'a [i32]),
}

fn slice<'a>(lengths: &'a Lengths<'_>) -> PyResult<Slice<'a>> {
    Ok(match lengths {
        Lengths::Wide(array) => Slice::Wide(array.as_slice()?),
        Lengths::Narrow(array) => Slice::Narrow(array.as_slice()?),
    })
}

#[allow(clippy::cast_precision_loss)]
fn weights_of(lengths: Slice<'_>) -> Result<Vec<f64>, CoreError> {
    match lengths {
        Slice::Wide(lengths) => {
            shaping::check_lengths("response_len", lengths)?;
            Ok(lengths.iter().map(|&length| length as f64).collect())
        }
        Slice::Narrow(lengths) => {
            shaping::check_lengths("response_len", lengths)?;
            Ok(lengths.iter().map(|&length| f64::from(length)).collect())
        }
    }
}
