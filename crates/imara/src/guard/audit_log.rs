//! Audit records to a file, without ever holding up a decision: a bounded queue and a thread that writes.
//!
//! The kernel takes records of the integrity types (1800 to 1805) from nobody but itself, so they go to a file of our own,
//! in the kernel's words.

use super::events::Events;
use imara_engine::appraise::Cause;
use imara_engine::audit::{AuditRecord, AuditSink, TaskIdentity};
use imara_format::audit::{Record, RecordType, Value};
use imara_format::policy::Func;
use imara_linux::mounts::device_name;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

/// How many records may wait to be written.
const QUEUE: usize = 4096;
/// How many file systems' names are kept.
const DEVICES: usize = 256;
/// How large the log may grow, in bytes; then it becomes `audit.log.1`, in place of the one before. Whoever is refused
/// again and again must not fill the file system that the list is on.
const MOST: u64 = 8 << 20;

/// The sink that the engine is given.
#[derive(Debug)]
pub struct AuditLog {
    sender: SyncSender<(u64, AuditRecord)>,
    events: Arc<Events>,
}

impl AuditLog {
    /// Opens the log and starts its thread, which ends when the log is dropped. `events` learns of each record, too.
    ///
    /// # Errors
    /// What open(2) or starting a thread says.
    pub fn open(path: &Path, events: &Arc<Events>) -> io::Result<(Self, JoinHandle<()>)> {
        let file = open(path)?;
        let path = path.to_owned();
        let (sender, receiver) = sync_channel(QUEUE);
        let counts = Arc::clone(events);
        let body = move || write(file, &path, &receiver, &counts);
        let thread = std::thread::Builder::new().name("audit".into()).spawn(body)?;
        Ok((Self { sender, events: Arc::clone(events) }, thread))
    }
}

