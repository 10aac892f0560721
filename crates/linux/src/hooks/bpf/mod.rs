//! Level 2: programs in the kernel that refuse what has no good verdict, also where fanotify does not ask: mappings,
//! modules, files that were opened before they changed; and, where that is wanted, after the guard has died.
//!
//! The guard puts a `Verdict` beside each inode that it lets pass, with how often the inode had begun to change when the guard
//! began to look ([`Level2::look`]). The programs count changes and refuse where the numbers differ; so whatever happens
//! between the look and the verdict, or after it, undoes the verdict.

mod layout;
mod object;
mod relocate;

pub use self::layout::{Bits, NO_ALGORITHM, Refusal, Why};
use self::layout::{Changes, Settings, Verdict, device_in_kernel, flags, roles};
use self::object::{Loaded, RING};
pub use self::object::{Reason, foreseeable};
use crate::sys::bpf::Ring;
use imara_engine::label_writes::WritableLabels;
use imara_format::hash::HashAlgorithm;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::Stat;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a change of attributes may take once it was counted, in nanoseconds: it waits for the file system's journal at most.
const CHANGING: u64 = 10_000_000_000;

/// How long what was judged under the policy or mode before may still be used by accesses that are under way, in nanoseconds.
const UNDER_WAY: u64 = 250_000_000;

/// What becomes of accesses when the guard has died.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDeath {
    /// All go on, as at level 1.
    #[default]
    Allow,
    /// What was judged before and has not changed goes on, the rest is refused, until a guard is there again.
    Refuse,
}

/// What level 2 is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// What becomes of accesses when the guard has died.
    pub on_death: OnDeath,
    /// Where links and maps are kept then, on a bpf file system.
    pub pins: PathBuf,
    /// Whether the guard's process, files and maps are protected.
    pub protect: bool,
    /// The software TPM's process, whose accesses pass; 0 for none.
    pub software_tpm: i32,
}

/// What the policy and mode in force come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Force {
    /// What has no good verdict is refused.
    pub enforce: bool,
    /// `security.evm` is the guard's to write.
    pub evm: bool,
    /// Modules that no file holds are refused.
    pub modules: bool,
    /// Firmware that no file holds is refused.
    pub firmware: bool,
    /// Kernels that no file holds are refused.
    pub kexec: bool,
    /// What is refused on file systems that were not looked at yet.
    pub elsewhere: Bits,
    /// Which labels may be written.
    pub labels: WritableLabels,
}

/// The programs, attached as long as this lives (or longer, see [`OnDeath::Refuse`]).
#[derive(Debug)]
pub struct Level2 {
    loaded: Loaded,
    settings: Mutex<Settings>,
    enforcing: AtomicBool,
    /// Whether it has ended: nothing puts it in force again. Set under the settings' lock.
    ended: AtomicBool,
    epoch: AtomicU64,
    ring: Mutex<Ring>,
    options: Options,
    /// Whether they decided already before this guard began.
    taken_over: bool,
    /// Pins of another build, which go when this one is in force.
    old_pins: Mutex<Vec<PathBuf>>,
}

/// What is known of an inode before it is judged.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    changes: Changes,
    /// Whether attributes have begun to change just now: they may not have changed yet.
    unsettled: bool,
    before: Option<Verdict>,
    epoch: u64,
}

impl Look {
    /// Whether a verdict was there already that had all of `bits`, be it still good or not.
    pub fn had(&self, bits: Bits) -> bool {
        self.before.is_some_and(|before| before.bits.contains(bits))
    }

    /// What it had passed before, and has passed in the state that it is in now.
    pub fn kept(&self, stat: &Stat) -> Bits {
        let altered = (stat.st_ctime, stat.st_ctime_nsec as u32);
        let modified = (stat.st_mtime, stat.st_mtime_nsec as u32);
        let Some(before) = self.before.filter(|before| {
            (before.epoch == self.epoch || before.bits.contains(Bits::LASTING))
                && before.changes.content == self.changes.content
                // What is changed in a layer beneath an overlay is not counted there.
                && (before.modified, before.size) == (modified, stat.st_size)
        }) else {
            return Bits::NONE;
        };
        let kept = before.bits.without(Bits::UNSETTLED);
        // What was only counted then may have been made since.
        if before.changes == self.changes && (before.altered == altered || !before.bits.contains(Bits::UNSETTLED)) {
            return kept;
        }
        // Its attributes have changed just now, and not its content. Somebody may be on his way to execute it who was let go on a moment ago;
        // whoever comes next is asked about, as always.
        if self.unsettled { kept.only(Bits::EXEC) } else { Bits::NONE }
    }

