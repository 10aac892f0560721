//! File systems of every kind, as they are mounted, covered, unmounted and mounted again.

use crate::scratch::*;
use imara_format::hash::HashAlgorithm;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

const SIGNED: &str = "measure func=BPRM_CHECK\nappraise func=BPRM_CHECK appraise_type=imasig\n\
                      appraise func=FILE_CHECK mask=MAY_READ appraise_type=imasig\n";

/// Something that a test has mounted.
pub struct Mounted(pub PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = output(command("umount").arg("-l").arg(&self.0));
    }
}

/// Mounts a file system of this kind beside the scratch one; `None`, and a word of it, where the machine cannot.
pub fn mount(scratch: &Scratch, kind: &str, test: &str) -> Option<Mounted> {
    let place = scratch.path(&format!("on-{kind}"));
    fs::create_dir(&place).unwrap();
    let image = scratch.path(&format!("{kind}.img"));
    let (make, options): (Vec<&str>, &str) = match kind {
        "ext4" => (vec!["mkfs.ext4", "-q", "-F"], "loop"),
        "xfs" => (vec!["mkfs.xfs", "-q"], "loop"),
        "btrfs" | "btrfs-subvolume" => (vec!["mkfs.btrfs", "-q"], "loop"),
        "tmpfs" | "overlay" => (vec![], ""),
        other => panic!("{other}"),
    };
    let mut commands = Vec::new();
    if let Some((program, arguments)) = make.split_first() {
        File::create(&image).and_then(|file| file.set_len(400 << 20)).unwrap();
        let mut make = command(program);
        make.args(arguments).arg(&image);
        let mut mount = command("mount");
        mount.args(["-o", options]).arg(&image).arg(&place);
        commands.extend([make, mount]);
    } else if kind == "tmpfs" {
        let mut mount = command("mount");
        mount.args(["-t", "tmpfs", "none"]).arg(&place);
        commands.push(mount);
    } else {
        let layer = |name: &str| {
            let path = scratch.on(name);
            fs::create_dir(&path).unwrap();
            path.display().to_string()
        };
        let (lower, upper, work) = (layer("lower"), layer("upper"), layer("work"));
        let mut mount = command("mount");
        mount.args(["-t", "overlay", "none", "-o"]).arg(format!("lowerdir={lower},upperdir={upper},workdir={work}"));
        mount.arg(&place);
        commands.push(mount);
    }
    for command in &mut commands {
        match output(command) {
            Ok(done) if done.status.success() => {}
            other => {
                println!("skipped: {test}: needs {kind}: {other:?}");
                return None;
            }
        }
    }
    let mounted = Mounted(place);
    if kind == "btrfs-subvolume" {
        let sub = mounted.0.join("sub");
        if output(command("btrfs").args(["-q", "subvolume", "create"]).arg(&sub))
            .is_ok_and(|done| done.status.success())
        {
            drop(mounted);
            let place = scratch.path("on-btrfs-subvolume");
            must(command("mount").args(["-o", "loop,subvol=sub"]).arg(&image).arg(&place));
            return Some(Mounted(place));
        }
    }
    Some(mounted)
}

fn start_guard(scratch: &mut Scratch, watch: &Path, policy: &str, more: &[&str]) {
    let (path, key) = (scratch.path("policy"), scratch.certificate());
    fs::write(&path, policy).unwrap();
    let more = [&["--tpm", "none"], more].concat();
    if let Err(failed) = scratch.launch_with(watch, &path, &key, "enforce", &more) {
        panic!("{}", failed.stderr);
    }
}

fn program(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    copy("/bin/true", &path);
    path
}

