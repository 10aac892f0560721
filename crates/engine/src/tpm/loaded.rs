//! What this process has loaded in the TPM, and that all of it goes again.
//!
//! A TPM has room for three objects or so. The kernel's resource manager (`/dev/tpmrm0`) flushes what a process leaves when
//! it ends, however it ends. Without it (`/dev/tpm0`, a software TPM's socket) two things do: whatever an operation has
//! loaded is flushed when it is over, failed or not; and it is *recorded* before it is loaded, so that the next one finds
//! what a killed one has left.
//!
//! The record is text, of a moment:
//!
//! | line | meaning |
//! |---|---|
//! | `imara-tpm-loaded 1` | what this is |
//! | `resets RESETS RESTARTS` | the TPM's counters: after a reset or restart nothing is loaded any more |
//! | `before HANDLE...` | what was loaded when it began, which is not ours |
//! | `object HANDLE NAME`, `sequence HANDLE`, `session HANDLE` | what is ours |
//! | `making session`, `making sequence`, `making primary TEMPLATE`, `making object NAME` | what was about to be loaded |
//! | `end` | the rest of the file is of an older record |
//!
//! What a killed one has left is flushed only if it was not there before and is what the record says: an object by its name
//! or, if it was only about to be made, by its template; a session, or a sequence that hashes, by its handle, if there is just
//! one that it can be.

use std::{fmt::Write, io};

use imara_format::{
    hash::{from_hex, to_hex},
    tpm::PublicArea,
};
use tpm2_protocol::{basic::TpmHandle, data::TpmRcBase, frame::TpmFlushContextCommand};

use super::{Name, Object, Tpm, TpmError, object, template};

/// The port to where it is recorded what is loaded.
pub trait LoadedRecord: Send {
    /// What was written last, by whichever process; empty if nothing was.
    ///
    /// # Errors
    /// Whatever keeps it from being read.
    fn read(&mut self) -> io::Result<Vec<u8>>;

    /// Writes it, so that it is there if this process is killed.
    ///
    /// # Errors
    /// Whatever keeps it from being written.
    fn write(&mut self, text: &[u8]) -> io::Result<()>;
}

/// What became of what a killed process had left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Handles that were flushed.
    pub flushed: Vec<u32>,
    /// Handles that may be ours and may be another's, and stay loaded.
    pub doubtful: Vec<u32>,
}

/// What is about to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Making {
    Session,
    /// A sequence that hashes: an object without a name.
    Sequence,
    /// A primary key by this public area, without what makes it unique.
    Primary(Vec<u8>),
    /// An object of this name.
    Object(Name),
}

/// What this process has loaded.
#[derive(Default)]
pub(super) struct Loaded {
    handles: Vec<(u32, Option<Name>)>,
    record: Option<Recording>,
}

struct Recording {
    port: Box<dyn LoadedRecord>,
    resets: (u32, u32),
    before: Vec<u32>,
}

