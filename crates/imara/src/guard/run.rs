//! From the configuration to a guard in force, and in order back again.

use super::answers::Answers;
use super::audit_log::AuditLog;
use super::config::{Config, MissingPolicy, TpmChoice};
use super::control::{self, Request};
use super::events::Events;
use super::level2::Programs;
use super::list::{self, Chain, Claims, KeepingUp, Mirror, OtherBanks};
use super::live_policy::{LivePolicy, Load};
use super::policy_source::{self, Demands, PolicySource};
use super::runtime::{self, HEARTBEAT, Left, Runtime};
use super::sentinel::{self, Beside};
use super::service_manager;
use super::software_tpm::{GuardsTpm, Reviver};
use super::tracing::Tracing;
use super::trusted_keys::TrustedKeys;
use crate::command::certificates::Trust;
use crate::command::paths::read;
use crate::output::{Failure, Outcome};
use imara_engine::check::Checker;
use imara_engine::crypto;
use imara_engine::keyring::Keyring;
use imara_engine::measure::MeasurementLog;
use imara_engine::policy::CompiledPolicy;
use imara_engine::tpm::Tpm;
use imara_format::policy::TemplateName;
use imara_format::template::Template;
use imara_linux::hooks::fanotify::{Guard, GuardError, Settings};
use imara_linux::swtpm::{Resumed, SwtpmError};
use imara_linux::sys;
use imara_linux::sys::fanotify::PermissionGroup;
use imara_linux::tpm_device::{DeviceTransport, RESOURCE_MANAGER};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// The TPM in use, and whether it is a root of trust.
#[derive(Debug)]
enum TpmInUse {
    None(String),
    Device(PathBuf),
    Software(Arc<GuardsTpm>),
}

/// How long it is waited at the end until everything was said.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(1);

/// What is told of the start.
#[derive(Debug, Default)]
struct Beginning {
    gap: Option<Value>,
    chain: Option<Chain>,
    /// What of the chain is compared only once the guard is in force.
    other_banks: Option<OtherBanks>,
    notes: Vec<String>,
}

fn broken(why: &str) -> String {
    format!("the chain of the measurement list is broken: {why}")
}

/// Runs a guard until SIGTERM or SIGINT; SIGHUP has it read its policy again, or ends it where it has a terminal, which is gone then.
/// What is worth knowing is said on standard error.
///
/// # Errors
/// [`Failure`] with what keeps it from starting; nothing is watched then.
pub fn run(config: &Config) -> Result<Outcome, Failure> {
    let events = Events::on_standard_error();
    let result = run_telling(config, &events);
    // Whoever has a standard error that takes nothing must not keep the guard from ending.
    events.fall_silent(LAST_WORDS);
    result
}

fn template(name: &str) -> Result<Template, Failure> {
    let known = TemplateName::from_name_or_format(name).and_then(|name| Template::built_in(name.name()));
    known.cloned().ok_or_else(|| {
        let names: Vec<_> = TemplateName::ALL.iter().map(|template| template.name()).collect();
        Failure::usage(format_args!("there is no template `{name}`"))
            .next(format_args!("choose one of {}", names.join(", ")))
    })
}

