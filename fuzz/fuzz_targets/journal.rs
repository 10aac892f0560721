//! Any bytes as a journal of changed labels: each block that is read is written back to the same bytes.

#![no_main]

use imara_format::journal::{Block, encode_changes, encode_ended, encode_made, encode_undone, read_block, read_magic};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = read_magic(&mut &*bytes);
    // Nearly no change leaves a checksum right, so what follows the magic is also read with the right one put in.
    let mut rest = bytes.get(8..).unwrap_or_default();
    let mut offset = 8;
    while let Ok(Some((block, length))) = read_block(&mut rest, offset) {
        check(&block);
        offset += length;
    }
    if let [kind, payload @ ..] = bytes {
        let mut made = vec![*kind];
        made.extend(u32::try_from(payload.len()).unwrap_or(0).to_le_bytes());
        made.extend_from_slice(payload);
        made.extend(crc32fast::hash(&made).to_le_bytes());
        if let Ok(Some((block, length))) = read_block(&mut made.as_slice(), 0) {
            assert_eq!(length, made.len() as u64);
            check(&block);
        }
    }
});

/// What was read is what its own bytes say.
fn check(block: &Block) {
    let written = match block {
        Block::Begun(begun) => begun.encode(),
        Block::Changes(files) => encode_changes(files),
        Block::Made(offset) => encode_made(*offset),
        Block::Ended(failed) => encode_ended(*failed),
        Block::Undone(left) => encode_undone(*left),
    };
    let read = read_block(&mut written.as_slice(), 0).expect("what was written is read");
    assert_eq!(read.map(|(block, _)| block).as_ref(), Some(block));
}
