//! Changes of attributes and the end of the last writer, told by a second group: what was let pass is taken back.

use super::{Shared, Watched, lock};
use crate::opened::OpenedFile;
use crate::sys::fanotify::{Change, EventBuffer};
use crate::sys::identity;
use imara_engine::cache::InodeId;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};

impl Shared {
    /// A thread's life: takes back what was let pass when attributes change or the last writer goes.
    pub(super) fn watch_changes(&self, index: usize, labels: &SyncSender<OwnedFd>) {
        let Some(Watched { directory, changes: Some(changes), .. }) = self.watched.get(index) else {
            return;
        };
        let mut buffer = EventBuffer::new(256);
        while !self.stopping.load(Ordering::Relaxed) {
            // EINTR is how it is ended.
            let _ = changes.read(&mut buffer, |change| {
                self.counters.changes.fetch_add(1, Ordering::Relaxed);
                match change {
                    Change::Inode { handle, writer_gone } => {
                        // Gone meanwhile: nobody opens it any more.
                        let Ok(file) = identity::open_path(directory.as_fd(), handle.kind, handle.bytes) else {
                            return;
                        };
                        let id =
                            rustix::fs::fstat(&file).map(|stat| InodeId { device: stat.st_dev, inode: stat.st_ino });
                        if let Ok(id) = id {
                            self.checker.changed(id, writer_gone);
                            lock(&self.interpreters).remove(&id);
                            // It may have been deleted, and a descriptor of ours keeps its room taken.
                            self.drop_lease(id);
                        }
                        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                        // ENOENT, no mark, is no error; anything else cannot happen on a live group.
                        let _ = self.group.ask_again(Path::new(&path));
                        if writer_gone && id.is_ok_and(|id| self.checker.maintains(id)) {
                            // Hashing takes time, and changes must not wait for it; where the queue is full the next
                            // open sees to it.
                            let _ = labels.try_send(file);
                        }
                    }
                    Change::Overflow => {
                        self.checker.cache().clear();
                        let _ = self.ask_again_all();
                    }
                }
            });
        }
    }

    /// A thread's life: has digest labels follow what was written.
    pub(super) fn refresh_labels(&self, files: &Receiver<OwnedFd>) {
        while !self.stopping.load(Ordering::Relaxed) {
            let Ok(named) = files.recv_timeout(std::time::Duration::from_millis(500)) else {
                continue;
            };
            // Our own open passes. A file that cannot be read or labelled is judged as it is.
            let path = format!("/proc/self/fd/{}", named.as_raw_fd());
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
            let Ok(file) = rustix::fs::open(path.as_str(), flags, rustix::fs::Mode::empty()) else {
                continue;
            };
            if let Ok(opened) = OpenedFile::new(file.as_fd()) {
                let _ = self.checker.refresh(&opened);
            }
        }
    }
}
