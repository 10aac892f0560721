//! Labels that follow their content: what the kernel does when the last writer closes a file.
//!
//! | a file is followed | from |
//! |---|---|
//! | that a `hash` rule names | each open |
//! | that is appraised by a digest | an open for writing; and being let pass unasked, as writers are then not seen to come |
//!
//! Source: `ima_check_last_writer`, security/integrity/ima/ima_main.c; `ima_update_xattr`, security/integrity/ima/ima_appraise.c.

use super::{Checker, File, SIGNATURE, insert};
use crate::cache::InodeId;
use crate::evm;
use crate::policy::Slot;
use imara_format::hash::Digest;
use imara_format::label;
use std::io;

impl Checker {
    /// Has the label follow the file's next change (see [`Checker::refresh`]).
    pub fn maintain(&self, id: InodeId) {
        insert(&self.maintained, id);
    }

    /// Whether the label follows the file's next change.
    pub fn maintains(&self, id: InodeId) -> bool {
        self.maintained.shard(&id).contains_key(&id)
    }

    /// Writes the digest of a file's content into its label, if that is to follow the content and the last writer has gone;
    /// always in the default hash, as the kernel does at the last close. A signature is never replaced.
    ///
    /// Source: `ima_update_xattr`, security/integrity/ima/ima_appraise.c.
    ///
    /// # Errors
    /// What reading the file or writing the label says.
    pub fn refresh(&self, file: &dyn File) -> io::Result<bool> {
        if !self.maintains(file.id()) || file.nobody_writes() != Some(true) {
            return Ok(false);
        }
        self.maintained.shard(&file.id()).remove(&file.id());
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
        // A digest in another algorithm that is still right stays as it is: nothing has changed.
        let unchanged = match label.as_deref().and_then(label::algorithm_of) {
            Some(algorithm) => label.as_deref() == Some(&label::encode_digest(&file.digest(algorithm)?)[..]),
            None => false,
        };
        if !unchanged {
            self.write_label(file, &now)?;
            self.cache.forget(file.id());
        }
        Ok(!unchanged)
    }

    /// Whether the file was appraised by a digest, so that its label has to follow when it is written to.
    pub fn appraised_by_digest(&self, file: &dyn File) -> bool {
        let record = file.stamp().ok().and_then(|stamp| self.cache.lookup(file.id(), &stamp));
        record.is_some_and(|record| !record.immutable && record.status[Slot::File as usize].is_some())
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
