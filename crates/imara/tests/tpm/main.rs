//! `imara tpm`, run as a program on a software TPM, with tpm2-tools as the second opinion.

mod bad_days;
mod changing;
mod killed;
mod logs;
mod quoting;
mod reading;
mod software;
mod verifying;
