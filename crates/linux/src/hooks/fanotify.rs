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

mod ask_again;
mod changes;
mod claim;
mod follow;
mod judge;
mod lanes;
mod leases;
mod let_pass;
mod level2;
mod marked;
mod passage;
mod question;
mod superblocks;

use self::follow::Follower;
pub use self::follow::{Follow, Unwatched};
use self::lanes::Reader;
use self::leases::Leases;
use self::marked::Marked;
use self::question::{Asked, Progress, Unanswered, UnderWay};
use self::superblocks::{Superblock, Superblocks};
use super::bpf::Level2;
use super::latency::Latency;
use super::sentinel::{Held, SentinelLink};
use super::workers::Workers;
use crate::mounts::Filesystem;
use crate::sys::fanotify::{ChangeGroup, Mask, PermissionGroup};
use crate::sys::{lease, process as threads};
use imara_engine::active_policy::{ActivePolicy, decide_alike, has_something_done};
use imara_engine::cache::{InodeId, Stamp};
use imara_engine::check::Checker;
use imara_engine::lock::{LEASES, Lock};
use imara_engine::policy::CompiledPolicy;
use imara_format::policy::Func;
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// From this size on a file is large, in bytes.
const LARGE: u64 = 64 << 20;
/// Threads for large files.
const LARGE_THREADS: usize = 2;
/// Large files that may wait.
const LARGE_QUEUE: usize = 4096;
/// Threads for what waits for the measurement list, and how much of that there may be.
const UNLISTED_THREADS: usize = 2;
const UNLISTED_QUEUE: usize = 4096;
/// Threads for all others, at most.
const MOST_THREADS: usize = 64;

/// Leases held at most, as a share of the open files that we may have.
const LEASE_SHARE: u64 = 4;

/// What the guard is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directories whose file systems are watched.
    pub directories: Vec<PathBuf>,
    /// Which others are.
    pub follow: Follow,
    /// The software TPM's process, whose accesses pass; 0 for none.
    pub software_tpm: i32,
    /// After how long without anything moving a decision is overdue; `None` for never.
    pub deadline: Option<Duration>,
    /// What an overdue decision comes to.
    pub on_deadline: Overdue,
    /// The programs in the kernel, at level 2.
    pub level2: Option<Arc<Level2>>,
    /// The line to the process that lets everybody go on should the guard not; it may be connected later.
    pub sentinel: Arc<SentinelLink>,
}

