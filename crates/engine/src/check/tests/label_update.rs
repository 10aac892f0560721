//! Labels that follow their content.

use super::*;

#[test]
fn a_digest_label_follows_the_content_once_the_last_writer_has_gone() {
    const READ: [Hook; 1] = [Hook { func: Func::FileCheck, mask: 4 }];
    for (name, policy, writes) in
        [("hash", "hash func=FILE_CHECK", false), ("appraise", "appraise func=FILE_CHECK", true)]
    {
        let bench = bench(policy, Mode::Enforce);
        let (file, task) = (Fake::new(b"x"), User(0));
        file.label_with_digest();
        let access = Access { file: &file, task: &task, created: false, writes, now: NOW };
        assert_eq!(bench.checker.check(&access, &READ), Verdict::Allow, "{name}");
        file.change(b"y", 2);
        file.writers.set(true);
        assert!(!bench.checker.refresh(&file).unwrap(), "{name}: somebody still writes");
        file.writers.set(false);
        assert!(bench.checker.refresh(&file).unwrap(), "{name}");
        assert_eq!(bench.check(&file, 0, &READ), Verdict::Allow, "{name}");
        file.change(b"z", 3);
        assert_eq!(bench.checker.refresh(&file).unwrap(), name == "hash", "{name}: once for each access");
    }
}

#[test]
fn while_somebody_writes_the_verdict_from_before_stands_unless_the_label_is_another() {
    const READ: [Hook; 1] = [Hook { func: Func::FileCheck, mask: 4 }];
    const MAP: [Hook; 1] = [Hook { func: Func::MmapCheck, mask: 1 }];
    let bench = bench("appraise func=FILE_CHECK\nappraise func=MMAP_CHECK", Mode::Enforce);
    let (file, task) = (Fake::new(b"x"), User(0));
    file.label_with_digest();
    let writer = Access { file: &file, task: &task, created: false, writes: true, now: NOW };
    let wrong = Verdict::Deny(Cause::InvalidHash);

    file.writers.set(true);
    assert_eq!(bench.checker.check(&writer, &READ), Verdict::Allow);
    file.change(b"y", 2);
    assert_eq!(bench.check(&file, 0, &READ), Verdict::Allow, "the label is behind the content");
    assert_eq!(bench.check(&file, 0, &MAP), wrong, "a use of which nothing was known");
    file.writers.set(false);
    assert!(bench.checker.refresh(&file).unwrap());

    // Who comes before the last close is seen to.
    file.writers.set(true);
    assert_eq!(bench.checker.check(&writer, &READ), Verdict::Allow);
    file.change(b"z", 3);
    assert_eq!(bench.checker.check(&writer, &READ), Verdict::Allow);
    file.writers.set(false);
    assert!(bench.checker.refresh(&file).unwrap());

    file.writers.set(true);
    assert_eq!(bench.checker.check(&writer, &READ), Verdict::Allow);
    file.change(b"xyz", 4);
    *file.label.borrow_mut() = Some(label::encode_digest(&Digest::ones(HashAlgorithm::Sha256)));
    assert_eq!(bench.checker.check(&writer, &READ), wrong, "somebody has set another one");
    file.writers.set(false);
    assert!(!bench.checker.refresh(&file).unwrap(), "and it stays");
    assert_eq!(bench.check(&file, 0, &READ), wrong);
}

#[test]
fn a_new_file_passes_until_its_last_writer_has_gone_and_is_labelled_then_whoever_has_looked_meanwhile() {
    const READ: [Hook; 1] = [Hook { func: Func::FileCheck, mask: 4 }];
    const MAP: [Hook; 1] = [Hook { func: Func::MmapCheck, mask: 1 }];
    let missing = Verdict::Deny(Cause::MissingHash);
    let policy = "appraise func=FILE_CHECK fowner=0\nappraise func=MMAP_CHECK";
    let signed = "appraise func=FILE_CHECK appraise_type=imasig";
    for (name, policy, created, content, made, while_written) in [
        ("new", policy, true, &b""[..], Verdict::Allow, Verdict::Allow),
        ("old and empty", policy, false, b"", missing, missing),
        ("written to before it was asked about", policy, true, b"x", missing, missing),
        ("a signature is wanted", signed, true, b"", Verdict::Allow, Verdict::Deny(Cause::ImaSignatureRequired)),
    ] {
        let bench = bench(policy, Mode::Enforce);
        let (file, task) = (Fake::new(content), User(0));
        file.writers.set(true);
        let maker = Access { file: &file, task: &task, created, writes: true, now: NOW };
        assert_eq!(bench.checker.check(&maker, &READ), made, "{name}");
        file.change(b"y", 2);
        for uid in [0, 1000] {
            assert_eq!(bench.check(&file, uid, &READ), while_written, "{name}");
        }
        if while_written != Verdict::Allow {
            continue;
        }
        assert_eq!(bench.check(&file, 0, &MAP), missing, "{name}: nobody runs what is written to");
        file.writers.set(false);
        assert!(bench.checker.refresh(&file).unwrap(), "{name}");
        assert!(!bench.checker.maintains(file.id()), "{name}");
        assert_eq!(bench.check(&file, 1000, &READ), Verdict::Allow, "{name}");
        *file.label.borrow_mut() = None;
        file.writers.set(true);
        assert_eq!(bench.check(&file, 0, &READ), missing, "{name}: it is new no more");
    }
}

