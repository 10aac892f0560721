//! Level 2's part in the guard: which verdicts are put beside an inode, what the programs in the kernel refuse on which file
//! system, and what becomes of what they refused.

use super::superblocks::Superblock;
use super::{EXECUTED, Shared, lock};
use crate::hooks::bpf::{Bits, Force, Look, OnDeath, Refusal, Why};
use crate::opened::OpenedFile;
use crate::process;
use crate::sys::fanotify::{Mask, PermissionEvent};
use imara_engine::active_policy::appraises;
use imara_engine::appraise::Cause;
use imara_engine::audit::{AuditRecord, TaskIdentity};
use imara_engine::cache::InodeId;
use imara_engine::check::{Access, File, Hook, Left, Mode};
use imara_engine::evm::PORTABLE_TYPE;
use imara_engine::label_writes::WritableLabels;
use imara_engine::policy::{CompiledPolicy, FileFacts};
use imara_format::evm::{EvmMode, SECURITY_EVM};
use imara_format::hash::HashAlgorithm;
use imara_format::policy::{Action, Func, Rule};
use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// What the kernel loads for itself. At level 1 nobody asks.
pub(super) const LOADED: [Func; 4] =
    [Func::ModuleCheck, Func::FirmwareCheck, Func::KexecKernelCheck, Func::KexecInitramfsCheck];

/// What is asked of a file in the kernel, and the hooks of IMA that it stands for.
const USES: [(Bits, &[Func]); 7] = [
    (Bits::OPEN, &[Func::FileCheck]),
    (Bits::EXEC, &EXECUTED),
    (Bits::MMAP, &[Func::MmapCheck, Func::MmapCheckReqprot]),
    (Bits::MODULE, &[Func::ModuleCheck]),
    (Bits::FIRMWARE, &[Func::FirmwareCheck]),
    (Bits::KEXEC_IMAGE, &[Func::KexecKernelCheck]),
    (Bits::KEXEC_INITRAMFS, &[Func::KexecInitramfsCheck]),
];

const MAY_EXEC: u8 = 1;
const MAY_READ: u8 = 4;

/// Inodes of which something is remembered, at most.
const MOST: usize = 4096;

/// Why a file did not pass, and its path then.
type Failed = (Cause, Vec<u8>);

/// What level 2 has learned of inodes.
#[derive(Debug, Default)]
pub(super) struct Learned {
    /// Uses that were refused because nobody had asked about them.
    uses: RwLock<HashMap<InodeId, Bits>>,
    /// Why an inode did not pass for a use, and its path then.
    causes: Mutex<HashMap<(InodeId, u32), Failed>>,
    /// When everything was last asked again for what was learned.
    asked_again: Mutex<Option<Instant>>,
}

/// How long before level 2 refuses its verdicts are put already.
const BEFORE_REFUSING: Duration = Duration::from_millis(50);

/// Files in memory (memfd), which are on a tmpfs that nobody has mounted; what is mounted just now is taken for one, too.
const MEMORY: FileFacts<'_> =
    FileFacts { owner: 0, group: 0, fsmagic: 0x0102_1994, fsname: "tmpfs", fs_subtype: "", fsuuid: None };

/// What files of a file system are appraised for.
fn appraised_bits(policy: &CompiledPolicy, filesystem: &FileFacts<'_>) -> Bits {
    USES.iter()
        .filter(|(_, funcs)| appraises(policy, funcs, filesystem))
        .fold(Bits::NONE, |all, (bits, _)| all.and(*bits))
}

