//! What a label must be for a file to be used, and what becomes of it otherwise.

use crate::scratch::*;
use imara_engine::crypto;
use imara_format::hash::HashAlgorithm;
use serde_json::json;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::thread;

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
        if set_any_label(&scratch.program(&name), &bytes) {
            cases.push((name, cause));
        }
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
    eventually("the audit log has it", PATIENCE, || scratch.audit().contains("missing-hash"));
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
    eventually("what was fixed passes", PATIENCE, || runs(&unlabelled));
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
fn a_signed_file_is_not_opened_for_writing_and_a_new_one_is() {
    let mut scratch = scratch!("a_signed_file_is_not_opened_for_writing_and_a_new_one_is");
    let (signed, digest) = (scratch.data("signed", 0), scratch.data("digest", 0));
    scratch.sign(&[&signed]);
    set_label(&digest, &digest_label(&digest, HashAlgorithm::Sha256));
    settle();
    scratch.guard("appraise func=FILE_CHECK\n", "enforce");
    for flags in ["O_WRONLY", "O_RDWR"] {
        assert!(is_refused(scratch.open_as(0, libc_flags(flags), &signed, 1)), "{flags}");
    }
    assert_eq!(scratch.status()["recent"][0]["cause"], "signed-file-opened-for-writing");
    assert!(opens(&signed) && opens(&digest));
    assert_eq!(scratch.open_as(0, libc_flags("O_WRONLY"), &digest, 1), 0, "a digest label is no promise");
    let new = scratch.on("new");
    fs::write(&new, "new").unwrap();
    eventually("what has been made is labelled at its last close", PATIENCE, || opens(&new));
    for file in [&new, &digest] {
        File::options().append(true).open(file).and_then(|mut file| file.write_all(b"more")).unwrap();
        assert!(opens(file), "the label follows what a writer who may write has written: {}", file.display());
        let expected = digest_label(file, HashAlgorithm::Sha256);
        eventually("the label is the content's digest", PATIENCE, || label(file) == Some(expected.clone()));
    }
    assert!(scratch.alive());
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
        eventually("the remedy helps", PATIENCE, || runs(path));
        assert_eq!(scratch.imara(&["explain", name]).status.code(), Some(0));
    }
    let missing = scratch.imara(&["explain", "/no/such/file"]);
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    assert!(text(&missing.stderr).contains("/no/such/file"), "{missing:?}");
}

#[test]
fn who_writes_again_and_again_is_never_refused_by_the_label_of_a_moment_ago() {
    let mut scratch = scratch!("who_writes_again_and_again_is_never_refused_by_the_label_of_a_moment_ago");
    let files = [scratch.data("roots", 0), scratch.data("users", USER)];
    for file in &files {
        set_label(file, &digest_label(file, HashAlgorithm::Sha256));
    }
    settle();
    let uuid = scratch.uuid();
    scratch.guard(&format!("appraise func=FILE_CHECK fsuuid={uuid}\n"), "enforce");
    for file in &files {
        let refused = (0..500).filter(|_| match OpenOptions::new().append(true).open(file) {
            Ok(mut file) => file.write_all(b"more\n").is_err(),
            Err(error) => {
                assert!(is_refusal(&error), "{error}");
                true
            }
        });
        assert_eq!(refused.count(), 0, "{}", file.display());
        thread::scope(|scope| {
            let reader = scope.spawn(|| (0..500).filter(|_| !opens(file)).count());
            while !reader.is_finished() {
                let writer = OpenOptions::new().append(true).open(file);
                assert!(writer.and_then(|mut file| file.write_all(b"more\n")).is_ok(), "{}", file.display());
            }
            assert_eq!(reader.join().unwrap(), 0, "who reads meanwhile: {}", file.display());
        });
        eventually("the label follows", PATIENCE, || label(file) == Some(digest_label(file, HashAlgorithm::Sha256)));
    }
}

#[test]
fn a_new_file_is_open_to_all_until_its_last_writer_has_gone_and_labelled_then_however_it_was_made() {
    let mut scratch =
        scratch!("a_new_file_is_open_to_all_until_its_last_writer_has_gone_and_labelled_then_however_it_was_made");
    scratch.guard("appraise func=FILE_CHECK\n", "enforce");
    let labelled = |path: &Path| {
        eventually("it is labelled", PATIENCE, || opens(path) && label(path).is_some());
        assert_eq!(label(path), Some(digest_label(path, HashAlgorithm::Sha256)), "{}", path.display());
    };
    let made = scratch.on("made");
    let mut writer = File::create(&made).unwrap();
    for line in ["one\n", "two\n"] {
        writer.write_all(line.as_bytes()).unwrap();
        assert!(opens(&made), "to read, after {line:?}");
        let other = OpenOptions::new().append(true).open(&made);
        assert!(other.is_ok(), "to write, after {line:?}");
    }
    assert_eq!(scratch.open_as(USER, libc_flags("O_RDONLY"), &made, 1), 0);
    drop(writer);
    labelled(&made);

    // A lock's file has nobody who writes to it; a node is made without being opened.
    for way in ["nameless", "lock", "node"] {
        let path = scratch.on(way);
        must(&mut scratch.tool(&["make", way, path.to_str().unwrap()]));
        labelled(&path);
    }
    assert_eq!(scratch.status()["recent"], json!([]), "nothing was refused");
}
