//! The key service against this machine's kernel, in session keyrings of the tests' own.

use imara_engine::keys::encrypted::EncryptedKey;
use imara_engine::keys::{KeyMaterial, MasterKeys};
use imara_format::hash::to_hex;
use imara_format::key::{KeyPermissions, KeySerial};
use imara_format::key_blob::encrypted::{Blob, Command, MasterName};
use imara_linux::key_service::{self as keys, KernelMasterKeys, KeyType, SESSION_KEYRING};

/// A session keyring of this thread alone: it goes away with the thread.
fn private_session(test: &str) -> bool {
    match keys::join_new_session() {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: {test}: no session keyring: {error}");
            false
        }
    }
}

fn has_type(test: &str, kind: KeyType) -> bool {
    // The answer to a type that the kernel does not have is ENODEV, before it looks at anything else.
    match keys::add(kind, Some(b"imara-test"), b"no command", SESSION_KEYRING) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
            println!("skipped: {test}: this kernel has no keys of type {}", kind.name());
            false
        }
        _ => true,
    }
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn keys_are_made_found_read_changed_and_removed() {
    if !private_session("keys_are_made_found_read_changed_and_removed") {
        return;
    }
    let ring = keys::new_keyring(b"imara-test", SESSION_KEYRING).unwrap();
    assert_eq!(errno(keys::new_keyring(b"imara-test", SESSION_KEYRING)), Some(libc::EEXIST));
    // Descriptions are any bytes but NUL.
    let odd = b"imara;\xff\n kmk";
    let key = keys::add(KeyType::User, Some(odd), b"secret", ring).unwrap();
    let told = keys::describe(key).unwrap();
    assert_eq!((told.kind.as_str(), told.description.as_slice()), ("user", &odd[..]));
    assert_eq!(told.permissions, KeyPermissions(0x3f01_0000));
    assert_eq!(keys::keys_of(ring).unwrap(), [key]);
    assert_eq!(keys::search(ring, KeyType::User, odd).unwrap(), key);
    assert_eq!(keys::request(KeyType::User, odd).unwrap(), key);
    assert_eq!(keys::keyring_named(b"imara-test").unwrap(), ring);
    assert!(keys::visible_keys().unwrap().iter().any(|line| line.serial == ring));
    keys::update(key, &[7; 4096]).unwrap();
    assert_eq!(keys::read(key).unwrap().as_bytes(), [7; 4096]);
    assert_eq!(errno(keys::update(key, &[7; 4097])), Some(libc::EINVAL), "a page at most");
    assert_eq!(keys::add(KeyType::User, Some(odd), &[8; 9000], ring).unwrap(), key);
    assert_eq!(keys::read(key).unwrap().as_bytes(), [8; 9000]);
    keys::set_permissions(key, KeyPermissions(0x3d01_0000)).unwrap();
    assert_eq!(errno(keys::read(key)), None, "a possessor who may search may read");
    keys::set_permissions(key, KeyPermissions(0x3501_0000)).unwrap();
    assert_eq!(errno(keys::read(key)), Some(libc::EACCES));
    keys::unlink(key, ring).unwrap();
    assert_eq!(errno(keys::search(ring, KeyType::User, odd)), Some(libc::ENOKEY));
    assert_eq!(errno(keys::keys_of(KeySerial(0x7fff_fff0))), Some(libc::ENOKEY));
    let key = keys::add(KeyType::User, Some(b"k"), b"secret", ring).unwrap();
    assert_eq!(errno(keys::keys_of(key)), Some(libc::ENOTDIR));
    keys::revoke(key).unwrap();
    assert_eq!(errno(keys::request(KeyType::User, b"k")), Some(libc::EKEYREVOKED));
    let key = keys::add(KeyType::User, Some(b"l"), b"secret", ring).unwrap();
    keys::invalidate(key).unwrap();
    assert_eq!(errno(keys::describe(key)), Some(libc::ENOKEY));
    keys::clear(ring).unwrap();
    assert_eq!(keys::keys_of(ring).unwrap(), []);
    for (name, description) in [("a NUL", &b"a\0b"[..]), ("a keyring of the kernel", b".imara")] {
        let refused = errno(keys::add(KeyType::Keyring, Some(description), &[], SESSION_KEYRING));
        assert!(matches!(refused, Some(libc::EINVAL | libc::EPERM)), "{name}: {refused:?}");
    }
}

