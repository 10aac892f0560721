use super::*;
use crate::kernel_config::DEBIAN;
use proptest::prelude::*;

fn config(more: &str) -> KernelConfig {
    KernelConfig::parse(&format!("{DEBIAN}CONFIG_TRUSTED_KEYS=y\n{more}")).unwrap()
}

fn parse(line: &str) -> BootParameters {
    BootParameters::parse(line.as_bytes(), KernelVersion::V6_12, &config(""))
}

fn template(name_or_format: &str) -> Option<Template> {
    Some(Template::from_name_or_format(name_or_format).unwrap())
}

/// Offset, what was found, and the kind of each problem.
fn problems(parameters: &BootParameters) -> Vec<(usize, &str, ProblemKind)> {
    parameters.problems.iter().map(|problem| (problem.offset, problem.found.as_str(), problem.kind.clone())).collect()
}

/// What is read is `expected` but for the problems, and those are `kinds`, with what they found.
fn check(line: &str, expected: BootParameters, kinds: &[(&str, ProblemKind)]) {
    let mut found = parse(line);
    let reported: Vec<_> =
        found.problems.iter().map(|problem| (problem.found.as_str(), problem.kind.clone())).collect();
    assert_eq!(reported, kinds, "{line}");
    for problem in &found.problems {
        let at = line.get(problem.offset..).unwrap_or_default();
        assert!(at.starts_with(&problem.found), "{line}: {problem:?}");
    }
    found.problems.clear();
    assert_eq!(found, expected, "{line}");
}

#[test]
fn every_parameter_is_read() {
    let none = BootParameters::default;
    for (line, expected) in [
        ("", none()),
        ("root=/dev/sda1 ro quiet image_x=1 evmctl=1 imalike.x=1", none()),
        ("ima_policy=tcb", BootParameters { tcb: Some(Tcb::New), ..none() }),
        ("ima_policy=appraise_tcb", BootParameters { appraise_tcb: true, ..none() }),
        ("ima_policy=secure_boot", BootParameters { secure_boot: true, ..none() }),
        ("ima_policy=critical_data", BootParameters { critical_data: true, ..none() }),
        ("ima_policy=fail_securely", BootParameters { fail_securely: true, ..none() }),
        ("ima_tcb", BootParameters { tcb: Some(Tcb::Old), ..none() }),
        ("ima_appraise_tcb", BootParameters { appraise_tcb: true, ..none() }),
        ("ima_appraise=off", BootParameters { appraise: Some(AppraiseMode::Off), ..none() }),
        ("ima_appraise=log", BootParameters { appraise: Some(AppraiseMode::Log), ..none() }),
        ("ima_appraise=fix", BootParameters { appraise: Some(AppraiseMode::Fix), ..none() }),
        ("ima_appraise=enforce", BootParameters { appraise: Some(AppraiseMode::Enforce), ..none() }),
        ("ima_hash=sha3-256", BootParameters { hash: Some(HashAlgorithm::Sha3_256), ..none() }),
        ("ima_template=ima-modsig", BootParameters { template: template("ima-modsig"), ..none() }),
        ("ima_template=d-ng|n-ng", BootParameters { template: template("ima-ng"), ..none() }),
        ("ima_template_fmt=d|n", BootParameters { template: template("d|n"), ..none() }),
        ("ima_canonical_fmt", BootParameters { canonical_fmt: true, ..none() }),
        ("integrity_audit=1", BootParameters { integrity_audit: true, ..none() }),
        ("ima.ahash_minsize=0x1000", BootParameters { ahash_minsize: Some(4096), ..none() }),
        ("ima.ahash_bufsize=5k", BootParameters { ahash_bufsize: Some(8192), ..none() }),
        ("evm=fix", BootParameters { evm_fix: true, ..none() }),
        ("trusted.source=tee", BootParameters { trusted_source: Some(TrustedSource::Tee), ..none() }),
        ("trusted.rng=kernel", BootParameters { trusted_rng: Some(TrustedRng::Kernel), ..none() }),
        ("trusted.rng=default", BootParameters { trusted_rng: Some(TrustedRng::Default), ..none() }),
        ("trusted.rng=tpm", BootParameters { trusted_rng: Some(TrustedRng::Source(TrustedSource::Tpm)), ..none() }),
        ("lsm=integrity,selinux", BootParameters { lsm: Some("integrity,selinux".to_owned()), ..none() }),
    ] {
        check(line, expected, &[]);
    }
}

