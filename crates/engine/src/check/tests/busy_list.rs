//! A measurement list that takes nothing for a while, as the file system that it is on is frozen.

use super::*;
use std::sync::Condvar;
use std::thread;

/// A list whose file takes entries only while it is open.
#[derive(Clone)]
struct Gate(Arc<(Mutex<(bool, u32)>, Condvar)>, Memory);

impl Gate {
    fn open(&self, open: bool) {
        self.0.0.lock().unwrap().0 = open;
        self.0.1.notify_all();
    }

    /// Waits until so many have come to write.
    fn wait_for(&self, writers: u32) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |(_, came)| *came < writers).unwrap());
    }
}

impl Store for Gate {
    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let mut state = self.0.0.lock().unwrap();
        state.1 += 1;
        self.0.1.notify_all();
        drop(self.0.1.wait_while(state, |(open, _)| !*open).unwrap());
        self.1.append(record)
    }
}

fn file(content: &[u8], when: i128) -> Fake {
    let file = Fake::new(b"");
    file.change(content, when);
    file
}

#[test]
fn while_the_list_takes_nothing_what_is_listed_goes_on_and_the_rest_is_asked_about_again() {
    const READ: [Hook; 1] = [Hook { func: Func::FileCheck, mask: 4 }];
    let Bench { checker, records, list } = bench("measure", Mode::Enforce);
    let gate = Gate(Arc::default(), list.clone());
    let log = MeasurementLog::new(Box::new(gate.clone()), None, HashAlgorithm::Sha256, 10).unwrap();
    let bench = Bench { checker: Checker { log: Arc::new(log), ..checker }, records, list };
    gate.open(true);
    assert_eq!(bench.check(&file(b"listed", 1), 0, &EXECUTE), Verdict::Allow);
    gate.open(false);
    thread::scope(|scope| {
        let first = scope.spawn(|| bench.check(&file(b"first", 2), 0, &EXECUTE));
        gate.wait_for(2);
        assert!(!bench.checker.log().wait_until_free(std::time::Duration::ZERO));
        let (second, written) = (file(b"second", 3), file(b"written to", 4));
        for _ in 0..3 {
            assert_eq!(bench.check(&second, 0, &EXECUTE), Verdict::Later);
        }
        assert_eq!(second.hashed.get(), 1, "it is not read for each");
        written.writers.set(true);
        assert_eq!(bench.check(&written, 0, &READ), Verdict::Later);
        assert_eq!(bench.check(&file(b"listed", 5), 0, &EXECUTE), Verdict::Allow);
        assert!(bench.records.0.lock().unwrap().is_empty(), "nothing has failed");
        assert_eq!(bench.checker.counters.measure_errors.load(Ordering::Relaxed), 0);
        assert_eq!(bench.checker.log().counts().entries, 1);
        gate.open(true);
        assert_eq!(first.join().unwrap(), Verdict::Allow);
        assert!(bench.checker.log().wait_until_free(std::time::Duration::ZERO));
        assert_eq!(bench.check(&second, 0, &EXECUTE), Verdict::Allow);
        assert_eq!(bench.check(&written, 0, &READ), Verdict::Allow);
    });
    assert_eq!(bench.list.paths(), ["/a_b", "/a_b", "/a_b", "violation /a_b", "/a_b"]);
}

#[test]
fn each_entry_is_listed_once_by_however_many_threads_and_none_is_left_waiting() {
    let Bench { checker, records, list } = bench("measure", Mode::Enforce);
    let gate = Gate(Arc::default(), list.clone());
    gate.open(true);
    let log = MeasurementLog::new(Box::new(gate.clone()), None, HashAlgorithm::Sha256, 10).unwrap();
    let bench = Bench { checker: Checker { log: Arc::new(log), ..checker }, records, list };
    let log = bench.checker.log();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for number in 0..100_u32 {
                    // Somebody may be kept from the processor for longer than others wait.
                    while matches!(log.add_buffer(b"entry", &number.to_be_bytes()), Err(MeasureError::Busy)) {}
                }
            });
        }
    });
    assert_eq!((log.counts().entries, bench.list.paths().len()), (100, 100));
}

#[test]
fn a_panic_while_an_entry_is_written_keeps_no_other_entry_waiting() {
    struct Once(bool, Memory);
    impl Store for Once {
        fn append(&mut self, record: &[u8]) -> io::Result<()> {
            assert!(std::mem::replace(&mut self.0, true), "on purpose");
            self.1.append(record)
        }
    }
    let list = Memory::default();
    let log = MeasurementLog::new(Box::new(Once(false, list.clone())), None, HashAlgorithm::Sha256, 10).unwrap();
    let add = |name: &[u8]| log.add_buffer(name, b"data");
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| add(b"first"))).is_err());
    assert!(log.wait_until_free(std::time::Duration::ZERO));
    assert!(add(b"second").is_ok() && add(b"first").is_ok(), "what was not listed is not taken for known");
    assert_eq!((list.paths().len(), log.counts().entries), (2, 2));
}
