//! Any bytes as a measurement list: whole and in pieces it is read alike, and what is read is written back to the same bytes.

#![no_main]

use imara_format::measurement_list::{ByteOrder, Decoder, Entry, ListForm, Reader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut reader = Reader::new(bytes);
    let mut whole: Vec<Entry> = Vec::new();
    let mut written = Vec::new();
    let mut room = Vec::new();
    let mut failed = false;
    let mut form = None;
    loop {
        match reader.next_record() {
            Ok(Some(record)) => {
                form = Some(record.form);
                match record.form {
                    ListForm::Binary { order, .. } => record.write_binary(order, &mut written),
                    ListForm::Ascii { .. } => record.write_ascii(&mut written),
                }
                for order in [ByteOrder::Little, ByteOrder::Big] {
                    let _ = record.hash_input(order, &mut room);
                }
                let _ = (record.digest(), record.path(), record.signature(), record.is_violation());
                whole.push(record.to_entry());
            }
            Ok(None) => break,
            Err(_) => {
                failed = true;
                break;
            }
        }
    }
    if let Some(ListForm::Binary { .. }) = form {
        assert!(bytes.starts_with(&written), "another list is written than was read");
    }
    for entry in &whole {
        let _ = (entry.hash_input(), entry.digest(), entry.path(), entry.signature());
    }
    // The same in pieces.
    let mut decoder = Decoder::new();
    let mut in_pieces = Vec::new();
    let mut failed_in_pieces = false;
    let mut take = |decoder: &mut Decoder| {
        loop {
            match decoder.next_record() {
                Ok(Some(record)) => in_pieces.push(record.to_entry()),
                Ok(None) => break,
                Err(_) => {
                    failed_in_pieces = true;
                    break;
                }
            }
        }
    };
    for piece in bytes.chunks(37) {
        decoder.feed(piece);
        take(&mut decoder);
    }
    decoder.end();
    take(&mut decoder);
    assert_eq!((whole, failed), (in_pieces, failed_in_pieces));
});
