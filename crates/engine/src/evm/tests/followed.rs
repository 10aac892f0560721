//! EVM as it runs: what it writes, and when it follows a change that it saw only afterwards.

use super::*;
use crate::audit::TaskIdentity;
use crate::cache::{InodeId, Stamp};
use crate::check::File;
use crate::evm::mode::ModeError;
use crate::evm::recorded::Change;
use crate::evm::running::{Changed, Keeper, NoKeeper};
use crate::policy::FileFacts;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex};

/// A file in memory, of which EVM is asked.
struct Fake {
    now: RefCell<Snapshot>,
    read_only: Cell<bool>,
}

impl Fake {
    fn new(snapshot: Snapshot) -> Self {
        Self { now: RefCell::new(snapshot), read_only: Cell::new(false) }
    }

    fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.now.borrow_mut());
    }

    fn label(&self) -> EvmLabel {
        self.now.borrow().label.clone()
    }
}

impl File for Fake {
    fn id(&self) -> InodeId {
        InodeId { device: 1, inode: self.now.borrow().inode.inode }
    }
    fn stamp(&self) -> io::Result<Stamp> {
        Ok(Stamp::default())
    }
    fn facts(&self) -> FileFacts<'_> {
        FileFacts { owner: 0, group: 0, fsmagic: 0xef53, fsname: "ext4", fs_subtype: "", fsuuid: None }
    }
    fn xattr(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let now = self.now.borrow();
        Ok(if name == SECURITY_EVM { now.label.value().map(<[u8]>::to_vec) } else { now.xattrs.get(name).cloned() })
    }
    fn set_xattr(&self, name: &str, value: &[u8]) -> io::Result<()> {
        if self.read_only.get() {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let mut now = self.now.borrow_mut();
        match name {
            SECURITY_EVM => now.label = EvmLabel::Value(value.to_vec()),
            name => drop(now.xattrs.insert(name.to_owned(), value.to_vec())),
        }
        Ok(())
    }
    fn remove_xattr(&self, name: &str) -> io::Result<()> {
        assert_eq!(name, SECURITY_EVM);
        self.now.borrow_mut().label = EvmLabel::Absent;
        Ok(())
    }
    fn inode(&self) -> io::Result<InodeMetadata> {
        Ok(self.now.borrow().inode)
    }
    fn generation(&self) -> io::Result<u32> {
        Ok(self.now.borrow().inode.generation)
    }
    fn fs_uuid(&self) -> io::Result<[u8; 16]> {
        Ok(self.now.borrow().fs_uuid)
    }
    fn place(&self) -> io::Result<Place> {
        Ok(self.now.borrow().place)
    }
    fn digest(&self, _: HashAlgorithm) -> io::Result<Digest> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn path(&self) -> Vec<u8> {
        b"/f".to_vec()
    }
    fn nobody_writes(&self) -> Option<bool> {
        Some(true)
    }
    fn times_tell(&self) -> bool {
        true
    }
}

struct FileKey;

impl KeySource for FileKey {
    fn load(&self) -> Result<Arc<dyn HmacKey>, ModeError> {
        Ok(Arc::new(key("hmac32.bin")))
    }
}

/// Inodes in memory.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<HashSet<(u64, u32)>>>);

impl Memory {
    fn evict_all(&self) {
        self.0.lock().unwrap().clear();
    }

    fn name(file: &dyn File) -> (u64, u32) {
        (file.id().inode, file.generation().unwrap())
    }
}

impl Keeper for Memory {
    fn is_kept(&self, file: &dyn File) -> bool {
        self.0.lock().unwrap().contains(&Self::name(file))
    }

    fn keep(&self, file: &dyn File) -> bool {
        self.0.lock().unwrap().insert(Self::name(file));
        true
    }
}

fn evm(mode: &str) -> Evm {
    evm_with(mode, Box::new(Memory::default()))
}

fn evm_with(mode: &str, keeper: Box<dyn Keeper>) -> Evm {
    let evm = Evm::new(debian(KernelVersion::Latest), verdict_keys(), Box::new(FileKey)).with_keeper(keeper);
    evm.write_mode(mode.as_bytes()).unwrap();
    evm
}

fn named(state: &str) -> Fake {
    Fake::new(snapshot(&cases("evm/kernel_verdicts.json").into_iter().find(|case| case["state"] == state).unwrap()))
}

/// A file whose label verified, kept in memory since.
fn verified(evm: &Evm, state: &str) -> Fake {
    let file = named(state);
    assert!(evm.judge(&file, 0).status.passes());
    file
}

fn chmod(file: &Fake) {
    file.change(|now| now.inode.mode ^= 0o100);
}

