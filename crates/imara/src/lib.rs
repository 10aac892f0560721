//! The programs `imara` and `imarad`: the command line, one subcommand a file, and the daemon around the engine.
#![forbid(unsafe_code)]

pub mod command;
pub mod guard;
pub mod output;
