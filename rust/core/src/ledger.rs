//! The books of an asynchronous trainer: which rollouts run, wait and were used, and how old their tokens are.
//!
//! In: one event a call (admitted, complete, aborted, taken, evicted, a new version). Out: how many more may start, the
//! next batch, lags, and what became of every rollout: admitted = running + ready + consumed + evicted + aborted, always.
//! A rollout is known by its ticket, numbered from 0 in order of admission; its contents are the caller's.

mod error;
mod finished;
mod laws;
mod snapshot;
mod sources;
mod versions;

pub use error::{Action, LedgerError, State};
pub use sources::{Counts, Reason, Source};
pub use versions::{LagStatistics, Versions};

use finished::{Fate, Finished, Remembered};
use std::collections::BTreeMap;

/// Versions, sizes and counts of tokens stay below this, so that f64 and Python's neighbours hold them exactly.
pub const LARGEST: u64 = 1 << 53;

/// At least so many finished rollouts are remembered, for `requeue` and for errors that say what became of a ticket.
const REMEMBERED: u64 = 4096;

/// How much may be under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Rollouts that the trainer consumes in one version, 1 or more.
    pub batch_size: u64,
    /// η: versions that the oldest may lag behind; 0 is synchronous training.
    pub max_staleness: u64,
    /// The most that run at a time, 1 or more.
    pub max_running: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Running {
    version: u64,
    source: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ready {
    versions: Option<Versions>,
    source: u32,
}

/// A batch for training: rollouts in order of admission, cut into minibatches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The version that the first minibatch trains; each later one trains the next.
    pub version: u64,
    /// Where each minibatch ends.
    pub ends: Vec<usize>,
    /// The rollouts.
    pub tickets: Vec<u64>,
    /// The versions of each one's tokens, where they are known.
    pub versions: Vec<Option<Versions>>,
}

impl Taken {
    /// The version that each rollout trains.
    pub fn trains(&self) -> impl Iterator<Item = u64> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        (self.version..)
            .zip(starts.zip(&self.ends))
            .flat_map(|(version, (start, &end))| (start..end).map(move |_| version))
    }
}

/// The books.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    limits: Limits,
    first_version: u64,
    version: u64,
    next: u64,
    consumed: u64,
    sources: Vec<Source>,
    running: BTreeMap<u64, Running>,
    ready: BTreeMap<u64, Ready>,
    finished: Remembered,
}

impl Ledger {
    /// Empty books of a trainer that is at `version`.
    ///
    /// # Errors
    /// A limit, version or source that cannot be meant.
    pub fn new(limits: Limits, version: u64, sources: Vec<String>) -> Result<Self, LedgerError> {
        let ledger = Self {
            limits,
            first_version: version,
            version,
            next: 0,
            consumed: 0,
            sources: sources.into_iter().map(|name| Source { name, ..Source::default() }).collect(),
            running: BTreeMap::new(),
            ready: BTreeMap::new(),
            finished: Remembered::default(),
        };
        ledger.check().map_err(LedgerError::Parameter)?;
        Ok(ledger)
    }

