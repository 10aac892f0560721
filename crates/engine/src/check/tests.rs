//! Every step, on a file in memory.

mod busy_list;
mod label_update;
mod late_labels;
mod verity;

use super::steps::ATTEMPTS;
use super::*;
use crate::appraise::Cause;
use crate::cache::Stamp;
use crate::crypto;
use crate::explain::User;
use crate::measure::{MeasureError, Store};
use crate::policy::FileFacts;
use imara_format::hash::Digest;
use imara_format::label;
use imara_format::measurement_list::Reader;
use imara_format::policy::{Policy, Target};
use imara_format::trace::LabelFacts;
use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Mutex;

/// A file in memory.
struct Fake {
    content: RefCell<Vec<u8>>,
    label: RefCell<Option<Vec<u8>>>,
    stamp: Cell<Stamp>,
    writers: Cell<bool>,
    broken: Cell<bool>,
    hashed: Cell<u32>,
    /// How often its attributes change while it is hashed.
    unsteady: Cell<u32>,
    verity: Cell<Option<Digest>>,
    /// Whether its file system takes no changes, and whether its label is late for that.
    frozen: Cell<bool>,
    late: Cell<bool>,
}

impl Fake {
    fn new(content: &[u8]) -> Self {
        Self {
            content: RefCell::new(content.to_vec()),
            label: RefCell::default(),
            stamp: Cell::new(Stamp { size: content.len() as u64, modified: 1, changed: 1 }),
            writers: Cell::new(false),
            broken: Cell::new(false),
            hashed: Cell::new(0),
            unsteady: Cell::new(0),
            verity: Cell::default(),
            frozen: Cell::new(false),
            late: Cell::new(false),
        }
    }

    fn change(&self, content: &[u8], when: i128) {
        *self.content.borrow_mut() = content.to_vec();
        self.stamp.set(Stamp { size: content.len() as u64, modified: when, changed: when });
    }

    fn label_with_digest(&self) {
        let digest = crypto::hash(HashAlgorithm::Sha256, &[&self.content.borrow()]).unwrap();
        *self.label.borrow_mut() = Some(label::encode_digest(&digest));
    }
}

impl File for Fake {
    fn id(&self) -> InodeId {
        InodeId { device: 1, inode: 1 }
    }
    fn stamp(&self) -> io::Result<Stamp> {
        Ok(self.stamp.get())
    }
    fn facts(&self) -> FileFacts<'_> {
        FileFacts { owner: 0, group: 0, fsmagic: 0xef53, fsname: "ext4", fs_subtype: "", fsuuid: None }
    }
    fn xattr(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.label.borrow().clone().filter(|_| name == "security.ima"))
    }
    fn set_xattr(&self, _: &str, value: &[u8]) -> io::Result<()> {
        if self.frozen.get() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        *self.label.borrow_mut() = Some(value.to_vec());
        Ok(())
    }
    fn digest(&self, algorithm: HashAlgorithm) -> io::Result<Digest> {
        self.hashed.set(self.hashed.get() + 1);
        if let Some(left) = self.unsteady.get().checked_sub(1) {
            self.unsteady.set(left);
            self.stamp.set(Stamp { changed: self.stamp.get().changed + 1, ..self.stamp.get() });
        }
        if self.broken.get() {
            return Err(io::Error::other("the disk is gone"));
        }
        crypto::hash(algorithm, &[&self.content.borrow()])
            .map_err(|error| io::Error::new(io::ErrorKind::Unsupported, error))
    }
    fn verity_digest(&self) -> io::Result<Option<Digest>> {
        Ok(self.verity.get())
    }
    fn path(&self) -> Vec<u8> {
        b"/a b".to_vec()
    }
    fn nobody_writes(&self) -> Option<bool> {
        Some(!self.writers.get())
    }
    fn writes_wait(&self) -> bool {
        self.frozen.get()
    }
    fn label_is_late(&self) -> bool {
        self.late.get()
    }
    fn times_tell(&self) -> bool {
        true
    }
}

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<(Vec<u8>, bool)>>);

impl Store for Memory {
    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let mut list = self.0.lock().unwrap();
        if list.1 {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        list.0.extend(record);
        Ok(())
    }
}

