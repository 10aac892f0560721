use super::*;
use imara_format::kernel_config::DEBIAN;
use imara_format::policy::Policy;

fn config(more: &str) -> KernelConfig {
    KernelConfig::parse(&format!("{DEBIAN}{more}")).unwrap()
}

/// A machine with Debian's kernel and `more` build options.
struct Machine {
    kernel: KernelVersion,
    architecture: Architecture,
    secure_boot: bool,
    trusted_boot: bool,
    config: KernelConfig,
}

impl Machine {
    fn new(kernel: KernelVersion, more: &str) -> Self {
        let config = config(more);
        Self { kernel, architecture: Architecture::X86, secure_boot: false, trusted_boot: false, config }
    }

    fn secure(self) -> Self {
        Self { secure_boot: true, ..self }
    }

    fn trusted(self) -> Self {
        Self { trusted_boot: true, ..self }
    }

    fn on(self, architecture: Architecture) -> Self {
        Self { architecture, ..self }
    }

    fn boot(&self, line: &str) -> BootState {
        let parameters = &BootParameters::parse(line.as_bytes(), self.kernel, &self.config);
        let Self { kernel, architecture, secure_boot, trusted_boot, ref config } = *self;
        Boot { parameters, config, kernel, architecture, secure_boot, trusted_boot }.state()
    }
}

fn debian(more: &str) -> Machine {
    Machine::new(KernelVersion::V6_12, more)
}

fn names(groups: &[Group]) -> Vec<&'static str> {
    groups.iter().map(|group| group.origin.name()).collect()
}

fn shown(policy: &Policy) -> String {
    policy.rules.iter().map(|rule| format!("{rule}\n")).collect()
}

const BUILD_TIME: &str = "CONFIG_IMA_APPRAISE_REQUIRE_MODULE_SIGS=y\nCONFIG_IMA_APPRAISE_REQUIRE_POLICY_SIGS=y\n";
const WRITE_POLICY: &str = "CONFIG_IMA_WRITE_POLICY=y\n";

#[test]
fn groups_of_rules_come_in_the_kernels_order() {
    let all = "ima_policy=critical_data|appraise_tcb|secure_boot|tcb";
    for (name, machine, line, default, custom) in [
        ("nothing", debian(""), "", vec![], vec![]),
        ("one", debian(""), "ima_policy=tcb", vec!["tcb"], vec![]),
        ("old", debian(""), "ima_tcb ima_policy=tcb", vec!["ima_tcb"], vec![]),
        ("fail_securely has none", debian(""), "ima_policy=fail_securely", vec![], vec![]),
        ("all", debian(""), all, vec!["tcb", "secure_boot", "appraise_tcb", "critical_data"], vec![]),
        (
            "architecture",
            debian("").secure(),
            all,
            vec!["tcb", "architecture", "secure_boot", "appraise_tcb", "critical_data"],
            vec!["architecture"],
        ),
        ("build-time", debian(BUILD_TIME), "", vec!["build-time"], vec!["build-time"]),
        (
            "build-time rules give way to secure_boot, but not in the custom policy",
            debian(BUILD_TIME).secure(),
            "ima_policy=secure_boot",
            vec!["architecture", "secure_boot"],
            vec!["architecture", "build-time"],
        ),
        (
            "build-time rules come before appraise_tcb",
            debian(BUILD_TIME),
            "ima_appraise_tcb",
            vec!["build-time", "appraise_tcb"],
            vec!["build-time"],
        ),
    ] {
        let state = machine.boot(line);
        assert_eq!((names(&state.default), names(&state.custom)), (default, custom), "{name}");
    }
}

