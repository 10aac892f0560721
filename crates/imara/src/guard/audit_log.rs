//! Audit records to a file, without ever holding up a decision: a bounded queue and a thread that writes.
//!
//! The kernel takes records of the integrity types (1800 to 1805) from nobody but itself, so they go to a file of our own,
//! in the kernel's words.

use imara_engine::audit::{AuditRecord, AuditSink, TaskIdentity};
use imara_format::audit::{Record, RecordType, Value};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

/// How many records may wait to be written.
const QUEUE: usize = 4096;
/// How many failed accesses `imara status` can show.
const RECENT: usize = 32;
/// How large the log may grow, in bytes; then it becomes `audit.log.1`, in place of the one before. Whoever is refused
/// again and again must not fill the file system that the list is on.
const MOST: u64 = 8 << 20;

/// The sink that the engine is given.
#[derive(Debug)]
pub struct AuditLog {
    sender: SyncSender<(u64, AuditRecord)>,
    shared: Arc<Shared>,
}

/// What is known of the log from outside.
#[derive(Debug, Default)]
pub struct Shared {
    /// Records dropped because the queue was full.
    pub dropped: AtomicU64,
    /// The last accesses that failed their appraisal.
    recent: Mutex<VecDeque<(u64, AuditRecord)>>,
}

impl Shared {
    /// The last accesses that failed their appraisal, with when that was, in milliseconds since 1970; the newest last.
    pub fn recent(&self) -> Vec<(u64, AuditRecord)> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

impl AuditLog {
    /// Opens the log and starts its thread, which ends when the log is dropped.
    ///
    /// # Errors
    /// What open(2) or starting a thread says.
    pub fn open(path: &Path) -> io::Result<(Self, Arc<Shared>, JoinHandle<()>)> {
        let file = open(path)?;
        let path = path.to_owned();
        let (sender, receiver) = sync_channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new().name("audit".into()).spawn(move || write(file, &path, &receiver))?;
        Ok((Self { sender, shared: Arc::clone(&shared) }, shared, thread))
    }
}

impl AuditSink for AuditLog {
    fn record(&self, record: AuditRecord) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        if matches!(record, AuditRecord::Data { .. } | AuditRecord::Metadata { .. }) {
            let mut recent = self.shared.recent.lock().unwrap_or_else(PoisonError::into_inner);
            if recent.len() == RECENT {
                recent.pop_front();
            }
            recent.push_back((now, record.clone()));
        }
        if let Err(TrySendError::Full(_)) = self.sender.try_send((now, record)) {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn write(mut file: File, path: &Path, receiver: &Receiver<(u64, AuditRecord)>) {
    let mut size = file.metadata().map_or(0, |metadata| metadata.len());
    for (serial, (milliseconds, record)) in (1..).zip(receiver) {
        let (kind, fields) = fields(&record);
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
        // A log that cannot be written (a full disk) must not stop the guard; the records stay in `imara status`.
        let _ = file.write_all(line.as_bytes());
    }
}

/// The fields of a record, in the kernel's order.
fn fields(record: &AuditRecord) -> (RecordType, Vec<(&'static str, Value<'_>)>) {
    let common = |task: &TaskIdentity, op: &'static str, cause: &'static str| {
        vec![
            ("pid", Value::Number(task.tid.into())),
            ("uid", Value::Number(task.uids[0].into())),
            ("auid", Value::Number(task.login_uid.into())),
            ("ses", Value::Number(task.session.into())),
            ("op", Value::Word(op)),
            ("cause", Value::Word(cause)),
        ]
    };
    match record {
        AuditRecord::Data { cause, task, path, inode, denied, .. } => {
            let mut fields = common(task, "appraise_data", cause.words());
            fields.push(("comm", Value::Untrusted(&task.command)));
            fields.push(("name", Value::Untrusted(path)));
            fields.push(("ino", Value::Number(inode.inode.cast_signed())));
            fields.push(("res", Value::Number((!denied).into())));
            fields.push(("errno", Value::Number(0)));
            (RecordType::Data, fields)
        }
        AuditRecord::Metadata { status, task, path, inode, .. } => {
            let mut fields = common(task, "appraise_metadata", status.words());
            fields.push(("comm", Value::Untrusted(&task.command)));
            fields.push(("name", Value::Untrusted(path)));
            fields.push(("ino", Value::Number(inode.inode.cast_signed())));
            // It is done already.
            fields.push(("res", Value::Number(1)));
            fields.push(("errno", Value::Number(0)));
            (RecordType::Metadata, fields)
        }
        AuditRecord::Status { op, cause, task, path, success } => {
            let mut fields = common(task, op, cause);
            fields.push(("comm", Value::Untrusted(&task.command)));
            fields.push(("name", Value::Untrusted(path)));
            fields.push(("res", Value::Number((*success).into())));
            fields.push(("errno", Value::Number(0)));
            (RecordType::Status, fields)
        }
        AuditRecord::Violation { cause, task, path, inode } => {
            let mut fields = common(task, "invalid_pcr", cause);
            fields.push(("comm", Value::Untrusted(&task.command)));
            fields.push(("name", Value::Untrusted(path)));
            fields.push(("ino", Value::Number(inode.inode.cast_signed())));
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
