//! What holds at every moment, whatever happened: checked after a snapshot is read, and at every step of the tests.

use super::{LARGEST, Ledger, Versions};

type Law = (fn(&Ledger) -> bool, &'static str);

impl Ledger {
    /// Every invariant, in an order in which none of them can fail on what an earlier one would have found.
    ///
    /// # Errors
    /// The name of what does not hold.
    pub fn check(&self) -> Result<(), &'static str> {
        let laws: [Law; 9] = [
            (|ledger| within(ledger.limits.batch_size, 1), "batch_size"),
            (|ledger| within(ledger.limits.max_staleness, 0), "max_staleness"),
            (|ledger| ledger.limits.max_running.is_none_or(|most| within(most, 1)), "max_running"),
            (|ledger| ledger.first_version <= ledger.version && within(ledger.version, 0), "version"),
            (Self::names_differ, "sources"),
            (Self::running_is_sound, "running rollouts"),
            (Self::ready_is_sound, "ready rollouts"),
            (Self::finished_is_sound, "finished rollouts"),
            (Self::counts_add_up, "counts"),
        ];
        laws.iter().find(|(holds, _)| !holds(self)).map_or(Ok(()), |(_, law)| Err(law))
    }

    fn names_differ(&self) -> bool {
        let mut names: Vec<&str> = self.sources.iter().map(|source| source.name.as_str()).collect();
        names.sort_unstable();
        !names.is_empty() && names.len() < 1 << 20 && names.windows(2).all(|pair| pair[0] != pair[1])
    }

    fn knows(&self, source: u32) -> bool {
        (source as usize) < self.sources.len()
    }

    fn running_is_sound(&self) -> bool {
        self.running.keys().all(|&ticket| ticket < self.next)
            && self.running.values().all(|rollout| self.knows(rollout.source) && rollout.version <= self.version)
            && self.running.values().is_sorted_by_key(|rollout| rollout.version)
    }

    fn ready_is_sound(&self) -> bool {
        let fine = |versions: Versions| versions.newest() <= self.version && versions.is_sound();
        self.ready.keys().all(|ticket| *ticket < self.next && !self.running.contains_key(ticket))
            && self.ready.values().all(|ready| self.knows(ready.source) && ready.versions.is_none_or(fine))
    }

    fn finished_is_sound(&self) -> bool {
        let under_way = |ticket: u64| self.running.contains_key(&ticket) || self.ready.contains_key(&ticket);
        let fine = |ticket: u64, source: u32| ticket < self.next && !under_way(ticket) && self.knows(source);
        self.finished.differ()
            && self.finished.len() <= self.remembers()
            && self.finished.iter().all(|(ticket, finished)| fine(ticket, finished.source))
    }

    fn counts_add_up(&self) -> bool {
        // Wide sums, since what was read may be any number.
        let (mut admitted, mut consumed) = (0_u128, 0_u128);
        let mut remembered = vec![[0_u64; 4]; self.sources.len()];
        for (_, finished) in self.finished.iter() {
            remembered[finished.source as usize][finished.fate as usize] += 1;
        }
        for ((source, (running, ready)), fates) in self.sources.iter().zip(self.under_way()).zip(remembered) {
            let [taken, evicted, failed, requeued] = fates;
            let aborted: u128 = source.aborted.iter().map(|&count| u128::from(count)).sum();
            let gone = u128::from(source.evicted) + aborted;
            let sum = u128::from(running) + u128::from(ready) + u128::from(source.consumed) + gone;
            let fine = u128::from(source.admitted) == sum
                && source.evicted_since_consumed <= source.evicted
                && taken <= source.consumed
                && evicted <= source.evicted
                && u128::from(failed) <= aborted
                && requeued <= source.requeued
                && u128::from(evicted + failed) + u128::from(source.requeued) <= gone;
            if !fine {
                return false;
            }
            admitted += u128::from(source.admitted);
            consumed += u128::from(source.consumed);
        }
        admitted == u128::from(self.next) && consumed == u128::from(self.consumed)
    }
}

fn within(number: u64, least: u64) -> bool {
    (least..LARGEST).contains(&number)
}

#[cfg(test)]
mod tests {
    use super::super::{Fate, Finished, Limits, Ready, Reason, Running};
    use super::*;

