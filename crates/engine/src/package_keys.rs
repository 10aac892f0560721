//! Whether a package is signed by somebody who was named.
//!
//! A key is what its owner's own signatures make of it: a subkey counts only if the primary key says so and the subkey does, too, one that is revoked
//! does not, and what was signed after a key had expired is not its. That a key has expired since takes nothing from what it signed before.
//!
//! Signatures by MD5, SHA-1 and RIPEMD-160, for which two contents of one digest can be made, prove nothing of a package; nor do RSA keys below 2048 bits.
//!
//! Source: RFC 9580, 5.2.4, 10; `sequoia` and `rpmkeys` take and refuse the same.

use crate::crypto::{MessageKey, SignatureError, hash};
use imara_format::hash::{Digest, HashAlgorithm, to_hex};
use imara_format::openpgp::{Certificate, Key, Material, Signature};

/// Why a signature proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody has signed.
    #[error("not signed")]
    NotSigned,
    /// Something is where a signature should be.
    #[error("its signature is no OpenPGP signature: {0}")]
    NoSignature(String),
    /// The key is not among those given.
    #[error("signed by an unknown key{}", .0.map(|id| format!(", id {}", to_hex(&id))).unwrap_or_default())]
    UnknownKey(Option<[u8; 8]>),
    /// The key cannot be used.
    #[error("signed by the key {}, which {why}", to_hex(.id))]
    Key {
        /// Its id.
        id: [u8; 8],
        /// Why not.
        why: &'static str,
    },
    /// By such a hash nothing is proven.
    #[error("signed by a hash that no longer proves anything: {0}")]
    Weak(&'static str),
    /// It is of another content, or by another key.
    #[error("a bad signature by the key {}: it is of other content, or another key made it", to_hex(.0))]
    Bad([u8; 8]),
    /// It is not of a document, is no longer good, or says what is not understood.
    #[error("its signature {0}")]
    Other(&'static str),
}

/// A key that signatures are verified with.
pub struct PackageKey {
    /// What signatures name it by.
    pub id: [u8; 8],
    /// What people call its owner.
    pub owner: String,
    key: Option<MessageKey>,
    created: u32,
    expires: Option<u32>,
    unusable: Option<&'static str>,
}

/// All keys that were given.
#[derive(Default)]
pub struct PackageKeys(Vec<PackageKey>);

/// What a signature says of a key.
const DIRECT: u8 = 0x1f;
const REVOKED: u8 = 0x20;
const SUBKEY: u8 = 0x18;
const SUBKEY_REVOKED: u8 = 0x28;
/// Of a subkey that signs: that it belongs to the primary key, so that nobody takes another's for his own.
const PRIMARY: u8 = 0x19;

/// The flag of keys that sign.
const SIGNS: u8 = 2;

/// So many signatures that another carries are looked at.
const CARRIED: usize = 8;

/// What names a key.
fn id(key: &Key) -> [u8; 8] {
    let length = key.body.len();
    let digest = match key.version {
        6 => hash(HashAlgorithm::Sha256, &[&[0x9b], &(length as u32).to_be_bytes(), &key.body]),
        _ => hash(HashAlgorithm::Sha1, &[&[0x99], &(length as u16).to_be_bytes(), &key.body]),
    };
    let Ok(digest) = digest else { return [0; 8] };
    let id = if key.version == 6 { digest.as_bytes().first_chunk() } else { digest.as_bytes().last_chunk() };
    id.copied().unwrap_or_default()
}

/// A key, as signatures over keys have it.
fn framed(key: &Key) -> Vec<u8> {
    let length = key.body.len();
    match key.version {
        6 => [&[0x9b][..], &(length as u32).to_be_bytes(), &key.body].concat(),
        _ => [&[0x99][..], &(length as u16).to_be_bytes(), &key.body].concat(),
    }
}

fn digest(signature: &Signature, parts: &[&[u8]]) -> Option<Digest> {
    let parts = [&[signature.salt.as_slice()][..], parts, &[signature.trailer.as_slice()][..]].concat();
    hash(signature.hash?, &parts).ok()
}

/// Of keys: two that were made to have one digest would have to come from the owner. A revocation counts whatever else it says.
fn proves(key: &MessageKey, signature: &Signature, parts: &[&[u8]]) -> bool {
    let weak = matches!(signature.hash, None | Some(HashAlgorithm::Md5));
    let revokes = matches!(signature.kind, REVOKED | SUBKEY_REVOKED);
    !weak
        && (!signature.is_beyond || revokes)
        && digest(signature, parts).is_some_and(|digest| key.verify(&digest, &signature.value).is_ok())
}

impl PackageKeys {
    /// Adds the keys of a certificate, each with what its owner says of it.
    pub fn add(&mut self, certificate: &Certificate) {
        let Certificate { primary, user, signatures, subkeys } = certificate;
        let owner = user.clone().unwrap_or_default();
        let (whole, usable) = (framed(primary), usable(primary));
        let own = usable.as_ref().ok();
        let of_user = |user: &[u8]| [&[0xb4][..], &(user.len() as u32).to_be_bytes(), user].concat();
        let good = signatures.iter().filter(|(user, signature)| {
            let user = user.as_deref().map(of_user);
            let parts = match (signature.kind, &user) {
                (0x10..=0x13, Some(user)) => vec![whole.as_slice(), user],
                (DIRECT | REVOKED, _) => vec![whole.as_slice()],
                _ => return false,
            };
            own.is_some_and(|own| proves(own, signature, &parts))
        });
        let good = good.map(|(_, signature)| signature).collect::<Vec<_>>();
        let revoked = good.iter().any(|signature| signature.kind == REVOKED);
        let newest =
            good.iter().filter(|signature| signature.kind != REVOKED).max_by_key(|signature| signature.created);
        let signs = |flags: Option<u8>| flags.is_none_or(|flags| flags & SIGNS != 0);
        let unusable = match &usable {
            _ if revoked => Some("was revoked by its owner"),
            Err(why) => Some(*why),
            Ok(_) if !signs(newest.and_then(|newest| newest.key_flags)) => Some("is not for signing"),
            Ok(_) => None,
        };
        let expires = newest.and_then(|newest| newest.key_expires).map(|after| primary.created.saturating_add(after));
        for (key, signatures) in subkeys {
            let both = [whole.as_slice(), &framed(key)].concat();
            let good = signatures.iter().filter(|signature| {
                matches!(signature.kind, SUBKEY | SUBKEY_REVOKED)
                    && own.is_some_and(|own| proves(own, signature, &[&both]))
            });
            let good = good.collect::<Vec<_>>();
            let newest =
                good.iter().filter(|signature| signature.kind == SUBKEY).max_by_key(|signature| signature.created);
            let usable = self::usable(key);
            let unusable = match (&usable, newest) {
                _ if revoked || good.iter().any(|signature| signature.kind == SUBKEY_REVOKED) => {
                    Some("was revoked by its owner")
                }
                (Err(why), _) => Some(*why),
                (_, None) => Some("does not belong to the key that it is given with"),
                (_, Some(newest)) if newest.key_flags.is_none_or(|flags| flags & SIGNS == 0) => {
                    Some("is not for signing")
                }
                (Ok(own), Some(newest)) => {
                    let mut carried = newest.carried().take(CARRIED);
                    let agrees = carried.any(|own_word| own_word.kind == PRIMARY && proves(own, &own_word, &[&both]));
                    (!agrees).then_some("does not say itself that it belongs to the key that it is given with")
                }
            };
            let ends = newest.and_then(|newest| newest.key_expires).map(|after| key.created.saturating_add(after));
            let expires = [ends, expires].into_iter().flatten().min();
            let (id, created) = (id(key), key.created);
            self.0.push(PackageKey { id, owner: owner.clone(), key: usable.ok(), created, expires, unusable });
        }
        let (id, created) = (id(primary), primary.created);
        self.0.push(PackageKey { id, owner, key: usable.ok(), created, expires, unusable });
    }

    /// The keys.
    pub fn keys(&self) -> &[PackageKey] {
        &self.0
    }

    /// The key by which one of the signatures proves the content, given in `parts`; `now` is the time, in seconds since 1970.
    ///
    /// # Errors
    /// [`Refusal`], of the last one.
    pub fn verify(&self, signatures: &[Signature], parts: &[&[u8]], now: u64) -> Result<&PackageKey, Refusal> {
        let mut refusal = Refusal::NotSigned;
        for signature in signatures {
            match self.verify_one(signature, parts, now) {
                Ok(key) => return Ok(key),
                // Whoever is unknown says less than whoever is known and wrong.
                Err(Refusal::UnknownKey(_)) if refusal != Refusal::NotSigned => {}
                Err(found) => refusal = found,
            }
        }
        Err(refusal)
    }

    fn verify_one(&self, signature: &Signature, parts: &[&[u8]], now: u64) -> Result<&PackageKey, Refusal> {
        if signature.kind != 0 {
            return Err(Refusal::Other("is not one of a document"));
        }
        if signature.is_beyond {
            return Err(Refusal::Other("says something that has to be understood, and is not known here"));
        }
        let candidates = self.0.iter().filter(|key| signature.issuer.is_none_or(|issuer| issuer == key.id));
        let mut refusal = Refusal::UnknownKey(signature.issuer);
        let Some(algorithm) = signature.hash else { return Err(Refusal::Other("is by a hash that is not known")) };
        if matches!(algorithm, HashAlgorithm::Md5 | HashAlgorithm::Sha1 | HashAlgorithm::Rmd160) {
            return Err(Refusal::Weak(algorithm.name()));
        }
        for candidate in candidates {
            let unusable = |why| Refusal::Key { id: candidate.id, why };
            let Some(key) = candidate.key.as_ref().filter(|_| candidate.unusable.is_none()) else {
                refusal = unusable(candidate.unusable.unwrap_or("is not usable"));
                continue;
            };
            let Some(created) = signature.created else { return Err(Refusal::Other("does not say when it was made")) };
            if created < candidate.created {
                refusal = unusable("was made after the signature");
                continue;
            }
            if candidate.expires.is_some_and(|expires| created > expires) {
                refusal = unusable("had expired by then");
                continue;
            }
            if signature.expires.is_some_and(|after| u64::from(created.saturating_add(after)) < now) {
                return Err(Refusal::Other("has expired"));
            }
            let verified = match digest(signature, parts) {
                Some(digest) => key.verify(&digest, &signature.value),
                None => Err(SignatureError::Wrong),
            };
            match verified {
                Ok(()) => return Ok(candidate),
                Err(_) => refusal = Refusal::Bad(candidate.id),
            }
        }
        Err(refusal)
    }
}

fn bits(number: &[u8]) -> usize {
    let first = number.first().map_or(0, |byte| byte.leading_zeros() as usize);
    (number.len() * 8).saturating_sub(first)
}

fn usable(key: &Key) -> Result<MessageKey, &'static str> {
    match &key.material {
        Material::Rsa(modulus, _) if bits(modulus) < 2048 => Err("is an RSA key of less than 2048 bits"),
        Material::Other(_) => Err("is of an algorithm that is not known here"),
        material => MessageKey::new(material).ok_or("is not a possible key"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_format::openpgp::{certificates, signatures};
    use imara_format::rpm::header::Header;
    use imara_format::rpm::package::Package;
    use imara_format::sqlite::{Column, Sqlite};
    use std::path::Path;

    /// 2023-11-21, in the evening.
    const NOW: u64 = 1_700_600_000;

    fn vector(name: &str) -> Vec<u8> {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/rpm").join(name)).unwrap()
    }

    fn keys(names: &[&str]) -> PackageKeys {
        let mut keys = PackageKeys::default();
        for name in names {
            certificates(&vector(name)).unwrap().iter().for_each(|certificate| keys.add(certificate));
        }
        keys
    }

    fn packages() -> Vec<(Package, Vec<u8>)> {
        let database = vector("installed/rpmdb.sqlite");
        let database = Sqlite::open(database.as_slice(), None).unwrap();
        let header = |columns: Vec<Column>| match columns.into_iter().nth(1) {
            Some(Column::Blob(header)) => {
                (Package::parse(&header).unwrap(), Header::parse(&header).unwrap().signed().concat())
            }
            other => panic!("{other:?}"),
        };
        database.rows("Packages").unwrap().map(|row| header(row.unwrap().1)).collect()
    }

    fn proven(keys: &PackageKeys, package: &Package, signed: &[u8]) -> Result<String, String> {
        let packets = package.signatures.iter().flat_map(|packets| signatures(packets).unwrap()).collect::<Vec<_>>();
        let key = keys.verify(&packets, &[signed], NOW).map_err(|refusal| refusal.to_string())?;
        Ok(key.owner.split(' ').next().unwrap_or_default().to_owned())
    }

    #[test]
    fn packages_are_proven_by_the_keys_that_signed_them_and_by_no_others() {
        let (all, some) = (keys(&["rsa.asc", "eddsa.asc", "ecdsa.asc", "other.asc"]), keys(&["rsa.asc"]));
        let mut seen = 0;
        for (package, signed) in packages() {
            let kept = package.digest.unwrap();
            assert_eq!(
                hash(kept.algorithm(), &[&signed]).unwrap(),
                kept,
                "{}: what RPM itself wrote down",
                package.name
            );
            let (by, by_some) = match package.name.as_str() {
                "imara-one" | "imara-old" => (Ok("rsa"), Ok("rsa")),
                "imara-one-doc" => (Ok("eddsa"), Err("signed by an unknown key, id c5cf989df5451522")),
                "imara-curve" => (Ok("ecdsa"), Err("signed by an unknown key, id a1fe634af9f028e2")),
                "imara-many" => (Ok("other"), Err("signed by an unknown key, id 0f5317e38f408eab")),
                _ => (Err("not signed"), Err("not signed")),
            };
            for (keys, by) in [(&all, by), (&some, by_some)] {
                let found = proven(keys, &package, &signed);
                assert_eq!(found.as_deref().map_err(String::as_str), by, "{}", package.name);
            }
            let mut changed = signed.clone();
            *changed.last_mut().unwrap() ^= 1;
            let found = proven(&all, &package, &changed).unwrap_err();
            assert!(package.signatures.is_empty() || found.contains("bad signature by the key"), "{found}");
            seen += 1;
        }
        assert_eq!(seen, 7);
    }

    #[test]
    fn a_key_is_what_its_owner_makes_of_it() {
        let content = vector("openpgp/content");
        for (key, signature, refusal) in [
            ("subkey", "subkey", None),
            ("version-3", "version-3", None),
            ("expired", "in-time", None),
            ("expired", "expired", Some("had expired by then")),
            ("revoked", "revoked", Some("was revoked by its owner")),
            ("weak", "weak", Some("an RSA key of less than 2048 bits")),
            ("other", "other", Some("of an algorithm that is not known here")),
            ("subkey", "sha1", Some("no longer proves anything: sha1")),
            ("subkey", "ended", Some("its signature has expired")),
            ("subkey", "notation", Some("says something that has to be understood")),
            ("subkey", "expired", Some("an unknown key, id f03d6f3ef6b7e149")),
        ] {
            let keys = keys(&[&format!("openpgp/{key}.pgp")]);
            let signature = signatures(&vector(&format!("openpgp/{signature}.sig"))).unwrap();
            let found = keys.verify(&signature, &[&content], NOW).map(|_| ()).map_err(|refusal| refusal.to_string());
            match (&found, refusal) {
                (Ok(()), None) => {}
                (Err(found), Some(refusal)) if found.contains(refusal) => {}
                _ => panic!("{key}: {found:?}"),
            }
            let other = keys.verify(&signature, &[b"other content"], NOW);
            assert!(other.is_err(), "{key}");
        }
    }

    type Change = fn(&mut Certificate);

    #[test]
    fn a_subkey_and_its_primary_key_have_to_acknowledge_each_other() {
        let changes: [(Change, &str); 5] = [
            (|certificate| certificate.subkeys[0].1.clear(), "does not belong to the key"),
            (|certificate| certificate.subkeys[0].1[0].key_flags = Some(12), "is not for signing"),
            (|certificate| certificate.subkeys[0].1[0].embedded.clear(), "does not say itself that it belongs"),
            (|certificate| certificate.subkeys[0].1[0].trailer[0] ^= 1, "does not belong to the key"),
            (
                |certificate| {
                    // Another's, given out as one's own: whoever signs must have the secret half.
                    let other = certificates(&vector("openpgp/expired.pgp")).unwrap();
                    certificate.primary = other[0].primary.clone();
                },
                "does not belong to the key",
            ),
        ];
        let signature = signatures(&vector("openpgp/subkey.sig")).unwrap();
        for (change, expected) in changes {
            let mut certificates = certificates(&vector("openpgp/subkey.pgp")).unwrap();
            change(&mut certificates[0]);
            let mut keys = PackageKeys::default();
            keys.add(&certificates[0]);
            let refusal = keys.verify(&signature, &[b"content\n"], NOW).map(|_| ()).unwrap_err().to_string();
            assert!(refusal.contains(expected), "{expected}: {refusal}");
        }
    }
}
