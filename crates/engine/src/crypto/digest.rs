//! Digests, by RustCrypto.

use imara_format::hash::{Digest, HashAlgorithm};
use md5::Digest as _;

/// A digest being made.
#[derive(Clone)]
pub struct Hasher {
    algorithm: HashAlgorithm,
    state: State,
}

/// A hash algorithm that the kernel names and this build cannot compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("hash algorithm {0} cannot be computed here")]
pub struct UnsupportedHash(pub HashAlgorithm);

#[derive(Clone)]
enum State {
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Rmd160(ripemd::Ripemd160),
    Rmd128(ripemd::Ripemd128),
    Rmd256(ripemd::Ripemd256),
    Rmd320(ripemd::Ripemd320),
    Sha224(sha2::Sha224),
    Sha256(sha2::Sha256),
    Sha384(sha2::Sha384),
    Sha512(sha2::Sha512),
    Sm3(sm3::Sm3),
    Streebog256(streebog::Streebog256),
    Streebog512(streebog::Streebog512),
    Sha3_256(sha3::Sha3_256),
    Sha3_384(sha3::Sha3_384),
    Sha3_512(sha3::Sha3_512),
}

macro_rules! each_state {
    ($state:expr, $inner:ident => $body:expr) => {
        match $state {
            State::Md5($inner) => $body,
            State::Sha1($inner) => $body,
            State::Rmd160($inner) => $body,
            State::Rmd128($inner) => $body,
            State::Rmd256($inner) => $body,
            State::Rmd320($inner) => $body,
            State::Sha224($inner) => $body,
            State::Sha256($inner) => $body,
            State::Sha384($inner) => $body,
            State::Sha512($inner) => $body,
            State::Sm3($inner) => $body,
            State::Streebog256($inner) => $body,
            State::Streebog512($inner) => $body,
            State::Sha3_256($inner) => $body,
            State::Sha3_384($inner) => $body,
            State::Sha3_512($inner) => $body,
        }
    };
}

impl Hasher {
    /// Starts a digest.
    ///
    /// # Errors
    /// [`UnsupportedHash`] for the algorithms that no maintained library offers (MD4, Whirlpool, Tiger).
    pub fn new(algorithm: HashAlgorithm) -> Result<Self, UnsupportedHash> {
        use HashAlgorithm as H;
        let state = match algorithm {
            H::Md5 => State::Md5(Default::default()),
            H::Sha1 => State::Sha1(Default::default()),
            H::Rmd160 => State::Rmd160(Default::default()),
            H::Rmd128 => State::Rmd128(Default::default()),
            H::Rmd256 => State::Rmd256(Default::default()),
            H::Rmd320 => State::Rmd320(Default::default()),
            H::Sha224 => State::Sha224(Default::default()),
            H::Sha256 => State::Sha256(Default::default()),
            H::Sha384 => State::Sha384(Default::default()),
            H::Sha512 => State::Sha512(Default::default()),
            H::Sm3 => State::Sm3(Default::default()),
            H::Streebog256 => State::Streebog256(Default::default()),
            H::Streebog512 => State::Streebog512(Default::default()),
            H::Sha3_256 => State::Sha3_256(Default::default()),
            H::Sha3_384 => State::Sha3_384(Default::default()),
            H::Sha3_512 => State::Sha3_512(Default::default()),
            H::Md4 | H::Wp256 | H::Wp384 | H::Wp512 | H::Tgr128 | H::Tgr160 | H::Tgr192 => {
                return Err(UnsupportedHash(algorithm));
            }
        };
        Ok(Self { algorithm, state })
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        each_state!(&mut self.state, state => state.update(bytes));
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        let algorithm = self.algorithm;
        each_state!(self.state, state => Digest::new(algorithm, &state.finalize()))
            .expect("a library's digest has its algorithm's length")
    }
}

/// The digest by one of the algorithms of PCR banks, of which a replay makes millions: there, moving the large state of a
/// [`Hasher`] takes as long as the hash itself.
fn hash_for_bank(algorithm: HashAlgorithm, parts: &[&[u8]]) -> Option<Digest> {
    macro_rules! with {
        ($hash:ty) => {{
            let mut state = <$hash>::default();
            parts.iter().for_each(|part| state.update(part));
            Digest::new(algorithm, &state.finalize()).ok()
        }};
    }
    match algorithm {
        HashAlgorithm::Sha1 => with!(sha1::Sha1),
        HashAlgorithm::Sha256 => with!(sha2::Sha256),
        HashAlgorithm::Sha384 => with!(sha2::Sha384),
        HashAlgorithm::Sha512 => with!(sha2::Sha512),
        _ => None,
    }
}

/// The digest of `parts`, one after the other.
///
/// # Errors
/// As [`Hasher::new`].
pub fn hash(algorithm: HashAlgorithm, parts: &[&[u8]]) -> Result<Digest, UnsupportedHash> {
    if let Some(digest) = hash_for_bank(algorithm, parts) {
        return Ok(digest);
    }
    let mut hasher = Hasher::new(algorithm)?;
    parts.iter().for_each(|part| hasher.update(part));
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_nothing_are_the_published_ones() {
        for (algorithm, hex) in [
            (HashAlgorithm::Md5, "d41d8cd98f00b204e9800998ecf8427e"),
            (HashAlgorithm::Sha1, "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
            (HashAlgorithm::Sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (HashAlgorithm::Rmd160, "9c1185a5c5e9fc54612808977ee8f548b2258d31"),
            (HashAlgorithm::Sm3, "1ab21d8355cfa17f8e61194831e81a8f22bec8c728fefb747ed035eb5082aa2b"),
        ] {
            assert_eq!(hash(algorithm, &[]).unwrap().to_hex(), hex, "{algorithm}");
        }
        assert_eq!(hash(HashAlgorithm::Md4, &[]), Err(UnsupportedHash(HashAlgorithm::Md4)));
    }

    #[test]
    fn every_supported_algorithm_makes_a_digest_of_its_size() {
        for algorithm in HashAlgorithm::ALL {
            if let Ok(digest) = hash(*algorithm, &[b"a", b"bc"]) {
                assert_eq!(digest, hash(*algorithm, &[b"abc"]).unwrap());
                assert_eq!(digest.as_bytes().len(), algorithm.digest_size());
            }
        }
    }
}
