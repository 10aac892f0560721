//! Files that are too large to be read whole: what a reader of theirs needs.

use std::io;

/// Bytes that can be read from anywhere.
pub trait ReadAt {
    /// How many there are.
    fn size(&self) -> u64;

    /// Fills `into` with those from `offset` on.
    ///
    /// # Errors
    /// What the kernel refuses; `UnexpectedEof` where there are not as many.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for &[u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(into.len());
        let found = self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(found);
        Ok(())
    }
}
