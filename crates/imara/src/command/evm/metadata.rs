//! What a label is made over: of the file, as long as options do not say otherwise; or of no file at all.

use super::rules::RulesOptions;
use crate::command::paths::printable;
use crate::output::Failure;
use imara_engine::evm::{EvmLabel, Place, Rules, Snapshot};
use imara_format::evm::InodeMetadata;
use imara_format::hash::from_hex;
use imara_linux::mounts::{self, Filesystem};
use imara_linux::opened::OpenedFile;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// What is said in place of what the file has.
#[derive(clap::Args)]
pub struct Overrides {
    /// The inode number [default: the file's, here and below]
    #[arg(long, value_name = "N")]
    ino: Option<u64>,
    /// The inode's generation
    #[arg(long, value_name = "N")]
    generation: Option<u32>,
    /// The owner
    #[arg(long, value_name = "N")]
    uid: Option<u32>,
    /// The group
    #[arg(long, value_name = "N")]
    gid: Option<u32>,
    /// The mode in octal, as 100755; without a type it is a regular file's
    #[arg(long, value_name = "OCTAL", value_parser = mode)]
    mode: Option<Mode>,
    /// An attribute with its value in hexadecimal; `NAME=` is one that the file has not; may be given several times
    #[arg(long = "xattr", value_name = "NAME=HEX", value_parser = xattr)]
    xattrs: Vec<XattrValue>,
}

#[derive(Clone, Copy)]
struct Mode(u16);

#[derive(Clone)]
struct XattrValue {
    name: String,
    value: Vec<u8>,
}

fn mode(text: &str) -> Result<Mode, String> {
    let mode = u16::from_str_radix(text, 8).map_err(|_| "an octal number up to 177777 is needed".to_owned())?;
    Ok(Mode(if mode & 0o170_000 == 0 { mode | 0o100_000 } else { mode }))
}

fn xattr(text: &str) -> Result<XattrValue, String> {
    let (name, hex) = text.split_once('=').ok_or("NAME=HEX is needed")?;
    let value = from_hex(hex.strip_prefix("0x").unwrap_or(hex)).map_err(|error| error.to_string())?;
    Ok(XattrValue { name: name.to_owned(), value })
}

impl Overrides {
    /// The attributes given, of those that `rules` list; the others do not count for EVM.
    fn put_xattrs(&self, xattrs: &mut BTreeMap<String, Vec<u8>>, rules: &Rules) {
        for XattrValue { name, value } in &self.xattrs {
            if value.is_empty() {
                xattrs.remove(name);
            } else if rules.xattrs.entries().iter().any(|listed| listed.name == *name) {
                xattrs.insert(name.clone(), value.clone());
            }
        }
    }

    /// Names that were given and that no HMAC covers.
    pub fn left_out<'a>(&'a self, rules: &Rules) -> Vec<&'a str> {
        self.xattrs.iter().map(|xattr| &*xattr.name).filter(|name| !rules.xattrs.protects(name)).collect()
    }

    /// What is described without a file.
    ///
    /// # Errors
    /// A wrong command line: something is missing.
    pub fn describe(&self, rules: &Rules, options: &RulesOptions) -> Result<Snapshot, Failure> {
        let (Some(inode), Some(generation), Some(uid), Some(gid), Some(Mode(mode))) =
            (self.ino, self.generation, self.uid, self.gid, self.mode)
        else {
            return Err(Failure::usage(
                "no file is named, and not all of --ino, --generation, --uid, --gid and --mode",
            )
            .next("name files; or all of these, with --xattr NAME=HEX for each attribute and --fsuuid UUID"));
        };
        let mut xattrs = BTreeMap::new();
        self.put_xattrs(&mut xattrs, rules);
        Ok(Snapshot {
            inode: InodeMetadata { inode, generation, uid, gid, mode },
            fs_uuid: options.fsuuid.map_or([0; 16], |uuid| uuid.0),
            unbound: None,
            place: Place::default(),
            xattrs,
            label: EvmLabel::Absent,
        })
    }
}

/// Looks at files.
pub struct Looker {
    /// By whose rules.
    pub rules: Rules,
    filesystems: Mutex<HashMap<u64, Arc<Filesystem>>>,
}

impl Looker {
    /// By these rules.
    pub fn new(rules: Rules) -> Self {
        Self { rules, filesystems: Mutex::default() }
    }

    /// The file's filesystem, found out once for each.
    fn filesystem(&self, file: BorrowedFd<'_>) -> io::Result<Arc<Filesystem>> {
        let device = std::fs::File::from(file.try_clone_to_owned()?).metadata()?.dev();
        let lock = || self.filesystems.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&device) {
            return Ok(Arc::clone(known));
        }
        let found = Arc::new(mounts::filesystem_of(file)?);
        lock().insert(device, Arc::clone(&found));
        Ok(found)
    }

    /// What EVM protects of a file.
    ///
    /// # Errors
    /// What the kernel says of it.
    pub fn look(&self, file: impl AsFd, path: &Path) -> Result<Snapshot, Failure> {
        let file = file.as_fd();
        let opened = self.filesystem(file).and_then(|filesystem| OpenedFile::on(file, filesystem));
        let snapshot = opened.and_then(|opened| Snapshot::take(&opened, &self.rules.xattrs));
        snapshot.map_err(|error| Failure::failed(format!("{}: {error}", printable(path))))
    }

    /// The same of a file that may not be opened: what refuses a label keeps root, too, from opening its file.
    ///
    /// # Errors
    /// As [`Looker::look`].
    pub fn look_named(&self, path: &Path) -> Result<Snapshot, Failure> {
        let look = || {
            let named = mounts::name(path)?;
            // Its folder may be opened, and tells more of the filesystem.
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let folder = std::fs::File::open(folder)?;
            let same = folder.metadata()?.dev() == std::fs::File::from(named.try_clone()?).metadata()?.dev();
            let filesystem = self.filesystem(if same { folder.as_fd() } else { named.as_fd() })?;
            Snapshot::take(&OpenedFile::on(named.as_fd(), filesystem)?, &self.rules.xattrs)
        };
        look().map_err(|error: io::Error| Failure::failed(format!("{}: {error}", printable(path))))
    }

    /// The same, with what options say in place of what it has.
    ///
    /// # Errors
    /// As [`Looker::look`].
    pub fn look_and_override(
        &self,
        file: impl AsFd,
        path: &Path,
        options: &RulesOptions,
        overrides: &Overrides,
    ) -> Result<Snapshot, Failure> {
        let file = file.as_fd();
        let mut snapshot = self.look(file, path)?;
        let inode = &mut snapshot.inode;
        inode.inode = overrides.ino.unwrap_or(inode.inode);
        inode.uid = overrides.uid.unwrap_or(inode.uid);
        inode.gid = overrides.gid.unwrap_or(inode.gid);
        inode.mode = overrides.mode.map_or(inode.mode, |Mode(mode)| mode);
        inode.generation = overrides.generation.unwrap_or(inode.generation);
        if let Some(uuid) = options.fsuuid {
            snapshot.fs_uuid = uuid.0;
        }
        overrides.put_xattrs(&mut snapshot.xattrs, &self.rules);
        // What could not be found out was said, or does not count.
        let found_uuid = || self.filesystem(file).and_then(|filesystem| filesystem.evm_uuid()).is_ok();
        let uuid_known = options.fsuuid.is_some() || !self.rules.fs_uuid || found_uuid();
        let generation_known = overrides.generation.is_some() || imara_linux::inode::generation(file).is_ok();
        if uuid_known && generation_known {
            snapshot.unbound = None;
        }
        Ok(snapshot)
    }
}
