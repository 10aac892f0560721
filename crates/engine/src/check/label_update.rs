//! Labels that follow their content: what the kernel does when the last writer closes a file.
//!
//! | a file is followed | from |
//! |---|---|
//! | that a `hash` rule names | each open |
//! | that is appraised by a digest | an open for writing; and being let pass unasked, as writers are then not seen to come |
//!
//! The label is written where there has been a writer: one that was asked about; or one that was not, which its content's times
//! show, or the notice of the last close. A label alone that is another than before stays, and is judged as it is.
//!
//! Source: `ima_check_last_writer`, security/integrity/ima/ima_main.c; `ima_update_xattr`, security/integrity/ima/ima_appraise.c.

use super::steps::SIGNATURE;
use super::{Access, Checker, File};
use crate::cache::{InodeId, Stamp, is_settled};
use crate::evm;
use imara_format::hash::Digest;
use imara_format::label;
use std::io;

/// The content that a label stood beside while nobody wrote, as far as that shows from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    size: u64,
    modified: i64,
    /// The last change of content or attributes: the notice of a close that was there before comes late.
    changed: i64,
}

impl Content {
    /// Of a file in this state, to which nobody writes; `None` where a later change need not show.
    pub fn of(file: &dyn File, stamp: &Stamp, now: i128) -> Option<Self> {
        // Whatever is written has the time of that moment, also where the file had another one.
        let settled = is_settled(&Stamp { changed: stamp.modified, ..*stamp }, now);
        (settled && file.times_tell()).then(|| Self::shown(stamp)).flatten()
    }

    fn shown(stamp: &Stamp) -> Option<Self> {
        let (modified, changed) = (stamp.modified.try_into().ok()?, stamp.changed.try_into().ok()?);
        Some(Self { size: stamp.size, modified, changed })
    }

    /// Whether it may have been written to since, with the last close told or not.
    fn may_be_another(&self, now: &Self, told: bool) -> bool {
        (self.size, self.modified) != (now.size, now.modified) || (told && self.changed != now.changed)
    }
}

impl Checker {
    /// Has the label follow the file's next change (see [`Checker::refresh`]): from this content on, or whatever it is.
    pub fn maintain(&self, id: InodeId, content: Option<Content>) {
        let mut shard = self.maintained.shard(&id);
        if shard.len() >= self.maintained.room() {
            shard.clear();
        }
        let since = shard.entry(id).or_insert(content);
        // What is followed already may have changed since it was.
        if content.is_none() {
            *since = None;
        }
    }

    /// The same for whoever is asked about.
    pub(super) fn maintain_from(&self, access: &Access<'_>, stamp: Option<&Stamp>) {
        let file = access.file;
        let unwritten = !access.writes && file.nobody_writes() == Some(true);
        let content = stamp.filter(|_| unwritten).and_then(|stamp| Content::of(file, stamp, access.now));
        self.maintain(file.id(), content);
    }

    /// Whether the label follows the file's next change.
    pub fn maintains(&self, id: InodeId) -> bool {
        self.maintained.shard(&id).contains_key(&id)
    }

    /// Writes the digest of a file's content into its label, if that is to follow the content and the last writer has gone.
    ///
    /// # Errors
    /// What reading the file or writing the label says.
    pub fn refresh(&self, file: &dyn File) -> io::Result<bool> {
        self.update_label(file, false)
    }

    /// The same when a last close was told: that of a writer whose change does not show in the content's times, too.
    ///
    /// # Errors
    /// As [`Checker::refresh`].
    pub fn refresh_after_close(&self, file: &dyn File) -> io::Result<bool> {
        self.update_label(file, true)
    }

    /// Always in the default hash, as the kernel does at the last close. A signature is never replaced.
    fn update_label(&self, file: &dyn File, told: bool) -> io::Result<bool> {
        let id = file.id();
        let Some(since) = self.maintained.shard(&id).get(&id).copied() else {
            return Ok(false);
        };
        if file.nobody_writes() != Some(true) {
            return Ok(false);
        }
        if let (Some(since), Some(now)) = (since, Content::shown(&file.stamp()?))
            && !since.may_be_another(&now, told)
        {
            return Ok(false);
        }
        self.maintained.shard(&id).remove(&id);
        let label = file.xattr("security.ima")?;
        if label.as_deref().and_then(<[u8]>::first) == Some(&SIGNATURE) {
            return Ok(false);
        }
        if self.evm.as_ref().is_some_and(|evm| evm.mode().key_loaded())
            && file.xattr("security.evm")?.as_deref().and_then(<[u8]>::first) == Some(&evm::PORTABLE_TYPE)
        {
            return Ok(false);
        }
        let now = file.digest(self.log.hash())?;
        file.look_again();
        // A digest in another algorithm that is still right stays as it is: nothing has changed.
        let unchanged = match label.as_deref().and_then(label::algorithm_of) {
            Some(algorithm) => {
                let same = if algorithm == now.algorithm() { now } else { file.digest(algorithm)? };
                label.as_deref() == Some(&label::encode_digest(&same)[..])
            }
            None => false,
        };
        if !unchanged {
            self.write_label(file, &now)?;
            self.cache.forget(id);
        }
        Ok(!unchanged)
    }

    /// Writes a digest label; EVM's follows, whatever it was.
    pub(super) fn write_label(&self, file: &dyn File, digest: &Digest) -> io::Result<()> {
        file.set_xattr("security.ima", &label::encode_digest(digest))?;
        if let Some(evm) = &self.evm {
            // Where it cannot be written the file fails at its next use, and says why.
            let _ = evm.relabel(file);
        }
        Ok(())
    }
}
