//! A set of inodes: a bit for each, in pages, since a file system numbers them densely.

use std::collections::HashMap;

/// Inodes of several devices.
#[derive(Debug, Default)]
pub(super) struct Inodes {
    pages: HashMap<(u64, u64), [u64; 8]>,
}

impl Inodes {
    /// Adds an inode; whether it is new.
    pub(super) fn insert(&mut self, device: u64, inode: u64) -> bool {
        let page = self.pages.entry((device, inode >> 9)).or_default();
        let word = &mut page[(inode >> 6 & 7) as usize];
        let bit = 1 << (inode & 63);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn an_inode_is_new_once() {
        let mut inodes = Inodes::default();
        let mut plain = HashSet::new();
        let numbers = (0..2000).map(|number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (number % 60));
        for number in numbers.chain(0..1000).chain([0, u64::MAX, 511, 512]) {
            for device in [1, 2] {
                assert_eq!(inodes.insert(device, number), plain.insert((device, number)), "{number}");
            }
        }
    }
}
