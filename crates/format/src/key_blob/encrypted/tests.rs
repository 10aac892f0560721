use super::*;
use proptest::prelude::*;

const BLOBS: &str = include_str!("../../../../../tests/vectors/encrypted_key/linux-6.1/blobs");
const REFUSED: &str = include_str!("../../../../../tests/vectors/encrypted_key/linux-6.1/refused");

fn fields(table: &str) -> impl Iterator<Item = [&str; 3]> {
    table.lines().filter(|line| !line.is_empty()).map(|line| {
        let mut fields = line.splitn(3, '\t');
        [(); 3].map(|()| fields.next().unwrap())
    })
}

#[test]
fn commands_that_a_kernel_took_are_taken_and_its_blobs_print_as_they_were() {
    let mut read = 0;
    for [description, command, blob] in fields(BLOBS) {
        Command::parse(command.as_bytes(), description.as_bytes()).unwrap_or_else(|error| panic!("{command}: {error}"));
        if blob.is_empty() {
            continue;
        }
        let parsed = Blob::parse(blob.as_bytes()).unwrap();
        assert_eq!(parsed.to_text(), blob.as_bytes(), "{description}");
        let load = format!("load {blob}");
        assert_eq!(Command::parse(load.as_bytes(), description.as_bytes()), Ok(Command::Load(parsed)));
        read += 1;
    }
    assert_eq!(read, 37);
}

#[test]
fn commands_that_a_kernel_refused_are_refused_unless_the_mac_is_what_is_wrong() {
    // Its only fault is that it was given to add_key(2).
    let when_used = ["update user:kmk"];
    // What cannot be told without the master key.
    let by_mac = ["bad-mac", "bad-master", "bad-size", "no-format"];
    let mut refused = 0;
    for [description, command, error] in fields(REFUSED) {
        assert_eq!(error, "add_key: Invalid argument");
        let result = Command::parse(command.as_bytes(), description.as_bytes());
        if by_mac.contains(&description) || when_used.contains(&command) {
            assert!(result.is_ok(), "{description}: {command}");
            continue;
        }
        let error = result.expect_err(command);
        assert_eq!(error.errno(), Errno::Einval);
        refused += 1;
    }
    assert_eq!(refused, 30);
}

#[test]
fn each_wrong_word_is_named() {
    let hex = |bytes: usize| "00".repeat(16 + 1 + bytes + 32);
    for (command, description, expected) in [
        ("", "k", "the text has 0 bytes, 1 to 32767 are needed"),
        ("new", "k", "the master key is missing; words are separated by exactly one blank"),
        ("new default", "k", "the master key is missing; words are separated by exactly one blank"),
        ("NEW user:kmk 32", "k", "`NEW` is none of new, load and update"),
        (" new user:kmk 32", "k", "`` is none of new, load and update"),
        ("new  user:kmk 32", "k", "`` is no master key: user:NAME or trusted:NAME is needed"),
        ("new user: 32", "k", "`user:` is no master key: user:NAME or trusted:NAME is needed"),
        ("new encrypted:kmk 32", "k", "`encrypted:kmk` is no master key: user:NAME or trusted:NAME is needed"),
        ("new user:kmk", "k", "the key's length is missing; words are separated by exactly one blank"),
        ("new user:kmk 0x20", "k", "the key's length is `0x20`, where a decimal number is needed"),
        ("new user:kmk ", "k", "the key's length is ``, where a decimal number is needed"),
        ("new user:kmk 19", "k", "the key's length is `19`, 20 to 4096 bytes are possible"),
        ("new user:kmk -32", "k", "the key's length is `-32`, 20 to 4096 bytes are possible"),
        (
            "new user:kmk 99999999999999999999999",
            "k",
            "the key's length is `99999999999999999999999`, 20 to 4096 bytes are possible",
        ),
        ("new enc32 user:kmk 64", "k", "keys of the format enc32 have 32 bytes, not 64"),
        ("new ecryptfs user:kmk 32", "0123456789abcdef", "keys of the format ecryptfs have 64 bytes, not 32"),
        ("new ecryptfs user:kmk 64", "k", "the description of an ecryptfs key is 16 hexadecimal digits, not `k`"),
        ("new user:kmk 32 00", "k", "the decrypted data has 2 digits, 64 are needed"),
        ("load user:kmk 32", "k", "the blob is missing; words are separated by exactly one blank"),
        ("load user:kmk 32 00", "k", "the blob has 2 digits, 162 are needed for a key of this length"),
    ] {
        let error = Command::parse(command.as_bytes(), description.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), expected, "{command}");
    }
    let bad_hex = format!("load user:kmk 32 {}g", &hex(32)[1..]);
    let error = Command::parse(bad_hex.as_bytes(), b"k").unwrap_err();
    assert_eq!(error, CommandError::BlobNotHex { offset: 161 });
    let data = format!("new user:kmk 32 {}g", "0".repeat(63));
    let error = Command::parse(data.as_bytes(), b"k").unwrap_err();
    assert_eq!(error, CommandError::DecryptedDataNotHex { offset: 63 });
}

