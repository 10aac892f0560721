//! What the guard is told: the command line, else the configuration file, else the defaults.

use crate::command::certificates::Trust;
use crate::command::duration;
use crate::command::hmac_key::EVM_KEY_NAME;
use crate::command::keyring::named::KeyringName;
use crate::command::paths::read_text;
use crate::output::Failure;
use imara_engine::check::Mode;
use imara_format::evm::EvmMode;
use imara_format::hash::HashAlgorithm;
use imara_linux::hooks::bpf::OnDeath;
use imara_linux::hooks::fanotify::{Follow, Overdue};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the service's configuration is.
pub const DEFAULT_PATH: &str = "/etc/imara/imara.toml";
/// Where the socket, the list and the software TPM's state are.
pub const DEFAULT_RUNTIME_DIRECTORY: &str = "/run/imara";
/// Where is kept what outlives a boot: the version of the policy that was last in force.
pub const DEFAULT_STATE_DIRECTORY: &str = "/var/lib/imara";
/// The PCR that IMA measures into.
pub const DEFAULT_PCR: u32 = 10;
/// How long a decision may stand still.
pub const DEFAULT_DEADLINE: &str = "10s";
/// How long the guard may be silent.
pub const DEFAULT_SENTINEL: &str = "10s";

/// The configuration file; every key may be missing.
#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct File {
    /// Directories whose file systems are watched.
    pub watch: Option<Vec<PathBuf>>,
    /// The policy's path.
    pub policy: Option<PathBuf>,
    /// Certificates or public keys that labels are verified with.
    pub keys: Option<Vec<PathBuf>>,
    /// Keyrings of the kernel's that labels are verified with.
    pub keyrings: Option<Vec<String>>,
    /// Lists of files and keys that are never taken.
    pub block_list: Option<Vec<PathBuf>>,
    /// `enforce`, `log`, `fix` or `off`.
    pub mode: Option<String>,
    /// `auto`, `none`, `swtpm` or a device.
    pub tpm: Option<String>,
    /// Where the socket, the list and the software TPM's state are.
    pub runtime_dir: Option<PathBuf>,
    /// The template of rules without `template=`.
    pub template: Option<String>,
    /// The default hash.
    pub hash: Option<String>,
    /// The default PCR.
    pub pcr: Option<u32>,
    /// `optional` or `required`.
    pub policy_signature: Option<String>,
    /// `halt` or `continue`.
    pub missing_policy: Option<String>,
    /// Where is kept what outlives a boot.
    pub state_dir: Option<PathBuf>,
    /// `named`, `below` or `all`.
    pub follow: Option<String>,
    /// A span of time, or `none`.
    pub deadline: Option<String>,
    /// `refuse` or `allow`.
    pub on_deadline: Option<String>,
    /// A span of time, or `none`.
    pub sentinel: Option<String>,
    /// What EVM does from the start on: words such as `hmac x509 lock`.
    pub evm: Option<String>,
    /// EVM's HMAC key: an encrypted key in the kernel, or a file with its blob.
    pub evm_key: Option<PathBuf>,
    /// A file with the master key that opens the blob: its bytes, or a trusted key's blob, which the TPM unseals.
    pub evm_master: Option<PathBuf>,
    /// Certificates or public keys that EVM's signatures are verified with.
    pub evm_keys: Option<Vec<PathBuf>>,
    /// Whether EVM labels anew what was changed, whatever its label was.
    pub evm_fix: Option<bool>,
    /// `auto`, `1` or `2`.
    pub level: Option<String>,
    /// `allow` or `refuse`.
    pub on_death: Option<String>,
    /// `on` or `off`.
    pub protection: Option<String>,
}

/// Which TPM is extended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TpmChoice {
    /// The machine's, else a software TPM, else none.
    Auto,
    /// None.
    None,
    /// A software TPM.
    Software,
    /// This device.
    Device(PathBuf),
}

/// Which level is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The highest that the machine has.
    Auto,
    /// fanotify alone.
    One,
    /// fanotify and BPF LSM, or no start.
    Two,
}

/// What becomes of a start without a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingPolicy {
    /// The guard does not start.
    Halt,
    /// It starts with the empty policy, and says so.
    Continue,
}

