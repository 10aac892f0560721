//! What labels are verified with, and whether a digest alone is enough.

use crate::command::certificates::Trust;
use crate::output::Failure;
use imara_engine::keyring::Keyring;
use std::path::PathBuf;

/// Which keys.
#[derive(clap::Args)]
pub struct KeySources {
    /// A certificate or public key, in DER or PEM, or a folder of them; may be given several times [default: /etc/keys/x509_ima.der, if
    /// there]
    #[arg(short, long = "key", value_name = "CERT_OR_PUBKEY")]
    keys: Vec<PathBuf>,
    #[command(flatten)]
    trust: Trust,
}

const DEFAULT_KEY: &str = "/etc/keys/x509_ima.der";

/// The keys.
pub struct Keys {
    /// Those in files and in keyrings of the kernel's, and what is never taken.
    pub keyring: Keyring,
    /// Whether any were asked for: then a digest alone is not enough.
    pub given: bool,
}

impl KeySources {
    /// Whether any are named.
    pub fn are_given(&self) -> bool {
        !self.keys.is_empty() || !self.trust.keyrings.is_empty()
    }

    /// Reads the keys, and finds the keyrings.
    ///
    /// # Errors
    /// What cannot be read, is no key, or is not there.
    pub fn find(&self) -> Result<Keys, Failure> {
        let keyring = self.trust.keyring(&self.keys, Some(DEFAULT_KEY))?;
        Ok(Keys { keyring, given: self.are_given() })
    }
}
