//! `imara policy test --trace`: what a policy would have decided about the accesses of a trace, and what that changes.

use super::{EXAMPLES, Telling, Test, as_path, count, each, each_json, examples, tally_json};
use crate::command::CommandResult;
use crate::command::paths::printable;
use crate::command::progress::Progress;
use crate::guard::{policy_source, run};
use crate::output::{Failure, Outcome, complain, print};
use imara_engine::check::Mode;
use imara_engine::policy::CompiledPolicy;
use imara_engine::simulate::replay::{Change, Current, Replay};
use imara_engine::simulate::{Settings, Simulation, Tally};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::template::Template;
use imara_format::trace::{Event, Header, TraceError, TraceReader};
use imara_linux::files::{self, OpenError, open_regular};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// How a trace ended.
struct Ended {
    lost: u64,
    /// Why; `None` where the guard was killed.
    why: Option<String>,
}

impl Test {
    pub(super) fn replay(&self, trace: &Path, path: Option<&Path>) -> CommandResult {
        let header = open(trace)?.0;
        let (policy, warnings) = match path {
            Some(path) => self.policy(path)?,
            None => {
                let policy = policy_source::parse(Path::new("the trace's policy"), header.policy.as_bytes())?;
                (CompiledPolicy::new(policy), Vec::new())
            }
        };
        let mut replay = self.simulation(&header, policy, path.is_none())?;
        each_event(trace, |event| replay.learn(event))?;
        let current = Files { read: !self.no_content };
        let mut documents = Vec::new();
        let progress = Progress::new(false, "accesses");
        let ended = each_event(trace, |event| {
            let judged = [replay.ask(event, &current)];
            progress.count(1);
            progress.tick();
            progress.suspend(|| {
                let path = as_path(&event.path);
                if self.each && self.json {
                    documents.push(each_json(path, &judged));
                } else if self.each {
                    print(format_args!("{} {}", event.func, each(path, &judged)));
                }
            });
        })?;
        drop(progress);
        if ended.lost > 0 {
            complain(&Failure::failed(format_args!(
                "{}: {} were lost when the trace was taken, and are not asked about",
                printable(trace),
                count(ended.lost, "access")
            )));
        }
        let (report, changes) = (replay.simulation().report(), replay.changed());
        let name = path.map_or_else(|| "the trace's policy".to_owned(), |path| path.display().to_string());
        let banks = self.banks.unwrap_or(header.banks);
        let telling = Telling { name, policy: &replay.simulation().policy(), report: &report, banks };
        let agrees = changes.is_empty() && report.unknown.is_empty();
        let list = changes.iter().map(|(change, tally)| {
            let mut object = tally_json(tally);
            object.insert("change".into(), json!(change.name()));
            Value::Object(object)
        });
        let more = json!({
            "warnings": warnings,
            "trace": {
                "file": trace.display().to_string(),
                "boot_id": header.boot_id,
                "started": header.started,
                "mode": header.mode,
                "events": replay.events(),
                "lost": ended.lost,
                "ended": ended.why,
            },
            "changes": list.collect::<Vec<_>>(),
            "agrees": path.is_none().then_some(agrees),
        });
        let more: Map<String, Value> = more.as_object().cloned().unwrap_or_default();
        let told = changes_for_people(&changes, replay.events(), path.is_none());
        self.tell(replay.simulation(), &telling, more, documents, &told);
        Ok(match path {
            Some(_) => telling.outcome(),
            None if agrees => Outcome::Done,
            None => Outcome::Failed,
        })
    }