impl Memory {
    fn paths(&self) -> Vec<String> {
        let bytes = self.0.lock().unwrap().0.clone();
        let mut reader = Reader::new(&bytes);
        let mut paths = Vec::new();
        while let Some(record) = reader.next_record().unwrap() {
            let kind = if record.is_violation() { "violation " } else { "" };
            paths.push(format!("{kind}{}", String::from_utf8_lossy(record.path().unwrap_or(b"?"))));
        }
        paths
    }
}

#[derive(Clone, Default)]
struct Records(Arc<Mutex<Vec<AuditRecord>>>);

impl AuditSink for Records {
    fn record(&self, record: AuditRecord) {
        self.0.lock().unwrap().push(record);
    }
}

struct Bench {
    checker: Checker,
    list: Memory,
    records: Records,
}

fn bench(policy: &str, mode: Mode) -> Bench {
    let policy = CompiledPolicy::new(Policy::parse(policy.as_bytes(), &Target::guard()).unwrap());
    let (list, records) = (Memory::default(), Records::default());
    let log = MeasurementLog::new(Box::new(list.clone()), None, HashAlgorithm::Sha256, 10).unwrap();
    let template = Template::built_in("ima-sig").unwrap().clone();
    let audit = Box::new(records.clone());
    let checker = Checker::new(policy, Keyring::new(), Arc::new(log), template, mode, audit);
    Bench { checker, list, records }
}

const NOW: i128 = 1_000_000_000_000;
const EXECUTE: [Hook; 1] = [Hook { func: Func::BprmCheck, mask: 1 }];

impl Bench {
    fn check(&self, file: &Fake, uid: u32, hooks: &[Hook]) -> Verdict {
        let task = User(uid);
        self.checker.check(&Access { file, task: &task, created: false, writes: false, now: NOW }, hooks)
    }

    fn left(&self, file: &Fake, func: Func) -> Left {
        self.checker.left_to_do(&self.checker.policy(), file, self.checker.known(file).as_ref(), &[func])
    }

    fn done(&self, file: &Fake) -> bool {
        self.left(file, Func::BprmCheck) == Left::Nothing
    }
}

#[derive(Default)]
struct Traced(Mutex<Vec<imara_format::trace::Event>>);

impl TraceSink for Traced {
    fn started(&self) -> i128 {
        NOW - 5
    }
    fn record(&self, _: &ActivePolicy, event: imara_format::trace::Event) {
        self.0.lock().unwrap().push(event);
    }
}

#[test]
fn a_trace_tells_each_hook_that_was_asked_and_what_came_of_it() {
    let bench = bench("measure func=BPRM_CHECK\nappraise func=BPRM_CHECK", Mode::Enforce);
    let trace = Arc::new(Traced::default());
    let file = Fake::new(b"x");
    assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Deny(Cause::MissingHash));
    bench.checker.set_trace(Some(trace.clone()));
    assert_eq!(bench.check(&file, 7, &EXECUTE), Verdict::Deny(Cause::MissingHash));
    file.label_with_digest();
    file.change(b"y", 2);
    bench.checker.set_mode(Mode::Log);
    assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Allow);
    bench.checker.set_mode(Mode::Enforce);
    file.label_with_digest();
    file.change(b"y", 3);
    let hooks = [EXECUTE[0], Hook { func: Func::CredsCheck, mask: 1 }];
    assert_eq!(bench.check(&file, 0, &hooks), Verdict::Allow);
    assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Allow);
    bench.checker.set_trace(None);
    assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Allow);

    let events = trace.0.lock().unwrap();
    let label = |content: &[u8]| {
        let digest = crypto::hash(HashAlgorithm::Sha256, &[content]).unwrap();
        LabelFacts::Some(label::encode_digest(&digest))
    };
    let digest = |content: &[u8]| Some(crypto::hash(HashAlgorithm::Sha256, &[content]).unwrap());
    let rules = (Some(0), Some(1));
    for (index, name, func, rules, label, digest, cause, denied, entry) in [
        (0, "refused", Func::BprmCheck, rules, LabelFacts::None, digest(b"x"), Some("missing-hash"), true, false),
        (1, "logged", Func::BprmCheck, rules, label(b"x"), digest(b"y"), Some("invalid-hash"), false, true),
        (2, "passed, listed before", Func::BprmCheck, rules, label(b"y"), digest(b"y"), None, false, false),
        (3, "no rule", Func::CredsCheck, (None, None), LabelFacts::NotRead, digest(b"y"), None, false, false),
        (4, "known", Func::BprmCheck, rules, LabelFacts::NotRead, digest(b"y"), None, false, false),
    ] {
        let event = &events[index];
        assert_eq!((event.func, event.mask, event.time), (func, 1, 5), "{name}");
        assert_eq!((event.measured, event.appraised), rules, "{name}");
        assert_eq!((&event.label, event.digest), (&label, digest), "{name}");
        assert_eq!((event.cause.as_deref(), event.denied, event.entry), (cause, denied, entry), "{name}");
        assert_eq!(event.path, b"/a b", "{name}");
    }
    assert_eq!(events.len(), 5, "nothing after it has ended");
    assert_eq!((events[0].subject.uid, events[0].subject.can_setuid), (7, false));
    assert_eq!((events[1].subject.uid, events[1].subject.can_setuid), (0, true));
}