/// All that the guard needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directories whose file systems are watched.
    pub watch: Vec<PathBuf>,
    /// The policy's path.
    pub policy: PathBuf,
    /// Certificates or public keys that labels are verified with.
    pub keys: Vec<PathBuf>,
    /// Keyrings that they are verified with, too, and what is never taken.
    pub trust: Trust,
    /// The mode at the start.
    pub mode: Mode,
    /// Which TPM is extended.
    pub tpm: TpmChoice,
    /// Where the socket, the list and the software TPM's state are.
    pub runtime_directory: PathBuf,
    /// The template of rules without `template=`.
    pub template: String,
    /// The default hash.
    pub hash: HashAlgorithm,
    /// The default PCR.
    pub pcr: u32,
    /// Whether a policy without a good signature is refused.
    pub policy_signature_required: bool,
    /// What becomes of a start without a policy.
    pub missing_policy: MissingPolicy,
    /// Where is kept what outlives a boot.
    pub state_directory: PathBuf,
    /// Which other file systems are watched.
    pub follow: Follow,
    /// After how long without anything moving a decision is overdue.
    pub deadline: Option<Duration>,
    /// What becomes of it then.
    pub on_deadline: Overdue,
    /// After how long of silence the sentinel takes the guard to hang; `None` for no sentinel.
    pub sentinel: Option<Duration>,
    /// Which level is wanted.
    pub level: Level,
    /// At level 2, what becomes of accesses when the guard has died.
    pub on_death: OnDeath,
    /// At level 2, whether the guard's process, files and maps are protected.
    pub protection: bool,
    /// EVM.
    pub evm: EvmConfig,
}

/// What EVM is to do.
#[derive(Clone, Debug)]
pub struct EvmConfig {
    /// From the start on.
    pub mode: EvmMode,
    /// Its HMAC key: an encrypted key in the kernel, or a file with its blob.
    pub key: PathBuf,
    /// A file with the master key that opens the blob.
    pub master: Option<PathBuf>,
    /// Certificates or public keys.
    pub keys: Vec<PathBuf>,
    /// `evm=fix`.
    pub fix: bool,
}

/// EVM's certificate, where none is named.
pub const DEFAULT_EVM_KEY: &str = "/etc/keys/x509_evm.der";

impl EvmConfig {
    fn new(file: &mut File) -> Result<Self, Failure> {
        let words = file.evm.as_deref().map(|words| words.split([' ', ',']).filter(|word| !word.is_empty()));
        let mode = match words {
            Some(words) => EvmMode::from_words(words).map_err(Failure::usage)?,
            // Whoever names keys wants them used.
            None if file.evm_key.is_some() && file.evm_keys.is_some() => EvmMode::HMAC | EvmMode::X509,
            None if file.evm_key.is_some() => EvmMode::HMAC,
            None if file.evm_keys.is_some() => EvmMode::X509,
            None => EvmMode::NONE,
        };
        let default = || vec![PathBuf::from(DEFAULT_EVM_KEY)].into_iter().filter(|path| path.exists()).collect();
        Ok(Self {
            mode,
            key: file.evm_key.take().unwrap_or_else(|| EVM_KEY_NAME.into()),
            master: file.evm_master.take(),
            keys: file.evm_keys.take().unwrap_or_else(default),
            fix: file.evm_fix.unwrap_or(false),
        })
    }
}

impl File {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`Failure`] that names the file and the place in it.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::failed(format_args!("{}: {error}", path.display()));
        let text = read_text(path).map_err(|error| failed(&error))?;
        toml::from_str(&text).map_err(|error| {
            failed(&error).next(
                "the keys are watch, policy, keys, keyrings, block-list, mode, tpm, runtime-dir, state-dir, template, hash, pcr, \
                     policy-signature, missing-policy, follow, deadline, on-deadline, sentinel, \
                     evm, evm-key, evm-master, evm-keys, evm-fix, level, on-death and protection",
            )
        })
    }
}

/// A span of time, or none.
fn span(name: &str, text: &str) -> Result<Option<Duration>, Failure> {
    match text {
        "none" => Ok(None),
        text => duration::parse(text).map(Some).map_err(|error| Failure::usage(format_args!("{name}: {error}"))),
    }
}

