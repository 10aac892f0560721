//! From an event to its answer: which of IMA's hooks it stands for, and what the engine says to them.

use super::question::{Question, UnderWay};
use super::{LARGE, Shared, lock};
use crate::opened::{OpenedFile, OpeningTask, now, stamp};
use crate::process::{self, Opening};
use crate::sys::fanotify::Mask;
use crate::sys::process as threads;
use imara_engine::cache::InodeId;
use imara_engine::check::{Access, File, Hook, Verdict};
use imara_format::policy::Func;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FileType, Stat};
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::sync::mpsc::TrySendError;

const MAY_EXEC: u8 = 1;
const MAY_WRITE: u8 = 2;
const MAY_READ: u8 = 4;
const MAY_APPEND: u8 = 8;

impl Shared {
    /// Ours and the software TPM's own accesses pass: whoever we wait for must not wait for us.
    pub(super) fn is_exempt(&self, tid: i32) -> bool {
        if threads::belongs_to(tid, self.own) {
            return true;
        }
        let software_tpm = self.software_tpm.load(Ordering::Relaxed);
        if software_tpm == 0 || !threads::belongs_to(tid, software_tpm) {
            return false;
        }
        let alive = self.software_tpm_process.as_ref().is_some_and(|process| {
            let mut ended = [PollFd::new(process, PollFlags::IN)];
            let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::event::poll(&mut ended, Some(&at_once)) == Ok(0)
        });
        if !alive {
            self.software_tpm.store(0, Ordering::Relaxed);
        }
        alive
    }

    /// Whether it is this very program, run by somebody who may write labels: it reads files in order to label or judge
    /// them and maps none of them, so that opening one is no mapping. Else a library without a label could never get
    /// one while the guard is in force. The dynamic loader, which would open a library in this program's name
    /// (LD_PRELOAD), never opens with these flags.
    fn is_our_tool(&self, task: &OpeningTask, opening: Opening) -> bool {
        const OURS: u32 = (libc::O_NOFOLLOW | libc::O_NONBLOCK).cast_unsigned();
        let program = |path: &str| rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino));
        matches!(opening, Opening::Flags(flags) if flags & OURS == OURS)
            && self.program.is_some()
            && task.credentials().can_administer()
            && program(&format!("/proc/{}/exe", task.tid)) == self.program
    }

    pub(super) fn handle(&self, mut question: Question<'_>, large_too: bool) {
        let Some(event) = &question.event else {
            return;
        };
        let Ok(stat) = rustix::fs::fstat(&event.file) else {
            return;
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            // IMA looks at regular files alone, and no inode changes its type.
            self.mark(event.file.as_fd(), Mask::OPEN.and(Mask::OPEN_EXEC));
            question.answer(true);
            return;
        }
        if !large_too && stat.st_size.cast_unsigned() > LARGE {
            let sender = lock(&self.large).clone();
            // Where too many wait already, the question's end answers it.
            if let Some(event) = question.event.take()
                && let Err(TrySendError::Full(event) | TrySendError::Disconnected(event)) = sender.try_send(event)
            {
                question.event = Some(event);
            }
            return;
        }
        let id = InodeId { device: stat.st_dev, inode: stat.st_ino };
        {
            let mut under_way = lock(&self.under_way);
            if let Some(waiting) = under_way.get_mut(&id) {
                waiting.extend(question.event.take());
                return;
            }
            under_way.insert(id, VecDeque::new());
        }
        let mut guard = UnderWay { id, shared: self, over: false };
        self.judge(question, stat);
        loop {
            let next = {
                let mut under_way = lock(&self.under_way);
                match under_way.get_mut(&id).and_then(VecDeque::pop_front) {
                    Some(event) => event,
                    None => {
                        under_way.remove(&id);
                        guard.over = true;
                        return;
                    }
                }
            };
            let question = Question { event: Some(next), shared: self };
            if let Some(stat) = question.event.as_ref().and_then(|event| rustix::fs::fstat(&event.file).ok()) {
                self.judge(question, stat);
            }
        }
    }

    /// From the event to the answer.
    fn judge(&self, question: Question<'_>, stat: Stat) {
        let Some(event) = &question.event else {
            return;
        };
        if event.tid == 0 {
            // Somebody outside our pid namespace, of whom nothing can be known.
            return;
        }
        let Ok(filesystem) = self.filesystem_of_device(stat.st_dev, event.file.as_fd()) else {
            return;
        };
        let generation = *self.generation.read().unwrap_or_else(PoisonError::into_inner);
        let file = OpenedFile::of_event(event.file.as_fd(), stat, filesystem, &self.stopping);
        let task = OpeningTask::new(event.tid);
        let policy = self.checker.policy();
        let interpreter = lock(&self.interpreters).get(&file.id()) == Some(&stamp(&file.stat));
        let executes = event.mask.contains(Mask::OPEN_EXEC) && !interpreter;
        let mut hooks = Vec::with_capacity(6);
        if executes {
            hooks.push(Hook { func: Func::BprmCheck, mask: MAY_EXEC });
            hooks.push(Hook { func: Func::CredsCheck, mask: MAY_EXEC });
        }
        let (mut writes, mut created) = (false, false);
        if event.mask.contains(Mask::OPEN) {
            let nobody_writes = file.nobody_writes();
            let always = self.ask_always.load(Ordering::Relaxed);
            let mappable = file.mappable(&policy) || always && file.elf().is_some_and(|elf| elf.executable_segment);
            let asks = always
                || policy.needs_mask(Func::FileCheck)
                || nobody_writes != Some(true)
                || file.stat.st_size == 0
                || mappable;
            let opening =
                if asks { process::opening(event.tid) } else { Opening::Flags(libc::O_RDONLY.cast_unsigned()) };
            let mask = access_mask(opening, nobody_writes);
            writes = mask & MAY_WRITE != 0;
            created = matches!(opening, Opening::Flags(flags) if flags & libc::O_CREAT.cast_unsigned() != 0)
                && file.is_newborn();
            hooks.push(Hook { func: Func::FileCheck, mask });
            if opening == Opening::Unknown && mask != MAY_READ {
                // Nobody may get round a rule for readers by a way of opening that does not show.
                hooks.push(Hook { func: Func::FileCheck, mask: MAY_READ });
            }
            if mask & (MAY_READ | MAY_EXEC) != 0 && mappable && !self.is_our_tool(&task, opening) {
                hooks.push(Hook { func: Func::MmapCheck, mask: MAY_EXEC });
                hooks.push(Hook { func: Func::MmapCheckReqprot, mask: MAY_EXEC });
            }
        }
        if !writes && self.checker.maintains(file.id()) {
            // The last writer has gone and the notice of it may still be on its way. A label that cannot be written
            // stays as it was, and is judged as it is.
            let _ = self.checker.refresh(&file);
        }
        let access = Access { file: &file, task: &task, created, writes, now: now() };
        let verdict = self.checker.check(&access, &hooks);
        if verdict == Verdict::Allow {
            if executes {
                self.note_interpreter(&file, &access, generation);
            }
            if !writes {
                self.let_pass(&file, interpreter, generation);
            }
        }
        question.answer(verdict == Verdict::Allow);
    }

    /// The interpreter that a program names is opened for execution, too, but IMA does not ask BPRM_CHECK for it. Only a
    /// program that was appraised and passed is believed, so that nobody can excuse a file of their own.
    fn note_interpreter(&self, file: &OpenedFile<'_>, access: &Access<'_>, generation: u64) {
        let Some((offset, length)) = file.elf().and_then(|elf| elf.interpreter) else {
            return;
        };
        if !self.checker.may_name_interpreter(access) {
            return;
        }
        let Some(path) = file.interpreter_path(offset, length) else {
            return;
        };
        // In our own root, whose file systems answer: the task's may be a trap. A container's own interpreter is then
        // asked BPRM_CHECK, which is stricter than the kernel.
        if let Ok(stat) = rustix::fs::stat(path.as_str()) {
            // Another mode or policy may not have let the program pass.
            let current = self.generation.read().unwrap_or_else(PoisonError::into_inner);
            if *current != generation {
                return;
            }
            let mut interpreters = lock(&self.interpreters);
            if interpreters.len() >= 1024 {
                interpreters.clear();
            }
            interpreters.insert(InodeId { device: stat.st_dev, inode: stat.st_ino }, stamp(&stat));
        }
    }
}