#[test]
fn who_writes_to_what_was_fixed_goes_by_that_label_until_it_has_followed() {
    const WRITE: [Hook; 1] = [Hook { func: Func::FileCheck, mask: 2 }];
    let bench = bench("appraise func=FILE_CHECK", Mode::Fix);
    let (file, task) = (Fake::new(b"x"), User(0));
    *file.label.borrow_mut() = Some(label::encode_digest(&Digest::zeros(HashAlgorithm::Sha256)));
    file.writers.set(true);
    let writer = Access { file: &file, task: &task, created: false, writes: true, now: NOW };
    let failures = || {
        let records = bench.records.0.lock().unwrap();
        records.iter().filter(|record| matches!(record, AuditRecord::Data { .. })).count()
    };
    for (content, when) in [(b"y", 2), (b"z", 3)] {
        assert_eq!(bench.checker.check(&writer, &WRITE), Verdict::Allow);
        assert_eq!(failures(), 1, "it was fixed at the first");
        file.change(content, when);
    }
    file.writers.set(false);
    assert!(bench.checker.refresh(&file).unwrap());
    assert_eq!(bench.check(&file, 0, &[Hook { func: Func::FileCheck, mask: 4 }]), Verdict::Allow);
    assert_eq!(failures(), 1);
}

#[test]
fn what_is_let_pass_unasked_is_followed_whatever_notice_of_an_earlier_close_comes_late() {
    let stamp = Stamp { size: 1, modified: 1, changed: 1 };
    let labelled = Stamp { changed: 2, ..stamp };
    for (name, judged) in [("known", stamp), ("a moment ago", Stamp { modified: NOW - 1, changed: NOW - 1, ..stamp })] {
        let bench = bench("appraise func=FILE_CHECK", Mode::Enforce);
        let file = Fake::new(b"x");
        file.label_with_digest();
        // Judged in one state, labelled anew since, and let pass in the present one.
        for state in [judged, labelled] {
            file.stamp.set(state);
            bench.checker.maintain_unasked(file.id(), Content::of(&file, &judged, NOW), None);
        }
        for _ in 0..2 {
            assert!(!bench.checker.refresh_after_close(&file).unwrap(), "{name}: the label is right");
        }
        // Root writes, and nobody is asked.
        file.change(b"y", 3);
        assert!(bench.checker.refresh_after_close(&file).unwrap(), "{name}");
        assert!(!bench.checker.maintains(file.id()), "{name}");
        assert_eq!(bench.check(&file, 0, &[Hook { func: Func::FileCheck, mask: 4 }]), Verdict::Allow, "{name}");
    }
}

#[test]
fn who_comes_to_write_while_the_label_follows_is_followed_as_well() {
    /// The label of the writer before follows while it is looked at.
    struct Follows<'a>(&'a Fake, &'a Checker);
    impl File for Follows<'_> {
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
            let label = self.0.xattr(name);
            if self.1.maintains(self.0.id()) && self.0.writers.replace(false) {
                assert!(self.1.refresh(self.0).unwrap());
                self.0.writers.set(true);
            }
            label
        }
        fn set_xattr(&self, name: &str, value: &[u8]) -> io::Result<()> {
            self.0.set_xattr(name, value)
        }
        fn digest(&self, algorithm: HashAlgorithm) -> io::Result<Digest> {
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
    const READ: [Hook; 1] = [Hook { func: Func::FileCheck, mask: 4 }];
    let bench = bench("appraise func=FILE_CHECK", Mode::Enforce);
    let (file, task) = (Fake::new(b"x"), User(0));
    file.label_with_digest();
    file.writers.set(true);
    let writer = Access { file: &file, task: &task, created: false, writes: true, now: NOW };
    assert_eq!(bench.checker.check(&writer, &READ), Verdict::Allow);
    file.change(b"y", 2);
    let follows = Follows(&file, &bench.checker);
    assert_eq!(bench.checker.check(&Access { file: &follows, ..writer }, &READ), Verdict::Allow, "the next writer");
    file.change(b"z", 3);
    assert_eq!(bench.checker.check(&writer, &READ), Verdict::Allow, "and the one after him");
    file.writers.set(false);
    assert!(bench.checker.refresh(&file).unwrap());
}

