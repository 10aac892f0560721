//! `imara key generate`.

use super::passphrase::Passphrase;
use super::places::Purpose;
use crate::command::CommandResult;
use crate::command::new_files::write_together;
use crate::output::{Failure, Outcome, print, print_json};
use imara_engine::crypto::{KeyType, SigningKey};
use imara_format::hash::to_hex;
use serde_json::json;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Make a key to sign files with, and its certificate.
///
/// Writes privkey_ima.pem, pubkey_ima.pem and x509_ima.der (or _evm), the names that evmctl and the kernel look for. The
/// certificate is signed by the key itself; it is for a digital signature and no CA, as the kernel's .ima keyring asks.
#[derive(clap::Args)]
pub struct Generate {
    /// The folder to write to; it is made if it is not there
    #[arg(long, value_name = "DIR", default_value = "/etc/keys")]
    out: PathBuf,
    /// What the key is for: the names of the files
    #[arg(long = "for", value_enum, default_value_t = Purpose::Ima)]
    purpose: Purpose,
    /// The type of key
    #[arg(long = "type", value_enum, default_value_t = Type::Rsa2048)]
    kind: Type,
    /// The certificate's common name
    #[arg(long, value_name = "NAME")]
    common_name: Option<String>,
    /// Days that the certificate is valid; neither the kernel nor Imara refuses a signature for it
    #[arg(long, default_value_t = 3650)]
    days: u32,
    #[command(flatten)]
    passphrase: Passphrase,
    /// Write over files that are there
    #[arg(long)]
    force: bool,
    /// Say what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Type {
    Rsa2048,
    Rsa3072,
    Rsa4096,
    P256,
    P384,
    P521,
    /// Linux 6.1 verifies it, 6.12 no longer
    Sm2,
    /// Broken by today's means; for tests
    Rsa1024,
}

/// A new key and its certificate, as files have them.
pub struct NewKey {
    /// The key.
    pub key: SigningKey,
    /// The certificate's common name.
    pub common_name: String,
    private_pem: Zeroizing<Vec<u8>>,
    public_pem: Vec<u8>,
    /// The certificate, in DER.
    pub certificate: Vec<u8>,
}

impl NewKey {
    /// Makes them.
    ///
    /// # Errors
    /// A common name that is too long, or the library.
    pub fn make(kind: Type, common_name: &str, days: u32, passphrase: Option<&[u8]>) -> Result<Self, Failure> {
        if common_name.is_empty() || common_name.chars().count() > 64 {
            return Err(Failure::usage("--common-name must have 1 to 64 characters"));
        }
        let kind = match kind {
            Type::Rsa1024 => KeyType::Rsa1024,
            Type::Rsa2048 => KeyType::Rsa2048,
            Type::Rsa3072 => KeyType::Rsa3072,
            Type::Rsa4096 => KeyType::Rsa4096,
            Type::P256 => KeyType::P256,
            Type::P384 => KeyType::P384,
            Type::P521 => KeyType::P521,
            Type::Sm2 => KeyType::Sm2,
        };
        let key = SigningKey::generate(kind).map_err(Failure::failed)?;
        let private_pem = key.to_pem(passphrase).map_err(Failure::failed)?;
        let public_pem = key.public_pem().map_err(Failure::failed)?;
        let certificate = key.self_signed_certificate(common_name, days).map_err(Failure::failed)?;
        Ok(Self { key, common_name: common_name.to_owned(), private_pem, public_pem, certificate })
    }

    /// What is to be written to the files of the private key, the public key and the certificate.
    pub fn files<'a>(&'a self, [private, public, certificate]: &[&'a Path; 3]) -> [(&'a Path, &'a [u8], u32); 3] {
        [
            (private, &self.private_pem, 0o600),
            (public, &self.public_pem, 0o644),
            (certificate, &self.certificate, 0o644),
        ]
    }
}

impl Generate {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let suffix = self.purpose.suffix();
        let [private, public, certificate] = ["privkey_ima.pem", "pubkey_ima.pem", "x509_ima.der"]
            .map(|name| self.out.join(name.replace("ima", suffix)));
        if !self.force {
            for path in [&private, &public, &certificate] {
                if path.symlink_metadata().is_ok() {
                    return Err(Failure::failed(format!("{} is already there", path.display()))
                        .next("choose another --out, or write over it with --force: what it signed then needs its old certificate"));
                }
            }
        }
        if self.kind == Type::Rsa1024 {
            eprintln!("imara: warning: RSA-1024 is broken by today's means; use this key for tests alone");
        }
        let passphrase = self.passphrase.find(true)?;
        let encrypted = passphrase.is_some();
        let made = NewKey::make(
            self.kind,
            self.common_name.as_deref().unwrap_or(self.purpose.common_name()),
            self.days,
            passphrase.as_deref().map(Vec::as_slice),
        )?;
        let common_name = &made.common_name;
        if !self.dry_run {
            let folder_failure = |error| Failure::failed(format!("{}: {error}", self.out.display()));
            DirBuilder::new().recursive(true).mode(0o755).create(&self.out).map_err(folder_failure)?;
            write_together(&made.files(&[&private, &public, &certificate]), self.force)?;
        }
        let key_id = to_hex(&made.key.key_id());
        if self.json {
            print_json(&json!({
                "schema": 1,
                "written": !self.dry_run,
                "for": suffix,
                "kind": made.key.kind().to_string(),
                // A dry run's key is thrown away, and its id with it.
                "key_id": (!self.dry_run).then_some(&key_id),
                "encrypted": encrypted,
                "private_key": private.to_string_lossy(),
                "public_key": public.to_string_lossy(),
                "certificate": certificate.to_string_lossy(),
            }));
        } else if !self.quiet {
            let (private, public, certificate) = (private.display(), public.display(), certificate.display());
            let how = if encrypted { "encrypted with the passphrase" } else { "not encrypted" };
            let kind = made.key.kind();
            if self.dry_run {
                print(format_args!(
                    "would write {private} ({kind}, {how})\nwould write {public}\nwould write {certificate} (CN={common_name})\n"
                ));
            } else {
                print(format_args!(
                    "{private}: private key, {kind}, readable by its owner alone, {how}\n{public}: public key\n\
                     {certificate}: certificate, CN={common_name}, key id {key_id}\n"
                ));
            }
        }
        Ok(Outcome::Done)
    }
}