#[test]
fn each_kind_of_file_system_is_guarded_and_every_change_is_seen() {
    const NAME: &str = "each_kind_of_file_system_is_guarded_and_every_change_is_seen";
    for kind in ["ext4", "xfs", "btrfs", "btrfs-subvolume", "tmpfs", "overlay"] {
        let mut scratch = scratch!("each_kind_of_file_system_is_guarded_and_every_change_is_seen");
        let Some(mounted) = mount(&scratch, kind, NAME) else {
            continue;
        };
        let on = |name: &str| mounted.0.join(name);
        let (signed, unsigned) = (program(&mounted.0, "signed"), program(&mounted.0, "unsigned"));
        let files: Vec<PathBuf> = ["appended", "mapped", "labelled", "given", "replaced", "users-mapped"]
            .iter()
            .map(|name| on(name))
            .collect();
        for path in &files {
            fs::write(path, format!("{}\n", path.display()).repeat(20)).unwrap();
        }
        std::os::unix::fs::chown(&files[5], Some(USER), Some(USER)).unwrap();
        let all: Vec<&Path> = files.iter().chain([&signed]).map(PathBuf::as_path).collect();
        scratch.sign(&all);
        settle();
        start_guard(&mut scratch, &mounted.0, SIGNED, &[]);
        assert!(runs(&signed) && !runs(&unsigned), "{kind}");
        assert_eq!(scratch.listed(&unsigned), 1, "{kind}: refused, and on record");
        assert!(files.iter().all(|path| opens(path)), "{kind}");
        settle();
        assert!(files.iter().all(|path| opens(path)), "{kind}");
        let before = scratch.events();
        assert_eq!(scratch.open_as(0, libc_flags("O_RDONLY"), &files[0], 500), 0, "{kind}");
        let asked = scratch.events() - before;
        // Changes in the layers of an overlay, and the store through a mapping on it, are not told.
        assert!(kind == "overlay" || asked < 20, "{kind}: asked {asked} times for 500 opens");

        shell(&format!("echo more >> '{}'", files[0].display()));
        assert!(!opens(&files[0]), "{kind}: appended to");
        Mapping::new(&scratch, 0, &files[1]).store();
        eventually(&format!("{kind}: stored to by root"), PATIENCE, || !opens(&files[1]));
        must(command("setfattr").args(["-x", "security.ima"]).arg(&files[2]));
        eventually(&format!("{kind}: its label removed"), PATIENCE, || !opens(&files[2]));
        must(command("chown").arg("7").arg(&files[3]));
        assert!(opens(&files[3]), "{kind}: still signed");
        fs::write(on("other"), "another\n").unwrap();
        fs::rename(on("other"), &files[4]).unwrap();
        assert!(!opens(&files[4]), "{kind}: replaced");
        Mapping::new(&scratch, USER, &files[5]).store();
        assert!(!opens(&files[5]), "{kind}: stored to by its owner");
        assert!(runs(&signed) && scratch.alive(), "{kind}");
        scratch.stop();
        unmount(&mounted.0);
    }
}

#[test]
fn the_files_of_an_image_that_nobody_can_write_are_judged_by_the_labels_that_it_was_made_with() {
    const NAME: &str = "the_files_of_an_image_that_nobody_can_write_are_judged_by_the_labels_that_it_was_made_with";
    for (kind, make) in [("squashfs", &["mksquashfs"][..]), ("erofs", &["mkfs.erofs", "--quiet"])] {
        let mut scratch =
            scratch!("the_files_of_an_image_that_nobody_can_write_are_judged_by_the_labels_that_it_was_made_with");
        let (folder, place, image) = (scratch.on("folder"), scratch.path("place"), scratch.path("read-only.img"));
        fs::create_dir(&folder).unwrap();
        fs::create_dir(&place).unwrap();
        program(&folder, "unsigned");
        let signed = program(&folder, "signed");
        scratch.sign(&[&signed]);
        let mut make_image = command(make[0]);
        make_image.args(&make[1..]);
        if kind == "erofs" {
            make_image.arg(&image).arg(&folder);
        } else {
            make_image.arg(&folder).arg(&image).args(["-quiet", "-no-progress"]);
        }
        let mut mount = command("mount");
        mount.args(["-t", kind, "-o", "loop"]).arg(&image).arg(&place);
        let done = output(&mut make_image).and_then(|_| output(&mut mount));
        if !done.as_ref().is_ok_and(|done| done.status.success()) {
            println!("skipped: {NAME}: needs {kind}: {done:?}");
            continue;
        }
        let mounted = Mounted(place);
        // Its times are whole seconds, which tell a later change only after the next one.
        thread::sleep(Duration::from_millis(2_100));
        start_guard(&mut scratch, &mounted.0, SIGNED, &[]);
        let (signed, unsigned) = (mounted.0.join("signed"), mounted.0.join("unsigned"));
        assert!(runs(&signed) && !runs(&unsigned), "{kind}");
        assert!(runs(&signed) && !runs(&unsigned), "{kind}: again");
        let before = scratch.events();
        assert_eq!(scratch.open_as(0, libc_flags("O_RDONLY"), &signed, 200), 0, "{kind}");
        assert!(scratch.events() - before < 20, "{kind}: it is not asked about each time");
        assert_eq!(scratch.listed(&unsigned), 1, "{kind}");
        scratch.stop();
    }
}