fn run_telling(config: &Config, events: &Arc<Events>) -> Result<Outcome, Failure> {
    let mut tell = |note: &str| events.say(note);
    let template = template(&config.template)?;
    // Else whatever root alone may read would be named as what is wrong.
    if !imara_linux::process::can_administer() {
        return Err(Failure::lacking("a guard needs the rights of root (CAP_SYS_ADMIN)").next("run it as root"));
    }
    let trusted = TrustedKeys::of(config);
    let keys = trusted.keyring()?;
    let demands =
        Demands { signature: config.policy_signature_required, state_directory: config.state_directory.clone() };
    let mut beginning = Beginning::default();
    let source = first_policy(config, &keys, &demands, &mut beginning)?;
    sys::process::forbid_dumps();
    let evm = super::evm::start(&config.evm, &mut beginning.notes)?;
    // Whatever OpenSSL loads, it must load before there is anything to wait for.
    crypto::warm_up().map_err(Failure::failed)?;
    let (runtime, left) = Runtime::take(&config.runtime_directory)?;
    let directory = runtime.path("");
    let boot = runtime::boot_id();
    let same_boot = left.as_ref().is_some_and(|left| left.state.boot_id == boot);
    // A software TPM answers one at a time, and one that is dead and not gone is not going to leave it.
    let stuck = left.as_ref().is_some_and(|left| left.stuck);
    let (in_use, tpm) = open_tpm(config, &runtime, !same_boot || stuck)?;
    // After the software TPM was started, which must not inherit it, and before any thread, which must.
    sys::process::block_termination();
    sys::lease::block_signals();
    if let TpmInUse::None(why) = &in_use {
        beginning.notes.push(format!("no TPM: {why}"));
    }
    if left.is_none() {
        // Nothing is guarded yet: should it not come to that, no guard was killed.
        runtime.write_state(true, None).map_err(Failure::failed)?;
    }
    let log = Arc::new(start_list(config, &runtime, left, same_boot, &in_use, tpm, &template, &mut beginning)?);
    let (audit, audit_thread) = AuditLog::open(&runtime.path(runtime::AUDIT_LOG), events).map_err(Failure::failed)?;
    let policy = CompiledPolicy::new(source.policy.clone());
    let checker = Checker::new(policy, keys, Arc::clone(&log), template, config.mode, Box::new(audit));
    let checker = Arc::new(checker.with_evm(evm));
    let software = match &in_use {
        TpmInUse::Software(software) => Some(Arc::clone(software)),
        TpmInUse::None(_) | TpmInUse::Device(_) => None,
    };
    let software_tpm = software.as_ref().map_or(0, |software| software.pid());
    // Before the sentinel, which takes a guard that is silent for one that hangs: a kernel's types are many.
    let programs = Arc::new(Programs::start(config, &directory, software_tpm)?);
    let listener = control::listen(&directory).map_err(Failure::failed)?;
    let group = PermissionGroup::open().map_err(|error| cannot_guard(GuardError::Fanotify(error)))?;
    let beside = Arc::new(Beside::start(&directory, config.sentinel, programs.level2()));
    if let Some(why) = beside.why_not() {
        beginning.notes.push(format!("no sentinel, so a guard that hangs holds up whoever opens a file: {why}"));
    }
    let settings = Settings {
        level2: programs.level2(),
        directories: config.watch.clone(),
        follow: config.follow,
        software_tpm,
        deadline: config.deadline,
        on_deadline: config.on_deadline,
        sentinel: Arc::clone(beside.link()),
    };
    let guard = Guard::start(Arc::clone(&checker), group, &settings).map_err(cannot_guard)?;
    programs.keep(&directory)?;
    // Only now, for the same reason.
    runtime.write_state(false, log.first_missing()).map_err(Failure::failed)?;
    let guard = Arc::new(Mutex::new(Some(Arc::new(guard))));
    // In force now. The guard of a signed policy that demands to be signed has begun; what it says of itself is told.
    if let Err(failure) = source.ask(&checker) {
        beginning.notes.push(failure.what);
    }
    if let Err(error) = source.remember_version(&demands) {
        beginning
            .notes
            .push(format!("the policy's version cannot be kept, so an older one will not be refused: {error}"));
    }
    let tracing = Arc::new(Tracing::default());
    let broken_since = Arc::<OnceLock<String>>::default();
    let answers = Arc::new(Answers {
        guard: Arc::clone(&guard),
        checker: Arc::downgrade(&checker),
        events: Arc::clone(events),
        about: about(config, &directory, &in_use, &beginning),
        broken_since: Arc::clone(&broken_since),
        started: now_seconds(),
        policy: LivePolicy::new(source, demands, trusted),
        tracing: Arc::clone(&tracing),
        programs: Arc::clone(&programs),
        software_tpm: software.clone(),
        beside: Arc::clone(&beside),
    });
    let asked = Arc::clone(&answers);
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || control::serve(&listener, move |request, peer| asked.answer(request, peer)))
        .map_err(Failure::failed)?;
    let heartbeat = runtime.heartbeat().map_err(Failure::failed)?;
    std::thread::Builder::new()
        .name("heartbeat".into())
        .spawn(move || {
            loop {
                std::thread::sleep(HEARTBEAT);
                heartbeat.beat();
            }
        })
        .map_err(Failure::failed)?;
    let keeping_up = match in_use {
        TpmInUse::None(_) => None,
        TpmInUse::Device(_) | TpmInUse::Software(_) => {
            let list = runtime.path(runtime::LIST);
            let reviver = software.map(|software| Reviver::new(software, Arc::clone(&guard), programs, list));
            let noted = runtime.heartbeat().map_err(Failure::failed)?;
            Some(KeepingUp::start(&log, noted, events, reviver).map_err(Failure::failed)?)
        }
    };
    {
        let (beside, guard) = (Arc::clone(&beside), Arc::clone(&guard));
        std::thread::Builder::new().name("beat".into()).spawn(move || beside.beat(&guard)).map_err(Failure::failed)?;
    }
    for note in &beginning.notes {
        tell(note);
    }
    if let Some(others) = beginning.other_banks.take() {
        let (events, broken_since) = (Arc::clone(events), Arc::clone(&broken_since));
        let compare = move || {
            if let Some(why) = others.differ() {
                events.say(broken(&why));
                // It is set here alone.
                let _ = broken_since.set(why);
            }
        };
        std::thread::Builder::new().name("list".into()).spawn(compare).map_err(Failure::failed)?;
    }
    // Whoever waits for it to be ready finds what it had to say.
    events.fall_silent(LAST_WORDS / 5);
    ready()?;
    let signal = wait_for_the_end(&answers, &mut tell);
    drop(answers);
    tell(&format!("ending on signal {signal}"));
    service_manager::tell("STOPPING=1");
    if let Some(keeping_up) = keeping_up {
        keeping_up.stop();
    }
    let outcome = stop(guard, &tracing, checker, log, in_use, runtime, audit_thread, &mut tell);
    beside.stop();
    outcome
}

