//! `imara evm enable`.

use super::provider::{Provider, ProviderOptions, no_kernel_evm};
use crate::command::hmac_key::EVM_KEY_NAME;
use crate::command::key::evm_key;
use crate::command::keyring::certificates::Source;
use crate::command::keyring::named::Keyring;
use crate::command::keyring::refusal::{Attempt, refused};
use crate::command::{CommandResult, change::Change};
use crate::guard::control::{Request, ask};
use crate::guard::evm::mode_json;
use crate::output::{Failure, tell, warn};
use imara_engine::evm::mode::{self, ModeError};
use imara_format::evm::{EvmMode, MODE_FILE};
use imara_format::key::{Errno, KeySerial};
use imara_format::policy::KernelVersion;
use imara_linux::kernel_evm;
use imara_linux::key_service::{self as keys, errno_of};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Turn EVM on, or more of it: the guard's, or the kernel's. It can only become more, until the next start.
///
/// hmac: HMACs are made and verified; needs the HMAC key, and locks the mode. x509: signatures are verified.
/// allow-metadata-writes: every change of metadata is allowed until hmac is on (deprecated). lock: nothing more can be written.
#[derive(clap::Args)]
pub struct Arguments {
    /// hmac, x509, allow-metadata-writes, lock, or the number that is written to the kernel's file
    #[arg(value_name = "MODE", required = true, num_args = 1..)]
    modes: Vec<String>,
    /// First load this blob into the kernel as evm-key, for the kernel's EVM
    #[arg(long, value_name = "BLOB")]
    evm_key: Option<PathBuf>,
    /// First add this certificate, DER or PEM, to the kernel's keyring .evm or _evm; may be given several times
    #[arg(short, long = "key", value_name = "CERT")]
    keys: Vec<PathBuf>,
    #[command(flatten)]
    provider: ProviderOptions,
    #[command(flatten)]
    change: Change,
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: &Arguments) -> CommandResult {
    let bits = EvmMode::from_words(arguments.modes.iter().map(String::as_str)).map_err(Failure::usage)?;
    let document = match arguments.provider.find()? {
        Provider::Guard => {
            if arguments.evm_key.is_some() || !arguments.keys.is_empty() {
                return Err(Failure::usage("the guard's keys are those of its configuration")
                    .next("evm-key and evm-keys there, or imara guard --evm-key KEY_OR_BLOB --evm-cert CERT"));
            }
            let request = Request::EvmMode { bits: bits.0.to_string(), dry_run: arguments.change.dry_run };
            ask(&arguments.provider.runtime_dir, &request)?
        }
        Provider::Kernel => arguments.kernel(bits)?,
    };
    let words = |mode: &Value| {
        let words: Vec<&str> = mode["words"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if words.is_empty() { "off".to_owned() } else { words.join(", ") }
    };
    let would = if arguments.change.dry_run { "would be " } else { "" };
    if let Some(note) = document["note"].as_str() {
        warn(note);
    }
    let text = format!(
        "{}'s EVM: {would}{} (was {})\n",
        document["provider"].as_str().unwrap_or_default(),
        words(&document["mode"]),
        words(&document["from"])
    );
    Ok(arguments.change.report(text, &document))
}

impl Arguments {
    fn kernel(&self, bits: EvmMode) -> Result<Value, Failure> {
        let read = || kernel_evm::mode().map_err(|error| Failure::failed(format_args!("{MODE_FILE}: {error}")));
        let from = read()?.ok_or_else(no_kernel_evm)?;
        // What the kernel would say, before keys are loaded for it: a lock alone it does not show.
        let would = mode::write(from, bits.0.to_string().as_bytes(), KernelVersion::Latest, true, || Ok(()));
        let would = would.map_err(|error| not_taken(&error))?;
        let document = |mode: EvmMode, switched: bool| json!({ "schema": 1, "provider": "kernel", "from": mode_json(from), "mode": mode_json(mode), "switched": switched });
        if self.change.dry_run {
            return Ok(document(would, false));
        }
        if let Some(blob) = &self.evm_key {
            load_key(blob)?;
        }
        for certificate in &self.keys {
            add_certificate(certificate)?;
        }
        kernel_evm::write_mode(bits).map_err(|error| refused_mode(bits, &error))?;
        let now = read()?.unwrap_or_default();
        // What the kernel hides, and what is known of it.
        Ok(document(now | (would & EvmMode::SETUP_COMPLETE), true))
    }
}

fn not_taken(error: &ModeError) -> Failure {
    Failure::failed(format_args!("the kernel's EVM: {error} ({})", error.errno()))
}

fn refused_mode(bits: EvmMode, error: &std::io::Error) -> Failure {
    let failure = Failure::failed(format_args!("the kernel's EVM does not take the mode {bits}: {error}"));
    match errno_of(error) {
        Some(Errno::Enoent) if bits.contains(EvmMode::HMAC) => failure.next(format_args!(
            "its HMAC key is the encrypted key {EVM_KEY_NAME} in a keyring that this session leads to: load it with --evm-key BLOB, or \
             imara key load; keyctl link @u @s where @u is not linked"
        )),
        Some(Errno::Eperm) => failure.next(
            "it takes CAP_SYS_ADMIN; a mode that is locked (hmac locks it) stays as it is until the next start: imara evm status",
        ),
        Some(Errno::Einval) if bits.contains(EvmMode::HMAC) => {
            failure.next(format_args!("it takes keys of 1 to 128 bytes; load {EVM_KEY_NAME} anew, as it was wiped"))
        }
        Some(Errno::Einval) => failure.next("this kernel does not know one of these bits (sigv3-required: Linux 7.1)"),
        Some(_) | None => failure,
    }
}

/// Loads EVM's HMAC key into the user keyring, where request_key(2) finds it.
fn load_key(blob: &Path) -> Result<(), Failure> {
    let _ = keys::reach_user_keyring();
    let user = Keyring { serial: keys::USER_KEYRING, name: b"@u".to_vec() };
    let (_, what) = evm_key::load(blob, &user, false)?;
    tell(what);
    Ok(())
}

/// Adds a certificate where the kernel's EVM looks for it.
fn add_certificate(certificate: &Path) -> Result<(), Failure> {
    let _ = keys::reach_user_keyring();
    let keyring = evm_keyring().map_err(|error| {
        refused(
            Attempt::New { name: b"_evm", keyring: &Keyring { serial: keys::USER_KEYRING, name: b"@u".to_vec() } },
            &error,
        )
    })?;
    for source in Source::read(certificate)? {
        source.put_into(&keyring, false)?;
    }
    Ok(())
}

/// The keyring of EVM's certificates: the kernel's own, or `_evm`, which is made where there is none.
fn evm_keyring() -> std::io::Result<Keyring> {
    for name in [".evm", "_evm"] {
        if let Ok(serial) = keys::keyring_named(name.as_bytes()) {
            return Ok(Keyring { serial, name: name.as_bytes().to_vec() });
        }
    }
    let serial: KeySerial = keys::new_keyring(b"_evm", keys::USER_KEYRING)?;
    Ok(Keyring { serial, name: b"_evm".to_vec() })
}
