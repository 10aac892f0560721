//! EVM under the guard: how it begins, and what commands are answered about it.

use super::config::EvmConfig;
use super::run::read_keys;
use crate::command::evm::explain::undo_all;
use crate::command::evm::rules;
use crate::command::hmac_key;
use crate::command::key::encrypted::Unsealing;
use crate::command::paths::printable;
use crate::output::Failure;
use imara_engine::check::Checker;
use imara_engine::evm::mode::ModeError;
use imara_engine::evm::recorded::Change;
use imara_engine::evm::xattrs::Wrote;
use imara_engine::evm::{Difference, Evm, HmacKey, KeySource, Rules};
use imara_format::evm::EvmMode;
use imara_format::hash::to_hex;
use imara_linux::evm_key::Keeping;
use imara_linux::files;
use imara_linux::kept::Kept;
use imara_linux::kernel_evm;
use imara_linux::opened::OpenedFile;
use serde_json::{Value, json};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The key that the configuration names, looked for when EVM's mode is to have it.
struct Configured {
    key: PathBuf,
    master: Option<PathBuf>,
}

impl KeySource for Configured {
    fn load(&self) -> Result<Arc<dyn HmacKey>, ModeError> {
        let key = hmac_key::load(self.key.as_os_str(), self.master.as_deref(), &Unsealing::default(), Keeping::Best);
        key.map(Arc::from).map_err(|failure| {
            let next = if failure.next.is_empty() { String::new() } else { format!(" ({})", failure.next) };
            // Whatever it is, the kernel says ENOENT.
            ModeError::Key { what: format!("{}{next}", failure.what), errno: "ENOENT" }
        })
    }
}

/// EVM as it is configured. Where it is to be on and cannot be, there is none: nothing would be judged.
///
/// # Errors
/// A key that cannot be had.
pub fn start(config: &EvmConfig, notes: &mut Vec<String>) -> Result<Arc<Evm>, Failure> {
    let source = Configured { key: config.key.clone(), master: config.master.clone() };
    let rules = rules::this_machine().unwrap_or_else(|failure| {
        notes
            .push(format!("EVM goes by a distribution's rules, as this kernel's are not to be read: {}", failure.what));
        Rules::distribution()
    });
    let mut evm = Evm::new(rules, read_keys(&config.keys)?, Box::new(source));
    match Kept::new() {
        Ok(kept) => evm = evm.with_keeper(Box::new(kept)),
        Err(error) => notes.push(format!(
            "EVM cannot keep files in memory ({error}), so that labels do not follow changes of metadata"
        )),
    }
    evm.set_fix(config.fix);
    if config.fix {
        notes.push("evm-fix: whatever is changed gets a good EVM label, for setting up alone".into());
    }
    if config.mode != EvmMode::NONE {
        let mode = evm.write_mode(config.mode.0.to_string().as_bytes()).map_err(|error| refused(&error))?;
        notes.extend(kernel_takes_hmacs(mode));
    }
    Ok(Arc::new(evm))
}

/// Has the kernel's own EVM take HMACs by hand, where it does nothing else; what is to be said of it.
///
/// It refuses them even where it has no key, as long as the bit for that is not set.
fn kernel_takes_hmacs(mode: EvmMode) -> Option<String> {
    let kernel = kernel_evm::mode().ok().flatten().filter(|_| mode.contains(EvmMode::HMAC))?;
    let how = "imara evm enable allow-metadata-writes --provider kernel";
    if kernel.contains(EvmMode::HMAC) {
        return Some("the kernel's EVM makes its own HMACs: the guard judges them, and needs the same key".into());
    }
    if kernel.contains(EvmMode::ALLOW_METADATA_WRITES) {
        return None;
    }
    if kernel != EvmMode::NONE {
        return Some(format!(
            "the kernel's EVM ({kernel}) takes no HMACs by hand, so that the guard's labels cannot follow changes: {how}"
        ));
    }
    Some(match kernel_evm::write_mode(EvmMode::ALLOW_METADATA_WRITES) {
        Ok(()) => "the kernel's EVM is off; it was told to take HMACs by hand (allow-metadata-writes)".into(),
        Err(error) => format!("the kernel's EVM takes no HMACs by hand, and cannot be told to ({error}): {how}"),
    })
}

fn refused(error: &ModeError) -> Failure {
    let failure = Failure::failed(format_args!("EVM: {error} ({})", error.errno()));
    match error {
        ModeError::Key { .. } => failure
            .next("name the key with evm-key (--evm-key): an encrypted key in the kernel, or a file with its blob"),
        ModeError::NotPermitted(_) => {
            failure.next("imara evm status shows the mode; end the guard and start it to begin anew")
        }
        ModeError::Number(_) | ModeError::NoMode(..) => failure,
    }
}

