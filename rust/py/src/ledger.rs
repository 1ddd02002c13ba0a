//! The ledger as Python sees it. An event takes some 100 ns, so the interpreter is kept.

mod arguments;
mod values;

pub use values::{LagStatistics, TakenBatch, VersionSpan};

use arguments::{Ticket, bad, bytes_of, flag, of_spans, of_versions, quoted, raise, whole, word};
use grpokit_core::ledger::{Ledger, LedgerError, Limits, Reason, Versions};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::{IntoPyDict, PyBytes, PyDict, PyString};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use values::{rows_of, starvation};

/// The books of an asynchronous trainer: which rollouts run, wait and were used, and how old their tokens are.
///
/// A rollout (or a group, if that is what you count) is known by the ticket that `admit` returns; your own objects stay
/// yours, in a dict by ticket. Every call is one event, atomic among threads; a refused call changes nothing.
///
/// Parameters
/// ----------
/// batch_size : int
///     B, rollouts that the trainer consumes in one version (one optimizer step, if that is what `advance` counts).
/// max_staleness : int
///     η, versions that the admission rule lets rollouts lag behind; 0 is synchronous training.
/// max_running : int, optional
///     The most rollouts that run at a time; None: as many as the rule admits.
/// version : int
///     The trainer's version now. All before it count as trained, with B rollouts each.
/// sources : sequence of str
///     Where rollouts come from (data sets, tasks), for `starvation`; by default one, "all".
///
/// Raises
/// ------
/// InputError
///     `bad_parameter`: a number that is not whole or too small, or sources that are none or not different.
///
/// Notes
/// -----
/// Admission is AReaL's rule (arXiv:2505.24298; `StalenessManager` in its code): with v the trainer's version,
///
///     capacity = min(max_running − running, (η + v + 1)·B − (accepted + running)), 0 at least.
///
/// `accepted` counts ready and consumed rollouts, and B for each version before the first. What is aborted or evicted
/// gives its place back: AReaL drops nothing once it is accepted; kept in the count, evicted rollouts would leave the
/// trainer waiting for ever.
///
/// What follows, where every version consumes B rollouts, all of them sampled by the policy of their admission or a newer
/// one: at most (η + 1)·B are under way; the mean lag of all that was consumed is at most η; a rollout waits at most η
/// versions once it is ready; and each one's lag is at most η if rollouts become ready in order of admission. A single
/// slow rollout may lag more: `evict` is the guarantee for each, and it favours quick prompts, which `starvation` shows.
/// A version that consumes less than B, or is skipped, lets that many more wait. One that consumes more takes from the
/// later ones, and a trainer that always does runs dry: count the same thing in `batch_size` and `take`.
///
/// Memory holds what runs and what is ready, and the fate of the last finished rollouts (see `requeue`).
///
/// Examples
/// --------
/// >>> import grpokit as gk
/// >>> ledger = gk.StalenessLedger(batch_size=2, max_staleness=1)
/// >>> tickets = [ledger.admit() for _ in range(5)]
/// >>> tickets
/// [0, 1, 2, 3, None]
/// >>> ledger.complete(1, spans=[(0, 120)])
/// >>> ledger.complete(0)
/// >>> ledger.take().tickets
/// [0, 1]
/// >>> ledger.advance(), ledger.capacity
/// (1, 2)
/// >>> ledger.complete(2, versions=[0, 0, 1])
/// >>> ledger.lag(2), ledger.span(2).mean.__round__(2)
/// (1, 0.33)
/// >>> ledger.counts
/// {'admitted': 4, 'running': 1, 'ready': 1, 'consumed': 2, 'evicted': 0, 'aborted': 0}
#[pyclass(frozen, module = "grpokit._native")]
pub struct StalenessLedger {
    ledger: Mutex<Ledger>,
    sources: HashMap<String, usize>,
    /// B.
    #[pyo3(get)]
    batch_size: u64,
    /// η.
    #[pyo3(get)]
    max_staleness: u64,
    /// The most that run at a time, or None.
    #[pyo3(get)]
    max_running: Option<u64>,
}