    fn simulation(&self, header: &Header, policy: CompiledPolicy, own: bool) -> Result<Replay, Failure> {
        let template = match &self.template {
            Some(template) => template.clone(),
            None => Template::from_name_or_format(&header.template).map_err(Failure::failed)?,
        };
        let mode = match Mode::from_name(&header.mode) {
            // Nothing was appraised; what another policy would refuse is asked all the same.
            Some(Mode::Off) if own => Mode::Off,
            Some(Mode::Log | Mode::Fix) => Mode::Log,
            Some(Mode::Off | Mode::Enforce) | None => Mode::Enforce,
        };
        let settings = Settings {
            template,
            hash: self.hash.unwrap_or(header.hash),
            pcr: header.pcr,
            mode,
            // What the trace knows costs no reading.
            content: true,
            examples: EXAMPLES,
            list: self.list,
        };
        let simulation = Simulation::new(policy, run::read_keys(&self.key)?, settings).map_err(Failure::usage)?;
        Ok(Replay::new(simulation, own))
    }
}

fn open(path: &Path) -> Result<(Header, TraceReader<File>), Failure> {
    let file = File::open(path).map_err(|error| Failure::failed(format_args!("{}: {error}", printable(path))))?;
    TraceReader::new(file).map_err(|error| failure(path, &error))
}

fn failure(path: &Path, error: &TraceError) -> Failure {
    Failure::failed(format_args!("{}: {error}", printable(path)))
}

/// Reads a trace. What is cut off was not written to the end when the guard was killed.
fn each_event(path: &Path, mut told: impl FnMut(&Event)) -> Result<Ended, Failure> {
    let (_, mut reader) = open(path)?;
    for event in &mut reader {
        match event {
            Ok(event) => told(&event),
            Err(TraceError::Truncated { .. }) => break,
            Err(error) => return Err(failure(path, &error)),
        }
    }
    Ok(Ended { lost: reader.lost(), why: reader.ended().map(str::to_owned) })
}

/// The files of a trace as they are now.
struct Files {
    /// Whether their content may be read.
    read: bool,
}

impl Files {
    fn open(event: &Event) -> io::Result<File> {
        let file = open_regular(as_path(&event.path)).map_err(|error| match error {
            OpenError::NotRegular { .. } => io::Error::other("another is in its place"),
            OpenError::System { error, .. } if error.kind() == io::ErrorKind::NotFound => {
                io::Error::other("it is not there any more")
            }
            OpenError::System { error, .. } => error,
        })?;
        let file = File::from(file);
        Self::unchanged(event, &file)?;
        Ok(file)
    }

    fn unchanged(event: &Event, file: &File) -> io::Result<()> {
        let now = file.metadata()?;
        let time = |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        let state = (now.size(), time(now.mtime(), now.mtime_nsec()), time(now.ctime(), now.ctime_nsec()));
        if (now.dev(), now.ino()) != (event.device, event.inode) {
            return Err(io::Error::other("another is in its place"));
        }
        if state != (event.size, event.modified, event.changed) {
            return Err(io::Error::other("it has changed since"));
        }
        Ok(())
    }
}

impl Current for Files {
    fn xattr(&self, event: &Event, name: &str) -> io::Result<Option<Vec<u8>>> {
        files::xattr(Self::open(event)?, name)
    }

    fn digest(&self, event: &Event, algorithm: HashAlgorithm) -> io::Result<Digest> {
        if !self.read {
            return Err(io::Error::other("its content was not to be read"));
        }
        let file = Self::open(event)?;
        let digest = files::digest(&file, algorithm)?;
        Self::unchanged(event, &file)?;
        Ok(digest)
    }
}

fn changes_for_people(changes: &[(Change, Tally)], events: u64, own: bool) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = match (changes.is_empty(), own) {
        (true, true) => writeln!(out, "\nagrees with what was decided then, at {}", count(events, "question")),
        (true, false) => writeln!(out, "\nchanges nothing of what was decided then, at {}", count(events, "question")),
        (false, true) => writeln!(out, "\ndiffers from what was decided then, by the same policy:"),
        (false, false) => writeln!(out, "\nchanges against what was decided then:"),
    };
    for (change, tally) in changes {
        let _ = writeln!(
            out,
            "\n{}: {} of {}",
            change.name().replace('-', " "),
            count(tally.events, "question"),
            count(tally.files, "file")
        );
        out.push_str(&examples(tally));
    }
    out
}
