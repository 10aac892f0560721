//! EVM against what real kernels and evmctl did.

mod appraisal;
mod followed;
mod searched;

use super::hooks::{Follow, Operation, Ruling, Situation, follow, rule};
use super::key::PlainKey;
use super::*;
use crate::crypto::{KeyKind, PublicKey, SigningKey, hash};
use crate::evm::sign::{SignatureForm, Version, sign};
use crate::integrity_status::IntegrityStatus;
use crate::keyring::Keyring;
use imara_format::evm::{EvmMode, Form, InodeMetadata, MiscLayout, SECURITY_EVM, SECURITY_IMA, XattrList};
use imara_format::hash::{Digest, HashAlgorithm, from_hex, to_hex};
use imara_format::label::Label;
use imara_format::policy::KernelVersion;
use imara_format::signature::Signature;
use imara_format::uuid::Uuid;
use serde_json::Value;
use std::collections::BTreeMap;

fn vector(path: &str) -> Vec<u8> {
    let path = format!("{}/../../tests/vectors/{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn text(path: &str) -> String {
    String::from_utf8(vector(path)).unwrap()
}

fn cases(path: &str) -> Vec<Value> {
    serde_json::from_slice(&vector(path)).unwrap()
}

/// One JSON document a line, as `stat*.jsonl` have them.
fn lines(path: &str) -> Vec<Value> {
    text(path).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn string<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}"))
}

fn bytes(hex: &str) -> Vec<u8> {
    from_hex(hex).unwrap()
}

const UUID: &str = "6e1a2b3c-4d5e-4f60-8172-839405162738";

fn uuid(text: &str) -> [u8; 16] {
    let Uuid(bytes) = text.parse::<Uuid>().unwrap();
    bytes
}

/// A file as a vector describes it.
fn snapshot(value: &Value) -> Snapshot {
    let number = |name: &str| value[name].as_u64().unwrap_or_else(|| panic!("no {name} in {value}"));
    let mut xattrs: BTreeMap<String, Vec<u8>> = value["xattrs"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| (name.clone(), bytes(value.as_str().unwrap())))
        .collect();
    let label = xattrs.remove(SECURITY_EVM).map_or(EvmLabel::Absent, EvmLabel::Value);
    let fs_uuid = uuid(value["fsuuid"].as_str().unwrap_or(UUID));
    Snapshot {
        inode: InodeMetadata {
            inode: number("ino"),
            generation: number("generation") as u32,
            uid: number("uid") as u32,
            gid: number("gid") as u32,
            mode: u16::from_str_radix(string(value, "mode"), 8).unwrap(),
        },
        fs_uuid,
        unbound: None,
        place: Place::default(),
        xattrs,
        label,
    }
}

fn key(name: &str) -> PlainKey {
    PlainKey::new(&vector(&format!("key/{name}"))).unwrap()
}

fn debian(kernel: KernelVersion) -> Rules {
    Rules { kernel, layout: MiscLayout { bits_64: true, big_endian: false }, ..Rules::distribution() }
}

fn keyring(names: &[&str]) -> Keyring {
    names.iter().map(|name| PublicKey::from_bytes(&vector(name)).unwrap()).collect()
}

fn label_of(snapshot: &Snapshot, rules: &Rules, key: &dyn HmacKey) -> String {
    to_hex(&snapshot.hmac_label(rules, key).unwrap())
}

#[test]
fn hmacs_are_those_that_evmctl_makes() {
    let all = cases("evm/evm_hmac.json");
    assert_eq!(all.len(), 34);
    for case in all {
        let rules = Rules {
            layout: MiscLayout { bits_64: case["bits"] == 64, big_endian: false },
            fs_uuid: case["fsuuid"].is_string(),
            xattrs: XattrList::evmctl(case["smack_extra"] == true),
            ..debian(KernelVersion::Latest)
        };
        let file = snapshot(&case);
        assert_eq!(to_hex(&file.inode.misc(Form::Hmac, rules.layout)), string(&case, "hmac_misc"), "{case}");
        assert_eq!(to_hex(&file.stream(Form::Hmac, &rules)), string(&case, "hmac_input"), "{case}");
        assert_eq!(label_of(&file, &rules, &key(string(&case, "key"))), string(&case, "security_evm"), "{case}");
    }
}

