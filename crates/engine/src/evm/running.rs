//! EVM as it runs: its mode, key and list of attributes, what it found out about files, and the labels that it writes.
//!
//! [`Evm::judge`] is what IMA asks; [`Evm::relabel`] follows IMA's own writes, as in the kernel; [`Evm::changed`] follows what
//! somebody else changed, where that was seen only afterwards (see [`super::recorded`]).

use super::difference::Difference;
use super::key::HmacKey;
use super::mode::{self, ModeError};
use super::recorded::{Change, Meaning, Recorded};
use super::rules::Rules;
use super::snapshot::{EvmLabel, Snapshot};
use super::verify::{Found, Reason, Verifier};
use super::xattrs::{ProtectedXattrs, Wrote, XattrsError};
use super::{HMAC_TYPE, PORTABLE_TYPE};
use crate::audit::TaskIdentity;
use crate::cache::InodeId;
use crate::check::File;
use crate::integrity_status::IntegrityStatus;
use crate::keyring::Keyring;
use imara_format::evm::{EvmMode, Form, SECURITY_EVM, SECURITY_IMA};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Where the HMAC key comes from.
pub trait KeySource: Send + Sync {
    /// Loads it: what the kernel does with `request_key`.
    ///
    /// # Errors
    /// [`ModeError::Key`].
    fn load(&self) -> Result<Arc<dyn HmacKey>, ModeError>;
}

/// Keeps inodes in memory, so that nothing but the kernel's own calls changes them: see [`super::recorded`].
pub trait Keeper: Send + Sync {
    /// Whether a file's inode has been kept since [`Keeper::keep`] was last asked to.
    fn is_kept(&self, file: &dyn File) -> bool;

    /// Keeps it from now on; whether that is so.
    fn keep(&self, file: &dyn File) -> bool;
}

/// Keeps nothing: no change is followed afterwards.
#[derive(Debug, Clone, Copy)]
pub struct NoKeeper;

impl Keeper for NoKeeper {
    fn is_kept(&self, _: &dyn File) -> bool {
        false
    }

    fn keep(&self, _: &dyn File) -> bool {
        false
    }
}

/// EVM.
pub struct Evm {
    rules: RwLock<Arc<Rules>>,
    xattrs_locked: AtomicBool,
    mode: AtomicU32,
    key: RwLock<Option<Arc<dyn HmacKey>>>,
    source: Box<dyn KeySource>,
    keys: RwLock<Arc<Keyring>>,
    keeper: Box<dyn Keeper>,
    fix: AtomicBool,
    recorded: Recorded,
    /// Mode and list are written to by one at a time.
    writing: Mutex<()>,
}

/// What EVM makes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The status.
    pub status: IntegrityStatus,
    /// Why it is not a pass.
    pub reason: Option<Reason>,
    /// Whether a label was written on the way.
    pub wrote: bool,
}

/// What was made of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// Nothing that is protected, as far as is known.
    Nothing,
    /// The label was made anew.
    Followed(Vec<Difference>),
    /// The kernel would have refused it; the label does not fit any more.
    Refused(Vec<Difference>, IntegrityStatus),
    /// The label was exchanged or removed, or no longer fits as it would not in the kernel: the next check tells.
    Stale(Vec<Difference>),
}

impl Evm {
    /// An EVM that judges nothing yet.
    pub fn new(rules: Rules, keys: Keyring, source: Box<dyn KeySource>) -> Self {
        Self {
            rules: RwLock::new(Arc::new(rules)),
            xattrs_locked: AtomicBool::new(false),
            mode: AtomicU32::new(0),
            key: RwLock::default(),
            source,
            keys: RwLock::new(Arc::new(keys)),
            keeper: Box::new(NoKeeper),
            fix: AtomicBool::new(false),
            recorded: Recorded::default(),
            writing: Mutex::default(),
        }
    }

    /// The same, which follows changes of the files that `keeper` keeps in memory.
    #[must_use]
    pub fn with_keeper(mut self, keeper: Box<dyn Keeper>) -> Self {
        self.keeper = keeper;
        self
    }

    /// The mode.
    pub fn mode(&self) -> EvmMode {
        EvmMode(self.mode.load(Ordering::SeqCst))
    }

    /// The rules, with the list of attributes.
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the list of attributes cannot grow any more.
    pub fn xattrs_locked(&self) -> bool {
        self.xattrs_locked.load(Ordering::SeqCst)
    }

