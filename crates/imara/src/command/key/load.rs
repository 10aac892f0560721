//! `imara key load`.

use super::evm_key;
use super::master::{self, held};
use super::places::{Places, Purpose};
use super::steps::{State, Steps};
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::hmac_key::EVM_KEY_NAME;
use crate::command::keyring::certificates::Source;
use crate::command::keyring::named::{Keyring, KeyringName};
use crate::command::keyring::refusal::{Attempt, refused};
use crate::command::paths::printable;
use crate::output::Failure;
use imara_format::key_blob::encrypted::MasterType;
use imara_linux::key_service::{self as keys, KeyType};
use imara_linux::tpm_address::TpmAddress;
use serde_json::json;
use std::path::PathBuf;

/// Load the keys of /etc/keys into the kernel: what is done at each boot.
///
/// The master key (kmk-trusted.blob, kmk-user.blob), the evm-key under it (evm-trusted.blob, evm-user.blob), and the certificates
/// (x509_ima.der, ima/*, x509_evm.der, evm/*) for .ima and .evm, or for _ima and _evm, which are made where the kernel has not the
/// others. The master key gets the type and the name that the blob of evm-key has for it. What is there already is left as it is. dist/imara-keys.service does it early at boot.
#[derive(clap::Args)]
pub struct Load {
    /// The keyring for the keys, and for _ima and _evm
    #[arg(long, value_name = "KEYRING", default_value = "@u")]
    keyring: KeyringName,
    /// Ask this TPM from here, and not through the kernel's keys: a device, or a software TPM's socket
    #[arg(long, value_name = "TPM")]
    tpm: Option<TpmAddress>,
    /// The folder that holds etc/keys
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    #[command(flatten)]
    change: Change,
}

impl Load {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let places = Places::below(Some(&self.root));
        if !places.folder().is_dir() {
            return Err(Failure::failed(format!("{} is not there", printable(places.folder())))
                .next("make keys: imara key setup"));
        }
        let mut steps = Steps::new(&self.change);
        load(&places, &self.keyring, self.tpm.as_ref(), &mut steps)?;
        if steps.is_empty() && !self.change.json && !self.change.quiet {
            crate::output::print(format_args!("{}: no keys to load\n", printable(places.folder())));
        }
        Ok(steps.finish(json!({ "schema": 1, "folder": places.folder().to_string_lossy() })))
    }
}

/// Loads everything that is in a folder of keys.
///
/// # Errors
/// There is no keyring to load into. Whatever else fails is told as a step.
pub fn load(
    places: &Places,
    keyring: &KeyringName,
    tpm: Option<&TpmAddress>,
    steps: &mut Steps<'_>,
) -> Result<(), Failure> {
    let keyring = keyring.find()?;
    let kinds = [MasterType::Trusted, MasterType::User];
    let mut loaded = Vec::new();
    for kind in kinds {
        if places.master(kind).exists() {
            let wanted = evm_key::master_of(&places.evm_key(kind));
            let result = master::load(places, (kind, wanted.as_ref()), tpm, &keyring, steps.dry_run());
            if steps.take("master key", "loaded", result) {
                loaded.push(kind);
            }
        }
    }
    // Under the master key that is there; the first of two.
    let mut kinds = kinds.into_iter().filter(|kind| places.evm_key(*kind).exists()).collect::<Vec<_>>();
    kinds.sort_by_key(|kind| !loaded.contains(kind));
    if let Some(kind) = kinds.first() {
        let result = evm_key::load(&places.evm_key(*kind), &keyring, steps.dry_run());
        steps.take(&format!("key {EVM_KEY_NAME}"), "loaded", result);
    }
    for purpose in Purpose::ALL {
        certificates(places, purpose, &keyring, steps);
    }
    Ok(())
}

fn certificates(places: &Places, purpose: Purpose, keyring: &Keyring, steps: &mut Steps<'_>) {
    let files = places.certificates_there(purpose);
    if files.is_empty() {
        return;
    }
    let ring = match verification_keyring(purpose, keyring, steps) {
        Ok(ring) => ring,
        Err(failure) => return steps.fail(&format!("keyring for {purpose}"), &failure),
    };
    let mut put = Vec::new();
    for path in files {
        let sources = match Source::read(&path) {
            Ok(sources) => sources,
            Err(failure) => {
                steps.fail(&printable(&path), &failure);
                continue;
            }
        };
        for source in sources {
            // dracut's folder has a copy of the one that the kernel looks for.
            if put.contains(&source.der) {
                continue;
            }
            let what = format!("certificate {}", printable(&path));
            let result = match &ring {
                None => Ok((State::Done, format!("into {}, {}", purpose.keyrings()[1], source.words()))),
                Some(ring) => source.put_into(ring, steps.dry_run()).map(|(serial, there)| {
                    let number = serial.map(|serial| format!("key {serial} in ")).unwrap_or_default();
                    let state = if there { State::There } else { State::Done };
                    (state, format!("{number}{ring}, {}", source.words()))
                }),
            };
            steps.take(&what, "loaded", result);
            put.push(source.der);
        }
    }
}

/// The keyring that the kernel verifies with; one is made where there is none. None where it would be made.
fn verification_keyring(
    purpose: Purpose,
    keyring: &Keyring,
    steps: &mut Steps<'_>,
) -> Result<Option<Keyring>, Failure> {
    let [kernels, own] = purpose.keyrings();
    if let Ok(serial) = keys::keyring_named(kernels.as_bytes()) {
        return Ok(Some(Keyring { serial, name: kernels.into() }));
    }
    // Only where this keyring has it: another one of that name is somebody else's.
    if let Some(serial) = held(keyring, KeyType::Keyring, own.as_bytes()) {
        return Ok(Some(Keyring { serial, name: own.into() }));
    }
    let what = format!("keyring {own}");
    if steps.dry_run() {
        steps.tell(&what, State::Done, "made", &format!("in {keyring}"));
        return Ok(None);
    }
    let made = keys::new_keyring(own.as_bytes(), keyring.serial);
    let serial = made.map_err(|error| refused(Attempt::New { name: own.as_bytes(), keyring }, &error))?;
    steps.tell(&what, State::Done, "made", &format!("{serial} in {keyring}"));
    Ok(Some(Keyring { serial, name: own.into() }))
}
