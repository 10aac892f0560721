//! Templates of primary keys: the same template in the same TPM always makes the same key, until its hierarchy is cleared.
//!
//! | template | attributes | parameters | unique |
//! |---|---|---|---|
//! | SRK, RSA-2048 | 00030472 | AES-128-CFB, 2048 bits | 256 zero bytes |
//! | SRK, P-256 | 00030472 | AES-128-CFB, P-256 | two coordinates of 32 zero bytes |
//! | SRK of TPM key files | 00030472 | as the SRK | empty |
//! | EK, P-256 | 000300b2, policy: `TPM2_PolicySecret` of the endorsement hierarchy | as the SRK | as the SRK |
//! | attestation key, RSA-2048 | 00050072 | RSASSA with SHA-256 | empty |
//! | attestation key, P-256 | 00050072 | ECDSA with SHA-256 | empty |
//!
//! What stands in `unique` is part of what a key is made from: zeros and nothing make different keys. The default primary key
//! of `tpm2_createprimary` is not this SRK.
//!
//! Source: TCG TPM v2.0 Provisioning Guidance, 7.5.1; TCG EK Credential Profile, annex B.

use imara_format::tpm::{ObjectAttributes, PublicArea, PublicKind};

/// The type of a key that is made by a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA with 2048 bits.
    Rsa2048,
    /// NIST P-256.
    P256,
}

const FIXED: ObjectAttributes =
    ObjectAttributes::FIXED_TPM.with(ObjectAttributes::FIXED_PARENT).with(ObjectAttributes::SENSITIVE_DATA_ORIGIN);
const STORAGE: ObjectAttributes = ObjectAttributes::RESTRICTED.with(ObjectAttributes::DECRYPT);
const ATTESTATION: ObjectAttributes = ObjectAttributes::RESTRICTED.with(ObjectAttributes::SIGN);
/// `adminWithPolicy`.
const ADMIN_WITH_POLICY: ObjectAttributes = ObjectAttributes(1 << 7);

/// The storage root key.
pub fn srk(kind: KeyKind) -> PublicArea {
    let attributes = FIXED.with(STORAGE).with(ObjectAttributes::USER_WITH_AUTH).with(ObjectAttributes::NO_DA);
    storage(kind, attributes, &[], &vec![0; unique_size(kind)])
}

/// The storage root key as the writers of TPM key files make it, for whom a hierarchy's handle stands in the parent's place.
///
/// Source: draft-bottomley-tpm2-keys, "parent"; template H-2 of the TCG EK Credential Profile.
pub fn key_file_srk(kind: KeyKind) -> PublicArea {
    let attributes = FIXED.with(STORAGE).with(ObjectAttributes::USER_WITH_AUTH).with(ObjectAttributes::NO_DA);
    storage(kind, attributes, &[], &[])
}

/// The endorsement key on P-256, by which a TPM is told from others.
pub fn endorsement_key() -> PublicArea {
    /// `TPM2_PolicySecret(TPM_RH_ENDORSEMENT)`, the profile's policy A.
    const POLICY_A: [u8; 32] = [
        0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd, 0x52,
        0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
    ];
    let unique = [0; unique_size(KeyKind::P256)];
    storage(KeyKind::P256, FIXED.with(STORAGE).with(ADMIN_WITH_POLICY), &POLICY_A, &unique)
}

/// A key that quotes are made with.
pub fn attestation_key(kind: KeyKind) -> PublicArea {
    let attributes = FIXED.with(ATTESTATION).with(ObjectAttributes::USER_WITH_AUTH);
    let (scheme, unique): (&[u16], &[u16]) = match kind {
        KeyKind::Rsa2048 => (&[RSASSA, SHA256, 2048, 0, 0], &[0]),
        KeyKind::P256 => (&[ECDSA, SHA256, CURVE_P256, NULL], &[0, 0]),
    };
    area(kind, attributes, &[], &words(&[&[NULL], scheme, unique]))
}

/// Bytes of a modulus, or of one of a point's coordinates.
const fn unique_size(kind: KeyKind) -> usize {
    match kind {
        KeyKind::Rsa2048 => 256,
        KeyKind::P256 => 32,
    }
}