    /// The HMAC key, where it is loaded.
    pub fn hmac_key(&self) -> Option<Arc<dyn HmacKey>> {
        self.key.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The certificates.
    pub fn keys(&self) -> Arc<Keyring> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts other certificates in force and returns those before. What was judged before must be judged again, which is the caller's
    /// part.
    pub fn replace_keys(&self, keys: Arc<Keyring>) -> Arc<Keyring> {
        std::mem::replace(&mut *self.keys.write().unwrap_or_else(PoisonError::into_inner), keys)
    }

    /// `evm=fix`: a change is followed whatever the label was.
    pub fn set_fix(&self, fix: bool) {
        self.fix.store(fix, Ordering::SeqCst);
    }

    /// Whether it is.
    pub fn fix(&self) -> bool {
        self.fix.load(Ordering::SeqCst)
    }

    /// Whether somebody's change of this file's attributes is of interest.
    pub fn follows(&self, id: InodeId) -> bool {
        let mode = self.mode();
        mode.key_loaded() && (self.recorded.knows(id).is_some() || self.fix() && mode.contains(EvmMode::HMAC))
    }

    /// What files were like when their labels verified.
    pub const fn recorded(&self) -> &Recorded {
        &self.recorded
    }

    /// Takes what is written to the file `evm`; the mode then. What was judged before must be judged again, which is the
    /// caller's part.
    ///
    /// # Errors
    /// [`ModeError`].
    pub fn write_mode(&self, text: &[u8]) -> Result<EvmMode, ModeError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let load = || {
            let key = self.source.load()?;
            *self.key.write().unwrap_or_else(PoisonError::into_inner) = Some(key);
            Ok(())
        };
        let mode = mode::write(self.mode(), text, self.rules().kernel, true, load)?;
        self.mode.store(mode.0, Ordering::SeqCst);
        Ok(mode)
    }