#[test]
fn hmacs_are_those_that_kernels_write() {
    let all = cases("evm/kernel_made_hmac.json");
    assert_eq!(all.len(), 14);
    for case in all {
        let enabled: Vec<&str> =
            case["enabled_xattrs_in_order"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        let rules = Rules { xattrs: XattrList::from_text(&enabled.join("\n")), ..debian(KernelVersion::V6_12) };
        assert_eq!(rules.xattrs.enabled().collect::<Vec<_>>(), enabled);
        let file = snapshot(&case);
        assert_eq!(to_hex(&file.stream(Form::Hmac, &rules)), string(&case, "hmac_input"), "{case}");
        assert_eq!(label_of(&file, &rules, &key(string(&case, "key"))), string(&case, "security_evm"), "{case}");
    }
}

#[test]
fn every_hmac_of_whole_kernel_sessions_is_made_again() {
    let rules = debian(KernelVersion::V6_1);
    let mut made_again = 0;
    for (key, files) in [
        (
            "hmac/evm-key.plain.hex",
            &[
                "hmac/stat0",
                "hmac/stat1",
                "hmac/stat2",
                "hmac/stat2a",
                "hmac/stat3",
                "hmac/stat4",
                "hmac/stat5",
                "hmac/stat6",
                "hmac/stat7",
            ][..],
        ),
        (
            "hmac-key32/evm-key.plain.hex",
            &[
                "hmac-key32/stat0",
                "hmac-key32/stat1",
                "hmac-key32/stat2",
                "hmac-key32/stat2a",
                "hmac-key32/stat3",
                "hmac-key32/stat4",
                "hmac-key32/stat5",
                "hmac-key32/stat6",
                "hmac-key32/stat7",
            ],
        ),
        (
            "seed-flow/boot0/evm-key.plain.hex",
            &["seed-flow/boot0/stat", "seed-flow/boot2/stat", "seed-flow/boot2/stat2"],
        ),
        ("signatures-hmac/boot1/evm-key.plain.hex", &["signatures-hmac/boot1/stat0", "signatures-hmac/boot1/stat1"]),
    ] {
        let key = PlainKey::new(&bytes(text(&format!("evm/kernel/{key}")).trim())).unwrap();
        for name in files {
            for case in lines(&format!("evm/kernel/{name}.jsonl")) {
                let file = snapshot(&case);
                // Labels written by hand, or left behind by a program's own signature, are not the kernel's.
                if file.label.kind() == Some(HMAC_TYPE) && file.label.value() != Some(&[&[2][..], &[0; 20]].concat()) {
                    assert_eq!(label_of(&file, &rules, &key), to_hex(file.label.value().unwrap()), "{name}: {case}");
                    made_again += 1;
                }
            }
        }
    }
    assert!(made_again > 100, "{made_again}");
}

/// The files that evmctl signed are those that it made HMACs of.
fn signed_file(name: &str) -> Snapshot {
    let case = cases("evm/evm_hmac.json").into_iter().find(|case| case["file"] == name).unwrap();
    Snapshot { fs_uuid: uuid(UUID), ..snapshot(&case) }
}

fn all_certificates() -> Keyring {
    keyring(&["key/rsa2048.der", "key/rsa1024.der", "key/p256.der", "key/p384.der", "key/rsa2048-ownskid.der"])
}

#[test]
fn evmctls_signatures_are_made_again_and_verify() {
    let certificates = all_certificates();
    let (mut verified, mut made_again) = (0, 0);
    for case in cases("signature/signatures.json") {
        let kind = string(&case, "kind");
        let form = match kind {
            "ima" => continue,
            "evm" | "evm-nouuid" | "evm-m32" => Form::Signature,
            "evm-portable" => Form::Portable,
            "evm-immutable" => Form::EvmctlImmutable,
            other => panic!("{other}"),
        };
        let rules = Rules {
            layout: MiscLayout { bits_64: kind != "evm-m32", big_endian: false },
            fs_uuid: kind != "evm-nouuid",
            xattrs: XattrList::evmctl(false),
            ..debian(KernelVersion::V6_12)
        };
        let algorithm = HashAlgorithm::from_name(string(&case, "hash")).unwrap();
        let label = bytes(string(&case, "xattr"));
        let file = Snapshot { label: EvmLabel::Value(label.clone()), ..signed_file(string(&case, "file")) };
        assert_eq!(to_hex(&file.stream(form, &rules)), string(&case, "digest_input"), "{case}");
        assert_eq!(file.digest(form, &rules, algorithm).unwrap().to_hex(), string(&case, "digest"), "{case}");
        let verifier = Verifier { rules: &rules, mode: EvmMode::X509, hmac_key: None, keys: &certificates };
        let found = verifier.status(&file);
        let expected = match form {
            Form::Signature => IntegrityStatus::Pass,
            Form::Portable => IntegrityStatus::PassImmutable,
            // No kernel takes it, and no Imara.
            Form::EvmctlImmutable | Form::Hmac => IntegrityStatus::Fail,
        };
        assert_eq!(found.status, expected, "{case}: {:?}", found.reason);
        if form != Form::EvmctlImmutable {
            assert_eq!(to_hex(&found.signer.unwrap().key_id()), string(&case, "keyid"));
            verified += 1;
            let signer = SigningKey::from_pem(&vector(&format!("key/{}", string(&case, "key"))), None).unwrap();
            let as_signed = SignatureForm { portable: form == Form::Portable, version: Version::V2 };
            let (again, digest) = sign(&file, as_signed, &rules, algorithm, &signer, None).unwrap();
            assert_eq!(digest.to_hex(), string(&case, "digest"));
            if matches!(signer.kind(), KeyKind::Rsa(_)) {
                assert_eq!(again, label, "{case}");
                made_again += 1;
            }
            let again = Snapshot { label: EvmLabel::Value(again), ..file };
            assert_eq!(verifier.status(&again).status, expected);
        }
    }
    assert_eq!((verified, made_again), (48, 28));
}

#[test]
fn evmctls_version_1_signatures_are_over_what_evmctl_says() {
    // No kernel verifies these, since the byte that it takes for the hash is the timestamp's lowest: 0x6b.
    for case in cases("signature/signatures_other.json") {
        if string(&case, "kind") != "evm-v1" {
            continue;
        }
        let rules = Rules { xattrs: XattrList::evmctl(false), ..debian(KernelVersion::V6_12) };
        let label = bytes(string(&case, "xattr"));
        let algorithm = HashAlgorithm::from_name(string(&case, "hash")).unwrap();
        let file = Snapshot { label: EvmLabel::Value(label.clone()), ..signed_file("f1") };
        let digest = file.digest(Form::Signature, &rules, algorithm).unwrap();
        assert_eq!(digest.to_hex(), string(&case, "digest"));
        let Ok(Label::Signature(Signature::V1(signature))) = Label::parse_evm(&label) else { panic!("{case}") };
        let public = string(&case, "key").replace(".key", ".pub");
        let keys = keyring(&[&format!("key/{public}")]);
        assert!(keys.verify_v1(&signature, &digest).is_ok(), "{case}");
        let verifier = Verifier { rules: &rules, mode: EvmMode::X509, hmac_key: None, keys: &keys };
        let found = verifier.status(&file);
        assert_eq!((found.status, found.reason), (IntegrityStatus::Fail, Some(Reason::Hash(0x6b))));
    }
}

fn status_of(name: &str) -> IntegrityStatus {
    *IntegrityStatus::ALL
        .iter()
        .find(|status| status.words().replace('_', "").eq_ignore_ascii_case(&name.replace('_', "")))
        .unwrap_or_else(|| panic!("{name}"))
}

fn verdict_keys() -> Keyring {
    // The version 1 key is the bare RSA key.
    keyring(&["key/rsa2048.der", "key/p256.der", "key/rsa2048.pub"])
}

#[test]
fn every_status_is_the_kernels() {
    let (keys, hmac) = (verdict_keys(), key("hmac32.bin"));
    let all = cases("evm/kernel_verdicts.json");
    assert_eq!(all.len(), 21);
    for case in all {
        let file = snapshot(&case);
        let (state, expected) = (string(&case, "state"), status_of(string(&case, "status")));
        for kernel in [KernelVersion::V6_1, KernelVersion::V6_12, KernelVersion::Latest] {
            let rules = debian(kernel);
            let mode = EvmMode::HMAC | EvmMode::X509;
            let with_key = Verifier { rules: &rules, mode, hmac_key: Some(&hmac), keys: &keys };
            let expected = match state {
                "port_v3" if kernel == KernelVersion::Latest => IntegrityStatus::PassImmutable,
                _ => expected,
            };
            let found = with_key.status(&file);
            assert_eq!(found.status, expected, "{state} on {kernel:?}: {:?}", found.reason);
            assert_eq!(found.reason.is_none(), expected.passes(), "{state}");
            assert_eq!(found.becomes.is_some(), matches!(state, "sig" | "sig_ec" | "v1"), "{state}");
            let without = Verifier { mode: EvmMode::X509, hmac_key: None, ..with_key };
            let expected = match state {
                "good" | "hmac_noprot" => IntegrityStatus::Fail,
                _ => expected,
            };
            assert_eq!(without.status(&file).status, expected, "{state} on {kernel:?} without a key");
            // Signatures are verified whether the bit for them is set or not.
            let mode = EvmMode::HMAC;
            assert_eq!(Verifier { mode, ..with_key }.status(&file).status, found.status, "{state}");
        }
    }
}

#[test]
fn without_a_key_or_for_other_attributes_nothing_is_judged() {
    let (keys, rules) = (verdict_keys(), debian(KernelVersion::V6_12));
    let bad = cases("evm/kernel_verdicts.json").into_iter().find(|case| case["state"] == "bad").unwrap();
    let verifier = |mode| Verifier { rules: &rules, mode, hmac_key: None, keys: &keys };
    let ask = |mode, name| verifier(mode).verify_xattr(name, &snapshot(&bad)).status;
    for mode in [EvmMode::NONE, EvmMode::ALLOW_METADATA_WRITES, EvmMode::SETUP_COMPLETE] {
        assert_eq!(ask(mode, SECURITY_IMA), IntegrityStatus::Unknown, "{mode}");
    }
    assert_eq!(ask(EvmMode::X509, SECURITY_IMA), IntegrityStatus::Fail);
    assert_eq!(ask(EvmMode::X509, "security.SMACK64"), IntegrityStatus::Unknown);
    assert_eq!(ask(EvmMode::X509, "user.x"), IntegrityStatus::Unknown);
}

#[test]
fn places_change_what_is_found() {
    let (keys, hmac) = (verdict_keys(), key("hmac32.bin"));
    let named = |state: &str| {
        snapshot(&cases("evm/kernel_verdicts.json").into_iter().find(|case| case["state"] == state).unwrap())
    };
    let at = |state: &str, change: fn(&mut Snapshot), kernel, mode| {
        let mut file = named(state);
        change(&mut file);
        let rules = debian(kernel);
        let found = Verifier { rules: &rules, mode, hmac_key: Some(&hmac), keys: &keys }.status(&file);
        (found.status, found.becomes.is_some())
    };
    use IntegrityStatus as S;
    let both = EvmMode::HMAC | EvmMode::X509;
    let (old, new) = (KernelVersion::V6_1, KernelVersion::V6_12);
    let overlay: fn(&mut Snapshot) = |file| file.place.overlay = true;
    let foreign: fn(&mut Snapshot) = |file| file.place.foreign = true;
    let read_only: fn(&mut Snapshot) = |file| file.place.read_only = true;
    let unsupported: fn(&mut Snapshot) = |file| file.label = EvmLabel::Unsupported;
    let unbound: fn(&mut Snapshot) = |file| file.unbound = Some("unknown".into());
    let unreadable: fn(&mut Snapshot) = |file| file.label = EvmLabel::Unreadable;
    for (name, change, kernel, mode, state, expected) in [
        ("overlayfs, only HMACs", overlay, new, EvmMode::HMAC, "good", (S::Unknown, false)),
        ("overlayfs before it had rules", overlay, old, EvmMode::HMAC, "good", (S::Pass, false)),
        ("overlayfs, signatures", overlay, new, both, "port", (S::PassImmutable, false)),
        ("a signature on overlayfs stays one", overlay, new, both, "sig", (S::Pass, false)),
        ("and became an HMAC once", overlay, old, both, "sig", (S::Pass, true)),
        ("a signature on a read-only mount stays one", read_only, new, both, "sig", (S::Pass, false)),
        ("another user namespace", foreign, new, both, "good", (S::Fail, false)),
        ("another user namespace, portable", foreign, new, both, "port", (S::FailImmutable, false)),
        ("no attributes", unsupported, new, both, "good", (S::Unknown, false)),
        ("no generation", unbound, new, both, "good", (S::Fail, false)),
        ("no generation, type 3", unbound, new, both, "sig", (S::Fail, false)),
        ("no generation, portable", unbound, new, both, "port", (S::PassImmutable, false)),
        ("unreadable", unreadable, new, both, "good", (S::Fail, false)),
        ("a signature without the HMAC bit stays one", |_| (), new, EvmMode::X509, "sig", (S::Pass, false)),
    ] {
        assert_eq!(at(state, change, kernel, mode), expected, "{name}");
    }
}

#[test]
fn from_7_1_on_version_3_can_be_required() {
    let (keys, rules) = (verdict_keys(), debian(KernelVersion::Latest));
    let signer = SigningKey::from_pem(&vector("key/rsa2048.key"), None).unwrap();
    let plain = snapshot(&cases("evm/kernel_verdicts.json")[1]);
    for (portable, version, required, expected) in [
        (false, Version::V2, false, IntegrityStatus::Pass),
        (false, Version::V3, false, IntegrityStatus::Pass),
        (false, Version::V2, true, IntegrityStatus::Fail),
        (false, Version::V3, true, IntegrityStatus::Pass),
        (true, Version::V2, true, IntegrityStatus::FailImmutable),
        (true, Version::V3, true, IntegrityStatus::PassImmutable),
    ] {
        let form = SignatureForm { portable, version };
        let (label, _) = sign(&plain, form, &rules, HashAlgorithm::Sha256, &signer, None).unwrap();
        let file = Snapshot { label: EvmLabel::Value(label), ..plain.clone() };
        let mode = if required { EvmMode::X509 | EvmMode::SIGV3_REQUIRED } else { EvmMode::X509 };
        let found = Verifier { rules: &rules, mode, hmac_key: None, keys: &keys }.status(&file);
        assert_eq!(found.status, expected, "{form:?}, required {required}: {:?}", found.reason);
        // Older kernels know neither the bit nor the version.
        let older = debian(KernelVersion::V6_12);
        let found = Verifier { rules: &older, mode, hmac_key: None, keys: &keys }.status(&file);
        assert_eq!(found.status.passes(), version == Version::V2, "{form:?}");
        let newer = matches!(found.reason, Some(Reason::NewVersion(3)));
        assert_eq!(newer, version == Version::V3, "{form:?}: {:?}", found.reason);
    }
}

#[test]
fn what_would_protect_nothing_is_not_signed() {
    let rules = debian(KernelVersion::Latest);
    let signer = SigningKey::from_pem(&vector("key/p256.key"), None).unwrap();
    let none = snapshot(&cases("evm/kernel_verdicts.json")[0]);
    let try_to = |portable, file: &Snapshot| {
        let form = SignatureForm { portable, version: Version::V2 };
        sign(file, form, &rules, HashAlgorithm::Sha256, &signer, None).map(|_| ()).map_err(|error| error.to_string())
    };
    assert!(try_to(true, &none).unwrap_err().contains("security.ima"));
    assert!(try_to(false, &none).unwrap_err().contains("no attribute"));
    let mut labelled = none;
    labelled.xattrs.insert("security.capability".into(), vec![1]);
    assert_eq!(try_to(false, &labelled), Ok(()));
    assert!(try_to(true, &labelled).is_err());
}

/// Signatures, attributes and metadata as kernel sessions left them: what the kernel judged good verifies, to the file.
#[test]
fn files_of_kernel_sessions_are_judged_as_the_kernel_judged_them() {
    let rules = debian(KernelVersion::V6_1);
    let keys = keyring(&["evm/kernel/keys/evm.der", "evm/kernel/keys/rsa4096.der", "evm/kernel/keys/v1.pub"]);
    let hmac = PlainKey::new(&bytes(text("evm/kernel/signatures-hmac/boot1/evm-key.plain.hex").trim())).unwrap();
    for (session, mode, hmac) in [
        ("signatures", EvmMode::X509, None),
        ("signatures-hmac", EvmMode::HMAC | EvmMode::X509, Some(&hmac as &dyn HmacKey)),
    ] {
        let verifier = Verifier { rules: &rules, mode, hmac_key: hmac, keys: &keys };
        let stdout = text(&format!("evm/kernel/{session}/boot1/stdout"));
        let (before, after) = stdout.split_once("CASE chmod").unwrap();
        assert!(after.contains("CASE reread"));
        let mut judged = 0;
        for case in lines(&format!("evm/kernel/{session}/boot0/stat.jsonl")) {
            let path = string(&case, "path");
            if !path.ends_with("-alpha") {
                continue;
            }
            let opened = before.lines().find(|line| line.starts_with(&format!("read {path} ="))).is_some();
            let found = verifier.verify_xattr(SECURITY_IMA, &snapshot(&case));
            assert_eq!(found.status.passes(), opened, "{path}: {:?}", found.reason);
            judged += 1;
            // What became an HMAC did so to the byte.
            if let Some(label) = found.becomes {
                let after = lines(&format!("evm/kernel/{session}/boot1/stat0.jsonl"));
                let after = after.iter().find(|case| case["path"] == path).unwrap();
                assert_eq!(to_hex(&label), after["xattrs"][SECURITY_EVM], "{path}");
            }
        }
        assert_eq!(judged, 16, "{session}");
    }
}

/// A file on which the operations of `kernel_decisions.csv` are done.
struct Simulated<'a> {
    file: Snapshot,
    verifier: Verifier<'a>,
    situation: Situation,
    acl: bool,
}