impl Shared {
    /// Has the programs in the kernel refuse what the policy and mode in force come to. With `anew` what was judged before must be
    /// judged again.
    pub(super) fn put_level2_in_force(&self, anew: bool) -> io::Result<()> {
        let Some(level2) = &self.level2 else {
            return Ok(());
        };
        let enforce = self.checker.mode() == Mode::Enforce && !self.ask_always.load(Ordering::SeqCst);
        if enforce && !level2.judges() {
            // What is executed or mapped meanwhile was opened before anybody put a verdict beside it.
            level2.begin_to_judge();
            self.ask_again_all()?;
            std::thread::sleep(BEFORE_REFUSING);
        }
        for superblock in self.superblocks.all() {
            self.refuse_on(&superblock)?;
        }
        let policy = self.checker.policy();
        let appraised =
            |func| policy.rules().iter().any(|rule| rule.action == Action::Appraise && rule.func == Some(func));
        let signed_modules_only =
            std::fs::read_to_string("/sys/module/module/parameters/sig_enforce").is_ok_and(|value| value.trim() == "Y");
        let force = Force {
            enforce,
            evm: self.checker.evm().is_some_and(|evm| evm.mode() != EvmMode::NONE),
            modules: appraised(Func::ModuleCheck) && !signed_modules_only,
            firmware: appraised(Func::FirmwareCheck),
            kexec: appraised(Func::KexecKernelCheck),
            elsewhere: if self.all { appraised_bits(&policy, &MEMORY).and(Bits::LABEL) } else { Bits::NONE },
            labels: self.checker.writable_labels(),
        };
        level2.put_in_force(&force, anew)
    }

    /// Has them refuse on one file system what its files are appraised for.
    pub(super) fn refuse_on(&self, superblock: &Superblock) -> io::Result<()> {
        let Some(level2) = &self.level2 else {
            return Ok(());
        };
        let policy = self.checker.policy();
        level2.watch(superblock.device, appraised_bits(&policy, &superblock.facts()).and(Bits::LABEL))
    }

    /// Which uses of a file must be judged when it is opened, because nobody can be asked later: what its name says, and what was
    /// refused before for want of a verdict.
    fn expected_uses(&self, file: &OpenedFile<'_>, policy: &CompiledPolicy) -> Bits {
        let learned = self.learned.uses.read().unwrap_or_else(PoisonError::into_inner);
        let learned = learned.get(&self.as_in_kernel(file.id())).copied().unwrap_or_default();
        if !LOADED.iter().any(|func| policy.wants(*func)) {
            return learned;
        }
        let path = file.path();
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let begins = |with: &[&str]| with.iter().any(|start| name.starts_with(start.as_bytes()));
        let ends = |with: &[&str]| with.iter().any(|end| name.ends_with(end.as_bytes()));
        let in_firmware = path.windows(10).any(|part| part == b"/firmware/");
        [
            (Bits::MODULE, ends(&[".ko", ".ko.xz", ".ko.gz", ".ko.zst"])),
            (Bits::FIRMWARE, in_firmware),
            (Bits::KEXEC_IMAGE, begins(&["vmlinu", "bzImage", "Image"])),
            (Bits::KEXEC_INITRAMFS, begins(&["initrd", "initramfs"])),
        ]
        .into_iter()
        .filter(|(_, expected)| *expected)
        .fold(learned, |all, (bits, _)| all.and(bits))
    }