#[test]
fn words_are_taken_apart_as_the_kernel_does() {
    let both = || BootParameters { tcb: Some(Tcb::New), secure_boot: true, ..BootParameters::default() };
    for line in [
        "ima_policy=tcb|secure_boot",
        "ima-policy=tcb ima_policy=secure_boot",
        "IMA_POLICY=x ima_policy=\"tcb secure_boot\"",
        "\"ima_policy=tcb secure_boot\" quiet",
        "ima_policy=\"tcb\nsecure_boot\"",
        "\tima_policy=tcb\n\nima_policy=secure_boot\n",
        "ima-policy=tcb|secure_boot -- x",
        "ima_policy=tcb|secure_boot\0 ima_policy=appraise_tcb",
    ] {
        check(line, both(), &[]);
    }
    // 0xa0 is a space, also within a letter of several bytes.
    let line = b"x=\xc3\xa0ima_policy=tcb\xa0ima_policy=secure_boot";
    assert_eq!(BootParameters::parse(line, KernelVersion::V6_1, &config("")), both());
}

#[test]
fn an_oddity_is_reported_and_the_rest_counts() {
    use ProblemKind::*;
    let none = BootParameters::default;
    let tcb = || BootParameters { tcb: Some(Tcb::New), ..none() };
    for (line, expected, kinds) in [
        ("ima_policy=tcb|bogus|", tcb(), vec![("bogus", NoSuchPolicy), ("", NoSuchPolicy)]),
        ("ima_policy=TCB ima_policy=tcb", tcb(), vec![("TCB", NoSuchPolicy)]),
        ("ima_policy=tcb,secure_boot", none(), vec![("tcb,secure_boot", NoSuchPolicy)]),
        ("ima_policy=tcb|tcb", tcb(), vec![("tcb", TcbChosen("ima_policy=tcb"))]),
        ("ima_policy=tcb ima_tcb", tcb(), vec![]),
        (
            "ima_tcb ima_policy=tcb",
            BootParameters { tcb: Some(Tcb::Old), ..none() },
            vec![("tcb", TcbChosen("ima_tcb"))],
        ),
        ("ima_policy=tcb\" \"secure_boot", none(), vec![("tcb\"", NoSuchPolicy), ("\"secure_boot", NoSuchPolicy)]),
        (
            "ima_policy=\"tcb root=/dev/sda",
            tcb(),
            vec![("ima_policy=\"tcb root=/dev/sda", OpenQuote), ("root=/dev/sda", NoSuchPolicy)],
        ),
        ("ima_policy", none(), vec![("ima_policy", NoValue)]),
        ("ima_tcb=0", BootParameters { tcb: Some(Tcb::Old), ..none() }, vec![("ima_tcb=0", TakenAs("ima_tcb"))]),
        ("ima-tcbx", BootParameters { tcb: Some(Tcb::Old), ..none() }, vec![("ima-tcbx", TakenAs("ima_tcb"))]),
        (
            "ima_appraise_tcb=no",
            BootParameters { appraise_tcb: true, ..none() },
            vec![("ima_appraise_tcb=no", TakenAs("ima_appraise_tcb"))],
        ),
        (
            "ima_appraise=fixed",
            BootParameters { appraise: Some(AppraiseMode::Fix), ..none() },
            vec![("fixed", TakenAs("fix"))],
        ),
        ("ima_appraise=enf", none(), vec![("enf", NoneOf("off, log, fix, enforce"))]),
        (
            "ima_appraise=log ima_appraise=no",
            none(),
            vec![("log", Overridden("ima_appraise")), ("no", NoneOf("off, log, fix, enforce"))],
        ),
        (
            "ima_appraise=log ima-appraise=off",
            BootParameters { appraise: Some(AppraiseMode::Off), ..none() },
            vec![("log", Overridden("ima_appraise"))],
        ),
        ("ima_appraise", none(), vec![("ima_appraise", NoValue)]),
        (
            "ima_hash=sha0 ima_hash=sha512 ima_hash=sha1",
            BootParameters { hash: Some(HashAlgorithm::Sha512), ..none() },
            vec![("sha0", NoSuchHash(KernelVersion::V6_12)), ("ima_hash=sha1", Later("ima_hash=sha512".to_owned()))],
        ),
        ("ima_hash=sha256x", none(), vec![("sha256x", NoSuchHash(KernelVersion::V6_12))]),
        (
            "ima_template=ima ima_hash=sha256 ima_hash=sha1sum",
            BootParameters { template: template("ima"), hash: Some(HashAlgorithm::Sha1), ..none() },
            vec![("sha256", HashForLegacyTemplate), ("sha1sum", TakenAs("sha1"))],
        ),
        (
            "ima_template=ima ima_hash=sha512",
            BootParameters { template: template("ima"), ..none() },
            vec![("sha512", HashForLegacyTemplate)],
        ),
        (
            "ima_hash=sha512 ima_template=ima ima_template=ima-ng",
            BootParameters { template: template("ima-ng"), hash: Some(HashAlgorithm::Sha512), ..none() },
            vec![("ima", LegacyTemplateForHash(HashAlgorithm::Sha512))],
        ),
        (
            "ima_hash=sha512 ima_template=d|n",
            BootParameters { template: template("ima"), hash: Some(HashAlgorithm::Sha512), ..none() },
            vec![("d|n", LegacyTemplateUnchecked(HashAlgorithm::Sha512))],
        ),
        (
            "ima_hash=sha512 ima_template_fmt=d|n",
            BootParameters { template: template("d|n"), hash: Some(HashAlgorithm::Sha512), ..none() },
            vec![],
        ),
        (
            "ima_template=IMA ima_template=ima-sig ima_template_fmt=d-ng",
            BootParameters { template: template("ima-sig"), ..none() },
            vec![("IMA", NoSuchTemplate), ("ima_template_fmt=d-ng", Later("ima_template=ima-sig".to_owned()))],
        ),
        (
            "ima_template_fmt=d-ng|nope|n-ng ima_template_fmt=d-ng ima_template=ima",
            BootParameters { template: template("d-ng"), ..none() },
            vec![("nope", NoSuchField), ("ima_template=ima", Later("ima_template_fmt=d-ng".to_owned()))],
        ),
        ("ima_template_fmt=ima-ng", none(), vec![("ima-ng", NoSuchField)]),
        ("ima_template_fmt=d-ng|", none(), vec![("", NoSuchField)]),
        (
            "ima_template_fmt=d|d|d|d|d|d|d|d|d|d|d|d|d|d|d|d",
            none(),
            vec![("d|d|d|d|d|d|d|d|d|d|d|d|d|d|d|d", TooManyFields(16))],
        ),
        (
            "ima_template= ima_template=ima",
            BootParameters {
                template: Some(Template { name: Cow::Borrowed(""), fields: Cow::Borrowed(&[]) }),
                ..none()
            },
            vec![("ima_template=", EmptyTemplate), ("ima_template=ima", Later("ima_template=".to_owned()))],
        ),
        ("integrity_audit=yes", none(), vec![("yes", NotANumber)]),
        ("integrity_audit=1 integrity_audit=00", none(), vec![]),
        ("ima.ahash_bufsize=8M ima.ahash-minsize=09", none(), vec![("8M", NotANumber), ("09", NotANumber)]),
        ("ima_audit=1", none(), vec![("ima_audit=1", NotAParameter(KernelVersion::V6_12))]),
        ("ima.foo=1", none(), vec![("ima.foo=1", NotAParameter(KernelVersion::V6_12))]),
        ("evm evm=on", none(), vec![("evm", NoValue), ("on", NoneOf("fix"))]),
        (
            "evm=fixed evm=off",
            BootParameters { evm_fix: true, ..none() },
            vec![("fixed", TakenAs("fix")), ("off", NoneOf("fix"))],
        ),
        ("-- ima_policy=tcb x", none(), vec![("ima_policy=tcb", AfterDashes)]),
        ("ima=off", none(), vec![("ima=off", NotAParameter(KernelVersion::V6_12))]),
        (
            "trusted.source=tpm2 trusted.rng=none",
            BootParameters { trusted_source: Some(TrustedSource::Tpm), ..none() },
            vec![("tpm2", TakenAs("tpm")), ("none", NoneOf("default, kernel, a trusted key source"))],
        ),
        (
            "lsm=selinux lsm=bpf",
            BootParameters { lsm: Some("bpf".to_owned()), ..none() },
            vec![("selinux", Overridden("lsm"))],
        ),
    ] {
        check(line, expected, &kinds);
    }
}