struct Outcome {
    result: &'static str,
    audits: Vec<String>,
}

impl Simulated<'_> {
    fn status(&mut self) -> IntegrityStatus {
        let found = self.verifier.status(&self.file);
        if let Some(label) = found.becomes {
            self.file.label = EvmLabel::Value(label);
        }
        found.status
    }

    /// Rules on an operation, does it, and does what follows.
    fn make(
        &mut self,
        operation: Operation<'_>,
        change: impl FnOnce(&mut Snapshot) -> Option<&'static str>,
    ) -> Outcome {
        let (xattrs, situation) = (self.verifier.rules.xattrs.clone(), self.situation);
        let mut asked = None;
        let ruling = rule(operation, &situation, &xattrs, || {
            let status = self.status();
            asked = Some(status);
            status
        });
        match ruling {
            Ruling::Refuse { errno, audits, status } => {
                assert_eq!(status, asked);
                let cause = status.map_or("", IntegrityStatus::words);
                let mut audits: Vec<_> = audits.iter().map(|op| format!("{op}:{cause}")).collect();
                audits.sort();
                Outcome { result: errno, audits }
            }
            Ruling::Allow => {
                if let Some(errno) = change(&mut self.file) {
                    return Outcome { result: errno, audits: Vec::new() };
                }
                let Follow { relabel, .. } = follow(operation, &situation, &xattrs);
                if relabel && self.file.label.kind() != Some(PORTABLE_TYPE) {
                    let rules = self.verifier.rules;
                    self.file.label = if self.file.is_covered(Form::Hmac, rules) {
                        let key = self.verifier.hmac_key.unwrap();
                        EvmLabel::Value(self.file.hmac_label(rules, key).unwrap())
                    } else {
                        EvmLabel::Absent
                    };
                }
                Outcome { result: "ok", audits: Vec::new() }
            }
        }
    }

    fn set(&mut self, name: &str, value: &[u8]) -> Outcome {
        let before =
            if name == SECURITY_EVM { self.file.label.value() } else { self.file.xattrs.get(name).map(|v| &**v) };
        let unchanged = before == Some(value);
        self.make(Operation::SetXattr { name, value, unchanged }, |file| {
            match name {
                SECURITY_EVM => file.label = EvmLabel::Value(value.to_vec()),
                name => drop(file.xattrs.insert(name.to_owned(), value.to_vec())),
            }
            None
        })
    }

    fn remove(&mut self, name: &str) -> Outcome {
        self.make(Operation::RemoveXattr { name }, |file| {
            let was = match name {
                SECURITY_EVM => std::mem::replace(&mut file.label, EvmLabel::Absent) != EvmLabel::Absent,
                name => file.xattrs.remove(name).is_some(),
            };
            (!was).then_some("ENODATA")
        })
    }

    fn attributes(&mut self, protected: bool, change: impl Fn(&mut InodeMetadata)) -> Outcome {
        let mut inode = self.file.inode;
        change(&mut inode);
        let unchanged = inode == self.file.inode;
        self.make(Operation::SetAttr { protected, unchanged }, |file| {
            file.inode = inode;
            None
        })
    }

    fn set_acl(&mut self, mode: u16) -> Outcome {
        let mode_unchanged = mode == self.file.inode.mode;
        let outcome = self.make(Operation::SetAcl { mode_unchanged }, |file| {
            file.inode.mode = mode;
            None
        });
        self.acl |= outcome.result == "ok";
        outcome
    }

    fn operate(&mut self, operation: &str) -> Outcome {
        let mode = self.file.inode.mode;
        let ima = self.file.xattrs.get(SECURITY_IMA).cloned();
        let other = [&[4, 4][..], &[0x5a; 32]].concat();
        match operation {
            "ima_same" => self.set(SECURITY_IMA, &ima.unwrap_or(other)),
            "ima_diff" => self.set(SECURITY_IMA, &other),
            "ima_rm" => self.remove(SECURITY_IMA),
            "evm_sig3" => self.set(SECURITY_EVM, &[3, 2, 4, 0]),
            "evm_sig5" => self.set(SECURITY_EVM, &[5, 2, 4, 0]),
            "evm_hmac" => self.set(SECURITY_EVM, &[&[2][..], &[0; 20]].concat()),
            "evm_rm" => self.remove(SECURITY_EVM),
            "user" => self.set("user.x", b"1"),
            "caps" => self.set("security.capability", &bytes("0100000200200000000000000000000000000000")),
            "chmod_same" => self.attributes(true, |inode| inode.mode = mode),
            "chmod_diff" => self.attributes(true, |inode| inode.mode = mode ^ 0o100),
            "chown_same" => self.attributes(true, |_| ()),
            "chown_diff" => self.attributes(true, |inode| inode.uid += 1),
            "acl_same" => self.set_acl(mode),
            "acl_diff" => self.set_acl(mode ^ 0o020),
            "acl_rm" => self.make(Operation::RemoveAcl, |_| None),
            "utime" => self.attributes(false, |_| ()),
            other => panic!("{other}"),
        }
    }
}

