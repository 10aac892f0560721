//! From an event to its answer: which of IMA's hooks it stands for, and what the engine says to them.

use super::passage::Passage;
use super::question::{Asked, Question};
use super::superblocks::Superblock;
use super::{LARGE, Shared, lock};
use crate::opened::{OpenedFile, OpeningTask, now, path_of, stamp};
use crate::process::{self, Opening};
use crate::sys::fanotify::Mask;
use crate::sys::process as threads;
use imara_engine::appraise::Cause;
use imara_engine::audit::AuditRecord;
use imara_engine::cache::InodeId;
use imara_engine::check::{Access, File, Hook, Task, Verdict};
use imara_format::policy::Func;
use rustix::fs::{FileType, Stat};
use smallvec::SmallVec;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// For how long a large file is hashed while somebody waits for the processor: what that costs in changes of the task is below one
/// per cent of it.
const TURN: Duration = Duration::from_micros(500);

/// How often threads that wait look whether they are to end.
const LOOK: Duration = Duration::from_millis(200);

const MAY_EXEC: u8 = 1;
const MAY_WRITE: u8 = 2;
const MAY_READ: u8 = 4;
const MAY_APPEND: u8 = 8;

impl Shared {
    /// Records that an event was answered because nothing moved on it any more.
    pub(super) fn tell_overdue(&self, asked: &Asked, allowed: bool) {
        let task = OpeningTask::new(asked.event.tid);
        let executes = asked.event.mask.contains(Mask::OPEN_EXEC);
        self.checker.audit_sink().record(AuditRecord::Data {
            func: if executes { Func::BprmCheck } else { Func::FileCheck },
            cause: Cause::Overdue,
            detail: "nothing moved on the decision for as long as `deadline` allows".into(),
            task: task.identity(),
            path: path_of(asked.event.file.as_fd()),
            // Asking for its number could wait as well.
            inode: InodeId { device: 0, inode: 0 },
            rule: None,
            denied: !allowed,
            fixed: false,
        });
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

    /// Decides on one event, and on those for the same file or file system that wait for it.
    pub(super) fn handle(&self, mut question: Question<'_>, large_too: bool) {
        let Some(asked) = &question.asked else {
            return;
        };
        let event = &asked.event;
        let Ok(stat) = rustix::fs::fstat(&event.file) else {
            return;
        };
        let Ok(superblock) = self.superblock(stat.st_dev, event.file.as_fd(), event.tid) else {
            return;
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            // IMA looks at regular files alone, and no inode changes its type.
            if superblock.lane.is_none() {
                self.let_pass_for_good(event.file.as_fd(), &superblock);
            }
            question.answer(true);
            return;
        }
        if !large_too && stat.st_size.cast_unsigned() > LARGE && superblock.lane.is_none() {
            self.leave_to_others(question);
            return;
        }
        match superblock.enter(asked) {
            Some(busy) => {
                self.decide(question, &superblock, stat);
                drop(busy);
            }
            // Whoever leaves takes it up.
            None => question.asked = None,
        }
        while let Some((asked, busy)) = superblock.take_parked() {
            let question = Question { asked: Some(asked), shared: self };
            if let Some(stat) = question.asked.as_ref().and_then(|asked| rustix::fs::fstat(&asked.event.file).ok()) {
                self.decide(question, &superblock, stat);
            }
            drop(busy);
        }
    }

    /// Leaves a large file to the threads for these.
    fn leave_to_others(&self, question: Question<'_>) {
        leave_to(&self.large, question, |asked| asked.follow(&self.large_progress));
    }

    /// Leaves one that cannot be listed now to the threads for these, so that it keeps no other waiting.
    fn leave_to_the_list(&self, question: Question<'_>) {
        leave_to(&self.unlisted, question, Asked::wait_for_list);
    }

    /// A thread's life: decides on what waits for the measurement list, once that takes entries again.
    pub(super) fn judge_unlisted(&self, events: &Mutex<Receiver<Arc<Asked>>>) {
        while !self.stopping.load(Ordering::Relaxed) {
            let next = lock(events).recv_timeout(LOOK);
            let Ok(asked) = next else {
                continue;
            };
            let mut free = false;
            while !free && !self.stopping.load(Ordering::Relaxed) {
                free = self.checker.log().wait_until_free(LOOK);
            }
            let question = Question { asked: Some(asked), shared: self };
            // A panic is a bug of ours, as for the others.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.handle(question, false)));
        }
    }

    /// Decides on one event, and on those for the same file that come meanwhile.
    fn decide(&self, question: Question<'_>, superblock: &Superblock, stat: Stat) {
        let id = InodeId { device: stat.st_dev, inode: stat.st_ino };
        let Some((question, mut deciding)) = self.under_way.begin(id, question) else {
            return;
        };
        self.judge(question, superblock, stat);
        while let Some(question) = deciding.next() {
            if let Some(stat) = question.asked.as_ref().and_then(|asked| rustix::fs::fstat(&asked.event.file).ok()) {
                self.judge(question, superblock, stat);
            }
        }
    }

    /// From the event to the answer.
    fn judge(&self, question: Question<'_>, superblock: &Superblock, stat: Stat) {
        // Answered meanwhile by whoever looks after the deadline: nobody waits for it.
        let Some(asked) = question.asked.as_ref().filter(|asked| !asked.is_over()) else {
            return;
        };
        // What is still to be listed of it is.
        let answered = asked.is_answered();
        let event = &asked.event;
        if event.tid == 0 {
            // Somebody outside our pid namespace, of whom nothing can be known.
            return;
        }
        // Before anything is read of it.
        let look = self.level2.as_ref().and_then(|level2| level2.look(event.file.as_fd()));
        let generation = *self.generation.read().unwrap_or_else(PoisonError::into_inner);
        let goes_on = || {
            asked.advance(self.elapsed());
            !self.stopping.load(Ordering::Relaxed)
        };
        // What changes from here on is read as it is now, or shows in its times.
        let now = now();
        let mut file = OpenedFile::of_event(event.file.as_fd(), stat, Arc::clone(&superblock.filesystem), &goes_on)
            .written_by(&superblock.writer);
        let task = OpeningTask::new(event.tid);
        let policy = self.checker.policy();
        // At level 2 the kernel itself looks again, once nobody can write any more.
        let kept = event.mask.contains(Mask::OPEN_EXEC) && look.is_none() && superblock.lane.is_none();
        if kept {
            file.hold(self.lease_thread.load(Ordering::Relaxed));
        }
        if !self.checker.cache().knows(file.id()) {
            file.expect_hashing();
        }
        let interpreter = self.interpreters.read().unwrap_or_else(PoisonError::into_inner).get(&file.id())
            == Some(&stamp(&file.stat));
        let executes = event.mask.contains(Mask::OPEN_EXEC) && !interpreter;
        let mut hooks = SmallVec::<[Hook; 6]>::new();
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
            if asks {
                // The task may have been waited for.
                file.look_again();
            }
            let mask = access_mask(opening, nobody_writes);
            writes = mask & MAY_WRITE != 0;
            let could_make = matches!(opening, Opening::Flags(flags) if flags & libc::O_CREAT.cast_unsigned() != 0);
            created = file.is_newborn(could_make);
            hooks.push(Hook { func: Func::FileCheck, mask });
            if opening == Opening::Unknown && mask != MAY_READ {
                // Nobody may get round a rule for readers by a way of opening that does not show.
                hooks.push(Hook { func: Func::FileCheck, mask: MAY_READ });
            }
            // At level 2 a mapping is refused when it is made, and not when the file is opened.
            let refused_here = executes || look.is_none();
            if mask & (MAY_READ | MAY_EXEC) != 0 && mappable && refused_here && !self.is_our_tool(&task, opening) {
                hooks.push(Hook { func: Func::MmapCheck, mask: MAY_EXEC });
                hooks.push(Hook { func: Func::MmapCheckReqprot, mask: MAY_EXEC });
            }
        }
        let runs = hooks.iter().any(|hook| hook.func != Func::FileCheck);
        if !runs && !writes && look.is_none() && superblock.lane.is_none() {
            file.trust_look();
        }
        // The last writer has gone and the notice of it may still be on its way. A label that cannot be written stays as it was,
        // and is judged as it is, unless all that is in its way is that its file system is frozen.
        let late = !writes
            && self.checker.maintains(file.id())
            && self.checker.refresh(&file).is_err_and(|error| error.kind() == ErrorKind::TimedOut);
        if late {
            file.judge_without_label();
        }
        let file = file;
        let access = Access { file: &file, task: &task, created, writes, now };
        let verdict = self.checker.check_by(&policy, &access, &hooks);
        if verdict == Verdict::Later {
            return self.leave_to_the_list(question);
        }
        if answered {
            return;
        }
        if verdict == Verdict::Allow {
            if executes {
                self.note_interpreter(&file, &access, generation);
            }
            if let Some(look) = &look {
                self.put_verdict(event, &file, &access, look, &hooks);
            }
            if !writes && !late && superblock.lane.is_none() {
                // The next one who opens it sees to a label that is late.
                self.let_pass(&file, superblock, &policy, interpreter, generation, now);
            }
        }
        // What it runs now, before it is let go on.
        let passing = (verdict == Verdict::Allow && file.is_held()).then(|| Passage::new(asked));
        question.answer(verdict == Verdict::Allow);
        if let Some(passing) = passing {
            self.let_through(passing);
        }
    }