    /// What is put beside the inode that has `passed` since, with what is kept. Whether all of that is for everybody is said by `passed`, but for
    /// what lasts.
    fn verdict(&self, passed: Bits, stat: &Stat, stamped: bool) -> Verdict {
        let stamp = match (stamped, self.unsettled) {
            (true, true) => Bits::STAMPED.and(Bits::UNSETTLED),
            (true, false) => Bits::STAMPED,
            (false, _) => Bits::NONE,
        };
        let kept = self.kept(stat);
        let kept = if kept.contains(Bits::LASTING) { kept } else { kept.without(Bits::EVERYBODY) };
        Verdict {
            bits: kept.and(passed).and(stamp),
            changes: self.changes,
            epoch: self.epoch,
            modified: (stat.st_mtime, stat.st_mtime_nsec as u32),
            size: stat.st_size,
            altered: (stat.st_ctime, stat.st_ctime_nsec as u32),
        }
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> Reason {
    let what = what.into();
    move |error| Reason::System { what, error }
}

fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

const FIRST: [u8; 4] = [0; 4];

impl Level2 {
    /// Loads and attaches the programs, or takes over those that an earlier guard of the same build left. Nothing is refused
    /// before [`Level2::put_in_force`] that was not before.
    ///
    /// # Errors
    /// [`Reason`] why that cannot be.
    pub fn start(options: Options) -> Result<Self, Reason> {
        if let Some(reason) = foreseeable().into_iter().next() {
            return Err(reason);
        }
        let folder = options.pins.join(object::version());
        let kept = (options.on_death == OnDeath::Refuse).then(|| Loaded::pinned(&folder).ok()).flatten();
        let taken_over = kept.is_some();
        let loaded = match kept {
            Some(kept) => kept,
            None => {
                let loaded = object::load()?;
                self_test(&loaded.maps)?;
                loaded
            }
        };
        let old_pins = object::pins(&options.pins);
        let old_pins = old_pins.into_iter().filter(|pins| !taken_over || *pins != folder).collect();
        let before = loaded.maps.settings.lookup(&FIRST).map_err(failed("the settings"))?;
        let mut settings = before.as_deref().and_then(Settings::from_bytes).unwrap_or_default();
        settings.programs = own_programs();
        settings.maps = loaded.maps.numbers().map_err(failed("the maps"))?;
        let records = loaded.maps.records.as_fd().try_clone_to_owned().map_err(failed("the ring"))?;
        let ring = Ring::new(records, RING as usize).map_err(failed("the ring"))?;
        let level2 = Self {
            epoch: AtomicU64::new(settings.epoch),
            loaded,
            settings: Mutex::new(settings),
            enforcing: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            ring: Mutex::new(ring),
            options,
            taken_over,
            old_pins: Mutex::new(old_pins),
        };
        let starter = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        for (process, role) in [(starter, roles::STARTER), (level2.options.software_tpm, roles::SOFTWARE_TPM)] {
            level2.give(process.cast_unsigned(), role).map_err(failed("the processes"))?;
        }
        Ok(level2)
    }

    /// Another process is the software TPM now.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub fn take_for_software_tpm(&self, pid: i32) -> io::Result<()> {
        self.give(pid.cast_unsigned(), roles::SOFTWARE_TPM)
    }

    /// Notes what a process is to the guard, as long as it runs what it runs now.
    fn give(&self, process: u32, role: u32) -> io::Result<()> {
        if process == 0 {
            return Ok(());
        }
        let processes = &self.loaded.maps.processes;
        let before = processes.lookup(&process.to_ne_bytes())?;
        let before = before.and_then(|role| role.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))).unwrap_or(0);
        processes.put(&process.to_ne_bytes(), &(before | role).to_ne_bytes(), false)
    }

    /// A sentinel is protected as the guard is, and may end it.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub fn sentinel_started(&self, process: u32) -> io::Result<()> {
        self.give(process, roles::SENTINEL)
    }

    /// Who undoes a switch of the mode may end a guard that does not answer.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub fn let_roll_back(&self, process: u32) -> io::Result<()> {
        self.give(process, roles::ROLLS_BACK)
    }

    /// What this kernel has no hook for, or does not take, with the reason.
    pub fn left_out(&self) -> &[String] {
        &self.loaded.left_out
    }

    /// Whether an earlier guard's programs went on deciding until this one came.
    pub const fn taken_over(&self) -> bool {
        self.taken_over
    }

    /// What becomes of accesses when the guard has died.
    pub const fn on_death(&self) -> OnDeath {
        self.options.on_death
    }

    /// Whether the guard's process, files and maps are protected.
    pub const fn protects(&self) -> bool {
        self.options.protect
    }

    /// Refusals, and those of them that could not be told.
    pub fn counts(&self) -> (u64, u64) {
        let count = |number: u32| {
            let value = self.loaded.maps.counts.lookup(&number.to_ne_bytes()).ok().flatten();
            value.and_then(|value| value.first_chunk().map(|chunk| u64::from_ne_bytes(*chunk))).unwrap_or(0)
        };
        (count(0), count(1))
    }

    /// Puts what the policy and mode come to in force. With `anew` verdicts from before are good for what is under way, and for
    /// nothing else.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub fn put_in_force(&self, force: &Force, anew: bool) -> io::Result<()> {
        let mut settings = lock(&self.settings);
        if self.ended.load(Ordering::SeqCst) {
            // A policy or mode that comes with the guard's end refuses nobody anything any more.
            return Ok(());
        }
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        let Force { enforce, evm, modules, firmware, kexec, elsewhere, labels } = *force;
        settings.flags = flag(enforce, flags::ENFORCE)
            | flag(self.options.on_death == OnDeath::Refuse, flags::CLOSED)
            | flag(self.options.protect, flags::PROTECT)
            | flag(labels.by_rule(), flags::LABELS_BY_RULE)
            | flag(evm, flags::EVM)
            | flag(modules, flags::LOAD_MODULE)
            | flag(firmware, flags::LOAD_FIRMWARE)
            | flag(kexec, flags::LOAD_KEXEC);
        settings.elsewhere = elsewhere.number();
        settings.labels = label_bits(labels);
        if anew {
            settings.epoch_before = settings.epoch;
            settings.epoch += 1;
            settings.before_until = monotonic() + UNDER_WAY;
        }
        self.loaded.maps.settings.put(&FIRST, &settings.to_bytes(), false)?;
        self.epoch.store(settings.epoch, Ordering::SeqCst);
        self.enforcing.store(enforce, Ordering::SeqCst);
        let mut alive = [0; 8];
        alive[..4].copy_from_slice(&std::process::id().to_ne_bytes());
        self.loaded.maps.alive.put(&FIRST, &alive, false)
    }

    /// Has links and maps outlive this guard, where that is wanted, with what it takes to start a guard again: our program and
    /// that of the software TPM, as they are now. `files` are the guard's own, which nobody else may change where that is
    /// protected. Called when the guard is in force.
    ///
    /// # Errors
    /// What the bpf file system says.
    pub fn keep(&self, files: &[PathBuf]) -> Result<(), Reason> {
        let folder = self.options.pins.join(object::version());
        if self.options.on_death == OnDeath::Refuse {
            let kept = || failed(format!("the links cannot be kept in {}", folder.display()));
            if !self.taken_over {
                self.loaded.pin(&folder).map_err(kept())?;
            }
            let device = std::fs::metadata(&folder).map_err(kept())?.dev();
            let mut settings = lock(&self.settings);
            settings.pins = device_in_kernel(device);
            self.loaded.maps.settings.put(&FIRST, &settings.to_bytes(), false).map_err(kept())?;
            drop(settings);
            let lasting = Bits::OPEN.and(Bits::EXEC).and(Bits::MMAP).and(Bits::EVERYBODY).and(Bits::LASTING);
            let own = mapped_programs(std::process::id());
            let other_name = own_program_beside().map(|path| (path, None));
            let own: Vec<_> = own.into_iter().map(|(path, inode)| (path, Some(inode))).chain(other_name).collect();
            // One that was replaced meanwhile is judged like any other.
            for (path, inode) in &own {
                let _ = self.grant(path, *inode, lasting.and(Bits::GUARDS_PROGRAM));
            }
            for (path, inode) in mapped_programs(self.options.software_tpm.cast_unsigned()) {
                if !own.contains(&(path.clone(), Some(inode))) {
                    let _ = self.grant(&path, Some(inode), lasting);
                }
            }
        }
        for old in lock(&self.old_pins).drain(..) {
            object::unpin(&old).map_err(failed(format!("{}", old.display())))?;
        }
        if self.options.protect {
            for path in object::pins(&folder).iter().chain(files) {
                // What is not there needs no protection.
                let _ = self.grant(path, None, Bits::GUARDS_OWN.and(Bits::LASTING));
            }
        }
        Ok(())
    }

    fn grant(&self, path: &Path, inode: Option<u64>, bits: Bits) -> io::Result<()> {
        use rustix::fs::{Mode, OFlags};
        let file = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if inode.is_some_and(|inode| inode != stat.st_ino) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (changes, _) = self.count_changes(file.as_fd()).ok_or(io::ErrorKind::Unsupported)?;
        let look = Look { changes, unsettled: false, before: None, epoch: self.epoch.load(Ordering::SeqCst) };
        self.pass(file.as_fd(), &look, bits, &stat, false)
    }

    /// From now on looks and verdicts count, although nothing is refused yet.
    pub fn begin_to_judge(&self) {
        self.enforcing.store(true, Ordering::SeqCst);
    }

    /// Whether verdicts count.
    pub fn judges(&self) -> bool {
        self.enforcing.load(Ordering::SeqCst)
    }

    /// What is refused without a verdict on a file system, by its device.
    ///
    /// # Errors
    /// What bpf(2) says; E2BIG where there are too many file systems.
    pub fn watch(&self, device: u64, wanted: Bits) -> io::Result<()> {
        self.loaded.maps.watched.put(&device_in_kernel(device).to_ne_bytes(), &wanted.0.to_ne_bytes(), false)
    }

    /// Nothing is any more: it is gone.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub fn unwatch(&self, device: u64) -> io::Result<()> {
        self.loaded.maps.watched.remove(&device_in_kernel(device).to_ne_bytes())
    }

    /// Looks at an inode before it is judged. From now on its changes are counted. `None` where nothing is refused anyway.
    pub fn look(&self, file: BorrowedFd<'_>) -> Option<Look> {
        if !self.enforcing.load(Ordering::Relaxed) {
            return None;
        }
        let epoch = self.epoch.load(Ordering::SeqCst);
        let (changes, when) = self.count_changes(file)?;
        let unsettled = when != 0 && monotonic().saturating_sub(when) < CHANGING;
        let before = self.loaded.maps.verdicts.beside(file).ok().flatten();
        Some(Look { changes, unsettled, before: before.as_deref().and_then(Verdict::from_bytes), epoch })
    }

    /// How often an inode has begun to change, and when its attributes last have; from now on that is counted.
    fn count_changes(&self, file: BorrowedFd<'_>) -> Option<(Changes, u64)> {
        let changed = &self.loaded.maps.changed;
        let counted = || changed.beside(file).ok().flatten().as_deref().and_then(Changes::from_bytes);
        counted().or_else(|| {
            // Where somebody else was faster it is there as well.
            let _ = changed.put_beside(file, &[0; Changes::SIZE], true);
            counted()
        })
    }

    /// Puts a verdict beside an inode, with what it had passed before and has not changed since. `stamped` where size and time of
    /// change tell of changes.
    ///
    /// # Errors
    /// What bpf(2) says; the access will be refused then.
    pub fn pass(&self, file: BorrowedFd<'_>, look: &Look, passed: Bits, stat: &Stat, stamped: bool) -> io::Result<()> {
        let verdict = look.verdict(passed, stat, stamped);
        if look.before == Some(verdict) {
            return Ok(());
        }
        self.loaded.maps.verdicts.put_beside(file, &verdict.to_bytes(), false)
    }

    /// Tells refusals as they come, for so long at most.
    pub fn refusals(&self, most: Duration, mut tell: impl FnMut(&Refusal)) {
        let mut ring = lock(&self.ring);
        let most =
            rustix::event::Timespec { tv_sec: most.as_secs().cast_signed(), tv_nsec: most.subsec_nanos().into() };
        // EINTR is how it is ended.
        let _ = rustix::event::poll(&mut [PollFd::new(&ring.map(), PollFlags::IN)], Some(&most));
        ring.read(|record| {
            if let Some(refusal) = Refusal::from_bytes(record) {
                tell(&refusal);
            }
        });
    }

    /// Ends it in order: nothing is refused any more, and nothing is left.
    pub fn end(&self) {
        let mut settings = lock(&self.settings);
        self.ended.store(true, Ordering::SeqCst);
        settings.flags = 0;
        // Should that fail, the programs go with their links all the same.
        let _ = self.loaded.maps.settings.put(&FIRST, &settings.to_bytes(), false);
        self.enforcing.store(false, Ordering::SeqCst);
        for pins in object::pins(&self.options.pins) {
            // What cannot be taken away refuses nothing.
            let _ = object::unpin(&pins);
        }
    }
}

