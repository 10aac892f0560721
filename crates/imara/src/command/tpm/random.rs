//! `imara tpm random`.

use super::SCHEMA;
use super::target::Target;
use crate::command::CommandResult;
use crate::command::new_files::write_together;
use crate::output::{Failure, Outcome, print, print_json};
use imara_format::hash::to_hex;
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use zeroize::Zeroizing;

/// Get random numbers from the TPM.
///
/// Printed in hexadecimal, unless --raw or --out is given. They pass between the TPM and this machine in clear.
///
/// Exit status: 0 done, 1 the TPM refused, 2 wrong command line, 3 there is no TPM, or it does not answer.
#[derive(clap::Args)]
pub struct Random {
    /// How many bytes. A TPM is slow: for more, seed a generator with these
    #[arg(value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1..=4096))]
    count: u16,
    /// Write the bytes themselves to standard output
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Write the bytes themselves to a new file, which its owner alone may read
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    out: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Random {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        if self.raw && std::io::stdout().is_terminal() {
            return Err(
                Failure::usage("--raw: standard output is a terminal").next("leave out --raw, or add `| COMMAND`")
            );
        }
        let bytes = self.target.with(|tpm| Ok(tpm.random(self.count.into())?))?;
        let bytes = Zeroizing::new(bytes);
        if let Some(out) = &self.out {
            write_together(&[(out, &bytes, 0o600)], false)?;
            if self.json {
                print_json(&json!({ "schema": SCHEMA, "bytes": bytes.len(), "file": out.to_string_lossy() }));
            }
        } else if self.raw {
            let mut out = std::io::stdout().lock();
            let written = out.write_all(&bytes).and_then(|()| out.flush());
            written.map_err(|error| Failure::failed(format!("standard output: {error}")))?;
        } else if self.json {
            print_json(&json!({ "schema": SCHEMA, "bytes": bytes.len(), "hex": to_hex(&bytes) }));
        } else {
            print(format_args!("{}\n", to_hex(&bytes)));
        }
        Ok(Outcome::Done)
    }
}