/// Waits for the signal that ends the guard, and does meanwhile what SIGHUP wants.
fn wait_for_the_end(answers: &Answers, tell: &mut impl FnMut(&str)) -> i32 {
    use std::io::IsTerminal;
    let terminal = std::io::stdin().is_terminal() || std::io::stdout().is_terminal() || std::io::stderr().is_terminal();
    loop {
        let signal = sys::process::wait_for_signal();
        if signal != sys::process::HANGUP || terminal {
            return signal;
        }
        let own = std::process::id().cast_signed();
        match answers.answer(Request::LoadPolicy(Load::default()), own) {
            Ok(_) => tell("the policy, the keys and the block lists were read again and are in force"),
            Err(failure) => tell(&format!("the policy was not loaded: {}", failure.what)),
        }
    }
}

/// The policy to start with.
fn first_policy(
    config: &Config,
    keys: &Keyring,
    demands: &Demands,
    beginning: &mut Beginning,
) -> Result<PolicySource, Failure> {
    let shown = config.policy.display();
    let there = config.policy.try_exists().map_err(|error| Failure::failed(format_args!("{shown}: {error}")))?;
    if !there {
        if config.missing_policy == MissingPolicy::Continue {
            beginning.notes.push(format!(
                "there is no policy {shown}, so nothing is measured or appraised until one is loaded (imara policy load)"
            ));
            return PolicySource::missing(&config.policy);
        }
        return Err(Failure::failed(format_args!("there is no policy {shown}")).next(
            "write one (imara policy builtin tcb shows the kernel's), or let the guard start without it \
             (missing-policy = \"continue\")",
        ));
    }
    let source = PolicySource::read(&config.policy, keys, demands)?;
    source.check_version(demands)?;
    Ok(source)
}