/// What became of the label, in the words of the table.
fn label_now(before: &EvmLabel, now: &EvmLabel) -> String {
    match now.value() {
        _ if before == now => "unchanged".into(),
        None => "absent".into(),
        Some(&[HMAC_TYPE, ..]) => "hmac".into(),
        Some(label) => format!("starts {}", to_hex(&label[..3])),
    }
}

#[test]
fn every_change_is_ruled_on_and_followed_as_the_kernel_does() {
    let files: BTreeMap<String, Snapshot> = cases("evm/kernel_verdicts.json")
        .iter()
        .map(|case| (string(case, "state").to_owned(), snapshot(case)))
        .collect();
    let hmac = key("hmac32.bin");
    let mut tried = 0;
    for row in text("evm/kernel_decisions.csv").lines().skip(1) {
        let [mode, kernel, state, operation, result, label, audit] = row.split(',').collect::<Vec<_>>()[..] else {
            panic!("{row}")
        };
        let mode = EvmMode::parse(mode.as_bytes()).unwrap();
        // As the kernel does it by itself where the key is loaded.
        let mode = if mode.contains(EvmMode::HMAC) { mode | EvmMode::SETUP_COMPLETE } else { mode };
        let kernel = if kernel.starts_with("6.1.") { KernelVersion::V6_1 } else { KernelVersion::V6_12 };
        let rules = debian(kernel);
        // Debian's 6.1 has no ECDSA.
        let keys = match kernel {
            KernelVersion::V6_1 => keyring(&["key/rsa2048.der", "key/rsa2048.pub"]),
            _ => verdict_keys(),
        };
        let hmac_key = mode.contains(EvmMode::HMAC).then_some(&hmac as &dyn HmacKey);
        let file = files[state].clone();
        let mut simulated = Simulated {
            file: file.clone(),
            verifier: Verifier { rules: &rules, mode, hmac_key, keys: &keys },
            situation: Situation {
                mode,
                kernel,
                privileged: true,
                regular: true,
                fix: false,
                overlay: false,
                pseudo: false,
                new: false,
            },
            acl: false,
        };
        let Outcome { result: found, audits } = simulated.operate(operation);
        // Where there is no attribute to remove the kernel says so after it has ruled.
        assert_eq!(found, result, "{row}");
        assert_eq!(label_now(&file.label, &simulated.file.label), label, "{row}");
        let mut expected: Vec<&str> = audit.split(' ').filter(|record| !record.is_empty()).collect();
        expected.sort_unstable();
        assert_eq!(audits, expected, "{row}");
        tried += 1;
    }
    assert_eq!(tried, 21 * 17 * 6);
}

