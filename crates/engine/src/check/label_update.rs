//! Labels that follow their content: what the kernel does when the last writer closes a file.
//!
//! | a file is followed | from |
//! |---|---|
//! | that a `hash` rule names | each open |
//! | that is appraised by a digest | an open for writing; and being let pass unasked, as writers are then not seen to come |
//!
//! The label is written where there has been a writer: one that was asked about; or one that was not, which its content's times
//! show, or the notice of the last close. A label alone that is another than before stays, and is judged as it is.
//!
//! Until then the verdict by which a writer was let in stands for whoever opens the file, as in the kernel: the label is behind the
//! content, and it would be wrong to ask it. A new file has no label before that, and whoever opens it passes as its maker did.
//!
//! Nobody waits for a file system that takes no changes, as one that is frozen does: whoever opens the file then goes by the label
//! that it would have by now, as long as the content is the one that this was made of. The file is followed until it is written.
//!
//! Source: `ima_check_last_writer`, security/integrity/ima/ima_main.c; `ima_update_xattr`, security/integrity/ima/ima_appraise.c.

use super::steps::{ATTEMPTS, SIGNATURE};
use super::{Access, Checker, File};
use crate::appraise::Requirement;
use crate::cache::{InodeId, Record, Stamp, is_settled};
use crate::evm::{self, Evm};
use crate::policy::{Decision, Slot};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::label;
use std::collections::hash_map::Entry;
use std::io;
use std::num::NonZeroI64;
use std::sync::atomic::Ordering;

/// A file whose label follows its content.
#[derive(Debug)]
pub(super) struct Followed {
    /// From which content on; `None` for whatever it is.
    since: Option<Content>,
    verdict: Option<Verdict>,
    /// The label that is just being written, or as soon as that is possible.
    coming: Option<Box<Coming>>,
    /// How often it was to be followed: a label that is written when somebody has come meanwhile may be behind again.
    times: u16,
    /// Whether writers may come without being asked about, so that it must be followed even if nothing has changed by now.
    unasked: bool,
    /// Whether it was made a moment ago, without a label, and passed for that.
    new: bool,
}

impl Followed {
    /// Whether it is new, and the verdicts that stand for it.
    fn verdicts(&self) -> (bool, [Option<Verdict>; 2]) {
        (self.new, [self.verdict, self.coming.as_deref().map(|coming| coming.verdict)])
    }
}

/// A label that is being written.
#[derive(Clone, Copy, Debug)]
struct Coming {
    /// The verdict by it.
    verdict: Verdict,
    /// What it was made of.
    content: Option<Content>,
}

/// How much of the digest is kept: enough to tell that the label is another, and there may be as many of these as files.
const BEGINNING: usize = 12;

/// That a file passed by its digest label before it was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    /// What it went by (see `Checker::trusted`).
    trusted: u32,
    algorithm: HashAlgorithm,
    beginning: [u8; BEGINNING],
}

impl Verdict {
    fn of(record: &Record, trusted: u32) -> Option<Self> {
        let passed = !record.immutable && record.passes(Slot::File, Requirement::default(), None);
        Self::by(record.collected.as_ref().filter(|_| passed)?, trusted)
    }

    fn by(digest: &Digest, trusted: u32) -> Option<Self> {
        Some(Self { trusted, algorithm: digest.algorithm(), beginning: *digest.as_bytes().first_chunk()? })
    }

    /// Whether this is still the label.
    fn is_by(&self, label: &[u8]) -> bool {
        label::algorithm_of(label) == Some(self.algorithm)
            && label::digest_part(label).is_some_and(|digest| digest.starts_with(&self.beginning))
    }
}

/// The content that a label stood beside while nobody wrote, as far as that shows from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    size: u64,
    modified: i64,
    /// The last change of content or attributes: the notice of a close that was there before comes late.
    changed: NonZeroI64,
}

impl Content {
    /// Of a file in this state, to which nobody writes; `None` where a later change need not show.
    pub fn of(file: &dyn File, stamp: &Stamp, now: i128) -> Option<Self> {
        // Whatever is written has the time of that moment, also where the file had another one.
        let settled = is_settled(&Stamp { changed: stamp.modified, ..*stamp }, now);
        (settled && file.times_tell()).then(|| Self::shown(stamp)).flatten()
    }

    fn shown(stamp: &Stamp) -> Option<Self> {
        let changed = NonZeroI64::new(stamp.changed.try_into().ok()?)?;
        Some(Self { size: stamp.size, modified: stamp.modified.try_into().ok()?, changed })
    }

    /// Whether it may have been written to since, with the last close told or not.
    fn may_be_another(&self, now: &Self, told: bool) -> bool {
        (self.size, self.modified) != (now.size, now.modified) || (told && self.changed != now.changed)
    }
}

