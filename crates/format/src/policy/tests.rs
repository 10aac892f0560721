//! The kernel's verdicts, line for line; the table of oddities; printing and hostile input.

use super::*;
use crate::hash::HashAlgorithm;
use proptest::prelude::*;

const OK: Result<(), Errno> = Ok(());
const BAD: Result<(), Errno> = Err(Errno::Einval);
const RANGE: Result<(), Errno> = Err(Errno::Erange);

/// A kernel with everything built in and all labels known.
fn complete(kernel: KernelVersion) -> Target {
    Target {
        lsm: Lsm::Selinux,
        lsm_labels: LsmLabels::Known,
        modsig: true,
        algorithms: AlgorithmSet::ALL,
        ..Target::kernel(kernel)
    }
}

fn verdict(line: &str, target: &Target) -> Result<(), Errno> {
    parse_line(line.as_bytes(), 1, target).map(drop).map_err(|error| error.errno)
}

fn read(line: &str) -> Rule {
    parse_line(line.as_bytes(), 1, &complete(KernelVersion::V6_12)).unwrap().unwrap()
}

#[test]
fn every_line_gets_the_verdict_and_error_number_that_the_kernel_gave_it() {
    let apparmor = include_str!("../../../../tests/vectors/policy/lines-apparmor/result.tsv");
    let selinux = include_str!("../../../../tests/vectors/policy/lines-selinux/result.tsv");
    let newer = include_str!("../../../../tests/vectors/policy/lines-linux-6.12/result.tsv");
    for (name, results, target) in [
        ("apparmor", apparmor, Target::kernel(KernelVersion::V6_1)),
        ("selinux", selinux, Target { lsm: Lsm::Selinux, ..Target::kernel(KernelVersion::V6_1) }),
        ("6.12", newer, Target::kernel(KernelVersion::V6_12)),
    ] {
        let mut lines = 0;
        for row in results.lines().skip(1) {
            let mut columns = row.splitn(3, '\t');
            let expected = match (columns.next(), columns.next()) {
                (Some("accept"), Some("")) => OK,
                (Some("reject"), Some("EINVAL")) => BAD,
                (Some("reject"), Some("ERANGE")) => RANGE,
                other => panic!("{name}: {other:?}"),
            };
            let line = columns.next().unwrap();
            assert_eq!(verdict(line, &target), expected, "{name}: {line}");
            lines += 1;
        }
        assert_eq!(lines, 203, "{name}");
    }
}