#[test]
fn a_file_is_measured_before_it_is_refused() {
    let bench = bench("measure func=BPRM_CHECK\nappraise func=BPRM_CHECK", Mode::Enforce);
    let file = Fake::new(b"x");
    assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Deny(Cause::MissingHash));
    assert_eq!(bench.list.paths(), ["/a_b"]);
    assert!(matches!(bench.records.0.lock().unwrap()[0], AuditRecord::Data { denied: true, .. }));
    assert!(!bench.done(&file));
}

#[test]
fn a_known_state_is_not_hashed_again_and_a_change_is() {
    let bench = bench("measure func=BPRM_CHECK\nappraise func=BPRM_CHECK", Mode::Enforce);
    let file = Fake::new(b"x");
    file.label_with_digest();
    for _ in 0..3 {
        assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Allow);
    }
    assert_eq!(file.hashed.get(), 1);
    assert!(bench.done(&file));
    file.change(b"y", 2);
    assert!(!bench.done(&file), "another state");
    assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Deny(Cause::InvalidHash));
    assert_eq!(bench.list.paths().len(), 2);
}

#[test]
fn what_changed_a_moment_ago_or_has_a_writer_is_judged_each_time() {
    const READ: [Hook; 1] = [Hook { func: Func::FileCheck, mask: 4 }];
    for (name, changed, writers) in [("just changed", NOW - 1, false), ("open for writing", 1, true)] {
        let bench = bench("appraise", Mode::Enforce);
        let file = Fake::new(b"x");
        file.label_with_digest();
        file.change(b"x", changed);
        file.writers.set(writers);
        for _ in 0..3 {
            assert_eq!(bench.check(&file, 0, &READ), Verdict::Allow, "{name}");
        }
        assert_eq!(file.hashed.get(), 3, "{name}");
        assert!(!bench.done(&file), "{name}");
        let executed = if writers { Verdict::Deny(Cause::Writers) } else { Verdict::Allow };
        assert_eq!(bench.check(&file, 0, &EXECUTE), executed, "{name}: nobody may change what is run");
    }
}

#[test]
fn a_verdict_is_for_everybody_only_when_nobody_could_ask_for_more() {
    let bench = bench("appraise func=BPRM_CHECK uid=0", Mode::Enforce);
    let file = Fake::new(b"x");
    assert_eq!(bench.check(&file, 1000, &EXECUTE), Verdict::Allow);
    assert!(!bench.done(&file), "root has not asked");
    assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Deny(Cause::MissingHash));
    file.label_with_digest();
    file.change(b"x", 2);
    assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Allow);
    assert!(bench.done(&file));
    assert_eq!(bench.left(&file, Func::FileCheck), Left::NeverAnything);
}

#[test]
fn each_mode_does_what_its_name_says() {
    for (mode, verdict, records, fixed) in [
        (Mode::Enforce, Verdict::Deny(Cause::MissingHash), 1, false),
        (Mode::Log, Verdict::Allow, 1, false),
        (Mode::Fix, Verdict::Allow, 1, true),
        (Mode::Off, Verdict::Allow, 0, false),
    ] {
        let bench = bench("appraise func=BPRM_CHECK", mode);
        let file = Fake::new(b"x");
        assert_eq!(bench.check(&file, 0, &EXECUTE), verdict, "{}", mode.name());
        assert_eq!(bench.records.0.lock().unwrap().len(), records, "{}", mode.name());
        assert_eq!(file.label.borrow().is_some(), fixed, "{}", mode.name());
        assert_eq!(Mode::from_name(mode.name()), Some(mode));
    }
}

