//! A policy tried on the accesses of a trace, and what it would change against what the guard decided then.
//!
//! A trace holds all that conditions ask about, but a label and a digest only where the policy of that time had them read.
//! So a trace is read twice: first to learn of each state of a file what any of its events knows, then to ask. What is still
//! missing then is asked of the file itself, if it is in the same state ([`Current`]); else the access cannot be judged.
//!
//! Each hook of a trace is asked alone. What comes after a hook that was refused then is not in the trace, and what would
//! come after one that is refused now is asked all the same.

use super::{Content, Counted, Judged, Simulation, Tally, Use, tallies};
use crate::appraise::Cause;
use crate::audit::TaskIdentity;
use crate::cache::{InodeId, Stamp};
use crate::check::{File, Hook, Mode, Task};
use crate::policy::{FileFacts, Subject};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::policy::Class;
use imara_format::trace::{Event, LabelFacts, SubjectFacts};
use std::collections::HashMap;
use std::io;

/// A file of a trace as it is now, where it is still in the state of that event.
pub trait Current {
    /// An extended attribute; `None` where it has none by that name.
    ///
    /// # Errors
    /// Why it cannot be known.
    fn xattr(&self, event: &Event, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// The content's digest.
    ///
    /// # Errors
    /// Why it cannot be known.
    fn digest(&self, event: &Event, algorithm: HashAlgorithm) -> io::Result<Digest>;
}

/// What a policy changes about an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Change {
    /// It passed, and would not.
    NewlyRefused,
    /// It did not pass, and would.
    NoLongerRefused,
    /// It did not pass and would not, for another cause.
    OtherCause,
    /// Something would be done that was not.
    Newly(Class),
    /// Something would not be done that was.
    NoLonger(Class),
    /// Another rule has it done.
    OtherRule(Class),
    /// It added an entry to the list, and would not.
    NoEntry,
}

/// A trace under a policy.
pub struct Replay {
    simulation: Simulation,
    /// Whether the policy is the trace's own, so that rules and entries can be compared, too.
    own: bool,
    known: HashMap<(InodeId, Stamp), Known>,
    events: u64,
    changed: HashMap<Change, Counted>,
}

/// What the events of a trace know of a file in one state.
#[derive(Default)]
struct Known {
    label: LabelFacts,
    digests: Vec<Digest>,
    /// Whether the policy has it appraised.
    appraised: bool,
}

impl Change {
    /// A word for each, for scripts.
    pub fn name(self) -> String {
        match self {
            Self::NewlyRefused => "newly-refused".into(),
            Self::NoLongerRefused => "no-longer-refused".into(),
            Self::OtherCause => "other-cause".into(),
            Self::Newly(class) => format!("newly-{}", participle(class)),
            Self::NoLonger(class) => format!("no-longer-{}", participle(class)),
            Self::OtherRule(class) => format!("{}-by-another-rule", participle(class)),
            Self::NoEntry => "no-entry".into(),
        }
    }
}

const fn participle(class: Class) -> &'static str {
    match class {
        Class::Measure => "measured",
        Class::Appraise => "appraised",
        Class::Audit => "audited",
        Class::Hash => "hashed",
    }
}

impl Replay {
    /// A replay that has seen no event yet. `own` says that the simulated policy is the one that was in force.
    pub fn new(simulation: Simulation, own: bool) -> Self {
        Self { simulation, own, known: HashMap::new(), events: 0, changed: HashMap::new() }
    }

    /// Learns what an event knows: the first reading.
    pub fn learn(&mut self, event: &Event) {
        let policy = self.simulation.policy();
        let known = self.known.entry((id(event), stamp(event))).or_default();
        if known.label == LabelFacts::NotRead {
            known.label = event.label.clone();
        }
        known.digests.extend(event.digest.filter(|digest| !known.digests.contains(digest)));
        known.appraised |= policy.classes().contains(Class::Appraise)
            && self.simulation.settings.mode != Mode::Off
            && super::decide(&policy, facts(event), &Traced(&event.subject), hook(event)).appraise.is_some();
    }