#[test]
fn oddities_are_those_of_the_kernel() {
    for (line, older, newer) in [
        ("measure", OK, OK),
        ("measure func=FILE_CHECK mask=^MAY_READ uid<1000", OK, OK),
        ("func=BPRM_CHECK", BAD, BAD),
        ("measure measure", BAD, BAD),
        ("measure func=POST_SETATTR", BAD, BAD),
        ("measure func=PATH_CHECK", OK, OK),
        ("measure func=FILE_MMAP", OK, OK),
        ("measure mask=MAY_READ mask=MAY_EXEC", BAD, BAD),
        ("measure mask=MAY_READ|MAY_EXEC", BAD, BAD),
        ("measure uid=0 euid=0", BAD, BAD),
        ("measure gid=0 egid=0", BAD, BAD),
        ("measure uid>=5", BAD, BAD),
        ("measure uid=>5", BAD, BAD),
        ("measure uid=4294967295", BAD, BAD),
        ("measure uid=99999999999999999999999", RANGE, RANGE),
        ("measure uid=99999999999999999999999x", RANGE, RANGE),
        ("measure uid=+5", OK, OK),
        ("measure uid=++5", BAD, BAD),
        ("measure uid=4294967294", OK, OK),
        ("measure fsuuid=8bcbe394-4f13-4144-be8e-5aa9ea2ce2f6garbage", OK, OK),
        ("measure fsuuid=00000000-0000-0000-0000-000000000000 fsuuid=8bcbe394-4f13-4144-be8e-5aa9ea2ce2f6", OK, OK),
        ("measure fsname=ext4 fsname=xfs", OK, OK),
        ("measure fsmagic=9FA0", OK, OK),
        ("measure fsmagic=+0X9fa0", OK, OK),
        ("measure fsmagic=0x", BAD, BAD),
        ("measure fsmagic=0 fsmagic=1", OK, OK),
        ("measure fsmagic=1 fsmagic=1", BAD, BAD),
        ("measure fsmagic=ffffffffffffffff", OK, OK),
        ("measure fsmagic=10000000000000000", RANGE, RANGE),
        ("measure fsmagic<1", BAD, BAD),
        ("measure pcr=63", OK, OK),
        ("measure pcr=64", BAD, BAD),
        ("measure pcr=-1", BAD, BAD),
        ("measure pcr=-0", OK, OK),
        ("measure pcr=+9", OK, OK),
        ("measure pcr=99999999999999999999999", BAD, BAD),
        ("dont_measure pcr=10", BAD, BAD),
        ("audit pcr=10", BAD, BAD),
        ("pcr=10 measure", OK, OK),
        ("measure template=ima-sig", OK, OK),
        ("template=ima-sig measure", BAD, BAD),
        ("measure template=d-ng|n-ng", OK, OK),
        ("measure template=nope", BAD, BAD),
        ("appraise appraise_type=imasig", OK, OK),
        ("appraise_type=imasig appraise", OK, OK),
        ("measure appraise_type=imasig", BAD, BAD),
        ("dont_appraise appraise_type=imasig", BAD, BAD),
        ("appraise func=BPRM_CHECK appraise_type=imasig|modsig", BAD, BAD),
        ("appraise appraise_type=imasig|modsig", BAD, BAD),
        ("appraise func=MODULE_CHECK appraise_type=imasig|modsig", OK, OK),
        ("appraise func=KEXEC_INITRAMFS_CHECK appraise_type=imasig|modsig appraise_type=imasig", OK, OK),
        ("appraise func=BPRM_CHECK digest_type=verity appraise_type=sigv3", OK, OK),
        ("appraise func=BPRM_CHECK appraise_type=sigv3 digest_type=verity", BAD, BAD),
        ("appraise appraise_type=imasig digest_type=verity", BAD, BAD),
        ("appraise func=BPRM_CHECK digest_type=verity", BAD, BAD),
        ("appraise digest_type=verity appraise_type=imasig", BAD, BAD),
        ("measure func=BPRM_CHECK digest_type=verity template=ima-ngv2", OK, OK),
        ("measure func=MODULE_CHECK digest_type=verity", BAD, BAD),
        ("dont_measure digest_type=verity", OK, OK),
        ("dont_appraise digest_type=verity", OK, OK),
        ("measure func=KEY_CHECK keyrings=.ima|.evm", OK, OK),
        ("measure func=KEY_CHECK keyrings=.ima|", BAD, BAD),
        ("measure keyrings=.ima", BAD, BAD),
        ("measure func=CRITICAL_DATA keyrings=.ima", BAD, BAD),
        ("measure func=KEY_CHECK euid=0", BAD, BAD),
        ("measure func=KEY_CHECK mask=MAY_READ", BAD, BAD),
        ("measure func=KEY_CHECK obj_type=x", BAD, BAD),
        ("measure func=KEY_CHECK fsmagic=0", BAD, BAD),
        ("measure func=KEY_CHECK gid=0", OK, OK),
        ("measure func=KEY_CHECK template=ima-sig pcr=4", OK, OK),
        ("appraise func=KEY_CHECK", BAD, BAD),
        ("measure func=CRITICAL_DATA label=selinux", OK, OK),
        ("measure func=KEY_CHECK label=selinux", BAD, BAD),
        ("appraise func=SETXATTR_CHECK appraise_algos=sha256,sha512", OK, OK),
        ("appraise func=SETXATTR_CHECK", BAD, BAD),
        ("dont_appraise func=SETXATTR_CHECK appraise_algos=sha256", BAD, BAD),
        ("appraise func=SETXATTR_CHECK appraise_algos=sha256 fowner=0", BAD, BAD),
        ("appraise func=SETXATTR_CHECK appraise_algos=sha256 uid=0", BAD, BAD),
        ("appraise func=SETXATTR_CHECK appraise_algos=sha256 permit_directio", BAD, BAD),
        ("appraise func=SETXATTR_CHECK appraise_algos=sha256 obj_type=x", OK, OK),
        ("appraise appraise_algos=sha256,", BAD, BAD),
        ("dont_appraise appraise_algos=sha256", BAD, BAD),
        ("appraise appraise_algos=SHA256", BAD, BAD),
        ("measure func=KEXEC_CMDLINE", OK, OK),
        ("measure func=KEXEC_CMDLINE obj_type=x", OK, OK),
        ("measure func=KEXEC_CMDLINE mask=MAY_EXEC", BAD, BAD),
        ("measure func=KEXEC_CMDLINE permit_directio", BAD, BAD),
        ("hash func=KEXEC_CMDLINE", BAD, BAD),
        ("hash func=FILE_CHECK", OK, OK),
        ("dont_hash fsname=tmpfs", OK, OK),
        ("measure permit_directio", OK, OK),
        ("measure permit_directio permit_directio", OK, OK),
        ("measure permit_directio=1", BAD, BAD),
        ("measure func=BPRM_CHECK # note", BAD, BAD),
        ("  # note", OK, OK),
        ("\t measure\t\tuid=0 \t", OK, OK),
        ("measure obj_type=x obj_type=y", BAD, BAD),
        ("measure\r", BAD, BAD),
        ("\r", BAD, BAD),
        ("appraise func=FIRMWARE_CHECK appraise_type=imasig appraise_flag=check_blacklist", BAD, OK),
        ("appraise func=MODULE_CHECK appraise_type=imasig appraise_flag=check_blacklist", BAD, OK),
        ("appraise func=MODULE_CHECK appraise_type=imasig|modsig appraise_flag=check_blacklist", OK, OK),
        ("appraise func=MODULE_CHECK appraise_type=imasig|modsig appraise_flag=other", BAD, OK),
        ("measure appraise_flag=foo", BAD, OK),
        ("measure appraise_flag=", BAD, BAD),
        ("measure func=MMAP_CHECK_REQPROT", BAD, OK),
        ("dont_audit", BAD, BAD),
        ("measure fs_subtype=sshfs", BAD, BAD),
    ] {
        assert_eq!(verdict(line, &complete(KernelVersion::V6_1)), older, "6.1: {line}");
        assert_eq!(verdict(line, &complete(KernelVersion::V6_12)), newer, "6.12: {line}");
        if line != "dont_audit" && !line.contains("fs_subtype") {
            assert_eq!(verdict(line, &complete(KernelVersion::Latest)), newer, "latest: {line}");
        }
    }
}