/// The `MAY_*` bits of an open: those of its flags. Where the flags do not show, an open is for reading, and for writing as
/// well when somebody can write.
fn access_mask(opening: Opening, nobody_writes: Option<bool>) -> u8 {
    const ACCESS: u32 = libc::O_ACCMODE.cast_unsigned();
    const WRITE_ONLY: u32 = libc::O_WRONLY.cast_unsigned();
    const READ_ONLY: u32 = libc::O_RDONLY.cast_unsigned();
    match opening {
        Opening::Exec => MAY_EXEC,
        Opening::Flags(flags) => {
            let mut mask = match flags & ACCESS {
                READ_ONLY => MAY_READ,
                WRITE_ONLY => MAY_WRITE,
                _ => MAY_READ | MAY_WRITE,
            };
            if flags & libc::O_TRUNC.cast_unsigned() != 0 {
                mask |= MAY_WRITE;
            }
            if flags & libc::O_APPEND.cast_unsigned() != 0 {
                mask |= MAY_APPEND;
            }
            mask
        }
        Opening::Unknown if nobody_writes == Some(false) => MAY_READ | MAY_WRITE,
        Opening::Unknown => MAY_READ,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_access_is_what_the_open_flags_say() {
        let flags = |flags: i32| Opening::Flags(flags.cast_unsigned());
        for (opening, nobody_writes, expected) in [
            (flags(libc::O_RDONLY), Some(true), MAY_READ),
            (flags(libc::O_WRONLY), Some(false), MAY_WRITE),
            (flags(libc::O_RDWR), Some(false), MAY_READ | MAY_WRITE),
            (flags(3), None, MAY_READ | MAY_WRITE),
            (flags(libc::O_RDONLY | libc::O_TRUNC), None, MAY_READ | MAY_WRITE),
            (flags(libc::O_WRONLY | libc::O_APPEND), None, MAY_WRITE | MAY_APPEND),
            (Opening::Exec, Some(true), MAY_EXEC),
            (Opening::Unknown, Some(true), MAY_READ),
            (Opening::Unknown, None, MAY_READ),
            (Opening::Unknown, Some(false), MAY_READ | MAY_WRITE),
        ] {
            assert_eq!(access_mask(opening, nobody_writes), expected, "{opening:?} {nobody_writes:?}");
        }
    }
}