    /// Asks the policy about an event: the second reading.
    pub fn ask(&mut self, event: &Event, current: &dyn Current) -> Judged {
        let nothing = Known::default();
        let known = self.known.get(&(id(event), stamp(event))).unwrap_or(&nothing);
        let file = TracedFile { event, known, current };
        let judged = self.simulation.access(
            &file,
            &Use {
                task: &Traced(&event.subject),
                hooks: &[hook(event)],
                created: event.created,
                writes: event.writes,
                written: event.cause.as_deref() == Some(Cause::Writers.words()),
                content: match known {
                    Known { digests, .. } if !digests.is_empty() => Content::Known,
                    Known { appraised: true, .. } => Content::Appraised,
                    Known { appraised: false, .. } => Content::AsNeeded,
                },
            },
        );
        self.events += 1;
        let room = self.simulation.settings.examples;
        for change in self.changes(event, &judged) {
            let counted = self.changed.entry(change).or_default();
            counted.add(id(event), &event.path, room);
        }
        judged
    }

    fn changes(&self, event: &Event, judged: &Judged) -> Vec<Change> {
        let mut changes = Vec::new();
        let cause = judged.refused.as_ref().map(|refused| refused.cause.words());
        if judged.unknown.is_none() {
            changes.extend(match (event.cause.as_deref(), cause) {
                (None, Some(_)) => Some(Change::NewlyRefused),
                (Some(_), None) => Some(Change::NoLongerRefused),
                (Some(then), Some(now)) if then != now => Some(Change::OtherCause),
                (Some(_), Some(_)) | (None, None) => None,
            });
            if self.own && event.entry && judged.entries == 0 {
                changes.push(Change::NoEntry);
            }
        }
        for (_, decision) in &judged.asked {
            for class in Class::ALL {
                let then = match class {
                    Class::Measure => event.measured,
                    Class::Appraise => event.appraised,
                    Class::Audit => event.audited,
                    Class::Hash => event.hashed,
                };
                let now = decision.does(*class);
                changes.extend(match (then, now) {
                    (None, Some(_)) => Some(Change::Newly(*class)),
                    (Some(_), None) => Some(Change::NoLonger(*class)),
                    (Some(then), Some(now)) if self.own && usize::try_from(then) != Ok(now) => {
                        Some(Change::OtherRule(*class))
                    }
                    (Some(_), Some(_)) | (None, None) => None,
                });
            }
        }
        changes
    }

    /// The simulation behind it.
    pub const fn simulation(&self) -> &Simulation {
        &self.simulation
    }

    /// How many events were asked about.
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// What the policy changes, in the order of [`Change`].
    pub fn changed(&self) -> Vec<(Change, Tally)> {
        let mut changed = tallies(&self.changed);
        changed.sort_by_key(|(change, _)| *change);
        changed
    }
}

const fn id(event: &Event) -> InodeId {
    InodeId { device: event.device, inode: event.inode }
}

const fn stamp(event: &Event) -> Stamp {
    Stamp { size: event.size, modified: event.modified, changed: event.changed }
}

const fn hook(event: &Event) -> Hook {
    Hook { func: event.func, mask: event.mask }
}

fn facts(event: &Event) -> FileFacts<'_> {
    FileFacts {
        owner: event.owner,
        group: event.group,
        fsmagic: event.filesystem.magic,
        fsname: &event.filesystem.name,
        fs_subtype: &event.filesystem.subtype,
        fsuuid: event.filesystem.uuid,
    }
}

/// The task of an event.
struct Traced<'a>(&'a SubjectFacts);

impl Subject for Traced<'_> {
    fn uid(&self) -> u32 {
        self.0.uid
    }

    fn gid(&self) -> u32 {
        self.0.gid
    }

    fn euids(&self) -> [u32; 3] {
        self.0.euids
    }

    fn egids(&self) -> [u32; 3] {
        self.0.egids
    }

    fn can_setuid(&self) -> bool {
        self.0.can_setuid
    }

    fn can_setgid(&self) -> bool {
        self.0.can_setgid
    }
}

impl Task for Traced<'_> {
    fn identity(&self) -> TaskIdentity {
        let [effective, saved, real] = self.0.euids;
        let [group, saved_group, real_group] = self.0.egids;
        TaskIdentity {
            uids: [real, effective, saved, effective],
            gids: [real_group, group, saved_group, group],
            command: self.0.command.clone(),
            ..TaskIdentity::default()
        }
    }
}