/// The other way round: stop asking, then close the list, then the TPM.
#[allow(clippy::too_many_arguments)] // One call, where everything that was started comes together.
fn stop(
    guard: Arc<Mutex<Option<Arc<Guard>>>>,
    tracing: &Tracing,
    checker: Arc<Checker>,
    log: Arc<MeasurementLog>,
    in_use: TpmInUse,
    runtime: Runtime,
    audit_thread: std::thread::JoinHandle<()>,
    tell: &mut impl FnMut(&str),
) -> Result<Outcome, Failure> {
    if let Some(guard) = guard.lock().unwrap_or_else(PoisonError::into_inner).take() {
        guard.stop();
    }
    // Where there is none nothing is to be stopped.
    let _ = tracing.stop("the guard ended");
    // Should it answer again just now. What it lacks then, the next guard gives it.
    log.catch_up();
    let missed_from = log.first_missing();
    log.close_tpm();
    drop(checker);
    // The log's thread ends with the last checker; a command that is being answered may hold one for a moment.
    let patience = std::time::Instant::now();
    while !audit_thread.is_finished() && patience.elapsed() < std::time::Duration::from_secs(2) {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let mut outcome = Outcome::Done;
    if let TpmInUse::Software(software) = in_use
        && let Err(error) = software.stop()
    {
        tell(&format!("the software TPM did not stop in order: {error}"));
        outcome = Outcome::Failed;
    }
    // The socket is of no use to anybody now.
    let _ = std::fs::remove_file(runtime.path(runtime::SOCKET));
    runtime.write_state(true, missed_from).map_err(Failure::failed)?;
    Ok(outcome)
}

/// Reads and compiles a policy.
///
/// # Errors
/// [`Failure`] that names each line that is wrong.
pub fn read_policy(path: &Path) -> Result<CompiledPolicy, Failure> {
    let text = read(path).map_err(|error| Failure::failed(format_args!("{}: {error}", path.display())))?;
    policy_source::parse(path, &text).map(CompiledPolicy::new)
}

/// Reads certificates or public keys.
///
/// # Errors
/// [`Failure`] that names the file.
pub fn read_keys(paths: &[PathBuf]) -> Result<Keyring, Failure> {
    Trust::default().keyring(paths, None)
}

fn cannot_guard(error: GuardError) -> Failure {
    match &error {
        GuardError::Fanotify(_) => Failure::lacking(&error)
            .next("run as root (CAP_SYS_ADMIN), on a kernel with CONFIG_FANOTIFY_ACCESS_PERMISSIONS"),
        GuardError::Path { .. } => Failure::failed(&error)
            .next("watch (--watch, or `watch` in the configuration) names directories that are there"),
        GuardError::Pseudo { .. } => Failure::usage(&error).next("name a directory of a file system that holds files"),
        GuardError::Taken { .. } => Failure::failed(&error)
            .next("two guards of one file system would wait for each other: end the other one first"),
        GuardError::Thread(_) | GuardError::Level2(_) => Failure::failed(&error),
    }
}

fn open_tpm(config: &Config, runtime: &Runtime, fresh: bool) -> Result<(TpmInUse, Option<Tpm>), Failure> {
    let device = |path: &Path| -> Result<(TpmInUse, Option<Tpm>), Failure> {
        let transport = DeviceTransport::open(path).map_err(Failure::lacking)?;
        let tpm = Tpm::new(Box::new(transport)).map_err(Failure::lacking)?;
        if kernel_measures() && config.pcr == super::config::DEFAULT_PCR {
            return Err(Failure::failed("the kernel's own IMA measures into PCR 10 of this TPM already")
                .next("give the guard a PCR of its own (`pcr = 11` in the configuration), or --tpm swtpm"));
        }
        Ok((TpmInUse::Device(path.into()), Some(tpm)))
    };
    let software = || -> Result<(TpmInUse, Option<Tpm>), SwtpmError> {
        let software = GuardsTpm::start(&runtime.path(runtime::TPM), fresh)?;
        let tpm = software.open()?;
        Ok((TpmInUse::Software(Arc::new(software)), Some(tpm)))
    };
    let none = |why: String| Ok((TpmInUse::None(why), None));
    match &config.tpm {
        TpmChoice::None => none("as configured".into()),
        TpmChoice::Device(path) => device(path),
        TpmChoice::Software => software().map_err(Failure::lacking),
        TpmChoice::Auto if Path::new(RESOURCE_MANAGER).exists() => device(Path::new(RESOURCE_MANAGER)),
        TpmChoice::Auto => match software() {
            Err(error @ SwtpmError::NotInstalled) => none(format!("there is no {RESOURCE_MANAGER}, and {error}")),
            result => result.map_err(Failure::lacking),
        },
    }
}

/// Whether the kernel's IMA has measured more than the boot aggregate, that is, has a policy that measures.
fn kernel_measures() -> bool {
    std::fs::read_to_string("/sys/kernel/security/ima/runtime_measurements_count")
        .ok()
        .and_then(|count| count.trim().parse::<u64>().ok())
        .is_some_and(|count| count > 1)
}

/// Begins a fresh list, or goes on with the one that an earlier guard of this boot left.
#[allow(clippy::too_many_arguments)] // One call, where everything that a list depends on comes together.
fn start_list(
    config: &Config,
    runtime: &Runtime,
    left: Option<Left>,
    same_boot: bool,
    in_use: &TpmInUse,
    mut tpm: Option<Tpm>,
    template: &Template,
    beginning: &mut Beginning,
) -> Result<MeasurementLog, Failure> {
    let io = |error: std::io::Error| Failure::failed(format_args!("the measurement list: {error}"));
    let tpm_lost = matches!(in_use, TpmInUse::Software(software) if software.resumed() == Some(Resumed::Cleared));
    if !same_boot || tpm_lost {
        let why = if same_boot { "tpm-lost" } else { "earlier-boot" };
        if let Some(aside) = list::set_aside(runtime, why).map_err(io)?
            && same_boot
        {
            beginning.notes.push(format!(
                "the software TPM has lost its PCRs: a fresh list begins, the old one is kept as {}",
                aside.display()
            ));
        }
    }
    let restored = list::restore(runtime)?;
    if let Some(cut) = &restored.cut {
        beginning.notes.push(format!("the list ended within an entry; that piece is kept as {}", cut.display()));
    }
    let may_lack = restored.may_lack(left.as_ref().and_then(|left| left.state.missed_from));
    let fresh = restored.is_empty();
    let used_before = tpm.as_mut().filter(|_| fresh).and_then(|tpm| used_before(tpm, config.pcr));
    let claims = tpm.as_mut().filter(|_| !fresh).map(|tpm| Claims::read(&restored, tpm));
    let store = Mirror::open(&runtime.path(runtime::LIST)).map_err(io)?;
    let log = MeasurementLog::new(Box::new(store), tpm, config.hash, config.pcr).map_err(Failure::usage)?;
    let chain = if fresh {
        used_before.map(Chain::Broken)
    } else {
        let compare =
            || claims.as_ref().map_or(Chain::Unproven, |claims| list::compare(&restored, claims.as_ref(), may_lack));
        Some(list::take_over(&log, &restored, compare))
    };
    match &chain {
        Some(Chain::Broken(why)) => beginning.notes.push(broken(why)),
        Some(chain) => list::give_missing(&log, &restored, chain)?,
        None => {}
    }
    if fresh {
        match log.add_boot_aggregate(template) {
            // Listed all the same; verification shows what the TPM lacks.
            Ok(_) | Err(imara_engine::measure::MeasureError::Tpm { .. }) => {}
            Err(error) => return Err(Failure::failed(error)),
        }
    }
    if let Some(left) = left.filter(|_| same_boot) {
        note_gap(&log, &runtime.path(""), &left, beginning)?;
    }
    let lacked = match chain {
        Some(Chain::Whole) => Some(0),
        Some(Chain::Missing(lacked)) => Some(lacked),
        Some(Chain::Unproven | Chain::Broken(_)) | None => None,
    };
    if let (Some(lacked), Some(Ok(claims))) = (lacked, claims) {
        beginning.other_banks = Some(OtherBanks { restored, claims, lacked });
    }
    beginning.chain = chain;
    Ok(log)
}

/// Why a list that begins now could not be proven: the PCR has a value already.
fn used_before(tpm: &mut Tpm, pcr: u32) -> Option<String> {
    let values = tpm.pcr_read_many(&[pcr]).ok()?;
    let used = values.iter().any(|(_, _, value)| !value.is_zero());
    used.then(|| format!("PCR {pcr} had a value before the list began: its list is gone, or is kept elsewhere"))
}

/// While no guard ran nothing was asked and nothing measured: that is told, and listed so that whoever verifies the list
/// sees it, too.
fn note_gap(log: &MeasurementLog, directory: &Path, left: &Left, beginning: &mut Beginning) -> Result<(), Failure> {
    let from = left.last_alive.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let until = now_seconds();
    let cause = if left.state.ended { "stopped" } else { "killed" };
    // With the processes, so that two gaps within a second are two entries.
    let (before, now) = (left.state.pid, std::process::id());
    let text = format!("from={from};until={until};cause={cause};before={before};now={now};");
    // The entry is in the list even where the TPM did not take it; verification shows that.
    match log.add_buffer(b"imara_gap", text.as_bytes()) {
        Ok(_) | Err(imara_engine::measure::MeasureError::Tpm { .. }) => {}
        Err(error) => return Err(Failure::failed(error)),
    }
    if !left.state.ended {
        let by_sentinel = sentinel::ended(directory).filter(|ended| ended.guard == left.state.pid);
        let how = by_sentinel
            .map_or("was killed".to_owned(), |ended| format!("was ended by its sentinel, because {}", ended.why));
        beginning.notes.push(format!(
            "the guard before (process {}) {how}: nothing was guarded for up to {} s; the list has an entry `imara_gap`",
            left.state.pid,
            until.saturating_sub(from)
        ));
    }
    beginning.gap = Some(json!({ "from": from, "until": until, "cause": cause }));
    Ok(())
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Tells whoever waits for it: a line on standard output, and systemd where it asks.
fn ready() -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "ready").and_then(|()| stdout.flush()).map_err(Failure::failed)?;
    service_manager::tell("READY=1");
    Ok(())
}

