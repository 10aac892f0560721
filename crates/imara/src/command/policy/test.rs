//! `imara policy test`: what a policy would do, without doing it.

mod trace;

use super::target::Kernel;
use super::{SCHEMA, read_source};
use crate::command::CommandResult;
use crate::command::paths::{Paths, path_json, printable};
use crate::guard::{policy_source, run};
use crate::output::{Failure, Outcome, complain, print, print_json};
use clap::Args;
use imara_engine::check::{Hook, Mode};
use imara_engine::explain::User;
use imara_engine::policy::CompiledPolicy;
use imara_engine::simulate::{Content, Judged, Listed, Report, Settings, Simulation, Tally, Use};
use imara_format::hash::HashAlgorithm;
use imara_format::policy::{Class, Func, Lsm, LsmLabels, Mask, Policy, Target};
use imara_format::template::Template;
use imara_linux::mounts::{self, Filesystem};
use imara_linux::opened::OpenedFile;
use imara_linux::tree::TreeFile;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Try a policy out: what would be measured, appraised and refused. Nothing is changed.
///
/// With --tree, every regular file of a folder is asked about as if it were used in each way that it can be: opened for
/// reading (FILE_CHECK, MAY_READ); executed, if it has an executable bit (BPRM_CHECK, CREDS_CHECK and FILE_CHECK, MAY_EXEC);
/// mapped, if it is an ELF file with code (MMAP_CHECK and MMAP_CHECK_REQPROT, MAY_EXEC); loaded by the kernel, if it is a
/// module under lib/modules (MODULE_CHECK) or under lib/firmware (FIRMWARE_CHECK). The user is root, or --uid; whether its
/// permissions would let it is not looked at. Symbolic links are not followed, and a file with several names is taken once.
///
/// With --trace, every access of a trace is asked about again (`imara trace` takes one), and what the policy would change is
/// told: this is what would happen if it were loaded. Without POLICY the trace's own is tried, which must decide what was
/// decided then. What came after a hook that was refused is not in a trace, and so cannot be asked about.
///
/// Files are opened, and read where a label must be compared; a guard or kernel that measures meanwhile sees that.
///
/// Exit status: 0 nothing would be refused, 1 something would be or could not be judged, 2 wrong command line; for a trace
/// under its own policy 0 says that all was decided as it was then, and 1 that it was not.
#[derive(Args)]
pub struct Test {
    /// The policy: a file, `-` for standard input, or `builtin:` and the name of a built-in one, such as builtin:tcb.
    #[arg(required_unless_present = "trace")]
    policy: Option<PathBuf>,
    /// Try it on the files of these folders.
    #[arg(long, value_name = "DIR", num_args = 1.., required_unless_present = "trace")]
    tree: Vec<PathBuf>,
    /// Try it on the accesses of this trace.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["tree", "uid", "one_filesystem"])]
    trace: Option<PathBuf>,
    /// A certificate or public key that labels are verified with (may be repeated).
    #[arg(long, value_name = "CERT", num_args = 1..)]
    key: Vec<PathBuf>,
    /// The user who uses the files, whose group has the same number.
    #[arg(long, value_name = "N", default_value_t = 0)]
    uid: u32,
    /// Stay on the filesystem of each DIR; else those mounted below it are tried as well, pseudo filesystems left out.
    #[arg(short = 'x', long = "one-file-system")]
    one_filesystem: bool,
    /// Do not read what files hold: a label that would have to be compared with it cannot be judged.
    #[arg(long)]
    no_content: bool,
    /// Take the policy as this kernel does, and not as the guard does.
    #[arg(long, value_enum, requires = "policy")]
    kernel: Option<Kernel>,
    /// The template of rules without `template=` [default: ima-sig, or the trace's]
    #[arg(long, value_name = "T", value_parser = template)]
    template: Option<Template>,
    /// The default hash [default: sha256, or the trace's]
    #[arg(long, value_name = "H", value_parser = hash)]
    hash: Option<HashAlgorithm>,
    /// How many banks of the TPM an entry is extended into [default: 1, or the trace's]
    #[arg(long, value_name = "N")]
    banks: Option<u32>,
    /// Print the entries that the measurement list would get.
    #[arg(long)]
    list: bool,
    /// Print what would be done with each file, or at each access of a trace.
    #[arg(long)]
    each: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How many paths are named as examples.
const EXAMPLES: usize = 5;

/// What every simulation is told with.
struct Telling<'a> {
    name: String,
    policy: &'a CompiledPolicy,
    report: &'a Report,
    banks: u32,
}

