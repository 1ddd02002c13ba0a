//! What became of the rollouts that finished last; older ones are forgotten, so that memory is bounded.

use std::collections::{HashMap, VecDeque};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Fate {
    Consumed,
    Evicted,
    Aborted,
    Requeued,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Finished {
    pub source: u32,
    pub fate: Fate,
}

/// Finished rollouts by ticket, and their tickets in the order in which they finished.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Remembered {
    rollouts: HashMap<u64, Finished>,
    order: VecDeque<u64>,
}

impl Remembered {
    pub fn len(&self) -> u64 {
        self.order.len() as u64
    }

    pub fn get(&self, ticket: u64) -> Option<Finished> {
        self.rollouts.get(&ticket).copied()
    }

    pub fn get_mut(&mut self, ticket: u64) -> Option<&mut Finished> {
        self.rollouts.get_mut(&ticket)
    }

    pub fn push(&mut self, ticket: u64, finished: Finished) {
        self.order.push_back(ticket);
        self.rollouts.insert(ticket, finished);
    }

    pub fn forget_first(&mut self) {
        if let Some(ticket) = self.order.pop_front() {
            self.rollouts.remove(&ticket);
        }
    }

    /// All of them, in the order in which they finished.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Finished)> {
        self.order.iter().filter_map(|&ticket| Some((ticket, self.get(ticket)?)))
    }

    /// Whether no ticket finished twice.
    pub fn differ(&self) -> bool {
        self.rollouts.len() == self.order.len()
    }
}