#[test]
fn rules_of_a_group_depend_on_the_build_options() {
    let rules = |more: &str, line: &str| shown(debian(more).boot(line).lists().active());
    assert_eq!(
        rules(
            &format!(
                "{BUILD_TIME}CONFIG_IMA_APPRAISE_REQUIRE_FIRMWARE_SIGS=y\nCONFIG_IMA_APPRAISE_REQUIRE_KEXEC_SIGS=y\n"
            ),
            ""
        ),
        "appraise func=MODULE_CHECK appraise_type=imasig\nappraise func=FIRMWARE_CHECK appraise_type=imasig\n\
         appraise func=KEXEC_KERNEL_CHECK appraise_type=imasig\nappraise func=POLICY_CHECK appraise_type=imasig\n"
    );
    for (more, end) in [
        ("", "fsmagic=0x63677270\nappraise fowner=0\n"),
        (WRITE_POLICY, "fsmagic=0x63677270\nappraise func=POLICY_CHECK appraise_type=imasig\nappraise fowner=0\n"),
        ("CONFIG_IMA_APPRAISE_SIGNED_INIT=y\n", "fsmagic=0x63677270\nappraise fowner=0 appraise_type=imasig\n"),
    ] {
        let rules = rules(more, "ima_policy=appraise_tcb");
        assert!(rules.ends_with(end), "{rules}");
    }
}

#[test]
fn the_architecture_adds_rules_when_booted_securely() {
    use Architecture::{Arm64, Other, Powerpc, S390, X86};
    use KernelVersion::{Latest, V6_1, V6_12};
    const NO_SIGS: &str = "CONFIG_KEXEC_SIG=n\nCONFIG_MODULE_SIG=n\n";
    const KEYS: &str = "CONFIG_IMA_KEYRINGS_PERMIT_SIGNED_BY_BUILTIN_OR_SECONDARY=y\n";
    const MODSIG: &str = "CONFIG_IMA_APPRAISE_MODSIG=y\nCONFIG_MODULE_SIG=n\n";
    let measured = "measure func=KEXEC_KERNEL_CHECK\nmeasure func=MODULE_CHECK\n";
    let machine = |kernel, more: &str| Machine::new(kernel, more);
    for (name, machine, expected) in [
        ("no secure boot", machine(V6_12, "").on(X86).trusted(), ""),
        ("x86", machine(V6_12, "").secure(), measured),
        ("arm64", machine(V6_1, "").secure().on(Arm64), measured),
        ("no option", machine(V6_12, "CONFIG_IMA_ARCH_POLICY=n\n").secure(), ""),
        ("nobody tells", machine(V6_12, "CONFIG_IMA_SECURE_AND_OR_TRUSTED_BOOT=n\n").secure(), ""),
        ("s390", machine(V6_12, "").secure().on(S390), ""),
        ("another", machine(V6_12, "").secure().on(Other), ""),
        (
            "without the kernel's own signatures",
            machine(V6_1, NO_SIGS).secure(),
            "appraise func=KEXEC_KERNEL_CHECK appraise_type=imasig\nmeasure func=KEXEC_KERNEL_CHECK\n\
             appraise func=MODULE_CHECK appraise_type=imasig\nmeasure func=MODULE_CHECK\n",
        ),
        ("machine keys, 6.1", machine(V6_1, KEYS).secure(), measured),
        (
            "machine keys",
            machine(V6_12, KEYS).secure(),
            "measure func=KEXEC_KERNEL_CHECK\nappraise func=POLICY_CHECK appraise_type=imasig\n\
             measure func=MODULE_CHECK\n",
        ),
        ("POWER, trusted", machine(V6_12, "").on(Powerpc).trusted(), measured),
        (
            "POWER, secure, 6.1",
            machine(V6_1, MODSIG).on(Powerpc).secure(),
            "appraise func=KEXEC_KERNEL_CHECK appraise_type=imasig|modsig appraise_flag=check_blacklist\n\
             appraise func=MODULE_CHECK appraise_type=imasig|modsig appraise_flag=check_blacklist\n",
        ),
        (
            "POWER, both",
            machine(Latest, MODSIG).on(Powerpc).secure().trusted(),
            "measure func=KEXEC_KERNEL_CHECK template=ima-modsig\nmeasure func=MODULE_CHECK template=ima-modsig\n\
             appraise func=KEXEC_KERNEL_CHECK appraise_type=imasig|modsig\n\
             appraise func=MODULE_CHECK appraise_type=imasig|modsig\n",
        ),
    ] {
        let state = machine.boot("");
        assert_eq!(shown(state.lists().active()), expected, "{name}");
        assert_eq!(state.surprises, [], "{name}");
        assert_eq!(state.custom, state.default, "{name}");
    }
    // The kernel parses its own text, and refuses what it is not built for.
    let state = machine(V6_12, "").on(Powerpc).secure().trusted().boot("");
    assert_eq!(names(&state.default), ["architecture"]);
    assert_eq!(state.default[0].rules.len(), 2);
    assert!(matches!(&state.surprises[..], [Surprise::ArchitectureRule { .. }]), "{:?}", state.surprises);
    // Text carries the blacklist from 6.12 on; what is built in does not.
    let state = debian(&format!("{BUILD_TIME}{NO_SIGS}")).secure().boot("");
    let blacklist = |group: &Group| group.rules.iter().filter(|rule| rule.check_blacklist).count();
    assert_eq!(state.default.iter().map(blacklist).collect::<Vec<_>>(), [2, 0]);
}

