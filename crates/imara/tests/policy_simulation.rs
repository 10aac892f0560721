//! `imara policy test`: what it counts, against trees and traces whose outcome is known, and that it changes nothing.
//!
//! Labels need root; without it these tests say `skipped: …` and pass.

use imara_engine::active_policy::ActivePolicy;
use imara_engine::audit::{AuditRecord, AuditSink};
use imara_engine::check::{Access, Checker, Hook, Mode};
use imara_engine::crypto::PublicKey;
use imara_engine::explain::User;
use imara_engine::measure::{Attributes, Measured, MeasurementLog, Store};
use imara_engine::policy::CompiledPolicy;
use imara_engine::trace::TraceSink;
use imara_format::hash::HashAlgorithm;
use imara_format::measurement_list::Reader;
use imara_format::policy::{Func, Policy, Target};
use imara_format::template::Template;
use imara_format::trace::{Event, Header, TraceWriter};
use imara_linux::files;
use imara_linux::opened::OpenedFile;
use imara_linux::tree::{Choice, Root, TreeFile, Walk};
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

struct Folder(tempfile::TempDir);

impl Folder {
    /// A folder, unless the test cannot run here.
    fn new(test: &str) -> Option<Self> {
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            println!("skipped: {test}: labels can be written by root alone");
            return None;
        }
        // Beside the build, since a temporary filesystem may keep no attributes.
        let folder = Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        let probe = folder.path("probe");
        fs::write(&probe, "").unwrap();
        let label = files::set_xattr(fs::File::open(&probe).unwrap(), "security.ima", &[1]);
        if let Err(error) = label {
            println!("skipped: {test}: security.ima cannot be written here ({error})");
            return None;
        }
        fs::remove_file(probe).unwrap();
        Some(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn file(&self, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// Makes a key: its private part and its certificate.
    fn key(&self) -> (PathBuf, PathBuf) {
        let folder = self.path("key");
        let made = imara(&["key", "generate", "--quiet", "--type", "p256", "--out", text(&folder)]);
        assert_eq!(code(&made), 0, "{made:?}");
        (folder.join("privkey_ima.pem"), folder.join("x509_ima.der"))
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn imara(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_imara")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

/// The document that a command prints, and its exit status.
fn document(arguments: &[&str]) -> (Value, i32) {
    let output = imara(&[&["policy", "test", "--json"], arguments].concat());
    let document = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{arguments:?}: {output:?}"));
    (document, code(&output))
}

/// A shared library with one executable segment, as far as its headers go.
fn elf() -> Vec<u8> {
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1];
    file.resize(64 + 56, 0);
    (file[32], file[54], file[56]) = (64, 56, 1);
    (file[64], file[68]) = (1, 5);
    file
}

/// A folder `tree` with a file of each kind: 8 inodes that are regular files, under 9 names.
fn tree(folder: &Folder, key: &Path) -> PathBuf {
    let signed = folder.file("tree/bin/signed", b"signed", 0o755);
    fs::hard_link(&signed, folder.path("tree/bin/signed-too")).unwrap();
    let tampered = folder.file("tree/bin/tampered", b"before", 0o4755);
    for path in [&signed, &tampered] {
        let output = imara(&["sign", "--quiet", "-k", text(key), text(path)]);
        assert_eq!(code(&output), 0, "{output:?}");
    }
    fs::write(&tampered, "after!").unwrap();
    folder.file("tree/bin/unsigned", b"#!/bin/sh\n", 0o700);
    folder.file("tree/etc/conf with space", b"x=1\n", 0o644);
    folder.file("tree/etc/empty", b"", 0o644);
    folder.file("tree/lib/library.so", &elf(), 0o644);
    folder.file("tree/lib/modules/6.1.0/kernel/fs/ext4.ko.xz", b"module", 0o644);
    folder.file("tree/lib/firmware/card.bin", b"firmware", 0o644);
    symlink("signed", folder.path("tree/bin/link")).unwrap();
    symlink("/etc", folder.path("tree/elsewhere")).unwrap();
    folder.path("tree")
}

/// What a simulation must leave alone: each file's path, inode, size, times and label.
#[derive(Debug, PartialEq, PartialOrd, Eq, Ord)]
struct State(PathBuf, u64, u64, [i64; 4], Option<Vec<u8>>);

fn state(tree: &Path) -> Vec<State> {
    let mut state = Vec::new();
    let mut folders = vec![tree.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            let open = || fs::File::open(&path).unwrap();
            let label = metadata.is_file().then(|| files::xattr(open(), "security.ima").unwrap()).flatten();
            let times = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
            state.push(State(path, metadata.ino(), metadata.size(), times, label));
        }
    }
    state.sort();
    state
}

const POLICY: &str = "\
# comment
dont_measure func=FILE_CHECK fowner=4242
measure func=FILE_CHECK mask=MAY_READ
measure func=BPRM_CHECK
measure func=MMAP_CHECK
measure func=MODULE_CHECK
measure func=FIRMWARE_CHECK pcr=11
appraise func=BPRM_CHECK appraise_type=imasig
audit func=CREDS_CHECK
hash func=FILE_CHECK uid=1000
";

/// Every file of a tree, in order.
fn each_file(tree: &Path, mut visit: impl FnMut(&TreeFile<'_>)) {
    let mut walk = Walk::new([Root::Tree(tree.into())].into_iter(), Choice::default());
    let mut path = PathBuf::new();
    while let Some(batch) = walk.next_batch() {
        for index in 0..batch.len() {
            batch.path(index, &mut path);
            visit(&batch.open(index, &path).unwrap().unwrap());
        }
    }
}

#[test]
fn a_tree_is_counted_exactly_and_left_as_it_is() {
    let Some(folder) = Folder::new("a_tree_is_counted_exactly_and_left_as_it_is") else { return };
    let (key, certificate) = folder.key();
    let tree = tree(&folder, &key);
    let policy = folder.file("policy", POLICY.as_bytes(), 0o644);
    let before = state(&tree);
    let (report, status) = document(&[
        text(&policy),
        "--tree",
        text(&tree),
        "--key",
        text(&certificate),
        "--banks",
        "3",
        "--list",
        "--each",
    ]);
    assert_eq!(before, state(&tree), "nothing has changed");
    assert_eq!(status, 1, "something would be refused");
    let number = |pointer: &str| {
        report.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer}: {report:#}"))
    };
    assert_eq!(number("/schema"), 1);
    assert_eq!(number("/files"), 8);
    // Read: 8. Mapped, twice: the library. Module and firmware: 1 each. Executed: 3 at BPRM_CHECK; the one that passes there
    // is asked about at CREDS_CHECK and FILE_CHECK, too.
    assert_eq!(number("/asked"), 8 + 2 + 1 + 1 + 3 + 2);
    let rules: Vec<_> = report["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| (rule["line"].as_u64().unwrap(), rule["events"].as_u64().unwrap(), rule["files"].as_u64().unwrap()))
        .collect();
    assert_eq!(
        rules,
        [(2, 0, 0), (3, 8, 8), (4, 3, 3), (5, 1, 1), (6, 1, 1), (7, 1, 1), (8, 3, 3), (9, 1, 1), (10, 0, 0)]
    );
    // The firmware is measured into two PCRs.
    assert_eq!((number("/entries"), number("/violations"), number("/extends")), (9, 0, 27));
    assert_eq!(number("/audit_records"), 1);
    assert_eq!(number("/refused/files"), 2);
    let causes: Vec<_> = report["refused"]["causes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cause| (cause["cause"].as_str().unwrap(), cause["examples"].clone()))
        .collect();
    assert_eq!(
        causes,
        [
            ("IMA-signature-required", json!([text(&tree.join("bin/unsigned"))])),
            ("invalid-signature", json!([text(&tree.join("bin/tampered"))])),
        ]
    );
    assert_eq!(report["unknown"], json!([]));
    let listed: Vec<_> = report["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            (
                entry["pcr"].as_u64().unwrap(),
                entry["path"].as_str().unwrap().strip_prefix(text(&tree)).unwrap().to_owned(),
            )
        })
        .collect();
    let expected = [
        (10, "/bin/signed"),
        (10, "/bin/tampered"),
        (10, "/bin/unsigned"),
        (10, "/etc/conf_with_space"),
        (10, "/etc/empty"),
        (10, "/lib/firmware/card.bin"),
        (11, "/lib/firmware/card.bin"),
        (10, "/lib/library.so"),
        (10, "/lib/modules/6.1.0/kernel/fs/ext4.ko.xz"),
    ];
    // The folder of the test has no space in its path, or it would be listed otherwise.
    assert_eq!(listed, expected.map(|(pcr, path)| (pcr, path.to_owned())));
    assert_eq!(report["each"].as_array().unwrap().len(), 8);
    assert_eq!(report["each"][0]["path"], text(&tree.join("bin/signed")));
    assert_eq!(report["each"][0]["appraise"], json!([7]));
    // A uid is what `uid=` asks about.
    let (report, _) = document(&[text(&policy), "--tree", text(&tree), "--uid", "1000"]);
    assert_eq!(report["classes"]["hash"]["files"], 8);
}

/// A list in memory.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Store for Memory {
    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().extend(record);
        Ok(())
    }
}

#[test]
fn the_list_has_as_many_bytes_as_the_one_that_is_really_written() {
    let Some(folder) = Folder::new("the_list_has_as_many_bytes_as_the_one_that_is_really_written") else { return };
    let (key, certificate) = folder.key();
    let tree = tree(&folder, &key);
    for (template, hash) in [
        ("ima-sig", "sha256"),
        ("ima-ng", "sha1"),
        ("ima-ngv2", "sha512"),
        ("ima-sigv2", "sha256"),
        ("ima", "sha256"),
        ("evm-sig", "sha256"),
    ] {
        let (report, status) = document(&[
            "builtin:tcb",
            "--tree",
            text(&tree),
            "--template",
            template,
            "--hash",
            hash,
            "--key",
            text(&certificate),
        ]);
        assert_eq!(status, 0, "tcb refuses nothing: {report:#}");
        let memory = Memory::default();
        let hash = HashAlgorithm::from_name(hash).unwrap();
        let log = MeasurementLog::new(Box::new(memory.clone()), None, hash, 10).unwrap();
        each_file(&tree, |file| {
            let label = files::xattr(file, "security.ima").unwrap().unwrap_or_default();
            let algorithm = imara_format::label::algorithm_of(&label).unwrap_or(hash);
            let digest = files::digest(file, algorithm).unwrap();
            let path = text(file.path).as_bytes();
            let short = files::digest(file, HashAlgorithm::Sha1).unwrap();
            let stat = file.as_fd().try_clone_to_owned().map(fs::File::from).unwrap().metadata().unwrap();
            let xattrs = if label.is_empty() { vec![] } else { vec![("security.ima".to_owned(), label.clone())] };
            let attributes = Attributes { uid: stat.uid(), gid: stat.gid(), mode: stat.mode() as u16, xattrs };
            let (short, attributes) = (Some(&short), Some(&attributes));
            let measured =
                Measured { digest: &digest, verity: false, short, path, label: &label, evm_label: &[], attributes };
            log.add(Template::built_in(template).unwrap(), 10, &measured).unwrap();
        });
        let list = memory.0.lock().unwrap();
        assert_eq!(report["list_bytes"].as_u64(), Some(list.len() as u64), "{template}");
        let mut reader = Reader::new(&list);
        let mut entries = 0;
        while reader.next_record().unwrap().is_some() {
            entries += 1;
        }
        assert_eq!(report["entries"].as_u64(), Some(entries), "{template}");
    }
}

#[test]
fn what_content_would_tell_is_unknown_where_it_is_not_read() {
    let Some(folder) = Folder::new("what_content_would_tell_is_unknown_where_it_is_not_read") else { return };
    let (key, certificate) = folder.key();
    let tree = tree(&folder, &key);
    let policy = folder.file("policy", POLICY.as_bytes(), 0o644);
    let (report, status) =
        document(&[text(&policy), "--tree", text(&tree), "--key", text(&certificate), "--no-content"]);
    assert_eq!(status, 1);
    assert_eq!(report["refused"]["files"], 1, "what has no label at all");
    assert_eq!(report["unknown"][0]["files"], 2);
    assert!(report["unknown"][0]["why"].as_str().unwrap().contains("was not read"));
    let (report, _) = document(&[text(&policy), "--tree", text(&tree)]);
    assert!(report["unknown"][0]["why"].as_str().unwrap().contains("no key was given"), "{report:#}");
}

#[test]
fn what_is_wrong_with_the_policy_is_said_and_a_kernels_rules_are_warned_of() {
    let Some(folder) = Folder::new("what_is_wrong_with_the_policy_is_said_and_a_kernels_rules_are_warned_of") else {
        return;
    };
    let file = folder.file("tree/file", b"x", 0o644);
    let (tree, file) = (file.parent().unwrap(), text(&file).to_owned());
    let policy = |text: &str| folder.file("policy", text.as_bytes(), 0o644);
    for (name, policy, more, status, said) in [
        ("no such word", policy("mesure\n"), &[][..], 1, "mesure"),
        ("no such built-in", "builtin:tbc".into(), &[], 2, "appraise_tcb"),
        ("no such file", folder.path("missing"), &[], 1, "missing"),
        ("no such template", "builtin:tcb".into(), &["--template", "ima-x"], 2, "ima-sigv2"),
    ] {
        let output = imara(&[&["policy", "test", text(&policy), "--tree", text(tree)], more].concat());
        assert_eq!(code(&output), status, "{name}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(said), "{name}: {output:?}");
        fs::write(folder.path("policy"), "measure\n").unwrap();
    }
    assert_eq!(code(&imara(&["policy", "test", "builtin:tcb"])), 2, "no tree");
    assert_eq!(code(&imara(&["policy", "test", "--tree", text(tree)])), 2, "no policy");

    assert_eq!(code(&imara(&["policy", "test", "builtin:tcb", "--tree", "/proc/self"])), 2, "no files of its own");

    let debug = policy("measure pcr=16\n");
    assert_eq!(code(&imara(&["policy", "test", text(&debug), "--tree", text(tree)])), 1, "the guard cannot");
    let (report, status) = document(&[text(&debug), "--tree", text(tree), "--kernel", "6.12"]);
    assert_eq!((status, report["entries"].as_u64()), (0, Some(1)));
    assert!(report["warnings"][0].as_str().unwrap().contains("PCR 16"));
    // It is no file that fs-verity protects, which is no failure of the kernel's, but one of an appraisal.
    let verity = policy("measure digest_type=verity\n");
    let (report, status) = document(&[text(&verity), "--tree", text(tree)]);
    assert_eq!((status, report["entries"].as_u64()), (0, Some(0)), "{report:#}");
    let verity = policy("appraise digest_type=verity appraise_type=sigv3\n");
    let (report, status) = document(&[text(&verity), "--tree", text(tree)]);
    assert_eq!((status, &report["refused"]["files"]), (1, &json!(1)), "{report:#}");
    assert_eq!(report["refused"]["causes"][0]["examples"], json!([file]), "{report:#}");

    let mut child = Command::new(env!("CARGO_BIN_EXE_imara"))
        .args(["policy", "test", "-", "--tree", text(tree)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    io::Write::write_all(child.stdin.as_mut().unwrap(), b"measure\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 0);
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 entry (0 violations)"), "{output:?}");
}

#[test]
fn what_is_mounted_below_is_tried_unless_it_is_not_to_be() {
    const NAME: &str = "what_is_mounted_below_is_tried_unless_it_is_not_to_be";
    let Some(folder) = Folder::new(NAME) else { return };
    let tree = folder.file("tree/file", b"x", 0o644).parent().unwrap().to_owned();
    let policy = folder.file("policy", b"dont_measure fsname=tmpfs\nmeasure\n", 0o644);
    fs::create_dir_all(tree.join("mounted/further")).unwrap();
    // In a mount namespace of its own, so that nothing is left mounted.
    const MOUNT: &str = "mount -t tmpfs none \"$1/mounted\" && mkdir \"$1/mounted/proc\" && \
                         mount -t proc none \"$1/mounted/proc\" && touch \"$1/mounted/a\" \"$1/mounted/b\" || exit 77; \
                         shift; exec \"$@\"";
    for (more, files, excepted) in [(None, 3, 2), (Some("-x"), 1, 0)] {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", MOUNT, "sh", text(&tree), env!("CARGO_BIN_EXE_imara")]);
        command.args(["policy", "test", text(&policy), "--json", "--tree", text(&tree)]).args(more);
        let output = match command.output() {
            Ok(output) if code(&output) != 77 => output,
            other => return println!("skipped: {NAME}: nothing can be mounted here ({other:?})"),
        };
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        assert_eq!((&report["files"], &report["rules"][0]["files"]), (&json!(files), &json!(excepted)), "{report:#}");
        assert_eq!((code(&output), &report["entries"]), (0, &json!(1)));
    }
}

#[derive(Clone, Default)]
struct Recorded(Arc<Mutex<Vec<Event>>>);

impl TraceSink for Recorded {
    fn started(&self) -> i128 {
        0
    }
    fn record(&self, _: &ActivePolicy, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl AuditSink for Recorded {
    fn record(&self, _: AuditRecord) {}
}

/// Has the files of a tree judged as a guard would when root executes those that can be, and writes the trace of it.
fn trace(folder: &Folder, tree: &Path, certificate: &Path, policy: &str) -> PathBuf {
    let recorded = Recorded::default();
    let compiled = CompiledPolicy::new(Policy::parse(policy.as_bytes(), &Target::guard()).unwrap());
    let keys = [PublicKey::from_bytes(&fs::read(certificate).unwrap()).unwrap()].into_iter().collect();
    let log = MeasurementLog::new(Box::new(Memory::default()), None, HashAlgorithm::Sha256, 10).unwrap();
    let template = Template::built_in("ima-sig").unwrap().clone();
    let checker = Checker::new(compiled, keys, Arc::new(log), template, Mode::Enforce, Box::new(recorded.clone()));
    checker.set_trace(Some(Arc::new(recorded.clone())));
    for _ in 0..2 {
        each_file(tree, |file| {
            let opened = OpenedFile::new(file.as_fd()).unwrap();
            let executable = file.stat.st_mode & 0o111 != 0;
            let funcs: &[(Func, u8)] =
                if executable { &[(Func::BprmCheck, 1), (Func::FileCheck, 1)] } else { &[(Func::FileCheck, 4)] };
            let hooks: Vec<Hook> = funcs.iter().map(|(func, mask)| Hook { func: *func, mask: *mask }).collect();
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
            let access = Access { file: &opened, task: &User(0), created: false, writes: false, now: now as i128 };
            let _ = checker.check(&access, &hooks);
        });
    }
    let header = Header {
        started: 1,
        boot_id: "boot".into(),
        hash: HashAlgorithm::Sha256,
        pcr: 10,
        template: "ima-sig".into(),
        mode: "enforce".into(),
        policy: policy.into(),
        banks: 2,
    };
    let mut writer = TraceWriter::new(Vec::new(), &header).unwrap();
    for event in recorded.0.lock().unwrap().iter() {
        writer.event(event).unwrap();
    }
    let place = folder.path("trace");
    fs::write(&place, writer.finish().unwrap()).unwrap();
    place
}

/// The changes of a document: their names, and to how many files.
fn changes(document: &Value) -> Vec<(&str, u64)> {
    let changes = document["changes"].as_array().unwrap().iter();
    changes.map(|change| (change["change"].as_str().unwrap(), change["files"].as_u64().unwrap())).collect()
}

#[test]
fn a_trace_shows_what_another_policy_would_change() {
    let Some(folder) = Folder::new("a_trace_shows_what_another_policy_would_change") else { return };
    let (key, certificate) = folder.key();
    let tree = tree(&folder, &key);
    let own = "measure func=BPRM_CHECK\nappraise func=BPRM_CHECK\n";
    let trace = trace(&folder, &tree, &certificate, own);
    let (trace, certificate) = (text(&trace), text(&certificate));

    let (report, status) = document(&["--trace", trace, "--key", certificate]);
    assert_eq!(status, 0, "its own policy decides what was decided, refusals included: {report:#}");
    assert_eq!((&report["agrees"], changes(&report)), (&json!(true), vec![]));
    assert_eq!(report["refused"]["files"], 2);
    // Twice: 5 files read; 3 executed, of which the two that are refused are asked about once.
    assert_eq!(report["trace"]["events"], 2 * (5 + 2 + 2));
    assert_eq!((report["entries"].as_u64(), report["extends"].as_u64()), (Some(3), Some(6)));

    let policy = |text: &str| folder.file("policy", text.as_bytes(), 0o644);
    let try_out = |text_of: &str| document(&[text(&policy(text_of)), "--trace", trace, "--key", certificate]);
    let (report, status) = try_out("measure func=BPRM_CHECK\n");
    assert_eq!((status, changes(&report)), (0, vec![("no-longer-refused", 2), ("no-longer-appraised", 3)]));
    assert_eq!(report["agrees"], Value::Null);

    // Whoever reads is asked about now; no label of these files is in the trace, and so the files are asked.
    let (report, status) = try_out("measure func=BPRM_CHECK\nappraise\n");
    assert_eq!(status, 1);
    assert_eq!(changes(&report), [("newly-refused", 5), ("newly-appraised", 6)]);
    assert_eq!(report["unknown"], json!([]));

    // One of them is gone, and another has changed.
    fs::remove_file(tree.join("etc/empty")).unwrap();
    fs::write(tree.join("lib/library.so"), "changed").unwrap();
    let (report, _) = try_out("measure func=BPRM_CHECK\nappraise\n");
    assert_eq!(changes(&report), [("newly-refused", 3), ("newly-appraised", 6)]);
    let unknown: Vec<_> =
        report["unknown"].as_array().unwrap().iter().map(|why| why["why"].as_str().unwrap()).collect();
    assert_eq!(unknown.len(), 2, "{unknown:?}");
    assert!(unknown.iter().any(|why| why.ends_with("it is not there any more")), "{unknown:?}");
    assert!(unknown.iter().any(|why| why.ends_with("it has changed since")), "{unknown:?}");

    // A piece of a trace is good as far as it goes; anything else is no trace.
    let whole = fs::read(trace).unwrap();
    fs::write(trace, &whole[..whole.len() - 40]).unwrap();
    let (report, status) = document(&["--trace", trace, "--key", certificate]);
    assert_eq!((status, &report["trace"]["ended"]), (0, &Value::Null));
    fs::write(trace, "no trace at all").unwrap();
    assert_eq!(code(&imara(&["policy", "test", "--trace", trace])), 1);
}