#[test]
fn trouble_is_refused_in_enforce_mode_and_passes_in_log_mode() {
    for (mode, collect, store) in [
        (Mode::Enforce, Verdict::Deny(Cause::CollectFailed), Verdict::Deny(Cause::MeasureFailed)),
        (Mode::Log, Verdict::Allow, Verdict::Allow),
    ] {
        let bench = bench("measure func=BPRM_CHECK", mode);
        let file = Fake::new(b"x");
        file.broken.set(true);
        assert_eq!(bench.check(&file, 0, &EXECUTE), collect);
        file.broken.set(false);
        bench.list.0.lock().unwrap().1 = true;
        assert_eq!(bench.check(&file, 0, &EXECUTE), store);
        bench.list.0.lock().unwrap().1 = false;
        assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Allow, "what was not listed is not taken for known");
        assert_eq!(bench.list.paths(), ["/a_b"]);
    }
}

#[test]
fn one_access_is_hashed_and_listed_once_however_many_hooks_it_stands_for() {
    let bench = bench("measure\nappraise\naudit", Mode::Enforce);
    let file = Fake::new(b"x");
    file.label_with_digest();
    // Not settled, so that the cache serves nobody.
    file.change(b"x", NOW - 1);
    let hooks = [Func::FileCheck, Func::MmapCheck, Func::BprmCheck].map(|func| Hook { func, mask: 1 });
    assert_eq!(bench.check(&file, 0, &hooks), Verdict::Allow);
    assert_eq!((file.hashed.get(), bench.list.paths().len(), bench.records.0.lock().unwrap().len()), (1, 1, 1));
    file.writers.set(true);
    assert_eq!(bench.check(&file, 0, &hooks), Verdict::Deny(Cause::Writers), "reading passes, running does not");
}

#[test]
fn a_program_whose_attributes_change_while_it_is_judged_is_judged_again_and_refused_if_they_never_rest() {
    for (changes, verdict) in [
        (1, Verdict::Allow),
        (ATTEMPTS - 1, Verdict::Allow),
        (ATTEMPTS, Verdict::Deny(Cause::Writers)),
        (u32::MAX, Verdict::Deny(Cause::Writers)),
    ] {
        let bench = bench("measure func=BPRM_CHECK\nappraise func=BPRM_CHECK", Mode::Enforce);
        let file = Fake::new(b"x");
        file.label_with_digest();
        file.unsteady.set(changes);
        assert_eq!(bench.check(&file, 0, &EXECUTE), verdict, "{changes}");
        assert_eq!(bench.list.paths().len(), 1, "{changes}: measured once");
        assert_eq!(bench.records.0.lock().unwrap().len(), usize::from(verdict != Verdict::Allow), "{changes}");
        // Whoever can write makes it fail at once.
        let file = Fake::new(b"y");
        file.label_with_digest();
        file.unsteady.set(changes);
        file.writers.set(true);
        assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Deny(Cause::Writers), "{changes}");
        assert_eq!(file.hashed.get(), 1, "{changes}");
    }
}

#[test]
fn a_measured_read_of_a_file_open_for_writing_is_a_violation() {
    let bench = bench("measure func=FILE_CHECK", Mode::Enforce);
    let file = Fake::new(b"x");
    file.writers.set(true);
    for _ in 0..3 {
        assert_eq!(bench.check(&file, 0, &[Hook { func: Func::FileCheck, mask: 4 }]), Verdict::Allow);
    }
    assert_eq!(bench.list.paths(), ["violation /a_b", "/a_b"], "once for each writer");
    assert_eq!(bench.checker.log().counts().violations, 1);
    bench.checker.changed(file.id(), true);
    assert_eq!(bench.check(&file, 0, &[Hook { func: Func::FileCheck, mask: 4 }]), Verdict::Allow);
    assert_eq!(bench.checker.log().counts().violations, 2);
}

