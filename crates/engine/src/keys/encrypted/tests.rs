use super::*;
use imara_format::hash::{from_hex, to_hex};
use proptest::prelude::*;
use std::collections::BTreeMap;

macro_rules! vector {
    ($name:literal) => {
        concat!("../../../../../tests/vectors/encrypted_key/", $name)
    };
}

/// Master keys of type `user`, by description.
struct Masters(BTreeMap<Vec<u8>, Vec<u8>>);

impl MasterKeys for Masters {
    fn master_key(&self, name: &MasterName) -> Result<KeyMaterial, MasterKeyError> {
        match self.0.get(name.description()) {
            Some(bytes) if name.to_text().starts_with(b"user:") => Ok(KeyMaterial::new(bytes.clone())),
            Some(_) | None => {
                Err(MasterKeyError { master: name.clone(), errno: Errno::Enokey, what: "not there".into() })
            }
        }
    }
}

fn kernel_masters() -> Masters {
    let line = |line: &str| {
        let (name, hex) = line.split_once('\t').unwrap();
        (name.as_bytes().to_vec(), from_hex(hex).unwrap())
    };
    Masters(include_str!(vector!("linux-6.1/masters")).lines().map(line).collect())
}

fn blob(text: &str) -> Blob {
    Blob::parse(text.as_bytes()).unwrap()
}

/// The error, where a key was not expected: a key cannot be printed.
fn refused(result: Result<EncryptedKey, EncryptedKeyError>) -> EncryptedKeyError {
    result.err().expect("a refusal")
}

#[test]
fn every_blob_of_a_kernel_opens_to_its_payload_and_seals_to_the_same_text() {
    let masters = kernel_masters();
    let plain: BTreeMap<_, _> =
        include_str!(vector!("linux-6.1/blobs.plain")).lines().map(|line| line.split_once('\t').unwrap()).collect();
    let mut opened = 0;
    for line in include_str!(vector!("linux-6.1/blobs")).lines() {
        let fields: Vec<&str> = line.splitn(3, '\t').collect();
        let [description, _, text] = fields[..] else { panic!("{line}") };
        if text.is_empty() {
            continue;
        }
        let load = format!("load {text}");
        let key = EncryptedKey::instantiate(load.as_bytes(), description.as_bytes(), &masters).expect(description);
        assert_eq!(to_hex(key.material().as_bytes()), plain[description], "{description}");
        let master = masters.master_key(key.master()).unwrap();
        assert_eq!(key.seal(&master).unwrap().to_text(), text.as_bytes(), "{description}");
        opened += 1;
    }
    assert_eq!(opened, 37);
}

#[test]
fn every_command_that_a_kernel_refused_is_refused_with_the_same_number() {
    let masters = kernel_masters();
    for line in include_str!(vector!("linux-6.1/refused")).lines() {
        let fields: Vec<&str> = line.splitn(3, '\t').collect();
        let [description, command, _] = fields[..] else { panic!("{line}") };
        let error = refused(EncryptedKey::instantiate(command.as_bytes(), description.as_bytes(), &masters));
        assert_eq!(error.errno(), Some(Errno::Einval), "{description}: {command}: {error}");
    }
}

#[test]
fn updates_follow_the_kernels() {
    let masters = kernel_masters();
    let lines: Vec<&str> = include_str!(vector!("linux-6.1/update")).lines().collect();
    let text = |name: &str| lines.iter().find(|line| line.starts_with(name)).unwrap().rsplit('\t').next().unwrap();
    let load = format!("load {}", text("before"));
    let mut key = EncryptedKey::instantiate(load.as_bytes(), b"k1", &masters).unwrap();
    key.update(b"update user:kmk").unwrap();
    let seal = |key: &EncryptedKey| key.seal(&masters.master_key(key.master()).unwrap()).unwrap().to_text();
    assert_eq!(seal(&key), text("after").as_bytes());
    key.update(b"update user:none").unwrap();
    for (command, words) in [
        (
            "update trusted:kmk",
            "an update may change the master key's name, not its type: trusted:kmk where user:NAME is needed",
        ),
        ("new user:kmk 32", "the command new cannot update a key"),
        ("update", "the master key is missing; words are separated by exactly one blank"),
    ] {
        let error = key.update(command.as_bytes()).unwrap_err();
        assert_eq!((error.errno(), error.to_string().as_str()), (Some(Errno::Einval), words));
    }
    key.update(b"update user:m16-alpha junk").unwrap();
    assert_eq!(seal(&key), text("end").as_bytes());
}