#[test]
fn exceptions_to_the_table_are_the_kernels() {
    use IntegrityStatus as S;
    let xattrs = XattrList::debian();
    let (old, new) = (KernelVersion::V6_1, KernelVersion::V6_12);
    let usual = Situation {
        mode: EvmMode::HMAC | EvmMode::SETUP_COMPLETE,
        kernel: new,
        privileged: true,
        regular: true,
        fix: false,
        overlay: false,
        pseudo: false,
        new: false,
    };
    let set_ima = Operation::SetXattr { name: SECURITY_IMA, value: &[4], unchanged: false };
    let set_evm = Operation::SetXattr { name: SECURITY_EVM, value: &[3], unchanged: false };
    let chmod = Operation::SetAttr { protected: true, unchanged: false };
    for (name, operation, situation, status, expected) in [
        ("a new file gets its attributes", set_ima, Situation { new: true, ..usual }, S::NoXattrs, None),
        ("as on tmpfs", set_ima, Situation { pseudo: true, ..usual }, S::NoXattrs, None),
        ("that is for files without any alone", set_ima, Situation { new: true, ..usual }, S::NoLabel, Some("EPERM")),
        ("fix mode", set_ima, Situation { fix: true, ..usual }, S::Fail, None),
        (
            "fix mode, an HMAC by hand",
            Operation::SetXattr { name: SECURITY_EVM, value: &[2], unchanged: false },
            Situation { fix: true, ..usual },
            S::Pass,
            Some("EPERM"),
        ),
        (
            "an empty label",
            Operation::SetXattr { name: SECURITY_EVM, value: &[], unchanged: false },
            usual,
            S::Pass,
            Some("EINVAL"),
        ),
        ("a directory", chmod, Situation { regular: false, ..usual }, S::Fail, None),
        ("an unprivileged writer", set_evm, Situation { privileged: false, ..usual }, S::Pass, Some("EPERM")),
        ("overlayfs, the label", set_evm, Situation { overlay: true, ..usual }, S::Pass, Some("EPERM")),
        ("overlayfs, before it had rules", set_evm, Situation { overlay: true, kernel: old, ..usual }, S::Pass, None),
        ("overlayfs, a protected attribute", set_ima, Situation { overlay: true, ..usual }, S::Fail, None),
        ("overlayfs, the mode", chmod, Situation { overlay: true, ..usual }, S::Fail, None),
        ("writes allowed", set_ima, Situation { mode: EvmMode(6), ..usual }, S::Fail, None),
        ("the lock alone", set_ima, Situation { mode: EvmMode::SETUP_COMPLETE, ..usual }, S::Fail, None),
    ] {
        let found = match rule(operation, &situation, &xattrs, || status) {
            Ruling::Allow => None,
            Ruling::Refuse { errno, .. } => Some(errno),
        };
        assert_eq!(found, expected, "{name}");
    }
    let removal = Operation::RemoveXattr { name: SECURITY_IMA };
    let overlay = Situation { overlay: true, ..usual };
    assert!(!follow(set_ima, &overlay, &xattrs).relabel);
    assert!(follow(removal, &overlay, &xattrs).relabel);
    assert!(
        !follow(Operation::SetXattr { name: "user.x", value: &[], unchanged: false }, &usual, &xattrs).forget_status
    );
    let times = Operation::SetAttr { protected: false, unchanged: false };
    assert_eq!(follow(times, &usual, &xattrs), Follow { forget_status: true, relabel: false });
}

