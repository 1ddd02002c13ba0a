//! Bytes are refused or are sound books, which are written down again as those bytes.
#![no_main]

use grpokit_core::ledger::{Ledger, Reason};
use libfuzzer_sys::fuzz_target;

/// The contents under a head and a checksum that are right, so that more than those is looked at.
fn sealed(body: &[u8]) -> Vec<u8> {
    let mut bytes = b"gkledger\x01\0\0\0".to_vec();
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(body);
    let mix = |sum: u64, &byte: &u8| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let sum: u64 = bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix);
    bytes.extend(sum.to_le_bytes());
    bytes
}

fuzz_target!(|data: &[u8]| {
    for bytes in [data.to_vec(), sealed(data)] {
        let Ok(mut ledger) = Ledger::restore(&bytes) else { continue };
        assert_eq!(ledger.snapshot(), bytes);
        assert_eq!(ledger.check(), Ok(()));
        // Whatever is done to them, they stay sound or refuse.
        let under_way: Vec<u64> = ledger.running().collect();
        for (at, ticket) in under_way.into_iter().enumerate() {
            let _ = if at % 2 == 0 { ledger.complete(ticket, |_| None) } else { ledger.abort(ticket, Reason::Error) };
        }
        let _ = (ledger.lags(), ledger.counts(), ledger.take(1, 1), ledger.admit(0), ledger.advance(None));
        ledger.evict(1, true);
        ledger.lose_running();
        ledger.lose_ready();
        assert_eq!(ledger.check(), Ok(()));
        assert_eq!(Ledger::restore(&ledger.snapshot()), Ok(ledger));
    }
});
