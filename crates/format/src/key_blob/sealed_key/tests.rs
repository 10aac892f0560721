use super::*;
use crate::hash::from_hex;
use proptest::prelude::*;

const BLOBS: &str = include_str!("../../../../../tests/vectors/trusted_key/linux-6.12/blobs");

fn blobs() -> Vec<Vec<u8>> {
    BLOBS.lines().map(|line| from_hex(line.split('\t').nth(1).unwrap()).unwrap()).collect()
}

#[test]
fn blobs_of_a_kernel_print_byte_for_byte() {
    for blob in blobs() {
        let key = SealedKey::from_der(&blob).unwrap();
        assert_eq!((key.to_der(), key.to_kernel(0x8100_0001)), (blob.clone(), blob.clone()));
        assert_eq!(SealedKey::from_pem(&key.to_pem()), Ok(key.clone()));
        assert_eq!(TrustedBlob::parse(&blob), Ok(TrustedBlob::Key(key)));
    }
}

#[test]
fn what_the_kernel_does_not_read_is_kept_and_left_out_for_it() {
    let blob = &blobs()[0];
    let plain = SealedKey::from_der(blob).unwrap();
    let key = SealedKey {
        policy: vec![
            PolicyCommand { code: 0x17f, body: vec![7; 200] },
            PolicyCommand { code: 0x16b, body: Vec::new() },
        ],
        description: Some("the master key".to_owned()),
        rsa_parent: true,
        parent: 0x4000_0001,
        ..plain
    };
    assert_eq!(SealedKey::from_der(&key.to_der()), Ok(key.clone()));
    assert_eq!(key.to_kernel(0x8100_0001), *blob);
}

#[test]
fn blobs_from_before_linux_5_13_are_read() {
    let key = SealedKey::from_der(&blobs()[0]).unwrap();
    let old = TrustedBlob::Old { public: key.public, private: key.private };
    let bytes = old.to_bytes();
    assert_eq!(TrustedBlob::parse(&bytes), Ok(old.clone()));
    assert_eq!(TrustedBlob::parse(&[&bytes[..], b"x"].concat()), Ok(old));
    assert!(TrustedBlob::parse(&bytes[..bytes.len() - 1]).is_err());
}

#[test]
fn other_writers_forms_are_read() {
    let blob = &blobs()[0];
    let key = SealedKey::from_der(blob).unwrap();
    let replaced = |from: &[u8], to: &[u8]| {
        let at = blob.windows(from.len()).position(|window| window == from).unwrap();
        let mut inner = blob[3..].to_vec();
        inner.splice(at - 3..at - 3 + from.len(), to.iter().copied());
        element(SEQUENCE, &inner)
    };
    let parent = integer(0x8100_0001);
    for (name, bytes) in [
        ("a boolean as DER has it", replaced(&[0xa0, 3, 1, 1, 1], &[0xa0, 3, 1, 1, 0xff])),
        ("a negative handle", replaced(&parent, &[2, 4, 0x81, 0, 0, 1])),
        ("bytes behind it", [&blob[..], b"x"].concat()),
    ] {
        assert_eq!(SealedKey::from_der(&bytes), Ok(key.clone()), "{name}");
    }
    let without = SealedKey { empty_auth: false, ..key };
    for (name, to) in [("false", &[0xa0, 3, 1, 1, 0][..]), ("absent", &[])] {
        assert_eq!(SealedKey::from_der(&replaced(&[0xa0, 3, 1, 1, 1], to)), Ok(without.clone()), "{name}");
    }
}

#[test]
fn keys_in_files_of_other_tools_are_read_or_told_what_they_are() {
    let tools = include_str!("../../../../../tests/vectors/trusted_key/tpm2-tools-5.4/sealed.pem");
    let key = SealedKey::from_pem(tools).unwrap();
    assert_eq!((key.parent, key.empty_auth, key.public.attributes.0), (0x4000_0001, false, 0x40));
    // What it is, is said of it from then on.
    assert_eq!(key.to_der()[4..11], from_hex("066781050a0105").unwrap());
    for (text, found) in [
        (include_str!("../../../../../tests/vectors/trusted_key/tpm2-openssl-1.1.1/p256.pem"), "ECC P-256"),
        (include_str!("../../../../../tests/vectors/trusted_key/tpm2-openssl-1.1.1/rsa2048-auth.pem"), "RSA-2048"),
    ] {
        assert_eq!(SealedKey::from_pem(text), Err(SealedKeyError::NotSealed(found.to_owned())));
    }
}

#[test]
fn what_is_no_sealed_data_is_refused_with_the_reason() {
    let blob = &blobs()[0];
    let mut cut = blob.clone();
    cut.truncate(100);
    for (bytes, reason) in [
        (Vec::new(), "no key of a TPM: at byte 0, the end stands in the place of a sequence"),
        (
            b"secret".to_vec(),
            "no key of a TPM: at byte 0, an element with the tag 0x73 stands in the place of a sequence",
        ),
        (
            cut,
            "no key of a TPM: at byte 0, the length 233, where 97 bytes are left, stands in the place of an element's length",
        ),
        (
            kind_at(blob, 4),
            "a key that is imported and used in the TPM, where sealed data is needed (object identifier 2.23.133.10.1.5)",
        ),
        (
            kind_at(blob, 9),
            "a key that is of an unknown kind in the TPM, where sealed data is needed (object identifier 2.23.133.10.1.5)",
        ),
    ] {
        assert_eq!(SealedKey::from_der(&bytes).unwrap_err().to_string(), reason);
    }
    for (text, reason) in [
        ("", "no PEM of a key of a TPM: it does not begin"),
        ("-----BEGIN TSS2 PRIVATE KEY-----\nMIH=", "no PEM of a key of a TPM: it does not end"),
        (
            "-----BEGIN TSS2 PRIVATE KEY-----\nM\n-----END TSS2 PRIVATE KEY-----",
            "no PEM of a key of a TPM: between its ends is no base64",
        ),
    ] {
        assert_eq!(SealedKey::from_pem(text).unwrap_err().to_string(), reason);
    }
}

fn kind_at(blob: &[u8], kind: u8) -> Vec<u8> {
    let mut blob = blob.to_vec();
    blob[10] = kind;
    blob
}

proptest! {
    #[test]
    fn a_flipped_bit_never_gives_the_same_key(which in 0_usize..4, bit in 0_usize..8 * 300) {
        let blob = &blobs()[which];
        let bit = bit % (8 * blob.len());
        let mut changed = blob.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let (before, after) = (TrustedBlob::parse(blob).unwrap(), TrustedBlob::parse(&changed));
        // One of the two that a BOOLEAN's meaning does not change by: any value but zero is true.
        let same = after.as_ref() == Ok(&before);
        prop_assert!(!same || blob[..bit / 8].ends_with(&[0xa0, 3, 1, 1]), "bit {bit}");
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>, cut in 0_usize..300, at in 0_usize..300, byte: u8) {
        let _ = TrustedBlob::parse(&bytes);
        let _ = SealedKey::from_pem(&String::from_utf8_lossy(&bytes));
        let mut blob = blobs()[0].clone();
        if let Some(place) = blob.get_mut(at) { *place = byte; }
        blob.truncate(cut.max(1));
        if let Ok(TrustedBlob::Key(key)) = TrustedBlob::parse(&blob) {
            prop_assert_eq!(SealedKey::from_der(&key.to_der()), Ok(key));
        }
    }
}
