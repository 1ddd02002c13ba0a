//! The ledger against a plain model on random schedules with crashes.

use grpokit_core::ledger::{Ledger, LedgerError, Limits, Reason, State, Versions};
use proptest::prelude::*;

/// A rollout's whole life; nothing is ever forgotten.
#[derive(Debug, Clone)]
struct Life {
    source: usize,
    admitted: u64,
    state: State,
    versions: Option<Vec<u64>>,
    reason: Option<usize>,
}

#[derive(Debug, Clone)]
struct Model {
    limits: Limits,
    first: u64,
    version: u64,
    lives: Vec<Life>,
    /// Evictions since a rollout was consumed, by source.
    evicted: [u64; 3],
}

impl Model {
    fn tickets(&self, state: State) -> Vec<u64> {
        (0..).zip(&self.lives).filter(|(_, life)| life.state == state).map(|(ticket, _)| ticket).collect()
    }

    fn count(&self, state: State) -> i64 {
        self.tickets(state).len().cast_signed() as i64
    }

    /// The admission rule, with signs.
    fn capacity(&self) -> u64 {
        let batch = self.limits.batch_size.cast_signed();
        let running = self.count(State::Running);
        let accepted = self.first.cast_signed() * batch + self.count(State::Ready) + self.count(State::Consumed);
        let versions = (self.limits.max_staleness + self.version + 1).cast_signed();
        let budget = versions * batch - (accepted + running);
        let most = self.limits.max_running.map_or(i64::MAX, |most| most.cast_signed() - running);
        u64::try_from(budget.min(most)).unwrap_or(0)
    }

    fn lag(&self, ticket: u64) -> Option<u64> {
        let versions = self.lives[usize::try_from(ticket).unwrap()].versions.as_ref();
        versions.and_then(|versions| versions.iter().min()).map(|oldest| self.version - oldest)
    }

    fn life(&mut self, ticket: u64) -> &mut Life {
        &mut self.lives[usize::try_from(ticket).unwrap()]
    }

    fn state(&self, ticket: u64) -> State {
        self.lives.get(usize::try_from(ticket).unwrap()).map_or(State::NeverIssued, |life| life.state)
    }

    /// Mostly a ticket in one of the states, sometimes any, or one that was never given out.
    fn pick(&self, number: usize, states: &[State]) -> u64 {
        let fitting: Vec<u64> = states.iter().flat_map(|&state| self.tickets(state)).collect();
        if number.is_multiple_of(4) || fitting.is_empty() {
            return (number / 4 % (self.lives.len() + 1)) as u64;
        }
        fitting[number / 4 % fitting.len()]
    }

