//! The guard at level 1: fanotify permission events become IMA's hooks, and the kernel is told which inodes it need not
//! ask about again.
//!
//! | event | hooks |
//! |---|---|
//! | `FAN_OPEN_EXEC_PERM` | BPRM_CHECK, CREDS_CHECK; for the interpreter of a program that passed: none |
//! | `FAN_OPEN_PERM` | FILE_CHECK; and MMAP_CHECK where the file's headers say that it can be mapped executable |
//!
//! An inode is let pass without asking (an *ignore mark*) when nothing is left to do for it, whoever comes; when nobody can
//! write to it; and, where somebody else than root could, under a read lease, which makes the next open for writing wait until
//! the mark is gone. The kernel drops the mark itself on write(2) and truncate(2); a second group tells of changed attributes
//! and of the end of the last writer.

use super::workers::{Service, Workers};
use crate::mounts::{self, Filesystem};
use crate::opened::{OpenedFile, OpeningTask, now, stamp};
use crate::process::{self, Opening};
use crate::sys::fanotify::{Change, ChangeGroup, EventBuffer, Mask, PermissionEvent, PermissionGroup};
use crate::sys::{identity, lease, process as threads};
use imara_engine::active_policy::{ActivePolicy, decide_alike};
use imara_engine::cache::{InodeId, Stamp};
use imara_engine::check::{Access, Checker, File, Hook, Mode, Verdict};
use imara_engine::policy::{CompiledPolicy, FileFacts};
use imara_format::policy::Func;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FileType, Stat};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;

const MAY_EXEC: u8 = 1;
const MAY_WRITE: u8 = 2;
const MAY_READ: u8 = 4;
const MAY_APPEND: u8 = 8;

/// From this size on a file is large, in bytes.
const LARGE: u64 = 64 << 20;
/// Threads for large files.
const LARGE_THREADS: usize = 2;
/// Large files that may wait.
const LARGE_QUEUE: usize = 4096;

/// Leases held at most, as a share of the open files that we may have.
const LEASE_SHARE: u64 = 4;