#[test]
fn a_portable_signature_does_not_depend_on_place_and_one_of_type_3_does() {
    let rules = debian(KernelVersion::Latest);
    let signer = SigningKey::from_pem(&vector("key/rsa2048.key"), None).unwrap();
    let keys = verdict_keys();
    let plain = snapshot(&cases("evm/kernel_verdicts.json")[1]);
    for portable in [false, true] {
        let form = SignatureForm { portable, version: Version::V2 };
        let (label, _) = sign(&plain, form, &rules, HashAlgorithm::Sha256, &signer, None).unwrap();
        let mut moved = Snapshot { label: EvmLabel::Value(label), ..plain.clone() };
        moved.inode.inode += 1;
        moved.inode.generation += 1;
        moved.fs_uuid = [7; 16];
        let verifier = Verifier { rules: &rules, mode: EvmMode::X509, hmac_key: None, keys: &keys };
        assert_eq!(verifier.status(&moved).status.passes(), portable);
        // It covers attributes that are not enabled, too.
        moved.xattrs.insert("security.SMACK64".into(), b"_".to_vec());
        assert!(!verifier.status(&moved).status.passes());
        moved.xattrs.remove("security.SMACK64");
        moved.inode.mode ^= 1;
        assert!(!verifier.status(&moved).status.passes());
    }
}

