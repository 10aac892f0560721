//! The guard at work: real fanotify, a real software TPM and an ext4 of its own, as root.
//!
//! A guard under test watches the scratch mount and nothing else, and is killed when its time is over, so that nothing can
//! hang for good. What a machine lacks, a test says with `skipped: …`, and passes.

#[macro_use]
mod scratch;
mod appraisal;
mod evm;
mod failure;
mod frozen;
mod frozen_file_system;
mod keyrings;
mod live_policy;
mod matrix;
mod measurement;
mod mounts;
mod operations;
mod outcomes;
mod own_files;
mod race;
mod reach;
mod restart;
mod sentinel;
mod stress;
mod stuck;
mod trace;
mod unasked;
mod ways;