#[pymethods]
impl StalenessLedger {
    #[new]
    #[pyo3(signature = (batch_size, max_staleness, max_running=None, *, version=None, sources=None))]
    #[pyo3(text_signature = "(batch_size, max_staleness, max_running=None, *, version=0, sources=None)")]
    fn new(
        py: Python<'_>,
        batch_size: &Bound<'_, PyAny>,
        max_staleness: &Bound<'_, PyAny>,
        max_running: Option<&Bound<'_, PyAny>>,
        version: Option<&Bound<'_, PyAny>>,
        sources: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let limits = Limits {
            batch_size: whole("", "batch_size", batch_size, 1)?,
            max_staleness: whole("", "max_staleness", max_staleness, 0)?,
            max_running: max_running.map(|most| whole("", "max_running", most, 1)).transpose()?,
        };
        let version = version.map_or(Ok(0), |version| whole("", "version", version, 0))?;
        let names = sources.map_or_else(|| Ok(vec!["all".into()]), |names| names.extract());
        // The numbers are checked already, so names are what is refused.
        let ledger = names.ok().and_then(|names| Ledger::new(limits, version, names).ok());
        ledger.map(Self::of).ok_or_else(|| bad(py, "", "sources", sources, "different names, one or more"))
    }

    /// The books that a snapshot holds.
    ///
    /// Parameters
    /// ----------
    /// snapshot : bytes-like
    ///     What `snapshot` returned: bytes, a bytearray, a memoryview, a mapped file.
    /// running, ready : {"lost", "keep"}
    ///     "lost" aborts what ran (reason "lost"), or evicts what was ready, because the process that had it is gone;
    ///     its place is given back, and `state` says of which of your tickets that is true, so that they can be
    ///     requeued. "keep" leaves it as it was.
    ///
    /// Raises
    /// ------
    /// InputError
    ///     `ledger_snapshot`: not whole, changed, of another schema, or with contents that contradict each other.
    /// InputTypeError
    ///     `parameter_type`: no bytes at all.
    ///
    /// Notes
    /// -----
    /// AReaL recovers with accepted := version·B, which forgets what was ready. With both "lost" that is what results
    /// here, if every version consumed B; otherwise the true count is kept. The limits are those of the snapshot.
    #[staticmethod]
    #[pyo3(signature = (snapshot, *, running=None, ready=None))]
    #[pyo3(text_signature = "(snapshot, *, running='lost', ready='keep')")]
    fn restore(
        py: Python<'_>,
        snapshot: &Bound<'_, PyAny>,
        running: Option<&Bound<'_, PyAny>>,
        ready: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let bytes = bytes_of(snapshot)?;
        let lost = |name, given| word(".restore", name, given, &["lost", "keep"]).map(|number| number == 0);
        let running = running.map_or(Ok(true), |given| lost("running", given))?;
        let ready = ready.map_or(Ok(false), |given| lost("ready", given))?;
        let mut ledger = Ledger::restore(bytes.as_bytes()).map_err(|failure| raise(py, &failure))?;
        if running {
            ledger.lose_running();
        }
        if ready {
            ledger.lose_ready();
        }
        Ok(Self::of(ledger))
    }

