//! A list whose TPM dies, comes back, was reset, or was somebody else's meanwhile: against the `swtpm` that is installed here. Without
//! one, each test says so and passes.

use imara_engine::measure::{Departure, MeasureError, MeasurementLog, Store};
use imara_engine::replay::Replay;
use imara_engine::tpm::{Tpm, Transport};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::measurement_list::Reader;
use imara_linux::swtpm::{Resumed, SoftwareTpm, SwtpmError};
use imara_linux::tpm_socket::SocketTransport;
use rustix::process::{Pid, Signal};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const PCR: u32 = 10;
/// `TPM2_PCR_Extend`.
const EXTEND: u32 = 0x182;

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Answered,
    /// It does not get there.
    Lost,
    /// It is done, and the answer does not come.
    Unanswered,
    /// Extends are done without an answer, all others are answered.
    ExtendsUnanswered,
}

/// The way to a software TPM, on which commands and answers can be lost.
struct Way {
    socket: PathBuf,
    fate: Arc<Mutex<Fate>>,
    transport: Option<SocketTransport>,
}

impl Transport for Way {
    fn transmit(&mut self, command: &[u8], response: &mut Vec<u8>) -> io::Result<()> {
        let fate = *self.fate.lock().unwrap();
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "gone");
        if fate == Fate::Lost {
            self.transport = None;
            return Err(gone());
        }
        let transport = self.transport.get_or_insert_with(|| SocketTransport::unix(self.socket.clone()));
        transport.transmit(command, response)?;
        let extends = command[6..10] == EXTEND.to_be_bytes();
        match fate {
            Fate::Unanswered => Err(gone()),
            Fate::ExtendsUnanswered if extends => Err(gone()),
            _ => Ok(()),
        }
    }
}

#[derive(Clone, Default)]
struct List(Arc<Mutex<Vec<u8>>>);

impl Store for List {
    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().extend(record);
        Ok(())
    }
}

struct Bench {
    dir: tempfile::TempDir,
    software: Option<SoftwareTpm>,
    fate: Arc<Mutex<Fate>>,
    list: List,
    log: MeasurementLog,
    added: u64,
}

impl Bench {
    fn new(test: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let software = match SoftwareTpm::start_or_attach(&dir.path().join("tpm"), true) {
            Err(SwtpmError::NotInstalled) => {
                println!("skipped: {test}: swtpm is not installed");
                return None;
            }
            started => started.unwrap(),
        };
        let (fate, list) = (Arc::new(Mutex::new(Fate::Answered)), List::default());
        let way = Way { socket: software.socket(), fate: Arc::clone(&fate), transport: None };
        let tpm = Tpm::new(Box::new(way)).unwrap();
        let log = MeasurementLog::new(Box::new(list.clone()), Some(tpm), HashAlgorithm::Sha256, PCR).unwrap();
        Some(Self { dir, software: Some(software), fate, list, log, added: 0 })
    }

    fn fate(&self, fate: Fate) {
        *self.fate.lock().unwrap() = fate;
    }

    /// Adds entries; each must be told as missing in the TPM, or none.
    fn add(&mut self, entries: u64, missing: bool) {
        for _ in 0..entries {
            self.added += 1;
            match self.log.add_buffer(b"entry", &self.added.to_be_bytes()) {
                Err(MeasureError::Tpm { entry, .. }) if missing => assert_eq!(entry, self.added),
                result => assert!(result.is_ok() && !missing, "{}: {result:?}", self.added),
            }
        }
    }

    fn missing(&self) -> (u64, Option<u64>) {
        (self.log.counts().unextended, self.log.first_missing())
    }

    /// That the list comes to what the TPM holds, in every bank.
    fn proven(&self, what: &str) {
        let values = self.log.with_tpm(|tpm| tpm.pcr_read_many(&[PCR])).unwrap().unwrap();
        assert!(values.len() > 1);
        let bytes = self.list.0.lock().unwrap().clone();
        for (bank, _, value) in values {
            let mut replay = Replay::new(&[bank]).unwrap().per_bank_only();
            let mut reader = Reader::new(&bytes);
            while let Some(record) = reader.next_record().unwrap() {
                replay.extend_record(&record).unwrap();
            }
            assert_eq!(replay.value(PCR, bank), Some(value), "{what}: {bank}");
        }
    }

    fn tpm_dir(&self) -> PathBuf {
        self.dir.path().join("tpm")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.fate(Fate::Lost);
        self.log.close_tpm();
        end(&self.tpm_dir());
    }
}