#[test]
fn the_same_entry_is_listed_once_for_each_pcr() {
    let bench = bench("measure func=BPRM_CHECK uid=0\nmeasure func=BPRM_CHECK pcr=11", Mode::Enforce);
    let file = Fake::new(b"x");
    for uid in [0, 1000, 0, 1000] {
        assert_eq!(bench.check(&file, uid, &EXECUTE), Verdict::Allow);
    }
    assert_eq!(bench.list.paths().len(), 2);
    assert!(bench.done(&file));
}

#[test]
fn a_rule_that_audits_makes_one_record() {
    let bench = bench("audit func=BPRM_CHECK", Mode::Enforce);
    let file = Fake::new(b"x");
    for _ in 0..3 {
        assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Allow);
    }
    assert_eq!(bench.records.0.lock().unwrap().len(), 1);
}

#[test]
fn a_label_of_an_algorithm_that_nobody_can_compute_fails() {
    let bench = bench("appraise func=BPRM_CHECK", Mode::Enforce);
    let file = Fake::new(b"x");
    let mut label = vec![4, HashAlgorithm::Wp512.id()];
    label.extend([0; 64]);
    *file.label.borrow_mut() = Some(label);
    assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Deny(Cause::InvalidHash));
}

#[test]
fn a_rules_hash_algorithms_are_kept_to() {
    let bench = bench("appraise func=BPRM_CHECK appraise_algos=sha512", Mode::Enforce);
    let file = Fake::new(b"x");
    file.label_with_digest();
    assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Deny(Cause::DeniedHashAlgorithm));
    assert!(!bench.done(&file));
}

#[test]
fn a_label_that_the_policy_does_not_let_be_written_does_not_pass_where_it_was_written_since() {
    let policy = "appraise func=BPRM_CHECK\nappraise func=SETXATTR_CHECK appraise_algos=sha512";
    for (mode, refused) in [(Mode::Enforce, true), (Mode::Log, false)] {
        let bench = bench(policy, mode);
        let file = Fake::new(b"x");
        file.label_with_digest();
        let id = file.id();
        let noticed = || {
            bench.checker.changed(id, false);
            assert!(bench.checker.attributes_noticed(id, true));
        };
        let denied = Verdict::Deny(Cause::DeniedHashAlgorithm);
        assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Allow, "it was there before");
        noticed();
        assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Allow, "its mode was changed");
        bench.checker.attributes_changed(&file, None, NOW);
        assert!(bench.records.0.lock().unwrap().is_empty());
        // Another content with its label, before and after somebody has looked.
        file.change(b"y", 2);
        file.label_with_digest();
        noticed();
        assert_eq!(bench.check(&file, 0, &EXECUTE) == denied, refused);
        bench.checker.attributes_changed(&file, None, NOW);
        bench.checker.attributes_changed(&file, None, NOW);
        assert_eq!(bench.check(&file, 0, &EXECUTE) == denied, refused, "nor the second time");
        assert!(!bench.done(&file));
        let told = bench.records.0.lock().unwrap().clone();
        let funcs: Vec<Func> = told
            .iter()
            .map(|record| match record {
                AuditRecord::Data { func, cause: Cause::DeniedHashAlgorithm, .. } => *func,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(funcs, [Func::BprmCheck, Func::SetxattrCheck, Func::BprmCheck], "told once");
        // What is allowed is good at once.
        let digest = crypto::hash(HashAlgorithm::Sha512, &[b"y"]).unwrap();
        *file.label.borrow_mut() = Some(label::encode_digest(&digest));
        noticed();
        assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Allow);
        bench.checker.attributes_changed(&file, None, NOW);
        assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Allow);
    }
    // Without such a rule nobody looks at files that nobody uses.
    let bench = bench("appraise func=BPRM_CHECK", Mode::Enforce);
    assert!(!bench.checker.attributes_noticed(InodeId { device: 1, inode: 1 }, true));
}

#[test]
fn a_label_that_nobody_can_compute_is_told_as_such_when_it_is_written_to_a_file_in_use() {
    let bench = bench("appraise func=BPRM_CHECK", Mode::Enforce);
    let file = Fake::new(b"x");
    file.label_with_digest();
    assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Allow);
    for algorithm in [HashAlgorithm::Sha512, HashAlgorithm::Wp512] {
        *file.label.borrow_mut() = Some([&[4, algorithm.id()][..], &[0; 64]].concat());
        assert!(bench.checker.attributes_noticed(file.id(), true), "{algorithm}");
        bench.checker.attributes_changed(&file, None, NOW);
    }
    let told = bench.records.0.lock().unwrap().clone();
    assert!(
        matches!(
            &told[..],
            [AuditRecord::Data {
                func: Func::SetxattrCheck,
                cause: Cause::UnavailableHashAlgorithm,
                rule: None,
                denied: false,
                ..
            }]
        ),
        "{told:?}"
    );
}