impl Tpm {
    /// Does some work and flushes whatever it has loaded, also when it fails; and wipes what passed through. What was loaded
    /// before stays.
    ///
    /// # Errors
    /// What the work could not do; then what could not be flushed.
    pub fn leaving_nothing<T, E: From<TpmError>>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let before = self.loaded.handles.len();
        let result = work(self);
        let flushed = self.flush_since(before);
        self.wipe();
        let value = result?;
        flushed?;
        Ok(value)
    }

    /// Does some work and flushes whatever it has loaded but the object that it returns.
    ///
    /// # Errors
    /// As [`leaving_nothing`](Self::leaving_nothing).
    pub fn leaving_only(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<Object, TpmError>,
    ) -> Result<Object, TpmError> {
        let before = self.loaded.handles.len();
        let result = work(self);
        let kept = result.as_ref().ok().map(Object::handle);
        let rest: Vec<u32> = self.loaded.handles.iter().skip(before).map(|(handle, _)| *handle).collect();
        let mut flushed = Ok(());
        for handle in rest.into_iter().rev().filter(|handle| Some(*handle) != kept) {
            flushed = flushed.and(self.flush(handle));
        }
        let object = result?;
        flushed?;
        Ok(object)
    }

    /// Records from now on what is loaded, and flushes what a killed process has left.
    ///
    /// # Errors
    /// [`TpmError`], also when the record cannot be read or written.
    pub fn record_loaded(&mut self, mut port: Box<dyn LoadedRecord>) -> Result<Recovered, TpmError> {
        let text = port.read().map_err(TpmError::Record)?;
        let clock = self.clock()?;
        let resets = (clock.reset_count, clock.restart_count);
        let mut before = self.handles_loaded()?;
        let mut recovered = Recovered::default();
        if let Some(left) = Left::parse(&text).filter(|left| left.resets == resets) {
            recovered = self.recover(&left, &before)?;
            before.retain(|handle| !recovered.flushed.contains(handle));
        }
        self.loaded.record = Some(Recording { port, resets, before });
        self.write_record(None)?;
        Ok(recovered)
    }

    /// Everything that is loaded in the TPM now: objects and sessions, also others'.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn handles_loaded(&mut self) -> Result<Vec<u32>, TpmError> {
        let mut handles = self.handles(object::TRANSIENT)?;
        handles.extend(self.handles(LOADED_SESSIONS)?);
        Ok(handles)
    }

    /// Flushes an object or a session. That it was gone already is no error.
    pub(super) fn flush(&mut self, handle: u32) -> Result<(), TpmError> {
        let command = TpmFlushContextCommand { handles: [], flush_handle: TpmHandle::new(handle) };
        match self.run("TPM2_FlushContext", &command, &[]) {
            Ok(reader) => reader.end()?,
            Err(TpmError::Refused { code, .. }) if code.base() == Some(TpmRcBase::Handle) => {}
            Err(error) => return Err(error),
        }
        self.gone(handle)
    }

    /// That a command has flushed an object itself. To flush it again is an error to the kernel's resource manager.
    pub(super) fn gone(&mut self, handle: u32) -> Result<(), TpmError> {
        self.loaded.handles.retain(|(loaded, _)| *loaded != handle);
        self.write_record(None)
    }

    fn flush_since(&mut self, before: usize) -> Result<(), TpmError> {
        let mut result = Ok(());
        // The youngest first; each, even when one of them fails.
        while let Some((handle, _)) = self.loaded.handles.get(before..).and_then(<[_]>::last).cloned() {
            result = result.and(self.flush(handle));
            self.loaded.handles.retain(|(loaded, _)| *loaded != handle);
        }
        result
    }

    /// Must be said before anything is loaded.
    pub(super) fn about_to_load(&mut self, making: Making) -> Result<(), TpmError> {
        self.write_record(Some(&making))
    }

    pub(super) fn note_loaded(&mut self, handle: u32) {
        self.loaded.handles.push((handle, None));
    }

    /// The name of what was loaded, once it is known.
    pub(super) fn note_name(&mut self, handle: u32, name: &Name) -> Result<(), TpmError> {
        for (loaded, its) in &mut self.loaded.handles {
            if *loaded == handle {
                *its = Some(name.clone());
            }
        }
        self.write_record(None)
    }

    /// Writes down what is loaded, and what is about to be.
    pub(super) fn write_record(&mut self, making: Option<&Making>) -> Result<(), TpmError> {
        let Some(Recording { port, resets: (resets, restarts), before }) = &mut self.loaded.record else {
            return Ok(());
        };
        let mut text = format!("{MAGIC}\nresets {resets} {restarts}\nbefore");
        for handle in before {
            let _ = write!(text, " {handle:08x}");
        }
        text.push('\n');
        for (handle, name) in &self.loaded.handles {
            let _ = match name {
                Some(name) => writeln!(text, "object {handle:08x} {name}"),
                None if object::is_object(*handle) => writeln!(text, "sequence {handle:08x}"),
                None => writeln!(text, "session {handle:08x}"),
            };
        }
        let _ = match making {
            Some(Making::Session) => writeln!(text, "making session"),
            Some(Making::Sequence) => writeln!(text, "making sequence"),
            Some(Making::Primary(template)) => writeln!(text, "making primary {}", to_hex(template)),
            Some(Making::Object(name)) => writeln!(text, "making object {name}"),
            None => Ok(()),
        };
        text.push_str("end\n");
        port.write(text.as_bytes()).map_err(TpmError::Record)
    }

    fn recover(&mut self, left: &Left, loaded: &[u32]) -> Result<Recovered, TpmError> {
        let mut recovered = Recovered::default();
        let strange: Vec<u32> = loaded.iter().copied().filter(|handle| !left.before.contains(handle)).collect();
        let mut sequences = Vec::new();
        for handle in &strange {
            let ours = match object::is_object(*handle) {
                true => match self.read_public(*handle) {
                    Ok((public, name)) => {
                        left.objects.contains(&(*handle, name.clone()))
                            || match &left.making {
                                Some(Making::Object(made)) => *made == name,
                                Some(Making::Primary(made)) => {
                                    PublicArea::parse(made).is_ok_and(|made| template::is_made_by(&public, &made))
                                }
                                Some(Making::Session | Making::Sequence) | None => false,
                            }
                    }
                    Err(TpmError::Refused { code, .. }) if code.base() == Some(TpmRcBase::Sequence) => {
                        sequences.push(*handle);
                        left.sessions.contains(handle)
                    }
                    Err(_) => false,
                },
                false => left.sessions.contains(handle),
            };
            if ours {
                self.flush(*handle)?;
                recovered.flushed.push(*handle);
            }
        }
        let mut candidates: Vec<u32> = match left.making {
            Some(Making::Session) => strange.iter().copied().filter(|handle| !object::is_object(*handle)).collect(),
            Some(Making::Sequence) => sequences,
            Some(Making::Primary(_) | Making::Object(_)) | None => Vec::new(),
        };
        candidates.retain(|handle| !recovered.flushed.contains(handle));
        match candidates.as_slice() {
            [only] => {
                self.flush(*only)?;
                recovered.flushed.push(*only);
            }
            _ => recovered.doubtful.append(&mut candidates),
        }
        Ok(recovered)
    }
}