#[test]
fn a_text_is_taken_up_to_its_most() {
    let long = "f".repeat(1025);
    for (length, appraise) in [(1024, None), (1025, Some(AppraiseMode::Log))] {
        let found = parse(&format!("ima_appraise=log ima_appraise={}", long.get(..length).unwrap()));
        assert_eq!(found.appraise, appraise, "{length}");
        let too_long = found.problems.iter().any(|problem| problem.kind == ProblemKind::TooLong(1024));
        assert_eq!(too_long, length == 1025);
    }
}

#[test]
fn a_problem_says_what_the_kernel_does() {
    let found = parse("ima_policy=tcb|x ima_appraise=offline");
    let said: Vec<_> = found.problems.iter().map(|problem| format!("{} {}", problem.found, problem.kind)).collect();
    assert_eq!(
        said,
        [
            "x is no built-in policy: it is ignored, the other items count",
            "offline is taken as `off`: only the beginning is compared"
        ]
    );
    assert_eq!(problems(&found).iter().map(|problem| problem.0).collect::<Vec<_>>(), [15, 30]);
}

#[test]
fn parameters_depend_on_the_build_options() {
    for (option, words) in [
        ("IMA", "ima_tcb ima_appraise_tcb ima_policy=tcb ima_hash=sha1 ima_template=ima ima.ahash_minsize=1"),
        ("IMA_APPRAISE_BOOTPARAM", "ima_appraise=off"),
        ("INTEGRITY_AUDIT", "integrity_audit=1"),
        ("EVM", "evm=fix"),
        ("TRUSTED_KEYS", "trusted.source=tpm trusted.rng=kernel"),
    ] {
        let without = config(&format!("CONFIG_{option}=n\n"));
        let parameters = BootParameters::parse(words.as_bytes(), KernelVersion::V6_12, &without);
        let expected: Vec<_> = words.split(' ').map(|word| (word, ProblemKind::NotBuiltIn(option))).collect();
        let found: Vec<_> = problems(&parameters).into_iter().map(|(_, found, kind)| (found, kind)).collect();
        assert_eq!(found, expected);
        assert_eq!(BootParameters { problems: Vec::new(), ..parameters }, BootParameters::default(), "{option}");
    }
}

