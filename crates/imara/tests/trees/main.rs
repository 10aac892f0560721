//! Labels on trees: what runs write, leave alone, tell, and how they are gone on with and undone.
//!
//! Where security attributes need a privilege that the test does not have, it tries user attributes. What a machine lacks, a test
//! says with `skipped: …`, and passes.

mod bad_days;
mod defects;
mod hash;
mod interrupted;
mod killed;
mod packages;
mod rpm;
mod scratch;
mod undo;
mod verify;