fn storage(kind: KeyKind, attributes: ObjectAttributes, policy: &[u8], unique: &[u8]) -> PublicArea {
    let protection: &[u16] = &[AES, 128, CFB, NULL];
    let unique = [words(&[&[unique.len() as u16]]), unique.to_vec()].concat();
    let parameters = match kind {
        KeyKind::Rsa2048 => [words(&[protection, &[2048, 0, 0]]), unique].concat(),
        KeyKind::P256 => [words(&[protection, &[CURVE_P256, NULL]]), unique.clone(), unique].concat(),
    };
    area(kind, attributes, policy, &parameters)
}

const AES: u16 = 0x0006;
const SHA256: u16 = 0x000b;
const NULL: u16 = 0x0010;
const RSASSA: u16 = 0x0014;
const ECDSA: u16 = 0x0018;
const CFB: u16 = 0x0043;
const CURVE_P256: u16 = 0x0003;

fn area(kind: KeyKind, attributes: ObjectAttributes, policy: &[u8], rest: &[u8]) -> PublicArea {
    let object_type = match kind {
        KeyKind::Rsa2048 => 0x0001_u16,
        KeyKind::P256 => 0x0023,
    };
    let head = words(&[&[object_type, SHA256]]);
    let attributes = attributes.0.to_be_bytes();
    let size = words(&[&[policy.len() as u16]]);
    let bytes = [head.as_slice(), &attributes, &size, policy, rest].concat();
    PublicArea::parse(&bytes).expect("a template is a public area")
}

fn words(words: &[&[u16]]) -> Vec<u8> {
    words.iter().flat_map(|words| words.iter()).flat_map(|word| word.to_be_bytes()).collect()
}

/// Whether a key can have been made by a template: all but what makes it unique is the same.
pub fn is_made_by(key: &PublicArea, template: &PublicArea) -> bool {
    let plain = |area: &PublicArea| match &area.kind {
        PublicKind::Rsa { symmetric, scheme, bits, exponent, .. } => {
            Some(((*symmetric, *scheme), (Some((*bits, *exponent)), None)))
        }
        PublicKind::Ecc { symmetric, scheme, curve, .. } => Some(((*symmetric, *scheme), (None, Some(*curve)))),
        PublicKind::KeyedHash { .. } | PublicKind::Symmetric => None,
    };
    let both = (plain(key), plain(template));
    key.name_algorithm == template.name_algorithm
        && key.attributes == template.attributes
        && key.policy == template.policy
        && both.0.is_some()
        && both.0 == both.1
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_format::hash::{from_hex, to_hex};

    #[test]
    fn templates_and_their_keys_are_those_of_a_tpm() {
        let summary: serde_json::Value =
            serde_json::from_str(include_str!("../../../../tests/vectors/tpm/summary.json")).unwrap();
        for (name, ours) in
            [("srk_rsa2048_unique_zeros", srk(KeyKind::Rsa2048)), ("srk_ecc_p256_unique_zeros", srk(KeyKind::P256))]
        {
            let noted = &summary["srk"][name];
            assert_eq!(to_hex(ours.as_bytes()), noted["template"].as_str().unwrap(), "{name}");
            let key = PublicArea::parse(&from_hex(noted["public"].as_str().unwrap()).unwrap()).unwrap();
            assert!(is_made_by(&key, &ours), "{name}");
            assert!(!is_made_by(&key, &attestation_key(KeyKind::P256)));
        }
        for (key, template) in [
            (include_bytes!("../../../../tests/vectors/tpm/quote/ak_rsa.tpmt_public").as_slice(), KeyKind::Rsa2048),
            (include_bytes!("../../../../tests/vectors/tpm/quote/ak_ecc.tpmt_public").as_slice(), KeyKind::P256),
        ] {
            assert!(is_made_by(&PublicArea::parse(key).unwrap(), &attestation_key(template)));
        }
        assert!(attestation_key(KeyKind::P256).is_attestation_key());
        assert!(srk(KeyKind::P256).is_storage_key() && endorsement_key().is_storage_key());
    }
}
