//! Keys in a token: SoftHSM, by PKCS#11 URI. No engine or provider of OpenSSL takes part.

use super::{EVMCTL, vectors};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const IMARA: &str = env!("CARGO_BIN_EXE_imara");
const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// A token with the keys `rsa` and `ec`, of the vectors, in a folder of its own.
struct SoftHsm(tempfile::TempDir);

impl SoftHsm {
    fn new(test: &str) -> Option<Self> {
        let token = Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        let folder = token.0.path();
        fs::create_dir(folder.join("tokens")).unwrap();
        let settings =
            format!("directories.tokendir = {}\nobjectstore.backend = file\n", folder.join("tokens").display());
        fs::write(folder.join("softhsm2.conf"), settings).unwrap();
        let setting_up = |arguments: &[&str]| token.run("softhsm2-util", arguments);
        if !Path::new(MODULE).exists() || token.command("softhsm2-util").arg("--version").output().is_err() {
            println!("skipped: {test}: no SoftHSM: apt install softhsm2");
            return None;
        }
        setting_up(&["--init-token", "--free", "--label", "build", "--pin", "1234", "--so-pin", "4321"]);
        for (name, key, id) in [("rsa", "rsa2048", "01"), ("ec", "p256", "02")] {
            let file = vectors().join(format!("key/{key}.key"));
            let file = file.to_str().unwrap();
            setting_up(&["--import", file, "--token", "build", "--label", name, "--id", id, "--pin", "1234"]);
            fs::copy(vectors().join(format!("key/{key}.der")), folder.join(format!("{name}.der"))).unwrap();
        }
        for name in ["f", "g"] {
            fs::write(folder.join(name), "content\n").unwrap();
        }
        fs::write(folder.join("pin"), "1234\n").unwrap();
        Some(token)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.0.path()).stdin(Stdio::null()).env("SOFTHSM2_CONF", self.path("softhsm2.conf"));
        for name in ["EVMCTL_KEY_PASSWORD", "IMARA_KEY_PASSPHRASE", "PKCS11_MODULE_PATH"] {
            command.env_remove(name);
        }
        command.env("PKCS11_PROVIDER_MODULE", MODULE);
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let output = self.command(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
        output
    }

    fn evmctl(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.command(EVMCTL).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

#[test]
fn a_key_in_a_token_signs_what_its_certificate_verifies() {
    let Some(token) = SoftHsm::new("a_key_in_a_token_signs_what_its_certificate_verifies") else { return };
    let module = format!("pkcs11:token=build;object=rsa?module-path={MODULE}&pin-value=1234");
    let source = format!("pkcs11:token=build;object=rsa?pin-source=file:{}", token.path("pin").display());
    for (name, uri, more, certificate) in [
        ("by label", "pkcs11:token=build;object=rsa;type=private", &["-p1234"][..], "rsa.der"),
        ("by id", "pkcs11:token=build;id=%01", &["--pass=1234"], "rsa.der"),
        ("the only token", "pkcs11:object=rsa", &["-p1234"], "rsa.der"),
        ("ECDSA", "pkcs11:token=build;object=ec", &["-p1234"], "ec.der"),
        ("PIN in the URI", "pkcs11:token=build;object=rsa?pin-value=1234", &[], "rsa.der"),
        ("module in the URI", &module, &[], "rsa.der"),
        ("PIN in a file", &source, &[], "rsa.der"),
        ("with the engine asked for", "pkcs11:token=build;object=rsa", &["-p1234", "--engine", "pkcs11"], "rsa.der"),
        ("with the provider asked for", "pkcs11:object=rsa", &["-p1234", "--provider", "pkcs11"], "rsa.der"),
    ] {
        let id = ["--keyid-from-cert", certificate];
        let (status, told) = token.evmctl(&[&["ima_sign", "--xattr-user", "--key", uri, "f"], more, &id].concat());
        assert_eq!(status, Some(0), "{name}: {told}");
        let (status, told) = token.evmctl(&["ima_verify", "--xattr-user", "-k", certificate, "f"]);
        assert_eq!(status, Some(0), "{name}: {told}");
        let id: &[&str] = &["--keyid-from-cert", certificate, "--uuid", "--generation", "0"];
        let (status, told) = token.evmctl(&[&["sign", "--xattr-user", "--key", uri, "f"], more, id].concat());
        assert_eq!(status, Some(0), "{name}: {told}");
        let verify = ["verify", "--xattr-user", "--uuid", "--generation", "0", "-k", certificate, "f"];
        assert_eq!(token.evmctl(&verify).0, Some(0), "{name}");
    }
    // The label is the one that the same key in a file makes.
    let key = vectors().join("key/rsa2048.key");
    token.run(EVMCTL, &["ima_sign", "--xattr-user", "-k", key.to_str().unwrap(), "g"]);
    token.run(EVMCTL, &["ima_sign", "--xattr-user", "-k", "pkcs11:object=rsa", "-p1234", "--keyid", "0f44e507", "f"]);
    assert_eq!(
        super::both_ways::attribute(&token.path("f"), "user.ima"),
        super::both_ways::attribute(&token.path("g"), "user.ima")
    );
}

#[test]
fn the_pin_may_come_from_the_environment() {
    let Some(token) = SoftHsm::new("the_pin_may_come_from_the_environment") else { return };
    let uri = "pkcs11:token=build;object=rsa";
    let mut command = token.command(EVMCTL);
    command.args(["ima_sign", "-n", "--key", uri, "--keyid", "1", "f"]).env("EVMCTL_KEY_PASSWORD", "1234");
    assert!(command.output().unwrap().status.success());
    let mut command = token.command(IMARA);
    command.args(["sign", "--xattr-user", "--keyid", "1", "-k", uri, "f"]).env("IMARA_KEY_PASSPHRASE", "1234");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let label = super::both_ways::attribute(&token.path("f"), "user.ima");
    assert_eq!(label[3..7], [0, 0, 0, 1]);
}

#[test]
fn what_a_token_refuses_is_said() {
    let Some(token) = SoftHsm::new("what_a_token_refuses_is_said") else { return };
    for (uri, more, said) in [
        ("pkcs11:token=build;object=rsa", &["--keyid", "1"][..], "wants a PIN"),
        ("pkcs11:token=build;object=rsa", &["--keyid", "1", "-p9999"], "does not take this PIN"),
        ("pkcs11:token=build;object=none", &["--keyid", "1", "-p1234"], "has 0 private keys that are as the URI says"),
        ("pkcs11:token=build", &["--keyid", "1", "-p1234"], "has 2 private keys that are as the URI says"),
        ("pkcs11:token=other;object=rsa", &["--keyid", "1", "-p1234"], "no token is as the URI says; there are: "),
        ("pkcs11:token=build;object=rsa", &["-p1234"], "you must provide the keyid with an option"),
        (
            "pkcs11:object=rsa?module-path=/nonexistent.so",
            &["--keyid", "1", "-p1234"],
            "/nonexistent.so cannot be used",
        ),
        ("pkcs11:token", &["--keyid", "1", "-p1234"], "pkcs11:token"),
    ] {
        let (status, told) = token.evmctl(&[&["ima_sign", "-n", "--key", uri, "f"], more].concat());
        assert_eq!(status, Some(125), "{uri} {more:?}: {told}");
        assert!(told.contains(said), "{uri} {more:?}: {told}");
    }
}
