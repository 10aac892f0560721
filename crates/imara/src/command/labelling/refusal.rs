//! Why a label could not be set, and what to do next.

use crate::command::paths::printable;
use crate::output::Failure;
use imara_format::journal::Place;
use imara_linux::tree::TreeFile;
use std::io::{Error, ErrorKind};
use std::path::Path;

/// What the kernel's refusal to change a label means.
pub fn refused(file: &TreeFile<'_>, place: Place, error: &Error) -> Failure {
    let (why, next) = meaning(place, error, || file.is_immutable());
    let why = why.map_or_else(String::new, |why| format!(" ({why})"));
    let name = name(place, file.path);
    Failure::failed(format!("{}: {name} cannot be set: {error}{why}", printable(file.path))).next(next)
}

/// A file system that keeps no such attributes.
pub fn unsupported(path: &Path, place: Place) -> Failure {
    let name = name(place, path);
    Failure::failed(format!("{}: not labelled: its filesystem keeps no {name}", printable(path))).next(NO_ATTRIBUTES)
}

/// A label's place for people: the attribute, or the file beside it.
pub fn name(place: Place, path: &Path) -> String {
    match place.attribute() {
        Some(name) => name.to_owned(),
        None => printable(&crate::command::paths::signature_file(path)),
    }
}

const NO_ATTRIBUTES: &str = "label a copy on a filesystem that keeps them (ext4, XFS, btrfs), or, for signatures, keep them beside the files \
                             with --sigfile";

fn meaning(place: Place, error: &Error, is_immutable: impl FnOnce() -> bool) -> (Option<&'static str>, &'static str) {
    let security = matches!(place, Place::SecurityIma | Place::SecurityEvm);
    match error.kind() {
        ErrorKind::PermissionDenied if is_immutable() => (
            Some("the file is immutable or append-only"),
            "let it be changed with `chattr -i -a FILE`, and set that again after labelling",
        ),
        ErrorKind::PermissionDenied if place == Place::SecurityEvm && imara_linux::process::can_administer() => (
            None,
            "a kernel with EVM takes no HMAC by hand until imara evm enable allow-metadata-writes --provider kernel, nor once its own HMACs \
             are on; a file whose label is missing or wrong it then keeps as it is: boot with evm=fix once, or sign before",
        ),
        ErrorKind::PermissionDenied if security => {
            (None, "run as root (CAP_SYS_ADMIN); --xattr-user and, for signatures, --sigfile need no privilege")
        }
        ErrorKind::PermissionDenied => (None, "its owner, or root, may label it"),
        ErrorKind::Unsupported => (Some("the filesystem keeps no such attributes"), NO_ATTRIBUTES),
        ErrorKind::ReadOnlyFilesystem => (
            None,
            "label the files before they are put on a read-only filesystem, or mount it for writing (`mount -o remount,rw`)",
        ),
        ErrorKind::StorageFull => (
            Some("no room for its attributes"),
            "free some room on the filesystem; one made with larger inodes (`mkfs.ext4 -I 512`, `-O ea_inode`) has more for attributes",
        ),
        ErrorKind::QuotaExceeded => (None, "the owner of the file has no room left in the quota"),
        ErrorKind::ArgumentListTooLong => (Some("the label is larger than this filesystem takes"), NO_ATTRIBUTES),
        _ => (None, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_meaning_and_next_step() {
        for (errno, immutable, next) in [
            (1, true, "chattr -i"),
            (1, false, "run as root"),
            (13, false, "run as root"),
            (95, false, "--sigfile"),
            (30, false, "remount,rw"),
            (28, false, "free some room"),
            (122, false, "quota"),
            (7, false, "--sigfile"),
            (5, false, ""),
        ] {
            let (_, told) = meaning(Place::SecurityIma, &Error::from_raw_os_error(errno), || immutable);
            assert!(told.contains(next) && told.is_empty() == next.is_empty(), "{errno}: {told}");
        }
        let (_, told) = meaning(Place::UserIma, &Error::from_raw_os_error(13), || false);
        assert!(told.contains("its owner"), "{told}");
    }
}