impl Config {
    /// Puts `file` in order.
    ///
    /// # Errors
    /// [`Failure`] that names what is missing or unknown.
    pub fn new(mut file: File) -> Result<Self, Failure> {
        let evm = EvmConfig::new(&mut file)?;
        let follow = match file.follow.as_deref().unwrap_or("named") {
            "named" => Follow::Named,
            "below" => Follow::Below,
            "all" => Follow::All,
            other => return Err(Failure::usage(format_args!("follow `{other}` is not named, below or all"))),
        };
        let deadline = span("deadline", file.deadline.as_deref().unwrap_or(DEFAULT_DEADLINE))?;
        let on_deadline = match file.on_deadline.as_deref().unwrap_or("refuse") {
            "refuse" => Overdue::Refuse,
            "allow" => Overdue::Allow,
            other => return Err(Failure::usage(format_args!("on-deadline `{other}` is not refuse or allow"))),
        };
        let sentinel = span("sentinel", file.sentinel.as_deref().unwrap_or(DEFAULT_SENTINEL))?;
        let level = match file.level.as_deref().unwrap_or("auto") {
            "auto" => Level::Auto,
            "1" => Level::One,
            "2" => Level::Two,
            other => return Err(Failure::usage(format_args!("level `{other}` is not auto, 1 or 2"))),
        };
        let on_death = match file.on_death.as_deref().unwrap_or("allow") {
            "allow" => OnDeath::Allow,
            "refuse" => OnDeath::Refuse,
            other => return Err(Failure::usage(format_args!("on-death `{other}` is not allow or refuse"))),
        };
        let protection = match file.protection.as_deref().unwrap_or("on") {
            "on" => true,
            "off" => false,
            other => return Err(Failure::usage(format_args!("protection `{other}` is not on or off"))),
        };
        if on_death == OnDeath::Refuse && level == Level::One {
            return Err(Failure::usage(
                "on-death = \"refuse\" needs level 2: at level 1 the kernel lets everything go on",
            ));
        }
        let watch = file.watch.unwrap_or_default();
        if watch.is_empty() && follow != Follow::All {
            return Err(Failure::usage("nothing is to be watched")
                .next(format_args!("name a directory with --watch, or `watch = [...]` in {DEFAULT_PATH}")));
        }
        let policy = file.policy.ok_or_else(|| {
            Failure::usage("no policy is named")
                .next(format_args!("name one with --policy, or `policy = \"...\"` in {DEFAULT_PATH}"))
        })?;
        let mode = file.mode.as_deref().unwrap_or("enforce");
        let mode = Mode::from_name(mode)
            .ok_or_else(|| Failure::usage(format_args!("mode `{mode}` is not one of enforce, log, fix, off")))?;
        let hash = file.hash.as_deref().unwrap_or("sha256");
        let hash = HashAlgorithm::from_name(hash)
            .ok_or_else(|| Failure::usage(format_args!("hash algorithm `{hash}` is not known")))?;
        let pcr = file.pcr.unwrap_or(DEFAULT_PCR);
        if pcr > 23 || pcr == 16 || pcr == 23 {
            return Err(Failure::usage(format_args!("PCR {pcr} cannot hold a measurement list"))
                .next("choose one from 8 to 14; IMA's is 10 (16 and 23 can be reset by anybody, and there are 24)"));
        }
        let tpm = match file.tpm.as_deref().unwrap_or("auto") {
            "auto" => TpmChoice::Auto,
            "none" => TpmChoice::None,
            "swtpm" => TpmChoice::Software,
            device if device.starts_with('/') => TpmChoice::Device(device.into()),
            other => {
                return Err(Failure::usage(format_args!("TPM `{other}` is not auto, none, swtpm or a device's path")));
            }
        };
        let policy_signature_required = match file.policy_signature.as_deref().unwrap_or("optional") {
            "optional" => false,
            "required" => true,
            other => {
                return Err(Failure::usage(format_args!("policy-signature `{other}` is not optional or required")));
            }
        };
        let missing_policy = match file.missing_policy.as_deref().unwrap_or("halt") {
            "halt" => MissingPolicy::Halt,
            "continue" => MissingPolicy::Continue,
            other => return Err(Failure::usage(format_args!("missing-policy `{other}` is not halt or continue"))),
        };
        // Told to others, and read again, wherever they or we are then.
        let absolute = |path: PathBuf| {
            std::path::absolute(&path).map_err(|error| Failure::failed(format_args!("{}: {error}", path.display())))
        };
        Ok(Self {
            policy_signature_required,
            missing_policy,
            follow,
            deadline,
            on_deadline,
            sentinel,
            evm,
            level,
            on_death,
            protection,
            state_directory: absolute(file.state_dir.unwrap_or_else(|| DEFAULT_STATE_DIRECTORY.into()))?,
            watch,
            policy: absolute(policy)?,
            keys: file.keys.unwrap_or_default(),
            trust: Trust {
                keyrings: file
                    .keyrings
                    .unwrap_or_default()
                    .iter()
                    .map(|name| KeyringName::from(name.as_str()))
                    .collect(),
                block_lists: file.block_list.unwrap_or_default(),
            },
            mode,
            tpm,
            runtime_directory: file.runtime_dir.unwrap_or_else(|| DEFAULT_RUNTIME_DIRECTORY.into()),
            template: file.template.unwrap_or_else(|| "ima-sig".into()),
            hash,
            pcr,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        let file = |text: &str| toml::from_str::<File>(text).map_err(|error| error.to_string());
        assert!(file("wacth = []").unwrap_err().contains("wacth"));
        for (text, word) in [
            ("", "watched"),
            ("watch = ['/x']", "policy"),
            ("watch = ['/x']\npolicy = '/p'\nmode = 'hard'", "hard"),
            ("watch = ['/x']\npolicy = '/p'\ntpm = 'tpm0'", "tpm0"),
            ("watch = ['/x']\npolicy = '/p'\nhash = 'SHA256'", "SHA256"),
            ("watch = ['/x']\npolicy = '/p'\npcr = 16", "16"),
            ("watch = ['/x']\npolicy = '/p'\npolicy-signature = 'yes'", "yes"),
            ("watch = ['/x']\npolicy = '/p'\nmissing-policy = 'panic'", "panic"),
            ("watch = ['/x']\npolicy = '/p'\nfollow = 'some'", "some"),
            ("watch = ['/x']\npolicy = '/p'\ndeadline = '10'", "10m"),
            ("watch = ['/x']\npolicy = '/p'\non-deadline = 'hope'", "hope"),
            ("watch = ['/x']\npolicy = '/p'\nsentinel = 'soon'", "sentinel"),
            ("watch = ['/x']\npolicy = '/p'\nevm = 'hmac, sha1'", "sha1"),
            ("watch = ['/x']\npolicy = '/p'\nlevel = '3'", "auto, 1 or 2"),
            ("watch = ['/x']\npolicy = '/p'\non-death = 'hope'", "hope"),
            ("watch = ['/x']\npolicy = '/p'\nlevel = '1'\non-death = 'refuse'", "needs level 2"),
            ("watch = ['/x']\npolicy = '/p'\nprotection = 'some'", "some"),
        ] {
            let failure = Config::new(file(text).unwrap()).unwrap_err();
            assert!(failure.what.contains(word), "{text}: {}", failure.what);
        }
        let config = Config::new(file("watch = ['/x']\npolicy = '/p'").unwrap()).unwrap();
        assert_eq!((config.mode, config.pcr, config.tpm), (Mode::Enforce, 10, TpmChoice::Auto));
        for (text, mode) in [
            ("", 0),
            ("evm-key = 'evm-key'", 1),
            ("evm-keys = ['/c']", 2),
            ("evm-keys = ['/c']\nevm-key = '/b'", 3),
            ("evm-keys = ['/c']\nevm = 'x509, lock'", 0x8000_0002),
            ("evm = '6'", 6),
        ] {
            let config = Config::new(file(&format!("watch = ['/x']\npolicy = '/p'\n{text}")).unwrap()).unwrap();
            assert_eq!(config.evm.mode, EvmMode(mode), "{text}");
        }
    }
}
