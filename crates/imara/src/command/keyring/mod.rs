//! `imara keyring`: the kernel's keyrings, one subcommand a file.

pub mod named;
pub mod refusal;
