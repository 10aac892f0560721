//! What is told of every decision while a trace is taken.

use crate::active_policy::ActivePolicy;
use crate::check::{Access, Hook};
use crate::policy::Decision;
use imara_format::hash::Digest;
use imara_format::trace::{Event, FilesystemFacts, LabelFacts, SubjectFacts};
use std::sync::Arc;

/// Takes events. It must not block: a decision waits for it.
pub trait TraceSink: Send + Sync {
    /// When the trace began, in nanoseconds since 1970.
    fn started(&self) -> i128;
    /// Takes one; its rules are those of `policy`.
    fn record(&self, policy: &ActivePolicy, event: Event);
}

/// What a hook that was asked found out on its way, kept only while a trace is taken.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) label: LabelFacts,
    pub(crate) digest: Option<Digest>,
    /// Whether an entry was added to the list.
    pub(crate) entry: bool,
}

/// The event of a hook that was asked: what was decided, and everything that a policy can ask about.
pub(crate) fn event(sink: &dyn TraceSink, access: &Access<'_>, hook: Hook, decision: &Decision, seen: Seen) -> Event {
    let (id, facts, task) = (access.file.id(), access.file.facts(), access.task);
    // What cannot be looked at any more has no state that anybody could ask about.
    let stamp = access.file.stamp().unwrap_or_default();
    let rule = |index: Option<usize>| index.and_then(|index| u32::try_from(index).ok());
    Event {
        time: u64::try_from(access.now - sink.started()).unwrap_or(0),
        func: hook.func,
        mask: hook.mask,
        path: access.file.path(),
        device: id.device,
        inode: id.inode,
        size: stamp.size,
        modified: stamp.modified,
        changed: stamp.changed,
        owner: facts.owner,
        group: facts.group,
        filesystem: Arc::new(FilesystemFacts {
            magic: facts.fsmagic,
            name: facts.fsname.to_owned(),
            subtype: facts.fs_subtype.to_owned(),
            uuid: facts.fsuuid,
        }),
        subject: Arc::new(SubjectFacts {
            uid: task.uid(),
            gid: task.gid(),
            euids: task.euids(),
            egids: task.egids(),
            can_setuid: task.can_setuid(),
            can_setgid: task.can_setgid(),
            command: task.command(),
        }),
        label: seen.label,
        digest: seen.digest,
        writes: access.writes,
        created: access.created,
        measured: rule(decision.measure),
        appraised: rule(decision.appraise),
        audited: rule(decision.audit),
        hashed: rule(decision.hash),
        entry: seen.entry,
        cause: None,
        denied: false,
    }
}
