//! The passphrase of a private key: from a file, the terminal or the environment.

use crate::output::Failure;
use std::path::PathBuf;
use zeroize::Zeroizing;

/// Where the passphrase of a private key comes from. Without any of these the environment's IMARA_KEY_PASSPHRASE counts,
/// then EVMCTL_KEY_PASSWORD.
#[derive(clap::Args)]
pub struct Passphrase {
    /// The private key's passphrase is the first line of F; `-` is standard input
    #[arg(long, value_name = "F", conflicts_with = "passphrase")]
    passphrase_file: Option<PathBuf>,
    /// Ask for the private key's passphrase on the terminal
    #[arg(long)]
    passphrase: bool,
}

impl Passphrase {
    /// The passphrase, if one is given; a `new` one is asked for twice.
    ///
    /// # Errors
    /// An unreadable file, no terminal to ask on, or two answers that differ.
    pub fn find(&self, new: bool) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
        let found = if let Some(path) = &self.passphrase_file {
            let bytes = super::secret::read_secret(path)?;
            let line = bytes.as_bytes().split(|byte| *byte == b'\n').next().unwrap_or_default();
            Zeroizing::new(line.strip_suffix(b"\r").unwrap_or(line).to_vec())
        } else if self.passphrase {
            let passphrase = ask("Passphrase of the private key: ")?;
            if new && ask("The same once more: ")? != passphrase {
                return Err(Failure::failed("the two passphrases differ; nothing was written"));
            }
            passphrase
        } else {
            let given = ["IMARA_KEY_PASSPHRASE", "EVMCTL_KEY_PASSWORD"].into_iter();
            let mut given = given.filter_map(std::env::var_os).filter(|passphrase| !passphrase.is_empty());
            match given.next() {
                Some(passphrase) => Zeroizing::new(std::os::unix::ffi::OsStringExt::into_vec(passphrase)),
                None => return Ok(None),
            }
        };
        match found.len() {
            0 => Err(Failure::failed("the passphrase is empty")
                .next("give one, or none of --passphrase-file and --passphrase to leave the key unencrypted")),
            // OpenSSL takes no longer one when it reads the key back.
            1..=1024 => Ok(Some(found)),
            length => Err(Failure::failed(format!("the passphrase has {length} bytes, 1024 at most"))),
        }
    }
}

fn ask(question: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    imara_linux::terminal::ask_secret(question).map(Zeroizing::new).map_err(|error| {
        Failure::failed(format!("the passphrase cannot be asked for: {error}"))
            .next("give it with --passphrase-file F, or in IMARA_KEY_PASSPHRASE")
    })
}
