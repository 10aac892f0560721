//! Any bytes as the firmware's event log: every event has a description and a place, and a beginning is the whole's beginning.

#![no_main]

use imara_format::event_log::EventLog;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (log, error) = EventLog::parse_beginning(bytes);
    assert_eq!(EventLog::parse(bytes).ok(), error.is_none().then(|| log.clone()));
    let banks = log.banks();
    let mut before = None;
    for event in &log.events {
        assert!(before.is_none_or(|before| event.offset > before) && event.offset < bytes.len());
        before = Some(event.offset);
        let _ = (event.description(), event.is_measured(), event.startup_locality());
        let _ = banks.iter().map(|bank| event.digest(*bank)).collect::<Vec<_>>();
    }
});