/// What does not change while the guard runs.
fn about(config: &Config, directory: &Path, in_use: &TpmInUse, beginning: &Beginning) -> Value {
    let tpm = match in_use {
        TpmInUse::None(why) => json!({ "kind": "none", "root_of_trust": false, "why": why }),
        TpmInUse::Device(path) => json!({ "kind": "device", "root_of_trust": true, "path": path }),
        TpmInUse::Software(_) => json!({
            "kind": "software",
            "root_of_trust": false,
            "why": "a software TPM that root can rewrite: it proves the format, not the machine",
        }),
    };
    let chain = match &beginning.chain {
        None => json!("fresh"),
        Some(Chain::Whole) => json!("whole"),
        Some(Chain::Missing(1)) => json!("whole, after the TPM was given the last entry"),
        Some(Chain::Missing(lacked)) => json!(format!("whole, after the TPM was given the last {lacked} entries")),
        Some(Chain::Unproven) => json!("not proven: there is no TPM"),
        Some(Chain::Broken(why)) => json!(format!("broken: {why}")),
    };
    json!({
        "tpm": tpm,
        "pcr": config.pcr,
        "hash": config.hash.name(),
        "runtime_dir": directory,
        "chain": chain,
        "gap": beginning.gap,
        "notes": beginning.notes,
    })
}
