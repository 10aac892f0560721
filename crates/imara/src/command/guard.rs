//! `imara guard`, and `imarad`.

use super::CommandResult;
use crate::guard::config::{Config, DEFAULT_PATH, File};
use crate::guard::run;
use std::path::{Path, PathBuf};

/// Guard file systems in the foreground: measure and appraise what is executed, mapped and opened.
///
/// Prints `ready` on standard output once it is in force; SIGTERM ends it in order. What is not on the command line comes
/// from the configuration file.
#[derive(clap::Args)]
pub struct Arguments {
    /// A directory; the whole file system that holds it is guarded (may be repeated).
    #[arg(long, value_name = "DIR", num_args = 1..)]
    watch: Vec<PathBuf>,
    /// Which other file systems are guarded: named (none), below (all that are mounted in these directories, now or later) or
    /// all (every one that any process sees).
    #[arg(long, value_name = "WHICH")]
    follow: Option<String>,
    /// The IMA policy.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// A certificate (DER or PEM) or public key that signatures are verified with (may be repeated).
    #[arg(long, value_name = "CERT", num_args = 1..)]
    key: Vec<PathBuf>,
    /// A keyring of the kernel's that they are verified with: .ima, _ima, a number (may be repeated). What is added to it or
    /// taken out of it later counts from then on.
    #[arg(long, value_name = "KEYRING")]
    keyring: Vec<String>,
    /// A list of files and keys that are never taken: bin:HEX, tbs:HEX, id:HEX, sha256:HEX, a line each; `%:.blacklist` is the
    /// kernel's (may be repeated).
    #[arg(long, value_name = "FILE")]
    block_list: Vec<PathBuf>,
    /// What a file that does not pass leads to: enforce, log, fix or off.
    #[arg(long, value_name = "MODE")]
    mode: Option<String>,
    /// The TPM to extend: auto, none, swtpm or a device.
    #[arg(long, value_name = "TPM")]
    tpm: Option<String>,
    /// Where the socket, the list and the software TPM's state are.
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// The template of rules without `template=`: ima-sig, ima-ng, ima-sigv2, ima-ngv2, evm-sig, ima.
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// The default hash.
    #[arg(long, value_name = "NAME")]
    hash: Option<String>,
    /// Refuse a policy without a good signature by one of the keys (its security.ima, or POLICY.sig).
    #[arg(long)]
    require_signed_policy: bool,
    /// What becomes of a start without a policy: halt (do not start) or continue (with an empty one).
    #[arg(long, value_name = "WHAT")]
    missing_policy: Option<String>,
    /// Where is kept what outlives a boot: the version of the policy that was last in force.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Answer an access when nothing has moved on its decision for so long (10s; `none`: never).
    #[arg(long, value_name = "TIME")]
    deadline: Option<String>,
    /// What it is answered with then, in enforce mode: refuse or allow.
    #[arg(long, value_name = "WHAT")]
    on_deadline: Option<String>,
    /// End the guard, so that every access goes on, when it has answered nothing for so long (10s), or has been stopped for 2 s; `none`:
    /// no process beside it watches over it.
    #[arg(long, value_name = "TIME")]
    sentinel: Option<String>,
    /// What EVM does from the start on: hmac, x509, allow-metadata-writes, lock, or the number of the kernel's file (may be repeated)
    /// [default: what there are keys for].
    #[arg(long, value_name = "MODE", num_args = 1.., value_delimiter = ',')]
    evm: Vec<String>,
    /// EVM's HMAC key: an encrypted key in the kernel, by name or number, or a file with its blob (a path with a `/`) [default:
    /// evm-key].
    #[arg(long, value_name = "KEY_OR_BLOB")]
    evm_key: Option<PathBuf>,
    /// A file with the master key that opens the blob: its bytes, or a trusted key's blob, which /dev/tpmrm0 unseals; otherwise it is
    /// looked for in the kernel.
    #[arg(long, value_name = "FILE")]
    evm_master: Option<PathBuf>,
    /// A certificate or public key that EVM's signatures are verified with (may be repeated) [default: /etc/keys/x509_evm.der, if
    /// there].
    #[arg(long, value_name = "CERT", num_args = 1..)]
    evm_cert: Vec<PathBuf>,
    /// EVM labels anew what was changed, whatever its label was, as the kernel's with evm=fix: for setting up.
    #[arg(long)]
    evm_fix: bool,
    /// Which level is wanted: auto (the highest that the machine has), 1 (fanotify) or 2 (fanotify and BPF LSM, or no start).
    #[arg(long, value_name = "LEVEL")]
    level: Option<String>,
    /// At level 2, what becomes of accesses when the guard has died: allow (all go on), or refuse (what was judged and has not
    /// changed goes on, the rest is refused until a guard is there again).
    #[arg(long, value_name = "WHAT")]
    on_death: Option<String>,
    /// At level 2, whether the guard's process, files and maps are protected from others, root included: on or off.
    #[arg(long, value_name = "WHETHER")]
    protection: Option<String>,
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs it.
///
/// # Errors
/// What keeps the guard from starting.
pub fn run(arguments: Arguments) -> CommandResult {
    let mut file = match &arguments.config {
        Some(path) => File::read(path)?,
        None if Path::new(DEFAULT_PATH).exists() => File::read(Path::new(DEFAULT_PATH))?,
        None => File::default(),
    };
    let some = |paths: Vec<PathBuf>| (!paths.is_empty()).then_some(paths);
    file.watch = some(arguments.watch).or(file.watch);
    file.policy = arguments.policy.or(file.policy);
    file.keys = some(arguments.key).or(file.keys);
    file.keyrings = (!arguments.keyring.is_empty()).then_some(arguments.keyring).or(file.keyrings);
    file.block_list = some(arguments.block_list).or(file.block_list);
    file.mode = arguments.mode.or(file.mode);
    file.tpm = arguments.tpm.or(file.tpm);
    file.runtime_dir = arguments.runtime_dir.or(file.runtime_dir);
    file.template = arguments.template.or(file.template);
    file.hash = arguments.hash.or(file.hash);
    file.missing_policy = arguments.missing_policy.or(file.missing_policy);
    file.state_dir = arguments.state_dir.or(file.state_dir);
    file.follow = arguments.follow.or(file.follow);
    file.deadline = arguments.deadline.or(file.deadline);
    file.on_deadline = arguments.on_deadline.or(file.on_deadline);
    file.sentinel = arguments.sentinel.or(file.sentinel);
    file.evm = (!arguments.evm.is_empty()).then(|| arguments.evm.join(" ")).or(file.evm);
    file.evm_key = arguments.evm_key.or(file.evm_key);
    file.evm_master = arguments.evm_master.or(file.evm_master);
    file.evm_keys = some(arguments.evm_cert).or(file.evm_keys);
    file.evm_fix = arguments.evm_fix.then_some(true).or(file.evm_fix);
    file.level = arguments.level.or(file.level);
    file.on_death = arguments.on_death.or(file.on_death);
    file.protection = arguments.protection.or(file.protection);
    if arguments.require_signed_policy {
        file.policy_signature = Some("required".into());
    }
    run::run(&Config::new(file)?)
}
