//! What is asked about: a file, a task, and what it wants.

use crate::appraise::Cause;
use crate::audit::TaskIdentity;
use crate::cache::{InodeId, Stamp};
use crate::evm::Place;
use crate::policy::{FileFacts, Subject};
use imara_format::evm::InodeMetadata;
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::policy::Func;
use std::io;
use std::os::fd::BorrowedFd;

/// The file behind an event, by its descriptor.
pub trait File {
    /// The inode.
    fn id(&self) -> InodeId;
    /// Its state now.
    ///
    /// # Errors
    /// What stat(2) says.
    fn stamp(&self) -> io::Result<Stamp>;
    /// What a policy asks about it.
    fn facts(&self) -> FileFacts<'_>;
    /// An extended attribute; `None` where it has none by that name.
    ///
    /// # Errors
    /// `Unsupported` where the filesystem keeps none; what getxattr(2) says.
    fn xattr(&self, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// Writes an extended attribute.
    ///
    /// # Errors
    /// What setxattr(2) says; `TimedOut` where it says nothing for too long, and the attribute may be written later.
    fn set_xattr(&self, name: &str, value: &[u8]) -> io::Result<()>;
    /// Removes an extended attribute.
    ///
    /// # Errors
    /// What removexattr(2) says.
    fn remove_xattr(&self, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// What the inode says of itself, for EVM, with owner and group as the filesystem has them; its generation may be left 0.
    ///
    /// # Errors
    /// `Unsupported` where that cannot be found out, or where EVM is never asked.
    fn inode(&self) -> io::Result<InodeMetadata> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// The inode's generation, for EVM.
    ///
    /// # Errors
    /// As [`File::inode`].
    fn generation(&self) -> io::Result<u32> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// The filesystem's UUID, for EVM; zeros where it has none.
    ///
    /// # Errors
    /// As [`File::inode`].
    fn fs_uuid(&self) -> io::Result<[u8; 16]> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Where it is, for EVM.
    ///
    /// # Errors
    /// As [`File::inode`].
    fn place(&self) -> io::Result<Place> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// The open file itself, for whoever keeps its inode in memory; `None` where there is none.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// The content's digest.
    ///
    /// # Errors
    /// What reading says; `Unsupported` for an algorithm that cannot be computed.
    fn digest(&self, algorithm: HashAlgorithm) -> io::Result<Digest>;
    /// Its fs-verity digest, as the kernel has it; `None` where it has none.
    ///
    /// # Errors
    /// What the kernel says; `InvalidData` for an algorithm that is not known here.
    fn verity_digest(&self) -> io::Result<Option<Digest>> {
        Ok(None)
    }
    /// The path, for people and for the list.
    fn path(&self) -> Vec<u8>;
    /// Whether nobody can write to it now; `None` where that cannot be told.
    fn nobody_writes(&self) -> Option<bool>;
    /// Whether its last writer has gone, so that its label may follow: also where others may come who are not seen.
    fn last_writer_gone(&self) -> bool {
        self.nobody_writes() == Some(true)
    }
    /// What follows must not go by a look at it from before: its content has been read since, or time has passed. For a file that
    /// keeps its state and whether anybody writes from one look to the next.
    fn look_again(&self) {}
    /// The same after its content was read, where the one who asks may know that a look will find nothing new.
    fn was_read(&self) {
        self.look_again();
    }
    /// Whether nobody waits for its attributes to be written, as its file system takes no changes now (it is frozen): who writes one
    /// all the same is told `TimedOut`.
    fn writes_wait(&self) -> bool {
        false
    }
    /// Whether its label would have followed its content by now, had it been possible to write it ([`super::Checker::refresh`]
    /// said `TimedOut`).
    fn label_is_late(&self) -> bool {
        false
    }
    /// Whether every change shows in its times, stores through mappings included.
    fn times_tell(&self) -> bool;
}

/// The task behind an event.
pub trait Task: Subject {
    /// Who it is, for the records.
    fn identity(&self) -> TaskIdentity;
    /// Its command's name alone.
    fn command(&self) -> Vec<u8> {
        self.identity().command
    }
}

/// A question that the kernel's IMA would ask at this point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Which.
    pub func: Func,
    /// The access, `MAY_*` bits.
    pub mask: u8,
}

/// One access to one file, which may stand for several hooks.
#[derive(Clone, Copy)]
pub struct Access<'a> {
    /// The file.
    pub file: &'a dyn File,
    /// The task.
    pub task: &'a dyn Task,
    /// Whether the file was made just now, by this very open or a moment before.
    pub created: bool,
    /// Whether the task opens the file for writing.
    pub writes: bool,
    /// The time when the event came, in nanoseconds since 1970.
    pub now: i128,
}

/// May the access go on?
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allow,
    /// It may not.
    Deny(Cause),
    /// What would have to be listed first cannot be for now. Nothing was recorded of it: it is to be asked about again when it can.
    Later,
}