#[test]
fn the_mode_is_the_parameters_unless_something_fixes_it() {
    use AppraiseMode::{Enforce, Fix, Log, Off};
    const NO_APPRAISE: &str = "CONFIG_IMA_APPRAISE=n\nCONFIG_IMA_APPRAISE_BOOTPARAM=n\n";
    for (name, machine, line, mode, fixed, surprises) in [
        ("default", debian(""), "", Enforce, None, vec![]),
        ("log", debian(""), "ima_appraise=log", Log, None, vec![]),
        ("the last one counts", debian(""), "ima_appraise=log ima_appraise=fix", Fix, None, vec![]),
        ("and it alone", debian(""), "ima_appraise=log ima_appraise=x", Enforce, None, vec![]),
        (
            "no parameter",
            debian("CONFIG_IMA_APPRAISE_BOOTPARAM=n\n"),
            "ima_appraise=off",
            Enforce,
            Some(ModeFixed::NoParameter),
            vec![],
        ),
        ("no appraisal", debian(NO_APPRAISE), "", Off, Some(ModeFixed::NotBuiltIn), vec![]),
        (
            "no appraisal, and rules",
            debian(NO_APPRAISE),
            "ima_appraise_tcb",
            Off,
            Some(ModeFixed::NotBuiltIn),
            vec![Surprise::AppraiseOff],
        ),
        (
            "secure boot",
            debian("").secure(),
            "ima_appraise=fix",
            Enforce,
            Some(ModeFixed::SecureBoot),
            vec![Surprise::ModeIgnored(Fix)],
        ),
        (
            "secure boot, and nothing to ignore",
            debian("").secure(),
            "ima_appraise=enforce",
            Enforce,
            Some(ModeFixed::SecureBoot),
            vec![],
        ),
        (
            "secure boot on s390",
            debian("").secure().on(Architecture::S390),
            "ima_appraise=off",
            Enforce,
            Some(ModeFixed::SecureBoot),
            vec![Surprise::ModeIgnored(Off)],
        ),
        (
            "secure boot that nobody tells of",
            debian("CONFIG_IMA_SECURE_AND_OR_TRUSTED_BOOT=n\n").secure(),
            "ima_appraise=off",
            Off,
            None,
            vec![],
        ),
        ("off", debian(""), "ima_appraise=off ima_appraise_tcb", Off, None, vec![]),
        (
            "off is not off with rules for what the kernel reads",
            debian(""),
            "ima_appraise=off ima_policy=secure_boot",
            Off,
            None,
            vec![Surprise::OffIsLog],
        ),
    ] {
        let state = machine.boot(line);
        assert_eq!((state.mode, state.mode_fixed, state.surprises), (mode, fixed, surprises), "{name}");
    }
}