#[test]
fn the_newest_kernel_adds_words_and_a_kernel_without_options_lacks_some() {
    let latest = Target::kernel(KernelVersion::Latest);
    assert_eq!(verdict("dont_audit", &latest), OK);
    assert_eq!(verdict("measure fs_subtype=sshfs", &latest), OK);
    assert_eq!(verdict("measure fs_subtype=a fs_subtype=b", &latest), BAD);
    assert_eq!(verdict("measure func=KEY_CHECK fs_subtype=a", &latest), BAD);
    let bare = Target { key_measurement: false, ..latest.clone() };
    assert_eq!(verdict("measure func=KEY_CHECK keyrings=.ima", &bare), BAD);
    assert_eq!(verdict("appraise appraise_algos=sha3-256", &latest), BAD);
    assert_eq!(verdict("appraise appraise_algos=sha3-256", &Target::guard()), OK);
}

#[test]
fn label_conditions_are_taken_as_the_security_module_knows_them() {
    let target = |lsm, lsm_labels| Target { lsm, lsm_labels, ..Target::kernel(KernelVersion::V6_12) };
    for (line, lsm, known) in [
        ("measure obj_type=etc_t", Lsm::Selinux, OK),
        ("measure obj_type=etc_t", Lsm::AppArmor, BAD),
        ("measure subj_role=unconfined", Lsm::AppArmor, OK),
        ("measure subj_user=_", Lsm::Smack, OK),
        ("measure subj_role=_", Lsm::Smack, BAD),
        ("measure subj_user=_", Lsm::None, BAD),
    ] {
        assert_eq!(verdict(line, &target(lsm, LsmLabels::Known)), known, "{line}");
        assert_eq!(verdict(line, &target(lsm, LsmLabels::Unknown)), BAD, "{line}");
        assert_eq!(verdict(line, &target(lsm, LsmLabels::Inactive)), OK, "{line}");
    }
    let rule = parse_line(b"measure subj_type=a obj_user=b subj_type=c", 1, &Target::guard()).unwrap().unwrap();
    assert_eq!(rule.to_string(), "measure obj_user=b subj_type=c");
}