#[test]
fn what_the_kernel_overlooks_is_overlooked() {
    let hex = format!("{}zz{}", "ab".repeat(16), "ab".repeat(32 + 32));
    for text in [
        format!("user:kmk +032\n {hex}"),
        format!("user:kmk 0032 {hex} and more words"),
        format!("default\tuser:kmk\t32\t{}", hex.to_uppercase()),
        format!("default user:kmk 32 {hex}\0 what follows a NUL"),
    ] {
        let blob = Blob::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!((blob.iv, blob.length.bytes()), ([0xab; 16], 32));
    }
    let update = Command::parse(b"update enc32 trusted:a:b junk", b"k").unwrap();
    assert_eq!(update.to_text(), b"update trusted:a:b");
    let Command::New { master, length, .. } = Command::parse(b"new user:\xff\n 20", b"k").unwrap() else { panic!() };
    assert_eq!((master.description(), length.bytes()), (&b"\xff\n"[..], 20));
}

#[test]
fn key_material_is_not_shown() {
    let key = "5ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2";
    let command = format!("new user:kmk 32 {key}");
    let command = Command::parse(command.as_bytes(), b"k").unwrap();
    assert!(!format!("{command:?}").contains("5ec2e7"));
    assert!(command.to_text().ends_with(key.as_bytes()));
    let Command::New { decrypted_data: Some(data), .. } = command else { panic!() };
    assert_eq!(to_hex(&data.bytes().collect::<Vec<_>>()), key);
    // Words in the wrong place: each error tells the length and no digit.
    for text in [
        format!("new user:kmk {key}"),
        format!("new {key} 32"),
        format!("{key} user:kmk 32"),
        format!("new user:kmk 32 {key}00"),
    ] {
        let error = Command::parse(text.as_bytes(), b"k").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("5ec2e7"), "{error}");
    }
    // Another file than was meant, with a short key in it.
    for text in [b"5ec2e7".as_slice(), b"user:kmk 5ec2e7", b"user:kmk 5", b"default 5ec2e7 32"] {
        let error = Blob::parse(text).unwrap_err();
        assert!(!format!("{error} {error:?}").contains('5'), "{error}");
    }
}

#[test]
fn a_digit_of_the_text_leads_to_its_byte() {
    let [_, _, text] = fields(BLOBS).next().unwrap();
    let mut blob = Blob::parse(text.as_bytes()).unwrap();
    let hex = text.rsplit(' ').next().unwrap().to_owned();
    assert_eq!(blob.digits(), hex.len());
    for offset in 0..hex.len() + 4 {
        let expected = hex.get(offset / 2 * 2..offset / 2 * 2 + 2);
        let found = blob.byte_of_digit(offset).map(|byte| format!("{byte:02x}"));
        let skipped = offset / 2 == 16;
        assert_eq!(found.as_deref(), expected.filter(|_| !skipped), "{offset}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>, words in "(new|load|update|default|enc32|user:|trusted:|[0-9a-z \t]){0,12}") {
        let _ = (Command::parse(&bytes, b"k"), Blob::parse(&bytes));
        let _ = (Command::parse(words.as_bytes(), b"k"), Blob::parse(words.as_bytes()));
    }

    #[test]
    fn what_is_printed_is_read_back(
        format in proptest::option::of(0usize..3), trusted: bool, name in "[!-~]{1,20}", length in 20usize..4097,
        iv: [u8; 16], fill: u8, mac: [u8; 32],
    ) {
        let format = format.map(|index| PayloadFormat::ALL[index]);
        let length = format.and_then(PayloadFormat::fixed_length).unwrap_or(length);
        let length = KeyLength::new(length).unwrap();
        let master = format!("{}:{name}", if trusted { "trusted" } else { "user" });
        let master = MasterName::parse(master.as_bytes()).unwrap();
        let ciphertext = vec![fill; length.sealed_bytes()];
        let blob = Blob { format, master, length, iv, ciphertext, mac };
        prop_assert_eq!(Blob::parse(&blob.to_text()), Ok(blob.clone()));
        let load = Command::Load(blob);
        let text = load.to_text();
        prop_assert_eq!(Command::parse(&text, b"0123456789abcdef"), Ok(load.clone()));
    }
}