    /// Tickets 0 and 1 run, 2 and 3 are ready, 4 is consumed, 5 evicted, 6 aborted and requeued.
    fn sound() -> Ledger {
        let limits = Limits { batch_size: 4, max_staleness: 2, max_running: None };
        let mut ledger = Ledger::new(limits, 1, vec!["math".into(), "code".into()]).unwrap();
        for source in [0, 1, 0, 1, 0, 1, 0] {
            ledger.admit(source).unwrap().unwrap();
        }
        ledger.complete(4, |version| Some(Versions::all_of(version))).unwrap();
        ledger.take(1, 1).unwrap().unwrap();
        ledger.complete(5, |_| None).unwrap();
        ledger.evict(0, true);
        ledger.abort(6, Reason::Error).unwrap();
        ledger.requeue(6).unwrap();
        ledger.advance(Some(3)).unwrap();
        ledger.complete(2, |_| Versions::of_spans([(0, 2), (3, 1)]).ok()).unwrap();
        ledger.complete(3, |_| None).unwrap();
        assert_eq!(ledger.check(), Ok(()));
        ledger
    }

    #[test]
    fn every_law_is_found_broken() {
        type Fault = (fn(&mut Ledger), &'static str);
        let faults: [Fault; 30] = [
            (|ledger| ledger.limits.batch_size = 0, "batch_size"),
            (|ledger| ledger.limits.max_staleness = LARGEST, "max_staleness"),
            (|ledger| ledger.limits.max_running = Some(0), "max_running"),
            (|ledger| ledger.first_version = 4, "version"),
            (|ledger| ledger.version = LARGEST, "version"),
            (|ledger| ledger.sources[1].name = "math".into(), "sources"),
            (|ledger| ledger.sources.clear(), "sources"),
            (|ledger| run(ledger, 7, 1, 0), "running rollouts"),
            (|ledger| run(ledger, 0, 4, 0), "running rollouts"),
            (|ledger| run(ledger, 0, 1, 2), "running rollouts"),
            (|ledger| run(ledger, 0, 2, 0), "running rollouts"),
            (|ledger| ready(ledger, 7, 0, None), "ready rollouts"),
            (|ledger| ready(ledger, 0, 0, None), "ready rollouts"),
            (|ledger| ready(ledger, 2, 2, None), "ready rollouts"),
            (|ledger| ready(ledger, 2, 0, Some(Versions::all_of(4))), "ready rollouts"),
            (|ledger| ready(ledger, 2, 0, Some(Versions::of_parts(1, 0, 1, 0))), "ready rollouts"),
            (|ledger| ready(ledger, 2, 0, Some(Versions::of_parts(0, 1, 1, 1))), "ready rollouts"),
            (|ledger| ready(ledger, 2, 0, Some(Versions::of_parts(0, 1, 0, 0))), "ready rollouts"),
            (|ledger| ready(ledger, 2, 0, Some(Versions::of_parts(0, 2, 3, 1))), "ready rollouts"),
            (|ledger| ready(ledger, 2, 0, Some(Versions::of_parts(0, 2, 3, 5))), "ready rollouts"),
            (|ledger| ready(ledger, 2, 0, Some(Versions::of_parts(0, 1, LARGEST, 1))), "ready rollouts"),
            (|ledger| finish(ledger, 4, Fate::Consumed), "finished rollouts"),
            (|ledger| finish(ledger, 0, Fate::Aborted), "finished rollouts"),
            (|ledger| finish(ledger, 7, Fate::Aborted), "finished rollouts"),
            (|ledger| ledger.finished.get_mut(4).unwrap().source = 2, "finished rollouts"),
            (|ledger| ledger.next += 1, "counts"),
            (|ledger| ledger.consumed += 1, "counts"),
            (|ledger| ledger.sources[0].evicted += 1, "counts"),
            (|ledger| ledger.sources[1].evicted_since_consumed = 2, "counts"),
            (|ledger| ledger.sources[0].requeued = 2, "counts"),
        ];
        for (number, (fault, law)) in faults.into_iter().enumerate() {
            let mut ledger = sound();
            fault(&mut ledger);
            assert_eq!(ledger.check(), Err(law), "{number}");
        }
    }

    #[test]
    fn what_is_remembered_is_counted() {
        for fate in [Fate::Consumed, Fate::Evicted, Fate::Aborted, Fate::Requeued] {
            for ticket in 4..7 {
                let mut ledger = sound();
                let right = std::mem::replace(&mut ledger.finished.get_mut(ticket).unwrap().fate, fate) == fate;
                assert_eq!(ledger.check().is_ok(), right, "{fate:?} of {ticket}");
            }
        }
    }

    fn run(ledger: &mut Ledger, ticket: u64, version: u64, source: u32) {
        ledger.running.insert(ticket, Running { version, source });
    }

    fn ready(ledger: &mut Ledger, ticket: u64, source: u32, versions: Option<Versions>) {
        ledger.ready.insert(ticket, Ready { versions, source });
    }

    fn finish(ledger: &mut Ledger, ticket: u64, fate: Fate) {
        ledger.finished.push(ticket, Finished { source: 0, fate });
    }
}
