//! A policy as a file: its rules, who signed it, which version it is, and whether it may take the place of the last one.
//!
//! The signature is the label of the file (`security.ima`), else `FILE.sig`: `imara sign` makes both. The version is what the
//! policy states in a comment (see [`stated_version`]); the last one that was in force is kept in the state directory, so
//! that an older one, though it was well signed in its time, is refused after a reboot, too. Whoever can write there as root
//! can undo it.

use crate::command::paths::signature_file;
use crate::output::Failure;
use imara_engine::cache::{InodeId, Stamp};
use imara_engine::check::{Access, Checker, File as CheckedFile, Hook, Task, Verdict};
use imara_engine::crypto;
use imara_engine::keyring::Keyring;
use imara_engine::label::{Verified, verify_label};
use imara_engine::measure::MeasureError;
use imara_engine::policy::FileFacts;
use imara_format::evm::InodeMetadata;
use imara_format::hash::{Digest, HashAlgorithm, to_hex};
use imara_format::label::Label;
use imara_format::policy::{Func, Mask, Policy, Rule, Target, stated_version};
use imara_linux::files::{self, OpenError, Xattr};
use imara_linux::opened::{OpenedFile, OpeningTask};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The largest policy that is read, in bytes.
const MOST: u64 = 64 << 20;
/// The largest detached signature, which is a label's value.
const MOST_OF_SIGNATURE: u64 = 64 << 10;

/// A policy that was read, and may be put in force.
#[derive(Debug)]
pub struct PolicySource {
    /// Its path.
    pub path: PathBuf,
    /// Its text.
    pub text: Vec<u8>,
    /// The SHA-256 digest of its text.
    pub digest: Digest,
    /// The version that it states.
    pub version: Option<u64>,
    /// The key id of a good signature.
    pub signer: Option<[u8; 4]>,
    /// Its rules.
    pub policy: Policy,
    file: Option<File>,
}

/// What is asked of a policy, beside that it can be read.
#[derive(Clone, Debug)]
pub struct Demands {
    /// Whether it must be signed.
    pub signature: bool,
    /// Where the version of the last one is kept.
    pub state_directory: PathBuf,
}

/// The version that was last in force.
#[derive(Debug, Serialize, Deserialize)]
struct LastVersion {
    version: u64,
    digest: String,
}

/// The file in the state directory.
const LAST_VERSION: &str = "policy-version.json";

impl PolicySource {
    /// Reads a policy for the guard, and its signature, where it has one: a bad one is refused whether one is demanded or not.
    ///
    /// # Errors
    /// [`Failure`] that names each line that is wrong, or what is wrong with the signature.
    pub fn read(path: &Path, keys: &Keyring, demands: &Demands) -> Result<Self, Failure> {
        let shown = path.display();
        let failed = |error: &dyn std::fmt::Display| Failure::failed(format_args!("{shown}: {error}"));
        let (file, text) = read_regular(path, MOST).map_err(|error| failed(&error))?;
        let policy = parse(path, &text)?;
        let version = stated_version(&text).map_err(|error| failed(&error))?;
        let digest = crypto::hash(HashAlgorithm::Sha256, &[&text]).map_err(Failure::failed)?;
        let signer = signer(path, &file, &text, keys)?;
        if demands.signature && signer.is_none() {
            return Err(failed(&"not signed, and only signed policies are taken (policy-signature = \"required\")")
                .next(format_args!(
                    "imara sign -k KEY {shown}    # with the key of a certificate that the guard has"
                )));
        }
        Ok(Self { path: path.into(), text, digest, version, signer, policy, file: Some(file) })
    }

    /// The empty policy, where there is none and it was told to go on.
    ///
    /// # Errors
    /// Hashing nothing does not fail.
    pub fn missing(path: &Path) -> Result<Self, Failure> {
        let digest = crypto::hash(HashAlgorithm::Sha256, &[]).map_err(Failure::failed)?;
        let policy = Policy::default();
        Ok(Self { path: path.into(), text: Vec::new(), digest, version: None, signer: None, policy, file: None })
    }

