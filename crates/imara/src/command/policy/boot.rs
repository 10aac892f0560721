//! `imara policy boot`: what a kernel's IMA and EVM do from boot, before anybody loads a policy.

use super::check::marked;
use super::shown;
use super::target::Kernel;
use super::this_machine::{self, nearest, parse_config, release};
use super::{SCHEMA, read};
use crate::command::CommandResult;
use crate::output::{Outcome, print, print_json};
use clap::{Args, ValueEnum};
use imara_engine::boot::{Architecture, Boot as Machine, BootState, Group, HashBecause, Surprise};
use imara_format::boot_parameters::{BootParameters, Problem, TrustedRng};
use imara_format::kernel_config::KernelConfig;
use imara_format::policy::KernelVersion;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Show what a kernel's IMA and EVM do from boot, by its command line and build options.
///
/// Without options it is this machine's running kernel; only secure and trusted boot must be said. What is printed is a
/// policy: the kernel's default one, and comments. Exit status: 0 all is as the command line asks, 1 something on it is
/// not taken as written or has no effect (each is shown on standard error), 2 wrong command line.
#[derive(Args)]
pub struct Boot {
    /// The kernel's command line; by default this machine's, /proc/cmdline.
    #[arg(long, value_name = "TEXT", conflicts_with = "cmdline_file")]
    cmdline: Option<String>,
    /// A file with the kernel's command line; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    cmdline_file: Option<PathBuf>,
    /// The kernel's build options; by default this machine's, /boot/config-VERSION.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The kernel; by default the known one nearest to the running one.
    #[arg(long, value_enum)]
    kernel: Option<Kernel>,
    /// The architecture, as far as it has a say in policies (x86 and arm64 with EFI); by default this machine's.
    #[arg(long, value_enum)]
    arch: Option<Arch>,
    /// The firmware starts only what is signed.
    #[arg(long)]
    secure_boot: bool,
    /// The firmware measures what it starts; this matters on powerpc alone.
    #[arg(long)]
    trusted_boot: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Arch {
    X86,
    Arm64,
    Powerpc,
    S390,
    None,
}

impl Arch {
    fn of_this_machine() -> Self {
        match std::env::consts::ARCH {
            "x86" | "x86_64" => Self::X86,
            "aarch64" => Self::Arm64,
            "powerpc" | "powerpc64" => Self::Powerpc,
            "s390x" => Self::S390,
            _ => Self::None,
        }
    }

    const fn architecture(self) -> Architecture {
        match self {
            Self::X86 => Architecture::X86,
            Self::Arm64 => Architecture::Arm64,
            Self::Powerpc => Architecture::Powerpc,
            Self::S390 => Architecture::S390,
            Self::None => Architecture::Other,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::X86 => "x86",
            Self::Arm64 => "arm64",
            Self::Powerpc => "powerpc",
            Self::S390 => "s390",
            Self::None => "none",
        }
    }
}

/// All that the answer depends on, and the answer.
struct Told {
    line: Vec<u8>,
    kernel: KernelVersion,
    arch: Arch,
    secure_boot: bool,
    trusted_boot: bool,
    config: KernelConfig,
    config_source: String,
    parameters: BootParameters,
    state: BootState,
}

impl Boot {
    /// Runs it.
    ///
    /// # Errors
    /// A file cannot be read, or is no kernel configuration.
    pub fn run(&self) -> CommandResult {
        let line = match (&self.cmdline, &self.cmdline_file) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(file)) => read(file)?,
            (None, None) => read(Path::new("/proc/cmdline"))?,
        };
        let (config, config_source) = match &self.config {
            Some(file) => (parse_config(file)?, file.display().to_string()),
            None => this_machine::config()?,
        };
        let kernel = self.kernel.map_or_else(|| nearest(&release()), Kernel::version);
        let arch = self.arch.unwrap_or_else(Arch::of_this_machine);
        let parameters = BootParameters::parse(&line, kernel, &config);
        let (secure_boot, trusted_boot) = (self.secure_boot, self.trusted_boot);
        let architecture = arch.architecture();
        let state =
            Machine { parameters: &parameters, config: &config, kernel, architecture, secure_boot, trusted_boot }
                .state();
        let told = Told { line, kernel, arch, secure_boot, trusted_boot, config, config_source, parameters, state };
        if self.json {
            print_json(&told.json());
        } else {
            print(told.for_people());
            // Nothing is left to tell anybody when standard error is gone.
            let _ = io::stderr().lock().write_all(told.problems().as_bytes());
        }
        let clean = told.parameters.problems.is_empty() && told.state.surprises.is_empty();
        Ok(if clean { Outcome::Done } else { Outcome::Failed })
    }
}

