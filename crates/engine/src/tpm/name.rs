//! Names: what the HMAC of a session covers of a handle, so that no one in between can put another object under it.
//!
//! | handle | name |
//! |---|---|
//! | PCR, hierarchy, session | the handle's four bytes |
//! | object | the two bytes of a hash algorithm, then the hash of the public area |
//!
//! The *qualified* name also covers the parents: the algorithm, then the hash of the parent's qualified name and the name. A
//! primary key's parent is its hierarchy.
//!
//! Source: TCG TPM 2.0 Library, part 1, "Names".

use std::fmt;

use imara_format::{
    hash::{HashAlgorithm, from_hex, to_hex},
    tpm::PublicArea,
};

use crate::crypto;

/// The name of what a handle stands for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name(Vec<u8>);

impl Name {
    /// The name of a PCR, a hierarchy or a session.
    pub fn of_handle(handle: u32) -> Self {
        Self(handle.to_be_bytes().to_vec())
    }

    /// The name of an object; none where its algorithm cannot be computed.
    pub fn of_object(public: &PublicArea) -> Option<Self> {
        Self::tagged(public.name_hash()?, &[public.as_bytes()])
    }

    /// The qualified name of an object with this name under a parent with that qualified name.
    pub fn qualified(&self, parent: &Self) -> Option<Self> {
        let id = u16::from_be_bytes(*self.0.first_chunk()?);
        Self::tagged(HashAlgorithm::from_tpm_id(id)?, &[&parent.0, &self.0])
    }

    fn tagged(algorithm: HashAlgorithm, parts: &[&[u8]]) -> Option<Self> {
        let digest = crypto::hash(algorithm, parts).ok()?;
        Some(Self([&algorithm.tpm_id()?.to_be_bytes(), digest.as_bytes()].concat()))
    }

    /// A name that somebody noted.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// A name that somebody noted in hexadecimal.
    pub fn from_hex(text: &str) -> Option<Self> {
        from_hex(text).ok().map(Self)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_a_tpm_gave() {
        let summary: serde_json::Value =
            serde_json::from_str(include_str!("../../../../tests/vectors/tpm/summary.json")).unwrap();
        let mut objects: Vec<_> = summary["srk"].as_object().unwrap().values().collect();
        objects.push(&summary["ek"]);
        for object in objects {
            let public = PublicArea::parse(&from_hex(object["public"].as_str().unwrap()).unwrap()).unwrap();
            assert_eq!(Name::of_object(&public).unwrap().to_string(), object["name"].as_str().unwrap());
        }
    }

    #[test]
    fn a_quotes_signer_is_the_qualified_name_of_the_key() {
        const ENDORSEMENT: u32 = 0x4000_000b;
        let summary: serde_json::Value =
            serde_json::from_str(include_str!("../../../../tests/vectors/tpm/summary.json")).unwrap();
        for quote in ["quote_rsa_sha256", "quote_ecc_sha256"] {
            let quote = &summary["quotes"][quote];
            let name = Name::from_hex(quote["ak_name"].as_str().unwrap()).unwrap();
            let signer = name.qualified(&Name::of_handle(ENDORSEMENT)).unwrap();
            assert_eq!(signer.to_string(), quote["qualified_signer"].as_str().unwrap());
        }
    }
}
