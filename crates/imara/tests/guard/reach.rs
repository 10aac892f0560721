//! By whatever name, mount, interpreter or loader code comes to be run.

use crate::scratch::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

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
        // Where it is refused when it is mapped anybody may read it.
        assert_eq!(shows(imara, user), expected || level_2(), "{} of user {user}", imara.display());
        assert_eq!(loads(&scratch), EPERM, "reading it lets nobody else pass");
    }
    assert_eq!(scratch.open_as(USER, libc_flags("O_RDONLY"), &library, 1), if level_2() { 0 } else { EPERM });
    scratch.sign(&[&library]);
    assert_eq!(loads(&scratch), 0, "signed");
    change_a_byte(&library);
    eventually("the changed library is refused", PATIENCE, || loads(&scratch) == EPERM);
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
        Err(error) if is_refusal(&error) => false,
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
    unmount(&bound);
    assert_eq!(ran, [false; 4], "{paths:?}");
    assert!(signed_runs && runs(&signed));
    assert_eq!(unshared, Some(126));
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