impl Told {
    /// The default policy as text, all else as its comments.
    fn for_people(&self) -> String {
        let (state, parameters, config) = (&self.state, &self.parameters, &self.config);
        let mut out = String::new();
        // Writing to a String cannot fail.
        let mut line = |name: &str, value: &str| {
            let _ = writeln!(out, "# {name:<11} {}", shown(value));
        };
        let on = |on: bool| if on { "on" } else { "off" };
        line("line", String::from_utf8_lossy(&self.line).trim());
        let firmware = format!("secure boot {}, trusted boot {}", on(self.secure_boot), on(self.trusted_boot));
        line("kernel", &format!("Linux {}, {}, {firmware}", self.kernel, self.arch.name()));
        line("options", &self.config_source);
        if let Some(stopped) = &state.stopped {
            line("IMA", &format!("does nothing: {stopped}"));
        } else {
            let classes: Vec<_> = state.classes().iter().map(|class| class.name()).collect();
            line("IMA", if classes.is_empty() { "does nothing until a policy is loaded" } else { "has a policy" });
            line("does", &if classes.is_empty() { "nothing".to_owned() } else { classes.join(", ") });
            let fixed = match &state.mode_fixed {
                Some(fixed) => format!("ima_appraise= cannot change it: {fixed}"),
                None if parameters.appraise.is_some() => "ima_appraise=".to_owned(),
                None => "the default; ima_appraise= can change it".to_owned(),
            };
            line("appraisal", &format!("{} ({fixed})", state.mode.name()));
            for (on, effect) in self.flags() {
                if on {
                    line("", effect);
                }
            }
            line("hash", &format!("{} ({})", state.hash, state.hash_because));
            let because = self.template_because();
            line("template", &format!("{} ({because}): {}", state.template.listed_name(), state.template.format()));
            line("PCR", &config.measure_pcr.to_string());
            let loads = if state.loads_again {
                "replaces this one, further ones are appended"
            } else {
                "replaces this one, then no other is taken"
            };
            line("loading", &format!("the first policy {loads}"));
            if state.fail_securely {
                line("", "signatures on filesystems that cannot be trusted fail");
            }
        }
        let evm = match (config.evm, state.evm_fix) {
            (false, _) => "not built in (CONFIG_EVM)",
            (true, true) => "fix",
            (true, false) => "without fix",
        };
        line("EVM", evm);
        line(
            "audit",
            if parameters.integrity_audit { "with informational records" } else { "without informational records" },
        );
        let signatures = |sig: bool, enforced: bool| match (sig, enforced) {
            (false, _) => "not looked at",
            (true, false) => "looked at",
            (true, true) => "needed",
        };
        let modules = signatures(config.module_sig, state.module_sig_enforced);
        let kexec = signatures(config.kexec_sig, state.kexec_sig_enforced);
        line("signatures", &format!("the files' own: {modules} for modules, {kexec} for kexec"));
        if state.stopped.is_none() {
            out.push_str("\n# The default policy, in force from boot\n");
            out.push_str(&rules(&state.default, ""));
            out.push_str("\n# What the kernel puts before the rules of the first policy that is loaded\n");
            out.push_str(&rules(&state.custom, "# "));
        }
        out
    }

    const fn flags(&self) -> [(bool, &'static str); 4] {
        let flags = self.state.flags;
        [
            (flags.modules, "modules only from files (init_module is refused in enforce mode)"),
            (flags.firmware, "firmware only from files (its fallback is refused in enforce mode)"),
            (flags.policy, "policies only by the path of a signed file, in every mode"),
            (flags.kexec, "kernels for kexec only from files (kexec_load is refused in enforce mode)"),
        ]
    }

    fn template_because(&self) -> &'static str {
        match (self.state.template_chosen, &*self.state.template.name) {
            (false, _) => "CONFIG_IMA_DEFAULT_TEMPLATE",
            (true, "") => "ima_template_fmt=",
            (true, _) => "ima_template=",
        }
    }