#[test]
fn a_file_system_is_unmounted_while_it_is_guarded_and_guarded_when_it_is_mounted_again() {
    let mut scratch = scratch!("a_file_system_is_unmounted_while_it_is_guarded_and_guarded_when_it_is_mounted_again");
    let (signed, unsigned) = (scratch.signed_program("signed"), scratch.program("unsigned"));
    let users: Vec<PathBuf> = (0..20).map(|number| scratch.data(&format!("users-{number}"), USER)).collect();
    scratch.sign(&users.iter().map(PathBuf::as_path).collect::<Vec<_>>());
    settle();
    let image = scratch.path("image");
    let mnt = scratch.mnt.clone();
    start_guard(&mut scratch, &mnt, SIGNED, &[]);
    for round in 0..5 {
        eventually("guarded", PATIENCE, || !runs(&unsigned));
        let mounted = || scratch.status()["not_mounted"] == serde_json::json!([]);
        eventually("it is mounted", PATIENCE, mounted);
        assert!(runs(&signed) && users.iter().all(|path| opens(path)), "{round}");
        settle();
        assert!(users.iter().all(|path| opens(path)), "{round}");
        assert!(scratch.status()["kernel"]["leases"].as_u64().unwrap() > 0, "{round}: leases are held");
        shell(&format!("echo x > '{}'; chmod 600 '{}'", scratch.on("written").display(), users[0].display()));
        // At the first attempt, with leases held and changes on their way.
        unmount(&mnt);
        eventually("nothing keeps the file system in use", PATIENCE, || {
            must(command("losetup").arg("-j").arg(&image)).stdout.is_empty()
        });
        let gone = |status: serde_json::Value| {
            let told = serde_json::json!([{ "path": mnt.to_str().unwrap() }]);
            status["watch"] == serde_json::json!([]) && status["not_mounted"] == told
        };
        eventually("it is told that it is not mounted", PATIENCE, || gone(scratch.status()));
        let said = scratch.imara(&["status"]);
        assert!(text(&said.stdout).contains(&format!("not mounted {}: ", mnt.display())), "{said:?}");
        let below = scratch.on("below");
        fs::write(&below, "on what the directory is without it\n").unwrap();
        assert!(opens(&below), "{round}: another file system, which nobody has named");
        fs::remove_file(&below).unwrap();
        must(command("mount").args(["-o", "loop"]).arg(&image).arg(&mnt));
    }
    assert!(scratch.alive());
}