/// Why the guard cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The kernel gives no permission events.
    #[error("the kernel gives no fanotify permission events: {0}")]
    Fanotify(#[source] io::Error),
    /// A directory cannot be used.
    #[error("{path}: {error}")]
    Path {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        error: io::Error,
    },
    /// A view of the kernel's own holds no files to guard.
    #[error("{path} is on {kind}, a file system that the kernel makes up: there is nothing to guard")]
    Pseudo {
        /// The directory.
        path: PathBuf,
        /// The file system's type.
        kind: String,
    },
    /// A thread could not be started.
    #[error("a thread cannot be started: {0}")]
    Thread(#[source] io::Error),
}

/// What the guard did, beside what the [`Checker`] counts.
#[derive(Debug, Default)]
pub struct Counters {
    /// Events that came.
    pub events: AtomicU64,
    /// Of these, from our own threads and the software TPM.
    pub exempt: AtomicU64,
    /// Ignore marks set.
    pub marks: AtomicU64,
    /// Changes told by the kernel.
    pub changes: AtomicU64,
    /// Leases broken by somebody who wants to write.
    pub leases_broken: AtomicU64,
    /// Events that the kernel could not hand over; it has refused these accesses itself.
    pub lost: AtomicU64,
}

/// The guard, from the moment that the first file system is watched until it is stopped.
pub struct Guard {
    shared: Arc<Shared>,
    workers: Mutex<Option<Workers<Shared>>>,
    threads: Mutex<Vec<(i32, JoinHandle<()>)>>,
}

struct Shared {
    group: PermissionGroup,
    checker: Arc<Checker>,
    own: i32,
    /// Our own program's device and inode.
    program: Option<(u64, u64)>,
    software_tpm: AtomicI32,
    /// Tells when the software TPM has ended, after which its number may be another's.
    software_tpm_process: Option<OwnedFd>,
    watched: Vec<Watched>,
    filesystems: RwLock<HashMap<u64, Arc<Filesystem>>>,
    /// Files that a thread is deciding on, with the events that came meanwhile.
    under_way: Mutex<HashMap<InodeId, VecDeque<PermissionEvent>>>,
    /// Files that programs which passed named as their interpreter, in the state they had then.
    interpreters: Mutex<HashMap<InodeId, Stamp>>,
    /// Large files, for threads of their own: hashing them must not keep the others from small ones.
    large: Mutex<SyncSender<PermissionEvent>>,
    leases: Mutex<Leases>,
    lease_thread: AtomicI32,
    /// Grows when all marks are dropped; a decision from before sets none. Marks and interpreters are set under the read
    /// lock.
    generation: RwLock<u64>,
    /// Policies are replaced one after the other.
    replacing: Mutex<()>,
    /// Whether everything is asked about and nothing let pass, as long as a trace is taken.
    ask_always: AtomicBool,
    stopping: AtomicBool,
    counters: Counters,
    buffer: Mutex<EventBuffer>,
}

struct Watched {
    path: PathBuf,
    directory: OwnedFd,
    changes: Option<ChangeGroup>,
}

#[derive(Default)]
struct Leases {
    held: HashMap<InodeId, OwnedFd>,
    by_descriptor: HashMap<RawFd, InodeId>,
    /// The oldest first; what is no longer held may still be in it.
    order: VecDeque<InodeId>,
    most: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks protect is never half changed, so a panic elsewhere leaves it sound.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guard {
    /// Watches the file systems that hold `directories` from now on. Events of `software_tpm` (a process; 0 for none) pass.
    ///
    /// # Errors
    /// [`GuardError`]; nothing is watched then.
    pub fn start(checker: Arc<Checker>, directories: &[PathBuf], software_tpm: i32) -> Result<Self, GuardError> {
        lease::block_signals();
        let files = threads::raise_file_limit();
        let group = PermissionGroup::open().map_err(GuardError::Fanotify)?;
        let mut watched: Vec<Watched> = Vec::new();
        let mut filesystems = HashMap::new();
        for path in directories {
            let error = |error| GuardError::Path { path: path.clone(), error };
            let directory = mounts::open_directory(path).map_err(error)?;
            let device = rustix::fs::fstat(&directory).map_err(|number| error(number.into()))?.st_dev;
            if filesystems.contains_key(&device) {
                continue;
            }
            let filesystem = mounts::filesystem_of(directory.as_fd()).map_err(error)?;
            if mounts::is_pseudo(&filesystem.name) {
                return Err(GuardError::Pseudo { path: path.clone(), kind: filesystem.name });
            }
            // Without file handles changes of attributes are not told, so that nothing can be let pass unasked.
            let changes = ChangeGroup::open().and_then(|group| group.watch_filesystem(path).map(|()| group)).ok();
            filesystems.insert(device, Arc::new(filesystem));
            watched.push(Watched { path: path.clone(), directory, changes });
        }
        let (large, large_receiver) = sync_channel(LARGE_QUEUE);
        let software_tpm_process = rustix::process::Pid::from_raw(software_tpm)
            .and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok());
        let shared = Arc::new(Shared {
            group,
            large: Mutex::new(large),
            software_tpm_process,
            checker,
            own: std::process::id().cast_signed(),
            program: rustix::fs::stat("/proc/self/exe").ok().map(|stat| (stat.st_dev, stat.st_ino)),
            software_tpm: AtomicI32::new(software_tpm),
            watched,
            filesystems: RwLock::new(filesystems),
            under_way: Mutex::default(),
            interpreters: Mutex::default(),
            leases: Mutex::new(Leases { most: (files / LEASE_SHARE).min(1 << 16) as usize, ..Leases::default() }),
            lease_thread: AtomicI32::new(0),
            generation: RwLock::new(0),
            replacing: Mutex::default(),
            ask_always: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            counters: Counters::default(),
            buffer: Mutex::new(EventBuffer::new(32)),
        });
        let guard = Self { shared: Arc::clone(&shared), workers: Mutex::default(), threads: Mutex::default() };
        // Known before the first lease can be taken: one without an owner would keep its writer waiting.
        let lease_thread = guard.start_thread("leases", Shared::watch_leases)?;
        shared.lease_thread.store(lease_thread, Ordering::SeqCst);
        let large_events = Arc::new(Mutex::new(large_receiver));
        for _ in 0..LARGE_THREADS {
            let events = Arc::clone(&large_events);
            guard.start_thread("large", move |shared| shared.judge_large(&events))?;
        }
        let (sender, receiver) = sync_channel(1024);
        guard.start_thread("labels", move |shared| shared.refresh_labels(&receiver))?;
        for index in 0..shared.watched.len() {
            let labels = sender.clone();
            guard.start_thread("changes", move |shared| shared.watch_changes(index, &labels))?;
        }
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let workers = Workers::start(Arc::clone(&shared), cores.max(2) * 2, 64).map_err(GuardError::Thread)?;
        *lock(&guard.workers) = Some(workers);
        // Threads first: from the first mark on somebody must answer.
        for watched in &shared.watched {
            shared
                .group
                .watch_filesystem(watched.directory.as_fd(), shared.wanted(&shared.checker.policy()))
                .map_err(|error| GuardError::Path { path: watched.path.clone(), error })?;
        }
        Ok(guard)
    }

    fn start_thread(&self, name: &str, body: impl FnOnce(&Shared) + Send + 'static) -> Result<i32, GuardError> {
        let shared = Arc::clone(&self.shared);
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                // The one that waits for it is there, or nobody needs it.
                let _ = sender.send(threads::current_thread());
                body(&shared);
            })
            .map_err(GuardError::Thread)?;
        let tid = receiver.recv().unwrap_or(0);
        lock(&self.threads).push((tid, thread));
        Ok(tid)
    }

    /// What the guard did.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// The file systems watched, with where they were named.
    pub fn filesystems(&self) -> Vec<(PathBuf, Arc<Filesystem>)> {
        self.shared
            .watched
            .iter()
            .filter_map(|watched| {
                let filesystem = self.shared.filesystem(watched.directory.as_fd()).ok()?;
                Some((watched.path.clone(), filesystem))
            })
            .collect()
    }

    /// Whether this device's file system is watched.
    pub fn watches(&self, device: u64) -> bool {
        self.shared.filesystems.read().unwrap_or_else(PoisonError::into_inner).contains_key(&device)
    }

    /// How many read leases are held.
    pub fn leases(&self) -> usize {
        lock(&self.shared.leases).held.len()
    }

    /// Asks again about everything that was let pass: what is allowed has changed (the mode, the policy, the keys).
    ///
    /// # Errors
    /// What fanotify_mark(2) says.
    pub fn ask_again_all(&self) -> io::Result<()> {
        self.shared.ask_again_all()
    }

    /// Puts another policy in force and returns the one before. The kernel is asked about more before it is, and about less
    /// after it; what it was told not to ask about is asked about again only where the two could decide differently.
    ///
    /// # Errors
    /// What fanotify_mark(2) says; the policy before is in force then.
    pub fn replace_policy(&self, policy: Arc<ActivePolicy>) -> io::Result<Replaced> {
        let shared = &self.shared;
        let _one_at_a_time = lock(&shared.replacing);
        if shared.stopping.load(Ordering::SeqCst) {
            return Err(io::Error::other("the guard is ending"));
        }
        let before = shared.checker.policy();
        let (asked, to_ask) = (shared.wanted(&before), shared.wanted(&policy));
        let undo = |added: &[Watched]| {
            for watched in added {
                // What is asked about needlessly costs time and nothing else.
                let _ = shared.group.unwatch_filesystem(watched.directory.as_fd(), to_ask.without(asked));
            }
        };
        for (index, watched) in shared.watched.iter().enumerate() {
            if let Err(error) = shared.group.watch_filesystem(watched.directory.as_fd(), to_ask) {
                undo(&shared.watched[..index]);
                return Err(error);
            }
        }
        // Held until the policy is replaced: a subvolume that is met for the first time waits, and is judged by the new one.
        let filesystems = shared.filesystems.read().unwrap_or_else(PoisonError::into_inner);
        let asked_again = !filesystems.values().all(|filesystem| alike_on(filesystem, &before, &policy));
        shared.checker.replace_policy(policy);
        drop(filesystems);
        if asked_again && let Err(error) = self.ask_again_all() {
            shared.checker.replace_policy(before);
            // Marks that the new policy may have set meanwhile go with the generation.
            let _ = self.ask_again_all();
            undo(&shared.watched);
            return Err(error);
        }
        for watched in &shared.watched {
            let _ = shared.group.unwatch_filesystem(watched.directory.as_fd(), asked.without(to_ask));
        }
        Ok(Replaced { before, asked_again })
    }

    /// From now on, asks about every open and every execution, also where the policy in force has nothing to do, and lets
    /// nothing pass unasked; or no longer.
    ///
    /// # Errors
    /// What fanotify_mark(2) says; then it is as before.
    pub fn ask_always(&self, always: bool) -> io::Result<()> {
        let shared = &self.shared;
        let _one_at_a_time = lock(&shared.replacing);
        if always && shared.stopping.load(Ordering::SeqCst) {
            // Nobody would answer.
            return Err(io::Error::other("the guard is ending"));
        }
        let extra = EVERYTHING.without(wanted(&shared.checker.policy()));
        let stop = || {
            shared.ask_always.store(false, Ordering::SeqCst);
            for watched in shared.watched.iter().filter(|_| !extra.is_none()) {
                // What is asked about needlessly costs time and nothing else.
                let _ = shared.group.unwatch_filesystem(watched.directory.as_fd(), extra);
            }
        };
        if !always {
            stop();
            return Ok(());
        }
        shared.ask_always.store(true, Ordering::SeqCst);
        let watch = |watched: &Watched| shared.group.watch_filesystem(watched.directory.as_fd(), EVERYTHING);
        shared.watched.iter().try_for_each(watch).and_then(|()| self.ask_again_all()).inspect_err(|_| stop())
    }

    /// Watches no longer. Tasks that wait for an answer go on, unless their file is being read: that cannot be judged any
    /// more, as little as any other that cannot be read.
    pub fn stop(&self) {
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::SeqCst);
        // Whoever replaces the policy is done with it, or finds that there is nothing left to replace.
        let _none_replaces = lock(&shared.replacing);
        for watched in &shared.watched {
            // The group is closed next, which takes every mark away.
            let _ = shared.group.unwatch_filesystem(watched.directory.as_fd(), shared.wanted(&shared.checker.policy()));
        }
        if let Some(workers) = lock(&self.workers).take() {
            workers.stop();
        }
        for (tid, thread) in lock(&self.threads).drain(..) {
            while !thread.is_finished() {
                // It may have ended meanwhile.
                let _ = threads::interrupt(tid);
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            // A thread that panicked has told so.
            let _ = thread.join();
        }
        shared.release_all_leases();
    }
}

