use super::*;
use crate::key_blob::sealed_key::TrustedBlob;
use proptest::prelude::*;

const BLOBS: &str = include_str!("../../../../../tests/vectors/trusted_key/linux-6.12/blobs");

#[test]
fn commands_that_a_kernel_took_are_taken_and_their_blobs_fit_them() {
    let mut read = 0;
    for line in BLOBS.lines() {
        let mut fields = line.split('\t');
        let (command, blob) = (fields.next().unwrap(), fields.next().unwrap());
        let Ok(Command::New { options, .. }) = Command::parse(command.as_bytes()) else { panic!("{command}") };
        let load = format!("load {blob}");
        let Ok(Command::Load { blob, .. }) = Command::parse(load.as_bytes()) else { panic!("{load}") };
        let TrustedBlob::Key(key) = TrustedBlob::parse(&blob).unwrap() else { panic!("{load}") };
        assert_eq!(Some(key.parent), options.parent, "{command}");
        assert_eq!(key.is_migratable(), options.migratable, "{command}");
        assert_eq!(key.empty_auth, options.blob_auth.is_none(), "{command}");
        assert_eq!(key.public.policy, options.policy_digest, "{command}");
        assert_eq!(key.public.name_hash(), Some(options.hash), "{command}");
        read += 1;
    }
    assert_eq!(read, 4);
}

#[test]
fn options_mean_what_they_mean_to_the_kernel() {
    let plain = Options::default;
    let digest = "11".repeat(32);
    let policy = |hash, bytes| Options { hash, policy_digest: vec![0x11; bytes], ..plain() };
    for (words, expected) in [
        ("", plain()),
        ("  \t ", plain()),
        ("keyhandle=81000001", Options { parent: Some(0x8100_0001), ..plain() }),
        ("keyhandle=0X81000001\n", Options { parent: Some(0x8100_0001), ..plain() }),
        ("keyhandle=+0x181000001", Options { parent: Some(0x8100_0001), ..plain() }),
        ("keyhandle=0", Options { parent: Some(0), ..plain() }),
        ("migratable=0x", Options { migratable: false, ..plain() }),
        ("migratable=1", plain()),
        ("pcrlock=023  migratable=10", Options { pcr_lock: 23, ..plain() }),
        ("pcrinfo=123", plain()),
        ("hash=sm3", Options { hash: HashAlgorithm::Sm3, ..plain() }),
        ("hash=md5", Options { hash: HashAlgorithm::Md5, ..plain() }),
        (&format!("policydigest={digest}"), policy(HashAlgorithm::Sha256, 32)),
        (&format!("hash=sha1\tpolicydigest={}", &digest[..40]), policy(HashAlgorithm::Sha1, 20)),
        ("policyhandle=3000000", Options { policy_session: 0x0300_0000, ..plain() }),
    ] {
        assert_eq!(Options::parse(words.as_bytes()), Ok(expected), "{words}");
    }
    for (value, bytes) in [
        ("", vec![]),
        ("secret", b"secret".to_vec()),
        ("01234567890123456789", b"01234567890123456789".to_vec()),
        ("0123456789012345678901234567890123456789", from("0123456789012345678901234567890123456789")),
    ] {
        let word = format!("blobauth={value}");
        let options = Options::parse(word.as_bytes()).unwrap();
        assert_eq!(options.blob_auth.unwrap().bytes().collect::<Vec<_>>(), bytes, "{value}");
    }
}

fn from(hex: &str) -> Vec<u8> {
    crate::hash::from_hex(hex).unwrap()
}

#[test]
fn each_wrong_word_is_named_with_the_kernels_number() {
    let long = format!("load {}", "00".repeat(513));
    let digest = "11".repeat(32);
    for (command, expected) in [
        ("", "the text has 0 bytes, 1 to 32767 are needed"),
        ("NEW 32", "`NEW` is none of new, load and update"),
        (" new 32", "`` is none of new, load and update"),
        ("new", "the key's length is missing"),
        ("new  32", "the key's length is ``, where 32 to 128 are possible"),
        ("new 31", "the key's length is `31`, where 32 to 128 are possible"),
        ("new 129", "the key's length is `129`, where 32 to 128 are possible"),
        ("new 0x20", "the key's length is `0x20`, where 32 to 128 are possible"),
        ("load", "the blob is missing"),
        ("load 0g", "the blob has a character at offset 1 that is not a hexadecimal digit"),
        (&long, "the blob has 513 bytes, at most 512 are possible"),
        (
            "new 32 keyhandel=1",
            "`keyhandel=` is no option; there are keyhandle=, keyauth=, blobauth=, pcrinfo=, pcrlock=, migratable=, hash=, \
             policydigest= and policyhandle=",
        ),
        ("new 32 hash=sha1 hash=sha1", "hash= stands there twice"),
        ("new 32 keyhandle=", "keyhandle= has ``; a handle in hexadecimal is needed, as 0x81000001"),
        (
            "new 32 keyhandle=10000000000000000",
            "keyhandle= has `10000000000000000`; a handle in hexadecimal is needed, as 0x81000001",
        ),
        ("new 32 keyauth=11", "keyauth= has a value of 2 characters; 40 hexadecimal digits are needed"),
        (
            "new 32 blobauth=012345678901234567890",
            "blobauth= has a value of 21 characters; 40 hexadecimal digits or at most 20 characters are needed",
        ),
        ("new 32 pcrinfo=xx", "pcrinfo= has `xx`; hexadecimal digits of at most 64 bytes are needed"),
        ("new 32 pcrlock=0x1", "pcrlock= has `0x1`; a PCR's decimal number is needed"),
        ("new 32 migratable=", "migratable= has ``; 0 or 1 is needed"),
        ("new 32 migratable=no", "migratable= has `no`; 0 or 1 is needed"),
        (
            "new 32 hash=sha3",
            "hash= has `sha3`; a hash algorithm of the kernel's is needed: sha1, sha256, sha384, sha512 or sm3",
        ),
        (
            "new 32 policydigest=11",
            "policydigest= has `11`; a digest in hexadecimal is needed, as long as those of hash= are (sha256 without it)",
        ),
        (&format!("new 32 policydigest={digest} hash=sha256"), "hash= has to stand before policydigest="),
        ("update policyhandle=x", "policyhandle= has `x`; the handle of a policy session in hexadecimal is needed"),
    ] {
        let error = Command::parse(command.as_bytes()).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.errno()), (expected, Errno::Einval), "{command}");
    }
}

#[test]
fn no_error_shows_an_authorisation_value() {
    let value = "s3cr3ts3cr3ts3cr3ts3cr3ts3cr3t";
    for word in ["blobauth", "keyauth", "blobauht"] {
        let command = format!("new 32 {word}={value}");
        let error = Command::parse(command.as_bytes()).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{error}");
    }
    let command = Command::parse(b"new 32 blobauth=s3cr3t").unwrap();
    assert!(!format!("{command:?}").contains("s3cr3t"));
}

proptest! {
    #[test]
    fn a_command_prints_to_what_is_read_alike(
        text in "(new|load|update) ([0-9a-f]{0,6}|64)( |\t|keyhandle=|keyauth=|blobauth=|pcrlock=|migratable=|hash=|sha1|sm3|policyhandle=|[0-9a-f]{1,5}|[0-9]{40}){0,12}",
    ) {
        if let Ok(command) = Command::parse(text.as_bytes()) {
            let printed = command.to_text();
            prop_assert_eq!(Command::parse(&printed), Ok(command.clone()));
        }
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let _ = Command::parse(&bytes);
        let _ = Command::parse(&[b"new 32 ", bytes.as_slice()].concat());
    }
}