#[test]
fn what_is_mounted_again_is_guarded_by_whatever_path_its_directory_was_named() {
    for way in ["a link", "from the working directory"] {
        let mut scratch = scratch!("what_is_mounted_again_is_guarded_by_whatever_path_its_directory_was_named");
        let (unsigned, image, mnt) = (scratch.program("unsigned"), scratch.path("image"), scratch.mnt.clone());
        let named = if way == "a link" {
            let link = scratch.path("link");
            std::os::unix::fs::symlink(&mnt, &link).unwrap();
            link
        } else {
            let up = std::env::current_dir().unwrap().components().skip(1).map(|_| "..").collect::<PathBuf>();
            up.join(mnt.strip_prefix("/").unwrap())
        };
        start_guard(&mut scratch, &named, SIGNED, &[]);
        assert!(!runs(&unsigned), "{way}");
        unmount(&mnt);
        eventually("it is known to be gone", PATIENCE, || scratch.status()["watch"].as_array().unwrap().is_empty());
        must(command("mount").args(["-o", "loop"]).arg(&image).arg(&mnt));
        eventually("guarded anew", PATIENCE, || !runs(&unsigned));
    }
}

#[test]
fn a_digest_label_follows_what_is_written_on_an_overlay() {
    const NAME: &str = "a_digest_label_follows_what_is_written_on_an_overlay";
    let mut scratch = scratch!("a_digest_label_follows_what_is_written_on_an_overlay");
    let Some(overlay) = mount(&scratch, "overlay", NAME) else {
        return;
    };
    start_guard(&mut scratch, &overlay.0, "appraise func=FILE_CHECK fsname=overlay\n", &[]);
    let file = overlay.0.join("file");
    let mut writer = File::create(&file).unwrap();
    for line in ["one\n", "two\n"] {
        writer.write_all(line.as_bytes()).unwrap();
        assert!(opens(&file), "while its maker writes: {line:?}");
    }
    drop(writer);
    for round in 0..20 {
        eventually("it is labelled", PATIENCE, || opens(&file));
        assert_eq!(label(&file), Some(digest_label(&file, HashAlgorithm::Sha256)), "{round}");
        File::options().append(true).open(&file).and_then(|mut file| file.write_all(b"more\n")).unwrap();
    }
    // Nobody has opened it for writing, by the overlay.
    assert!(opens(&file));
    set_label(&file, &[4, 4, 0]);
    assert!(!opens(&file), "a label that somebody has set stays");
}

#[test]
fn a_verdict_is_not_used_for_another_file_system_that_has_the_same_numbers() {
    let mut scratch = scratch!("a_verdict_is_not_used_for_another_file_system_that_has_the_same_numbers");
    let file = scratch.data("file", 0);
    fs::write(&file, "the content that was signed\n").unwrap();
    scratch.sign(&[&file]);
    let (mnt, image, evil) = (scratch.mnt.clone(), scratch.path("image"), scratch.path("evil"));
    unmount(&mnt);
    // The same file in every respect that stat(2) shows, but its content.
    copy(&image, &evil);
    write_over(&evil, "the content that ", "what nobody ever ");
    let shown = must(command("losetup").args(["--find", "--show"]).arg(&image)).stdout;
    let device = text(&shown).trim().to_owned();
    must(command("mount").args([&device, mnt.to_str().unwrap()]));
    settle();
    start_guard(&mut scratch, &mnt, SIGNED, &[]);
    for round in 0..3 {
        eventually("as it was signed", PATIENCE, || opens(&file));
        settle();
        assert!(opens(&file) && opens(&file), "{round}");
        for (other, good) in [(&evil, false), (&image, true)] {
            // One command, so that the guard may not see that nothing was mounted in between.
            shell(&format!(
                "umount '{mnt}'; losetup -d {device}; for i in $(seq 100); do losetup {device} '{other}' 2>/dev/null && break; sleep 0.01; \
                 done; mount {device} '{mnt}'",
                mnt = mnt.display(),
                other = other.display()
            ));
            eventually("guarded", PATIENCE, || opens(&file) == good);
            for _ in 0..10 {
                assert_eq!(opens(&file), good, "{round}: {}", text(&fs::read(&file).unwrap_or_default()));
            }
        }
    }
    unmount(&mnt);
    let _ = output(command("losetup").args(["-d", &device]));
    must(command("mount").args(["-o", "loop"]).arg(&image).arg(&mnt));
}

