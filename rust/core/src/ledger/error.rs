//! What can be wrong with an event, with the numbers that a message needs. A refused event changes nothing.

use std::fmt;

/// Where a rollout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Admitted.
    Running,
    /// Complete, and not yet taken.
    Ready,
    /// Taken for training.
    Consumed,
    /// Thrown away after it was ready.
    Evicted,
    /// Given up before it was ready.
    Aborted,
    /// Evicted or aborted, and counted as one to be sampled again.
    Requeued,
    /// Finished long ago.
    Forgotten,
    /// Its ticket was never given out.
    NeverIssued,
}

impl State {
    /// One word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Ready => "ready",
            Self::Consumed => "consumed",
            Self::Evicted => "evicted",
            Self::Aborted => "aborted",
            Self::Requeued => "requeued",
            Self::Forgotten => "forgotten",
            Self::NeverIssued => "never issued",
        }
    }
}

/// What was asked for a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Action {
    Complete,
    Abort,
    Requeue,
    Span,
    Lag,
}

impl Action {
    /// Its name, and the states in which it is possible.
    #[must_use]
    pub fn needs(self) -> (&'static str, &'static str) {
        match self {
            Self::Complete => ("complete", "running"),
            Self::Abort => ("abort", "running"),
            Self::Requeue => ("requeue", "evicted or aborted"),
            Self::Span => ("span", "ready"),
            Self::Lag => ("lag", "running or ready"),
        }
    }
}

/// Every way in which a call of the ledger can fail.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LedgerError {
    /// A limit, version or source that cannot be meant.
    Parameter(&'static str),
    /// A source that does not exist.
    Source { given: usize, sources: usize },
    /// A ticket that was not given out.
    NeverIssued { ticket: u64, issued: u64 },
    /// A ticket that finished before those that are remembered.
    Forgotten { ticket: u64, remembered: u64 },
    /// A ticket in another state than the call needs.
    State { ticket: u64, state: State, action: Action },
    /// Tokens of a version that the trainer has not reached.
    Ahead { given: u64, version: u64 },
    /// The trainer's version cannot fall.
    Back { given: u64, version: u64 },
    /// A minibatch would have no rollout, or there would be none.
    Steps { n: u64, steps: u64 },
    /// A completion without tokens has no version.
    NoTokens,
    /// A version that no trainer has.
    BadVersion { place: usize, given: i64 },
    /// A number of tokens below 0, or too large together with those before.
    BadTokens { place: usize, given: i64 },
    /// Bytes that do not begin as a snapshot does.
    NotASnapshot { bytes: usize },
    /// A snapshot of another schema.
    Schema { given: u32, expected: u32 },
    /// A snapshot that was cut short, or has something behind its end.
    SnapshotLength { given: usize, expected: u64 },
    /// A snapshot whose bytes have changed.
    Checksum { given: u64, expected: u64 },
    /// A snapshot whose contents contradict each other.
    Contents(&'static str),
}

impl fmt::Display for LedgerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parameter(name) => write!(f, "{name} cannot be meant"),
            Self::Source { given, sources } => write!(f, "source {given} of {sources}"),
            Self::NeverIssued { ticket, issued } => write!(f, "ticket {ticket} was never issued, {issued} were"),
            Self::Forgotten { ticket, remembered } => {
                write!(f, "ticket {ticket} finished before the last {remembered} that are remembered")
            }
            Self::State { ticket, state, action } => {
                let (action, expected) = action.needs();
                write!(f, "ticket {ticket} is {}; {action} needs one that is {expected}", state.name())
            }
            Self::Ahead { given, version } => write!(f, "tokens of version {given}, the trainer is at {version}"),
            Self::Back { given, version } => write!(f, "version {given}, the trainer is at {version}"),
            Self::Steps { n, steps } => write!(f, "{n} rollouts in {steps} minibatches"),
            Self::NoTokens => write!(f, "no tokens"),
            Self::BadVersion { place, given } => write!(f, "version {given} at place {place}"),
            Self::BadTokens { place, given } => write!(f, "{given} tokens at place {place}"),
            Self::NotASnapshot { bytes } => write!(f, "{bytes} bytes that are no snapshot"),
            Self::Schema { given, expected } => write!(f, "a snapshot of schema {given}, expected {expected}"),
            Self::SnapshotLength { given, expected } => write!(f, "{given} bytes, expected {expected}"),
            Self::Checksum { given, expected } => write!(f, "checksum {given:016x}, expected {expected:016x}"),
            Self::Contents(law) => write!(f, "the snapshot's {law} contradict each other"),
        }
    }
}

impl std::error::Error for LedgerError {}