impl Test {
    /// Runs it.
    ///
    /// # Errors
    /// The policy, a key or the trace cannot be read.
    pub fn run(&self) -> CommandResult {
        match (&self.trace, &self.policy) {
            (Some(trace), policy) => self.replay(trace, policy.as_deref()),
            (None, Some(policy)) => self.walk(policy),
            (None, None) => Err(Failure::usage("neither a policy nor a trace is named")),
        }
    }

    fn walk(&self, path: &Path) -> CommandResult {
        let (policy, warnings) = self.policy(path)?;
        let settings = Settings {
            template: self.template.clone().unwrap_or_else(|| ima_sig().clone()),
            hash: self.hash.unwrap_or(HashAlgorithm::Sha256),
            pcr: crate::guard::config::DEFAULT_PCR,
            mode: Mode::Enforce,
            content: !self.no_content,
            examples: EXAMPLES,
            list: self.list,
        };
        let keys = run::read_keys(&self.key)?;
        let simulation = Simulation::new(policy, keys, settings).map_err(Failure::usage)?;
        let mut documents = Vec::new();
        self.try_tree(&simulation, &mut documents)?;
        let report = simulation.report();
        let name = path.display().to_string();
        let banks = self.banks.unwrap_or(1);
        let telling = Telling { name, policy: &simulation.policy(), report: &report, banks };
        self.tell(&simulation, &telling, Map::from_iter([("warnings".to_owned(), json!(warnings))]), documents, "");
        Ok(telling.outcome())
    }

    /// Prints the report, with what else belongs to it.
    fn tell(
        &self,
        simulation: &Simulation,
        telling: &Telling<'_>,
        more: Map<String, Value>,
        documents: Vec<Value>,
        for_people: &str,
    ) {
        if self.json {
            let mut document = telling.json();
            document.extend(more);
            if self.list {
                document.insert("list".into(), simulation.list().iter().map(listed_json).collect());
            }
            if self.each {
                document.insert("each".into(), Value::Array(documents));
            }
            print_json(&Value::Object(document));
        } else {
            if self.list {
                let listed = simulation.list();
                let line =
                    |entry: &Listed| format!("{} {} {}\n", entry.pcr, entry.template, printable_bytes(&entry.path));
                print(listed.iter().map(line).collect::<String>());
            }
            print(telling.for_people() + for_people);
        }
    }

    /// The policy, and what of it cannot be simulated, which is warned of.
    fn policy(&self, path: &Path) -> Result<(CompiledPolicy, Vec<String>), Failure> {
        let text = read_source(path)?;
        let fail_securely = path == Path::new("builtin:fail_securely");
        let Some(kernel) = self.kernel else {
            let policy = policy_source::parse(path, &text)?;
            return Ok((CompiledPolicy::new(policy).fail_securely(fail_securely), Vec::new()));
        };
        let target = Target { lsm: Lsm::None, lsm_labels: LsmLabels::Inactive, ..Target::kernel(kernel.version()) };
        let policy = Policy::parse(&text, &target).map_err(|errors| {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            Failure::failed(format_args!("{}: {}", path.display(), lines.join("; "))).next(format_args!(
                "imara policy check --kernel {} {}",
                kernel.version(),
                path.display()
            ))
        })?;
        let labels = "no label of a security module is known here, so it matches nothing";
        let why = |rule| policy_source::cannot_be_done(rule).or((!rule.lsm.is_empty()).then(|| labels.to_owned()));
        let warning = |rule| why(rule).map(|why| format!("{}: line {}: {why}", path.display(), rule.line));
        let warnings: Vec<String> = policy.rules.iter().filter_map(warning).collect();
        for warning in &warnings {
            complain(&Failure::failed(format_args!("warning: {warning}")));
        }
        Ok((CompiledPolicy::new(policy).fail_securely(fail_securely), warnings))
    }