const MAGIC: &str = "imara-tpm-loaded 1";
/// Where the handles of loaded sessions begin, as a capability asks for them.
const LOADED_SESSIONS: u32 = 0x0200_0000;

/// What a killed process has left, as far as its record can be read.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    resets: (u32, u32),
    before: Vec<u32>,
    objects: Vec<(u32, Name)>,
    /// Sessions and sequences.
    sessions: Vec<u32>,
    making: Option<Making>,
}

impl Left {
    /// `None` when nothing is left, or what is written is not understood in full: then nothing is touched.
    fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (text, _) = text.split_once("\nend\n")?;
        let mut lines = text.lines();
        (lines.next() == Some(MAGIC)).then_some(())?;
        let handle = |text: &str| u32::from_str_radix(text, 16).ok();
        let (resets, restarts) = lines.next()?.strip_prefix("resets ")?.split_once(' ')?;
        let resets = (resets.parse().ok()?, restarts.parse().ok()?);
        let before: Option<Vec<u32>> = lines.next()?.strip_prefix("before")?.split_whitespace().map(handle).collect();
        let mut left = Self { resets, before: before?, objects: Vec::new(), sessions: Vec::new(), making: None };
        for line in lines {
            match line.split(' ').collect::<Vec<_>>().as_slice() {
                ["object", loaded, name] => left.objects.push((handle(loaded)?, Name::from_hex(name)?)),
                ["session" | "sequence", loaded] => left.sessions.push(handle(loaded)?),
                ["making", "session"] => left.making = Some(Making::Session),
                ["making", "sequence"] => left.making = Some(Making::Sequence),
                ["making", "primary", template] => left.making = Some(Making::Primary(from_hex(template).ok()?)),
                ["making", "object", name] => left.making = Some(Making::Object(Name::from_hex(name)?)),
                _ => return None,
            }
        }
        let nothing = left.objects.is_empty() && left.sessions.is_empty() && left.making.is_none();
        (!nothing).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_is_understood_in_full_or_not_at_all() {
        let begin = "imara-tpm-loaded 1\nresets 2 0\nbefore 80000000 02000000\n";
        let left = |text: &str| Left::parse(text.as_bytes());
        let found =
            left(&format!("{begin}object 80000001 000b11\nsession 03000001\nmaking session\nend\nold")).unwrap();
        assert_eq!((found.resets, found.before.as_slice()), ((2, 0), [0x8000_0000, 0x0200_0000].as_slice()));
        assert_eq!(found.objects, [(0x8000_0001, Name::from_bytes(&[0, 11, 0x11]))]);
        assert_eq!((found.sessions.as_slice(), found.making), ([0x0300_0001].as_slice(), Some(Making::Session)));
        for (name, text) in [
            ("nothing", String::new()),
            ("nothing left", format!("{begin}end\n")),
            ("cut off", format!("{begin}session 03000001\n")),
            ("a line of a later version", format!("{begin}session 03000001\nsealed 80000002\nend\n")),
            ("another version", "imara-tpm-loaded 2\nresets 2 0\nbefore\nsession 03000001\nend\n".to_owned()),
        ] {
            assert_eq!(left(&text), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_record_panics(text in "(imara-tpm-loaded 1\n|resets |before|session |object |making |primary |[0-9a-f]{0,9}| |\n|end\n){0,20}") {
            let _ = Left::parse(text.as_bytes());
        }
    }
}