    /// Puts beside the inode what the access that was just let through has passed, and what it passes ahead of being asked: the
    /// kernel maps and loads files without asking us. `judged` are the hooks that were asked.
    pub(super) fn put_verdict(
        &self,
        event: &PermissionEvent,
        file: &OpenedFile<'_>,
        access: &Access<'_>,
        look: &Look,
        judged: &[Hook],
    ) {
        let Some(level2) = &self.level2 else {
            return;
        };
        // Who can write now could do so without being counted.
        if access.writes || file.nobody_writes() == Some(false) {
            return;
        }
        let policy = self.checker.policy();
        let was_asked = |func: Func| judged.iter().any(|hook| hook.func == func);
        let executed = event.mask.contains(Mask::OPEN_EXEC);
        let mappable = file.mappable(&policy);
        let expected = self.expected_uses(file, &policy);
        let mut passed = Bits::NONE;
        for (bits, funcs) in USES {
            let func = funcs[0];
            let due = match bits {
                Bits::OPEN => event.mask.contains(Mask::OPEN),
                Bits::EXEC => executed,
                Bits::MMAP => mappable,
                _ => false,
            };
            if was_asked(func)
                || ((due || expected.contains(bits)) && self.passes_ahead(file.id(), access, bits, funcs))
            {
                passed = passed.and(bits);
            }
        }
        if self.checker.refuses_writers(file) {
            passed = passed.and(Bits::IMMUTABLE);
        }
        if self.checker.evm().is_some()
            && (self.checker.is_signed(file) || look.had(Bits::PORTABLE))
            && file
                .xattr(SECURITY_EVM)
                .is_ok_and(|label| label.as_deref().and_then(<[u8]>::first) == Some(&PORTABLE_TYPE))
        {
            passed = passed.and(Bits::PORTABLE);
        }
        if level2.on_death() == OnDeath::Refuse {
            // Those that it has passed before as well: for everybody is all of them or nothing.
            let uses = passed.and(look.kept(&file.stat));
            let asked: Vec<Func> = USES
                .iter()
                .filter(|(bits, _)| uses.contains(*bits))
                .flat_map(|(_, funcs)| funcs.iter().copied())
                .collect();
            if self.checker.left_to_do(&self.checker.policy(), file, self.checker.known(file).as_ref(), &asked)
                != Left::Something
            {
                passed = passed.and(Bits::EVERYBODY);
            }
        }
        if file.is_on_overlay() {
            passed = passed.and(Bits::BELOW);
        }
        // Should that fail the programs refuse, which tells it.
        let _ = level2.pass(event.file.as_fd(), look, passed, &file.stat, file.stamp_tells());
    }

    /// The inode as the programs name it: a btrfs shows stat(2) other devices, one for each subvolume. Of two subvolumes' inodes with
    /// one number what was learned last is taken for both; verdicts are beside each.
    fn as_in_kernel(&self, id: InodeId) -> InodeId {
        InodeId { device: self.superblocks.of(id.device).map_or(id.device, |superblock| superblock.device), ..id }
    }

    fn passes_ahead(&self, id: InodeId, access: &Access<'_>, bits: Bits, funcs: &[Func]) -> bool {
        let mask = if bits == Bits::EXEC || bits == Bits::MMAP { MAY_EXEC } else { MAY_READ };
        let mut causes = funcs.iter().filter_map(|func| self.checker.ahead(access, Hook { func: *func, mask }).err());
        let cause = causes.next();
        drop(causes);
        let failed = cause.map(|cause| (cause, access.file.path()));
        let id = self.as_in_kernel(id);
        let mut known = lock(&self.learned.causes);
        match failed {
            None => drop(known.remove(&(id, bits.number()))),
            Some(failed) => {
                if known.len() >= MOST {
                    known.clear();
                }
                known.insert((id, bits.number()), failed);
            }
        }
        cause.is_none()
    }

    /// A thread's life: records what the programs refuse, and has what nobody was asked about asked the next time.
    pub(super) fn tell_refusals(&self) {
        let Some(level2) = &self.level2 else {
            return;
        };
        while !self.stopping.load(Ordering::Relaxed) {
            level2.refusals(Duration::from_millis(500), |refusal| self.tell_refusal(refusal));
        }
    }