    /// Refuses a policy that is older than the one that was last in force.
    ///
    /// # Errors
    /// [`Failure`]; also where the last version cannot be read.
    pub fn check_version(&self, demands: &Demands) -> Result<(), Failure> {
        let place = demands.state_directory.join(LAST_VERSION);
        let unreadable = |error: &dyn std::fmt::Display| {
            Failure::failed(format_args!("the version of the last policy cannot be read: {}: {error}", place.display()))
                .next(format_args!("to begin anew with any version: rm {}", place.display()))
        };
        let last: LastVersion = match std::fs::read(&place) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| unreadable(&error))?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(unreadable(&error)),
        };
        let refused = |what: &dyn std::fmt::Display| {
            Failure::failed(format_args!("{}: {what}", self.path.display())).next(format_args!(
                "give it a higher `# policy-version:`; to take any version again: rm {}",
                place.display()
            ))
        };
        match self.version {
            None => Err(refused(&format_args!("states no version, and version {} was in force", last.version))),
            Some(version) if version < last.version => {
                Err(refused(&format_args!("version {version} is older than {}, which was in force", last.version)))
            }
            Some(version) if version == last.version && self.digest.to_string() != last.digest => {
                Err(refused(&format_args!("version {version} was in force with another content")))
            }
            Some(_) => Ok(()),
        }
    }

    /// Remembers the version of this policy, now that it is in force.
    ///
    /// # Errors
    /// What writing says; nothing has changed then.
    pub fn remember_version(&self, demands: &Demands) -> io::Result<()> {
        let Some(version) = self.version else {
            return Ok(());
        };
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700).recursive(true).create(&demands.state_directory)?;
        let place = demands.state_directory.join(LAST_VERSION);
        let fresh = place.with_extension("new");
        let text = serde_json::to_vec(&LastVersion { version, digest: self.digest.to_string() })?;
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &place)?;
        File::open(&demands.state_directory)?.sync_all()
    }

    /// Asks the policy in force what the kernel would ask when it reads a policy (POLICY_CHECK): so it is measured, and
    /// appraised where a rule says so.
    ///
    /// # Errors
    /// [`Failure`]: it may not be read as a policy.
    pub fn ask(&self, checker: &Checker) -> Result<(), Failure> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let failed = |error: &dyn std::fmt::Display| Failure::failed(format_args!("{}: {error}", self.path.display()));
        let opened = OpenedFile::new(file.as_fd()).map_err(|error| failed(&error))?;
        let read = ReadFile { opened, text: &self.text };
        let task = OpeningTask::new(std::process::id().cast_signed());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_nanos().cast_signed());
        let access = Access { file: &read, task: &task as &dyn Task, created: false, writes: false, now };
        match checker.check(&access, &[Hook { func: Func::PolicyCheck, mask: Mask::MAY_READ.bits() }]) {
            Verdict::Allow => Ok(()),
            Verdict::Later => Err(failed(&MeasureError::Busy).next("load it again when that is over (fsfreeze -u)")),
            Verdict::Deny(cause) => Err(failed(&format_args!(
                "the policy in force refuses it as a policy (POLICY_CHECK): {cause}"
            ))
            .next(format_args!(
                "imara sign -k KEY {}    # with the key of a certificate that the guard has",
                self.path.display()
            ))),
        }
    }
}

/// Reads rules as the guard takes them.
///
/// # Errors
/// [`Failure`] that names each line that is wrong.
pub fn parse(path: &Path, text: &[u8]) -> Result<Policy, Failure> {
    let shown = path.display();
    let policy = Policy::parse(text, &Target::guard()).map_err(|errors| {
        const SHOWN: usize = 5;
        let lines: Vec<String> = errors.iter().take(SHOWN).map(ToString::to_string).collect();
        let more = match errors.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        Failure::failed(format_args!("{shown}: {}{more}", lines.join("; ")))
            .next(format_args!("imara policy check --guard {shown}"))
    })?;
    for rule in &policy.rules {
        if let Some(why) = cannot_be_done(rule) {
            return Err(Failure::failed(format_args!("{shown}: line {}: {why}", rule.line))
                .next(format_args!("leave it to the kernel's own IMA, or take it out of the guard's policy: {rule}")));
        }
    }
    Ok(policy)
}