    /// What the ledger has to answer for a ticket in a wrong state.
    fn refuses<T: std::fmt::Debug>(&self, result: &Result<T, LedgerError>, ticket: u64) {
        let issued = self.lives.len() as u64;
        match (self.state(ticket), result) {
            (State::NeverIssued, Err(error)) => assert_eq!(*error, LedgerError::NeverIssued { ticket, issued }),
            (expected, Err(LedgerError::State { state, .. })) => assert_eq!(*state, expected),
            (_, other) => panic!("{other:?}"),
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    Admit(usize),
    Complete(usize, Option<Vec<u64>>),
    Abort(usize, usize),
    Advance(u64),
    Back,
    Evict(u64, bool),
    Take(u64, u64),
    Requeue(usize),
    SaveAndRestore,
    Crash,
}

fn event() -> impl Strategy<Value = Event> {
    let ticket = 0..1_000_usize;
    let versions = prop::option::of(prop::collection::vec(0..5_u64, 0..4));
    prop_oneof![
        6 => (0..4_usize).prop_map(Event::Admit),
        4 => (ticket.clone(), versions).prop_map(|(ticket, versions)| Event::Complete(ticket, versions)),
        1 => (ticket.clone(), 0..Reason::ALL.len()).prop_map(|(ticket, reason)| Event::Abort(ticket, reason)),
        2 => (0..3_u64).prop_map(Event::Advance),
        1 => Just(Event::Back),
        1 => (0..4_u64, any::<bool>()).prop_map(|(lag, unknown)| Event::Evict(lag, unknown)),
        3 => (0..6_u64, 0..4_u64).prop_map(|(n, steps)| Event::Take(n, steps)),
        1 => ticket.prop_map(Event::Requeue),
        1 => Just(Event::SaveAndRestore),
        1 => Just(Event::Crash),
    ]
}

fn step(ledger: &mut Ledger, model: &mut Model, event: Event) {
    match event {
        Event::Admit(source) if source == 3 => {
            assert_eq!(ledger.admit(source), Err(LedgerError::Source { given: 3, sources: 3 }));
        }
        Event::Admit(source) => {
            let expected = (model.capacity() > 0).then_some(model.lives.len() as u64);
            assert_eq!(ledger.admit(source), Ok(expected));
            if expected.is_some() {
                let (admitted, state) = (model.version, State::Running);
                let life = Life { source, admitted, state, versions: None, reason: None };
                model.lives.push(life);
            }
        }
        Event::Complete(number, versions) => complete(ledger, model, number, versions),
        Event::Abort(number, reason) => {
            let ticket = model.pick(number, &[State::Running]);
            let result = ledger.abort(ticket, Reason::ALL[reason].0);
            if model.state(ticket) != State::Running {
                return model.refuses(&result, ticket);
            }
            assert_eq!(result, Ok(()));
            let life = model.life(ticket);
            (life.state, life.reason) = (State::Aborted, Some(reason));
        }
        Event::Advance(jump) => {
            model.version += jump;
            assert_eq!(ledger.advance(if jump == 1 { None } else { Some(model.version) }), Ok(model.version));
        }
        Event::Back => {
            if let Some(given) = model.version.checked_sub(1) {
                let expected = LedgerError::Back { given, version: model.version };
                assert_eq!(ledger.advance(Some(given)), Err(expected));
            }
        }
        Event::Evict(max_lag, unknown) => {
            let mut gone = model.tickets(State::Ready);
            gone.retain(|&ticket| model.lag(ticket).map_or(unknown, |lag| lag > max_lag));
            assert_eq!(ledger.evict(max_lag, unknown), gone);
            for ticket in gone {
                let life = model.life(ticket);
                life.state = State::Evicted;
                let source = life.source;
                model.evicted[source] += 1;
            }
        }
        Event::Take(n, steps) => take(ledger, model, n, steps),
        Event::Requeue(number) => {
            let ticket = model.pick(number, &[State::Evicted, State::Aborted]);
            let result = ledger.requeue(ticket);
            if !matches!(model.state(ticket), State::Evicted | State::Aborted) {
                return model.refuses(&result, ticket);
            }
            assert_eq!(result, Ok(()));
            model.life(ticket).state = State::Requeued;
        }
        Event::SaveAndRestore => {
            let again = Ledger::restore(&ledger.snapshot()).unwrap();
            assert_eq!(again, *ledger);
            *ledger = again;
        }
        Event::Crash => {
            *ledger = Ledger::restore(&ledger.snapshot()).unwrap();
            let running = model.tickets(State::Running);
            assert_eq!(ledger.lose_running(), running);
            for ticket in running {
                let life = model.life(ticket);
                (life.state, life.reason) = (State::Aborted, Some(Reason::Lost as usize));
            }
        }
    }
}

/// No list of versions: not known. An empty one: that of the admission.
fn complete(ledger: &mut Ledger, model: &mut Model, number: usize, versions: Option<Vec<u64>>) {
    let ticket = model.pick(number, &[State::Running]);
    let spans = |list: &Vec<u64>| Versions::of_spans(list.iter().map(|version| (version.cast_signed(), 1)));
    let given = versions.as_ref().filter(|list| !list.is_empty()).map(|list| spans(list).unwrap());
    let result = ledger.complete(ticket, |admitted| match &versions {
        Some(list) if list.is_empty() => Some(Versions::all_of(admitted)),
        _ => given,
    });
    if model.state(ticket) != State::Running {
        return model.refuses(&result, ticket);
    }
    let newest = versions.iter().flatten().max().copied().unwrap_or(0);
    if newest > model.version {
        return assert_eq!(result, Err(LedgerError::Ahead { given: newest, version: model.version }));
    }
    assert_eq!(result, Ok(()));
    let life = model.life(ticket);
    life.versions = versions.map(|list| if list.is_empty() { vec![life.admitted] } else { list });
    life.state = State::Ready;
}

fn take(ledger: &mut Ledger, model: &mut Model, n: u64, steps: u64) {
    let result = ledger.take(n, steps);
    if steps == 0 || n < steps {
        return assert_eq!(result, Err(LedgerError::Steps { n, steps }));
    }
    let mut ready = model.tickets(State::Ready);
    if (ready.len() as u64) < n {
        return assert_eq!(result, Ok(None));
    }
    let taken = result.unwrap().unwrap();
    ready.truncate(usize::try_from(n).unwrap());
    assert_eq!(taken.tickets, ready);
    let trains: Vec<u64> = taken.trains().collect();
    let sizes: Vec<usize> =
        (0..steps).map(|k| trains.iter().filter(|&&version| version == model.version + k).count()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), ready.len());
    assert!(trains.is_sorted() && sizes.is_sorted_by(|a, b| a >= b) && sizes[0] - sizes[sizes.len() - 1] <= 1);
    for ((ticket, versions), trains) in ready.into_iter().zip(taken.versions).zip(trains) {
        let expected = model.lag(ticket).map(|lag| lag + trains - model.version);
        assert_eq!(versions.map(|versions| versions.lag(trains)), expected);
        let life = model.life(ticket);
        life.state = State::Consumed;
        let source = life.source;
        model.evicted[source] = 0;
    }
}

/// Everything that can be asked, and the laws.
fn agree(ledger: &Ledger, model: &Model) {
    assert_eq!(ledger.check(), Ok(()));
    let counts = ledger.counts();
    let sum = counts.running + counts.ready + counts.consumed + counts.evicted + counts.aborted;
    assert_eq!((counts.admitted, counts.admitted), (sum, model.lives.len() as u64));
    let gone = model.count(State::Evicted) + model.count(State::Aborted) + model.count(State::Requeued);
    assert_eq!((counts.evicted + counts.aborted).cast_signed(), gone);
    assert_eq!(counts.consumed.cast_signed(), model.count(State::Consumed));
    assert_eq!((ledger.capacity(), ledger.version()), (model.capacity(), model.version));
    assert!(ledger.running().eq(model.tickets(State::Running)));
    assert!(ledger.ready().eq(model.tickets(State::Ready)));
    for ticket in 0..=model.lives.len() as u64 {
        assert_eq!(ledger.state(ticket), model.state(ticket));
    }
    for ticket in ledger.ready() {
        assert_eq!(ledger.lag(ticket), Ok(model.lag(ticket)));
    }
    for ticket in ledger.running() {
        let admitted = model.lives[usize::try_from(ticket).unwrap()].admitted;
        assert_eq!(ledger.lag(ticket), Ok(Some(model.version - admitted)));
    }
    for (number, source) in ledger.sources().iter().enumerate() {
        let of = |state| model.lives.iter().filter(|life| life.source == number && life.state == state).count() as u64;
        assert_eq!((source.consumed, source.requeued), (of(State::Consumed), of(State::Requeued)));
        assert_eq!(ledger.under_way()[number], (of(State::Running), of(State::Ready)));
        assert_eq!(source.evicted_since_consumed, model.evicted[number]);
        for (reason, &count) in source.aborted.iter().enumerate() {
            let mine = model.lives.iter().filter(|life| life.source == number && life.reason == Some(reason));
            assert_eq!(count, mine.count() as u64);
        }
    }
    let lags = ledger.lags();
    let known: Vec<u64> = model.tickets(State::Ready).into_iter().filter_map(|ticket| model.lag(ticket)).collect();
    assert_eq!((lags.min(), lags.max()), (known.iter().min().copied(), known.iter().max().copied()));
    assert_eq!(lags.rollouts - lags.unknown, known.len() as u64);
    assert_eq!(lags.histogram.values().sum::<u64>(), known.len() as u64);
}

fn begin(batch_size: u64, max_staleness: u64, max_running: Option<u64>, version: u64) -> (Ledger, Model) {
    let limits = Limits { batch_size, max_staleness, max_running };
    let ledger = Ledger::new(limits, version, ["math", "code", "chat"].map(String::from).to_vec()).unwrap();
    (ledger, Model { limits, first: version, version, lives: Vec::new(), evicted: [0; 3] })
}

#[test]
fn limits_that_cannot_be_meant() {
    let limits = Limits { batch_size: 1, max_staleness: 0, max_running: None };
    let name = || vec![String::from("a")];
    let refused = |limits, version, names| Ledger::new(limits, version, names).unwrap_err();
    let parameter = LedgerError::Parameter;
    assert_eq!(refused(Limits { batch_size: 0, ..limits }, 0, name()), parameter("batch_size"));
    assert_eq!(refused(Limits { max_staleness: 1 << 53, ..limits }, 0, name()), parameter("max_staleness"));
    assert_eq!(refused(Limits { max_running: Some(0), ..limits }, 0, name()), parameter("max_running"));
    assert_eq!(refused(limits, 1 << 53, name()), parameter("version"));
    assert_eq!(refused(limits, 0, Vec::new()), parameter("sources"));
    assert_eq!(refused(limits, 0, [name(), name()].concat()), parameter("sources"));
}

#[test]
fn the_largest_numbers_do_not_overflow() {
    let largest = (1 << 53) - 1;
    let limits = Limits { batch_size: largest, max_staleness: largest, max_running: None };
    let mut ledger = Ledger::new(limits, 0, vec!["a".into()]).unwrap();
    assert_eq!(ledger.advance(Some(largest)), Ok(largest));
    assert_eq!(ledger.advance(None), Err(LedgerError::Parameter("version")));
    assert_eq!(ledger.advance(Some(u64::MAX)), Err(LedgerError::Parameter("version")));
    assert_eq!(ledger.capacity(), 1 << 53);
    let ticket = ledger.admit(0).unwrap().unwrap();
    let versions = Versions::of_spans([(0, 1), (largest.cast_signed(), 1 << 52)]).unwrap();
    ledger.complete(ticket, |_| Some(versions)).unwrap();
    assert_eq!(ledger.lag(ticket), Ok(Some(largest)));
    assert_eq!(ledger.take(u64::MAX, u64::MAX), Ok(None));
    assert_eq!(Ledger::restore(&ledger.snapshot()), Ok(ledger.clone()));
    assert_eq!(ledger.take(1, 1).unwrap().unwrap().tickets, [ticket]);
}

#[test]
fn the_last_4096_finished_are_remembered() {
    let (mut ledger, _) = begin(1, 0, None, 0);
    for ticket in 0..5000 {
        assert_eq!(ledger.admit(0), Ok(Some(ticket)));
        ledger.abort(ticket, Reason::Error).unwrap();
    }
    assert_eq!((ledger.state(903), ledger.state(904)), (State::Forgotten, State::Aborted));
    assert_eq!(ledger.requeue(903), Err(LedgerError::Forgotten { ticket: 903, remembered: 4096 }));
    assert_eq!(ledger.requeue(904), Ok(()));
    assert_eq!(ledger.check(), Ok(()));
    let mut again = Ledger::restore(&ledger.snapshot()).unwrap();
    assert_eq!(again, ledger);
    again.admit(0).unwrap();
    again.abort(5000, Reason::Error).unwrap();
    assert_eq!(again.state(904), State::Forgotten);
}

#[test]
fn spans_that_cannot_be_meant() {
    let of = |spans: &[(i64, i64)]| Versions::of_spans(spans.iter().copied());
    assert_eq!(of(&[]), Err(LedgerError::NoTokens));
    assert_eq!(of(&[(3, 0)]), Err(LedgerError::NoTokens));
    assert_eq!(of(&[(3, 1), (-1, 1)]), Err(LedgerError::BadVersion { place: 1, given: -1 }));
    assert_eq!(of(&[(1 << 53, 1)]), Err(LedgerError::BadVersion { place: 0, given: 1 << 53 }));
    assert_eq!(of(&[(3, 1), (3, -1)]), Err(LedgerError::BadTokens { place: 1, given: -1 }));
    assert_eq!(of(&[(3, 1 << 52), (3, i64::MAX)]), Err(LedgerError::BadTokens { place: 1, given: i64::MAX }));
    // A span without tokens does not count, whatever its version.
    assert_eq!(of(&[(3, 2), (9, 0), (0, 0)]), of(&[(3, 2)]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_schedule_keeps_the_books(
        (batch_size, max_staleness, version) in (1..4_u64, 0..3_u64, 0..3_u64),
        max_running in prop::option::of(1..6_u64),
        events in prop::collection::vec(event(), 1..80),
    ) {
        let (mut ledger, mut model) = begin(batch_size, max_staleness, max_running, version);
        for event in events {
            step(&mut ledger, &mut model, event);
            agree(&ledger, &model);
        }
    }

    #[test]
    fn the_mean_is_that_of_the_tokens(spans in prop::collection::vec((0..50_i64, 0..6_i64), 1..9), later in 0..9_u64) {
        let repeat = |&(version, n): &(i64, i64)| vec![version.cast_unsigned(); usize::try_from(n).unwrap()];
        let tokens: Vec<u64> = spans.iter().flat_map(repeat).collect();
        prop_assume!(!tokens.is_empty());
        let (mut ledger, _) = begin(1, 0, None, 50 + later);
        let given = Versions::of_spans(spans).unwrap();
        ledger.admit(0).unwrap();
        ledger.complete(0, |_| Some(given)).unwrap();
        let sum = |of: &dyn Fn(u64) -> u64| f64::from(u32::try_from(tokens.iter().map(|&v| of(v)).sum::<u64>()).unwrap());
        let count = sum(&|_| 1);
        prop_assert!((given.mean() - sum(&|v| v) / count).abs() < 1e-12);
        let lags = ledger.lags();
        prop_assert_eq!(lags.token_mean, Some(sum(&|v| 50 + later - v) / count));
        prop_assert_eq!(lags.tokens, tokens.len() as u64);
        prop_assert_eq!(Some(given.oldest()), tokens.iter().min().copied());
        prop_assert_eq!(Some(given.newest()), tokens.iter().max().copied());
        prop_assert_eq!(lags.max(), Some(50 + later - given.oldest()));
    }
}
