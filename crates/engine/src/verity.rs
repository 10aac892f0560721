//! A file's fs-verity digest, computed from its content.
//!
//! The content is cut into blocks, the last filled up with zeros, and each is hashed behind the salt. The hashes, one after the
//! other, are cut into blocks again, and so on, until one hash is left: the root. The file digest is the hash of the
//! [descriptor](VerityParameters::descriptor). A level needs no more than one block of memory, whatever the file's size.
//!
//! Source: Documentation/filesystems/fsverity.rst, "Merkle tree", "fs-verity descriptor"; fs/verity/enable.c.

use crate::crypto::{Hasher, UnsupportedHash, hash};
use imara_format::hash::Digest;
use imara_format::verity::VerityParameters;

/// A digest being made.
pub struct VerityHasher {
    parameters: VerityParameters,
    /// Hashes the salt already; each block goes behind it.
    salted: Hasher,
    /// The blocks being filled: the content's, then each level's of the tree.
    levels: Vec<Vec<u8>>,
    size: u64,
}

impl VerityHasher {
    /// Nothing yet.
    ///
    /// # Errors
    /// [`UnsupportedHash`], which none of fs-verity's is.
    pub fn new(parameters: VerityParameters) -> Result<Self, UnsupportedHash> {
        let mut salted = Hasher::new(parameters.hash().algorithm())?;
        if !parameters.salt().is_empty() {
            let mut salt = parameters.salt().to_vec();
            salt.resize(parameters.hash().input_block(), 0);
            salted.update(&salt);
        }
        Ok(Self { parameters, salted, levels: vec![Vec::new()], size: 0 })
    }

    /// Adds content.
    pub fn update(&mut self, mut bytes: &[u8]) {
        let block = self.parameters.block_size();
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            let filling = &mut self.levels[0];
            // A full one is hashed only when more follows, since a single block is the root itself.
            if filling.len() == block {
                self.flush(0);
                continue;
            }
            let (taken, rest) = bytes.split_at(bytes.len().min(block - filling.len()));
            filling.extend_from_slice(taken);
            bytes = rest;
        }
    }

    /// Hashes the block of a level and adds its hash to the level above.
    fn flush(&mut self, level: usize) {
        let digest = self.hash_block(level);
        let above = level + 1;
        if above == self.levels.len() {
            self.levels.push(Vec::with_capacity(self.parameters.block_size()));
        }
        if self.levels[above].len() + digest.as_bytes().len() > self.parameters.block_size() {
            self.flush(above);
        }
        self.levels[above].extend_from_slice(digest.as_bytes());
    }

    fn hash_block(&mut self, level: usize) -> Digest {
        let filling = &mut self.levels[level];
        filling.resize(self.parameters.block_size(), 0);
        let mut hasher = self.salted.clone();
        hasher.update(filling);
        filling.clear();
        hasher.finish()
    }

    /// The file digest.
    ///
    /// # Errors
    /// [`UnsupportedHash`], which none of fs-verity's is.
    pub fn finish(mut self) -> Result<Digest, UnsupportedHash> {
        let root = (self.size > 0).then(|| {
            let mut level = 0;
            // The highest level's only block is the root's.
            while level + 1 < self.levels.len() {
                self.flush(level);
                level += 1;
            }
            self.hash_block(level)
        });
        let descriptor = self.parameters.descriptor(self.size, root.as_ref());
        hash(self.parameters.hash().algorithm(), &[&descriptor])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_format::verity::VerityHash;
    use proptest::prelude::*;

    fn digest(parameters: &VerityParameters, pieces: &[&[u8]]) -> Digest {
        let mut hasher = VerityHasher::new(parameters.clone()).unwrap();
        pieces.iter().for_each(|piece| hasher.update(piece));
        hasher.finish().unwrap()
    }

    /// The tree as the documentation has it, all of it in memory.
    fn plainly(parameters: &VerityParameters, content: &[u8]) -> Digest {
        let block = parameters.block_size();
        let algorithm = parameters.hash().algorithm();
        let mut salt = parameters.salt().to_vec();
        if !salt.is_empty() {
            salt.resize(parameters.hash().input_block(), 0);
        }
        let hash_blocks = |bytes: &[u8]| {
            let hashes = bytes.chunks(block).flat_map(|chunk| {
                let mut chunk = chunk.to_vec();
                chunk.resize(block, 0);
                hash(algorithm, &[&salt, &chunk]).unwrap().as_bytes().to_vec()
            });
            hashes.collect::<Vec<_>>()
        };
        let mut hashes = hash_blocks(content);
        while hashes.len() > algorithm.digest_size() {
            // A hash that would not fit into a block whole does not occur: block sizes are multiples of both digest sizes.
            hashes = hash_blocks(&hashes);
        }
        let root = (!content.is_empty()).then(|| Digest::new(algorithm, &hashes).unwrap());
        hash(algorithm, &[&parameters.descriptor(content.len() as u64, root.as_ref())]).unwrap()
    }

    #[test]
    fn digests_are_those_of_fsverity_utils() {
        let path = format!("{}/../../tests/vectors/verity/digests.json", env!("CARGO_MANIFEST_DIR"));
        let cases: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(cases.len() > 300);
        for case in cases {
            let number = |name: &str| case[name].as_u64().unwrap();
            let text = |name: &str| case[name].as_str().unwrap();
            let hash = if text("hash") == "sha512" { VerityHash::Sha512 } else { VerityHash::Sha256 };
            let salt = imara_format::hash::from_hex(text("salt")).unwrap();
            let parameters = VerityParameters::new(hash, number("block_size") as u32, &salt).unwrap();
            let content = (0..number("size")).map(|index| (index / 7 % 251) as u8).collect::<Vec<_>>();
            assert_eq!(digest(&parameters, &[&content]).to_hex(), text("digest"), "{case}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn pieces_make_the_same_tree_as_the_whole(
            sha512 in any::<bool>(),
            log_block_size in 10u32..=13,
            salt in proptest::collection::vec(any::<u8>(), 0..=32),
            size in prop_oneof![0usize..5000, 120_000..300_000usize],
            cuts in proptest::collection::vec(0usize..300_000, 0..4),
        ) {
            let content = (0..size).map(|index| (index / 7 % 251) as u8).collect::<Vec<_>>();
            let hash = if sha512 { VerityHash::Sha512 } else { VerityHash::Sha256 };
            let parameters = VerityParameters::new(hash, 1 << log_block_size, &salt).unwrap();
            let mut cuts = cuts.into_iter().map(|cut| cut.min(size)).collect::<Vec<_>>();
            cuts.sort_unstable();
            cuts.insert(0, 0);
            cuts.push(size);
            let pieces = cuts.windows(2).map(|cut| &content[cut[0]..cut[1]]).collect::<Vec<_>>();
            prop_assert_eq!(digest(&parameters, &pieces), plainly(&parameters, &content));
        }
    }

    #[test]
    fn sizes_around_a_block_and_a_level_make_the_trees_that_they_should() {
        let parameters = VerityParameters::new(VerityHash::Sha256, 1024, &[]).unwrap();
        // 32 hashes fit into a block: levels begin at one block, at 32 and at 1024 blocks.
        for blocks in [0usize, 1, 2, 31, 32, 33, 1023, 1024, 1025] {
            for size in [(blocks * 1024).saturating_sub(1), blocks * 1024, blocks * 1024 + 1] {
                let content = vec![7; size];
                assert_eq!(digest(&parameters, &[&content]), plainly(&parameters, &content), "{size}");
            }
        }
    }
}