#[test]
fn keys_and_derived_keys_are_those_of_the_vectors() {
    let vectors: serde_json::Value = serde_json::from_str(include_str!(vector!("encrypted_keys.json"))).unwrap();
    let vectors = vectors.as_array().unwrap();
    assert_eq!(vectors.len(), 19);
    for vector in vectors {
        let field = |name: &str| vector[name].as_str().unwrap();
        let master = KeyMaterial::new(from_hex(field("master_hex")).unwrap());
        let derived = DerivedKeys::new(&master).unwrap();
        if vector.get("format").is_none() {
            assert_eq!(to_hex(&*derived.encryption), field("enc_key"));
            assert_eq!(to_hex(&*derived.authentication), field("auth_key"));
        }
        let blob = blob(field("blob"));
        assert_eq!(to_hex(&blob.iv), field("iv"));
        let key = EncryptedKey::open(&blob, &master).unwrap();
        assert_eq!(to_hex(key.material().as_bytes()), field("payload"));
        assert_eq!(key.seal(&master).unwrap(), blob);
    }
    for (text, payload) in [
        (include_str!(vector!("evm-key-32.blob")), &include_bytes!(vector!("hmac32.bin"))[..]),
        (include_str!(vector!("evm-key-64.blob")), include_bytes!(vector!("hmac64.bin"))),
        (include_str!(vector!("evm-key-128.blob")), include_bytes!(vector!("hmac128.bin"))),
    ] {
        let master = KeyMaterial::new(include_bytes!(vector!("kmk32.bin")).to_vec());
        assert_eq!(EncryptedKey::open(&blob(text), &master).unwrap().material().as_bytes(), payload);
    }
}

#[test]
fn a_blob_from_before_linux_3_1_opens_and_is_sealed_in_the_new_form() {
    let masters = kernel_masters();
    let master = || masters.master_key(&MasterName::parse(b"user:kmk").unwrap()).unwrap();
    let key = EncryptedKey::instantiate(b"new user:kmk 40", b"k", &masters).unwrap();
    let new = key.seal(&master()).unwrap();
    let mut old = Blob { format: None, ..new.clone() };
    old.mac = DerivedKeys::new(&master()).unwrap().mac(&old);
    let opened = EncryptedKey::open(&old, &master()).unwrap();
    assert_eq!(opened.seal(&master()).unwrap(), new);
    // Adding or removing the word does not make one of the other.
    for (blob, sealed) in [
        (Blob { format: Some(PayloadFormat::Default), ..old }, None),
        (Blob { format: None, ..new }, Some(PayloadFormat::Default)),
    ] {
        assert_eq!(diagnose(&blob, &master()).unwrap(), Some(Damage::Format { sealed }));
    }
}

#[test]
fn a_new_key_has_the_bytes_that_were_given_or_random_ones() {
    let masters = kernel_masters();
    let key = |command: &str| EncryptedKey::instantiate(command.as_bytes(), b"k", &masters).unwrap();
    let given = "00ff".repeat(16);
    assert_eq!(to_hex(key(&format!("new enc32 user:kmk 32 {given}")).material().as_bytes()), given);
    let (one, other) = (key("new user:none 4096"), key("new user:none 4096"));
    assert_eq!((one.material().len(), one.format()), (4096, PayloadFormat::Default));
    assert!(one.material() != other.material() && one.iv != other.iv);
    let error = refused(EncryptedKey::instantiate(b"update user:kmk", b"k", &masters));
    assert_eq!(error.to_string(), "the command update needs a key that is there already");
    let missing = format!("load default user:none 32 {}", "00".repeat(81));
    let error = refused(EncryptedKey::instantiate(missing.as_bytes(), b"k", &masters));
    assert_eq!((error.errno(), error.to_string().as_str()), (Some(Errno::Enokey), "master key user:none: not there"));
}

