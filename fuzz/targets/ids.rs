//! Ids of any kind are numbered by first appearance, as a dictionary would, however they come.
#![no_main]

use grpokit_core::keys::{BLOCK, Codes, Factorizer, combine, factorize_bytes, factorize_integers};
use grpokit_core::seen::Seen;
use grpokit_core::threads::Context;
use libfuzzer_sys::fuzz_target;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;

fn by_dictionary<T: Hash + Eq>(ids: &[T]) -> Codes {
    let (mut seen, mut all) = (HashMap::new(), Codes::default());
    for (row, id) in ids.iter().enumerate() {
        let next = seen.len() as u32;
        let code = *seen.entry(id).or_insert(next);
        if code == next {
            all.first.push(row as u32);
        }
        all.codes.push(code);
    }
    all
}

fuzz_target!(|data: &[u8]| {
    let [how, repeat, data @ ..] = data else { return };
    let context = Context::new(1 + usize::from(how >> 6), &|| false);

    let width = [1, 2, 4, 8][usize::from(how & 3)];
    let number = |chunk: &[u8]| {
        let mut bytes = [if chunk[chunk.len() - 1] & 0x80 == 0 { 0 } else { 0xff }; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        i64::from_le_bytes(bytes)
    };
    let numbers: Vec<i64> = data.chunks(width).map(number).collect();
    let codes = factorize_integers(&numbers, &context).unwrap();
    assert_eq!(codes, by_dictionary(&numbers));

    // Long runs and many rows take other roads than few scattered ids.
    let repeat = if how & 4 == 0 { 1 } else { usize::from(*repeat % 16) + 1 };
    let words: Vec<&[u8]> = data.split(|&byte| byte == b' ').flat_map(|word| vec![word; repeat]).collect();
    let expected = by_dictionary(&words);
    assert_eq!(factorize_bytes(&words[..], &context).unwrap(), expected);
    let mut parts: Factorizer = Factorizer::new(words.len());
    for part in words.chunks((usize::from(how >> 3) + 1).min(BLOCK)) {
        parts.extend(part);
    }
    assert_eq!(parts.finish(), expected);

    if words.len() == numbers.len() {
        let pairs: Vec<_> = numbers.iter().zip(&words).collect();
        assert_eq!(combine(&codes, &expected, &context).unwrap(), by_dictionary(&pairs));
    }

    let (mut seen, mut known) = (Seen::default(), HashSet::new());
    for &number in &numbers {
        // 0 and 1 are one hash to it.
        let hash = number.cast_unsigned();
        assert_eq!(seen.insert(hash), known.insert(hash.max(1)));
    }
    assert_eq!(seen.len(), known.len());
});