#[test]
fn what_is_mounted_in_a_named_directory_is_guarded_from_then_on_when_that_is_wanted() {
    const NAME: &str = "what_is_mounted_in_a_named_directory_is_guarded_from_then_on_when_that_is_wanted";
    for (follow, expected) in [("below", true), ("named", false)] {
        let mut scratch = scratch!("what_is_mounted_in_a_named_directory_is_guarded_from_then_on_when_that_is_wanted");
        for name in ["before", "later", "deeper"] {
            fs::create_dir(scratch.on(name)).unwrap();
        }
        let (mnt, before, later) = (scratch.mnt.clone(), scratch.on("before"), scratch.on("later"));
        must(command("mount").args(["-t", "tmpfs", "none"]).arg(&before));
        let before = Mounted(before);
        program(&before.0, "unsigned");
        start_guard(&mut scratch, &mnt, SIGNED, &["--follow", follow]);
        assert_eq!(!runs(&before.0.join("unsigned")), expected, "{follow}: mounted before");
        must(command("mount").args(["-t", "tmpfs", "none"]).arg(&later));
        let later = Mounted(later);
        program(&later.0, "unsigned");
        let reached = || !runs(&later.0.join("unsigned"));
        if expected {
            eventually("what is mounted later is guarded", PATIENCE, reached);
        } else {
            thread::sleep(Duration::from_millis(200));
            assert!(!reached(), "{follow}");
        }
        // Mounted elsewhere and moved in.
        let Some(elsewhere) = mount(&scratch, "ext4", NAME) else {
            continue;
        };
        program(&elsewhere.0, "unsigned");
        assert!(runs(&elsewhere.0.join("unsigned")), "{follow}: mounted elsewhere");
        must(command("mount").arg("--bind").arg(&elsewhere.0).arg(scratch.on("deeper")));
        let deeper = Mounted(scratch.on("deeper"));
        if expected {
            eventually("what is bound in is guarded", PATIENCE, || !runs(&deeper.0.join("unsigned")));
            assert!(!runs(&elsewhere.0.join("unsigned")), "by whatever path");
        }
        assert!(scratch.alive());
    }
}