    /// Takes what is written to `evm_xattrs`. What was judged before must be judged again.
    ///
    /// # Errors
    /// [`XattrsError`].
    pub fn write_xattrs(&self, written: &[u8]) -> Result<Wrote, XattrsError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let rules = self.rules();
        let mut xattrs = ProtectedXattrs { list: rules.xattrs.clone(), locked: self.xattrs_locked() };
        let wrote = xattrs.write(written, true)?;
        self.xattrs_locked.store(xattrs.locked, Ordering::SeqCst);
        if let Wrote::Added(..) = wrote {
            let rules = Rules { xattrs: xattrs.list, ..Rules::clone(&rules) };
            *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
            // They do not tell what the new attribute was.
            self.recorded.clear();
        }
        Ok(wrote)
    }

    /// What is protected of a file now.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn snapshot(&self, file: &dyn File) -> io::Result<Snapshot> {
        Snapshot::take(file, &self.rules().xattrs)
    }

    fn with_verifier<T>(&self, ask: impl FnOnce(&Verifier<'_>) -> T) -> T {
        let (rules, key, keys) = (self.rules(), self.hmac_key(), self.keys());
        ask(&Verifier { rules: &rules, mode: self.mode(), hmac_key: key.as_deref(), keys: &keys })
    }

    /// What EVM makes of a file's `security.ima`, without any effect.
    pub fn look(&self, file: &dyn File) -> Judged {
        self.examine(file, |_, _| false)
    }

    /// What EVM makes of a file's `security.ima`. A good signature of type 3 becomes an HMAC where there is a key; a change
    /// that was made by allowed means, and whose notice is still on its way, is followed.
    pub fn judge(&self, file: &dyn File, now: i128) -> Judged {
        // Before anything is looked at: what is recorded then has been kept from before on.
        let kept = self.mode().contains(EvmMode::HMAC) && self.keep(file);
        self.examine(file, |snapshot, found| {
            if let Some(label) = &found.becomes {
                // Where it cannot be written it stays a signature, which is as good.
                let wrote = file.set_xattr(SECURITY_EVM, label).is_ok();
                if wrote {
                    snapshot.label = EvmLabel::Value(label.clone());
                }
                self.recorded.verified(file.id(), snapshot.clone(), found.status, kept);
                return wrote;
            }
            if found.status.passes() {
                self.recorded.verified(file.id(), snapshot.clone(), found.status, kept);
                return false;
            }
            if found.reason != Some(Reason::HmacDiffers) {
                return false;
            }
            let Meaning::Allowed(what) = self.recorded.meaning(file.id(), snapshot) else { return false };
            let followed = self.relabel_as(file, snapshot);
            if followed {
                self.recorded.note(file.id(), Change { when: now, who: None, what, followed });
                found.status = IntegrityStatus::Pass;
                found.reason = None;
            }
            followed
        })
    }

    /// Keeps a file in memory; what is recorded of one that has left it meanwhile allows nothing any more.
    fn keep(&self, file: &dyn File) -> bool {
        self.check_kept(file);
        self.keeper.keep(file)
    }

    fn check_kept(&self, file: &dyn File) {
        if self.recorded.knows(file.id()) == Some(true) && !self.keeper.is_kept(file) {
            self.recorded.lose(file.id());
        }
    }

    fn examine(&self, file: &dyn File, act: impl FnOnce(&mut Snapshot, &mut Found<'_>) -> bool) -> Judged {
        let unjudged = |status, reason| Judged { status, reason: Some(reason), wrote: false };
        if !self.mode().key_loaded() {
            return unjudged(IntegrityStatus::Unknown, Reason::NotEnabled);
        }
        let mut snapshot = match self.snapshot(file) {
            Ok(snapshot) => snapshot,
            Err(error) => return unjudged(IntegrityStatus::Fail, Reason::Metadata(error.to_string())),
        };
        self.with_verifier(|verifier| {
            let mut found = verifier.verify_xattr(SECURITY_IMA, &snapshot);
            let wrote = act(&mut snapshot, &mut found);
            Judged { status: found.status, reason: found.reason, wrote }
        })
    }

    /// Makes the HMAC anew after IMA has written its own label, whatever EVM's label was before, unless it is a portable
    /// signature; where no protected attribute is left the label goes. Whether it was written.
    ///
    /// # Errors
    /// What reading the file or writing the label says.
    pub fn relabel(&self, file: &dyn File) -> io::Result<bool> {
        if !self.mode().contains(EvmMode::HMAC) {
            return Ok(false);
        }
        self.keep(file);
        let mut snapshot = self.snapshot(file)?;
        Ok(snapshot.label.kind() != Some(PORTABLE_TYPE) && self.relabel_as(file, &mut snapshot))
    }

    /// Labels a file as it is; `snapshot` has the new label then.
    fn relabel_as(&self, file: &dyn File, snapshot: &mut Snapshot) -> bool {
        let Some(key) = self.hmac_key().filter(|_| self.mode().contains(EvmMode::HMAC)) else { return false };
        if snapshot.unbound.is_some() {
            return false;
        }
        let rules = self.rules();
        let written = if snapshot.is_covered(Form::Hmac, &rules) {
            snapshot.hmac_label(&rules, &*key).map_err(io::Error::other).and_then(|label| {
                file.set_xattr(SECURITY_EVM, &label)?;
                Ok(EvmLabel::Value(label))
            })
        } else if snapshot.label == EvmLabel::Absent {
            return false;
        } else {
            file.remove_xattr(SECURITY_EVM).map(|()| EvmLabel::Absent)
        };
        match written {
            Ok(label) => {
                snapshot.label = label;
                let status = IntegrityStatus::Pass;
                self.recorded.verified(file.id(), snapshot.clone(), status, self.keeper.is_kept(file));
                true
            }
            // It stays as it was, and fails when it is asked about next.
            Err(_) => false,
        }
    }

    /// Somebody has changed a file's attributes: follows it, where that may be.
    ///
    /// # Errors
    /// What reading the file says.
    pub fn changed(&self, file: &dyn File, who: Option<&TaskIdentity>, now: i128) -> io::Result<Changed> {
        let id = file.id();
        self.check_kept(file);
        let mut snapshot = self.snapshot(file)?;
        let note = |what: Vec<Difference>, followed| {
            self.recorded.note(id, Change { when: now, who: who.cloned(), what, followed });
        };
        let hmac = self.mode().contains(EvmMode::HMAC);
        if self.fix() && hmac && snapshot.label.kind() != Some(PORTABLE_TYPE) {
            let passes = self.with_verifier(|verifier| verifier.status(&snapshot).status.passes());
            let what = match self.recorded.lookup(id) {
                Some(record) => record.verified.differences(&snapshot),
                None => Vec::new(),
            };
            if passes || !self.relabel_as(file, &mut snapshot) {
                return Ok(Changed::Nothing);
            }
            note(what.clone(), true);
            return Ok(Changed::Followed(what));
        }
        match self.recorded.meaning(id, &snapshot) {
            Meaning::Same => {
                // It was followed at a check before this notice came, or it was something else.
                if let Some(who) = who {
                    self.recorded.attribute(id, who);
                }
                Ok(Changed::Nothing)
            }
            Meaning::Unknown => Ok(Changed::Nothing),
            Meaning::Allowed(what) => {
                let followed = snapshot.label.kind() == Some(HMAC_TYPE) && self.relabel_as(file, &mut snapshot);
                note(what.clone(), followed);
                Ok(if followed { Changed::Followed(what) } else { Changed::Stale(what) })
            }
            Meaning::Refused(what, status) => {
                // Told once for each change.
                let told = self.recorded.lookup(id).and_then(|record| record.changes.back().cloned());
                if told.is_some_and(|change| change.what == what) {
                    return Ok(Changed::Nothing);
                }
                note(what.clone(), false);
                Ok(Changed::Refused(what, status))
            }
            Meaning::Relabelled(what) | Meaning::Unkept(what) => {
                note(what.clone(), false);
                Ok(Changed::Stale(what))
            }
        }
    }
}