#[test]
fn flags_and_classes_come_from_the_rules() {
    let none = AppraiseFlags::default();
    let all = AppraiseFlags { modules: true, firmware: true, policy: true, kexec: true };
    let appraise = "appraise";
    for (name, machine, line, flags, classes) in [
        ("nothing", debian(""), "", none, vec![]),
        ("tcb", debian(""), "ima_policy=tcb", none, vec!["measure"]),
        ("appraise_tcb", debian(""), "ima_policy=appraise_tcb", none, vec![appraise]),
        ("off", debian(""), "ima_policy=appraise_tcb|tcb ima_appraise=off", none, vec!["measure"]),
        (
            "a policy that needs a signature",
            debian(WRITE_POLICY),
            "ima_policy=appraise_tcb",
            AppraiseFlags { policy: true, ..none },
            vec![appraise],
        ),
        ("secure_boot", debian(""), "ima_policy=secure_boot", all, vec![appraise]),
        ("off is not off", debian(""), "ima_policy=secure_boot ima_appraise=off", all, vec![appraise]),
        ("build-time", debian(BUILD_TIME), "", AppraiseFlags { modules: true, policy: true, ..none }, vec![appraise]),
    ] {
        let state = machine.boot(line);
        let found: Vec<_> = state.classes().iter().map(|class| class.name()).collect();
        assert_eq!((state.flags, found), (flags, classes), "{name}");
    }
}

#[test]
fn the_hash_is_the_first_that_the_kernel_and_the_template_have() {
    use HashAlgorithm::{Md5, Sha1, Sha256, Sha512, Sm3, Streebog256};
    use HashBecause::{BuildOption, LegacyTemplate, NotThere, Parameter};
    for (line, more, hash, because, surprises) in [
        ("", "", Sha256, BuildOption, vec![]),
        ("ima_hash=md5", "", Md5, Parameter, vec![]),
        ("ima_hash=sha512", "", Sha512, Parameter, vec![Surprise::HashModule { hash: Sha512, other: Some(Sha256) }]),
        ("ima_hash=sha512", "CONFIG_CRYPTO_SHA512=y\n", Sha512, Parameter, vec![]),
        ("ima_hash=sm3", "", Sha256, NotThere(Sm3), vec![Surprise::HashNotThere(Sm3)]),
        ("ima_template=ima", "", Sha1, LegacyTemplate(Sha256), vec![]),
        ("ima_template=ima", "CONFIG_IMA_DEFAULT_HASH=\"md5\"\n", Md5, BuildOption, vec![]),
        ("ima_hash=md5 ima_template=ima", "", Md5, Parameter, vec![]),
        ("ima_template_fmt=d|n", "", Sha256, BuildOption, vec![]),
        (
            "ima_hash=sha512 ima_template=d|n",
            "",
            Sha512,
            Parameter,
            vec![Surprise::HashModule { hash: Sha512, other: None }],
        ),
        (
            "",
            "CONFIG_IMA_DEFAULT_HASH=\"streebog256\"\n",
            Streebog256,
            BuildOption,
            vec![Surprise::HashModule { hash: Streebog256, other: None }],
        ),
    ] {
        let state = debian(more).boot(line);
        assert_eq!((state.hash, state.hash_because, state.surprises), (hash, because, surprises), "{line} {more}");
    }
}

#[test]
fn ima_that_does_not_start_has_no_rules() {
    let crash = "elfcorehdr=1 ima=off ima_policy=tcb";
    for (name, machine, line, stopped) in [
        ("no option", debian("CONFIG_IMA=n\n"), "ima_policy=tcb", Stopped::NotBuiltIn),
        ("no fields", debian(""), "ima_policy=tcb ima_template=", Stopped::EmptyTemplate),
        ("off", Machine::new(KernelVersion::Latest, ""), crash, Stopped::TurnedOff),
        ("no hash", debian("CONFIG_IMA_DEFAULT_HASH=\"sm3\"\n"), "ima_policy=tcb", Stopped::NoHash(HashAlgorithm::Sm3)),
    ] {
        let state = machine.boot(line);
        assert_eq!(state.stopped, Some(stopped), "{name}");
        assert_eq!((state.default.len(), state.surprises), (0, vec![Surprise::Stopped(stopped)]), "{name}");
    }
    assert_eq!(debian("").boot(crash).stopped, None);
}

