//! `imara key trusted update`.

use super::blob::{BlobFile, Form};
use super::how::{self, Auths, ParentName, Pcrs};
use super::new::{keep, sealing};
use super::show::{blob_words, document, find_key};
use super::{kernel, not_done, warn_of_ignored, wrong_words};
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::key::kept::{Out, command_text};
use crate::command::paths::printable_bytes;
use crate::output::{Failure, warn};
use imara_engine::keys::KeyMaterial;
use imara_engine::keys::trusted::{self, PolicyKnowledge, TrustedKey};
use imara_engine::tpm::Tpm;
use imara_format::key_blob::sealed_key::TrustedBlob;
use imara_format::key_blob::sealed_record::SealedRecord;
use imara_format::key_blob::trusted::{Command, Options};
use imara_format::tpm::PcrSelection;
use imara_linux::tpm_address::TpmAddress;
use serde_json::json;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Seal a trusted key anew; its bytes stay. The options are those of a new key: none is taken over from the old blob.
///
/// Ahead of an update of the machine: `imara key trusted update F --pcrs sha256:7,11 --pcrs-after VALUES --out F --force` makes a blob
/// that is unsealed with the values of now and with those after it. A key in the kernel is named by name or number; a file with a
/// blob by its path, and then the TPM is asked from here.
#[derive(clap::Args)]
pub struct Update {
    /// The key in the kernel, by name or number, or the file with its blob (a path with a `/`, or a file that is there)
    #[arg(value_name = "KEY_OR_BLOB")]
    key: OsString,
    /// [keyhandle=H] [keyauth=…] [blobauth=…] [pcrlock=N] [migratable=0|1] [hash=ALG] [policydigest=…]
    #[arg(value_name = "WORD")]
    words: Vec<OsString>,
    /// The parent key: srk-p256 or srk-rsa2048, made from the owner hierarchy's seed each time, or a persistent handle
    #[arg(long, value_name = "KEY")]
    parent: Option<ParentName>,
    #[command(flatten)]
    pcrs: Pcrs,
    #[command(flatten)]
    auths: Auths,
    /// The authorisation value that unseals the old blob is what F holds
    #[arg(long, value_name = "F")]
    old_auth: Option<PathBuf>,
    /// The PCRs that the old blob's policy is over, where that is noted nowhere
    #[arg(long, value_name = "SELECTION", value_parser = PcrSelection::parse)]
    old_pcrs: Option<PcrSelection>,
    /// Ask this TPM: a device, or a software TPM's socket
    #[arg(long, value_name = "TPM")]
    tpm: Option<TpmAddress>,
    #[command(flatten)]
    out: Out,
    /// The blob's form
    #[arg(long, value_enum, default_value_t = Form::Hex)]
    form: Form,
    #[command(flatten)]
    change: Change,
}

impl Update {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let shown = printable_bytes(self.key.as_bytes());
        if self.out.out.is_none() {
            return Err(Failure::usage("--out FILE is missing: the new blob has to be kept"));
        }
        self.out.check()?;
        self.pcrs.check(&self.out)?;
        let words = command_text("update", &self.words);
        let command = KeyMaterial::new([words.as_slice(), self.auths.words()?.as_bytes()].concat());
        let parsed = Command::parse(command.as_bytes()).map_err(|error| wrong_words(&shown, &error))?;
        let Command::Update { options } = parsed else {
            return Err(Failure::usage("these are not the words of an update: KEY_OR_BLOB [OPTION…]"));
        };
        warn_of_ignored(&self.words);
        if self.pcrs.is_given() && !options.policy_digest.is_empty() {
            return Err(Failure::usage("--pcrs makes the policy, and policydigest= is another"));
        }
        let path = Path::new(&self.key);
        let is_file = self.key.as_bytes().contains(&b'/') || path.is_file();
        let (old, (blob, record)) = match is_file {
            true => {
                let file = BlobFile::read(path)?;
                let new = how::target(self.tpm.as_ref()).with(|tpm| self.in_file(tpm, &file, options, &shown))?;
                (file.blob, new)
            }
            false if self.tpm.is_some() => {
                return Err(Failure::usage("--tpm is for a file with a blob: the kernel asks the machine's own TPM"));
            }
            false => {
                let (serial, description) = find_key(&self.key)?;
                let name = printable_bytes(&description);
                let old = kernel::blob_of(serial, &name)?;
                let target = how::sealing_target(true, None, self.parent, &options)?;
                let new = target.with(|tpm| {
                    let (parent, options, pcrs) = sealing(tpm, self.parent, &self.pcrs, options, &shown)?;
                    let (blob, record) = match self.change.dry_run {
                        true => (old.clone(), SealedRecord::default()),
                        false => kernel::update(tpm, (serial, &name), parent, &options)?,
                    };
                    Ok((blob, SealedRecord { pcrs, ..record }))
                })?;
                (old, new)
            }
        };
        if !old.public().policy.is_empty() && blob.public().policy.is_empty() {
            warn(format_args!(
                "{shown}: the old blob was sealed by a policy; the new one is not, and is unsealed without it"
            ));
        }
        if !self.change.dry_run {
            keep(&self.out, self.form, &blob, &record)?;
        }
        let told = json!({ "key": shown, "updated": !self.change.dry_run, "blob_file": self.out.place() });
        let place = self.out.place().map(|place| format!("; blob in {place}")).unwrap_or_default();
        let would = if self.change.dry_run { "would become " } else { "" };
        let text = format!("{shown}: {would}{}{place}\n", blob_words(&blob, Some(&record)));
        Ok(self.out.report(&self.change, text, &document(told, &blob, Some(&record))))
    }

    /// A blob in a file: unsealed and sealed anew.
    fn in_file(
        &self,
        tpm: &mut Tpm,
        file: &BlobFile,
        options: Options<'_>,
        shown: &str,
    ) -> Result<(TrustedBlob, SealedRecord), Failure> {
        let failure = |error| not_done(shown, error);
        let old_auth = how::auth_words(self.old_auth.as_deref())?;
        let old = Options::parse(old_auth.as_bytes()).map_err(|error| wrong_words(shown, &error))?;
        let old = Options { parent: options.parent, parent_auth: options.parent_auth, ..old };
        let known = PolicyKnowledge { record: file.record.as_ref(), pcrs: self.old_pcrs.as_ref() };
        let mut key = TrustedKey::load(tpm, file.blob.clone(), &old, &known).map_err(failure)?;
        let (parent, options, pcrs) = sealing(tpm, self.parent, &self.pcrs, options, shown)?;
        trusted::lockable(options.pcr_lock).map_err(failure)?;
        let options = if self.change.dry_run { Options { pcr_lock: 0, ..options } } else { options };
        let record = key.update(tpm, parent, &options).map_err(failure)?;
        Ok((key.blob().clone(), SealedRecord { pcrs, ..record }))
    }
}