#[test]
fn a_restricted_keyring_takes_nothing_more() {
    if !private_session("a_restricted_keyring_takes_nothing_more") {
        return;
    }
    let ring = keys::new_keyring(b"imara-test", SESSION_KEYRING).unwrap();
    keys::restrict(ring, None).unwrap();
    assert_eq!(errno(keys::restrict(ring, None)), Some(libc::EEXIST));
    assert_eq!(errno(keys::add(KeyType::User, Some(b"k"), b"secret", ring)), Some(libc::EPERM));
    let other = keys::new_keyring(b"imara-test-2", SESSION_KEYRING).unwrap();
    keys::restrict(other, Some(b"builtin_trusted")).unwrap();
    assert_eq!(errno(keys::add(KeyType::User, Some(b"k"), b"secret", other)), Some(libc::EOPNOTSUPP));
}

#[test]
fn a_key_sealed_by_the_kernel_opens_here_and_one_sealed_here_is_loaded_by_the_kernel() {
    let test = "a_key_sealed_by_the_kernel_opens_here_and_one_sealed_here_is_loaded_by_the_kernel";
    if !private_session(test) || !has_type(test, KeyType::Encrypted) {
        return;
    }
    for (number, master) in [&b"m"[..], b"0123456789abcdef0123456", &[0xa5; 129], &[3; 4000]].into_iter().enumerate() {
        let name = format!("master-{number}");
        keys::add(KeyType::User, Some(name.as_bytes()), master, SESSION_KEYRING).unwrap();
        for what in ["32", "20", "default X 33", "enc32 X 32", "ecryptfs X 64", "4096"] {
            let what = if what.contains('X') {
                what.replace('X', &format!("user:{name}"))
            } else {
                format!("user:{name} {what}")
            };
            let description = b"0123456789abcdef";
            let command = format!("new {what}");
            let key = keys::add(KeyType::Encrypted, Some(description), command.as_bytes(), SESSION_KEYRING).unwrap();
            let text = keys::read(key).unwrap();
            let blob = Blob::parse(text.as_bytes()).unwrap();
            let material = KernelMasterKeys.master_key(&blob.master).unwrap();
            let opened = EncryptedKey::open(&blob, &material).expect("the kernel's blob opens");
            assert_eq!(opened.seal(&material).unwrap().to_text(), text.as_bytes());
            keys::unlink(key, SESSION_KEYRING).unwrap();

            let ours = EncryptedKey::instantiate(command.as_bytes(), description, &KernelMasterKeys).unwrap();
            let sealed = ours.seal(&material).unwrap();
            let load = Command::Load(sealed.clone()).to_text();
            let key = keys::add(KeyType::Encrypted, Some(description), &load, SESSION_KEYRING).unwrap();
            assert_eq!(keys::read(key).unwrap().as_bytes(), sealed.to_text());
            keys::unlink(key, SESSION_KEYRING).unwrap();
        }
    }
}