    fn tell_refusal(&self, refusal: &Refusal) {
        let id = InodeId { device: refusal.device, inode: refusal.inode };
        let known = lock(&self.learned.causes).get(&(id, refusal.asked.number())).cloned();
        let (known, path) = match known {
            Some((cause, path)) => (Some(cause), path),
            None => {
                let superblock = self.superblocks.of(refusal.device);
                let path = superblock.and_then(|superblock| superblock.path_of_inode(refusal.inode, &refusal.name));
                (None, path.unwrap_or_else(|| refusal.name.clone()))
            }
        };
        let (cause, detail) = match (refusal.why, known) {
            (Why::NotAsked | Why::NoVerdict, Some(cause)) => (cause, String::new()),
            (Why::Signed, _) => (Cause::Immutable, String::new()),
            (Why::Writers, _) => (Cause::Writers, refusal.why.words().into()),
            (Why::Protected | Why::EvmLabel | Why::PortableLabel, _) => (Cause::Protected, refusal.why.words().into()),
            (Why::LabelDenied | Why::LabelUnavailable, _) => self.refused_label(refusal),
            (why, _) => (Cause::NoVerdict, why.words().into()),
        };
        // Whatever it lacks: the kernel has one cause for all of that.
        let (cause, detail) = match refusal.by_mprotect {
            true if detail.is_empty() => (Cause::FailedMprotect, cause.words().into()),
            true => (Cause::FailedMprotect, detail),
            false => (cause, detail),
        };
        let func = match refusal.asked {
            Bits::LABEL => Func::SetxattrCheck,
            asked => USES.iter().find(|(bits, _)| *bits == asked).map_or(Func::FileCheck, |(_, funcs)| funcs[0]),
        };
        let task = process::credentials(refusal.thread)
            .ok()
            .map(|credentials| process::identity(refusal.thread, &credentials));
        // It may have ended meanwhile.
        let task = task.filter(|task| task.pid == refusal.process).unwrap_or_else(|| TaskIdentity {
            tid: refusal.thread,
            pid: refusal.process,
            uids: [refusal.uid; 4],
            command: refusal.command.clone(),
            ..TaskIdentity::default()
        });
        let counters = &self.checker.counters;
        counters.failed.fetch_add(1, Ordering::Relaxed);
        counters.denied.fetch_add(1, Ordering::Relaxed);
        self.checker.audit_sink().record(AuditRecord::Data {
            func,
            cause,
            detail,
            task,
            path,
            inode: id,
            rule: self.label_rule(refusal),
            denied: true,
            fixed: false,
        });
        match refusal.why {
            Why::NotAsked | Why::NoVerdict if known.is_none() && refusal.asked != Bits::OPEN => {
                self.learn(id, refusal.asked);
                self.ask_again_soon();
            }
            // It was judged and has failed, as the record says; another label has it judged anew.
            Why::NotAsked | Why::NoVerdict if known.is_some() => {}
            // Whatever undid the verdict, the kernel may have been told not to ask.
            Why::NotAsked | Why::NoVerdict | Why::Changed | Why::OtherEpoch => self.ask_again_soon(),
            Why::Writers
            | Why::Signed
            | Why::NotWatched
            | Why::NoFile
            | Why::GuardDead
            | Why::Protected
            | Why::EvmLabel
            | Why::PortableLabel
            | Why::LabelDenied
            | Why::LabelUnavailable => {}
        }
    }

    /// The rule by which a label was not written.
    fn label_rule(&self, refusal: &Refusal) -> Option<usize> {
        let of_labels = |rule: &Rule| rule.func == Some(Func::SetxattrCheck);
        (refusal.why == Why::LabelDenied).then(|| self.checker.policy().rules().iter().position(of_labels)).flatten()
    }

    /// Why a label was not written. Another policy may have come into force since.
    fn refused_label(&self, refusal: &Refusal) -> (Cause, String) {
        let default = self.checker.log().hash();
        let rule = (refusal.why == Why::LabelDenied).then(|| self.checker.policy().setxattr_algorithms());
        let labels = WritableLabels::new(rule.map(Option::unwrap_or_default), default);
        labels.cause(HashAlgorithm::from_id(refusal.algorithm).unwrap_or(default))
    }

    /// From now on this use is judged when the file is opened.
    fn learn(&self, id: InodeId, used: Bits) {
        let mut uses = self.learned.uses.write().unwrap_or_else(PoisonError::into_inner);
        if uses.len() >= MOST {
            uses.clear();
        }
        let known = uses.entry(id).or_default();
        *known = known.and(used);
    }

    /// Has everything asked about again; not more often than once a second.
    fn ask_again_soon(&self) {
        let mut last = lock(&self.learned.asked_again);
        if last.is_none_or(|last| last.elapsed() > Duration::from_secs(1)) {
            *last = Some(Instant::now());
            drop(last);
            self.wish_to_ask_again();
        }
    }
}