#[test]
fn one_thread_at_a_time_has_a_files_label_follow() {
    /// A file that tells how many read it at once.
    #[derive(Default)]
    struct Counting {
        now: AtomicU32,
        most: AtomicU32,
        label: Mutex<Option<Vec<u8>>>,
    }
    impl File for &Counting {
        fn id(&self) -> InodeId {
            InodeId { device: 1, inode: 1 }
        }
        fn stamp(&self) -> io::Result<Stamp> {
            Ok(Stamp { size: 1, modified: 1, changed: 1 })
        }
        fn facts(&self) -> FileFacts<'_> {
            FileFacts { owner: 0, group: 0, fsmagic: 0xef53, fsname: "ext4", fs_subtype: "", fsuuid: None }
        }
        fn xattr(&self, _: &str) -> io::Result<Option<Vec<u8>>> {
            Ok(self.label.lock().unwrap().clone())
        }
        fn set_xattr(&self, _: &str, value: &[u8]) -> io::Result<()> {
            *self.label.lock().unwrap() = Some(value.to_vec());
            Ok(())
        }
        fn digest(&self, algorithm: HashAlgorithm) -> io::Result<Digest> {
            self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            (0..50).for_each(|_| std::thread::yield_now());
            self.now.fetch_sub(1, Ordering::SeqCst);
            crypto::hash(algorithm, &[b"x"]).map_err(io::Error::other)
        }
        fn path(&self) -> Vec<u8> {
            Vec::new()
        }
        fn nobody_writes(&self) -> Option<bool> {
            Some(true)
        }
        fn times_tell(&self) -> bool {
            true
        }
    }
    let bench = bench("appraise func=FILE_CHECK", Mode::Enforce);
    let file = Counting::default();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    bench.checker.maintain(File::id(&&file), None, None);
                    bench.checker.refresh(&&file).unwrap();
                }
            });
        }
    });
    assert_eq!(file.most.load(Ordering::SeqCst), 1, "a label is never written by who read the content before another");
}

#[test]
fn other_keys_end_the_verdict_from_before_a_writer() {
    const READ: [Hook; 1] = [Hook { func: Func::FileCheck, mask: 4 }];
    let bench = bench("appraise func=FILE_CHECK", Mode::Enforce);
    let (file, task) = (Fake::new(b"x"), User(0));
    file.label_with_digest();
    file.writers.set(true);
    let writer = Access { file: &file, task: &task, created: false, writes: true, now: NOW };
    assert_eq!(bench.checker.check(&writer, &READ), Verdict::Allow);
    file.change(b"y", 2);
    bench.checker.replace_keys(Arc::new(Keyring::new()), None);
    assert_eq!(bench.check(&file, 0, &READ), Verdict::Deny(Cause::InvalidHash));
}

#[test]
fn a_label_is_written_where_there_was_a_writer_and_never_because_it_is_wrong() {
    let stamp = Stamp { size: 1, modified: 1, changed: 1 };
    let changed = Stamp { changed: 2, ..stamp };
    let wrote = Stamp { modified: 2, ..changed };
    let tick = Stamp { modified: NOW - 1, changed: NOW - 1, ..stamp };
    for (what, judged, now, by, told, written) in [
        ("another label", stamp, changed, "root unasked", false, false),
        ("the notice of a close before that", stamp, stamp, "root unasked", true, false),
        ("other content", stamp, wrote, "root unasked", false, true),
        ("other content, its time put back", stamp, changed, "root unasked", true, true),
        ("anything, since a moment ago", tick, tick, "root unasked", false, true),
        ("anything, by a writer who was asked about", stamp, changed, "somebody who was asked", false, true),
        ("the same, when he was let pass before", stamp, changed, "both", false, true),
    ] {
        let bench = bench("appraise func=FILE_CHECK", Mode::Enforce);
        let file = Fake::new(b"x");
        if by != "somebody who was asked" {
            bench.checker.maintain(file.id(), Content::of(&file, &judged, NOW), None);
        }
        if by != "root unasked" {
            bench.checker.maintain(file.id(), None, None);
        }
        bench.checker.maintain(file.id(), Content::of(&file, &judged, NOW), None);
        *file.label.borrow_mut() = Some(label::encode_digest(&Digest::ones(HashAlgorithm::Sha256)));
        file.stamp.set(now);
        let update = if told { Checker::refresh_after_close } else { Checker::refresh };
        assert_eq!(update(&bench.checker, &file).unwrap(), written, "{what}");
        assert_eq!(bench.checker.maintains(file.id()), !written, "{what}");
        let verdict = if written { Verdict::Allow } else { Verdict::Deny(Cause::InvalidHash) };
        assert_eq!(bench.check(&file, 0, &[Hook { func: Func::FileCheck, mask: 4 }]), verdict, "{what}");
    }
}

#[test]
fn a_reader_does_not_have_a_changed_file_labelled() {
    let bench = bench("appraise func=FILE_CHECK", Mode::Enforce);
    let file = Fake::new(b"x");
    file.label_with_digest();
    assert_eq!(bench.check(&file, 0, &[Hook { func: Func::FileCheck, mask: 4 }]), Verdict::Allow);
    assert!(!bench.checker.maintains(file.id()));
    assert!(Checker::appraised_by_digest(bench.checker.known(&file).as_ref()));
}
