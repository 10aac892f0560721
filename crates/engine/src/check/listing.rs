//! Step 4: what is listed of a file, in the template that its rule names.

use super::steps::{Collected, Trouble};
use super::{Access, Checker, File, insert};
use crate::audit::AuditRecord;
use crate::measure::{Added, Attributes, MeasureError, Measured};
use imara_format::evm::XattrList;
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::template::{Field, Template};
use std::io;
use std::sync::atomic::Ordering;

impl Checker {
    /// Step 4: the entry, then the PCR; whether the entry is a new one.
    pub(super) fn measure(&self, collected: &Collected<'_>, access: &Access<'_>) -> Result<bool, Trouble> {
        let Some(pcr) = collected.pending.measure else {
            return Ok(false);
        };
        let label = collected.label.as_deref().unwrap_or(&[]);
        let evm_label = match access.file.xattr("security.evm") {
            Ok(Some(label)) => label,
            // Nothing that could be recorded.
            Ok(None) | Err(_) => Vec::new(),
        };
        let path = access.file.path();
        let template = self.template_of(&collected.pending.decided.decision);
        let short = self.short_digest(template, collected, access.file).map_err(Trouble::Collect)?;
        let attributes = self.attributes(template, access.file).map_err(Trouble::Collect)?;
        let measured = Measured {
            digest: &collected.digest,
            verity: collected.pending.record.verity,
            short: short.as_ref(),
            path: &path,
            label,
            evm_label: &evm_label,
            attributes: attributes.as_ref(),
        };
        match self.log.add(template, pcr, &measured) {
            Ok(added) => Ok(added == Added::Listed),
            // The entry stands; that a PCR lacks it shows when the list is verified. The kernel goes on, too.
            Err(MeasureError::Tpm { .. }) => {
                self.counters.measure_errors.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Err(error) => Err(Trouble::Measure(error)),
        }
    }

    /// What the template `ima` has room for, where the digest is longer.
    fn short_digest(
        &self,
        template: &Template,
        collected: &Collected<'_>,
        file: &dyn File,
    ) -> io::Result<Option<Digest>> {
        let short = |algorithm| matches!(algorithm, HashAlgorithm::Sha1 | HashAlgorithm::Md5);
        if !template.fields.contains(&Field::D) || short(collected.digest.algorithm()) {
            return Ok(None);
        }
        let hash = self.log.hash();
        file.digest(if short(hash) { hash } else { HashAlgorithm::Sha1 }).map(Some)
    }

    /// What the template `evm-sig` tells of a file beside its content.
    fn attributes(&self, template: &Template, file: &dyn File) -> io::Result<Option<Attributes>> {
        if !template.fields.iter().any(|field| field.is_attribute()) {
            return Ok(None);
        }
        let inode = file.inode().map_err(|error| match error.kind() {
            io::ErrorKind::Unsupported => {
                let why =
                    format!("the template {} tells owner and mode, which are not known here", template.listed_name());
                io::Error::new(io::ErrorKind::Unsupported, why)
            }
            _ => error,
        })?;
        let list = self.evm.as_ref().map_or_else(XattrList::debian, |evm| evm.rules().xattrs.clone());
        let mut attributes = Attributes { uid: inode.uid, gid: inode.gid, mode: inode.mode, xattrs: Vec::new() };
        for xattr in list.entries() {
            match file.xattr(&xattr.name) {
                Ok(Some(value)) => attributes.xattrs.push((xattr.name.clone(), value)),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::Unsupported => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Some(attributes))
    }

    /// Once for each writer, as the kernel does since 6.12: or an unprivileged writer could fill the list.
    pub(super) fn violation(&self, access: &Access<'_>) -> Result<(), Trouble> {
        if !insert(&self.violated, access.file.id()) {
            return Ok(());
        }
        let (file, path) = (access.file, access.file.path());
        let evm_label = file.xattr("security.evm").ok().flatten().unwrap_or_default();
        let attributes = self.attributes(&self.template, file).ok().flatten();
        match self.log.add_violation(&self.template, &path, &evm_label, attributes.as_ref()) {
            Ok(()) => {}
            Err(MeasureError::Busy) => {
                self.violated.shard(&file.id()).remove(&file.id());
                return Err(Trouble::Measure(MeasureError::Busy));
            }
            Err(_) => drop(self.counters.measure_errors.fetch_add(1, Ordering::Relaxed)),
        }
        let (task, inode) = (access.task.identity(), access.file.id());
        self.audit.record(AuditRecord::Violation { cause: "open_writers", task, path, inode });
        Ok(())
    }
}
