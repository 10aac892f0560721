//! The forms that keys come in, the options about key ids, and what is said of keys that cannot be used.

use super::{evmctl, folder, shell, vectors};
use std::fs;

/// The folder of the recorded cases, with more keys in it.
fn with_keys(names: &[&str]) -> tempfile::TempDir {
    let folder = folder();
    for name in names {
        fs::copy(vectors().join("key").join(name), folder.path().join(name)).unwrap();
    }
    folder
}

/// The key id in the label that a command printed: after type, version, hash.
fn key_id(printed: &str) -> &str {
    printed.get(6..14).unwrap_or_default()
}

#[test]
fn a_key_signs_in_every_form_and_its_certificate_gives_the_id() {
    let folder = with_keys(&[
        "rsa2048-enc-traditional.key",
        "rsa2048-enc.der",
        "rsa2048-pkcs1.der",
        "p256-pkcs8.der",
        "p256-sec1.key",
        "p521.key",
        "sm2.key",
        "rsa2048-ownskid.pem",
        "rsa2048-ownskid.key",
    ]);
    let at = |name: &str| fs::read(folder.path().join(name)).unwrap();
    let reversed = [at("rsa2048-ownskid.pem"), at("rsa2048-ownskid.key")].concat();
    fs::write(folder.path().join("reversed.pem"), reversed).unwrap();
    let rsa = "0f44e507";
    let ec = key_id(&evmctl(folder.path(), &["ima_sign", "-n", "-k", "ek.pem", "f"]).1).to_owned();
    for (name, arguments, id) in [
        ("PKCS#8", &["-k", "k.pem"][..], rsa),
        ("PKCS#8, encrypted", &["-k", "enc.pem", "-psecret123"], rsa),
        ("PKCS#1, encrypted as of old", &["-k", "rsa2048-enc-traditional.key", "--pass=secret123"], rsa),
        ("PKCS#8 in DER, encrypted", &["-k", "rsa2048-enc.der", "-psecret123"], rsa),
        ("PKCS#1 in DER", &["-k", "rsa2048-pkcs1.der"], rsa),
        ("PKCS#8 in DER, ECDSA", &["-k", "p256-pkcs8.der"], &ec),
        ("SEC1", &["-k", "p256-sec1.key"], &ec),
        ("key, then certificate", &["-k", "combined.pem"], "05060708"),
        ("certificate, then key", &["-k", "reversed.pem"], "05060708"),
        ("key id given", &["-k", "combined.pem", "--keyid", "0xabc"], "00000abc"),
        ("key id of a certificate in DER", &["-k", "k.pem", "--keyid-from-cert", "own.der"], "05060708"),
        ("key id of a certificate in PEM", &["-k", "k.pem", "--keyid-from-cert", "rsa2048-ownskid.pem"], "05060708"),
        ("the last key id counts", &["-k", "k.pem", "--keyid-from-cert", "own.der", "--keyid", "1"], "00000001"),
        ("SM2", &["-k", "sm2.key", "-a", "sm3", "--keyid", "2"], "00000002"),
        ("P-521", &["-k", "p521.key", "--keyid", "3"], "00000003"),
    ] {
        let (status, printed, told) = evmctl(folder.path(), &[&["ima_sign", "-n", "f"], arguments].concat());
        assert_eq!((status, key_id(&printed)), (Some(0), id), "{name}: {told}");
    }
}

#[test]
fn the_passphrase_is_the_options_else_the_environments() {
    let folder = folder();
    for (environment, option, succeeds) in [
        ("", "", false),
        ("EVMCTL_KEY_PASSWORD=secret123", "", true),
        ("EVMCTL_KEY_PASSWORD=wrong", "", false),
        ("EVMCTL_KEY_PASSWORD=wrong", "-psecret123", true),
        ("EVMCTL_KEY_PASSWORD=secret123", "--pass=wrong", false),
    ] {
        let line = format!("{environment} evmctl ima_sign -n -k enc.pem {option} f </dev/null 2>told; echo $?");
        let printed = shell(folder.path(), &format!("unset EVMCTL_KEY_PASSWORD; {line}"));
        assert_eq!(printed.ends_with("0\n"), succeeds, "{line}: {printed}");
    }
    // What stands after a blank is no passphrase: it would be the file to be signed.
    let (status, _, told) = evmctl(folder.path(), &["ima_sign", "-n", "-k", "enc.pem", "-p", "secret123", "f"]);
    assert!(status != Some(0) && !told.contains("hash(sha256)"), "{told}");
}