/// What replacing a policy did.
pub struct Replaced {
    /// The policy before.
    pub before: Arc<ActivePolicy>,
    /// Whether the kernel asks again about what it was told not to ask about.
    pub asked_again: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Service for Shared {
    type Job = PermissionEvent;

    fn read(&self, jobs: &mut VecDeque<PermissionEvent>) -> io::Result<()> {
        // Only the leader reads, so nobody waits for this lock.
        let mut buffer = lock(&self.buffer);
        let result = self.group.read(&mut buffer, |event| {
            self.counters.events.fetch_add(1, Ordering::Relaxed);
            if self.is_exempt(event.tid) {
                self.counters.exempt.fetch_add(1, Ordering::Relaxed);
                // ENOENT: the thread was killed while it waited.
                let _ = self.group.answer(event.file.as_fd(), true);
            } else {
                jobs.push_back(event);
            }
        });
        if result.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::Interrupted) {
            self.counters.lost.fetch_add(1, Ordering::Relaxed);
            let number = result.as_ref().err().and_then(io::Error::raw_os_error);
            if matches!(number, Some(libc::EMFILE | libc::ENFILE)) {
                // Leases hold the most descriptors.
                self.release_all_leases();
            }
        }
        result
    }

    fn work(&self, event: PermissionEvent) {
        let question = Question { event: Some(event), shared: self };
        // A panic is a bug of ours; it must cost no more than this one answer, which the question's end gives.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.handle(question, false)));
    }
}