#[test]
fn an_error_names_the_place_and_the_next_step() {
    for (line, message, hint) in [
        ("measure  fnc=X", "line 1, column 10: `fnc=X` is not a word of the policy language", "did you mean `func=X`?"),
        ("mesure", "line 1, column 1: `mesure` is not a word of the policy language", "did you mean `measure`?"),
        ("measure fnuc=X", "line 1, column 9: `fnuc=X` is not a word of the policy language", "did you mean `func=X`?"),
        (
            "measure everything",
            "line 1, column 9: `everything` is not a word of the policy language",
            "a rule is an action, such as `measure`, and conditions, such as `func=BPRM_CHECK`",
        ),
        (
            "measure func = X",
            "line 1, column 9: `func` is not a word of the policy language",
            "write `func=VALUE`, without blanks",
        ),
        (
            "measure # x",
            "line 1, column 9: `#` is not a word of the policy language",
            "a comment needs a line of its own",
        ),
        (
            "measure func=BRPM_CHECK",
            "line 1, column 9: `BRPM_CHECK` is not a value of `func=`",
            "did you mean `BPRM_CHECK`?",
        ),
        (
            "measure uid>=5",
            "line 1, column 9: `=5` is not an id (a decimal number)",
            "there is no `>=` or `<=`: use the neighbouring number with `>` or `<`",
        ),
        (
            " uid=0",
            "line 1, column 2: the rule has no action",
            "begin it with measure, appraise, audit, hash or one of their dont_ forms",
        ),
        (
            "measure func=KEY_CHECK mask=MAY_READ",
            "line 1, column 24: `mask=` is not allowed with `func=KEY_CHECK`",
            "leave it out",
        ),
        (
            "measure label=x",
            "line 1, column 9: `label=` is not allowed in a rule without `func=`",
            "it goes with `func=CRITICAL_DATA`",
        ),
        (
            "measure uid=0 euid=1",
            "line 1, column 15: `euid=` and `uid=` exclude each other in one rule",
            "write one rule for each",
        ),
        (
            "measure\r",
            "line 1, column 1: `measure\r` is not a word of the policy language",
            "end lines with LF alone, not CR LF",
        ),
        ("measure func=X\0", "line 1, column 15: a byte 0 in the line", "a policy is plain text"),
    ] {
        let error = parse_line(line.as_bytes(), 1, &Target::kernel(KernelVersion::V6_12)).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.hint().as_str()), (message, hint), "{line}");
    }
    let error = parse_line(b"measure fsname=\xff", 3, &Target::guard()).unwrap_err();
    assert_eq!(error.to_string(), "line 3, column 16: byte 0xff is not UTF-8 text");
    assert_eq!(parse_line(b"# \xff", 1, &Target::guard()), Ok(None));
}

