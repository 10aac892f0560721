//! `imara tpm quote`.

use super::target::Target;
use super::{SCHEMA, authorisation, pcrs, srk};
use crate::command::CommandResult;
use crate::command::new_files::write_together;
use crate::command::paths::{printable, read};
use crate::output::{Failure, Outcome, print, print_json};
use imara_engine::crypto::PublicKey;
use imara_engine::tpm::template::{self, KeyKind};
use imara_engine::tpm::{AuthValue, Hierarchy, MAX_NONCE, Object, SealedObject, Tpm, TpmError};
use imara_format::hash::{from_hex, to_hex};
use imara_format::tpm::{PcrSelection, PublicArea, QuoteAttestation};
use serde_json::json;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Have the TPM sign PCR values, with a nonce of who wants to know.
///
/// Writes quote.msg, quote.sig, pcrs and ak.pub (in PEM: ak.pem) to a folder, in the forms of tpm2_quote: `tpm2_checkquote -u ak.pub -m
/// quote.msg -s quote.sig -f pcrs -q NONCE` and `imara tpm verify-quote DIR --nonce NONCE` verify them.
///
/// Exit status: 0 done, 1 the TPM refused, 2 wrong command line, 3 there is no TPM, it does not answer, or it has not these PCRs.
#[derive(clap::Args)]
pub struct Quote {
    /// Which PCRs: sha256:0,7,10 or sha1:10+sha256:all
    #[arg(long, value_name = "SELECTION", value_parser = PcrSelection::parse)]
    pcrs: PcrSelection,
    /// The nonce, 1 to 64 bytes in hexadecimal: without one that was never used, an old quote could be shown again
    #[arg(long, value_name = "HEX", value_parser = nonce)]
    nonce: Nonce,
    /// The folder to write to; it is made if it is not there, and nothing in it is written over
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The key: a handle like 0x81010002, or a folder that has it as ak.pub and ak.priv (as tpm2_create writes them). A folder
    /// that has neither gets a new key, made under the storage root key. Without: the endorsement hierarchy's attestation key,
    /// which the TPM makes anew each time and which is always the same
    #[arg(long, value_name = "KEY")]
    key: Option<Key>,
    /// The type of a key that is made
    #[arg(long = "type", value_enum, default_value_t = srk::Type::P256)]
    kind: srk::Type,
    /// The parent of the key in the folder: a handle. Without: 0x81000001 if it is kept there, else the storage root key by its
    /// templates
    #[arg(long, value_name = "HANDLE", value_parser = srk::handle, requires = "key")]
    parent: Option<u32>,
    /// The key's authorisation value is the content of FILE
    #[arg(long, value_name = "FILE")]
    auth: Option<PathBuf>,
    /// The authorisation value of the hierarchy or parent that the key is made or loaded in is the content of FILE
    #[arg(long, value_name = "FILE")]
    parent_auth: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

/// What makes a quote fresh.
#[derive(Clone)]
pub struct Nonce(pub Vec<u8>);

/// Reads a nonce in hexadecimal.
pub fn nonce(text: &str) -> Result<Nonce, String> {
    let bytes = from_hex(text).map_err(|error| error.to_string())?;
    match bytes.len() {
        1..=MAX_NONCE => Ok(Nonce(bytes)),
        length => Err(format!("1 to {MAX_NONCE} bytes are needed, not {length}")),
    }
}

#[derive(Clone)]
enum Key {
    Handle(u32),
    Folder(PathBuf),
}

impl std::str::FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("0x") {
            Some(_) => srk::handle(text).map(Self::Handle),
            None => Ok(Self::Folder(text.into())),
        }
    }
}

/// Where most machines keep the storage root key.
const USUAL_PARENT: u32 = 0x8100_0001;
/// `TPM_RC_INTEGRITY` of the first parameter: made under another parent.
const NOT_ITS_PARENT: u32 = 0x1df;

