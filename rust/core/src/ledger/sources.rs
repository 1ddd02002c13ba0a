//! Counts: by source, by reason, and of all.

/// Why a running rollout came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// The engine, the environment or the scorer failed.
    Error,
    /// It took too long.
    Timeout,
    /// The caller gave it up.
    Cancelled,
    /// It ended, and is not worth keeping.
    Rejected,
    /// It was given up because its tokens had become too old.
    Stale,
    /// The process that ran it is gone.
    Lost,
}

impl Reason {
    /// All of them with their names, in the order of their numbers.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Error, "error"),
        (Self::Timeout, "timeout"),
        (Self::Cancelled, "cancelled"),
        (Self::Rejected, "rejected"),
        (Self::Stale, "stale"),
        (Self::Lost, "lost"),
    ];
}

/// Where rollouts come from, and what became of them; what runs and what is ready is counted where it lies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Tickets given out.
    pub admitted: u64,
    /// Taken for training.
    pub consumed: u64,
    /// Ready, but thrown away.
    pub evicted: u64,
    /// Never ready, by [`Reason`].
    pub aborted: [u64; Reason::ALL.len()],
    /// Evicted or aborted, and to be sampled again.
    pub requeued: u64,
    /// Evicted since one was consumed.
    pub evicted_since_consumed: u64,
}

/// What is there and what became of the rest: admitted is the sum of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Counts {
    pub admitted: u64,
    pub running: u64,
    pub ready: u64,
    pub consumed: u64,
    pub evicted: u64,
    pub aborted: u64,
}