/// Takes a write to the guard's mode of EVM, as the kernel takes one to its file. `ask_again` is called where what was judged
/// does not hold any more.
///
/// # Errors
/// As the kernel refuses.
pub fn write_mode(
    checker: &Checker,
    text: &str,
    dry_run: bool,
    ask_again: impl FnOnce() -> Result<(), Failure>,
) -> Result<Value, Failure> {
    let evm = of(checker)?;
    let from = evm.mode();
    let mut note = None;
    let to = if dry_run {
        let kernel = evm.rules().kernel;
        imara_engine::evm::mode::write(from, text.as_bytes(), kernel, true, || Ok(()))
            .map_err(|error| refused(&error))?
    } else {
        let to = evm.write_mode(text.as_bytes()).map_err(|error| refused(&error))?;
        note = kernel_takes_hmacs(to);
        checker.cache().clear();
        ask_again()?;
        to
    };
    Ok(json!({
        "schema": 1,
        "provider": "guard",
        "from": mode_json(from),
        "mode": mode_json(to),
        "switched": !dry_run,
        "note": note,
    }))
}

/// Takes a write to the guard's list of protected attributes.
///
/// # Errors
/// As the kernel refuses.
pub fn write_xattrs(
    checker: &Checker,
    written: &str,
    ask_again: impl FnOnce() -> Result<(), Failure>,
) -> Result<Value, Failure> {
    let evm = of(checker)?;
    let wrote = evm
        .write_xattrs(written.as_bytes())
        .map_err(|error| Failure::failed(format_args!("{written}: {error} ({})", error.errno())))?;
    if let Wrote::Added(..) = wrote {
        checker.cache().clear();
        ask_again()?;
    }
    Ok(xattrs(evm))
}

/// The guard's list of protected attributes.
pub fn xattrs(evm: &Evm) -> Value {
    let names: Vec<String> = evm.rules().xattrs.enabled().map(str::to_owned).collect();
    json!({ "schema": 1, "provider": "guard", "xattrs": names, "locked": evm.xattrs_locked() })
}

/// The checker's EVM.
///
/// # Errors
/// It has none.
pub fn of(checker: &Checker) -> Result<&Evm, Failure> {
    checker.evm().map(|evm| &**evm).ok_or_else(|| Failure::failed("the guard has no EVM"))
}

/// What has been seen of a file's metadata.
///
/// # Errors
/// The file cannot be opened.
pub fn changes(checker: &Checker, path: &Path) -> Result<Value, Failure> {
    use imara_engine::check::File;
    let evm = of(checker)?;
    let file = files::open_regular(path).map_err(Failure::failed)?;
    let opened = OpenedFile::new(file.as_fd());
    let opened = opened.map_err(|error| Failure::failed(format_args!("{}: {error}", path.display())))?;
    let record = evm.recorded().lookup(opened.id());
    let now = evm.snapshot(&opened).map_err(Failure::failed)?;
    let differences = record.as_ref().map(|record| record.verified.differences(&now)).unwrap_or_default();
    // Under the label that was verified what was verified fits again.
    let same_label = record.as_ref().is_some_and(|record| record.verified.label == now.label);
    let back = if same_label { undo_all(&differences, &printable(path)) } else { Vec::new() };
    Ok(json!({
        "schema": 1,
        "known": record.is_some(),
        "status": record.as_ref().map(|record| record.status.words()),
        "differences": differences.iter().map(difference_json).collect::<Value>(),
        "back": back,
        "changes": record.iter().flat_map(|record| &record.changes).map(change_json).collect::<Value>(),
    }))
}

fn change_json(change: &Change) -> Value {
    json!({
        "time": u64::try_from(change.when / 1_000_000_000).unwrap_or_default(),
        "by": change.who.as_ref().map(|who| json!({
            "pid": who.pid,
            "uid": who.uids[0],
            "command": String::from_utf8_lossy(&who.command),
            "executable": String::from_utf8_lossy(&who.executable),
        })),
        "differences": change.what.iter().map(difference_json).collect::<Value>(),
        "followed": change.followed,
    })
}

/// A difference for programs.
pub fn difference_json(difference: &Difference) -> Value {
    let (was, is) = difference.values();
    json!({ "attribute": difference.attribute(), "was": was, "is": is })
}

/// A mode for programs.
pub fn mode_json(mode: EvmMode) -> Value {
    json!({
        "bits": mode.0,
        "words": mode.words().collect::<Vec<_>>(),
        "locked": mode.contains(EvmMode::SETUP_COMPLETE),
    })
}

/// EVM's part of the status.
pub fn status(evm: &Evm) -> Value {
    let key = evm.hmac_key();
    let custody = key.as_ref().map(|key| key.custody());
    json!({
        "mode": mode_json(evm.mode()),
        "fix": evm.fix(),
        "hmac_key": custody.map(|custody| json!({
            "custody": custody.word(),
            "where": custody.to_string(),
            "why_not_better": imara_linux::evm_key::why_not_better(custody),
        })),
        "keys": evm.keys().keys().iter().map(|key| json!({
            "id": to_hex(&key.key_id()),
            "kind": key.kind().to_string(),
            "subject": key.certificate().map(|certificate| certificate.subject.clone()),
        })).collect::<Value>(),
        "xattrs": evm.rules().xattrs.enabled().collect::<Vec<_>>(),
        "xattrs_locked": evm.xattrs_locked(),
        "known_files": evm.recorded().len(),
    })
}