/// An event that waits for its answer. Dropped without one it is refused in enforce mode, so that no task waits for ever.
struct Question<'a> {
    event: Option<PermissionEvent>,
    shared: &'a Shared,
}

impl Question<'_> {
    fn answer(mut self, allow: bool) -> Option<PermissionEvent> {
        let event = self.event.take();
        if let Some(event) = &event {
            // ENOENT: the task was killed while it waited.
            let _ = self.shared.group.answer(event.file.as_fd(), allow);
        }
        event
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        if let Some(event) = self.event.take() {
            let checker = &self.shared.checker;
            // What is asked about for a trace's sake alone has nobody to refuse it.
            let for_the_policy = event.mask.without(wanted(&checker.policy())) != event.mask;
            let allow = checker.mode() != Mode::Enforce || !for_the_policy;
            // As above.
            let _ = self.shared.group.answer(event.file.as_fd(), allow);
        }
    }
}

/// A file that this thread decides on; at the end, however it comes, nobody is left waiting for it.
struct UnderWay<'a> {
    id: InodeId,
    shared: &'a Shared,
    /// Its entry has been removed in order; another thread's may be in its place.
    over: bool,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        for event in lock(&self.shared.under_way).remove(&self.id).unwrap_or_default() {
            drop(Question { event: Some(event), shared: self.shared });
        }
    }
}