#[test]
fn a_change_of_a_file_whose_label_was_good_is_followed_once_it_is_noticed() {
    let evm = evm("1");
    let file = verified(&evm, "good");
    let before = file.label();
    chmod(&file);
    let who = TaskIdentity { pid: 7, command: b"chmod".to_vec(), ..TaskIdentity::default() };
    let changed = evm.changed(&file, Some(&who), 5).unwrap();
    assert!(matches!(&changed, Changed::Followed(what) if what[0].attribute() == "mode"), "{changed:?}");
    assert_ne!(file.label(), before);
    assert_eq!(evm.look(&file).status, IntegrityStatus::Pass);
    // Its notices that come after it are about nothing.
    assert_eq!(evm.changed(&file, Some(&who), 6).unwrap(), Changed::Nothing);
    let record = evm.recorded().lookup(file.id()).unwrap();
    let expected = Change {
        when: 5,
        who: Some(who),
        what: vec![Difference::Mode { was: 0o100_644, is: 0o100_744 }],
        followed: true,
    };
    assert_eq!(record.changes, [expected]);
}

#[test]
fn a_check_that_comes_before_the_notice_follows_the_change_itself() {
    let evm = evm("1");
    let file = verified(&evm, "good");
    chmod(&file);
    let judged = evm.judge(&file, 5);
    assert_eq!((judged.status, judged.wrote, judged.reason), (IntegrityStatus::Pass, true, None));
    // Who it was, the notice tells afterwards.
    let who = TaskIdentity { pid: 7, ..TaskIdentity::default() };
    assert_eq!(evm.changed(&file, Some(&who), 6).unwrap(), Changed::Nothing);
    assert_eq!(evm.recorded().lookup(file.id()).unwrap().changes[0].who, Some(who));
}

#[test]
fn what_was_never_seen_good_or_left_memory_is_not_made_good() {
    let memory = Memory::default();
    let keeping = evm_with("1", Box::new(memory.clone()));
    let not_keeping = evm_with("1", Box::new(NoKeeper));
    for (name, evm, prepare) in [
        ("never seen", &keeping, (|_: &Evm, _: &Fake, _: &Memory| ()) as fn(&Evm, &Fake, &Memory)),
        ("seen, and not kept in memory", &not_keeping, |evm, file, _| drop(evm.judge(file, 0))),
        ("kept, then out of memory", &keeping, |evm, file, memory| {
            assert!(evm.judge(file, 0).status.passes());
            memory.evict_all();
        }),
        ("kept, then forgotten", &keeping, |evm, file, _| {
            assert!(evm.judge(file, 0).status.passes());
            evm.recorded().forget(file.id());
        }),
    ] {
        let file = named("good");
        prepare(evm, &file, &memory);
        let before = file.label();
        chmod(&file);
        let changed = evm.changed(&file, None, 0).unwrap();
        assert!(matches!(changed, Changed::Nothing | Changed::Stale(_)), "{name}: {changed:?}");
        assert_eq!(evm.judge(&file, 0).status, IntegrityStatus::Fail, "{name}");
        assert_eq!(file.label(), before, "{name}");
        evm.recorded().clear();
    }
}

#[test]
fn another_file_in_the_inodes_place_is_not_followed() {
    let evm = evm("1");
    let file = verified(&evm, "good");
    file.change(|now| now.inode.generation += 1);
    assert!(matches!(evm.changed(&file, None, 0).unwrap(), Changed::Refused(..)));
    assert_eq!(evm.judge(&file, 0).status, IntegrityStatus::Fail);
    // Once it verifies by itself it begins anew, and is not taken for kept in memory.
    let other = named("good");
    other.change(|now| {
        now.inode.generation += 2;
        let (rules, key) = (debian(KernelVersion::Latest), key("hmac32.bin"));
        now.label = EvmLabel::Value(now.hmac_label(&rules, &key).unwrap());
    });
    assert!(evm.judge(&other, 0).status.passes());
    assert_eq!(evm.changed(&other, None, 0).unwrap(), Changed::Nothing);
}

#[test]
fn an_exchanged_label_speaks_for_itself() {
    let evm = evm("1");
    let file = verified(&evm, "good");
    chmod(&file);
    file.change(|now| now.label = EvmLabel::Value([&[2][..], &[9; 20]].concat()));
    assert!(matches!(evm.changed(&file, None, 0).unwrap(), Changed::Stale(_)));
    assert_eq!(evm.judge(&file, 0).status, IntegrityStatus::Fail);
}

