//! The guard at work: real fanotify, a real software TPM and an ext4 of its own, as root.
//!
//! A guard under test watches the scratch mount and nothing else, and is killed when its time is over, so that nothing can
//! hang for good. What a machine lacks, a test says with `skipped: …`, and passes.

#[macro_use]
mod scratch;
mod live_policy;
mod trace;

use imara_engine::crypto;
use imara_format::hash::HashAlgorithm;
use imara_format::measurement_list::{ByteOrder, Reader};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use scratch::*;

#[test]
fn only_a_program_whose_signature_verifies_is_run_whatever_its_label_holds() {
    let mut scratch = scratch!("only_a_program_whose_signature_verifies_is_run_whatever_its_label_holds");
    scratch.make_key("others");
    let good = scratch.signed_program("good");
    let whole = label(&good).unwrap();
    let mut cases = vec![("unsigned".to_owned(), "IMA-signature-required")];
    scratch.program("unsigned");
    let tampered = scratch.signed_program("tampered");
    change_a_byte(&tampered);
    cases.push(("tampered".into(), "invalid-signature"));
    let others = scratch.program("others-key");
    let mut sign = command(IMARA);
    must(sign.args(["sign", "--quiet", "-k"]).arg(scratch.path("others/privkey_ima.pem")).arg(&others));
    cases.push(("others-key".into(), "invalid-signature"));
    let digest = digest_label(&good, HashAlgorithm::Sha256);
    set_label(&scratch.program("digest"), &digest);
    cases.push(("digest".into(), "IMA-signature-required"));
    for length in [1, 2, 5, 8, 9, 10, whole.len() - 1] {
        let name = format!("cut-to-{length}");
        set_label(&scratch.program(&name), &whole[..length]);
        cases.push((name, "invalid-signature"));
    }
    let mut random: u32 = 12345;
    for number in 0..24_u8 {
        let name = format!("random-{number}");
        let mut bytes: Vec<u8> = (0..1 + usize::from(number) * 40)
            .map(|_| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (random >> 24) as u8
            })
            .collect();
        bytes[0] = number % 8;
        let cause = match bytes[0] {
            1 | 4 | 6 => "IMA-signature-required",
            3 => "invalid-signature",
            _ => "unknown-ima-data",
        };
        set_label(&scratch.program(&name), &bytes);
        cases.push((name, cause));
    }
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(runs(&good));
    for (name, cause) in &cases {
        let path = scratch.on(name);
        assert!(!runs(&path), "{name}");
        let status = scratch.status();
        let last = &status["recent"][0];
        assert_eq!(last["path"], path.to_str().unwrap(), "{name}: {last}");
        assert_eq!(last["refused"], true, "{name}: {last}");
        // A random signature of version 3 is one whose version does not belong there.
        let said = last["cause"].as_str().unwrap();
        assert!(
            said == *cause || said.starts_with("invalid-signature") && cause.starts_with("invalid"),
            "{name}: {last}"
        );
        assert_eq!(scratch.listed(&path), 1, "{name}: refused, and on record");
    }
    assert!(runs(&good) && scratch.alive());
    assert_eq!(scratch.listed(&good), 1);
    assert_eq!(scratch.status()["counts"]["refused"], cases.len());
    scratch.proven();
}

#[test]
fn a_digest_label_is_enough_where_no_signature_is_asked_for() {
    let mut scratch = scratch!("a_digest_label_is_enough_where_no_signature_is_asked_for");
    let algorithms = [
        HashAlgorithm::Sha1,
        HashAlgorithm::Sha256,
        HashAlgorithm::Sha384,
        HashAlgorithm::Sha512,
        HashAlgorithm::Sha3_256,
    ];
    for algorithm in algorithms {
        let name = algorithm.name();
        let good = digest_label(Path::new("/bin/true"), algorithm);
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        set_label(&scratch.program(&format!("{name}-good")), &good);
        set_label(&scratch.program(&format!("{name}-bad")), &bad);
        set_label(&scratch.program(&format!("{name}-short")), &good[..good.len() - 1]);
    }
    let signed = scratch.signed_program("signed");
    scratch.guard("appraise func=BPRM_CHECK\n", "enforce");
    for algorithm in algorithms {
        let name = algorithm.name();
        assert!(runs(&scratch.on(&format!("{name}-good"))), "{name}");
        for bad in ["bad", "short"] {
            assert!(!runs(&scratch.on(&format!("{name}-{bad}"))), "{name} {bad}");
            assert_eq!(scratch.status()["recent"][0]["cause"], "invalid-hash", "{name} {bad}");
        }
    }
    assert!(runs(&signed) && scratch.alive());
}