impl Checker {
    /// Has the label follow the file's next change (see [`Checker::refresh`]): from this content on, or whatever it is. `known` is
    /// what is known of the file in its present state.
    pub fn maintain(&self, id: InodeId, content: Option<Content>, known: Option<&Record>) {
        self.follow_from(id, content, known, |_| ());
    }

    /// The same for a file that is let pass unasked, whoever comes to write to it.
    pub fn maintain_unasked(&self, id: InodeId, content: Option<Content>, known: Option<&Record>) {
        self.follow_from(id, content, known, |followed| followed.unasked = true);
    }

    /// The same for one that passed because it is new.
    pub(super) fn maintain_new(&self, id: InodeId) {
        self.follow_from(id, None, None, |followed| followed.new = true);
    }

    fn follow_from(
        &self,
        id: InodeId,
        content: Option<Content>,
        known: Option<&Record>,
        also: impl FnOnce(&mut Followed),
    ) {
        let verdict = known.and_then(|record| Verdict::of(record, self.trusted_now()));
        let mut shard = self.maintained.shard(&id);
        if shard.len() >= self.maintained.room() {
            shard.clear();
        }
        let new = || Followed { since: content, verdict, coming: None, times: 0, unasked: false, new: false };
        let followed = shard.entry(id).or_insert_with(new);
        followed.times = followed.times.wrapping_add(1);
        // What is followed already may have changed since it was.
        if content.is_none() {
            followed.since = None;
        }
        followed.verdict = verdict.or(followed.verdict);
        also(followed);
    }

    fn trusted_now(&self) -> u32 {
        self.trusted.load(Ordering::SeqCst)
    }

    /// The same for whoever is asked about.
    pub(super) fn maintain_from(&self, access: &Access<'_>, stamp: Option<&Stamp>, known: Option<&Record>) {
        let file = access.file;
        let unwritten = !access.writes && file.nobody_writes() == Some(true);
        let content = stamp.filter(|_| unwritten).and_then(|stamp| Content::of(file, stamp, access.now));
        self.maintain(file.id(), content, known);
    }

    /// Whether a file passes by the verdict from before somebody came who can write to it now, as its label has not followed yet.
    ///
    /// # Errors
    /// What reading the label says.
    pub(super) fn passes_while_written(&self, access: &Access<'_>, decision: &Decision) -> io::Result<bool> {
        let (file, flags) = (access.file, decision.flags);
        if decision.appraise_slot != Slot::File || flags.signature_required || flags.verity_required {
            return Ok(false);
        }
        let (id, trusted) = (file.id(), self.trusted_now());
        let counts = |verdict: &Verdict| {
            verdict.trusted == trusted
                && decision.allowed_algorithms.is_none_or(|allowed| allowed.contains(verdict.algorithm))
        };
        // Again where the label was just following: what was read may be the one before.
        for _ in 0..ATTEMPTS {
            let Some(before) = self.maintained.shard(&id).get(&id).map(Followed::verdicts) else {
                return Ok(false);
            };
            let (new, [verdict, _]) = before;
            if !new && !verdict.is_some_and(|verdict| counts(&verdict)) {
                return Ok(false);
            }
            // What is coming is announced before it is written, and kept afterwards.
            let label = file.xattr("security.ima")?.unwrap_or_default();
            let mut shard = self.maintained.shard(&id);
            let Some(followed) = shard.get_mut(&id) else {
                // It has followed: the label is right.
                return Ok(false);
            };
            let after = followed.verdicts();
            let mut verdicts = before.1.iter().chain(&after.1).flatten();
            if new && label.is_empty() || verdicts.any(|verdict| counts(verdict) && verdict.is_by(&label)) {
                if access.writes {
                    // Whoever is just having it follow must not take it for done.
                    followed.since = None;
                    followed.times = followed.times.wrapping_add(1);
                }
                return Ok(true);
            }
            if before == after {
                // Somebody has set another one, which is judged as it is, and stays.
                shard.remove(&id);
                break;
            }
        }
        Ok(false)
    }

    /// Whether the label follows the file's next change.
    pub fn maintains(&self, id: InodeId) -> bool {
        self.maintained.shard(&id).contains_key(&id)
    }

    /// Writes the digest of a file's content into its label, if that is to follow the content and the last writer has gone.
    ///
    /// # Errors
    /// What reading the file or writing the label says: with `TimedOut` it goes on being followed, and [`File::label_is_late`].
    pub fn refresh(&self, file: &dyn File) -> io::Result<bool> {
        self.update_label(file, false)
    }

    /// The same when a last close was told: that of a writer whose change does not show in the content's times, too.
    ///
    /// # Errors
    /// As [`Checker::refresh`].
    pub fn refresh_after_close(&self, file: &dyn File) -> io::Result<bool> {
        self.update_label(file, true)
    }