/// What an overdue decision comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overdue {
    /// In enforce mode, a refusal.
    #[default]
    Refuse,
    /// The access goes on.
    Allow,
}

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
    /// Another guard watches this file system already.
    #[error("{path}: another guard (process {pid}) watches this file system already")]
    Taken {
        /// The directory.
        path: PathBuf,
        /// Its process.
        pid: String,
    },
    /// A thread could not be started.
    #[error("a thread cannot be started: {0}")]
    Thread(#[source] io::Error),
    /// The programs in the kernel cannot be told.
    #[error("the programs in the kernel (level 2) cannot be told what to refuse: {0}")]
    Level2(#[source] io::Error),
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
    /// Decisions that were overdue.
    pub overdue: AtomicU64,
    /// Queues that were too full to take an event.
    pub overflows: AtomicU64,
    /// File systems that were taken under watch.
    pub followed: AtomicU64,
    /// Files whose labels wait until they can be written.
    pub late_labels: AtomicU64,
    /// How long events waited for their answers.
    pub latency: Latency,
}

/// The guard, from the moment that the first file system is watched until it is stopped.
pub struct Guard {
    shared: Arc<Shared>,
    workers: Mutex<Option<Workers<Reader>>>,
    threads: Mutex<Vec<(i32, JoinHandle<()>)>>,
    /// How many events had come when it was last asked whether it gets on.
    seen: AtomicU64,
}

struct Shared {
    group: Arc<PermissionGroup>,
    sentinel: Arc<SentinelLink>,
    /// That it holds the group.
    _held: Held,
    /// Tells of changed attributes, where the kernel can.
    changes: Option<ChangeGroup>,
    checker: Arc<Checker>,
    own: i32,
    /// Our own program's device and inode.
    program: Option<(u64, u64)>,
    software_tpm: AtomicI32,
    /// Tells when the software TPM has ended, after which its number may be another's.
    software_tpm_process: Mutex<Option<OwnedFd>>,
    superblocks: Superblocks,
    /// File systems that are being marked, whose answers come from somebody else; and those that could not be.
    starting: Mutex<HashSet<u64>>,
    refused_foreign: Mutex<HashMap<u64, Unwatched>>,
    unwatched: Mutex<Vec<Unwatched>>,
    /// Named directories whose file system is not mounted.
    unmounted: Mutex<Vec<PathBuf>>,
    begun: Instant,
    deadline: Option<Duration>,
    on_deadline: Overdue,
    unanswered: Unanswered,
    under_way: UnderWay,
    /// Files that programs which passed named as their interpreter, in the state they had then.
    interpreters: RwLock<HashMap<InodeId, Stamp>>,
    /// Large files, for threads of their own: hashing them must not keep the others from small ones.
    large: Mutex<SyncSender<Arc<Asked>>>,
    large_progress: Arc<Progress>,
    /// What waits for the measurement list, whose file system may be frozen: it must not keep others waiting either.
    unlisted: Mutex<SyncSender<Arc<Asked>>>,
    leases: Lock<Leases>,
    lease_thread: AtomicI32,
    /// Tasks that were let run a program, until they do.
    passages: SyncSender<passage::Passage>,
    marked: Marked,
    /// That everything be asked about again.
    wishes: ask_again::Wishes,
    level2: Option<Arc<Level2>>,
    /// Whether every file system is watched.
    all: bool,
    learned: level2::Learned,
    /// Grows when all marks are dropped; a decision from before sets none. Marks and interpreters are set under the read
    /// lock.
    generation: RwLock<u64>,
    /// Policies are replaced one after the other.
    replacing: Mutex<()>,
    /// Whether everything is asked about and nothing let pass, as long as a trace is taken.
    ask_always: AtomicBool,
    stopping: AtomicBool,
    counters: Counters,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks protect is never half changed, so a panic elsewhere leaves it sound.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guard {
    /// Watches what `settings` say from now on. Events come through `group`.
    ///
    /// # Errors
    /// [`GuardError`]; nothing is watched then.
    pub fn start(checker: Arc<Checker>, group: PermissionGroup, settings: &Settings) -> Result<Self, GuardError> {
        lease::block_signals();
        let files = threads::raise_file_limit();
        let (large, large_receiver) = sync_channel(LARGE_QUEUE);
        let (unlisted, unlisted_receiver) = sync_channel(UNLISTED_QUEUE);
        let (passages, passages_under_way) = sync_channel(4096);
        let (wishes, wished) = ask_again::wishes();
        let software_tpm_process = Mutex::new(process_of(settings.software_tpm));
        let group = Arc::new(group);
        let shared = Arc::new(Shared {
            _held: settings.sentinel.hold(&group),
            sentinel: Arc::clone(&settings.sentinel),
            group,
            // Without file handles changes of attributes are not told, so that nothing can be let pass unasked.
            changes: ChangeGroup::open().ok(),
            checker,
            own: std::process::id().cast_signed(),
            program: rustix::fs::stat("/proc/self/exe").ok().map(|stat| (stat.st_dev, stat.st_ino)),
            software_tpm: AtomicI32::new(settings.software_tpm),
            software_tpm_process,
            superblocks: Superblocks::default(),
            starting: Mutex::default(),
            refused_foreign: Mutex::default(),
            unwatched: Mutex::default(),
            unmounted: Mutex::default(),
            begun: Instant::now(),
            deadline: settings.deadline,
            on_deadline: settings.on_deadline,
            unanswered: Unanswered::default(),
            under_way: UnderWay::default(),
            interpreters: RwLock::default(),
            large: Mutex::new(large),
            large_progress: Arc::default(),
            unlisted: Mutex::new(unlisted),
            leases: Lock::new(Leases::new((files / LEASE_SHARE).min(1 << 16) as usize), &LEASES),
            lease_thread: AtomicI32::new(0),
            passages,
            marked: Marked::default(),
            wishes,
            level2: settings.level2.clone(),
            all: settings.follow == Follow::All,
            learned: level2::Learned::default(),
            generation: RwLock::new(0),
            replacing: Mutex::default(),
            ask_always: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            counters: Counters::default(),
        });
        let guard = Self {
            shared: Arc::clone(&shared),
            workers: Mutex::default(),
            threads: Mutex::default(),
            seen: AtomicU64::new(0),
        };
        // Known before the first lease can be taken: one without an owner would keep its writer waiting.
        let lease_thread = guard.start_thread("leases", |shared| shared.watch_leases())?;
        shared.lease_thread.store(lease_thread, Ordering::SeqCst);
        guard.start_thread("passages", move |shared| shared.watch_passages(&passages_under_way))?;
        guard.start_thread("marks", move |shared| shared.ask_again_when_wished(&wished))?;
        let large_events = Arc::new(Mutex::new(large_receiver));
        for _ in 0..LARGE_THREADS {
            let events = Arc::clone(&large_events);
            guard.start_thread("large", move |shared| shared.judge_large(&events))?;
        }
        let unlisted_events = Arc::new(Mutex::new(unlisted_receiver));
        for _ in 0..UNLISTED_THREADS {
            let events = Arc::clone(&unlisted_events);
            guard.start_thread("unlisted", move |shared| shared.judge_unlisted(&events))?;
        }
        let (labels, receiver) = sync_channel(1024);
        guard.start_thread("labels", move |shared| shared.refresh_labels(&receiver))?;
        guard.start_thread("changes", move |shared| shared.watch_changes(&labels))?;
        guard.start_thread("deadline", |shared| shared.keep_time())?;
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let reader = Arc::new(Reader::new(&shared, &shared.group, 32));
        let workers = Workers::start(reader, cores.max(2) * 2, MOST_THREADS).map_err(GuardError::Thread)?;
        *lock(&guard.workers) = Some(workers);
        // Threads first: from the first mark on somebody must answer.
        let follower = Follower::start(&shared, &settings.directories, settings.follow)?;
        guard.start_thread("mounts", |shared| follower.run(shared))?;
        if shared.level2.is_some() {
            guard.start_thread("refusals", |shared| shared.tell_refusals())?;
            shared.put_level2_in_force(true).map_err(GuardError::Level2)?;
        }
        Ok(guard)
    }

    fn start_thread(&self, name: &str, body: impl FnOnce(&Arc<Shared>) + Send + 'static) -> Result<i32, GuardError> {
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

    /// From now on the accesses of this process pass, as it is the software TPM; those of the one before do no longer.
    pub fn take_for_software_tpm(&self, pid: i32) {
        let mut process = lock(&self.shared.software_tpm_process);
        *process = process_of(pid);
        self.shared.software_tpm.store(pid, Ordering::Relaxed);
    }

    /// What the guard did.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// The file systems watched, with where they can be found.
    pub fn filesystems(&self) -> Vec<(PathBuf, Arc<Filesystem>)> {
        let mut all: Vec<_> = self
            .shared
            .superblocks
            .all()
            .iter()
            .map(|superblock| {
                let path = superblock.path().unwrap_or_else(|| superblock.filesystem.mount_point.clone());
                (path, Arc::clone(&superblock.filesystem))
            })
            .collect();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        all
    }

    /// What should be watched and is not.
    pub fn unwatched(&self) -> Vec<Unwatched> {
        lock(&self.shared.unwatched).clone()
    }

    /// Directories that were named and whose file system is not mounted: it is watched again when it is.
    pub fn unmounted(&self) -> Vec<PathBuf> {
        lock(&self.shared.unmounted).clone()
    }

    /// How many events wait for an answer now.
    pub fn waiting(&self) -> usize {
        self.shared.unanswered.len()
    }

    /// Whether events are read and answered: none waits to be read that waited when this was last asked already without any
    /// having come meanwhile, and none is long overdue.
    pub fn gets_on(&self) -> bool {
        let events = self.shared.counters.events.load(Ordering::Relaxed);
        let idle = self.seen.swap(events, Ordering::Relaxed) == events;
        let stuck = idle && self.shared.group.is_pending().unwrap_or(false);
        let late = self.shared.deadline.is_some_and(|deadline| self.shared.longest_standstill() > 3 * deadline);
        !stuck && !late
    }

    /// Whether this device's file system is watched.
    pub fn watches(&self, device: u64) -> bool {
        self.shared.superblocks.known(device).is_some()
    }

    /// How many read leases are held.
    pub fn leases(&self) -> usize {
        self.shared.leases.lock().len()
    }

    /// Asks again about everything that was let pass: what is allowed has changed (the mode, the policy, the keys).
    ///
    /// # Errors
    /// What fanotify_mark(2) says.
    pub fn ask_again_all(&self) -> io::Result<()> {
        self.shared.put_level2_in_force(true)?;
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
        let undo = |superblocks: &[Arc<Superblock>]| {
            for superblock in superblocks {
                // What is asked about needlessly costs time and nothing else.
                let (asked, to_ask) = (shared.wanted_on(&before, superblock), shared.wanted_on(&policy, superblock));
                let _ = shared.unwatch(superblock, to_ask.without(asked));
            }
        };
        let superblocks = shared.superblocks.all();
        for (index, superblock) in superblocks.iter().enumerate() {
            if let Err(error) = shared.ask_about(superblock, shared.wanted_on(&policy, superblock)) {
                undo(&superblocks[..index]);
                return Err(error);
            }
        }
        // Held until the policy is replaced: a file system that is met for the first time waits, and is judged by the new one.
        let held = shared.superblocks.hold();
        let asked_again = !held.values().all(|superblock| alike_on(superblock, &before, &policy));
        shared.checker.replace_policy(Arc::clone(&policy));
        drop(held);
        if !asked_again && let Err(error) = shared.put_level2_in_force(false) {
            shared.checker.replace_policy(Arc::clone(&before));
            undo(&superblocks);
            return Err(error);
        }
        if asked_again && let Err(error) = self.ask_again_all() {
            shared.checker.replace_policy(Arc::clone(&before));
            // Marks that the new policy may have set meanwhile go with the generation.
            let _ = self.ask_again_all();
            undo(&superblocks);
            return Err(error);
        }
        for superblock in &superblocks {
            let (asked, to_ask) = (shared.wanted_on(&before, superblock), shared.wanted_on(&policy, superblock));
            let _ = shared.unwatch(superblock, asked.without(to_ask));
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
        let superblocks = shared.superblocks.all();
        let stop = || {
            shared.ask_always.store(false, Ordering::SeqCst);
            for superblock in &superblocks {
                // What is asked about needlessly costs time and nothing else.
                let extra = EVERYTHING.without(shared.wanted_on(&shared.checker.policy(), superblock));
                let _ = shared.unwatch(superblock, extra);
            }
        };
        if !always {
            stop();
            return Ok(());
        }
        shared.ask_always.store(true, Ordering::SeqCst);
        superblocks
            .iter()
            .try_for_each(|superblock| shared.ask_about(superblock, EVERYTHING))
            .and_then(|()| self.ask_again_all())
            .inspect_err(|_| stop())
    }

    /// Watches no longer. Tasks that wait for an answer go on, unless their file is being read: that cannot be judged any
    /// more, as little as any other that cannot be read.
    pub fn stop(&self) {
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::SeqCst);
        if let Some(level2) = &shared.level2 {
            // First, or what is no longer asked about would be refused.
            level2.end();
        }
        // Whoever replaces the policy is done with it, or finds that there is nothing left to replace.
        let _none_replaces = lock(&shared.replacing);
        // The group is closed next, which takes every mark away.
        let _ = shared.group.unwatch_everything();
        let foreign: Vec<_> =
            shared.superblocks.all().iter().filter_map(|superblock| superblock.lane.clone()).collect();
        std::thread::scope(|scope| {
            for lane in &foreign {
                scope.spawn(|| lane.stop());
            }
            if let Some(workers) = lock(&self.workers).take() {
                workers.stop();
            }
        });
        let mut threads: Vec<_> = lock(&self.threads).drain(..).collect();
        let begun = Instant::now();
        while !threads.is_empty() && begun.elapsed() < FAREWELL {
            for (_, thread) in threads.extract_if(.., |(_, thread)| thread.is_finished()) {
                // A thread that panicked has told so.
                let _ = thread.join();
            }
            for (tid, _) in &threads {
                // It may have ended meanwhile.
                let _ = threads::interrupt(*tid);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        shared.release_all_leases();
    }
}

/// Tells when a process has ended, after which its number may be another's.
fn process_of(pid: i32) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
}

/// How long it is waited for threads that the kernel does not let go.
const FAREWELL: Duration = Duration::from_secs(3);

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

impl Shared {
    /// What is to be asked about on a file system while a policy is in force.
    fn wanted_on(&self, policy: &ActivePolicy, superblock: &Superblock) -> Mask {
        if self.ask_always.load(Ordering::SeqCst) {
            return EVERYTHING;
        }
        if let Some(mask) = superblock.wanted.get(policy) {
            return mask;
        }
        let does = |funcs: &[Func]| has_something_done(policy, funcs, &superblock.facts());
        let loaded = self.level2.is_some() && does(&level2::LOADED);
        let mask = masked(loaded || does(&OPENED), does(&EXECUTED));
        superblock.wanted.set(policy, mask);
        mask
    }

    /// The group that asks about a file system.
    fn group_of<'a>(&'a self, superblock: &'a Superblock) -> &'a PermissionGroup {
        superblock.lane.as_ref().map_or(&self.group, |lane| &lane.group)
    }

    /// Asks about `mask` on a file system as well. One that is gone is not asked about.
    fn ask_about(&self, superblock: &Superblock, mask: Mask) -> io::Result<()> {
        match superblock.named() {
            Ok(named) => self.group_of(superblock).watch_filesystem(named.as_fd(), mask),
            Err(_) => Ok(()),
        }
    }

    fn unwatch(&self, superblock: &Superblock, mask: Mask) -> io::Result<()> {
        if mask.is_none() {
            return Ok(());
        }
        self.group_of(superblock).unwatch_filesystem(superblock.named()?.as_fd(), mask)
    }

    /// A thread's life: answers what is overdue, and lets go of what is no longer used.
    fn keep_time(&self) {
        let pause = self.deadline.map_or(Duration::from_secs(1), |deadline| deadline / 8);
        let pause = pause.clamp(Duration::from_millis(20), Duration::from_secs(1));
        while !self.stopping.load(Ordering::Relaxed) {
            std::thread::sleep(pause);
            self.answer_overdue();
            self.superblocks.all().iter().for_each(|superblock| superblock.rest());
        }
    }
}

/// Whether both policies decide alike about every file of a file system, by every hook that comes from here.
fn alike_on(superblock: &Superblock, one: &CompiledPolicy, other: &CompiledPolicy) -> bool {
    decide_alike(one, other, &[OPENED.as_slice(), &EXECUTED, &level2::LOADED].concat(), &superblock.facts())
}

/// The hooks that an open stands for, and an execution.
const OPENED: [Func; 3] = [Func::FileCheck, Func::MmapCheck, Func::MmapCheckReqprot];
const EXECUTED: [Func; 2] = [Func::BprmCheck, Func::CredsCheck];

/// All that can be asked.
const EVERYTHING: Mask = Mask::OPEN.and(Mask::OPEN_EXEC);

/// What a policy makes it necessary to be asked, on whichever file system.
fn wanted(policy: &CompiledPolicy) -> Mask {
    let wants = |funcs: &[Func]| funcs.iter().any(|func| policy.wants(*func));
    masked(wants(&OPENED), wants(&EXECUTED))
}

fn masked(opened: bool, executed: bool) -> Mask {
    let mask = if opened { Mask::OPEN } else { Mask::NONE };
    // A file system that is asked about nothing could not be told from one that took its number.
    if executed || mask.is_none() { mask.and(Mask::OPEN_EXEC) } else { mask }
}