#[test]
fn a_wrong_master_key_and_a_damaged_blob_are_told_apart_as_far_as_they_can_be() {
    let master = KeyMaterial::new(include_bytes!(vector!("kmk32.bin")).to_vec());
    let name = || MasterName::parse(b"user:kmk").unwrap();
    let seal = |length: &str| {
        let length = KeyLength::parse(length.as_bytes()).unwrap();
        let material = KeyMaterial::random(length.bytes()).unwrap();
        EncryptedKey::new(PayloadFormat::Default, name(), length, material).unwrap().seal(&master).unwrap()
    };
    let sealed = seal("33");
    let changed = |change: &dyn Fn(&mut Blob)| {
        let mut blob = sealed.clone();
        change(&mut blob);
        blob
    };
    let length = |text: &str| KeyLength::parse(text.as_bytes()).unwrap();
    for (name, blob, expected) in [
        ("nothing", sealed.clone(), None),
        ("a digit of the vector", changed(&|blob| blob.iv[3] ^= 0x0b), Some(Damage::Digit { offset: 7 })),
        ("a digit of the key", changed(&|blob| blob.ciphertext[0] ^= 0x80), Some(Damage::Digit { offset: 34 })),
        ("the MAC", changed(&|blob| blob.mac[..4].fill(0)), None),
        ("a longer key", changed(&|blob| blob.length = length("34")), Some(Damage::Length { sealed: length("33") })),
        (
            "another spelling",
            changed(&|blob| blob.length = length("0033")),
            Some(Damage::Length { sealed: length("33") }),
        ),
        (
            "another type of master",
            changed(&|blob| {
                blob.master = blob.master.with_kind(imara_format::key_blob::encrypted::MasterType::Trusted)
            }),
            Some(Damage::MasterType { sealed: imara_format::key_blob::encrypted::MasterType::User }),
        ),
        (
            "two digits, padding",
            changed(&|blob| (blob.iv[0], blob.iv[1]) = (!blob.iv[0], !blob.iv[1])),
            Some(Damage::Somewhere),
        ),
        (
            "another name",
            changed(&|blob| blob.master = MasterName::parse(b"user:kmk2").unwrap()),
            Some(Damage::Somewhere),
        ),
        ("the padding's block", changed(&|blob| blob.ciphertext[32..].fill(1)), Some(Damage::Unknown)),
    ] {
        let found = diagnose(&blob, &master).unwrap();
        match name {
            "the MAC" => assert!(matches!(found, Some(Damage::Mac { wrong: 1..=8 })), "{found:?}"),
            _ => assert_eq!(found, expected, "{name}"),
        }
        assert!(found.is_none_or(|damage| damage.master_is_right() || name == "the padding's block"));
    }
    let stranger = KeyMaterial::new(b"stranger".to_vec());
    assert_eq!(diagnose(&sealed, &stranger).unwrap(), Some(Damage::Unknown));
    let error = refused(EncryptedKey::open(&sealed, &stranger));
    assert_eq!(
        error.to_string(),
        "the blob does not authenticate under the master key user:kmk: it is another key than the one it was sealed with, \
         or the blob is damaged"
    );
}

#[test]
fn secrets_stay_out_of_errors() {
    let masters = kernel_masters();
    let secret = "5ec2e7".repeat(11);
    for command in
        [format!("new user:kmk {secret}"), format!("new user:kmk 32 {secret}"), format!("load user:kmk {secret} 32")]
    {
        let error = refused(EncryptedKey::instantiate(command.as_bytes(), b"k", &masters));
        assert!(!format!("{error} {error:?}").contains("5ec2e7"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_sealed_key_opens_under_its_master_alone(
        master in prop::collection::vec(any::<u8>(), 1..80), material in prop::collection::vec(any::<u8>(), 20..300),
    ) {
        let length = KeyLength::new(material.len()).unwrap();
        let name = MasterName::parse(b"trusted:kmk").unwrap();
        let key = EncryptedKey::new(PayloadFormat::Default, name, length, KeyMaterial::new(material.clone())).unwrap();
        let other = KeyMaterial::new([&master[..], b"x"].concat());
        let master = KeyMaterial::new(master);
        let blob = key.seal(&master).unwrap();
        let opened = EncryptedKey::open(&blob, &master).unwrap();
        prop_assert_eq!(opened.material().as_bytes(), &material);
        prop_assert!(EncryptedKey::open(&blob, &other).is_err());
    }

    #[test]
    fn a_blob_with_a_bit_flipped_anywhere_is_refused(bit in 0usize..8, place: prop::sample::Index, length in 20usize..70) {
        let masters = kernel_masters();
        let command = format!("new default user:kmk {length}");
        let key = EncryptedKey::instantiate(command.as_bytes(), b"k", &masters).unwrap();
        let mut text = key.seal(&masters.master_key(key.master()).unwrap()).unwrap().to_text();
        let hex = text.len() - text.rsplit(|byte| *byte == b' ').next().unwrap().len();
        let place = place.index(text.len());
        // Digits that stand for nothing, and the bit that tells `a` from `A`.
        let (ignored, case) = ([hex + 32, hex + 33].contains(&place), bit == 5 && text[place].is_ascii_alphabetic());
        text[place] ^= 1 << bit;
        // A blank in their place ends the blob.
        let ignored = ignored && text[place] != b' ';
        let load = [b"load ", &text[..]].concat();
        let opened = EncryptedKey::instantiate(&load, b"k", &masters);
        prop_assert_eq!(opened.is_ok(), ignored || place >= hex && case, "bit {} of byte {}", bit, place);
    }
}