    /// A thread's life: decides on large files.
    pub(super) fn judge_large(&self, events: &Mutex<Receiver<Arc<Asked>>>) {
        // Where that cannot be had it takes the turns that everybody has.
        let _ = threads::take_turns_of(TURN);
        while !self.stopping.load(Ordering::Relaxed) {
            let next = lock(events).recv_timeout(LOOK);
            if let Ok(asked) = next {
                self.large_progress.moved(self.elapsed());
                let question = Question { asked: Some(asked), shared: self };
                // A panic is a bug of ours, as for the others.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.handle(question, true)));
            }
        }
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
            let mut interpreters = self.interpreters.write().unwrap_or_else(PoisonError::into_inner);
            if interpreters.len() >= 1024 {
                interpreters.clear();
            }
            interpreters.insert(InodeId { device: stat.st_dev, inode: stat.st_ino }, stamp(&stat));
        }
    }
}

/// Leaves an event to other threads. Where too many wait already, the question's end answers it.
fn leave_to(queue: &Mutex<SyncSender<Arc<Asked>>>, mut question: Question<'_>, before: impl FnOnce(&Asked)) {
    let sender = lock(queue).clone();
    let Some(asked) = question.asked.take() else {
        return;
    };
    before(&asked);
    if let Err(TrySendError::Full(asked) | TrySendError::Disconnected(asked)) = sender.try_send(asked) {
        question.asked = Some(asked);
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
