//! `imara tpm hash`.

use super::SCHEMA;
use super::target::Target;
use crate::command::CommandResult;
use crate::command::new_files::write_together;
use crate::command::paths::{printable, printable_bytes};
use crate::command::pcr_files;
use crate::command::progress::Progress;
use crate::output::{Failure, Outcome, print, print_json, warn};
use imara_engine::crypto::Hasher;
use imara_engine::tpm::{Hashed, Hierarchy};
use imara_format::hash::HashAlgorithm;
use serde_json::json;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

/// Have the TPM hash a file.
///
/// For its ticket, by which a restricted key signs the digest (`tpm2_sign -t`); for the digest alone any other program is a
/// thousand times as fast. The digest is computed here as well, and both must be the same.
///
/// Exit status: 0 done, 1 the TPM refused or hashes wrongly, 2 wrong command line, 3 there is no TPM, or it does not answer.
#[derive(clap::Args)]
pub struct Hash {
    /// The file; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The hash
    #[arg(long, value_name = "ALGORITHM", default_value = "sha256", value_parser = pcr_files::algorithm)]
    algorithm: HashAlgorithm,
    /// Whose keys the ticket is for
    #[arg(long, value_enum, default_value_t = For::Owner)]
    hierarchy: For,
    /// Write the ticket to a new file, as `tpm2_hash -t` does
    #[arg(long, value_name = "FILE")]
    ticket: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum For {
    Owner,
    Endorsement,
    /// Nobody's: no ticket
    None,
}

impl Hash {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let failure = |error: io::Error| Failure::failed(format!("{}: {error}", printable(&self.file)));
        let is_input = self.file.as_os_str() == "-";
        let (mut input, size): (Box<dyn Read>, u64) = match is_input {
            true => (Box::new(io::stdin().lock()), 0),
            false => {
                let file = File::open(&self.file).map_err(failure)?;
                let size = file.metadata().map_or(0, |metadata| metadata.len());
                (Box::new(file), size)
            }
        };
        let mut hasher = Hasher::new(self.algorithm).map_err(Failure::lacking)?;
        let progress = Progress::new(false, "files");
        if size > 0 {
            progress.set_total(1, size);
        }
        let hierarchy = match self.hierarchy {
            For::Owner => Some(Hierarchy::Owner),
            For::Endorsement => Some(Hierarchy::Endorsement),
            For::None => None,
        };
        let mut room = vec![0; 1 << 14];
        let hashed = self.target.with(|tpm| {
            tpm.hash(self.algorithm, hierarchy, || {
                let count = loop {
                    match input.read(&mut room) {
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        read => break read.map_err(failure)?,
                    }
                };
                hasher.update(&room[..count]);
                progress.bytes(count as u64);
                progress.tick();
                Ok(room[..count].to_vec())
            })
        })?;
        drop(progress);
        let Hashed { digest, ticket, may_be_signed } = hashed;
        let ours = hasher.finish();
        if ours != digest {
            return Err(Failure::failed(format!(
                "the TPM hashes wrongly: {} instead of {}",
                digest.to_hex(),
                ours.to_hex()
            ))
            .next("it is broken, or what is sent to it is changed on its way"));
        }
        if self.hierarchy != For::None && !may_be_signed {
            warn(
                "the ticket says that no restricted key may sign this: it begins like something that only a TPM makes",
            );
        }
        if let Some(path) = &self.ticket {
            write_together(&[(path, &ticket, 0o644)], false)?;
        }
        let name = printable_bytes(self.file.as_os_str().as_encoded_bytes());
        match self.json {
            true => print_json(&json!({
                "schema": SCHEMA,
                "tpm": self.target.tpm.to_string(),
                "file": name,
                "algorithm": self.algorithm.name(),
                "digest": digest.to_hex(),
                "ticket": imara_format::hash::to_hex(&ticket),
                "may_be_signed": may_be_signed,
            })),
            false => print(format_args!("{}  {name}\n", digest.to_hex())),
        }
        Ok(Outcome::Done)
    }
}