/// The algorithms that labels may be written in, a bit each.
fn label_bits(labels: WritableLabels) -> u32 {
    (0..=NO_ALGORITHM)
        .filter(|number| labels.may_be(HashAlgorithm::from_id(*number)))
        .fold(0, |bits, number| bits | 1 << number)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What these locks protect is never half changed, so a panic elsewhere leaves it sound.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The files that a process has mapped executable, with their inodes.
fn mapped_programs(process: u32) -> Vec<(PathBuf, u64)> {
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).unwrap_or_default();
    let mut files: Vec<_> = maps.lines().filter_map(mapped_program).collect();
    files.sort_unstable();
    files.dedup();
    files
}

/// Source: proc_pid_maps(5): addresses, permissions, offset, device, inode, path.
fn mapped_program(line: &str) -> Option<(PathBuf, u64)> {
    let mut fields = line.splitn(6, ' ');
    let permissions = fields.nth(1)?;
    let inode = fields.nth(2)?.parse().ok()?;
    let path = fields.next()?.trim_start();
    (permissions.contains('x') && path.starts_with('/')).then(|| (path.into(), inode))
}

/// Device and inode of our program, and of its other name.
fn own_programs() -> [u64; 4] {
    let mut programs = [0; 4];
    for (index, path) in [Some("/proc/self/exe".into()), own_program_beside()].into_iter().enumerate() {
        if let Some(metadata) = path.and_then(|path| std::fs::metadata(path).ok()) {
            programs[2 * index] = device_in_kernel(metadata.dev()).into();
            programs[2 * index + 1] = metadata.ino();
        }
    }
    programs
}