#[test]
fn one_changed_bit_of_anything_protected_is_found() {
    let (rules, hmac, keys) = (debian(KernelVersion::Latest), key("hmac128.bin"), Keyring::new());
    let case = cases("evm/evm_hmac.json").into_iter().next().unwrap();
    let mut good = snapshot(&case);
    good.label = EvmLabel::Value(good.hmac_label(&rules, &hmac).unwrap());
    let verifier = Verifier { rules: &rules, mode: EvmMode::HMAC, hmac_key: Some(&hmac), keys: &keys };
    let mut changed: Vec<(&str, Snapshot)> = Vec::new();
    let mut with = |name, change: &dyn Fn(&mut Snapshot)| {
        let mut file = good.clone();
        change(&mut file);
        changed.push((name, file));
    };
    with("inode", &|file| file.inode.inode ^= 1 << 40);
    with("generation", &|file| file.inode.generation ^= 1 << 31);
    with("uid", &|file| file.inode.uid ^= 1 << 16);
    with("gid", &|file| file.inode.gid ^= 1);
    with("mode", &|file| file.inode.mode ^= 0o4000);
    with("type", &|file| file.inode.mode ^= 0o020_000);
    with("uuid", &|file| file.fs_uuid[15] ^= 1);
    for name in ["security.selinux", "security.ima", "security.capability"] {
        with(name, &|file| *file.xattrs.get_mut(name).unwrap().last_mut().unwrap() ^= 0x80);
        with(name, &|file| drop(file.xattrs.remove(name)));
    }
    with("a new attribute", &|file| drop(file.xattrs.insert("security.apparmor".into(), vec![1])));
    with("the label", &|file| {
        let EvmLabel::Value(label) = &mut file.label else { panic!() };
        label[20] ^= 1;
    });
    assert_eq!(verifier.status(&good).status, IntegrityStatus::Pass);
    for (name, file) in changed {
        assert_eq!(verifier.status(&file).status, IntegrityStatus::Fail, "{name}");
    }
    // Nothing else counts.
    good.xattrs.insert("security.SMACK64".into(), b"_".to_vec());
    good.xattrs.insert("security.foo".into(), b"x".to_vec());
    assert_eq!(verifier.status(&good).status, IntegrityStatus::Pass);
}

