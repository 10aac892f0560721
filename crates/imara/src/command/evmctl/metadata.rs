//! What EVM's labels are made over: of the file, as long as options do not say otherwise.

use super::options::{Bits, Uuid};
use super::{Evmctl, Failed, system_text, tell};
use imara_engine::evm::{EvmLabel, Place, Rules, Snapshot};
use imara_format::evm::{Form, InodeMetadata, MiscLayout, SECURITY_IMA, XattrList};
use imara_format::hash::to_hex;
use imara_format::uuid;
use imara_linux::{files, inode, mounts};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A longer value of a file's counts as none, as in the original.
const MAX_VALUE: usize = 1024;

impl Evmctl {
    /// Collects it for a label of this form, and tells what it finds.
    pub fn metadata(&self, path: &Path, name: &Path, form: Form) -> Result<(OwnedFd, Snapshot, Rules), Failed> {
        let shown = name.display();
        let fails = |what: &str, error: &io::Error| {
            tell(format_args!("{what}: {shown} (errno: {})\n", system_text(error)));
            Failed::Negative
        };
        let file = files::open_inode(path).map_err(|error| fails("Failed to stat", &error))?;
        let stat = file.try_clone().and_then(|file| File::from(file).metadata());
        let stat = stat.map_err(|error| fails("Failed to stat", &error))?;
        let generation = if form.is_bound() { self.generation(&file, form, stat.is_file())? } else { 0 };
        let options = &self.options;
        let uid = options.uid.unwrap_or(stat.uid());
        let gid = options.gid.unwrap_or(stat.gid());
        // The file type and the permissions are all that a mode has.
        let mode = options.mode.unwrap_or(stat.mode() as u16);
        let inode = InodeMetadata { inode: options.inode.unwrap_or(stat.ino()), generation, uid, gid, mode };
        let rules = Rules {
            layout: match options.bits {
                Some(Bits::B32) => MiscLayout::BITS_32,
                Some(Bits::B64) => MiscLayout::BITS_64,
                None => MiscLayout::NATIVE,
            },
            fs_uuid: options.uuid != Some(Uuid::Without),
            xattrs: XattrList::evmctl(options.smack),
            ..Rules::distribution()
        };
        let xattrs = self.protected_xattrs(&file, form, &rules)?;
        let fs_uuid = if form.is_bound() && rules.fs_uuid { self.fs_uuid(&file)? } else { [0; 16] };
        let (place, label) = (Place::default(), EvmLabel::Absent);
        Ok((file, Snapshot { inode, fs_uuid, place, xattrs, label, unbound: None }, rules))
    }

    /// Of directories the original takes it for HMACs alone.
    fn generation(&self, file: &OwnedFd, form: Form, regular: bool) -> Result<u32, Failed> {
        let generation = match self.options.generation {
            Some(generation) => generation,
            _ if regular || form == Form::Hmac => inode::generation(file.as_fd()).map_err(|error| {
                tell("ioctl() failed\n");
                tell(format_args!("reason: {error}; --generation N gives one\n"));
                self.note(&error);
                Failed::Negative
            })?,
            _ => 0,
        };
        tell(format_args!("generation: {generation}\n"));
        Ok(generation)
    }

    fn protected_xattrs(&self, file: &OwnedFd, form: Form, rules: &Rules) -> Result<BTreeMap<String, Vec<u8>>, Failed> {
        let listed = files::xattr_names(file).map_err(|error| {
            tell("llistxattr() failed\n");
            self.note(&error);
            Failed::Negative
        })?;
        let mut xattrs = BTreeMap::new();
        for name in rules.xattrs.enabled() {
            // A portable signature must cover the label that goes with it, wherever that is.
            let read_from =
                if name == SECURITY_IMA && form == Form::Portable { self.options.ima_attribute() } else { name };
            let options = &self.options;
            let value = match name {
                "security.ima" if options.ima.is_some() => given("ima", &options.ima, 0)?,
                "security.selinux" if options.selinux.is_some() => given("selinux", &options.selinux, 0)?,
                "security.capability" if options.caps.is_some() => {
                    // It is a text without its NUL here, for which the original keeps room all the same.
                    given("caps", &options.caps, 1)?.filter(|caps| !caps.is_empty())
                }
                _ => match files::xattr(file, read_from) {
                    // What a security module answers for a name that the file does not have.
                    Ok(Some(_)) if !listed.iter().any(|listed| listed == read_from.as_bytes()) => {
                        tell(format_args!("skipping xattr: {read_from}\n"));
                        continue;
                    }
                    Ok(value) => {
                        if value.is_none() {
                            self.note(&io::Error::from_raw_os_error(super::ima_verify::NO_DATA));
                        }
                        value
                    }
                    Err(error) => {
                        self.note(&error);
                        None
                    }
                },
            };
            match value.filter(|value| value.len() <= MAX_VALUE) {
                Some(value) => {
                    tell(format_args!("name: {read_from}, size: {}\n", value.len()));
                    xattrs.insert(name.to_owned(), value);
                }
                None if name == SECURITY_IMA && form == Form::Portable => {
                    tell(format_args!("EVM portable sig: {read_from} required\n"));
                    return Err(Failed::Negative);
                }
                None => tell(format_args!("no xattr: {read_from}\n")),
            }
        }
        Ok(xattrs)
    }

    fn fs_uuid(&self, file: &OwnedFd) -> Result<[u8; 16], Failed> {
        let uuid = match &self.options.uuid {
            Some(Uuid::Given(text)) => match uuid::Uuid::starting(text) {
                Some(uuid) => uuid.0,
                None => {
                    tell("wrong UUID format\n");
                    return Err(Failed::Negative);
                }
            },
            Some(Uuid::Without) | None => {
                let found = mounts::filesystem_of(file.as_fd()).and_then(|filesystem| filesystem.evm_uuid());
                found.map_err(|error| {
                    tell("Failed to read UUID. Root access might require.\n");
                    tell(format_args!("reason: {error}; --uuid=UUID gives one\n"));
                    Failed::Negative
                })?
            }
        };
        tell(format_args!("uuid: {}\n", to_hex(&uuid)));
        Ok(uuid)
    }
}

/// A value that an option gives; one that is too long is refused, not left out as a file's is.
fn given(name: &str, value: &Option<Vec<u8>>, more: usize) -> Result<Option<Vec<u8>>, Failed> {
    match value.as_ref().map(|value| value.len() + more).filter(|length| *length > MAX_VALUE) {
        Some(length) => {
            tell(format_args!("{name}[{length}] value is too long to fit into xattr[{MAX_VALUE}]\n"));
            Err(Failed::Negative)
        }
        None => Ok(value.clone()),
    }
}
