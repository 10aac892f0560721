//! What is listed, and that the TPM holds it.

use crate::scratch::*;
use imara_engine::crypto;
use imara_format::hash::HashAlgorithm;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Child;

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
    eventually("the record of the program that ran", PATIENCE, || rules(&signed) > 0);
    assert_eq!((rules(&signed), rules(&excepted)), (1, 0), "{}", scratch.audit());
    let digest = crypto::hash(HashAlgorithm::Sha256, &[&fs::read(&signed).unwrap()]).unwrap();
    assert!(scratch.audit().contains(&format!("hash=\"{digest}\"")), "{}", scratch.audit());
    assert!(scratch.alive());
}

#[test]
fn the_list_has_the_kernels_form_and_is_proven_by_others_too() {
    for template in ["ima-sig", "ima-ng", "evm-sig", "ima"] {
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