#[test]
fn every_mount_namespace_is_guarded_when_that_is_wanted_and_files_are_listed_as_they_are_named_there() {
    const NAME: &str =
        "every_mount_namespace_is_guarded_when_that_is_wanted_and_files_are_listed_as_they_are_named_there";
    let scratch =
        scratch!("every_mount_namespace_is_guarded_when_that_is_wanted_and_files_are_listed_as_they_are_named_there");
    // A small machine of its own, whose file systems are nobody else's: everything on them may be guarded.
    let root = scratch.path("root");
    for name in ["", "bin", "lib64", "proc", "old", "tmp", "run", "box", "dev"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    let mut libraries = Vec::new();
    for tool in ["sh", "mount", "umount", "cp", "cat", "sleep", "unshare", "mkdir", "kill", "true"] {
        let shown =
            shell(&format!("p=$(command -v {tool}); case $p in /*) ;; *) p=/bin/{tool};; esac; echo $p; ldd $p"));
        let shown = text(&shown.stdout);
        let path = shown.lines().next().unwrap().to_owned();
        copy(&path, &root.join("bin").join(tool));
        libraries.push(shown);
    }
    copy(IMARA, &root.join("bin/imara"));
    libraries.push(text(&shell(&format!("ldd '{IMARA}'")).stdout));
    for library in libraries.iter().flat_map(|shown| shown.split_whitespace()).filter(|word| word.starts_with("/lib")) {
        let to = root.join("lib64").join(Path::new(library).file_name().unwrap());
        if !to.exists() {
            copy(library, &to);
        }
    }
    copy(scratch.certificate(), &root.join("key"));
    fs::write(root.join("policy"), "measure func=BPRM_CHECK\nappraise func=BPRM_CHECK\n").unwrap();
    let inside = r#"
        export LD_LIBRARY_PATH=/lib64
        imara guard --follow all --policy /policy --key /key --mode log --tpm none --runtime-dir /run/imara >/tmp/out 2>/tmp/err &
        while ! read line </tmp/out; do sleep 0.05; done 2>/dev/null
        imara mode enforce --runtime-dir /run/imara >/dev/null || exit 3
        cp /bin/true /tmp/unsigned
        /tmp/unsigned && echo 'ran: on the root'
        # A namespace with a file system that nobody else sees, as a container has.
        unshare -m sh -c 'mount -t tmpfs none /box && cp /bin/true /box/unsigned && sleep 2.5 && /box/unsigned && echo "ran: in another namespace"'
        # And one of an overlay, whose upper layer is made there.
        mkdir /tmp/upper /tmp/work
        unshare -m sh -c 'mount -t overlay none -o lowerdir=/bin,upperdir=/tmp/upper,workdir=/tmp/work /box && cp /bin/true /box/other && sleep 2.5 && /box/other && echo "ran: in an overlay"'
        imara measurement show --ascii --runtime-dir /run/imara
        imara status --runtime-dir /run/imara
    "#;
    fs::write(root.join("inside"), inside).unwrap();
    let outside = format!(
        "mount -t tmpfs -o size=512m none '{r}' -o mode=755 && cp -a '{s}/.' '{r}/' && cd '{r}' && cp -a /dev/null dev && mount -t proc none proc && \
         pivot_root . old && cd / && export LD_LIBRARY_PATH=/lib64 PATH=/bin && exec /bin/sh -c 'umount -l /old; sh /inside'",
        s = root.display(),
        r = {
            let place = scratch.path("place");
            fs::create_dir(&place).unwrap();
            place.display().to_string()
        }
    );
    // Everything that the small machine runs is labelled.
    let tools: Vec<PathBuf> = ["bin", "lib64"]
        .iter()
        .flat_map(|folder| fs::read_dir(root.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    for tool in &tools {
        fs::set_permissions(tool, fs::Permissions::from_mode(0o755)).unwrap();
    }
    must(command(IMARA).args(["sign", "--quiet", "-k"]).arg(scratch.private_key()).args(&tools));
    let mut unshare = command("timeout");
    unshare.args(["-s", "KILL", "90", "unshare", "-m", "-p", "-f", "--kill-child", "sh", "-ec", &outside]);
    let done = output(&mut unshare).unwrap();
    let (out, err) = (text(&done.stdout), text(&done.stderr));
    if out.is_empty() {
        panic!("{NAME}: {done:?}");
    }
    assert!(!out.contains("ran:"), "{out}\n{err}");
    // By their paths in the namespace that they were opened in.
    for path in ["/tmp/unsigned", "/box/unsigned", "/box/other"] {
        assert!(out.lines().any(|line| line.split(' ').nth(4) == Some(path)), "{path}: {out}\n{err}");
    }
}

#[test]
fn a_second_guard_of_the_same_file_system_is_refused_wherever_its_files_are() {
    let mut scratch = scratch!("a_second_guard_of_the_same_file_system_is_refused_wherever_its_files_are");
    let unsigned = scratch.program("unsigned");
    scratch.guard(SIGNED_PROGRAMS, "enforce");
    let first = scratch.pid();
    let beside = scratch.path("beside");
    fs::create_dir(&beside).unwrap();
    must(command("mount").arg("--bind").arg(&scratch.mnt).arg(&beside));
    let beside = Mounted(beside);
    let another = scratch.path("another-run");
    let run = std::mem::replace(&mut scratch.run, another);
    let (policy, key) = (scratch.path("policy"), scratch.certificate());
    let failed =
        scratch.launch_with(&beside.0, &policy, &key, "enforce", &["--tpm", "none"]).expect_err("a second guard");
    assert!(failed.stderr.contains(&format!("process {first}")), "{}", failed.stderr);
    scratch.run = run;
    assert!(!runs(&unsigned) && scratch.alive());
    let mut file = OpenOptions::new().append(true).open(&unsigned).unwrap();
    file.write_all(b"x").unwrap();
}
