//! What the kernel does not ask about again, and everything that must make it ask.

use crate::scratch::*;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

#[test]
fn a_file_that_was_judged_is_not_asked_about_until_it_changes() {
    let mut scratch = scratch!("a_file_that_was_judged_is_not_asked_about_until_it_changes");
    type Change = fn(&Scratch, &Path);
    let cases: [(&str, u32, Change); 16] = [
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
        ("written by another name of it", 0, |scratch, path| {
            let other = scratch.on("another-name");
            fs::hard_link(path, &other).unwrap();
            // That was a change as well; what is judged now has both names.
            assert!(opens(path) && opens(&other));
            shell(&format!("echo more >> '{}'", other.display()));
        }),
        ("written by a name that it had before", 0, |scratch, path| {
            let moved = scratch.on("moved");
            fs::rename(path, &moved).unwrap();
            shell(&format!("echo more >> '{}'", moved.display()));
            fs::rename(&moved, path).unwrap();
        }),
        ("written through a bind mount", 0, |scratch, path| {
            let (place, name) = (scratch.path("bind"), path.file_name().unwrap().to_str().unwrap());
            fs::create_dir(&place).unwrap();
            must(command("mount").arg("--bind").arg(&scratch.mnt).arg(&place));
            shell(&format!("echo more >> '{}/{name}'; umount '{0}'", place.display()));
        }),
        ("written in another mount namespace", 0, |_, path| {
            must(command("unshare").args(["-m", "sh", "-ec", &format!("echo more >> '{}'", path.display())]));
        }),
        ("written after the file system was read-only for a while", 0, |scratch, path| {
            for how in ["remount,ro", "remount,rw"] {
                must(command("mount").args(["-o", how]).arg(&scratch.mnt));
                assert!(opens(path), "{how}");
            }
            shell(&format!("echo more >> '{}'", path.display()));
        }),
        ("another label of the same size", 0, |_, path| {
            let mut bytes = label(path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            set_label(path, &bytes);
        }),
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
        eventually(&format!("refused when {what}"), PATIENCE, || !opens(path));
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
        eventually(&format!("asked again after {what}"), PATIENCE, || {
            let before = scratch.events();
            !opens(&path) || scratch.events() > before
        });
    }
    eventually("an unlabelled file of the appraised owner is refused", PATIENCE, || !opens(&path));
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
fn who_has_it_open_for_writing_is_never_taken_for_nobody() {
    let mut scratch = scratch!("who_has_it_open_for_writing_is_never_taken_for_nobody");
    let path = scratch.data("file", 0);
    scratch.sign(&[&path]);
    // From before there was a guard, and until after there is one.
    let script = format!("exec 3>> '{}'; echo open; read line; echo more >&3; echo written; read line", path.display());
    let mut writer = command("sh");
    let mut writer = start(writer.args(["-ec", &script]).stdin(Stdio::piped()).stdout(Stdio::piped())).unwrap();
    let mut said = BufReader::new(writer.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "open");
    settle();
    scratch.guard("appraise func=FILE_CHECK mask=MAY_READ appraise_type=imasig\n", "enforce");
    for _ in 0..20 {
        assert!(opens(&path), "as it was signed");
    }
    writer.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    assert_eq!(said.next().unwrap().unwrap(), "written");
    assert!(!opens(&path), "at once");
    drop(writer.stdin.take());
    writer.wait().unwrap();
    assert!(!opens(&path) && scratch.alive());
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
    eventually("refused afterwards", PATIENCE, || !opens(&path));
}
