//! The row side of grpokit: slices in, vectors out.
//!
//! Rollouts are rows. [`keys`] turns their group ids into dense codes, [`groups`] takes exact statistics of groups,
//! [`rows`] carries a batch of rows through shaping, selection and advantages ([`shaping`], [`selection`],
//! [`advantage`]). Beside them, [`ledger`] keeps the books of an asynchronous trainer, [`packing`] and [`balancing`] put
//! sequences into bins and on ranks, [`attempts`] estimates pass@k and its kin, [`sketch`] keeps quantiles that merge,
//! [`mismatch`] measures how far two policies are apart ([`log_ratios`]).
//! Statistics are two-pass in f64 and sequential inside a group, so the bits depend neither on the number of threads
//! nor on the order of the groups.
#![forbid(unsafe_code)]
// Row numbers and group codes are u32 (checked once, in `keys::check_rows`); counts become f64 below 2^53.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::module_name_repetitions
)]
// The tests compare bits on purpose.
#![cfg_attr(test, allow(clippy::float_cmp))]

pub mod advantage;
pub mod attempts;
pub mod balancing;
pub mod error;
pub mod groups;
pub mod keys;
pub mod ledger;
pub mod lines;
pub mod log_ratios;
mod members;
pub mod mismatch;
pub mod packing;
pub mod rows;
pub mod seen;
pub mod selection;
pub mod shaping;
pub mod sketch;
mod table;
pub mod threads;

pub use error::CoreError;