#[test]
fn values_are_hashed_without_anything_between_them() {
    let rules = debian(KernelVersion::Latest);
    let mut file = snapshot(&cases("evm/kernel_verdicts.json")[0]);
    file.xattrs.insert("security.selinux".into(), b"ab".to_vec());
    file.xattrs.insert("security.apparmor".into(), b"c".to_vec());
    let one = file.digest(Form::Signature, &rules, HashAlgorithm::Sha256).unwrap();
    file.xattrs.insert("security.selinux".into(), b"a".to_vec());
    file.xattrs.insert("security.apparmor".into(), b"bc".to_vec());
    assert_eq!(file.digest(Form::Signature, &rules, HashAlgorithm::Sha256).unwrap(), one);
    let stream = file.stream(Form::Signature, &rules);
    assert_eq!(hash(HashAlgorithm::Sha256, &[&stream]), Ok(one));
    assert_ne!(one, Digest::zeros(HashAlgorithm::Sha256));
}

proptest::proptest! {
    #[test]
    fn any_label_is_judged_without_a_panic_and_never_passes_by_chance(label: Vec<u8>, kind in 0u8..8) {
        let (rules, hmac, keys) = (debian(KernelVersion::Latest), key("hmac32.bin"), verdict_keys());
        let mut file = snapshot(&cases("evm/kernel_verdicts.json")[1]);
        file.label = EvmLabel::Value([vec![kind], label].concat());
        let mode = EvmMode::HMAC | EvmMode::X509;
        let found = Verifier { rules: &rules, mode, hmac_key: Some(&hmac), keys: &keys }.status(&file);
        proptest::prop_assert!(!found.status.passes());
        proptest::prop_assert!(found.reason.is_some());
    }
}