    /// Everything as bytes: magic, schema version, contents, checksum. Write them with your checkpoint.
    fn snapshot<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let snapshot = self.lock(py).snapshot();
        PyBytes::new(py, &snapshot)
    }

    /// Starts a rollout.
    ///
    /// Parameters
    /// ----------
    /// source : str, optional
    ///     One of the sources; it may be left out where there is only one.
    ///
    /// Returns
    /// -------
    /// int or None
    ///     Its ticket, stamped with the trainer's version; None where there is no capacity.
    ///
    /// Raises
    /// ------
    /// InputError
    ///     `bad_parameter`: an unknown source.
    #[pyo3(signature = (source=None))]
    fn admit(&self, py: Python<'_>, source: Option<&Bound<'_, PyAny>>) -> PyResult<Option<u64>> {
        let known = match source {
            None => Some(0).filter(|_| self.sources.len() == 1),
            Some(given) => {
                given.cast::<PyString>().ok().and_then(|name| self.sources.get(name.to_str().ok()?)).copied()
            }
        };
        let source = known.ok_or_else(|| {
            let names: Vec<String> = self.lock(py).sources().iter().take(20).map(|known| known.name.clone()).collect();
            bad(py, ".admit", "source", source, &format!("one of {}", quoted(names)))
        })?;
        self.event(py, |ledger| ledger.admit(source))
    }

    /// Running → ready.
    ///
    /// Parameters
    /// ----------
    /// ticket : int
    ///     A running rollout's.
    /// versions : (T,) int, optional
    ///     The policy version of each token of the completion, where weights were updated meanwhile.
    /// spans : list of (int, int), optional
    ///     The same as (version, tokens) of each span. One span, [(version, tokens)], gives the rollout its weight in
    ///     means over tokens.
    /// unknown : bool
    ///     Nobody knows the versions: the rollout has no lag, and is counted apart from those that have one.
    ///
    ///     With none of the three, all tokens are of the version at admission, and their number is not known.
    ///
    /// Raises
    /// ------
    /// InputError
    ///     `ledger_ticket`: not a ticket, or long finished. `ledger_version`: a token is newer than the trainer.
    ///     `bad_parameter`: no token, a negative number, or more than one of the three.
    /// StateError
    ///     `ledger_state`: the rollout does not run.
    #[pyo3(signature = (ticket, *, versions=None, spans=None, unknown=false))]
    fn complete(
        &self,
        py: Python<'_>,
        ticket: Ticket,
        versions: Option<&Bound<'_, PyAny>>,
        spans: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = flag)] unknown: bool,
    ) -> PyResult<()> {
        let given = match (versions, spans, unknown) {
            (None, None, true) => None,
            (None, None, false) => {
                return self.event(py, |ledger| ledger.complete(ticket.0, |version| Some(Versions::all_of(version))));
            }
            (Some(versions), None, false) => Some(of_versions(versions)?),
            (None, Some(spans), false) => Some(of_spans(spans)?),
            _ => {
                let expected = "only one of versions, spans and unknown";
                return Err(bad(py, ".complete", "versions", versions.or(spans), expected));
            }
        };
        self.event(py, |ledger| ledger.complete(ticket.0, |_| given))
    }

    /// Running → gone; its place is given back.
    ///
    /// Parameters
    /// ----------
    /// ticket : int
    ///     A running rollout's.
    /// reason : {"error", "timeout", "cancelled", "rejected", "stale", "lost"}
    ///     "rejected": it ended, and is not worth keeping (its group has no signal, say). "stale": it still runs, and
    ///     lags too far already (see `lag`).
    ///
    /// Raises
    /// ------
    /// InputError
    ///     `ledger_ticket`, or `bad_parameter`: another reason.
    /// StateError
    ///     `ledger_state`: the rollout does not run.
    #[pyo3(signature = (ticket, reason=None), text_signature = "($self, ticket, reason='error')")]
    fn abort(&self, py: Python<'_>, ticket: Ticket, reason: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let names = Reason::ALL.map(|(_, name)| name);
        let number = reason.map_or(Ok(0), |given| word(".abort", "reason", given, &names))?;
        let reason = Reason::ALL[number].0;
        self.event(py, |ledger| ledger.abort(ticket.0, reason))
    }

    /// The trainer's version becomes `version`, or one more. Call it before the new weights go to the engines.
    ///
    /// Returns
    /// -------
    /// int
    ///     The version now.
    ///
    /// Raises
    /// ------
    /// InputError
    ///     `ledger_version`: versions never fall.
    #[pyo3(signature = (version=None))]
    fn advance(&self, py: Python<'_>, version: Option<&Bound<'_, PyAny>>) -> PyResult<u64> {
        let version = version.map(|version| whole(".advance", "version", version, 0)).transpose()?;
        self.event(py, |ledger| ledger.advance(version))
    }

    /// Ready → gone, for rollouts whose oldest token is too old; their places are given back.
    ///
    /// Parameters
    /// ----------
    /// max_lag : int, optional
    ///     The largest lag that is kept; `max_staleness` by default.
    /// unknown : bool
    ///     Whether those of unknown versions go too; by default they stay.
    ///
    /// Returns
    /// -------
    /// list of int
    ///     Their tickets, in order of admission.
    ///
    /// Notes
    /// -----
    /// Discarding favours the prompts that are answered quickly: watch `starvation`. Before a batch that is cut into
    /// N steps, evict with max_lag = bound − (N − 1): its last minibatch is trained N − 1 versions later.
    #[pyo3(signature = (max_lag=None, *, unknown=false))]
    fn evict(
        &self,
        py: Python<'_>,
        max_lag: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = flag)] unknown: bool,
    ) -> PyResult<Vec<u64>> {
        let max_lag = max_lag.map(|lag| whole(".evict", "max_lag", lag, 0)).transpose()?;
        Ok(self.lock(py).evict(max_lag.unwrap_or(self.max_staleness), unknown))
    }

    /// Ready → consumed: the next batch, those that were admitted first.
    ///
    /// Parameters
    /// ----------
    /// n : int, optional
    ///     Rollouts; `batch_size` · `steps` by default.
    /// steps : int
    ///     Minibatches, each an optimizer step: the k-th is trained at version + k, and its lags say so. Advance once
    ///     after each.
    ///
    /// Returns
    /// -------
    /// TakenBatch or None
    ///     None while fewer than n are ready: wait, and ask again.
    ///
    /// Raises
    /// ------
    /// InputError
    ///     `bad_parameter`: no rollout, or more minibatches than rollouts.
    #[pyo3(signature = (n=None, steps=None), text_signature = "($self, n=None, steps=1)")]
    fn take(
        &self,
        py: Python<'_>,
        n: Option<&Bound<'_, PyAny>>,
        steps: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<TakenBatch>> {
        let steps = steps.map_or(Ok(1), |steps| whole(".take", "steps", steps, 1))?;
        let n = n.map_or(Ok(self.batch_size.saturating_mul(steps)), |n| whole(".take", "n", n, 1))?;
        Ok(self.event(py, |ledger| ledger.take(n, steps))?.map(TakenBatch))
    }

    /// Counts an evicted or aborted rollout as one that is to be sampled again, under a new ticket.
    ///
    /// Parameters
    /// ----------
    /// ticket : int
    ///     One that was evicted or aborted lately: of finished rollouts only the last are remembered, as many as may be
    ///     under way, (max_staleness + 1) · batch_size, but 4,096 at least and 2**20 at most.
    ///
    /// Raises
    /// ------
    /// InputError
    ///     `ledger_ticket`: forgotten, or never given out.
    /// StateError
    ///     `ledger_state`: not evicted or aborted, or requeued already.
    fn requeue(&self, py: Python<'_>, ticket: Ticket) -> PyResult<()> {
        self.event(py, |ledger| ledger.requeue(ticket.0))
    }

    /// "running", "ready", "consumed", "evicted", "aborted", "requeued", "forgotten" or "never issued".
    fn state(&self, py: Python<'_>, ticket: Ticket) -> &'static str {
        self.lock(py).state(ticket.0).name()
    }

    /// The versions of a ready rollout's tokens; None where they are not known. A `ledger_state` error where it is not
    /// ready.
    fn span(&self, py: Python<'_>, ticket: Ticket) -> PyResult<Option<VersionSpan>> {
        Ok(self.event(py, |ledger| ledger.versions(ticket.0))?.map(VersionSpan::of))
    }

    /// The trainer's version minus that of the rollout's oldest token; while it runs, minus that at admission. None
    /// where it is not known.
    fn lag(&self, py: Python<'_>, ticket: Ticket) -> PyResult<Option<u64>> {
        self.event(py, |ledger| ledger.lag(ticket.0))
    }

    /// The lags of what is ready, at the trainer's version.
    fn lags(&self, py: Python<'_>) -> LagStatistics {
        LagStatistics::of(self.lock(py).lags())
    }

    /// The tickets that run, in order of admission.
    fn running(&self, py: Python<'_>) -> Vec<u64> {
        self.lock(py).running().collect()
    }

    /// The tickets that are ready, in order of admission, which is the order in which they are taken.
    fn ready(&self, py: Python<'_>) -> Vec<u64> {
        self.lock(py).ready().collect()
    }

    /// How many more rollouts may start.
    #[getter]
    fn capacity(&self, py: Python<'_>) -> u64 {
        self.lock(py).capacity()
    }

    /// The trainer's version.
    #[getter]
    fn version(&self, py: Python<'_>) -> u64 {
        self.lock(py).version()
    }

    /// Rollouts by state: admitted = running + ready + consumed + evicted + aborted, always.
    #[getter]
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counts = self.lock(py).counts();
        rows_of(&counts).into_py_dict(py)
    }

    /// Aborted rollouts by reason.
    #[getter]
    fn abort_reasons(&self, py: Python<'_>) -> BTreeMap<&'static str, u64> {
        let ledger = self.lock(py);
        let total = |reason: Reason| ledger.sources().iter().map(|source| source.aborted[reason as usize]).sum();
        Reason::ALL.into_iter().map(|(reason, name)| (name, total(reason))).collect()
    }

    /// What became of each source's rollouts: whether discarding starves some of them.
    ///
    /// Returns
    /// -------
    /// dict of dict
    ///     By source: `admitted`, `running`, `ready`, `consumed`, `evicted`, `aborted`, `requeued`,
    ///     `evicted_since_consumed` (it grows while all of a source's rollouts are thrown away), and `share_admitted`
    ///     and `share_consumed`, the source's part of all that was admitted and consumed (0.0 where nothing was). A
    ///     share consumed well below that admitted: slow prompts are lost. `requeued` growing faster than `consumed`:
    ///     the same prompts go round and round.
    fn starvation<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (sources, under_way, counts) = {
            let ledger = self.lock(py);
            (ledger.sources().to_vec(), ledger.under_way(), ledger.counts())
        };
        starvation(py, &sources, &under_way, &counts)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let ledger = self.lock(py);
        let counts: Vec<String> =
            rows_of(&ledger.counts()).into_iter().map(|(name, count)| format!("{name}={count}")).collect();
        format!("<StalenessLedger version={} capacity={} {}>", ledger.version(), ledger.capacity(), counts.join(" "))
    }
}

impl StalenessLedger {
    fn of(ledger: Ledger) -> Self {
        let sources = ledger.sources().iter().map(|source| source.name.clone()).zip(0..).collect();
        let Limits { batch_size, max_staleness, max_running } = ledger.limits();
        Self { ledger: Mutex::new(ledger), sources, batch_size, max_staleness, max_running }
    }

    /// One call of the books. They are free again before an error is made: that runs Python, where a signal handler or
    /// a finalizer may ask the ledger something.
    fn event<T>(&self, py: Python<'_>, call: impl FnOnce(&mut Ledger) -> Result<T, LedgerError>) -> PyResult<T> {
        let result = call(&mut self.lock(py));
        result.map_err(|failure| raise(py, &failure))
    }

    fn lock(&self, py: Python<'_>) -> MutexGuard<'_, Ledger> {
        self.ledger.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }
}