    fn try_tree(&self, simulation: &Simulation, documents: &mut Vec<Value>) -> Result<(), Failure> {
        let paths = Paths::of_trees(self.roots()?);
        let (task, policy, filesystems) = (User(self.uid), simulation.policy(), Filesystems::default());
        let work = |file: &TreeFile<'_>| {
            let failed = |error| Failure::failed(format_args!("{}: {error}", printable(file.path)));
            let filesystem = filesystems.of(file.stat.st_dev, file.as_fd()).map_err(failed)?;
            let opened = OpenedFile::on(file.as_fd(), filesystem).map_err(failed)?;
            let hooks = hooks(&opened, file.path, &policy, file.stat.st_mode);
            let uses = hooks.iter().map(|hooks| Use {
                task: &task,
                hooks,
                created: false,
                writes: false,
                written: false,
                content: Content::AsNeeded,
            });
            Ok(simulation.file(&opened, &uses.collect::<Vec<_>>()))
        };
        paths.for_each(false, work, |path, result| match result {
            Ok(Some(judged)) if self.each && self.json => documents.push(each_json(path, &judged)),
            Ok(Some(judged)) if self.each => print(each(path, &judged)),
            Ok(_) => {}
            Err(failure) => {
                complain(&failure);
                simulation.could_not(path.as_os_str().as_bytes(), "it could not be opened");
            }
        })?;
        Ok(())
    }

    /// The folders, and what is mounted in them.
    fn roots(&self) -> Result<Vec<PathBuf>, Failure> {
        let mut roots = Vec::new();
        let mounts = if self.one_filesystem { Vec::new() } else { mounts::mounts().map_err(Failure::failed)? };
        for tree in &self.tree {
            // What a link leads to is what is meant, and what /proc names.
            let tree = std::fs::canonicalize(tree)
                .map_err(|error| Failure::failed(format_args!("{}: {error}", printable(tree))))?;
            let filesystem = mounts::filesystem_at(&tree)
                .map_err(|error| Failure::failed(format_args!("{}: {error}", printable(&tree))))?;
            // Reading such a file can have an effect.
            if mounts::is_pseudo(&filesystem.name) {
                return Err(Failure::usage(format_args!(
                    "{} is on {}, a file system that the kernel makes up: it holds no files to try a policy on",
                    printable(&tree),
                    filesystem.name
                ))
                .next("name a folder of a file system that holds files"));
            }
            let within = mounts.iter().filter(|mount| {
                let kind = mount.kind.split_once('.').map_or(mount.kind.as_str(), |(kind, _)| kind);
                mount.mount_point.starts_with(&tree) && mount.mount_point != tree && !mounts::is_pseudo(kind)
            });
            roots.push(tree.clone());
            for mount in within {
                if !roots.contains(&mount.mount_point) {
                    roots.push(mount.mount_point.clone());
                }
            }
        }
        Ok(roots)
    }
}

fn ima_sig() -> &'static Template {
    Template::built_in("ima-sig").expect("it is built in")
}

fn listed_json(entry: &Listed) -> Value {
    let mut object = path_json(as_path(&entry.path));
    object.insert("pcr".into(), json!(entry.pcr));
    object.insert("template".into(), json!(entry.template));
    object.insert("bytes".into(), json!(entry.bytes));
    Value::Object(object)
}

/// What is known of each filesystem, by its device.
#[derive(Default)]
struct Filesystems(Mutex<HashMap<u64, Arc<Filesystem>>>);

impl Filesystems {
    fn of(&self, device: u64, file: BorrowedFd<'_>) -> io::Result<Arc<Filesystem>> {
        let known = |all: &HashMap<u64, Arc<Filesystem>>| all.get(&device).cloned();
        if let Some(filesystem) = known(&self.0.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(filesystem);
        }
        let filesystem = Arc::new(mounts::filesystem_of(file)?);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(device, Arc::clone(&filesystem));
        Ok(filesystem)
    }
}