    /// Each oddity with its place.
    fn problems(&self) -> String {
        let mut out = String::new();
        for Problem { offset, found, kind } in &self.parameters.problems {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "command line, byte {}: `{}` {kind}", offset + 1, short(found));
            out.push_str(&marked("", self.line.trim_ascii_end(), *offset, found.len()));
        }
        for surprise in &self.state.surprises {
            let _ = writeln!(out, "{surprise}");
        }
        out
    }

    fn json(&self) -> Value {
        let (state, parameters, config) = (&self.state, &self.parameters, &self.config);
        let options: Map<_, _> = config.switches().map(|(option, on)| (option.to_owned(), json!(on))).collect();
        let groups = |groups: &[Group]| -> Vec<Value> {
            let rules = |group: &Group| group.rules.iter().map(ToString::to_string).collect::<Vec<_>>();
            let group = |group: &Group| json!({ "origin": group.origin.name(), "because": group.origin.because(), "rules": rules(group) });
            groups.iter().map(group).collect()
        };
        let hash_module = state.surprises.iter().any(|surprise| matches!(surprise, Surprise::HashModule { .. }));
        let rng = parameters.trusted_rng.map(|rng| match rng {
            TrustedRng::Default => "default",
            TrustedRng::Kernel => "kernel",
            TrustedRng::Source(source) => source.name(),
        });
        json!({
            "schema": SCHEMA,
            "command_line": String::from_utf8_lossy(&self.line).trim(),
            "kernel": self.kernel.name(),
            "architecture": self.arch.name(),
            "secure_boot": self.secure_boot,
            "trusted_boot": self.trusted_boot,
            "config": { "source": self.config_source, "options": options },
            "stopped": state.stopped.map(|stopped| stopped.to_string()),
            "classes": state.classes().iter().map(|class| class.name()).collect::<Vec<_>>(),
            "appraise": {
                "mode": state.mode.name(),
                "fixed": state.mode_fixed.map(|fixed| fixed.to_string()),
                "modules": state.flags.modules,
                "firmware": state.flags.firmware,
                "policy": state.flags.policy,
                "kexec": state.flags.kexec,
                "fail_securely": state.fail_securely,
            },
            "hash": {
                "name": state.hash.name(),
                "because": state.hash_because.to_string(),
                "needs_module": hash_module,
                "chosen": matches!(state.hash_because, HashBecause::Parameter),
            },
            "template": {
                "name": state.template.name,
                "format": state.template.format(),
                "because": self.template_because(),
            },
            "pcr": config.measure_pcr,
            "canonical_fmt": parameters.canonical_fmt,
            "ahash": { "minsize": parameters.ahash_minsize, "bufsize": parameters.ahash_bufsize },
            "integrity_audit": parameters.integrity_audit,
            "evm": { "built_in": config.evm, "fix": state.evm_fix },
            "trusted": { "source": parameters.trusted_source.map(|source| source.name()), "rng": rng },
            "lsm": parameters.lsm,
            "module_sig_enforced": state.module_sig_enforced,
            "kexec_sig_enforced": state.kexec_sig_enforced,
            "loads_again": state.loads_again,
            "policy_readable": config.ima_read_policy,
            "default": groups(&state.default),
            "custom": groups(&state.custom),
            "problems": parameters.problems.iter().map(|problem| json!({
                "offset": problem.offset,
                "found": problem.found,
                "message": problem.kind.to_string(),
            })).collect::<Vec<_>>(),
            "surprises": state.surprises.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    }
}

/// Text for a terminal, cut to what is read at a glance.
fn short(text: &str) -> String {
    const MOST: usize = 64;
    let cut = text.char_indices().nth(MOST).map_or(text, |(end, _)| &text[..end]);
    format!("{}{}", shown(cut), if cut.len() < text.len() { "…" } else { "" })
}

/// Rules with a comment before each group; `before` stands before each rule.
fn rules(groups: &[Group], before: &str) -> String {
    let mut out = String::new();
    for group in groups {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# {}: {}", group.origin.name(), group.origin.because());
        for rule in &group.rules {
            let _ = writeln!(out, "{before}{rule}");
        }
    }
    if groups.is_empty() { "# (no rules)\n".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_format::kernel_config::DEBIAN;
    use imara_format::policy::{Policy, Target};

    fn told(line: &str, more: &str) -> Told {
        let config = KernelConfig::parse(&format!("{DEBIAN}{more}")).unwrap();
        let kernel = KernelVersion::V6_12;
        let parameters = BootParameters::parse(line.as_bytes(), kernel, &config);
        let architecture = Architecture::X86;
        let (secure_boot, trusted_boot) = (true, false);
        let state =
            Machine { parameters: &parameters, config: &config, kernel, architecture, secure_boot, trusted_boot }
                .state();
        let (line, config_source, arch) = (line.as_bytes().to_vec(), "a test".to_owned(), Arch::X86);
        Told { line, kernel, arch, secure_boot, trusted_boot, config, config_source, parameters, state }
    }

    #[test]
    fn what_is_printed_is_the_default_policy() {
        for line in ["", "ima_policy=tcb|appraise_tcb\x1b[2J\nmeasure", "ima_template= ima_policy=tcb"] {
            let told = told(line, "CONFIG_IMA_APPRAISE_REQUIRE_MODULE_SIGS=y\n");
            let printed = told.for_people();
            assert!(!printed.contains('\x1b'), "{printed}");
            let policy = Policy::parse(printed.as_bytes(), &Target::kernel(KernelVersion::V6_12)).unwrap();
            let plain = |policy: &Policy| policy.rules.iter().map(ToString::to_string).collect::<Vec<_>>();
            assert_eq!(plain(&policy), plain(told.state.lists().active()), "{printed}");
        }
    }

    #[test]
    fn a_problem_is_marked_in_the_line() {
        assert_eq!(
            told("quiet ima_policy=tcb|bogus ima_appraise=log", "").problems(),
            "command line, byte 22: `bogus` is no built-in policy: it is ignored, the other items count\n   \
             | quiet ima_policy=tcb|bogus ima_appraise=log\n   \
             |                      ^^^^^\n\
             ima_appraise=log is ignored: secure boot is on, the mode stays `enforce`\n"
        );
    }
}