#[test]
fn secure_boot_switches_other_checks_on() {
    let enforced = |machine: Machine| {
        let state = machine.boot("");
        (state.module_sig_enforced, state.kexec_sig_enforced)
    };
    assert_eq!(enforced(debian("")), (false, false));
    assert_eq!(enforced(debian("").secure()), (true, true));
    assert_eq!(enforced(debian("").secure().on(Architecture::Powerpc)), (true, false));
    assert_eq!(enforced(debian("").secure().on(Architecture::S390)), (false, false));
    assert_eq!(enforced(debian("CONFIG_MODULE_SIG_FORCE=y\n")), (true, false));
    let evm = |kernel, secure_boot| Machine { secure_boot, ..Machine::new(kernel, "") }.boot("evm=fix").evm_fix;
    assert!(evm(KernelVersion::V6_12, true) && evm(KernelVersion::Latest, false) && !evm(KernelVersion::Latest, true));
}

#[test]
fn the_first_policy_that_is_loaded_replaces_the_default_one() {
    let target = Target::kernel(KernelVersion::V6_12);
    let rules = |text: &str| Policy::parse(text.as_bytes(), &target).unwrap().rules;
    let mut lists = debian(BUILD_TIME).secure().boot("ima_policy=tcb").lists();
    lists.load(rules("measure func=BPRM_CHECK\n")).unwrap();
    assert_eq!(
        shown(lists.active()),
        "measure func=KEXEC_KERNEL_CHECK\nmeasure func=MODULE_CHECK\n\
         appraise func=MODULE_CHECK appraise_type=imasig\nappraise func=POLICY_CHECK appraise_type=imasig\n\
         measure func=BPRM_CHECK\n"
    );
    assert!(lists.load(rules("audit\n")).is_err(), "once");
    let mut lists = debian(WRITE_POLICY).boot("").lists();
    lists.load(rules("measure\n")).unwrap();
    lists.load(rules("audit\n")).unwrap();
    assert_eq!(shown(lists.active()), "measure\naudit\n");
}

#[test]
fn lists_of_a_real_kernel_have_the_hash_and_the_template_foretold() {
    let many = "d-ng|n-ng|iuid|igid|imode|xattrnames|xattrlengths|xattrvalues|evmsig|sig|d-ngv2|n|d";
    let machine = Machine::new(KernelVersion::V6_1, "");
    for (case, line) in [
        ("tcb", "ima_policy=tcb".to_owned()),
        ("tcb-sha1", "ima_policy=tcb ima_hash=sha1".to_owned()),
        ("tcb-sha512", "ima_policy=tcb ima_hash=sha512".to_owned()),
        ("tpl-evm-sig", "ima_policy=tcb ima_template=evm-sig".to_owned()),
        ("tpl-ima-buf", "ima_policy=tcb ima_template=ima-buf".to_owned()),
        ("tpl-ima-modsig", "ima_policy=tcb ima_template=ima-modsig".to_owned()),
        ("tpl-ima-ng", "ima_policy=tcb ima_template=ima-ng".to_owned()),
        ("tpl-ima-ngv2", "ima_policy=tcb ima_template=ima-ngv2".to_owned()),
        ("tpl-ima-sigv2", "ima_policy=tcb ima_template=ima-sigv2".to_owned()),
        ("tpl-ima", "ima_policy=tcb ima_hash=sha1 ima_template=ima".to_owned()),
        ("tpl-ima-sha256", "ima_policy=tcb ima_template=ima".to_owned()),
        ("fmt-many", format!("ima_policy=tcb ima_template_fmt={many}")),
        ("fmt-d-n", "ima_policy=tcb ima_template_fmt=d|n".to_owned()),
        ("fmt-bad", "ima_policy=tcb ima_template_fmt=d-ng|nope|n-ng".to_owned()),
    ] {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/measurement_list/");
        let list = std::fs::read(format!("{path}{case}/ascii")).unwrap();
        let list = String::from_utf8_lossy(&list);
        let mut words = list.split(' ').skip(2);
        let (template, digest) = (words.next().unwrap(), words.next().unwrap());
        let state = machine.boot(&line);
        assert_eq!(template, state.template.listed_name(), "{case}");
        match digest.split(':').collect::<Vec<_>>()[..] {
            // The templates with the field `d` do not name their algorithm.
            [bare] => assert_eq!(bare.len(), 40, "{case}"),
            [hash, _] | [_, hash, _] => assert_eq!(hash, state.hash.name(), "{case}"),
            _ => panic!("{case}: {digest}"),
        }
    }
}
