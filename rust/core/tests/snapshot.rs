//! Snapshots of the ledger that were changed, cut, or written with contents that cannot be: errors, never other books.

use grpokit_core::ledger::{Ledger, LedgerError, Limits, Reason, Versions};
use proptest::prelude::*;

/// Books with rollouts in every state.
fn filled() -> Ledger {
    let limits = Limits { batch_size: 4, max_staleness: 2, max_running: Some(7) };
    let mut ledger = Ledger::new(limits, 5, ["math", "code", "chat"].map(String::from).to_vec()).unwrap();
    for i in 0..7 {
        assert_eq!(ledger.admit(i % 3), Ok(Some(i as u64)));
    }
    ledger.complete(0, |_| Versions::of_spans([(3, 1), (4, 1)]).ok()).unwrap();
    ledger.complete(1, |_| None).unwrap();
    ledger.complete(3, |admitted| Some(Versions::all_of(admitted))).unwrap();
    ledger.abort(2, Reason::Timeout).unwrap();
    ledger.take(1, 1).unwrap().unwrap();
    ledger.advance(None).unwrap();
    ledger.complete(5, |_| Versions::of_spans([(1, 7), (6, 2)]).ok()).unwrap();
    assert_eq!(ledger.evict(3, false), [5]);
    ledger.complete(6, |_| Versions::of_spans([(2, 7), (4, 2), (6, 1)]).ok()).unwrap();
    ledger.requeue(5).unwrap();
    ledger
}

/// The same contents under a checksum that is right again: what only the laws can find.
fn sealed(mut snapshot: Vec<u8>) -> Vec<u8> {
    let end = snapshot.len() - 8;
    let mix = |sum: u64, &byte: &u8| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let sum: u64 = snapshot[..end].iter().fold(0xcbf2_9ce4_8422_2325, mix);
    snapshot[end..].copy_from_slice(&sum.to_le_bytes());
    snapshot
}

#[test]
fn any_byte_changed_or_cut_off_is_refused() {
    let ledger = filled();
    let snapshot = ledger.snapshot();
    assert_eq!(Ledger::restore(&snapshot), Ok(ledger));
    for place in 0..snapshot.len() {
        for change in 1..=255_u8 {
            let mut changed = snapshot.clone();
            changed[place] ^= change;
            assert!(Ledger::restore(&changed).is_err(), "{place}");
        }
        assert!(Ledger::restore(&snapshot[..place]).is_err(), "{place}");
    }
}

#[test]
fn the_error_says_what_is_wrong() {
    let snapshot = filled().snapshot();
    let mut other = snapshot.clone();
    other[8] = 2;
    assert_eq!(Ledger::restore(&sealed(other)), Err(LedgerError::Schema { given: 2, expected: 1 }));
    assert_eq!(Ledger::restore(b"gkledge"), Err(LedgerError::NotASnapshot { bytes: 7 }));
    let long = [&snapshot[..], &[0]].concat();
    let expected = LedgerError::SnapshotLength { given: long.len(), expected: snapshot.len() as u64 };
    assert_eq!(Ledger::restore(&long), Err(expected));
    let mut more = snapshot.clone();
    more.insert(more.len() - 8, 0);
    let length = (more.len() - 28) as u64;
    more[12..20].copy_from_slice(&length.to_le_bytes());
    assert_eq!(Ledger::restore(&sealed(more)), Err(LedgerError::Contents("lengths")));
    let mut changed = snapshot.clone();
    changed[30] ^= 1;
    assert!(matches!(Ledger::restore(&changed), Err(LedgerError::Checksum { .. })));
}

#[test]
fn wrong_contents_break_a_law_or_are_other_sound_books() {
    let snapshot = filled().snapshot();
    let (mut found, mut tried) = (0, 0);
    for place in 20..snapshot.len() - 8 {
        for change in [1_u8, 2, 0x80, 0xff] {
            let mut changed = snapshot.clone();
            changed[place] ^= change;
            tried += 1;
            match Ledger::restore(&sealed(changed)) {
                Err(LedgerError::Contents(_)) => found += 1,
                Err(other) => panic!("{other}"),
                // Another limit, name or version: books that could be.
                Ok(mut ledger) => {
                    assert_eq!(ledger.check(), Ok(()));
                    ledger.lose_running();
                    ledger.lose_ready();
                    assert_eq!(ledger.check(), Ok(()));
                }
            }
        }
    }
    assert!(found * 4 > tried * 3, "{found} of {tried}");
}

proptest! {
    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), seal in any::<bool>()) {
        let mut snapshot = b"gkledger\x01\0\0\0".to_vec();
        snapshot.extend((bytes.len() as u64).to_le_bytes());
        snapshot.extend(&bytes);
        snapshot.extend([0; 8]);
        prop_assert!(Ledger::restore(&bytes).is_err());
        let snapshot = if seal { sealed(snapshot) } else { snapshot };
        prop_assert!(Ledger::restore(&snapshot).is_err());
    }
}