impl Quote {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        if self.pcrs.is_empty() {
            return Err(Failure::usage("--pcrs selects no PCR: a quote of none proves nothing"));
        }
        let (auth, parent_auth) =
            (authorisation::value(self.auth.as_deref())?, authorisation::value(self.parent_auth.as_deref())?);
        let (key, quote, values) = self.target.with(|tpm| {
            let key = self.key(tpm, &auth, &parent_auth)?;
            if !key.public().is_attestation_key() {
                return Err(Failure::failed(format!(
                    "the key, {} ({}), is no attestation key: a quote by a key that is not restricted or not fixed to its TPM \
                     proves nothing",
                    key.public(),
                    key.public().attributes
                )));
            }
            let (quote, values) = tpm.quote_with_values(&key, &auth, &self.nonce.0, &self.pcrs)?;
            Ok((key, quote, values))
        })?;
        let message = QuoteAttestation::parse(&quote.message).map_err(Failure::failed)?;
        let pem = PublicKey::public_area_to_pem(key.public()).map_err(Failure::failed)?.unwrap_or_default();
        let serialized = values.to_tpm2_tools(&message.selection).map_err(Failure::failed)?;
        let public = key.public().to_sized();
        make_folder(&self.out)?;
        let names = ["quote.msg", "quote.sig", "pcrs", "ak.pub", "ak.pem"].map(|name| self.out.join(name));
        let contents = [&quote.message, &quote.signature, &serialized, &public, pem.as_bytes()];
        let files: Vec<_> = names.iter().zip(contents).map(|(path, bytes)| (path.as_path(), bytes, 0o644)).collect();
        write_together(&files, false)?;
        if self.json {
            print_json(&json!({
                "schema": SCHEMA,
                "tpm": self.target.tpm.to_string(),
                "pcrs": pcrs::document(&values),
                "nonce": to_hex(&self.nonce.0),
                "key": { "type": key.public().to_string(), "name": key.name().to_string(), "pem": pem },
                "resets": message.reset_count,
                "restarts": message.restart_count,
                "files": names.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>(),
            }));
        } else if !self.quiet {
            print(format_args!(
                "{}: {} quoted by {}, name {}\n",
                printable(&self.out),
                message.selection,
                key.public(),
                key.name()
            ));
        }
        Ok(Outcome::Done)
    }

    fn key(&self, tpm: &mut Tpm, auth: &AuthValue, parent_auth: &AuthValue) -> Result<Object, Failure> {
        match &self.key {
            None => {
                let template = template::attestation_key(self.kind.into());
                Ok(tpm.create_primary(Hierarchy::Endorsement, parent_auth, &template)?)
            }
            Some(Key::Handle(handle)) => Ok(tpm.object(*handle)?),
            Some(Key::Folder(folder)) => {
                let (public, private) = (folder.join("ak.pub"), folder.join("ak.priv"));
                match (public.exists(), private.exists()) {
                    (false, false) => self.new_key(tpm, folder, auth, parent_auth),
                    (true, true) => self.load(tpm, &public, &private, parent_auth),
                    (true, false) | (false, true) => {
                        let missing = if public.exists() { &private } else { &public };
                        Err(Failure::failed(format!(
                            "{} is missing beside the other half of the key",
                            printable(missing)
                        ))
                        .next("name the folder that has both, or an empty one for a new key"))
                    }
                }
            }
        }
    }

    /// Makes a key and keeps it in the folder.
    fn new_key(
        &self,
        tpm: &mut Tpm,
        folder: &Path,
        auth: &AuthValue,
        parent_auth: &AuthValue,
    ) -> Result<Object, Failure> {
        let parent = self.parents(tpm)?.first().copied().unwrap_or(Parent::Template(KeyKind::P256));
        let parent = parent.object(tpm, parent_auth)?;
        let key = tpm.create_key(&parent, parent_auth, &template::attestation_key(self.kind.into()), auth)?;
        make_folder(folder)?;
        let private = [&(key.private.len() as u16).to_be_bytes(), key.private.as_slice()].concat();
        write_together(
            &[(&folder.join("ak.pub"), &key.public.to_sized(), 0o644), (&folder.join("ak.priv"), &private, 0o600)],
            false,
        )?;
        Ok(tpm.load_key(&parent, parent_auth, &key)?)
    }

    fn load(&self, tpm: &mut Tpm, public: &Path, private: &Path, parent_auth: &AuthValue) -> Result<Object, Failure> {
        let bytes = |path: &Path| read(path).map_err(|error| Failure::failed(format!("{}: {error}", printable(path))));
        let area = PublicArea::parse_sized(&bytes(public)?);
        let area = area.map_err(|error| Failure::failed(format!("{}: {error}", printable(public))))?;
        let blob = bytes(private)?;
        let stated = blob.first_chunk().map(|size| usize::from(u16::from_be_bytes(*size)));
        let rest = blob.get(2..).filter(|rest| Some(rest.len()) == stated);
        let rest = rest.ok_or_else(|| {
            Failure::failed(format!(
                "{} is not what tpm2_create -r writes: its size is not what it states",
                printable(private)
            ))
        })?;
        let key = SealedObject { public: area, private: rest.to_vec() };
        for parent in self.parents(tpm)? {
            // A TPM has room for three objects: one parent at a time.
            let loaded = tpm.leaving_only(|tpm| {
                let parent = parent.object(tpm, parent_auth)?;
                tpm.load_key(&parent, parent_auth, &key)
            });
            match loaded {
                Err(TpmError::Refused { code, .. }) if code.0 == NOT_ITS_PARENT => {}
                loaded => return Ok(loaded?),
            }
        }
        Err(Failure::failed(format!(
            "{}: this TPM has not made the key, or not under the storage root key",
            printable(private)
        ))
        .next("name its parent with --parent HANDLE"))
    }

    /// What can be the parent, the likeliest first.
    fn parents(&self, tpm: &mut Tpm) -> Result<Vec<Parent>, Failure> {
        if let Some(handle) = self.parent {
            return Ok(vec![Parent::Kept(handle)]);
        }
        let mut parents = Vec::new();
        if srk::kept(tpm)?.iter().any(|key| key.handle() == USUAL_PARENT) {
            parents.push(Parent::Kept(USUAL_PARENT));
        }
        parents.extend([KeyKind::P256, KeyKind::Rsa2048].map(Parent::Template));
        Ok(parents)
    }
}

/// A key's parent.
#[derive(Clone, Copy)]
enum Parent {
    Kept(u32),
    Template(KeyKind),
}

impl Parent {
    fn object(self, tpm: &mut Tpm, auth: &AuthValue) -> Result<Object, TpmError> {
        match self {
            Self::Kept(handle) => tpm.object(handle),
            Self::Template(kind) => tpm.create_primary(Hierarchy::Owner, auth, &template::srk(kind)),
        }
    }
}

fn make_folder(folder: &Path) -> Result<(), Failure> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
    made.map_err(|error| Failure::failed(format!("{}: {error}", printable(folder))))
}