/// Where our program's other name is: `imara` and `imarad` lie beside each other.
fn own_program_beside() -> Option<PathBuf> {
    let own = std::fs::read_link("/proc/self/exe").ok()?;
    let is_tool = own.file_name().is_some_and(|name| name == "imara");
    Some(own.with_file_name(if is_tool { "imarad" } else { "imara" }))
}

/// Whether the programs are called, and storage beside inodes works: a file without a name is changed, and that must be counted.
fn self_test(maps: &object::Maps) -> Result<(), Reason> {
    let system = |what: &'static str| failed(what);
    let file = rustix::fs::memfd_create("imara-level2", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|error| system("a file to try with")(error.into()))?;
    maps.changed.put_beside(file.as_fd(), &[0; Changes::SIZE], true).map_err(system("storage beside an inode"))?;
    rustix::fs::fchmod(&file, rustix::fs::Mode::RUSR).map_err(|error| system("a file to try with")(error.into()))?;
    let counted = maps.changed.beside(file.as_fd()).map_err(system("storage beside an inode"))?;
    match counted.as_deref().and_then(Changes::from_bytes) {
        Some((changes, _)) if changes.attributes == 1 => Ok(()),
        _ => Err(Reason::NotCalled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mapped_executable_is_found_in_the_list_of_mappings() {
        for (line, expected) in [
            ("55d0-55d1 r-xp 00001000 fd:00 1234                       /usr/bin/a b", Some(("/usr/bin/a b", 1234))),
            ("55d0-55d1 r--p 00001000 fd:00 1234                       /usr/bin/a", None),
            ("7ffd-7ffe r-xp 00000000 00:00 0                          [vdso]", None),
            ("7ffd-7ffe r-xp 00000000 00:00 0", None),
            ("", None),
        ] {
            assert_eq!(mapped_program(line), expected.map(|(path, inode)| (path.into(), inode)), "{line}");
        }
        assert!(!mapped_programs(std::process::id()).is_empty());
    }

    #[test]
    fn each_algorithm_of_labels_has_its_bit_and_what_names_none_has_the_default_hashs() {
        use HashAlgorithm::{Sha1, Sha256, Sha512, Wp512};
        let bit = |algorithm: HashAlgorithm| 1_u32 << algorithm.id();
        for (name, rule, default, expected) in [
            ("a rule", Some(vec![Sha256, Sha512]), Sha256, bit(Sha256) | bit(Sha512) | 0xff80_0000),
            ("a rule without the default hash", Some(vec![Sha512]), Sha256, bit(Sha512)),
        ] {
            let labels = WritableLabels::new(rule.map(|rule| rule.into_iter().collect()), default);
            assert_eq!((label_bits(labels), labels.by_rule()), (expected, true), "{name}");
        }
        let computed = WritableLabels::new(None, Sha256);
        assert!(!computed.by_rule());
        assert_eq!(label_bits(computed) & (bit(Sha1) | bit(Wp512) | 1 << NO_ALGORITHM), bit(Sha1) | 1 << NO_ALGORITHM);
    }

    #[test]
    fn a_verdict_has_what_passed_before_in_the_same_state_and_says_whether_a_change_may_be_under_way() {
        let stat = rustix::fs::stat("/proc/self/exe").unwrap();
        let changes = Changes { content: 1, attributes: 2 };
        let fresh = Look { changes, unsettled: false, before: None, epoch: 3 };
        let before = fresh.verdict(Bits::EXEC, &stat, true);
        let unsettled = Look { unsettled: true, ..fresh }.verdict(Bits::EXEC, &stat, true);
        let earlier = |verdict: Verdict| Verdict { altered: (0, 0), ..verdict };
        let both = Bits::EXEC.and(Bits::OPEN);
        for (name, before, now, stamped, expected) in [
            ("the first", None, fresh, true, Bits::OPEN.and(Bits::STAMPED)),
            ("times tell nothing", None, Look { unsettled: true, ..fresh }, false, Bits::OPEN),
            ("as before", Some(before), fresh, true, both.and(Bits::STAMPED)),
            ("a new name", Some(earlier(before)), fresh, true, both.and(Bits::STAMPED)),
            ("another policy", Some(before), Look { epoch: 4, ..fresh }, true, Bits::OPEN.and(Bits::STAMPED)),
            (
                "changed beneath an overlay",
                Some(Verdict { modified: (0, 0), ..before }),
                fresh,
                true,
                Bits::OPEN.and(Bits::STAMPED),
            ),
            (
                "changed",
                Some(before),
                Look { changes: Changes { content: 2, ..changes }, ..fresh },
                true,
                Bits::OPEN.and(Bits::STAMPED),
            ),
            (
                "a change was just counted",
                Some(before),
                Look { unsettled: true, ..fresh },
                true,
                both.and(Bits::STAMPED).and(Bits::UNSETTLED),
            ),
            (
                "attributes changed just now, while somebody was on his way to execute it",
                Some(Verdict { bits: before.bits.and(Bits::MMAP).and(Bits::EVERYBODY), ..before }),
                Look { unsettled: true, changes: Changes { attributes: 3, ..changes }, ..fresh },
                true,
                both.and(Bits::STAMPED).and(Bits::UNSETTLED),
            ),
            (
                "attributes changed",
                Some(before),
                Look { changes: Changes { attributes: 3, ..changes }, ..fresh },
                true,
                Bits::OPEN.and(Bits::STAMPED),
            ),
            (
                "what was for everybody, with what is not",
                Some(Verdict { bits: before.bits.and(Bits::EVERYBODY), ..before }),
                fresh,
                true,
                both.and(Bits::STAMPED),
            ),
            (
                "what lasts is for everybody",
                Some(Verdict { bits: before.bits.and(Bits::EVERYBODY).and(Bits::LASTING), ..before }),
                fresh,
                true,
                both.and(Bits::STAMPED).and(Bits::EVERYBODY).and(Bits::LASTING),
            ),
            ("that was never made", Some(unsettled), fresh, true, both.and(Bits::STAMPED)),
            ("that was made afterwards", Some(earlier(unsettled)), fresh, true, Bits::OPEN.and(Bits::STAMPED)),
        ] {
            assert_eq!(Look { before, ..now }.verdict(Bits::OPEN, &stat, stamped).bits, expected, "{name}");
        }
    }

    #[test]
    fn this_kernel_takes_the_programs_and_calls_them() {
        if let Some(reason) = foreseeable().first() {
            eprintln!("skipped: this_kernel_takes_the_programs_and_calls_them: {reason}");
            return;
        }
        let options = Options {
            on_death: OnDeath::Allow,
            pins: "/sys/fs/bpf/imara-test".into(),
            protect: false,
            software_tpm: 0,
        };
        let level2 = Level2::start(options).unwrap();
        for left_out in level2.left_out() {
            eprintln!("left out: {left_out}");
        }
        assert_eq!(level2.counts(), (0, 0));
    }
}
