//! What `imara evm explain` finds out about a label that no longer fits.

use super::*;
use crate::evm::explain::{Candidates, Cause, Search, search};

fn candidates() -> Candidates {
    let content = hash(HashAlgorithm::Sha256, &[b"content"]).unwrap();
    Candidates { uids: vec![0, 33, 1000], gids: vec![0, 4, 1000], digests: vec![content] }
}

/// A file that was labelled as it was then, in this form, by this key.
fn labelled(form: Form, key_name: &str) -> Snapshot {
    let rules = debian(KernelVersion::Latest);
    let mut file = snapshot(&cases("evm/kernel_verdicts.json")[1]);
    let digest = hash(HashAlgorithm::Sha256, &[b"content"]).unwrap();
    file.xattrs.insert(SECURITY_IMA.into(), imara_format::label::encode_digest(&digest));
    let label = if form == Form::Hmac {
        file.hmac_label(&rules, &key(key_name)).unwrap()
    } else {
        let signer = SigningKey::from_pem(&vector(&format!("key/{key_name}")), None).unwrap();
        let form = SignatureForm { portable: form == Form::Portable, version: Version::V2 };
        sign(&file, form, &rules, HashAlgorithm::Sha256, &signer, None).unwrap().0
    };
    file.label = EvmLabel::Value(label);
    file
}

fn search_for(file: &Snapshot) -> Option<Search> {
    let (rules, keys, hmac) = (debian(KernelVersion::Latest), verdict_keys(), key("hmac32.bin"));
    let mode = EvmMode::HMAC | EvmMode::X509;
    let verifier = Verifier { rules: &rules, mode, hmac_key: Some(&hmac), keys: &keys };
    search(&verifier, file, &candidates(), &mut || true)
}

#[test]
fn the_one_attribute_that_changed_is_found_under_each_kind_of_label() {
    type Change = fn(&mut Snapshot);
    let changes: [(&str, Change); 7] = [
        ("mode", |file| file.inode.mode = 0o104_755),
        ("uid", |file| file.inode.uid = 12_345),
        ("gid", |file| file.inode.gid = 54_321),
        ("security.capability", |file| drop(file.xattrs.insert("security.capability".into(), vec![1]))),
        ("security.selinux", |file| drop(file.xattrs.insert("security.selinux".into(), vec![1]))),
        ("security.ima", |file| drop(file.xattrs.insert(SECURITY_IMA.into(), vec![4, 4, 7]))),
        ("security.ima", |file| drop(file.xattrs.remove(SECURITY_IMA))),
    ];
    for (form, key) in [
        (Form::Hmac, "hmac32.bin"),
        (Form::Signature, "rsa2048.key"),
        (Form::Portable, "rsa2048.key"),
        (Form::Portable, "p256.key"),
    ] {
        for (attribute, change) in changes {
            let good = labelled(form, key);
            let mut file = good.clone();
            change(&mut file);
            let found = search_for(&file).unwrap().cause;
            let expected = good.differences(&file);
            assert_eq!(expected[0].attribute(), attribute);
            assert_eq!(found, Some(Cause::Changed(expected)), "{form:?} by {key}: {attribute}");
        }
    }
}

#[test]
fn an_owner_that_was_given_away_with_its_group_is_found() {
    let good = labelled(Form::Hmac, "hmac32.bin");
    let mut file = good.clone();
    (file.inode.uid, file.inode.gid) = (1000, 1000);
    assert_eq!(search_for(&file).unwrap().cause, Some(Cause::Changed(good.differences(&file))));
}

#[test]
fn labels_made_by_other_rules_are_told_as_such() {
    let rules = debian(KernelVersion::Latest);
    let other = |change: fn(&mut Rules)| {
        let mut other = rules.clone();
        change(&mut other);
        let mut file = labelled(Form::Hmac, "hmac32.bin");
        file.xattrs.insert("security.SMACK64".into(), b"_".to_vec());
        file.label = EvmLabel::Value(file.hmac_label(&other, &key("hmac32.bin")).unwrap());
        match search_for(&file).unwrap().cause {
            Some(Cause::Rules(what)) => what,
            other => panic!("{other:?}"),
        }
    };
    assert!(other(|rules| rules.layout.bits_64 = false).contains("word size"));
    assert!(other(|rules| rules.fs_uuid = false).contains("UUID"));
    assert!(other(|rules| rules.xattrs = XattrList::evmctl(false)).contains("evmctl"));
    assert!(other(|rules| rules.layout.big_endian = true).contains("byte order"));
}

#[test]
fn what_cannot_be_found_is_not_made_up_and_a_search_can_be_ended() {
    let mut file = labelled(Form::Portable, "rsa2048.key");
    (file.inode.mode, file.inode.uid) = (0o100_600, 7);
    let search_all = search_for(&file).unwrap();
    assert_eq!((search_all.cause, search_all.cut_short), (None, false));
    assert!(search_all.tried > 4096);
    let (rules, keys) = (debian(KernelVersion::Latest), verdict_keys());
    let verifier = Verifier { rules: &rules, mode: EvmMode::X509, hmac_key: None, keys: &keys };
    let cut = search(&verifier, &file, &candidates(), &mut || false).unwrap();
    assert!(cut.cut_short && cut.tried <= 4096 && cut.cause.is_none());
    // Without a key, or without a label of which it could be asked, there is nothing to search.
    let hmac = labelled(Form::Hmac, "hmac32.bin");
    assert_eq!(search(&verifier, &hmac, &candidates(), &mut || true), None);
    for label in [EvmLabel::Absent, EvmLabel::Value(vec![]), EvmLabel::Value(vec![7; 30]), EvmLabel::Value(vec![5; 30])]
    {
        assert_eq!(search_for(&Snapshot { label, ..file.clone() }), None);
    }
}