#[test]
fn parameters_depend_on_the_kernel() {
    use KernelVersion::{Latest, V6_1, V6_12};
    let read = |line: &str, kernel| BootParameters::parse(line.as_bytes(), kernel, &config(""));
    assert_eq!(read("ima_hash=sha3-256", V6_1).hash, None);
    assert_eq!(read("trusted.source=dcp", V6_1).trusted_source, None);
    assert_eq!(read("trusted.source=dcp", V6_12).trusted_source, Some(TrustedSource::Dcp));
    assert_eq!(problems(&read("lsm=apparmor", V6_1)), [(4, "apparmor", ProblemKind::WithoutIntegrity)]);
    assert_eq!(problems(&read("lsm=apparmor", V6_12)), []);
    for (line, ima, kinds) in [
        ("ima=off", None, vec![(0, "ima=off", ProblemKind::NotAfterACrash)]),
        ("ima=off -- elfcorehdr=1", None, vec![(0, "ima=off", ProblemKind::NotAfterACrash)]),
        ("ima=off elfcorehdr=1", Some(false), vec![]),
        ("elfcorehdr=1 ima=off ima=only", Some(true), vec![(25, "only", ProblemKind::TakenAs("on"))]),
        ("elfcorehdr=1 ima=0", None, vec![(17, "0", ProblemKind::NoneOf("on, off"))]),
    ] {
        let found = read(line, Latest);
        assert_eq!((found.ima, problems(&found)), (ima, kinds), "{line}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read(line in proptest::collection::vec(any::<u8>(), 0..300)) {
        BootParameters::parse(&line, KernelVersion::Latest, &config(""));
    }

    #[test]
    fn any_words_are_read_and_every_problem_is_where_it_says(
        words in proptest::collection::vec("(ima|evm|lsm|trusted|integrity)[-_.](tcb|policy|hash|appraise|fmt)?=?\"?[a-z|, \"]{0,9}", 0..6)
    ) {
        let line = words.join(" ");
        for problem in parse(&line).problems {
            prop_assert!(line.get(problem.offset..).is_some_and(|at| at.starts_with(&problem.found)), "{line:?} {problem:?}");
        }
    }
}
