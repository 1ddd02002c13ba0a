//! How many threads, how work is spread over them, and how a long call is stopped.
//!
//! Threads are scoped: they live for one call, so a forked child inherits no pool to rebuild and no lock to wait for.
//! Starting one costs some 20 µs, which is why short work stays on the caller's.

use crate::CoreError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

/// Below this many rows, arithmetic runs on the caller's thread.
pub const PARALLEL_ROWS: usize = 1 << 19;

/// The most threads that a call uses, however many are asked for.
const MOST: usize = 256;

/// Rows between two looks at whether the caller wants to stop.
pub const POLL_ROWS: usize = 1 << 20;

/// How a call runs: its threads, and how to ask whether it should stop.
pub struct Context<'a> {
    threads: usize,
    poll: &'a (dyn Fn() -> bool + Sync),
    stopped: AtomicBool,
}

impl<'a> Context<'a> {
    /// `poll` answers true when the caller wants to stop; it is asked every [`POLL_ROWS`] rows.
    pub fn new(threads: usize, poll: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self { threads: threads.clamp(1, MOST), poll, stopped: AtomicBool::new(false) }
    }

    /// The threads to use for that many rows, which are worth more than one from `enough` on.
    pub fn threads_for(&self, rows: usize, enough: usize) -> usize {
        if rows < enough { 1 } else { self.threads }
    }

    /// # Errors
    /// [`CoreError::Interrupted`] when the caller wants to stop.
    pub fn check(&self) -> Result<(), CoreError> {
        if self.stopped.load(Ordering::Relaxed) || (self.poll)() {
            self.stopped.store(true, Ordering::Relaxed);
            return Err(CoreError::Interrupted);
        }
        Ok(())
    }

    /// Calls `work` on each part, one thread a part, the first on the caller's own.
    ///
    /// # Errors
    /// The first error in the order of the parts.
    pub fn each<T: Send, R: Send>(
        &self,
        parts: Vec<T>,
        work: impl Fn(T) -> Result<R, CoreError> + Sync,
    ) -> Result<Vec<R>, CoreError> {
        if parts.len() <= 1 {
            return parts.into_iter().map(work).collect();
        }
        let work = &work;
        std::thread::scope(|scope| {
            let mut parts = parts.into_iter();
            let first = parts.next();
            let started: Vec<_> = parts.map(|part| start(scope, part, work)).collect();
            let first: Vec<_> = first.map(work).into_iter().collect();
            first.into_iter().chain(started.into_iter().map(Started::result)).collect()
        })
    }
}

/// Work on a thread of its own, or done already where the system had no thread to give.
enum Started<'scope, R> {
    Running(ScopedJoinHandle<'scope, Result<R, CoreError>>),
    Done(Result<R, CoreError>),
}

fn start<'scope, T: Send + 'scope, R: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    part: T,
    work: &'scope (impl Fn(T) -> Result<R, CoreError> + Sync),
) -> Started<'scope, R> {
    // The part waits in a slot, so that it is still here when no thread took it.
    let slot = Arc::new(Mutex::new(Some(part)));
    let take = |slot: &Mutex<Option<T>>| slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    let theirs = slot.clone();
    let run = move || take(&theirs).map_or(Err(CoreError::Interrupted), work);
    match std::thread::Builder::new().spawn_scoped(scope, run) {
        Ok(handle) => Started::Running(handle),
        Err(_) => Started::Done(take(&slot).map_or(Err(CoreError::Interrupted), work)),
    }
}

impl<R> Started<'_, R> {
    fn result(self) -> Result<R, CoreError> {
        match self {
            Self::Done(result) => result,
            Self::Running(handle) => handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        }
    }
}

/// The rows of each part when `rows` are cut into about equal, consecutive parts.
#[must_use]
pub fn part_size(rows: usize, parts: usize) -> usize {
    rows.div_ceil(parts.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_run_in_order_and_the_first_error_wins() {
        let context = Context::new(3, &|| false);
        assert_eq!(context.each(vec![1, 2, 3], |x| Ok(x * 2)), Ok(vec![2, 4, 6]));
        let failed =
            context.each(vec![0, 1, 2], |x| if x == 0 { Ok(x) } else { Err(CoreError::TooManyRows { given: x }) });
        assert_eq!(failed, Err(CoreError::TooManyRows { given: 1 }));
    }

    #[test]
    fn stopping_is_seen_by_all_parts() {
        let context = Context::new(2, &|| true);
        assert_eq!(context.check(), Err(CoreError::Interrupted));
        let quiet = Context::new(2, &|| false);
        assert_eq!(quiet.check(), Ok(()));
    }
}
