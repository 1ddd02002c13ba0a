//! The whole pass on synthetic rows, for instruction counts:
//! `valgrind --tool=callgrind target/release/examples/group_path ROWS integers|strings contiguous|shuffled pass|setup`.
//! With `setup` the rows are made and nothing is done with them, so that the difference is the pass alone.

use grpokit_core::advantage::Estimator;
use grpokit_core::keys::{factorize_bytes, factorize_integers};
use grpokit_core::rows::Rows;
use grpokit_core::shaping::overlong;
use grpokit_core::threads::Context;
use std::sync::Arc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [rows, kind, order, what] = &words[..] else {
        return Err("ROWS integers|strings contiguous|shuffled pass|setup".into());
    };
    let n: usize = rows.parse()?;
    let context = Context::new(1, &|| false);
    // A permutation of the rows: multiplication by an odd number modulo a power of two.
    let size = n.next_power_of_two();
    let place = |i: usize| if order == "shuffled" { i.wrapping_mul(0x9E37_79B1) % size } else { i };
    let ids: Vec<i64> =
        (0..size).map(place).filter(|&at| at < n).map(|at| i64::try_from(at / 16)).collect::<Result<_, _>>()?;
    let rewards: Vec<f64> = (0..n).map(|i| if i * 7919 % 1009 % 2 == 0 { 1.0 } else { 0.0 }).collect();
    let lengths: Vec<i32> = (0..n).map(|i| i32::try_from(i * 104_729 % 24_000)).collect::<Result<_, _>>()?;
    let keys: Vec<String> = match kind.as_str() {
        "strings" => ids.iter().map(|id| format!("{id:08x}-0000-4000-8000-{id:012x}")).collect(),
        _ => Vec::new(),
    };
    if what == "setup" {
        println!("{} rows made", ids.len() + keys.len());
        return Ok(());
    }
    let codes =
        if keys.is_empty() { factorize_integers(&ids, &context)? } else { factorize_bytes(&keys[..], &context)? };
    let mut rows = Rows::new(Arc::new(codes), rewards, None, &[], false)?;
    rows.shape(|rewards| overlong(rewards, &lengths, 20_480, 4_096))?;
    rows.drop_without_signal(0.0, &context)?;
    let advantages = rows.advantages(Estimator::GroupNorm { ddof: 1.0, eps: 1e-4 }, &[], None, &context)?;
    let kept = rows.keep().into_iter().filter(|&keep| keep).count();
    println!("{kept} of {} rows kept, the first advantage {:?}", advantages.len(), advantages.first());
    Ok(())
}