impl AuditSink for AuditLog {
    fn record(&self, record: AuditRecord) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        self.events.note(now, &record);
        if let Err(TrySendError::Full(_)) = self.sender.try_send((now, record)) {
            self.events.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn write(mut file: File, path: &Path, receiver: &Receiver<(u64, AuditRecord)>, events: &Events) {
    let mut devices = HashMap::new();
    let mut size = file.metadata().map_or(0, |metadata| metadata.len());
    for (serial, (milliseconds, record)) in (1..).zip(receiver) {
        let device = device_of(&record).map(|device| {
            if devices.len() >= DEVICES {
                devices.clear();
            }
            devices.entry(device).or_insert_with(|| device_name(device)).clone()
        });
        let (kind, fields) = fields(&record, device.as_deref());
        let line = format!("{}\n", Record { kind, milliseconds, serial, fields });
        size += line.len() as u64;
        if size > MOST {
            // Where it cannot be renamed it is begun anew all the same.
            let _ = std::fs::rename(path, path.with_extension("log.1"));
            match open(path) {
                Ok(fresh) => file = fresh,
                Err(_) => drop(file.set_len(0)),
            }
            size = line.len() as u64;
        }
        // A log that cannot be written (a full disk) must not stop the guard; the records stay in `imara report`.
        if file.write_all(line.as_bytes()).is_err() {
            events.unwritten.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The file system that a record is about; 0 where it was not asked for.
fn device_of(record: &AuditRecord) -> Option<u64> {
    match record {
        AuditRecord::Data { inode, .. }
        | AuditRecord::Metadata { inode, .. }
        | AuditRecord::Violation { inode, .. } => Some(inode.device).filter(|device| *device != 0),
        AuditRecord::Rule { .. } | AuditRecord::Status { .. } => None,
    }
}

/// The step that a cause comes from.
const fn op(func: Func, cause: Cause) -> &'static str {
    if matches!(func, Func::SetxattrCheck) {
        return "set_data";
    }
    match cause {
        Cause::CollectFailed
        | Cause::NoVerityDigest
        | Cause::InvalidVerityDigest
        | Cause::DeniedHashAlgorithm
        | Cause::UnavailableHashAlgorithm
        | Cause::FailedMprotect => "collect_data",
        Cause::Writers => "mmap_file",
        Cause::MissingHash
        | Cause::ImaSignatureRequired
        | Cause::VeritySignatureRequired
        | Cause::MissingHmac
        | Cause::InvalidHmac
        | Cause::InvalidFailImmutable
        | Cause::InvalidHash
        | Cause::InvalidSignature
        | Cause::InvalidSignatureVersion
        | Cause::InvalidVeritySignature
        | Cause::UnknownImaData
        | Cause::Unknown
        | Cause::Blocked
        | Cause::MeasureFailed
        | Cause::Immutable
        | Cause::Overdue
        | Cause::NoVerdict
        | Cause::Protected => "appraise_data",
    }
}

/// The fields of a record, in the kernel's order.
fn fields<'a>(record: &'a AuditRecord, device: Option<&'a str>) -> (RecordType, Vec<(&'static str, Value<'a>)>) {
    let common = |task: &'a TaskIdentity, op: &'static str, cause: &'static str, path: &'a [u8]| {
        let mut fields = vec![
            ("pid", Value::Number(task.tid.into())),
            ("uid", Value::Number(task.uids[0].into())),
            ("auid", Value::Number(task.login_uid.into())),
            ("ses", Value::Number(task.session.into())),
        ];
        // Whose security module it is chooses its form.
        if let Some(context) = std::str::from_utf8(&task.context).ok().filter(|context| !context.is_empty()) {
            fields.push(("subj", Value::Word(context)));
        }
        fields.extend([("op", Value::Word(op)), ("cause", Value::Word(cause))]);
        fields.push(("comm", Value::Untrusted(&task.command)));
        if !path.is_empty() {
            fields.push(("name", Value::Untrusted(path)));
        }
        fields
    };
    let place = |fields: &mut Vec<_>, inode: u64| {
        if let Some(device) = device {
            fields.push(("dev", Value::Untrusted(device.as_bytes())));
            fields.push(("ino", Value::Number(inode.cast_signed())));
        }
    };
    match record {
        AuditRecord::Data { func, cause, task, path, inode, denied, .. } => {
            let mut fields = common(task, op(*func, *cause), cause.words(), path);
            place(&mut fields, inode.inode);
            fields.push(("res", Value::Number((!denied).into())));
            fields.push(("errno", Value::Number(0)));
            (RecordType::Data, fields)
        }
        AuditRecord::Metadata { status, task, path, inode, .. } => {
            let mut fields = common(task, "appraise_metadata", status.words(), path);
            place(&mut fields, inode.inode);
            // It is done already.
            fields.push(("res", Value::Number(1)));
            fields.push(("errno", Value::Number(0)));
            (RecordType::Metadata, fields)
        }
        AuditRecord::Status { op, cause, task, path, success } => {
            let mut fields = common(task, op, cause, path);
            fields.push(("res", Value::Number((*success).into())));
            fields.push(("errno", Value::Number(0)));
            (RecordType::Status, fields)
        }
        AuditRecord::Violation { cause, task, path, inode } => {
            let mut fields = common(task, "invalid_pcr", cause, path);
            place(&mut fields, inode.inode);
            fields.push(("res", Value::Number(1)));
            fields.push(("errno", Value::Number(0)));
            (RecordType::Pcr, fields)
        }
        AuditRecord::Rule { digest, task, path } => {
            let [uid, euid, suid, fsuid] = task.uids.map(|id| Value::Number(id.into()));
            let [gid, egid, sgid, fsgid] = task.gids.map(|id| Value::Number(id.into()));
            let fields = vec![
                ("file", Value::Untrusted(path)),
                ("hash", Value::Digest(digest)),
                ("ppid", Value::Number(task.parent.into())),
                ("pid", Value::Number(task.pid.into())),
                ("auid", Value::Number(task.login_uid.into())),
                ("uid", uid),
                ("gid", gid),
                ("euid", euid),
                ("suid", suid),
                ("fsuid", fsuid),
                ("egid", egid),
                ("sgid", sgid),
                ("fsgid", fsgid),
                ("ses", Value::Number(task.session.into())),
                ("comm", Value::Untrusted(&task.command)),
                ("exe", Value::Untrusted(&task.executable)),
            ];
            (RecordType::Rule, fields)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_engine::cache::InodeId;

    fn line(record: &AuditRecord, device: Option<&str>) -> String {
        let (kind, fields) = fields(record, device);
        Record { kind, milliseconds: 1_700_000_000_123, serial: 42, fields }.to_string()
    }

    #[test]
    fn the_fields_and_their_order_are_the_kernels() {
        let task = TaskIdentity {
            tid: 1234,
            login_uid: 1000,
            session: 3,
            command: b"cat".to_vec(),
            context: b"unconfined".to_vec(),
            ..TaskIdentity::default()
        };
        let data = |cause, path: &[u8]| AuditRecord::Data {
            func: Func::FileCheck,
            cause,
            detail: String::new(),
            task: task.clone(),
            path: path.to_vec(),
            inode: InodeId { device: 0x802, inode: 4711 },
            rule: None,
            denied: true,
            fixed: false,
        };
        // The kernel's, but for the name that is told from the others.
        assert_eq!(
            line(&data(Cause::MissingHash, b"/etc/example.conf"), Some("sda2")),
            "type=INTEGRITY_DATA msg=audit(1700000000.123:42): pid=1234 uid=0 auid=1000 ses=3 subj=unconfined op=appraise_data \
             cause=missing-hash comm=\"cat\" name=\"/etc/example.conf\" dev=\"sda2\" ino=4711 res=0 errno=0"
        );
        for (cause, words) in [
            (Cause::CollectFailed, "op=collect_data cause=failed "),
            (Cause::NoVerityDigest, "op=collect_data cause=no-verity-digest "),
            (Cause::DeniedHashAlgorithm, "op=collect_data cause=denied-hash-algorithm "),
            (Cause::FailedMprotect, "op=collect_data cause=failed-mprotect "),
            (Cause::Writers, "op=mmap_file cause=mmapped_writers "),
        ] {
            let line = line(&data(cause, b"/etc/a b"), Some("a b"));
            assert!(line.contains(words) && line.contains("name=2F6574632F612062 dev=612062 ino=4711 "), "{line}");
        }
        let plain = TaskIdentity { tid: 7, command: b"imarad".to_vec(), ..TaskIdentity::default() };
        let mode =
            AuditRecord::Status { op: "appraise_mode", cause: "log", task: plain, path: Vec::new(), success: true };
        assert_eq!(
            line(&mode, None),
            "type=INTEGRITY_STATUS msg=audit(1700000000.123:42): pid=7 uid=0 auid=0 ses=0 op=appraise_mode cause=log \
             comm=\"imarad\" res=1 errno=0"
        );
    }
}
