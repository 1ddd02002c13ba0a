//! The classes that Python sees: groups, and a batch of rows on its way through stages 1 to 4.

use crate::calls::{detached, error, raise, threads};
use crate::columns::{Lengths, Numbers, codes, floats, lengths};
use grpokit_core::CoreError;
use grpokit_core::advantage::Estimator;
use grpokit_core::keys::{Codes, combine};
use grpokit_core::{groups, rows, shaping};
use numpy::{Element, IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which rows belong together: dense codes in order of first appearance.
#[pyclass(frozen, module = "grpokit._native")]
pub struct Groups {
    codes: Arc<Codes>,
    threads: usize,
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
        let codes = detached(py, self.threads, |context| grpokit_core::keys::factorize_integers(&ids, context))?;
        Ok(Self { codes: codes.into(), threads: self.threads })
    }
}

type Statistics<'py> = (
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<f64>>,
);

impl Groups {
    fn count(&self) -> Vec<i64> {
        let mut sizes = vec![0; self.codes.first.len()];
        for &code in &self.codes.codes {
            sizes[code as usize] += 1;
        }
        sizes
    }
}

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
        let mut rows = self.lock(py);
        let rows = &mut *rows;
        detached(py, self.threads, |context| rows.drop_without_signal(tolerance, context))
    }

    /// The advantages, by "group_norm", "mean_baseline", "leave_one_out", "global_norm" or "global_norm_baseline".
    #[pyo3(signature = (estimator, ddof=0.0, eps=0.0, weights=None, batches=None))]
    fn advantages<'py>(
        &self,
        py: Python<'py>,
        estimator: &str,
        ddof: f64,
        eps: f64,
        weights: Option<&Bound<'py, PyAny>>,
        batches: Option<&Groups>,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let estimator = match estimator {
            "group_norm" => Estimator::GroupNorm { ddof, eps },
            "mean_baseline" => Estimator::MeanBaseline,
            "leave_one_out" => Estimator::LeaveOneOut,
            "global_norm" => Estimator::GlobalNorm { ddof, eps, group_baseline: false },
            "global_norm_baseline" => Estimator::GlobalNorm { ddof, eps, group_baseline: true },
            other => {
                return Err(error(py, "unknown_stage", |context| {
                    context.set_item("kind", "native advantage")?;
                    context.set_item("given", other)?;
                    context.set_item("nearest", "")?;
                    context.set_item("known", "group_norm, mean_baseline, leave_one_out, global_norm")
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
        let mut rows = self.lock(py);
        let rows = &mut *rows;
        let batches = batches.map(|groups| &*groups.codes);
        let values = detached(py, self.threads, |context| rows.advantages(estimator, &weights, batches, context))?;
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
        let mut rows = self.lock(py);
        let rows = &mut *rows;
        let (stats, std) = detached(py, self.threads, |context| {
            let stats = rows.outcome_stats(context)?.clone();
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
        let mut rows = self.lock(py);
        let rows = &mut *rows;
        let signal = detached(py, self.threads, |context| {
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
            shaping::check_lengths(lengths)?;
            Ok(lengths.iter().map(|&length| length as f64).collect())
        }
        Slice::Narrow(lengths) => {
            shaping::check_lengths(lengths)?;
            Ok(lengths.iter().map(|&length| f64::from(length)).collect())
        }
    }
}

fn flags<'a>(
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