/// The accesses that a file's use would be, each with its hooks.
fn hooks(file: &OpenedFile<'_>, path: &Path, policy: &CompiledPolicy, permissions: u32) -> Vec<Vec<Hook>> {
    const EXECUTABLE: u32 = 0o111;
    let hook = |func, mask: Mask| Hook { func, mask: mask.bits() };
    let mut opened = vec![hook(Func::FileCheck, Mask::MAY_READ)];
    if file.mappable(policy) {
        opened.extend([Func::MmapCheck, Func::MmapCheckReqprot].map(|func| hook(func, Mask::MAY_EXEC)));
    }
    let mut accesses = Vec::new();
    if permissions & EXECUTABLE != 0 {
        let funcs = [Func::BprmCheck, Func::CredsCheck, Func::FileCheck];
        accesses.push(funcs.map(|func| hook(func, Mask::MAY_EXEC)).to_vec());
    }
    accesses.push(opened);
    let path = path.as_os_str().as_bytes();
    let within = |folder: &[u8]| path.windows(folder.len()).any(|part| part == folder);
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    if within(b"/lib/modules/") && (name.ends_with(b".ko") || name.windows(4).any(|part| part == b".ko.")) {
        accesses.push(vec![hook(Func::ModuleCheck, Mask::MAY_READ)]);
    }
    if within(b"/lib/firmware/") {
        accesses.push(vec![hook(Func::FirmwareCheck, Mask::MAY_READ)]);
    }
    accesses
}

fn template(name: &str) -> Result<Template, String> {
    Template::built_in(name).cloned().ok_or_else(|| {
        let names: Vec<_> = Template::BUILT_IN.iter().map(|template| template.name.as_ref()).collect();
        format!("no such template; known: {}", names.join(" "))
    })
}

fn hash(name: &str) -> Result<HashAlgorithm, String> {
    HashAlgorithm::from_name(name).ok_or_else(|| {
        let names: Vec<_> = HashAlgorithm::ALL.iter().map(|algorithm| algorithm.name()).collect();
        format!("no such hash; known: {}", names.join(" "))
    })
}