fn end(dir: &Path) {
    if let Some(pid) = SoftwareTpm::running(dir).and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        while SoftwareTpm::running(dir).is_some() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

#[test]
fn what_a_tpm_has_missed_it_is_given_in_order_whether_or_not_it_was_done() {
    for fate in [Fate::Lost, Fate::Unanswered, Fate::ExtendsUnanswered] {
        for before in [0, 3] {
            let Some(mut bench) = Bench::new("what_a_tpm_has_missed_it_is_given_in_order_whether_or_not_it_was_done")
            else {
                return;
            };
            let what = format!("{fate:?} after {before}");
            bench.add(before, false);
            bench.fate(fate);
            bench.add(4, true);
            assert_eq!(bench.missing(), (4, Some(before + 1)), "{what}");
            bench.log.catch_up();
            bench.fate(Fate::Answered);
            while bench.log.first_missing().is_some() {
                assert!(bench.log.catch_up() > 0, "{what}");
            }
            assert_eq!((bench.missing(), bench.log.catch_up(), bench.log.departure()), ((0, None), 0, None), "{what}");
            bench.proven(&what);
            bench.add(2, false);
            bench.proven(&what);
        }
    }
}

#[test]
fn a_tpm_that_was_stopped_in_order_and_started_again_is_given_what_it_missed() {
    let Some(mut bench) = Bench::new("a_tpm_that_was_stopped_in_order_and_started_again_is_given_what_it_missed")
    else {
        return;
    };
    bench.add(3, false);
    bench.fate(Fate::Lost);
    bench.add(1, true);
    bench.software.take().unwrap().stop().unwrap();
    bench.fate(Fate::Answered);
    bench.add(2, true);
    assert_eq!(bench.log.catch_up(), 0, "nobody is there");
    let software = SoftwareTpm::start_or_attach(&bench.tpm_dir(), false).unwrap();
    assert_eq!(software.resumed(), Resumed::State);
    assert_eq!((bench.log.catch_up(), bench.missing()), (3, (0, None)));
    bench.proven("started again");
}

#[test]
fn a_tpm_that_was_reset_or_used_by_somebody_else_is_told_and_given_nothing_more() {
    for reset in [true, false] {
        let Some(mut bench) =
            Bench::new("a_tpm_that_was_reset_or_used_by_somebody_else_is_told_and_given_nothing_more")
        else {
            return;
        };
        bench.add(3, false);
        bench.fate(Fate::Lost);
        bench.add(2, true);
        if reset {
            end(&bench.tpm_dir());
            let software = SoftwareTpm::start_or_attach(&bench.tpm_dir(), false).unwrap();
            assert_eq!(software.resumed(), Resumed::Cleared);
        } else {
            let mut other = Tpm::new(bench.software.as_ref().unwrap().transport()).unwrap();
            other.pcr_extend(PCR, &[Digest::zeros(HashAlgorithm::Sha256)]).unwrap();
        }
        bench.fate(Fate::Answered);
        assert_eq!(bench.log.catch_up(), 0);
        let expected = if reset { Departure::Reset { pcr: PCR } } else { Departure::Other { pcr: PCR } };
        assert_eq!((bench.log.departure(), bench.missing()), (Some(expected), (2, Some(4))));
        let held = bench.log.with_tpm(|tpm| tpm.pcr_read_many(&[PCR])).unwrap().unwrap();
        bench.add(2, true);
        assert_eq!((bench.log.catch_up(), bench.missing()), (0, (4, Some(4))));
        let now = bench.log.with_tpm(|tpm| tpm.pcr_read_many(&[PCR])).unwrap().unwrap();
        assert_eq!(now, held, "what has no end that can be proven is not gone on with");
    }
}

#[test]
fn another_tpm_in_the_place_of_one_that_was_killed_is_given_the_list_that_the_pcrs_held() {
    for (name, change, given) in [
        ("the list as it was", (|_: &mut Vec<u8>| {}) as fn(&mut Vec<u8>), true),
        ("a digest was changed", |list| *list.last_mut().unwrap() ^= 1, false),
        ("an entry is missing at its end", |list| list.truncate(list.len() / 2), false),
        ("it is empty", Vec::clear, false),
    ] {
        let Some(mut bench) =
            Bench::new("another_tpm_in_the_place_of_one_that_was_killed_is_given_the_list_that_the_pcrs_held")
        else {
            return;
        };
        bench.add(5, false);
        let before = bench.list.0.lock().unwrap().clone();
        bench.fate(Fate::Lost);
        bench.add(2, true);
        bench.software = None;
        end(&bench.tpm_dir());
        bench.log.tpm_is_gone();
        bench.add(1, true);
        assert_eq!((bench.missing(), bench.log.catch_up()), ((3, Some(6)), 0), "{name}: nobody is there");
        let software = SoftwareTpm::start_or_attach(&bench.tpm_dir(), false).unwrap();
        assert_eq!(software.resumed(), Resumed::Cleared);
        bench.fate(Fate::Answered);
        let way = Way { socket: software.socket(), fate: Arc::clone(&bench.fate), transport: None };
        bench.software = Some(software);
        let mut listed = bench.list.0.lock().unwrap().clone();
        if given {
            change(&mut listed);
        } else {
            listed = before;
            change(&mut listed);
        }
        let taken = bench.log.take_another_tpm(Tpm::new(Box::new(way)).unwrap(), &listed);
        if given {
            assert_eq!((taken.unwrap(), bench.log.catch_up(), bench.missing()), (5, 3, (0, None)), "{name}");
            bench.add(2, false);
            bench.proven(name);
            continue;
        }
        assert!(taken.is_err(), "{name}: {taken:?}");
        let values = bench.log.with_tpm(|tpm| tpm.pcr_read_many(&[PCR]));
        let untouched = |values: Vec<(HashAlgorithm, u32, Digest)>| values.iter().all(|(_, _, value)| value.is_zero());
        assert!(values.is_none_or(|values| untouched(values.unwrap())), "{name}: nothing was extended");
        bench.add(1, true);
    }
}