#[test]
fn what_changed_within_the_tick_or_by_a_clock_that_was_set_back_is_judged_anew() {
    let tick = crate::cache::SETTLED.as_nanos().cast_signed();
    for (what, changed, hashed) in [
        ("long ago", 1, 1),
        ("just before the tick", NOW - tick - 1, 1),
        // Another change could get the same time.
        ("within the tick", NOW - tick, 3),
        ("now", NOW, 3),
        ("when the clock was an hour ahead", NOW + 3_600_000_000_000, 3),
    ] {
        let bench = bench("measure func=BPRM_CHECK", Mode::Enforce);
        let file = Fake::new(b"x");
        file.change(b"x", changed);
        for _ in 0..3 {
            assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Allow, "{what}");
        }
        assert_eq!(file.hashed.get(), hashed, "{what}");
        // Whoever sets the clock back, so that a change gets the time of the last one, is told of all the same.
        *file.content.borrow_mut() = b"y".to_vec();
        bench.checker.changed(file.id(), true);
        let _ = bench.check(&file, 0, &EXECUTE);
        assert_eq!(file.hashed.get(), hashed + 1, "{what}");
    }
}

#[test]
fn what_was_judged_by_other_keys_is_judged_anew_and_not_hashed_anew() {
    let bench = bench("measure func=BPRM_CHECK\nappraise func=BPRM_CHECK", Mode::Enforce);
    let file = Fake::new(b"x");
    file.label_with_digest();
    assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Allow);
    assert!(bench.done(&file));
    let digest = crypto::hash(HashAlgorithm::Sha256, &[b"x"]).unwrap();
    let blocked =
        || Keyring::new().with_block_list([imara_format::block_list::Blocked::Content(digest)].into_iter().collect());
    let (before, _) = bench.checker.replace_keys(Arc::new(blocked()), None);
    assert!(!bench.done(&file));
    assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Deny(Cause::Blocked));
    let _ = bench.checker.replace_keys(before, None);
    assert_eq!(bench.check(&file, 0, &EXECUTE), Verdict::Allow);
    // The file, and that its content was on the block list.
    assert_eq!((file.hashed.get(), bench.list.paths().len()), (1, 2));
}

#[test]
fn a_verdict_by_keys_that_were_replaced_meanwhile_is_not_kept() {
    /// Keys are replaced while EVM and label are looked at.
    struct Swaps<'a>(&'a Fake, &'a Checker);
    impl File for Swaps<'_> {
        fn id(&self) -> InodeId {
            self.0.id()
        }
        fn stamp(&self) -> io::Result<Stamp> {
            self.0.stamp()
        }
        fn facts(&self) -> FileFacts<'_> {
            self.0.facts()
        }
        fn xattr(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
            self.0.xattr(name)
        }
        fn set_xattr(&self, name: &str, value: &[u8]) -> io::Result<()> {
            self.0.set_xattr(name, value)
        }
        fn digest(&self, algorithm: HashAlgorithm) -> io::Result<Digest> {
            let _ = self.1.replace_keys(Arc::new(Keyring::new()), None);
            self.0.digest(algorithm)
        }
        fn path(&self) -> Vec<u8> {
            self.0.path()
        }
        fn nobody_writes(&self) -> Option<bool> {
            self.0.nobody_writes()
        }
        fn times_tell(&self) -> bool {
            true
        }
    }
    let bench = bench("appraise func=BPRM_CHECK", Mode::Enforce);
    let file = Fake::new(b"x");
    file.label_with_digest();
    let swaps = Swaps(&file, &bench.checker);
    let access = Access { file: &swaps, task: &User(0), created: false, writes: false, now: NOW };
    assert_eq!(bench.checker.check(&access, &EXECUTE), Verdict::Allow);
    assert!(!bench.done(&file) && bench.checker.cache().is_empty());
}
