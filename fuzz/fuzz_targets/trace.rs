//! Any bytes as a trace of decisions: what is read is written, and read again, as the same.

#![no_main]

use imara_format::trace::{Event, TraceReader, TraceWriter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok((header, reader)) = TraceReader::new(bytes) else { return };
    let events: Vec<Event> = reader.map_while(Result::ok).collect();
    let Ok(mut writer) = TraceWriter::new(Vec::new(), &header) else { return };
    for event in &events {
        writer.event(event).expect("memory takes it");
    }
    let written = writer.finish().expect("memory takes it");
    let (again, mut reader) = TraceReader::new(written.as_slice()).expect("what was written is read");
    assert_eq!(again, header);
    let read: Vec<Event> = reader.by_ref().map(|event| event.expect("what was written is read")).collect();
    assert_eq!(read, events);
    assert!(reader.ended().is_some());
});