fn printable_bytes(path: &[u8]) -> String {
    printable(as_path(path))
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// The rules that have something done with a file, each class once.
fn done(judged: &[Judged]) -> Vec<(Class, Vec<usize>)> {
    let rules = |class: Class| {
        let decisions = judged.iter().flat_map(|judged| &judged.asked);
        let mut rules: Vec<usize> = decisions.filter_map(|(_, decision)| decision.does(class)).collect();
        rules.sort_unstable();
        rules.dedup();
        rules
    };
    Class::ALL.iter().map(|class| (*class, rules(*class))).filter(|(_, rules)| !rules.is_empty()).collect()
}

fn each(path: &Path, judged: &[Judged]) -> String {
    let mut said: Vec<String> = done(judged)
        .into_iter()
        .map(|(class, rules)| {
            let rules: Vec<_> = rules.iter().map(|rule| (rule + 1).to_string()).collect();
            format!("{} by rule {}", class.name(), rules.join(", "))
        })
        .collect();
    for refused in judged.iter().filter_map(|judged| judged.refused.as_ref()) {
        said.push(format!("refused at {}: {}", refused.func, refused.cause));
    }
    said.extend(judged.iter().filter_map(|judged| judged.unknown.as_ref().map(|why| format!("unknown: {why}"))));
    if said.is_empty() {
        said.push("nothing".to_owned());
    }
    format!("{}: {}\n", printable(path), said.join("; "))
}

fn each_json(path: &Path, judged: &[Judged]) -> Value {
    let mut object = path_json(path);
    for (class, rules) in done(judged) {
        let rules: Vec<_> = rules.iter().map(|rule| rule + 1).collect();
        object.insert(class.name().into(), json!(rules));
    }
    let refused = judged.iter().filter_map(|judged| judged.refused.as_ref());
    let refused = refused.map(
        |refused| json!({ "func": refused.func.name(), "cause": refused.cause.words(), "detail": refused.detail }),
    );
    object.insert("entries".into(), json!(judged.iter().map(|judged| judged.entries).sum::<u32>()));
    object.insert("refused".into(), refused.collect());
    object.insert("unknown".into(), judged.iter().filter_map(|judged| judged.unknown.clone()).collect());
    Value::Object(object)
}

fn tally_json(tally: &Tally) -> Map<String, Value> {
    let examples = tally.examples.iter().map(|path| String::from_utf8_lossy(path));
    let document = json!({ "events": tally.events, "files": tally.files, "examples": examples.collect::<Vec<_>>() });
    document.as_object().cloned().unwrap_or_default()
}

impl Telling<'_> {
    fn outcome(&self) -> Outcome {
        let clear = self.report.refused.events == 0 && self.report.unknown.is_empty();
        if clear { Outcome::Done } else { Outcome::Failed }
    }

    fn extends(&self) -> u64 {
        self.report.entries * u64::from(self.banks)
    }

    fn json(&self) -> Map<String, Value> {
        let report = self.report;
        let with = |tally: &Tally, more: &[(&str, Value)]| {
            let mut object = tally_json(tally);
            object.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
            Value::Object(object)
        };
        let rules = self.policy.rules().iter().zip(&report.rules).enumerate();
        let rules = rules.map(|(index, (rule, tally))| {
            with(tally, &[("rule", json!(index + 1)), ("line", json!(rule.line)), ("text", json!(rule.to_string()))])
        });
        let classes = Class::ALL.iter().zip(&report.classes);
        let classes = classes.map(|(class, tally)| (class.name().to_owned(), Value::Object(tally_json(tally))));
        let causes = report.causes.iter().map(|(cause, tally)| with(tally, &[("cause", json!(cause.words()))]));
        let unknown = report.unknown.iter().map(|(why, tally)| with(tally, &[("why", json!(why))]));
        let document = json!({
            "schema": SCHEMA,
            "policy": self.name,
            "files": report.files,
            "asked": report.asked,
            "classes": classes.collect::<Map<_, _>>(),
            "rules": rules.collect::<Vec<_>>(),
            "entries": report.entries,
            "violations": report.violations,
            "list_bytes": report.list_bytes,
            "banks": self.banks,
            "extends": self.extends(),
            "audit_records": report.audit_records,
            "refused": with(&report.refused, &[("causes", causes.collect())]),
            "unknown": unknown.collect::<Vec<_>>(),
        });
        document.as_object().cloned().unwrap_or_default()
    }

    fn for_people(&self) -> String {
        let report = self.report;
        let mut out = format!(
            "{}: {} and {} tried on {}\n\n",
            self.name,
            count(self.policy.rules().len() as u64, "rule"),
            count(report.asked, "question"),
            count(report.files, "file"),
        );
        // Writing to a string cannot fail.
        for (class, tally) in Class::ALL.iter().zip(&report.classes).filter(|(_, tally)| tally.events > 0) {
            let more = match class {
                Class::Measure => format!(
                    ": {} ({} violations), {} bytes of list, {} of {}",
                    count(report.entries, "entry"),
                    report.violations,
                    report.list_bytes,
                    count(self.extends(), "TPM extend"),
                    count(self.banks.into(), "bank"),
                ),
                Class::Appraise => match report.refused.events {
                    0 => String::new(),
                    _ => format!(": {} would be refused", count(report.refused.files, "file")),
                },
                Class::Audit => format!(": {}", count(report.audit_records, "record")),
                Class::Hash => ": their label would follow each change".to_owned(),
            };
            let _ = writeln!(out, "{:<9} {}{more}", class.name(), count(tally.files, "file"));
        }
        let width = report.rules.iter().map(|tally| tally.files.to_string().len()).max().unwrap_or(1).max(5);
        let _ = writeln!(out, "\n{:>4} {:>width$}", "rule", "files");
        for (index, (rule, tally)) in self.policy.rules().iter().zip(&report.rules).enumerate() {
            let _ = writeln!(out, "{:>4} {:>width$} {rule}", index + 1, tally.files);
        }
        for (cause, tally) in &report.causes {
            let _ = writeln!(out, "\nwould be refused, {cause}: {}", count(tally.files, "file"));
            out.push_str(&examples(tally));
        }
        for (why, tally) in &report.unknown {
            let _ = writeln!(out, "\ncould not be judged, {why}: {}", count(tally.files, "file"));
            out.push_str(&examples(tally));
        }
        out
    }
}

/// The examples, a line each.
fn examples(tally: &Tally) -> String {
    let paths: String = tally.examples.iter().map(|path| format!("    {}\n", printable_bytes(path))).collect();
    let more = tally.files.saturating_sub(tally.examples.len() as u64);
    if more > 0 { format!("{paths}    and {more} more\n") } else { paths }
}

/// A number with its noun.
fn count(number: u64, noun: &str) -> String {
    let plural = match noun.strip_suffix('y') {
        _ if number == 1 => noun.to_owned(),
        Some(stem) => format!("{stem}ies"),
        None if noun.ends_with('s') => format!("{noun}es"),
        None => format!("{noun}s"),
    };
    format!("{number} {plural}")
}