    /// Always in the default hash, as the kernel does at the last close. A signature is never replaced.
    fn update_label(&self, file: &dyn File, told: bool) -> io::Result<bool> {
        let id = file.id();
        if !self.maintains(id) {
            return Ok(false);
        }
        // Or whoever is slow would write the label of a content that another has followed already.
        let _turn = self.following.turn(id, || file.look_again());
        let followed = self.maintained.shard(&id).get(&id).map(|followed| (followed.since, followed.times));
        let Some((since, times)) = followed else {
            return Ok(false);
        };
        if !file.last_writer_gone() {
            return Ok(false);
        }
        let now = Content::shown(&file.stamp()?);
        if let (Some(since), Some(now)) = (since, now)
            && !since.may_be_another(&now, told)
        {
            return Ok(false);
        }
        if file.writes_wait() && self.is_coming(id, |coming| now.is_some() && coming.content == now) {
            // It has been looked at, and there is no need to read it again.
            return Err(io::ErrorKind::TimedOut.into());
        }
        let result = self.follow(file, now);
        let mut shard = self.maintained.shard(&id);
        if let Entry::Occupied(mut entry) = shard.entry(id) {
            let followed = entry.get_mut();
            match result {
                // Until it is written.
                Err(ref error) if error.kind() == io::ErrorKind::TimedOut => {}
                // A notice that came late, say: what is let pass unasked stays so.
                Ok(false) if followed.unasked && followed.times == times => {
                    let same = |since: Content| now.filter(|now| !since.may_be_another(now, false));
                    followed.since = since.and_then(same);
                }
                _ if followed.times == times => drop(entry.remove()),
                Ok(true) => {
                    followed.new = false;
                    if let Some(coming) = followed.coming.take() {
                        followed.verdict = Some(coming.verdict);
                    }
                }
                Ok(false) | Err(_) => followed.coming = None,
            }
        }
        result
    }

    /// Whether the label was behind the content, and has been written.
    fn follow(&self, file: &dyn File, content: Option<Content>) -> io::Result<bool> {
        let id = file.id();
        let label = file.xattr("security.ima")?;
        if label.as_deref().and_then(<[u8]>::first) == Some(&SIGNATURE) {
            return Ok(false);
        }
        if self.evm.as_ref().is_some_and(|evm| evm.mode().key_loaded())
            && file.xattr("security.evm")?.as_deref().and_then(<[u8]>::first) == Some(&evm::PORTABLE_TYPE)
        {
            return Ok(false);
        }
        let now = file.digest(self.log.hash())?;
        file.look_again();
        // A digest in another algorithm that is still right stays as it is: nothing has changed.
        let unchanged = match label.as_deref().and_then(label::algorithm_of) {
            Some(algorithm) => {
                let same = if algorithm == now.algorithm() { now } else { file.digest(algorithm)? };
                label.as_deref() == Some(&label::encode_digest(&same)[..])
            }
            None => false,
        };
        if unchanged {
            if let Some(evm) = &self.evm
                && self.is_coming(id, |coming| label.as_deref().is_some_and(|label| coming.verdict.is_by(label)))
            {
                // Ours, which was written after nobody waited for it any more.
                self.relabel_for_evm(evm, file)?;
            }
            return Ok(false);
        }
        if let Some(followed) = self.maintained.shard(&id).get_mut(&id) {
            let coming = |verdict| Box::new(Coming { verdict, content });
            followed.coming = Verdict::by(&now, self.trusted_now()).map(coming);
        }
        self.write_label(file, &now)?;
        self.cache.forget(id);
        Ok(true)
    }

    fn is_coming(&self, id: InodeId, is: impl FnOnce(&Coming) -> bool) -> bool {
        self.maintained.shard(&id).get(&id).and_then(|followed| followed.coming.as_deref()).is_some_and(is)
    }

    /// The label of a file whose content has this digest and whose label is late.
    pub(super) fn late_label(&self, id: InodeId, digest: &Digest) -> Option<Vec<u8>> {
        let label = label::encode_digest(digest);
        self.is_coming(id, |coming| coming.verdict.is_by(&label)).then_some(label)
    }

    /// Writes a digest label; EVM's follows, whatever it was.
    pub(super) fn write_label(&self, file: &dyn File, digest: &Digest) -> io::Result<()> {
        file.set_xattr("security.ima", &label::encode_digest(digest))?;
        self.evm.as_ref().map_or(Ok(()), |evm| self.relabel_for_evm(evm, file))
    }

    /// EVM's label follows; `TimedOut` where that may have to be done again.
    fn relabel_for_evm(&self, evm: &Evm, file: &dyn File) -> io::Result<()> {
        // Where it cannot be written the file fails at its next use, and says why.
        let _ = evm.relabel(file);
        if file.writes_wait() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}