/// Commands of every kind, judged by the kernel and here: the same error number for each.
#[test]
fn the_kernel_and_we_refuse_the_same_commands_with_the_same_number() {
    let test = "the_kernel_and_we_refuse_the_same_commands_with_the_same_number";
    if !private_session(test) || !has_type(test, KeyType::Encrypted) {
        return;
    }
    keys::add(KeyType::User, Some(b"kmk"), b"master", SESSION_KEYRING).unwrap();
    let key = EncryptedKey::instantiate(b"new user:kmk 33", b"k", &KernelMasterKeys).unwrap();
    let master = KeyMaterial::new(b"master".to_vec());
    let good = String::from_utf8(key.seal(&master).unwrap().to_text()).unwrap();
    let (start, hex) = good.rsplit_once(' ').unwrap();
    let mut commands: Vec<String> = [
        "new user:kmk 32",
        "new default user:kmk 4096",
        "new enc32 user:kmk 32",
        "new\tuser:kmk\t32",
        "new user:kmk +32",
        "new user:kmk 032",
        "new user:kmk 32\n",
        "new user:kmk 32\n\n",
        "new user:kmk -32",
        "new user:kmk ++32",
        "new user:kmk 0x20",
        "new user:kmk 32x",
        "new user:kmk 19",
        "new user:kmk 20",
        "new user:kmk 4097",
        "new user:kmk 18446744073709551648",
        "new user:kmk",
        "new user:kmk ",
        "new user:",
        "new user",
        "new",
        "new ",
        "",
        " ",
        "x",
        "new trusted:none 32",
        "new user:none 32",
        "new encrypted:kmk 32",
        "new logon:kmk 32",
        "new Default user:kmk 32",
        "new default",
        "new default ",
        "new enc32 user:kmk 64",
        "new ecryptfs user:kmk 32",
        "new ecryptfs user:kmk 64",
        "new  user:kmk 32",
        " new user:kmk 32",
        "NEW user:kmk 32",
        "newer user:kmk 32",
        "update user:kmk",
        "update default user:kmk",
        "new user:with:colon 32",
        "load user:kmk 33",
        "load user:kmk 33 ",
        "load user:kmk 33 00",
        "load user:none 33",
    ]
    .map(str::to_owned)
    .to_vec();
    commands.extend([
        format!("load {good}"),
        format!("load {good} more"),
        format!("load {good}\n"),
        format!("load {start} {}", hex.to_uppercase()),
        format!("load {start} {}", &hex[2..]),
        format!("load {start} {hex}00"),
        format!("load {start} zz{}", &hex[2..]),
        format!("load {start} {}zz{}", &hex[..32], &hex[34..]),
        format!("load {start} {}ff{}", &hex[..32], &hex[34..]),
        format!("load {}", good.replace("default ", "")),
        format!("load {}", good.replace("default ", "enc32 ")),
        format!("load {}", good.replace(" 33 ", " 033 ")),
        format!("load {}", good.replace(" 33 ", " 34 ")),
        format!("load {}", good.replace("user:kmk", "user:none")),
        format!("load  {good}"),
        format!("load {start}\0{hex}"),
        "new user:kmk 32\0more".to_owned(),
    ]);
    for description in ["k", "0123456789abcdef", "0123456789abcdeg"] {
        for command in &commands {
            let theirs =
                keys::add(KeyType::Encrypted, Some(description.as_bytes()), command.as_bytes(), SESSION_KEYRING);
            if let Ok(key) = theirs {
                keys::unlink(key, SESSION_KEYRING).unwrap();
            }
            let ours = EncryptedKey::instantiate(command.as_bytes(), description.as_bytes(), &KernelMasterKeys);
            let ours = ours.err().and_then(|error| error.errno()).map(|errno| errno.name());
            let theirs = errno(theirs).map(|errno| match errno {
                libc::EINVAL => "EINVAL",
                libc::ENOKEY => "ENOKEY",
                libc::EOPNOTSUPP => "EOPNOTSUPP",
                other => panic!("{command:?}: errno {other}"),
            });
            assert_eq!(ours, theirs, "{description}: {command:?}");
        }
    }
    let updated = keys::add(KeyType::Encrypted, Some(b"u"), b"new user:kmk 32", SESSION_KEYRING).unwrap();
    for command in [
        "update user:kmk",
        "update user:none",
        "update enc32 user:kmk",
        "update trusted:kmk",
        "update",
        "update ",
        "new user:kmk 32",
        "load user:kmk 32 00",
        "update user:kmk more",
        "x user:kmk",
    ] {
        let mut ours = EncryptedKey::instantiate(b"new user:kmk 32", b"u", &KernelMasterKeys).unwrap();
        let ours = ours.update(command.as_bytes()).err().and_then(|error| error.errno()).map(|errno| errno.name());
        let theirs = errno(keys::update(updated, command.as_bytes())).map(|errno| {
            assert_eq!(errno, libc::EINVAL);
            "EINVAL"
        });
        assert_eq!(ours, theirs, "{command:?}");
    }
}

#[test]
fn a_master_key_is_searched_for_as_the_kernel_does() {
    if !private_session("a_master_key_is_searched_for_as_the_kernel_does") {
        return;
    }
    let name = |text: &str| MasterName::parse(text.as_bytes()).unwrap();
    let refused = |text: &str| KernelMasterKeys.master_key(&name(text)).err().expect("a refusal");
    let error = refused("user:imara-none");
    assert_eq!((error.errno.name(), error.to_string().starts_with("master key user:imara-none: ")), ("ENOKEY", true));
    assert_eq!(refused("trusted:kmk").errno.name(), "EOPNOTSUPP");
    let ring = keys::new_keyring(b"imara-test", SESSION_KEYRING).unwrap();
    let key = keys::add(KeyType::User, Some(b"imara-kmk"), b"secret", ring).unwrap();
    assert_eq!(to_hex(KernelMasterKeys.master_key(&name("user:imara-kmk")).unwrap().as_bytes()), to_hex(b"secret"));
    keys::revoke(key).unwrap();
    assert_eq!(refused("user:imara-kmk").errno.name(), "EKEYREVOKED");
}