#[test]
fn a_change_of_a_file_with_a_portable_signature_is_told_and_not_followed() {
    for mode in ["2", "3"] {
        let evm = evm(mode);
        let file = verified(&evm, "port");
        let before = file.label();
        chmod(&file);
        let changed = evm.changed(&file, None, 0).unwrap();
        assert!(matches!(changed, Changed::Refused(_, IntegrityStatus::PassImmutable)), "{changed:?}");
        assert_eq!(evm.changed(&file, None, 0).unwrap(), Changed::Nothing, "told once");
        assert_eq!(evm.judge(&file, 0).status, IntegrityStatus::FailImmutable);
        assert_eq!(file.label(), before);
        // Changed back, it is good again.
        chmod(&file);
        assert_eq!(evm.judge(&file, 0).status, IntegrityStatus::PassImmutable);
    }
}

#[test]
fn a_signature_of_type_3_becomes_an_hmac_or_goes_stale_as_in_the_kernel() {
    let evm_with_key = evm("3");
    let file = verified(&evm_with_key, "sig");
    assert_eq!(file.label().kind(), Some(HMAC_TYPE));
    chmod(&file);
    assert!(matches!(evm_with_key.changed(&file, None, 0).unwrap(), Changed::Followed(_)));

    let without = evm("2");
    let file = verified(&without, "sig");
    chmod(&file);
    assert!(matches!(without.changed(&file, None, 0).unwrap(), Changed::Stale(_)));
    assert_eq!(without.judge(&file, 0).status, IntegrityStatus::Fail);

    let file = named("sig");
    file.read_only.set(true);
    let judged = evm_with_key.judge(&file, 0);
    assert_eq!((judged.status, judged.wrote), (IntegrityStatus::Pass, false));
}

#[test]
fn the_label_goes_with_the_last_protected_attribute() {
    let evm = evm("1");
    let file = verified(&evm, "good");
    file.change(|now| now.xattrs.clear());
    assert!(matches!(evm.changed(&file, None, 0).unwrap(), Changed::Followed(_)));
    assert_eq!(file.label(), EvmLabel::Absent);
}

#[test]
fn imas_own_writes_are_followed_whatever_the_label_was_but_for_portable_signatures() {
    let evm_with_key = evm("1");
    for state in ["good", "bad", "nolabel", "empty", "sig_bad", "badtype"] {
        let file = named(state);
        assert!(evm_with_key.relabel(&file).unwrap(), "{state}");
        assert_eq!(evm_with_key.judge(&file, 0).status, IntegrityStatus::Pass, "{state}");
    }
    for state in ["port", "port_bad"] {
        assert!(!evm_with_key.relabel(&named(state)).unwrap(), "{state}");
    }
    assert!(!evm("2").relabel(&named("nolabel")).unwrap(), "no HMACs are made");
}

#[test]
fn in_fix_mode_every_change_is_followed() {
    let evm = evm("1");
    evm.set_fix(true);
    for state in ["bad", "nolabel", "sig_bad"] {
        let file = named(state);
        assert!(matches!(evm.changed(&file, None, 0).unwrap(), Changed::Followed(_)), "{state}");
        assert_eq!(evm.judge(&file, 0).status, IntegrityStatus::Pass, "{state}");
    }
    for state in ["good", "port", "none"] {
        let file = named(state);
        assert_eq!(evm.changed(&file, None, 0).unwrap(), Changed::Nothing, "{state}");
    }
    // It does not change what IMA is told.
    assert_eq!(evm.judge(&named("bad"), 0).status, IntegrityStatus::Fail);
}

#[test]
fn the_mode_and_the_list_can_be_written_to_until_they_are_locked() {
    let evm = Evm::new(debian(KernelVersion::Latest), Keyring::new(), Box::new(FileKey));
    assert_eq!(evm.judge(&named("bad"), 0).status, IntegrityStatus::Unknown);
    assert!(evm.hmac_key().is_none());
    assert_eq!(evm.write_mode(b"2"), Ok(EvmMode::X509));
    assert!(evm.write_xattrs(b"security.foo").is_ok());
    assert_eq!(evm.write_mode(b"1"), Ok(EvmMode::SETUP_COMPLETE | EvmMode::X509 | EvmMode::HMAC));
    assert_eq!(evm.write_mode(b"2").unwrap_err().errno(), "EPERM");
    assert!(evm.hmac_key().is_some());
    // The list has a lock of its own.
    assert!(evm.write_xattrs(b"security.bar").is_ok());
    assert!(evm.write_xattrs(b".").is_ok());
    assert_eq!(evm.write_xattrs(b"security.baz").unwrap_err().errno(), "EPERM");
    let file = named("good");
    assert_eq!(evm.look(&file).status, IntegrityStatus::Pass);
    file.change(|now| drop(now.xattrs.insert("security.foo".into(), vec![1])));
    assert_eq!(evm.look(&file).status, IntegrityStatus::Fail);
}