/// Reads a regular file, by links if need be: the guard must not wait for whoever is at the other end of a pipe.
fn read_regular(path: &Path, most: u64) -> io::Result<(File, Vec<u8>)> {
    let file = files::open_regular(&std::fs::canonicalize(path)?).map_err(|error| match error {
        OpenError::System { error, .. } => error,
        OpenError::NotRegular { found, .. } => io::Error::other(format!("not a regular file but {found}")),
    })?;
    let file = File::from(file);
    let mut content = Vec::new();
    (&file).take(most + 1).read_to_end(&mut content)?;
    if content.len() as u64 > most {
        return Err(io::Error::other(format!("longer than {most} bytes")));
    }
    Ok((file, content))
}

/// The key of a good signature over the text; `None` where it is not signed.
fn signer(path: &Path, file: &File, text: &[u8], keys: &Keyring) -> Result<Option<[u8; 4]>, Failure> {
    let failed = |what: &dyn std::fmt::Display| {
        Failure::failed(format_args!("{}: its signature is not good: {what}", path.display()))
            .next(format_args!("imara verify -k CERT {}    # says more", path.display()))
    };
    let label = match files::read_xattr(file, "security.ima").map_err(|error| failed(&error))? {
        Xattr::Value(label) if matches!(Label::parse_ima(&label), Ok(Label::Signature(_))) => Some(label),
        Xattr::Value(_) | Xattr::Absent | Xattr::Unsupported => None,
    };
    let label = match label {
        Some(label) => label,
        None => match read_regular(&signature_file(path), MOST_OF_SIGNATURE) {
            Ok((_, label)) => label,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error)),
        },
    };
    match verify_label(&label, |algorithm| crypto::hash(algorithm, &[text]), keys) {
        Ok(Verified::Signature { key, .. }) => Ok(Some(key.key_id())),
        Ok(Verified::Digest(_)) => Ok(None),
        Err(rejected) => Err(failed(&rejected)),
    }
}

/// Why a rule of the language asks for what the guard cannot do: better refused now than every access it matches later.
pub fn cannot_be_done(rule: &Rule) -> Option<String> {
    let pcr = rule.pcr.filter(|pcr| *pcr > 23 || matches!(pcr, 16 | 23))?;
    Some(format!("PCR {pcr} cannot hold a measurement list (16 and 23 can be reset by anybody, and there are 24)"))
}

/// A file whose content was read already: what is measured and appraised is what was read, whatever becomes of the file.
struct ReadFile<'a> {
    opened: OpenedFile<'a>,
    text: &'a [u8],
}

impl CheckedFile for ReadFile<'_> {
    fn id(&self) -> InodeId {
        self.opened.id()
    }

    fn stamp(&self) -> io::Result<Stamp> {
        self.opened.stamp()
    }

    fn facts(&self) -> FileFacts<'_> {
        self.opened.facts()
    }

    fn xattr(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.opened.xattr(name)
    }

    fn set_xattr(&self, name: &str, value: &[u8]) -> io::Result<()> {
        self.opened.set_xattr(name, value)
    }

    fn inode(&self) -> io::Result<InodeMetadata> {
        self.opened.inode()
    }

    fn verity_digest(&self) -> io::Result<Option<Digest>> {
        self.opened.verity_digest()
    }

    fn digest(&self, algorithm: HashAlgorithm) -> io::Result<Digest> {
        crypto::hash(algorithm, &[self.text]).map_err(|error| io::Error::new(ErrorKind::Unsupported, error))
    }

    fn path(&self) -> Vec<u8> {
        self.opened.path()
    }

    fn nobody_writes(&self) -> Option<bool> {
        // As if somebody did, so that nothing is remembered of the file: it may not hold any more what was read.
        Some(false)
    }

    fn times_tell(&self) -> bool {
        // What is known of the file need not be about what was read.
        false
    }
}

/// A key id for people.
pub fn shown_signer(signer: Option<[u8; 4]>) -> Option<String> {
    signer.map(|id| to_hex(&id))
}
