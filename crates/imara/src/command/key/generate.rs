//! `imara key generate`.

use super::passphrase::Passphrase;
use crate::command::CommandResult;
use crate::command::new_files::write_together;
use crate::output::{Failure, Outcome, print, print_json};
use imara_engine::crypto::{KeyType, SigningKey};
use imara_format::hash::to_hex;
use serde_json::json;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

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
enum Purpose {
    /// Files: security.ima
    Ima,
    /// Metadata: security.evm
    Evm,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Type {
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

impl Generate {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let (suffix, name) = match self.purpose {
            Purpose::Ima => ("ima", "IMA signing key"),
            Purpose::Evm => ("evm", "EVM signing key"),
        };
        let path = |name: String| self.out.join(name);
        let private = path(format!("privkey_{suffix}.pem"));
        let public = path(format!("pubkey_{suffix}.pem"));
        let certificate = path(format!("x509_{suffix}.der"));
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
        let kind = match self.kind {
            Type::Rsa1024 => KeyType::Rsa1024,
            Type::Rsa2048 => KeyType::Rsa2048,
            Type::Rsa3072 => KeyType::Rsa3072,
            Type::Rsa4096 => KeyType::Rsa4096,
            Type::P256 => KeyType::P256,
            Type::P384 => KeyType::P384,
            Type::P521 => KeyType::P521,
            Type::Sm2 => KeyType::Sm2,
        };
        let common_name = self.common_name.as_deref().unwrap_or(name);
        if common_name.is_empty() || common_name.chars().count() > 64 {
            return Err(Failure::usage("--common-name must have 1 to 64 characters"));
        }
        let key = SigningKey::generate(kind).map_err(Failure::failed)?;
        let encrypted = passphrase.is_some();
        let private_pem = key.to_pem(passphrase.as_deref().map(Vec::as_slice)).map_err(Failure::failed)?;
        let public_pem = key.public_pem().map_err(Failure::failed)?;
        let certificate_der = key.self_signed_certificate(common_name, self.days).map_err(Failure::failed)?;
        if !self.dry_run {
            let folder_failure = |error| Failure::failed(format!("{}: {error}", self.out.display()));
            DirBuilder::new().recursive(true).mode(0o755).create(&self.out).map_err(folder_failure)?;
            write_together(
                &[
                    (&private, &private_pem, 0o600),
                    (&public, &public_pem, 0o644),
                    (&certificate, &certificate_der, 0o644),
                ],
                self.force,
            )?;
        }
        let key_id = to_hex(&key.key_id());
        if self.json {
            print_json(&json!({
                "schema": 1,
                "written": !self.dry_run,
                "for": suffix,
                "kind": key.kind().to_string(),
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
            let kind = key.kind();
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