impl Shared {
    /// Ours and the software TPM's own accesses pass: whoever we wait for must not wait for us.
    fn is_exempt(&self, tid: i32) -> bool {
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

    /// Drops every mark, and what programs named as their interpreters. A decision from before adds neither.
    fn ask_again_all(&self) -> io::Result<()> {
        let mut generation = self.generation.write().unwrap_or_else(PoisonError::into_inner);
        *generation += 1;
        lock(&self.interpreters).clear();
        self.group.ask_again_all()
    }

    /// What is to be asked about while a policy is in force.
    fn wanted(&self, policy: &CompiledPolicy) -> Mask {
        if self.ask_always.load(Ordering::SeqCst) { EVERYTHING } else { wanted(policy) }
    }

    fn filesystem(&self, file: BorrowedFd<'_>) -> io::Result<Arc<Filesystem>> {
        let device = rustix::fs::fstat(file)?.st_dev;
        self.filesystem_of_device(device, file)
    }

    fn filesystem_of_device(&self, device: u64, file: BorrowedFd<'_>) -> io::Result<Arc<Filesystem>> {
        if let Some(filesystem) = self.filesystems.read().unwrap_or_else(PoisonError::into_inner).get(&device) {
            return Ok(Arc::clone(filesystem));
        }
        // A subvolume, whose device number is its own.
        let filesystem = Arc::new(mounts::filesystem_of(file)?);
        let mut all = self.filesystems.write().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(all.entry(device).or_insert(filesystem)))
    }