/// The file of an event, as it was then.
struct TracedFile<'a> {
    event: &'a Event,
    known: &'a Known,
    current: &'a dyn Current,
}

impl File for TracedFile<'_> {
    fn id(&self) -> InodeId {
        id(self.event)
    }

    fn stamp(&self) -> io::Result<Stamp> {
        Ok(stamp(self.event))
    }

    fn facts(&self) -> FileFacts<'_> {
        facts(self.event)
    }

    fn xattr(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let ask = || self.current.xattr(self.event, name);
        if name != "security.ima" {
            return ask();
        }
        match (&self.event.label, &self.known.label) {
            (LabelFacts::Some(label), _) | (LabelFacts::NotRead, LabelFacts::Some(label)) => Ok(Some(label.clone())),
            (LabelFacts::None, _) | (LabelFacts::NotRead, LabelFacts::None) => Ok(None),
            (LabelFacts::NotRead, LabelFacts::NotRead) => {
                ask().map_err(|error| io::Error::other(format!("the trace does not know its label, and {error}")))
            }
        }
    }

    fn verity_digest(&self) -> io::Result<Option<Digest>> {
        Err(io::Error::other("a trace tells no fs-verity digests"))
    }

    fn set_xattr(&self, _: &str, _: &[u8]) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "a simulation changes nothing"))
    }

    fn digest(&self, algorithm: HashAlgorithm) -> io::Result<Digest> {
        let mut known = self.event.digest.iter().chain(&self.known.digests);
        match known.find(|digest| digest.algorithm() == algorithm) {
            Some(digest) => Ok(*digest),
            None => self.current.digest(self.event, algorithm).map_err(|error| match error.kind() {
                io::ErrorKind::Unsupported => error,
                _ => io::Error::other(format!("the trace does not know its content's {algorithm} digest, and {error}")),
            }),
        }
    }

    fn path(&self) -> Vec<u8> {
        self.event.path.clone()
    }

    fn nobody_writes(&self) -> Option<bool> {
        Some(true)
    }

    fn times_tell(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Fake, digest_of, settings, simulation};
    use super::super::{Quiet, Settings};
    use super::*;
    use crate::active_policy::ActivePolicy;
    use crate::audit::{AuditRecord, AuditSink};
    use crate::check::{Access, Checker};
    use crate::crypto::{KeyType, SigningKey};
    use crate::explain::User;
    use crate::keyring::Keyring;
    use crate::measure::{MeasurementLog, Store};
    use crate::policy::CompiledPolicy;
    use crate::trace::TraceSink;
    use imara_format::policy::{Func, Policy, Target};
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Recorded(Arc<Mutex<(Vec<Event>, Vec<u8>)>>);

    impl TraceSink for Recorded {
        fn started(&self) -> i128 {
            0
        }
        fn record(&self, _: &ActivePolicy, event: Event) {
            self.0.lock().unwrap().0.push(event);
        }
    }

    impl Store for Recorded {
        fn append(&mut self, record: &[u8]) -> io::Result<()> {
            self.0.lock().unwrap().1.extend(record);
            Ok(())
        }
    }

    impl AuditSink for Recorded {
        fn record(&self, _: AuditRecord) {}
    }

    /// Files as they are now: those with these inodes are as they were, all others are gone.
    struct Now<'a>(&'a [&'a Fake]);

    impl Now<'_> {
        fn file(&self, event: &Event) -> io::Result<&Fake> {
            let found = self.0.iter().find(|file| file.inode == event.inode);
            found.copied().ok_or_else(|| io::Error::other("it is not there any more"))
        }
    }

    impl Current for Now<'_> {
        fn xattr(&self, event: &Event, name: &str) -> io::Result<Option<Vec<u8>>> {
            self.file(event)?.xattr(name)
        }
        fn digest(&self, event: &Event, algorithm: HashAlgorithm) -> io::Result<Digest> {
            self.file(event)?.digest(algorithm)
        }
    }

    const OWN: &str = "measure func=BPRM_CHECK\nappraise func=BPRM_CHECK\naudit func=FILE_CHECK uid=7";

    /// What a guard with the policy [`OWN`] decides about each file, executed and read by two users, twice; its events and its list.
    fn recorded(files: &[&Fake], keys: Keyring, mode: Mode) -> (Vec<Event>, Vec<u8>) {
        let recorded = Recorded::default();
        let policy = CompiledPolicy::new(Policy::parse(OWN.as_bytes(), &Target::guard()).unwrap());
        let Settings { template, hash, pcr, .. } = settings();
        let log = Arc::new(MeasurementLog::new(Box::new(recorded.clone()), None, hash, pcr).unwrap());
        let checker = Checker::new(policy, keys, log, template, mode, Box::new(recorded.clone()));
        checker.set_trace(Some(Arc::new(recorded.clone())));
        for file in files.repeat(2) {
            for task in [User(0), User(7)] {
                for (func, mask) in [(Func::BprmCheck, 1), (Func::FileCheck, 4)] {
                    let keys = checker.keys();
                    let quiet = Quiet::new(file, Content::Known, &settings(), &keys);
                    let access =
                        Access { file: &quiet, task: &task, created: false, writes: false, now: 1_000_000_000 };
                    let _ = checker.check(&access, &[Hook { func, mask }]);
                }
            }
        }
        std::mem::take(&mut *recorded.0.lock().unwrap())
    }

    fn files(key: &SigningKey) -> [Fake; 3] {
        let sign = |content: &[u8]| crate::label::sign(&digest_of(content), key, None).unwrap();
        [
            Fake::new(1, "/good").labelled(sign(b"content")),
            Fake::new(2, "/tampered").labelled(sign(b"other")),
            Fake::new(3, "/plain"),
        ]
    }

    fn replay(
        policy: &str,
        own: bool,
        mode: Mode,
        key: Option<&SigningKey>,
        events: &[Event],
        now: &Now<'_>,
    ) -> Replay {
        let mut replay = Replay::new(simulation(policy, Settings { mode, ..settings() }, key), own);
        events.iter().for_each(|event| replay.learn(event));
        for event in events {
            replay.ask(event, now);
        }
        replay
    }

    #[test]
    fn the_policy_of_a_trace_decides_what_was_decided_then() {
        let key = SigningKey::generate(KeyType::P256).unwrap();
        let files = files(&key);
        let all: Vec<_> = files.iter().collect();
        for mode in [Mode::Enforce, Mode::Log, Mode::Off] {
            let (events, list) = recorded(&all, [key.public_key().unwrap()].into_iter().collect(), mode);
            let replay = replay(OWN, true, mode, Some(&key), &events, &Now(&[]));
            assert_eq!(replay.changed(), [], "{}", mode.name());
            let report = replay.simulation().report();
            assert_eq!((report.files, report.asked, report.entries), (3, 24, 3));
            assert_eq!(report.list_bytes, list.len() as u64);
            assert_eq!(report.unknown, [], "{}", mode.name());
        }
    }

    #[test]
    fn a_trace_of_another_policy_is_found_out() {
        let key = SigningKey::generate(KeyType::P256).unwrap();
        let files = files(&key);
        let (mut events, _) = recorded(&[&files[0]], [key.public_key().unwrap()].into_iter().collect(), Mode::Enforce);
        events[0].cause = Some("missing-hash".into());
        events[1].audited = Some(2);
        events[2].measured = Some(5);
        events[4].entry = true;
        let replay = replay(OWN, true, Mode::Enforce, Some(&key), &events, &Now(&[]));
        let changes: Vec<_> = replay.changed().iter().map(|(change, tally)| (*change, tally.events)).collect();
        let expected = [
            Change::NoLongerRefused,
            Change::NoLonger(Class::Audit),
            Change::OtherRule(Class::Measure),
            Change::NoEntry,
        ];
        assert_eq!(changes, expected.map(|change| (change, 1)));
    }

    #[test]
    fn whoever_could_write_then_can_write_in_the_replay() {
        let key = SigningKey::generate(KeyType::P256).unwrap();
        let files = files(&key);
        let (mut events, _) = recorded(&[&files[0]], [key.public_key().unwrap()].into_iter().collect(), Mode::Enforce);
        for event in events.iter_mut().filter(|event| event.func == Func::BprmCheck) {
            (event.cause, event.denied) = (Some(Cause::Writers.words().into()), true);
        }
        let replay = replay(OWN, true, Mode::Enforce, Some(&key), &events, &Now(&[]));
        assert_eq!(replay.changed(), []);
        let causes = replay.simulation().report().causes;
        assert_eq!(
            causes.iter().map(|(cause, tally)| (*cause, tally.events)).collect::<Vec<_>>(),
            [(Cause::Writers, 4)]
        );
    }

    #[test]
    fn what_another_policy_changes_is_told_for_each_access() {
        let key = SigningKey::generate(KeyType::P256).unwrap();
        let files = files(&key);
        let all: Vec<_> = files.iter().collect();
        let keys = || [key.public_key().unwrap()].into_iter().collect();
        let (events, _) = recorded(&all, keys(), Mode::Enforce);
        let tell = |policy: &str, now: &[&Fake]| {
            let replay = replay(policy, false, Mode::Enforce, Some(&key), &events, &Now(now));
            let changes: Vec<_> =
                replay.changed().iter().map(|(change, tally)| (change.name(), tally.events, tally.files)).collect();
            let unknown: u64 = replay.simulation().report().unknown.iter().map(|(_, tally)| tally.events).sum();
            (changes, unknown)
        };
        let owned = |changes: &[(&str, u64, u64)]| -> Vec<_> {
            changes.iter().map(|(name, events, files)| ((*name).to_owned(), *events, *files)).collect()
        };
        for (name, policy, now, changes, unknown) in [
            ("the same in other words", OWN.replace("measure func", "measure mask=MAY_EXEC func"), &[][..], &[][..], 0),
            // Executed by two users, twice.
            (
                "nothing",
                String::new(),
                &[],
                &[
                    ("no-longer-refused", 8, 2),
                    ("no-longer-measured", 12, 3),
                    ("no-longer-appraised", 12, 3),
                    ("no-longer-audited", 6, 3),
                ],
                0,
            ),
            (
                "one user",
                OWN.replace("appraise func=BPRM_CHECK", "appraise func=BPRM_CHECK uid=7"),
                &[],
                &[("no-longer-refused", 4, 2), ("no-longer-appraised", 6, 3)],
                0,
            ),
            // The plain file's label is known from when it was executed; its content matters not.
            (
                "readers too, all known",
                OWN.replace("appraise func=BPRM_CHECK", "appraise"),
                &[],
                &[("newly-refused", 8, 2), ("newly-appraised", 12, 3)],
                0,
            ),
        ] {
            assert_eq!(tell(&policy, now), (owned(changes), unknown), "{name}");
        }
        // Read alone, nothing is known of a label.
        let events: Vec<Event> = events.iter().filter(|event| event.func == Func::FileCheck).cloned().collect();
        let events: Vec<Event> =
            events.into_iter().map(|event| Event { label: LabelFacts::NotRead, digest: None, ..event }).collect();
        for (name, now, refused, unknown) in [
            ("all files are gone", &[][..], 0, 12),
            ("the good one is there", &all[..1], 0, 8),
            ("all are there", &all[..], 8, 0),
        ] {
            let replay = replay("appraise", false, Mode::Enforce, Some(&key), &events, &Now(now));
            let report = replay.simulation().report();
            assert_eq!(report.refused.events, refused, "{name}");
            assert_eq!(report.unknown.iter().map(|(_, tally)| tally.events).sum::<u64>(), unknown, "{name}");
            assert!(report.unknown.iter().all(|(why, _)| why.contains("not there any more")), "{name}");
        }
    }

    #[test]
    fn a_later_event_tells_what_an_earlier_one_did_not_look_at() {
        let key = SigningKey::generate(KeyType::P256).unwrap();
        let files = files(&key);
        let (mut events, _) = recorded(&[&files[0]], [key.public_key().unwrap()].into_iter().collect(), Mode::Enforce);
        events.reverse();
        events[0].digest = None;
        events[0].label = LabelFacts::NotRead;
        let replay = replay("measure\nappraise", false, Mode::Enforce, Some(&key), &events, &Now(&[]));
        let report = replay.simulation().report();
        assert_eq!((report.refused.events, report.unknown.len(), report.entries), (0, 0, 1));
    }
}
