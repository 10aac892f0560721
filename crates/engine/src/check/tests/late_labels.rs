//! Labels that cannot follow their content yet, as the file system is frozen.

use super::*;

const READ: [Hook; 1] = [Hook { func: Func::FileCheck, mask: 4 }];
const WRONG: Verdict = Verdict::Deny(Cause::InvalidHash);

/// Somebody opens a file for writing.
fn write(bench: &Bench, file: &Fake, created: bool) -> Verdict {
    file.writers.set(true);
    let access = Access { file, task: &User(0), created, writes: true, now: NOW };
    bench.checker.check(&access, &READ)
}

/// Somebody opens it for reading, as the guard has it: the label follows first, if it can.
fn open(bench: &Bench, file: &Fake) -> Verdict {
    let late = bench.checker.maintains(file.id()) && bench.checker.refresh(file).is_err();
    file.late.set(late);
    bench.check(file, 0, &READ)
}

fn is_right(file: &Fake) -> bool {
    let label = file.label.borrow().clone();
    file.label_with_digest();
    let right = *file.label.borrow() == label;
    *file.label.borrow_mut() = label;
    right
}

#[test]
fn what_a_writer_has_left_passes_while_its_label_is_late_and_is_labelled_at_last() {
    for (name, policy, new) in [
        ("labelled", "appraise func=FILE_CHECK", false),
        ("new", "appraise func=FILE_CHECK", true),
        ("by a hash rule", "hash func=FILE_CHECK", false),
        ("measured as well", "appraise func=FILE_CHECK\nmeasure func=FILE_CHECK", false),
    ] {
        let bench = bench(policy, Mode::Enforce);
        let file = Fake::new(if new { b"" } else { b"x" });
        if !new {
            // In another algorithm than the one that it will follow in.
            let digest = crypto::hash(HashAlgorithm::Sha512, &[b"x"]).unwrap();
            *file.label.borrow_mut() = Some(label::encode_digest(&digest));
        }
        assert_eq!(write(&bench, &file, new), Verdict::Allow, "{name}");
        file.change(b"y", 2);
        file.writers.set(false);
        file.frozen.set(true);
        let mut hashed = Vec::new();
        for _ in 0..3 {
            assert_eq!(open(&bench, &file), Verdict::Allow, "{name}");
            assert!(bench.checker.maintains(file.id()) && !is_right(&file), "{name}");
            hashed.push(file.hashed.get());
        }
        assert_eq!(hashed[0], hashed[2], "{name}: it is not read for each");
        // The next writer comes while it is frozen, and passes as he would have before.
        assert_eq!(write(&bench, &file, false), Verdict::Allow, "{name}");
        file.writers.set(false);
        assert_eq!(open(&bench, &file), Verdict::Allow, "{name}");
        file.frozen.set(false);
        assert_eq!(open(&bench, &file), Verdict::Allow, "{name}");
        assert!(is_right(&file) && !file.late.get(), "{name}");
        // A `hash` rule follows from each open on.
        assert_eq!(bench.checker.maintains(file.id()), name == "by a hash rule", "{name}");
    }
}

#[test]
fn a_label_that_is_late_is_never_written_for_another_content_than_there_is() {
    for (name, landed) in [("dropped", false), ("written when it thawed", true)] {
        let bench = bench("appraise func=FILE_CHECK", Mode::Enforce);
        let file = Fake::new(b"x");
        file.label_with_digest();
        assert_eq!(write(&bench, &file, false), Verdict::Allow, "{name}");
        file.change(b"y", 2);
        file.writers.set(false);
        file.frozen.set(true);
        assert_eq!(open(&bench, &file), Verdict::Allow, "{name}");
        file.frozen.set(false);
        if landed {
            file.label_with_digest();
        }
        // A writer was first.
        assert_eq!(write(&bench, &file, false), Verdict::Allow, "{name}");
        file.change(b"z", 3);
        assert!(!bench.checker.refresh_after_close(&file).unwrap(), "{name}: he is still there");
        file.writers.set(false);
        assert!(bench.checker.refresh_after_close(&file).unwrap() && is_right(&file), "{name}");
        assert_eq!(open(&bench, &file), Verdict::Allow, "{name}");
    }
}

#[test]
fn what_nobody_wrote_to_or_was_changed_since_does_not_pass_for_being_frozen() {
    let bench = bench("appraise func=FILE_CHECK", Mode::Enforce);
    let file = Fake::new(b"x");
    *file.label.borrow_mut() = Some(label::encode_digest(&Digest::ones(HashAlgorithm::Sha256)));
    file.frozen.set(true);
    assert_eq!(open(&bench, &file), WRONG, "nobody was asked about");
    assert_eq!(write(&bench, &file, false), WRONG);
    file.writers.set(false);
    assert_eq!(open(&bench, &file), WRONG, "nor let in");

    file.label_with_digest();
    file.change(b"x", 2);
    assert_eq!(write(&bench, &file, false), Verdict::Allow);
    file.change(b"y", 3);
    file.writers.set(false);
    assert_eq!(open(&bench, &file), Verdict::Allow);
    // As it was looked at, and is not any more: beneath the file system, say.
    *file.content.borrow_mut() = b"z".to_vec();
    bench.checker.cache().clear();
    assert_eq!(bench.check(&file, 0, &READ), WRONG);
    let signed = [vec![3, 2, 4], vec![0; 20]].concat();
    *file.label.borrow_mut() = Some(signed);
    file.change(b"z", 4);
    assert_eq!(open(&bench, &file), Verdict::Deny(Cause::InvalidSignature), "nothing follows in place of a signature");
}