    /// What was given to [`Self::new`].
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The trainer's version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many more may start: min(R − running, (η + v + 1)·B − (accepted + running)), 0 at least, where R is
    /// `max_running` and accepted is ready + consumed + B for every version before the first.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        let running = self.running.len() as u64;
        let versions = u128::from(self.limits.max_staleness) + u128::from(self.version - self.first_version) + 1;
        let spent = u128::from(running) + self.ready.len() as u128 + u128::from(self.consumed);
        let budget = (versions * u128::from(self.limits.batch_size)).saturating_sub(spent);
        let budget = u64::try_from(budget).map_or(LARGEST, |budget| budget.min(LARGEST));
        self.limits.max_running.map_or(budget, |most| budget.min(most.saturating_sub(running)))
    }

    /// Starts a rollout, stamped with the version; None when there is no capacity.
    ///
    /// # Errors
    /// A source that does not exist.
    pub fn admit(&mut self, source: usize) -> Result<Option<u64>, LedgerError> {
        if source >= self.sources.len() {
            return Err(LedgerError::Source { given: source, sources: self.sources.len() });
        }
        if self.capacity() == 0 {
            return Ok(None);
        }
        self.sources[source].admitted += 1;
        let ticket = self.next;
        self.next += 1;
        self.running.insert(ticket, Running { version: self.version, source: source as u32 });
        Ok(Some(ticket))
    }

    /// Running → ready. `versions` gives the versions of the tokens from the one at admission.
    ///
    /// # Errors
    /// A ticket that does not run, or a version above the trainer's.
    pub fn complete(&mut self, ticket: u64, versions: impl FnOnce(u64) -> Option<Versions>) -> Result<(), LedgerError> {
        let rollout = self.running.get(&ticket).ok_or_else(|| self.wrong(Action::Complete, ticket))?;
        let ready = Ready { versions: versions(rollout.version), source: rollout.source };
        if let Some(versions) = ready.versions.filter(|versions| versions.newest() > self.version) {
            return Err(LedgerError::Ahead { given: versions.newest(), version: self.version });
        }
        self.running.remove(&ticket);
        self.ready.insert(ticket, ready);
        Ok(())
    }

    /// Running → gone.
    ///
    /// # Errors
    /// A ticket that does not run.
    pub fn abort(&mut self, ticket: u64, reason: Reason) -> Result<(), LedgerError> {
        let rollout = self.running.remove(&ticket).ok_or_else(|| self.wrong(Action::Abort, ticket))?;
        self.sources[rollout.source as usize].aborted[reason as usize] += 1;
        self.remember(ticket, rollout.source, Fate::Aborted);
        Ok(())
    }

    /// The trainer's version becomes `version`, or one more.
    ///
    /// # Errors
    /// A version below the trainer's, or beyond [`LARGEST`].
    pub fn advance(&mut self, version: Option<u64>) -> Result<u64, LedgerError> {
        let given = version.unwrap_or(self.version + 1);
        if given < self.version {
            return Err(LedgerError::Back { given, version: self.version });
        }
        if given >= LARGEST {
            return Err(LedgerError::Parameter("version"));
        }
        self.version = given;
        Ok(given)
    }

    /// Ready → gone, for those whose oldest token lags more than `max_lag`, and, if `unknown`, those of which it is not
    /// known. Returns their tickets, the oldest first; their budget is given back.
    pub fn evict(&mut self, max_lag: u64, unknown: bool) -> Vec<u64> {
        let version = self.version;
        self.evict_where(|ready| ready.versions.map_or(unknown, |versions| versions.lag(version) > max_lag))
    }

    fn evict_where(&mut self, wanted: impl Fn(&Ready) -> bool) -> Vec<u64> {
        let tickets: Vec<u64> =
            self.ready.iter().filter(|(_, ready)| wanted(ready)).map(|(&ticket, _)| ticket).collect();
        for ticket in &tickets {
            if let Some(ready) = self.ready.remove(ticket) {
                let books = &mut self.sources[ready.source as usize];
                books.evicted += 1;
                books.evicted_since_consumed += 1;
                self.remember(*ticket, ready.source, Fate::Evicted);
            }
        }
        tickets
    }

    /// Ready → consumed: the `n` that were admitted first, cut into `steps` minibatches whose sizes differ by one at
    /// most; None when fewer are ready.
    ///
    /// # Errors
    /// No minibatch, or more minibatches than rollouts.
    pub fn take(&mut self, n: u64, steps: u64) -> Result<Option<Taken>, LedgerError> {
        if steps == 0 || n < steps {
            return Err(LedgerError::Steps { n, steps });
        }
        if n > self.ready.len() as u64 {
            return Ok(None);
        }
        let ends = (1..=steps).map(|step| (n / steps * step + (n % steps).min(step)) as usize).collect();
        let (mut tickets, mut versions) = (Vec::with_capacity(n as usize), Vec::with_capacity(n as usize));
        while tickets.len() < n as usize {
            let Some((ticket, ready)) = self.ready.pop_first() else { break };
            tickets.push(ticket);
            versions.push(ready.versions);
            let books = &mut self.sources[ready.source as usize];
            books.consumed += 1;
            books.evicted_since_consumed = 0;
            self.remember(ticket, ready.source, Fate::Consumed);
        }
        self.consumed += n;
        Ok(Some(Taken { version: self.version, ends, tickets, versions }))
    }

    /// Counts an evicted or aborted rollout as one that is to be sampled again.
    ///
    /// # Errors
    /// A ticket of another state, or one that is forgotten.
    pub fn requeue(&mut self, ticket: u64) -> Result<(), LedgerError> {
        match self.finished.get_mut(ticket).filter(|finished| matches!(finished.fate, Fate::Evicted | Fate::Aborted)) {
            None => Err(self.wrong(Action::Requeue, ticket)),
            Some(finished) => {
                finished.fate = Fate::Requeued;
                self.sources[finished.source as usize].requeued += 1;
                Ok(())
            }
        }
    }

    /// What became of a ticket.
    #[must_use]
    pub fn state(&self, ticket: u64) -> State {
        if self.running.contains_key(&ticket) {
            return State::Running;
        }
        if self.ready.contains_key(&ticket) {
            return State::Ready;
        }
        match self.finished.get(ticket).map(|finished| finished.fate) {
            Some(Fate::Consumed) => State::Consumed,
            Some(Fate::Evicted) => State::Evicted,
            Some(Fate::Aborted) => State::Aborted,
            Some(Fate::Requeued) => State::Requeued,
            None if ticket < self.next => State::Forgotten,
            None => State::NeverIssued,
        }
    }

    /// The versions of a ready rollout's tokens; None where they are not known.
    ///
    /// # Errors
    /// A ticket that is not ready.
    pub fn versions(&self, ticket: u64) -> Result<Option<Versions>, LedgerError> {
        let ready = self.ready.get(&ticket).ok_or_else(|| self.wrong(Action::Span, ticket))?;
        Ok(ready.versions)
    }

    /// The trainer's version minus that of the oldest token, for a running rollout that at admission; None where it is
    /// not known.
    ///
    /// # Errors
    /// A ticket that neither runs nor is ready.
    pub fn lag(&self, ticket: u64) -> Result<Option<u64>, LedgerError> {
        match (self.running.get(&ticket), self.ready.get(&ticket)) {
            (Some(rollout), _) => Ok(Some(self.version - rollout.version)),
            (None, Some(ready)) => Ok(ready.versions.map(|versions| versions.lag(self.version))),
            (None, None) => Err(self.wrong(Action::Lag, ticket)),
        }
    }

    /// The lags of what is ready.
    #[must_use]
    pub fn lags(&self) -> LagStatistics {
        LagStatistics::of(self.ready.values().map(|ready| (ready.versions, self.version)))
    }

    /// The tickets that run, in order of admission.
    pub fn running(&self) -> impl Iterator<Item = u64> {
        self.running.keys().copied()
    }

    /// The tickets that are ready, in order of admission.
    pub fn ready(&self) -> impl Iterator<Item = u64> {
        self.ready.keys().copied()
    }

    /// The sources, in the order in which they were given.
    #[must_use]
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// How many rollouts of each source run, and how many are ready.
    #[must_use]
    pub fn under_way(&self) -> Vec<(u64, u64)> {
        let mut counts = vec![(0, 0); self.sources.len()];
        self.running.values().for_each(|rollout| counts[rollout.source as usize].0 += 1);
        self.ready.values().for_each(|ready| counts[ready.source as usize].1 += 1);
        counts
    }

    /// How many rollouts there are of each state.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let total = |of: fn(&Source) -> u64| self.sources.iter().map(of).sum();
        Counts {
            admitted: total(|source| source.admitted),
            running: self.running.len() as u64,
            ready: self.ready.len() as u64,
            consumed: total(|source| source.consumed),
            evicted: total(|source| source.evicted),
            aborted: total(|source| source.aborted.iter().sum()),
        }
    }

    /// Aborts all that run, as lost with their process, and returns their tickets.
    pub fn lose_running(&mut self) -> Vec<u64> {
        let tickets: Vec<u64> = self.running().collect();
        // Every one of them runs, so none is refused.
        for &ticket in &tickets {
            drop(self.abort(ticket, Reason::Lost));
        }
        tickets
    }

    /// Evicts all that is ready and returns its tickets.
    pub fn lose_ready(&mut self) -> Vec<u64> {
        self.evict_where(|_| true)
    }

    fn remember(&mut self, ticket: u64, source: u32, fate: Fate) {
        if self.finished.len() >= self.remembers() {
            self.finished.forget_first();
        }
        self.finished.push(ticket, Finished { source, fate });
    }

    /// As many as may be under way when every version consumes its batch, so that all of one eviction can be requeued.
    fn remembers(&self) -> u64 {
        let under_way = (self.limits.max_staleness + 1).saturating_mul(self.limits.batch_size);
        under_way.clamp(REMEMBERED, REMEMBERED << 8)
    }

    fn wrong(&self, action: Action, ticket: u64) -> LedgerError {
        match self.state(ticket) {
            State::NeverIssued => LedgerError::NeverIssued { ticket, issued: self.next },
            State::Forgotten => LedgerError::Forgotten { ticket, remembered: self.finished.len() },
            state => LedgerError::State { ticket, state, action },
        }
    }
}