#[test]
fn a_library_is_opened_once_it_is_signed_and_nobody_but_root_reads_it_before() {
    let mut scratch = scratch!("a_library_is_opened_once_it_is_signed_and_nobody_but_root_reads_it_before");
    // The guard's own program, where another user can reach it, and a copy of it.
    let (own, another) = (scratch.path("imara"), scratch.path("another-imara"));
    copy(IMARA, &own);
    copy(IMARA, &another);
    scratch.imara = own.clone();
    fs::write(scratch.path("lib.c"), "int answer(void) { return 42; }\n").unwrap();
    let library = scratch.on("lib.so");
    must(command("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(scratch.path("lib.c")));
    let notes = scratch.data("notes", 0);
    let name = library.to_str().unwrap().to_owned();
    scratch.guard("appraise func=MMAP_CHECK mask=MAY_EXEC appraise_type=imasig\n", "enforce");
    let loads = |scratch: &Scratch| output(&mut scratch.tool(&["load", &name])).unwrap().status.code().unwrap();
    assert_eq!(loads(&scratch), EPERM, "unsigned");
    assert!(opens(&notes), "what cannot be mapped is not asked about");
    let shows = |imara: &Path, user: u32| {
        let done = output(command(imara).args(["show", &name]).uid(user).gid(user)).unwrap();
        done.status.code() == Some(0)
    };
    for (imara, user, expected) in [(&own, 0, true), (&own, USER, false), (&another, USER, false), (&another, 0, false)]
    {
        assert_eq!(shows(imara, user), expected, "{} of user {user}", imara.display());
        assert_eq!(loads(&scratch), EPERM, "reading it lets nobody else pass");
    }
    assert_eq!(scratch.open_as(USER, libc_flags("O_RDONLY"), &library, 1), EPERM);
    scratch.sign(&[&library]);
    assert_eq!(loads(&scratch), 0, "signed");
    change_a_byte(&library);
    eventually("the changed library is refused", Duration::from_secs(1), || loads(&scratch) == EPERM);
    assert!(scratch.alive());
}

#[test]
fn an_interpreter_is_not_asked_about_once_a_program_that_passed_has_named_it() {
    let mut scratch = scratch!("an_interpreter_is_not_asked_about_once_a_program_that_passed_has_named_it");
    let loaders = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
    let Some(loader) = loaders.iter().find(|loader| Path::new(loader).exists()) else {
        println!("skipped: an_interpreter_is_not_asked_about…: needs the loader of this machine");
        return;
    };
    let interpreter = scratch.on("ld.so");
    copy(loader, &interpreter);
    fs::write(scratch.path("main.c"), "int main(void) { return 0; }\n").unwrap();
    let dynamic = format!("-Wl,--dynamic-linker={}", interpreter.display());
    let (signed, unsigned) = (scratch.on("signed"), scratch.on("unsigned"));
    for program in [&signed, &unsigned] {
        must(command("cc").arg(&dynamic).arg("-o").arg(program).arg(scratch.path("main.c")));
    }
    let fixed = scratch.on("static");
    let linked = output(command("cc").args(["-static", "-o"]).arg(&fixed).arg(scratch.path("main.c"))).unwrap();
    scratch.sign(&[&signed]);
    settle();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    let loader_runs = || match output(command(&interpreter).arg("--version")) {
        Ok(done) => done.status.success(),
        Err(error) if error.raw_os_error() == Some(EPERM) => false,
        Err(error) => panic!("{error}"),
    };
    assert!(!loader_runs(), "nobody has named it");
    assert!(!runs(&unsigned), "an unsigned program is not believed");
    assert!(!loader_runs(), "an unsigned program is not believed");
    assert!(runs(&signed));
    assert!(runs(&signed), "again");
    assert!(!runs(&unsigned));
    assert!(!linked.status.success() || !runs(&fixed), "an unsigned program without an interpreter");
    assert!(!runs(&scratch.program("another")), "an unsigned program with another interpreter");
    assert!(scratch.alive());
}

#[test]
fn a_file_that_was_judged_is_not_asked_about_until_it_changes() {
    let mut scratch = scratch!("a_file_that_was_judged_is_not_asked_about_until_it_changes");
    type Change = fn(&Scratch, &Path);
    let cases: [(&str, u32, Change); 10] = [
        ("written by root", 0, |_, path| drop(shell(&format!("echo more >> '{}'", path.display())))),
        ("written by its owner", USER, |scratch, path| {
            let script = format!("echo more >> '{}'", path.display());
            must(command("sh").args(["-ec", &script]).uid(USER).gid(USER));
            let broken = scratch.status()["kernel"]["leases_broken"].as_u64().unwrap();
            assert!(broken > 0, "a lease was in the way");
        }),
        ("truncated", 0, |_, path| drop(must(command("truncate").args(["-s", "10"]).arg(path)))),
        ("opened with O_TRUNC", USER, |scratch, path| {
            let flags = libc_flags("O_WRONLY") | libc_flags("O_TRUNC");
            assert_eq!(scratch.open_as(USER, flags, path, 1), 0);
        }),
        ("changed in place, its times put back", 0, |scratch, path| {
            let times = scratch.path("times");
            must(command("touch").arg("-r").arg(path).arg(&times));
            change_a_byte(path);
            must(command("touch").arg("-r").arg(&times).arg(path));
        }),
        ("another label", 0, |_, path| {
            must(command("setfattr").args(["-n", "security.ima", "-v", "0x0302040000000000"]).arg(path));
        }),
        ("no label", 0, |_, path| drop(must(command("setfattr").args(["-x", "security.ima"]).arg(path)))),
        ("given to somebody whose files need a signature by a rule of their own", 0, |_, path| {
            must(command("setfattr").args(["-x", "security.ima"]).arg(path));
            must(command("chown").arg("1234").arg(path));
        }),
        ("another file in its place", 0, |scratch, path| {
            let other = scratch.on("other");
            copy("/bin/true", &other);
            fs::rename(&other, path).unwrap();
        }),
        ("stored to through a mapping", USER, |scratch, path| Mapping::new(scratch, USER, path).store()),
    ];
    let mut policy = "measure func=FILE_CHECK mask=^MAY_READ\n".to_owned();
    policy.push_str("appraise func=FILE_CHECK mask=MAY_READ appraise_type=imasig\n");
    let paths: Vec<PathBuf> =
        cases.iter().enumerate().map(|(number, (_, owner, _))| scratch.data(&format!("f{number}"), *owner)).collect();
    scratch.sign(&paths.iter().map(PathBuf::as_path).collect::<Vec<_>>());
    settle();
    scratch.guard(&policy, "enforce");
    for ((what, owner, change), path) in cases.iter().zip(&paths) {
        assert!(opens(path), "{what}: before");
        let before = scratch.events();
        assert_eq!(scratch.open_as(0, libc_flags("O_RDONLY"), path, 500), 0, "{what}");
        assert_eq!(scratch.open_as(USER, libc_flags("O_RDONLY"), path, 500), 0, "{what}");
        let asked = scratch.events() - before;
        assert!(asked < 20, "{what}: asked {asked} times for 1000 opens");
        assert_eq!(scratch.status()["kernel"]["leases"].as_u64().unwrap() > 0, *owner == USER, "{what}");
        change(&scratch, path);
        eventually(&format!("refused when {what}"), Duration::from_secs(1), || !opens(path));
        for _ in 0..20 {
            assert!(!opens(path), "{what}: stays refused");
        }
    }
    assert!(scratch.alive());
    scratch.proven();
}

#[test]
fn a_file_is_asked_about_again_when_its_mode_changes() {
    let mut scratch = scratch!("a_file_is_asked_about_again_when_its_mode_changes");
    let path = scratch.data("file", 0);
    settle();
    scratch.guard("measure func=FILE_CHECK fowner=0\nappraise func=FILE_CHECK fowner=1001\n", "enforce");
    for (what, change) in [("chmod", "chmod 604"), ("chown", "chown 1002"), ("chown to the appraised", "chown 1001")] {
        assert!(opens(&path), "{what}");
        settle();
        assert!(opens(&path), "{what}");
        let quiet = scratch.events();
        assert!((0..50).all(|_| opens(&path)));
        assert!(scratch.events() - quiet < 10, "{what}: not asked before");
        shell(&format!("{change} '{}'", path.display()));
        eventually(&format!("asked again after {what}"), Duration::from_secs(1), || {
            let before = scratch.events();
            !opens(&path) || scratch.events() > before
        });
    }
    eventually("an unlabelled file of the appraised owner is refused", Duration::from_secs(1), || !opens(&path));
}

#[test]
fn a_store_through_a_mapping_that_changes_no_time_is_seen() {
    let mut scratch = scratch!("a_store_through_a_mapping_that_changes_no_time_is_seen");
    let path = scratch.data("file", USER);
    scratch.sign(&[&path]);
    settle();
    scratch.guard("appraise func=FILE_CHECK mask=MAY_READ appraise_type=imasig\n", "enforce");
    assert!(opens(&path));
    let mut mapping = Mapping::new(&scratch, USER, &path);
    for round in 0..10 {
        assert!(opens(&path), "{round}: as it was signed");
        mapping.store();
        // Only the first of these touches the file's times: the page is writable from then on.
        assert!(!opens(&path), "{round}: changed");
        mapping.store();
    }
    drop(mapping);
    settle();
    assert!(opens(&path) && opens(&path));
}

#[test]
fn the_conditions_of_a_rule_decide_what_is_measured() {
    let mut scratch = scratch!("the_conditions_of_a_rule_decide_what_is_measured");
    let (read, write, both) = (libc_flags("O_RDONLY"), libc_flags("O_WRONLY"), libc_flags("O_RDWR"));
    let uuid = scratch.uuid();
    let fits = format!("fsuuid={uuid}");
    // Condition, who opens it how, whether it is measured then.
    let cases: Vec<(&str, u32, i32, bool)> = vec![
        ("mask=MAY_READ", 0, read, true),
        ("mask=MAY_READ", 0, both, false),
        ("mask=MAY_READ", 0, write, false),
        ("mask=^MAY_READ", 0, read, true),
        ("mask=^MAY_READ", 0, both, true),
        ("mask=^MAY_READ", 0, write, false),
        ("mask=MAY_WRITE", 0, read, false),
        ("mask=MAY_WRITE", 0, both, false),
        ("mask=MAY_WRITE", 0, write, true),
        ("mask=^MAY_WRITE", 0, both, true),
        ("mask=^MAY_WRITE", 0, write, true),
        ("uid=0", 0, read, true),
        ("uid=0", USER, read, false),
        ("uid=1000", 0, read, false),
        ("uid=1000", USER, read, true),
        ("uid>999", 0, read, false),
        ("uid>999", USER, read, true),
        ("uid<1000", USER, read, false),
        ("euid=1000", 0, read, false),
        ("euid=1000", USER, read, true),
        ("fsmagic=0xef53", 0, read, true),
        ("fsmagic=0x9fa0", 0, read, false),
        (&fits, 0, read, true),
        ("fsuuid=00000000-1111-2222-3333-444444444444", 0, read, false),
        ("", 0, read, true),
    ];
    // A file of its own for each, told apart by its owner.
    let mut policy = String::new();
    let mut paths = Vec::new();
    for (number, (condition, ..)) in (2000..).zip(&cases) {
        let path = scratch.data(&format!("f{number}"), number);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        paths.push(path);
        writeln!(policy, "measure func=FILE_CHECK {condition} fowner={number}").unwrap();
    }
    let first = scratch.data("root-first", 3000);
    policy.push_str("measure func=FILE_CHECK uid=1000 fowner=3000\n");
    let nobodys = scratch.data("nobodys", 3001);
    settle();
    scratch.guard(&policy, "enforce");
    for ((condition, user, flags, expected), path) in cases.iter().zip(&paths) {
        assert_eq!(scratch.open_as(*user, *flags, path, 3), 0);
        let listed = scratch.listed(path);
        assert_eq!(listed > 0, *expected, "{condition} by {user} with {flags:#o}: listed {listed} times");
        assert!(listed <= 1 || *flags != read, "{condition} by {user}: listed {listed} times");
    }
    assert_eq!(scratch.open_as(0, read, &first, 100), 0);
    settle();
    assert_eq!(scratch.open_as(0, read, &first, 100), 0);
    assert_eq!(scratch.listed(&first), 0);
    assert_eq!(scratch.open_as(USER, read, &first, 1), 0);
    assert_eq!(scratch.listed(&first), 1, "what root was let pass is asked again for others");
    assert!(opens(&nobodys) && scratch.listed(&nobodys) == 0);
    scratch.proven();
}

#[test]
fn a_read_while_somebody_writes_is_a_violation() {
    let mut scratch = scratch!("a_read_while_somebody_writes_is_a_violation");
    let path = scratch.data("file", USER);
    settle();
    scratch.guard("measure func=FILE_CHECK mask=MAY_READ\n", "enforce");
    let mut mapping = Mapping::new(&scratch, USER, &path);
    mapping.store();
    assert!(opens(&path));
    let violation = scratch.list().into_iter().find(|line| line.contains(path.to_str().unwrap())).unwrap();
    assert!(violation.starts_with(&format!("10 {}", "0".repeat(40))), "{violation}");
    drop(mapping);
    assert!(scratch.status()["list"]["violations"].as_u64().unwrap() > 0);
    let audit = scratch.audit();
    assert!(audit.contains("type=INTEGRITY_PCR") && audit.contains("cause=open_writers"), "{audit}");
    scratch.proven();
}

/// open(2)'s flags have the same numbers wherever this runs.
fn libc_flags(name: &str) -> i32 {
    match name {
        "O_RDONLY" => 0,
        "O_WRONLY" => 1,
        "O_RDWR" => 2,
        "O_TRUNC" => 0o1000,
        other => panic!("{other}"),
    }
}

#[test]
fn the_mode_says_what_a_failed_appraisal_leads_to_and_is_switched_at_run_time() {
    let mut scratch = scratch!("the_mode_says_what_a_failed_appraisal_leads_to_and_is_switched_at_run_time");
    let (unsigned, unlabelled, signed) =
        (scratch.program("unsigned"), scratch.program("unlabelled"), scratch.signed_program("signed"));
    let others = scratch.program("others");
    set_label(&others, &[3, 2, 4, 1, 2, 3, 4, 0, 1, 0]);
    settle();
    scratch.guard("measure func=BPRM_CHECK\nappraise func=BPRM_CHECK\n", "log");
    assert!(runs(&unsigned) && runs(&unsigned) && runs(&signed));
    let status = scratch.status();
    let last = &status["recent"][0];
    assert_eq!((last["path"].as_str(), last["refused"].as_bool()), (unsigned.to_str(), Some(false)), "{last}");
    assert_eq!((last["cause"].as_str(), last["func"].as_str()), (Some("missing-hash"), Some("BPRM_CHECK")), "{last}");
    eventually("the audit log has it", Duration::from_secs(5), || scratch.audit().contains("missing-hash"));
    let audit = scratch.audit();
    let record = audit.lines().find(|line| line.contains(unsigned.to_str().unwrap())).unwrap();
    for words in ["type=INTEGRITY_DATA msg=audit(", " uid=0 ", "op=appraise_data cause=missing-hash", "res=1"] {
        assert!(record.contains(words), "{words}: {record}");
    }

    let switched = scratch.json(&["mode", "enforce", "--json"]);
    assert_eq!((switched["from"].as_str(), switched["mode"].as_str()), (Some("log"), Some("enforce")));
    assert!(!runs(&unsigned), "it ran a moment ago");
    assert!(runs(&signed));

    scratch.switch("fix");
    assert!(runs(&unlabelled) && runs(&others));
    assert_eq!(label(&unlabelled), Some(digest_label(&unlabelled, HashAlgorithm::Sha256)));
    assert_eq!(label(&others).unwrap()[0], 3, "a signature is not written over");
    scratch.switch("enforce");
    eventually("what was fixed passes", Duration::from_secs(1), || runs(&unlabelled));
    assert!(!runs(&others) && !runs(&unsigned));

    scratch.switch("off");
    let failed = scratch.status()["counts"]["failed"].clone();
    assert!(runs(&unsigned) && runs(&others));
    assert_eq!(scratch.status()["counts"]["failed"], failed, "nothing is appraised");
    let latest = scratch.program("latest");
    assert!(runs(&latest) && scratch.listed(&latest) == 1, "but measured");
    scratch.switch("enforce");
    assert!(!runs(&unsigned) && !runs(&latest));
    assert_eq!(scratch.imara(&["mode", "hard"]).status.code(), Some(2));
    scratch.proven();
}

#[test]
fn audit_hash_and_the_exceptions_do_what_they_say() {
    let mut scratch = scratch!("audit_hash_and_the_exceptions_do_what_they_say");
    let (plain, excepted, signed) =
        (scratch.program("plain"), scratch.program("excepted"), scratch.signed_program("signed"));
    must(command("chown").arg("1234").arg(&excepted));
    settle();
    let policy = "dont_appraise func=BPRM_CHECK fowner=1234\ndont_measure func=BPRM_CHECK fowner=1234\n\
                  dont_audit func=BPRM_CHECK fowner=1234\nmeasure func=BPRM_CHECK\nappraise func=BPRM_CHECK\n\
                  audit func=BPRM_CHECK\nhash func=FILE_CHECK\n";
    scratch.guard(policy, "enforce");
    assert!(runs(&excepted) && runs(&signed) && runs(&signed) && runs(&signed));
    assert!(!runs(&plain));
    assert!(opens(&plain));
    assert_eq!((scratch.listed(&excepted), scratch.listed(&signed), scratch.listed(&plain)), (0, 1, 1));
    let rules = |path: &Path| {
        let file = format!("file=\"{}\"", path.display());
        scratch.audit().lines().filter(|line| line.starts_with("type=INTEGRITY_RULE") && line.contains(&file)).count()
    };
    eventually("the record of the program that ran", Duration::from_secs(5), || rules(&signed) > 0);
    assert_eq!((rules(&signed), rules(&excepted)), (1, 0), "{}", scratch.audit());
    let digest = crypto::hash(HashAlgorithm::Sha256, &[&fs::read(&signed).unwrap()]).unwrap();
    assert!(scratch.audit().contains(&format!("hash=\"{digest}\"")), "{}", scratch.audit());
    assert!(scratch.alive());
}

#[test]
fn the_list_has_the_kernels_form_and_is_proven_by_others_too() {
    for template in ["ima-sig", "ima-ng"] {
        let mut scratch = scratch!("the_list_has_the_kernels_form_and_is_proven_by_others_too");
        let signed = scratch.signed_program("signed");
        let linked = scratch.on("linked");
        fs::hard_link(&signed, &linked).unwrap();
        let names = ["with space", "with\nnewline", "ümlaut", "unsigned"].map(|name| scratch.program(name));
        settle();
        scratch.guard_with("measure func=BPRM_CHECK\n", "enforce", &["--template", template]);
        assert!(runs(&signed) && runs(&linked) && runs(&signed));
        assert!(names.iter().all(|path| runs(path)));
        assert_eq!((scratch.listed(&signed), scratch.listed(&linked)), (1, 0), "one inode is measured once");
        let kept = scratch.run.join("measurements");
        let shown = must(&mut scratch.command(&["measurement", "show", "--binary"])).stdout;
        assert_eq!(shown, fs::read(&kept).unwrap(), "byte for byte");
        let entries = scratch.json(&["measurement", "show", "--json"]);
        let entries = entries["entries"].as_array().unwrap();
        assert_eq!(entries.len(), 2 + names.len());
        assert_eq!((entries[0]["path"].as_str(), entries[0]["pcr"].as_u64()), (Some("boot_aggregate"), Some(10)));
        assert!(entries.iter().all(|entry| entry["template"] == template), "{entries:?}");
        for (path, entry) in [&signed].into_iter().chain(&names).zip(&entries[1..]) {
            // The kernel's ascii list has no spaces in names.
            assert_eq!(entry["path"], path.to_str().unwrap().replace(' ', "_"));
        }
        if template == "ima-sig" {
            let signature: String = label(&signed).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(entries[1]["signature"], signature);
        }
        scratch.proven();
        by_evmctl(&scratch, &kept);
    }
}

/// Lets evmctl replay the list against PCR values from `imara`'s own report.
fn by_evmctl(scratch: &Scratch, list: &Path) {
    if output(command("evmctl").arg("--version")).is_err() {
        println!("skipped: the list is not judged by evmctl: needs evmctl");
        return;
    }
    let report = scratch.json(&["measurement", "verify", "--json"]);
    let mut evmctl = command("evmctl");
    evmctl.arg("ima_measurement").arg("-v");
    for bank in ["sha1", "sha256"] {
        let value = |index: u32| {
            let pcrs = report["pcrs"].as_array().unwrap();
            let found = pcrs.iter().find(|pcr| pcr["bank"] == bank && pcr["pcr"] == index)?;
            Some(found["claimed"].as_str()?.rsplit(':').next()?.to_owned())
        };
        let zeros = "0".repeat(if bank == "sha1" { 40 } else { 64 });
        let mut text = String::new();
        for index in 0..24 {
            writeln!(text, "PCR-{index:02}: {}", value(index).unwrap_or_else(|| zeros.clone())).unwrap();
        }
        assert!(value(10).is_some(), "{report}");
        fs::write(scratch.path(bank), text).unwrap();
        evmctl.arg("--pcrs").arg(format!("{bank},{}", scratch.path(bank).display()));
    }
    let judged = must(evmctl.arg(list));
    let said = text(&judged.stdout) + &text(&judged.stderr);
    assert!(said.contains("Matched per TPM bank calculated digest"), "{said}");
}

#[test]
fn the_list_goes_on_after_an_end_in_order_and_after_a_kill() {
    let mut scratch = scratch!("the_list_goes_on_after_an_end_in_order_and_after_a_kill");
    let programs = ["one", "two", "three"].map(|name| scratch.signed_program(name));
    settle();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(runs(&programs[0]));
    let first = scratch.list();
    scratch.stop();
    assert!(scratch.swtpm().is_none(), "the software TPM ends with the guard");
    assert_eq!(scratch.imara(&["status"]).status.code(), Some(3));

    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(runs(&programs[1]));
    let second = scratch.list();
    assert_eq!(second[..first.len()], first);
    let gap = &second[first.len()];
    assert!(gap.contains(" ima-buf ") && gap.contains(" imara_gap "), "{gap}");
    let status = scratch.status();
    assert_eq!((status["gap"]["cause"].as_str(), status["list"]["chain"].as_str()), (Some("stopped"), Some("whole")));
    scratch.proven();

    scratch.kill();
    let pid = scratch.pid();
    assert!(runs(&scratch.program("while-nobody-guards")));
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    let said = scratch.said();
    assert!(said.contains(&format!("(process {pid}) was killed")) && said.contains("imara_gap"), "{said}");
    assert!(runs(&programs[2]) && !runs(&scratch.on("while-nobody-guards")));
    let third = scratch.list();
    assert_eq!(third[..second.len()], second);
    assert!(third[second.len()].contains(" imara_gap "), "{third:?}");
    let status = scratch.status();
    assert_eq!((status["gap"]["cause"].as_str(), status["list"]["chain"].as_str()), (Some("killed"), Some("whole")));
    scratch.proven();

    scratch.kill();
    scratch.kill_swtpm();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(scratch.said().contains("a fresh list begins"), "{}", scratch.said());
    let kept = fs::read(scratch.run.join("measurements.tpm-lost.1")).unwrap();
    let mut shown = command(IMARA);
    let shown = must(shown.args(["measurement", "show", "--ascii"]).arg(scratch.run.join("measurements.tpm-lost.1")));
    assert_eq!(text(&shown.stdout).lines().collect::<Vec<_>>(), third, "{} bytes", kept.len());
    assert!(scratch.list()[0].contains("boot_aggregate") && scratch.list().len() == 2, "{:?}", scratch.list());
    scratch.proven();
}

#[test]
fn a_list_that_a_kill_left_unfinished_is_mended() {
    let mut scratch = scratch!("a_list_that_a_kill_left_unfinished_is_mended");
    let programs = ["one", "two", "three"].map(|name| scratch.signed_program(name));
    settle();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(runs(&programs[0]));
    scratch.kill();
    let mirror = scratch.run.join("measurements");
    let records = |bytes: &[u8]| {
        let mut reader = Reader::new(bytes);
        let mut records = Vec::new();
        while let Some(record) = reader.next_record().unwrap() {
            let mut room = Vec::new();
            record.write_binary(ByteOrder::Little, &mut room);
            records.push(room);
        }
        records
    };
    let append = |bytes: &[u8]| OpenOptions::new().append(true).open(&mirror).unwrap().write_all(bytes).unwrap();

    // Killed while it wrote an entry.
    let whole = fs::read(&mirror).unwrap();
    let last = records(&whole).pop().unwrap();
    append(&last[..last.len() - 7]);
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(scratch.said().contains("measurements.cut"), "{}", scratch.said());
    assert_eq!(fs::read(scratch.run.join("measurements.cut.1")).unwrap(), &last[..last.len() - 7]);
    assert!(runs(&programs[1]));
    assert!(fs::read(&mirror).unwrap().starts_with(&whole));
    scratch.proven();

    // Killed between the entry and the TPM.
    scratch.kill();
    let whole = fs::read(&mirror).unwrap();
    append(&records(&whole).pop().unwrap());
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    let chain = scratch.status()["list"]["chain"].as_str().unwrap().to_owned();
    assert!(chain.contains("given the last entry"), "{chain}");
    assert!(runs(&programs[2]));
    scratch.proven();

    // Changed by somebody.
    scratch.kill();
    let whole = fs::read(&mirror).unwrap();
    append(&[records(&whole).pop().unwrap(), records(&whole).pop().unwrap()].concat());
    next_second();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(scratch.said().contains("the chain of the measurement list is broken"), "{}", scratch.said());
    let verified = scratch.imara(&["measurement", "verify"]);
    assert_eq!(verified.status.code(), Some(1), "{verified:?}");
    assert!(runs(&programs[2]));
}

#[test]
fn nobody_hangs_when_the_guard_is_killed() {
    let mut scratch = scratch!("nobody_hangs_when_the_guard_is_killed");
    for number in 0..20 {
        scratch.signed_program(&format!("f{number}"));
    }
    let large = scratch.data("large", 0);
    OpenOptions::new().write(true).open(&large).unwrap().set_len(1 << 40).unwrap();
    let policy = format!("{SIGNED_PROGRAMS}measure func=FILE_CHECK mask=MAY_READ\n");
    scratch.guard(&policy, "enforce");
    let mnt = scratch.mnt.to_str().unwrap().to_owned();
    let mut blocked = start(&mut scratch.tool(&["open", "0", large.to_str().unwrap(), "1"])).unwrap();
    let mut busy: Vec<Child> =
        (0..4).map(|seed| start(&mut scratch.tool(&["mix", &mnt, "20", "1500", &seed.to_string()])).unwrap()).collect();
    thread::sleep(Duration::from_millis(100));
    assert!(blocked.try_wait().unwrap().is_none(), "hashing a terabyte takes longer");
    scratch.kill();
    let status = ended(&mut blocked, PATIENCE).expect("an access that waited goes on");
    assert_eq!(status.code(), Some(0));
    for child in &mut busy {
        assert_eq!(ended(child, PATIENCE).expect("nobody hangs").code(), Some(0));
    }
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    let chain = scratch.status()["list"]["chain"].as_str().unwrap().to_owned();
    assert!(chain.starts_with("whole"), "{chain}");
    scratch.proven();
}

#[test]
fn a_guard_that_cannot_start_says_why_and_watches_nothing() {
    let mut scratch = scratch!("a_guard_that_cannot_start_says_why_and_watches_nothing");
    let unsigned = scratch.program("unsigned");
    let (mnt, certificate) = (scratch.mnt.clone(), scratch.certificate());
    let policy = scratch.path("good-policy");
    fs::write(&policy, SIGNED_PROGRAMS).unwrap();
    let bad = scratch.path("bad-policy");
    fs::write(&bad, "measure func=BPRM_CHECK\nappraise func=BPRM_CHEKC\n").unwrap();
    let random = scratch.path("random");
    fs::write(&random, [0x30, 0x82, 0xff, 0xff, 1, 2, 3]).unwrap();
    let nothing = scratch.path("nothing");
    let cases: [(&str, &Path, &Path, &Path, i32, &str); 7] = [
        ("a bad policy", &mnt, &bad, &certificate, 1, "line 2"),
        ("no policy", &mnt, &nothing, &certificate, 1, "nothing"),
        ("no key", &mnt, &policy, &nothing, 1, "nothing"),
        ("a random key", &mnt, &policy, &random, 1, "random"),
        ("no directory", &nothing, &policy, &certificate, 1, "nothing"),
        ("no directory but a file", &random, &policy, &certificate, 1, "random"),
        ("nothing to guard", Path::new("/proc"), &policy, &certificate, 2, "proc"),
    ];
    for (what, watch, policy, key, code, word) in cases {
        let failed = scratch.launch_with(watch, policy, key, "enforce", &["--tpm", "none"]).expect_err(what);
        assert_eq!(failed.status.code(), Some(code), "{what}: {}", failed.stderr);
        assert!(failed.stderr.contains(word), "{what}: {}", failed.stderr);
        assert!(runs(&unsigned), "{what}: nothing is watched");
    }
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    let pid = scratch.pid();
    let failed = scratch.launch_with(&mnt, &policy, &certificate, "enforce", &[]).expect_err("a second guard");
    assert_eq!(failed.status.code(), Some(1), "{}", failed.stderr);
    assert!(failed.stderr.contains(&format!("process {pid}")), "{}", failed.stderr);
    assert!(scratch.alive() && !runs(&unsigned), "the first goes on");
    scratch.proven();
}

#[test]
fn the_guards_own_files_may_lie_on_what_it_watches() {
    let mut scratch = scratch!("the_guards_own_files_may_lie_on_what_it_watches");
    scratch.run = scratch.on("run");
    scratch.imara = scratch.on("imara");
    copy(IMARA, &scratch.imara);
    let mut cp = command("cp");
    must(cp.arg("-r").arg(scratch.path("keys")).arg(scratch.on("keys")));
    let files = scratch.on("files");
    fs::create_dir(&files).unwrap();
    for number in 0..200 {
        copy_quickly(Path::new("/bin/true"), &files.join(format!("f{number}")));
    }
    let half: Vec<PathBuf> = (0..100).map(|number| files.join(format!("f{number}"))).collect();
    let mut labelled: Vec<&Path> = half.iter().map(PathBuf::as_path).collect();
    let (imara, key, policy) = (scratch.imara.clone(), scratch.on("keys/x509_ima.der"), scratch.on("policy"));
    labelled.push(&imara);
    fs::write(&policy, "measure\nappraise func=FILE_CHECK mask=MAY_READ\nappraise func=BPRM_CHECK\naudit\n").unwrap();
    scratch.sign(&labelled);
    settle();
    let mnt = scratch.mnt.clone();
    if let Err(failed) = scratch.launch_with(&mnt, &policy, &key, "log", &[]) {
        panic!("{}", failed.stderr);
    }
    assert!(opens(&policy) && runs(&files.join("f0")) && runs(&files.join("f150")));
    scratch.proven();
    let mut busy: Vec<Child> = (0..8)
        .map(|seed| {
            start(&mut scratch.tool(&["mix", files.to_str().unwrap(), "200", "500", &seed.to_string()])).unwrap()
        })
        .collect();
    let mut modes = ["enforce", "log"].iter().cycle();
    let begun = Instant::now();
    while busy.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        assert!(begun.elapsed() < PATIENCE, "accesses hang");
        scratch.switch(modes.next().unwrap());
    }
    for child in &mut busy {
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
    scratch.switch("enforce");
    assert!(runs(&files.join("f1")) && !runs(&files.join("f151")) && !opens(&policy));
    assert!(opens(&files.join("f2")) && !opens(&files.join("f152")));
    for number in 0..200 {
        assert_eq!(opens(&files.join(format!("f{number}"))), number < 100, "f{number}, let pass before or not");
    }
    assert!(scratch.alive());
    scratch.switch("log");
    scratch.proven();
    scratch.stop();
    assert!(fs::metadata(scratch.run.join("audit.log")).unwrap().len() > 0);
}

fn copy_quickly(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
}

#[test]
fn large_files_do_not_hold_up_small_ones() {
    let mut scratch = scratch!("large_files_do_not_hold_up_small_ones");
    let small: Vec<PathBuf> = (0..20).map(|number| scratch.signed_program(&format!("small-{number}"))).collect();
    let policy = format!("{SIGNED_PROGRAMS}measure func=FILE_CHECK mask=MAY_READ\n");
    let mut opening = Vec::new();
    let large: Vec<PathBuf> = (0..12).map(|number| scratch.on(&format!("large-{number}"))).collect();
    for path in &large {
        File::create(path).unwrap().set_len(1 << 40).unwrap();
    }
    settle();
    scratch.guard(&policy, "enforce");
    for path in &large {
        opening.push(start(&mut scratch.tool(&["open", "0", path.to_str().unwrap(), "1"])).unwrap());
        thread::sleep(Duration::from_millis(10));
    }
    let mut slowest = Duration::ZERO;
    for path in &small {
        let begun = Instant::now();
        assert!(runs(path));
        slowest = slowest.max(begun.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "a small program waited for {slowest:?}");
    assert!(opening.iter_mut().all(|child| child.try_wait().unwrap().is_none()), "hashing a terabyte takes longer");
    assert!(scratch.alive());
    scratch.kill();
    for child in &mut opening {
        ended(child, PATIENCE).expect("nobody hangs");
    }
}

#[test]
fn without_a_tpm_it_works_and_says_what_is_not_proven() {
    let mut scratch = scratch!("without_a_tpm_it_works_and_says_what_is_not_proven");
    let signed = scratch.signed_program("signed");
    let unsigned = scratch.program("unsigned");
    settle();
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &["--tpm", "none"]);
    assert!(runs(&signed) && !runs(&unsigned));
    let status = scratch.status();
    assert_eq!((&status["tpm"]["kind"], &status["tpm"]["root_of_trust"]), (&"none".into(), &false.into()));
    assert!(scratch.said().contains("no TPM"), "{}", scratch.said());
    let list = scratch.list();
    let zeros = format!("sha256:{}", "0".repeat(64));
    assert!(list[0].contains(&zeros) && list[0].contains("boot_aggregate"), "{}", list[0]);
    let verified = scratch.imara(&["measurement", "verify"]);
    assert_eq!(verified.status.code(), Some(3), "{verified:?}");
    let said = text(&verified.stderr);
    assert!(said.contains("no TPM"), "{said}");
    let next = said.split('`').nth(1).unwrap_or_else(|| panic!("a command to type: {said}"));
    let folder = Path::new(IMARA).parent().unwrap().display();
    let checked = shell(&format!("PATH='{folder}':$PATH; {next}"));
    assert!(text(&checked.stdout).contains("NOT proven"), "{checked:?}");
    scratch.stop();
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &["--tpm", "none"]);
    assert_eq!(scratch.list()[..list.len()], list);
    assert!(scratch.status()["list"]["chain"].as_str().unwrap().contains("not proven"));
}

#[test]
fn an_explanation_names_everything_and_its_remedy_works_as_typed() {
    let mut scratch = scratch!("an_explanation_names_everything_and_its_remedy_works_as_typed");
    let signed = scratch.signed_program("signed");
    let unsigned = scratch.program("it's unsigned; $HOME");
    let tampered = scratch.signed_program("tampered");
    change_a_byte(&tampered);
    let short = scratch.program("short");
    set_label(&short, &[3, 2, 4]);
    settle();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    let explained = scratch.json(&["explain", "--json", signed.to_str().unwrap()]);
    assert_eq!(explained["verdict"], "allow", "{explained}");
    let hook = &explained["hooks"][0];
    assert_eq!((&hook["func"], &hook["label"]["type"]), (&"BPRM_CHECK".into(), &"signature".into()), "{hook}");
    assert_eq!((&hook["appraise"]["line"], &hook["label"]["key"]["known"]), (&2.into(), &true.into()), "{hook}");
    assert_eq!(scratch.imara(&["explain", signed.to_str().unwrap()]).status.code(), Some(0));
    for (path, cause, words) in [
        (&unsigned, "IMA-signature-required", "no"),
        (&tampered, "invalid-signature", "changed after it was signed"),
        (&short, "invalid-signature", "cannot be read"),
    ] {
        assert!(!runs(path));
        let name = path.to_str().unwrap();
        let explained = scratch.json(&["explain", "--json", name]);
        let hook = &explained["hooks"][0];
        assert_eq!((&explained["verdict"], &explained["path"]), (&"deny".into(), &name.into()));
        assert_eq!((&hook["cause"], &hook["verdict"]), (&cause.into(), &"deny".into()), "{hook}");
        let digest = crypto::hash(HashAlgorithm::Sha256, &[&fs::read(path).unwrap()]).unwrap().to_string();
        assert_eq!(hook["digest"], digest, "{hook}");
        assert!(hook["why"].as_str().unwrap().contains(words), "{hook}");
        let people = scratch.imara(&["explain", name]);
        assert_eq!(people.status.code(), Some(1));
        let people = text(&people.stdout);
        let rule = "appraise func=BPRM_CHECK appraise_type=imasig";
        for words in [name, "refused", cause, &digest, rule, "rule 2 (line 2)"] {
            assert!(people.contains(words), "{words}: {people}");
        }
        let remedy = hook["to_pass"].as_str().unwrap();
        assert!(people.contains(remedy), "{people}");
        let key = scratch.private_key();
        let typed = remedy.replace("/etc/keys/privkey_ima.pem", key.to_str().unwrap());
        let folder = Path::new(IMARA).parent().unwrap().display();
        shell(&format!("PATH='{folder}':$PATH; {typed}"));
        eventually("the remedy helps", Duration::from_secs(1), || runs(path));
        assert_eq!(scratch.imara(&["explain", name]).status.code(), Some(0));
    }
    let missing = scratch.imara(&["explain", "/no/such/file"]);
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    assert!(text(&missing.stderr).contains("/no/such/file"), "{missing:?}");
}

#[test]
fn a_guard_that_is_ended_leaves_nothing_behind() {
    let mut scratch = scratch!("a_guard_that_is_ended_leaves_nothing_behind");
    let (signed, unsigned) = (scratch.signed_program("signed"), scratch.program("unsigned"));
    let users = scratch.data("users", USER);
    settle();
    for _ in 0..2 {
        scratch.guard(&format!("{SIGNED_PROGRAMS}measure func=FILE_CHECK\n"), "enforce");
        assert!(runs(&signed) && !runs(&unsigned) && opens(&users));
        settle();
        assert!(opens(&users));
        let pid = scratch.pid();
        scratch.stop();
        assert!(!Path::new(&format!("/proc/{pid}/fd/0")).exists());
        assert!(runs(&unsigned), "nothing is guarded any more");
        assert!(!scratch.run.join("control.sock").exists());
        assert!(scratch.swtpm().is_none());
        must(command("umount").arg(&scratch.mnt));
        must(command("mount").args(["-o", "loop"]).arg(scratch.path("image")).arg(&scratch.mnt));
    }
}

#[test]
fn a_script_and_its_interpreter_are_both_asked_about() {
    let mut scratch = scratch!("a_script_and_its_interpreter_are_both_asked_about");
    let shell = scratch.on("shell");
    copy("/bin/sh", &shell);
    let script = |name: &str, interpreter: &Path| {
        let path = scratch.on(name);
        fs::write(&path, format!("#!{}\nexit 0\n", interpreter.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let unsigned = script("unsigned", Path::new("/bin/sh"));
    let (elsewhere, here) = (script("elsewhere", Path::new("/bin/sh")), script("here", &shell));
    scratch.sign(&[&elsewhere, &here]);
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(!runs(&unsigned) && runs(&elsewhere));
    assert!(!runs(&here), "its interpreter is unsigned");
    scratch.sign(&[&shell]);
    assert!(runs(&here), "its interpreter is signed");
    assert!(!runs(&unsigned));
}

#[test]
fn a_program_is_guarded_by_whatever_name_it_is_reached() {
    let mut scratch = scratch!("a_program_is_guarded_by_whatever_name_it_is_reached");
    let (signed, unsigned) = (scratch.signed_program("signed"), scratch.program("unsigned"));
    fs::hard_link(&unsigned, scratch.on("linked")).unwrap();
    std::os::unix::fs::symlink(&unsigned, scratch.path("symlinked")).unwrap();
    let bound = scratch.path("bound");
    fs::create_dir(&bound).unwrap();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    must(command("mount").arg("--bind").arg(&scratch.mnt).arg(&bound));
    let paths = [unsigned.clone(), scratch.on("linked"), scratch.path("symlinked"), bound.join("unsigned")];
    let ran: Vec<bool> = paths.iter().map(|path| runs(path)).collect();
    let signed_runs = runs(&bound.join("signed"));
    // A mount namespace of its own, made while the guard runs.
    let private = format!("exec '{}'", unsigned.display());
    let unshared = output(command("unshare").args(["-m", "sh", "-c", &private])).unwrap().status.code();
    must(command("umount").arg(&bound));
    assert_eq!(ran, [false; 4], "{paths:?}");
    assert!(signed_runs && runs(&signed));
    assert_eq!(unshared, Some(126));
}

#[test]
fn a_signed_file_is_not_opened_for_writing_and_a_new_one_is() {
    let mut scratch = scratch!("a_signed_file_is_not_opened_for_writing_and_a_new_one_is");
    let (signed, digest) = (scratch.data("signed", 0), scratch.data("digest", 0));
    scratch.sign(&[&signed]);
    set_label(&digest, &digest_label(&digest, HashAlgorithm::Sha256));
    settle();
    scratch.guard("appraise func=FILE_CHECK\n", "enforce");
    for flags in ["O_WRONLY", "O_RDWR"] {
        assert_eq!(scratch.open_as(0, libc_flags(flags), &signed, 1), EPERM, "{flags}");
    }
    assert_eq!(scratch.status()["recent"][0]["cause"], "signed-file-opened-for-writing");
    assert!(opens(&signed) && opens(&digest));
    assert_eq!(scratch.open_as(0, libc_flags("O_WRONLY"), &digest, 1), 0, "a digest label is no promise");
    let new = scratch.on("new");
    fs::write(&new, "new").unwrap();
    eventually("what has been made is labelled at its last close", Duration::from_secs(2), || opens(&new));
    for file in [&new, &digest] {
        File::options().append(true).open(file).and_then(|mut file| file.write_all(b"more")).unwrap();
        assert!(opens(file), "the label follows what a writer who may write has written: {}", file.display());
        let expected = digest_label(file, HashAlgorithm::Sha256);
        eventually("the label is the content's digest", Duration::from_secs(2), || {
            label(file) == Some(expected.clone())
        });
    }
    assert!(scratch.alive());
}

#[test]
fn what_is_no_regular_file_is_not_asked_about() {
    let mut scratch = scratch!("what_is_no_regular_file_is_not_asked_about");
    let (pipe, folder) = (scratch.on("pipe"), scratch.on("folder"));
    must(command("mkfifo").arg(&pipe));
    fs::create_dir(&folder).unwrap();
    scratch.guard("measure func=FILE_CHECK\nappraise func=FILE_CHECK appraise_type=imasig\n", "enforce");
    let script = format!("ls '{}' >/dev/null; echo x > '{1}' & cat '{1}'; wait", folder.display(), pipe.display());
    assert_eq!(shell(&script).stdout, b"x\n");
    assert_eq!((scratch.listed(&pipe), scratch.listed(&folder)), (0, 0));
    assert!(!opens(&scratch.data("regular", 0)));
}

#[test]
fn many_accesses_to_one_file_at_once_are_one_measurement() {
    let mut scratch = scratch!("many_accesses_to_one_file_at_once_are_one_measurement");
    let signed = scratch.signed_program("signed");
    let data = scratch.data("data", USER);
    File::options().write(true).open(&data).unwrap().set_len(200 << 20).unwrap();
    settle();
    scratch.guard(&format!("{SIGNED_PROGRAMS}measure func=FILE_CHECK mask=MAY_READ\n"), "enforce");
    let opening: Vec<Child> =
        (0..40).map(|_| start(&mut scratch.tool(&["open", "0", data.to_str().unwrap(), "1"])).unwrap()).collect();
    let running: Vec<Child> = (0..40).map(|_| start(&mut command(&signed)).unwrap()).collect();
    for mut child in opening.into_iter().chain(running) {
        assert_eq!(ended(&mut child, PATIENCE).expect("nobody hangs").code(), Some(0));
    }
    assert_eq!((scratch.listed(&signed), scratch.listed(&data)), (1, 1));
    assert_eq!(scratch.status()["counts"]["hashed"], 2);
    scratch.proven();
}

#[test]
fn few_descriptors_are_enough() {
    let mut scratch = scratch!("few_descriptors_are_enough");
    let limited = scratch.path("limited-imara");
    fs::write(&limited, format!("#!/bin/sh\nulimit -n 96\nexec '{IMARA}' \"$@\"\n")).unwrap();
    fs::set_permissions(&limited, fs::Permissions::from_mode(0o755)).unwrap();
    let paths: Vec<PathBuf> = (0..300).map(|number| scratch.data(&format!("f{number}"), USER)).collect();
    let signed = scratch.signed_program("signed");
    settle();
    scratch.imara = limited;
    scratch.guard(&format!("{SIGNED_PROGRAMS}measure func=FILE_CHECK mask=MAY_READ\n"), "enforce");
    scratch.imara = IMARA.into();
    for _ in 0..2 {
        assert!(paths.iter().all(|path| opens(path)));
    }
    let status = scratch.status();
    let leases = status["kernel"]["leases"].as_u64().unwrap();
    assert!(leases > 0 && leases <= 24, "{leases} leases");
    assert_eq!(status["kernel"]["lost"], 0);
    shell(&format!("for file in '{}'/f*; do echo more >> \"$file\"; done", scratch.mnt.display()));
    assert!(paths.iter().all(|path| opens(path)) && runs(&signed) && scratch.alive());
    assert!(paths.iter().all(|path| scratch.listed(path) == 2));
    scratch.proven();
}

#[test]
fn a_guard_ends_in_order_while_it_reads_a_large_file() {
    let mut scratch = scratch!("a_guard_ends_in_order_while_it_reads_a_large_file");
    let large = scratch.on("large");
    File::create(&large).unwrap().set_len(1 << 40).unwrap();
    settle();
    scratch.guard("measure func=FILE_CHECK mask=MAY_READ\n", "enforce");
    let mut blocked = start(&mut scratch.tool(&["open", "0", large.to_str().unwrap(), "1"])).unwrap();
    thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    scratch.stop();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(ended(&mut blocked, PATIENCE).expect("nobody hangs").code(), Some(EPERM), "what cannot be measured");
    assert!(opens(&large), "nothing is guarded any more");
    scratch.guard("measure func=FILE_CHECK mask=MAY_READ\n", "enforce");
    assert_eq!(scratch.status()["gap"]["cause"], "stopped");
    scratch.proven();
}

#[test]
fn roots_own_store_through_a_mapping_is_seen_when_the_mapping_ends() {
    let mut scratch = scratch!("roots_own_store_through_a_mapping_is_seen_when_the_mapping_ends");
    let path = scratch.data("file", 0);
    scratch.sign(&[&path]);
    settle();
    scratch.guard("appraise func=FILE_CHECK mask=MAY_READ appraise_type=imasig\n", "enforce");
    assert!(opens(&path) && opens(&path));
    let mut mapping = Mapping::new(&scratch, 0, &path);
    mapping.store();
    drop(mapping);
    eventually("refused afterwards", Duration::from_secs(1), || !opens(&path));
}

#[test]
fn a_tpm_that_is_lost_while_the_guard_runs_shows_when_the_list_is_verified() {
    let mut scratch = scratch!("a_tpm_that_is_lost_while_the_guard_runs_shows_when_the_list_is_verified");
    let programs = ["one", "two"].map(|name| scratch.signed_program(name));
    settle();
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    assert!(runs(&programs[0]));
    scratch.proven();
    scratch.kill_swtpm();
    assert!(runs(&programs[1]) && runs(&programs[0]), "the entry stands, and accesses go on");
    assert!(!runs(&scratch.program("unsigned")));
    assert_eq!(scratch.listed(&programs[1]), 1);
    assert!(scratch.status()["list"]["not_in_tpm"].as_u64().unwrap() > 0);
    let verified = scratch.imara(&["measurement", "verify"]);
    assert!(matches!(verified.status.code(), Some(1 | 3)), "{verified:?}");
    assert!(scratch.alive());
}

#[test]
fn what_cannot_be_listed_is_refused_until_it_can() {
    let mut scratch = scratch!("what_cannot_be_listed_is_refused_until_it_can");
    /// A small file system for the runtime directory.
    struct Small(PathBuf);
    impl Drop for Small {
        fn drop(&mut self) {
            let _ = output(command("umount").arg("-l").arg(&self.0));
        }
    }
    let small = scratch.path("small");
    fs::create_dir(&small).unwrap();
    must(command("mount").args(["-t", "tmpfs", "-o", "size=256k", "none"]).arg(&small));
    let small = Small(small);
    scratch.run = small.0.join("run");
    let programs: Vec<PathBuf> = (0..40).map(|number| scratch.signed_program(&format!("p{number}"))).collect();
    settle();
    scratch.guard_with(SIGNED_PROGRAMS, "enforce", &["--tpm", "none"]);
    assert!(runs(&programs[0]));
    let filler = small.0.join("filler");
    let filled = output(command("dd").args(["if=/dev/zero", "bs=4k"]).arg(format!("of={}", filler.display()))).unwrap();
    assert!(!filled.status.success(), "the file system is full");
    // What is left of the list's last page.
    let refused = programs.iter().skip(1).filter(|path| !runs(path)).count();
    assert!(refused > 0);
    assert_eq!(scratch.status()["recent"][0]["cause"], "measurement-failed");
    assert!(runs(&programs[0]), "what is listed already");
    fs::remove_file(&filler).unwrap();
    assert!(programs.iter().all(|path| runs(path)), "there is room again");
    assert!(programs.iter().all(|path| scratch.listed(path) == 1));
    assert_eq!(scratch.list().len(), 1 + programs.len());
    let mut verify = command(IMARA);
    let verified =
        must(verify.args(["measurement", "verify", "-"]).stdin(File::open(scratch.run.join("measurements")).unwrap()));
    assert!(text(&verified.stdout).contains("entries 41"), "no entry is broken: {verified:?}");
    scratch.stop();
}