    fn handle(&self, mut question: Question<'_>, large_too: bool) {
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

    /// Tells the kernel not to ask again, where that is safe.
    fn let_pass(&self, file: &OpenedFile<'_>, interpreter: bool, generation: u64) {
        // The state that was judged: owner and group are in it as well.
        let before = stamp(&file.stat);
        if self.ask_always.load(Ordering::SeqCst) || !self.changes_are_told(file) {
            return;
        }
        let policy = self.checker.policy();
        let opened: &[Func] = if file.mappable(&policy) {
            &[Func::FileCheck, Func::MmapCheck, Func::MmapCheckReqprot]
        } else {
            &[Func::FileCheck]
        };
        let executed: &[Func] = if interpreter { &[] } else { &[Func::BprmCheck, Func::CredsCheck] };
        let mut mask = Mask::NONE;
        let mut content_matters = false;
        for (funcs, kind) in [(opened, Mask::OPEN), (executed, Mask::OPEN_EXEC)] {
            if self.checker.nothing_to_do(file, funcs) {
                mask = mask.and(kind);
            } else if self.checker.done_for_everybody(file, funcs) {
                mask = mask.and(kind);
                content_matters = true;
            }
        }
        // Whether a file can be mapped executable is in its content, too.
        content_matters |= policy.wants(Func::MmapCheck);
        if mask.is_none() {
            return;
        }
        if content_matters && file.nobody_writes() != Some(true) {
            return;
        }
        if mask.contains(Mask::OPEN) && self.checker.appraised_by_digest(file) {
            // The mark hides the open of a writer, whose change the label has to follow. That root would be let through
            // is known; who else may write must be asked.
            if !file.root_only() {
                return;
            }
            self.checker.maintain(file.id());
        }
        let current = self.generation.read().unwrap_or_else(PoisonError::into_inner);
        if *current != generation {
            return;
        }
        // Held until the mark is set: a lease that is broken meanwhile is given up after it, and the mark with it.
        let mut leases = lock(&self.leases);
        if content_matters && !file.root_only() && self.hold_lease(file, &mut leases).is_err() {
            return;
        }
        if !self.mark(file.file, mask) {
            return;
        }
        drop(leases);
        if file.stamp().ok() != Some(before) {
            // It changed in between: the mark came too late. Failing to take it back cannot happen on a live group.
            let _ = self.group.ask_again_descriptor(file.file);
        }
    }

    fn mark(&self, file: BorrowedFd<'_>, mask: Mask) -> bool {
        let marked = self.group.ignore_inode(file, mask).is_ok();
        if marked {
            self.counters.marks.fetch_add(1, Ordering::Relaxed);
        }
        marked
    }

    fn changes_are_told(&self, file: &OpenedFile<'_>) -> bool {
        // One file system may be watched by several directories of it; a subvolume has a device number of its own.
        self.watched.iter().all(|watched| watched.changes.is_some())
            || self.watched.iter().any(|watched| {
                watched.changes.is_some()
                    && rustix::fs::fstat(&watched.directory).is_ok_and(|stat| stat.st_dev == file.stat.st_dev)
            })
    }

    /// Takes a read lease on a descriptor of its own, which outlives the event's; one for each inode.
    fn hold_lease(&self, file: &OpenedFile<'_>, leases: &mut Leases) -> io::Result<()> {
        if leases.held.contains_key(&file.id()) {
            return Ok(());
        }
        let kept = file.file.try_clone_to_owned()?;
        lease::hold(kept.as_fd(), self.lease_thread.load(Ordering::Relaxed))?;
        while leases.held.len() >= leases.most
            && let Some(oldest) = leases.order.pop_front()
        {
            if let Some(file) = leases.held.remove(&oldest) {
                leases.by_descriptor.remove(&file.as_raw_fd());
                self.checker.cache().forget(oldest);
                self.give_up_lease(&file);
            }
        }
        leases.by_descriptor.insert(kept.as_raw_fd(), file.id());
        leases.held.insert(file.id(), kept);
        leases.order.push_back(file.id());
        Ok(())
    }

    /// The mark goes first: from then on the file is asked about again.
    fn give_up_lease(&self, file: &OwnedFd) {
        // Neither fails on descriptors that are ours.
        let _ = self.group.ask_again_descriptor(file.as_fd());
        let _ = lease::release(file.as_fd());
    }

    fn drop_lease(&self, id: InodeId) {
        let mut leases = lock(&self.leases);
        if let Some(file) = leases.held.remove(&id) {
            leases.by_descriptor.remove(&file.as_raw_fd());
            self.give_up_lease(&file);
        }
    }

    fn release_all_leases(&self) {
        let mut leases = lock(&self.leases);
        leases.order.clear();
        leases.by_descriptor.clear();
        for (id, file) in leases.held.drain() {
            self.checker.cache().forget(id);
            self.give_up_lease(&file);
        }
    }

    /// A thread's life: lets go of every lease that stands in a writer's way.
    fn watch_leases(&self) {
        while !self.stopping.load(Ordering::Relaxed) {
            match lease::wait_broken(500) {
                None => {}
                Some(lease::Broken::Descriptor(number)) => {
                    self.counters.leases_broken.fetch_add(1, Ordering::Relaxed);
                    let mut leases = lock(&self.leases);
                    let Some(id) = leases.by_descriptor.remove(&number) else {
                        continue;
                    };
                    if let Some(file) = leases.held.remove(&id) {
                        self.checker.cache().forget(id);
                        self.give_up_lease(&file);
                    }
                    if leases.order.len() > 2 * leases.held.len() + 1024 {
                        let Leases { order, held, .. } = &mut *leases;
                        order.retain(|id| held.contains_key(id));
                    }
                }
                // More signals than the queue takes: nobody knows whose.
                Some(lease::Broken::Any) => self.release_all_leases(),
            }
        }
    }

    /// A thread's life: takes back what was let pass when attributes change or the last writer goes.
    fn watch_changes(&self, index: usize, labels: &SyncSender<OwnedFd>) {
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

    /// A thread's life: decides on large files.
    fn judge_large(&self, events: &Mutex<Receiver<PermissionEvent>>) {
        while !self.stopping.load(Ordering::Relaxed) {
            let next = lock(events).recv_timeout(std::time::Duration::from_millis(200));
            if let Ok(event) = next {
                let question = Question { event: Some(event), shared: self };
                // As in `work`.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.handle(question, true)));
            }
        }
    }

    /// A thread's life: has digest labels follow what was written.
    fn refresh_labels(&self, files: &Receiver<OwnedFd>) {
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

/// Whether both policies decide alike about every file of a file system, by every hook that comes from here.
fn alike_on(filesystem: &Filesystem, one: &CompiledPolicy, other: &CompiledPolicy) -> bool {
    const HOOKS: [Func; 5] =
        [Func::FileCheck, Func::MmapCheck, Func::MmapCheckReqprot, Func::BprmCheck, Func::CredsCheck];
    let facts = FileFacts {
        owner: 0,
        group: 0,
        fsmagic: filesystem.magic,
        fsname: &filesystem.name,
        fs_subtype: &filesystem.subtype,
        fsuuid: filesystem.uuid,
    };
    decide_alike(one, other, &HOOKS, &facts)
}

/// All that can be asked.
const EVERYTHING: Mask = Mask::OPEN.and(Mask::OPEN_EXEC);

/// What a policy makes it necessary to be asked.
fn wanted(policy: &CompiledPolicy) -> Mask {
    let wants = |funcs: &[Func]| funcs.iter().any(|func| policy.wants(*func));
    let mut mask = Mask::NONE;
    if wants(&[Func::FileCheck, Func::MmapCheck, Func::MmapCheckReqprot]) {
        mask = mask.and(Mask::OPEN);
    }
    if wants(&[Func::BprmCheck, Func::CredsCheck]) || mask.is_none() {
        mask = mask.and(Mask::OPEN_EXEC);
    }
    mask
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
