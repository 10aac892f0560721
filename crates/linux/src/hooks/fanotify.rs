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

mod changes;
mod judge;
mod leases;
mod let_pass;
mod question;

use self::leases::Leases;
use self::question::Question;
use super::workers::{Service, Workers};
use crate::mounts::{self, Filesystem};
use crate::sys::fanotify::{ChangeGroup, EventBuffer, Mask, PermissionEvent, PermissionGroup};
use crate::sys::{lease, process as threads};
use imara_engine::active_policy::{ActivePolicy, decide_alike};
use imara_engine::cache::{InodeId, Stamp};
use imara_engine::check::Checker;
use imara_engine::policy::{CompiledPolicy, FileFacts};
use imara_format::policy::Func;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;

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
            leases: Mutex::new(Leases::new((files / LEASE_SHARE).min(1 << 16) as usize)),
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

impl Shared {
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