#[test]
fn a_key_that_cannot_be_used_is_said_to_be_what_it_is() {
    let folder = with_keys(&["rsa2048.pub", "rsa2048-expired.pem", "p256.pem"]);
    let path = |name: &str| folder.path().join(name);
    let at = |name: &str| fs::read(path(name)).unwrap();
    fs::write(path("cut.pem"), &at("k.pem")[..900]).unwrap();
    fs::write(path("cut.der"), &at("c.der")[..801]).unwrap();
    fs::write(path("strange.pem"), [at("k.pem"), at("p256.pem")].concat()).unwrap();
    fs::write(path("old.pem"), [at("k.pem"), at("rsa2048-expired.pem")].concat()).unwrap();
    fs::write(path("empty"), "").unwrap();
    shell(
        folder.path(),
        "openssl genpkey -algorithm ed25519 -out ed25519.pem; openssl ecparam -name secp256k1 -genkey -noout -out k1.pem
         openssl x509 -in rsa2048-expired.pem -outform der -out expired.der",
    );
    let sign = |arguments: &[&str]| evmctl(folder.path(), &[&["ima_sign", "-n", "f"], arguments].concat());
    let mut cases = vec![
        ("wrong passphrase", &["-k", "enc.pem", "-pwrong"][..], "cannot be decrypted with this passphrase"),
        ("no passphrase", &["-k", "enc.pem"], "encrypted, and no passphrase was given"),
        ("a certificate", &["-k", "c.der"], "a certificate, where a private key is needed"),
        ("a certificate in PEM", &["-k", "p256.pem"], "a certificate, where a private key is needed"),
        ("a public key", &["-k", "rsa2048.pub"], "a public key, where a private key is needed"),
        ("cut PEM", &["-k", "cut.pem"], "cut off: PEM with a BEGIN line and without its END line"),
        ("nothing", &["-k", "empty"], "no private key in PEM or DER"),
        ("not there", &["-k", "nowhere.pem"], "Failed to open keyfile: nowhere.pem"),
    ];
    if path("ed25519.pem").exists() {
        cases.push(("Ed25519", &["-k", "ed25519.pem"], "a key of type ED25519"));
        cases.push(("an unknown curve", &["-k", "k1.pem"], "a key of type EC secp256k1"));
    }
    for (name, arguments, said) in cases {
        let (status, printed, told) = sign(arguments);
        assert_eq!((status, printed.as_str()), (Some(125), ""), "{name}: {told}");
        assert!(told.contains(said), "{name}: {told}");
    }
    for (name, file, said) in [
        ("another key's certificate", "strange.pem", "the certificate (O=Spec vectors, CN=p256) is of another key"),
        ("an expired certificate", "old.pem", "expired on"),
    ] {
        let (status, printed, told) = sign(&["-k", file]);
        assert!(status == Some(0) && told.contains(said), "{name}: {told}");
        assert_eq!(key_id(&printed), "0f44e507", "{name}");
    }
    assert_eq!(evmctl(folder.path(), &["ima_sign", "--xattr-user", "-k", "k.pem", "f"]).0, Some(0));
    for (name, file, status, said) in [
        ("cut DER", "cut.der", 1, "cut off: 801 bytes of DER, whose header states 802"),
        ("a private key", "k.pem", 1, "Failed to d2i_X509_fp key file: k.pem"),
        ("another key", "ec.der", 1, "unknown keyid"),
        ("an expired certificate", "expired.der", 0, "expired on"),
    ] {
        if !path(file).exists() {
            continue;
        }
        let (found, _, told) = evmctl(folder.path(), &["ima_verify", "--xattr-user", "-k", file, "f"]);
        assert_eq!(found, Some(status), "{name}: {told}");
        assert!(told.contains(said), "{name}: {told}");
    }
}

#[test]
fn a_value_that_finds_no_room_is_refused() {
    let folder = folder();
    let long = "x".repeat(1024);
    let ima = "ab".repeat(1025);
    for (option, value, said) in [
        ("--selinux", &long, "selinux[1025] value is too long"),
        ("--ima", &ima, "ima[1025] value is too long"),
        ("--caps", &long, "caps[1025] value is too long"),
    ] {
        let option = format!("{option}={value}");
        let sign = ["sign", "-n", "-k", "k.pem", "--uuid", "--generation", "0", &option, "f"];
        let (status, printed, told) = evmctl(folder.path(), &sign);
        assert_eq!((status, printed.as_str()), (Some(125), ""), "{option}");
        assert!(told.contains(said), "{told}");
    }
}