#[test]
fn a_policy_is_read_whole_or_refused_with_every_wrong_line() {
    let text = b"# note\n\nmeasure\n  appraise func=BPRM_CHECK\nwrong\nhash uid=0x1\ndont_measure";
    let errors = Policy::parse(text, &Target::guard()).unwrap_err();
    assert_eq!(errors.iter().map(|error| (error.line, error.column)).collect::<Vec<_>>(), [(5, 1), (6, 6)]);
    let policy = Policy::parse(b"# note\n\nmeasure\n  appraise func=BPRM_CHECK", &Target::guard()).unwrap();
    assert_eq!(policy.rules.iter().map(|rule| rule.line).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(Policy::parse(b"", &Target::guard()), Ok(Policy::default()));
    assert_eq!(lines(b"a\n\nb\n").map(|(number, _)| number).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn oversized_input_is_refused_and_its_error_stays_small() {
    for unit in ["x", "=", "uid=9", "func=", "mask=^", "fsmagic=f", "keyrings=a|", "sha256,", "\u{fc}"] {
        let line = [b"measure ".as_slice(), &unit.as_bytes().repeat(1 << 20)].concat();
        let error = parse_line(&line, 1, &Target::guard()).unwrap_err();
        assert!(error.token.chars().count() <= 64 && error.to_string().len() < 600, "{unit}");
        assert!(error.hint().len() < 300, "{unit}");
    }
}

#[test]
fn printing_keeps_the_meaning_in_a_form_that_loads() {
    for (line, printed, kernel) in [
        (
            "measure func=PATH_CHECK mask=^MAY_READ",
            "measure func=FILE_CHECK mask=^MAY_READ",
            "measure func=FILE_CHECK mask=^MAY_READ ",
        ),
        ("measure uid=4294967294", "measure uid=4294967294", "measure uid=-2 "),
        ("measure uid=+5", "measure uid=5", "measure uid=5 "),
        ("measure fsmagic=01021994", "measure fsmagic=0x1021994", "measure fsmagic=0x1021994 "),
        (
            "appraise digest_type=verity appraise_type=sigv3",
            "appraise digest_type=verity appraise_type=sigv3",
            "appraise appraise_type=sigv3 digest_type=verity ",
        ),
        ("measure template=d-ng|n-ng", "measure template=ima-ng", "measure template=ima-ng "),
        (
            "appraise appraise_algos=sha512,sha256",
            "appraise appraise_algos=sha256,sha512",
            "appraise appraise_algos=sha256,sha512 ",
        ),
        (
            "measure fsuuid=6E1A2B3C-4D5E-4F60-8172-839405162738",
            "measure fsuuid=6e1a2b3c-4d5e-4f60-8172-839405162738",
            "measure fsuuid=6e1a2b3c-4d5e-4f60-8172-839405162738 ",
        ),
        (
            "measure func=KEY_CHECK keyrings=a|b pcr=3",
            "measure func=KEY_CHECK keyrings=a|b pcr=3",
            "measure func=KEY_CHECK keyrings=a|b pcr=3 ",
        ),
    ] {
        assert_eq!(read(line).to_string(), printed);
        assert_eq!(KernelDisplay(&read(line)).to_string(), kernel);
    }
    let long = "f".repeat(70);
    assert_eq!(
        KernelDisplay(&read(&format!("audit fsname={long}"))).to_string(),
        format!("audit fsname={} ", &long[..63])
    );
}

#[test]
fn built_in_policies_are_those_of_the_kernel_and_load_again() {
    for (name, rules) in [
        ("tcb", 20),
        ("ima_tcb", 18),
        ("appraise_tcb", 16),
        ("ima_appraise_tcb", 16),
        ("secure_boot", 4),
        ("critical_data", 1),
        ("fail_securely", 0),
    ] {
        let policy = builtin(name).unwrap();
        assert_eq!(policy.rules.len(), rules, "{name}");
        for kernel in [KernelVersion::V6_1, KernelVersion::V6_12, KernelVersion::Latest] {
            let again = Policy::parse(policy.to_string().as_bytes(), &Target::kernel(kernel)).unwrap();
            assert_eq!(again.to_string(), policy.to_string(), "{name} on {kernel}");
        }
    }
    assert_eq!(BUILTIN_NAMES.len(), 7);
    assert_eq!(builtin("TCB"), None);
    let tcb = builtin("tcb").unwrap().to_string();
    let (first, last) = (tcb.lines().next(), tcb.lines().last());
    assert_eq!((first, last), (Some("dont_measure fsmagic=0x9fa0"), Some("measure func=POLICY_CHECK")));
}

#[test]
fn a_word_leads_back_to_its_variant() {
    assert!(Action::ALL.iter().all(|action| Action::from_name(action.name()) == Some(*action)));
    assert!(Func::ALL.iter().all(|func| Func::from_name(func.name()) == Some(*func)));
    assert!(Mask::ALL.iter().all(|mask| Mask::from_name(mask.name()) == Some(*mask)));
    assert!(HashAlgorithm::ALL.iter().all(|algorithm| AlgorithmSet::ALL.contains(*algorithm)));
    assert_eq!(AlgorithmSet::ALL.iter().count(), HashAlgorithm::ALL.len());
}

/// Tokens that often make a rule, with some that never do.
fn token() -> impl Strategy<Value = String> {
    let id = ("(uid|euid|gid|egid|fowner|fgroup)", "[=<>]", prop_oneof![Just(0u32), any::<u32>()]);
    prop_oneof![
        8 => proptest::sample::select(Func::ALL).prop_map(|func| format!("func={func}")),
        4 => (any::<bool>(), proptest::sample::select(Mask::ALL))
            .prop_map(|(contains, mask)| format!("mask={}{}", if contains { "^" } else { "" }, mask.name())),
        6 => id.prop_map(|(key, op, id)| format!("{key}{op}{id}")),
        2 => any::<u64>().prop_map(|magic| format!("fsmagic={magic:x}")),
        2 => "fsname=[!-~]{1,5}",
        1 => "fs_subtype=[!-~]{1,5}",
        1 => any::<u128>().prop_map(|n| {
            let hex = format!("{n:032x}");
            format!("fsuuid={}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
        }),
        2 => (0u32..70).prop_map(|pcr| format!("pcr={pcr}")),
        2 => proptest::sample::select(TemplateName::ALL).prop_map(|template| format!("template={template}")),
        2 => "(keyrings|label)=[a-z.]{1,4}(\\|[a-z.]{0,4}){0,2}",
        2 => Just("digest_type=verity".to_owned()),
        4 => "appraise_type=(imasig|imasig\\|modsig|sigv3)",
        2 => Just("appraise_flag=check_blacklist".to_owned()),
        2 => "appraise_algos=(sha256|sha512|sm3)(,sha1|,md5)?",
        2 => "(obj|subj)_(user|role|type)=[!-~]{1,4}",
        2 => Just("permit_directio".to_owned()),
        1 => "[ -~]{0,12}",
    ]
}

fn line() -> impl Strategy<Value = String> {
    let action = proptest::sample::select(Action::ALL).prop_map(|action| action.name());
    (action, proptest::collection::vec(token(), 0..5))
        .prop_map(|(action, tokens)| format!("{action} {}", tokens.join(" ")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_read_or_refused(text in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Err(errors) = Policy::parse(&text, &Target::guard()) {
            for error in errors {
                let _ = (error.to_string(), error.hint());
            }
        }
    }

    #[test]
    fn what_is_printed_is_read_back_as_the_same_rule(line in line(), version in proptest::sample::select(KernelVersion::ALL)) {
        let target = complete(version);
        match parse_line(line.as_bytes(), 1, &target) {
            Ok(Some(rule)) => {
                let printed = rule.to_string();
                prop_assert_eq!(parse_line(printed.as_bytes(), 1, &target), Ok(Some(rule)), "{}", printed);
            }
            Ok(None) => prop_assert!(false, "a rule is no comment"),
            Err(error) => {
                let _ = (error.to_string(), error.hint());
            }
        }
    }
}
