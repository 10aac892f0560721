//! Rules that go by the fs-verity digest.

use super::*;
use crate::crypto::{KeyType, SigningKey};
use imara_format::block_list::Blocked;

fn key() -> SigningKey {
    SigningKey::generate(KeyType::P256).unwrap()
}

fn keyring(key: &SigningKey) -> Keyring {
    [key.public_key().unwrap()].into_iter().collect()
}

#[test]
fn a_rule_that_goes_by_the_fs_verity_digest_reads_nothing_and_takes_nothing_else() {
    let key = key();
    let [verity, other] = [b"tree", b"leaf"].map(|bytes| crypto::hash(HashAlgorithm::Sha256, &[bytes]).unwrap());
    let sign = |digest| Some(crate::label::sign_verity(digest, &key, None).unwrap());
    let content = Some(crate::label::sign(&crypto::hash(HashAlgorithm::Sha256, &[b"x"]).unwrap(), &key, None).unwrap());
    let measure = "measure func=BPRM_CHECK digest_type=verity template=ima-ngv2";
    let appraise = "appraise func=BPRM_CHECK digest_type=verity appraise_type=sigv3";
    let denied = |cause| Verdict::Deny(cause);
    for (rules, enabled, label, expected, entries, cause) in [
        (measure, None, None, Verdict::Allow, 0, Some(Cause::NoVerityDigest)),
        (measure, Some(verity), None, Verdict::Allow, 1, None),
        (appraise, None, sign(&verity), denied(Cause::NoVerityDigest), 0, Some(Cause::NoVerityDigest)),
        (appraise, Some(verity), sign(&verity), Verdict::Allow, 0, None),
        (appraise, Some(verity), None, denied(Cause::VeritySignatureRequired), 0, Some(Cause::VeritySignatureRequired)),
        (
            appraise,
            Some(verity),
            content.clone(),
            denied(Cause::VeritySignatureRequired),
            0,
            Some(Cause::VeritySignatureRequired),
        ),
        (
            appraise,
            Some(verity),
            sign(&other),
            denied(Cause::InvalidVeritySignature),
            0,
            Some(Cause::InvalidVeritySignature),
        ),
    ] {
        let bench = bench(rules, Mode::Enforce);
        let _ = bench.checker.replace_keys(Arc::new(keyring(&key)), None);
        let file = Fake::new(b"x");
        file.verity.set(enabled);
        *file.label.borrow_mut() = label;
        let what = format!("{rules}, {enabled:?}");
        assert_eq!(bench.check(&file, 0, &EXECUTE), expected, "{what}");
        assert_eq!((file.hashed.get(), bench.list.paths().len()), (0, entries), "{what}");
        assert_eq!(bench.done(&file), cause.is_none(), "{what}");
        let causes: Vec<_> = bench
            .records
            .0
            .lock()
            .unwrap()
            .iter()
            .filter_map(|record| match record {
                AuditRecord::Data { cause, denied, .. } => Some((*cause, *denied)),
                _ => None,
            })
            .collect();
        assert_eq!(
            causes,
            cause.map(|cause| (cause, expected != Verdict::Allow)).into_iter().collect::<Vec<_>>(),
            "{what}"
        );
    }
}

#[test]
fn what_goes_by_the_fs_verity_digest_is_blocked_by_its_contents_digest_as_well() {
    let key = key();
    let digest = |algorithm, bytes: &[u8]| crypto::hash(algorithm, &[bytes]).unwrap();
    let verity = digest(HashAlgorithm::Sha256, b"tree");
    for (name, blocked, denied) in [
        ("fs-verity's", verity, true),
        ("the content's, in the same algorithm", digest(HashAlgorithm::Sha256, b"x"), true),
        ("the content's, in another", digest(HashAlgorithm::Sha512, b"x"), true),
        ("another", digest(HashAlgorithm::Sha256, b"y"), false),
    ] {
        let bench = bench("appraise func=BPRM_CHECK digest_type=verity appraise_type=sigv3", Mode::Enforce);
        let keys = keyring(&key).with_block_list([Blocked::Content(blocked)].into_iter().collect());
        let _ = bench.checker.replace_keys(Arc::new(keys), None);
        let file = Fake::new(b"x");
        file.verity.set(Some(verity));
        *file.label.borrow_mut() = Some(crate::label::sign_verity(&verity, &key, None).unwrap());
        let expected = if denied { Verdict::Deny(Cause::Blocked) } else { Verdict::Allow };
        assert_eq!(bench.check(&file, 0, &EXECUTE), expected, "{name}");
        let (policy, keys, hash) = (bench.checker.policy(), bench.checker.keys(), HashAlgorithm::Sha256);
        let explained = crate::explain::explain(&policy, &keys, None, hash, &file, &User(0), EXECUTE[0]).unwrap();
        assert_eq!(explained.cause(), denied.then_some(Cause::Blocked), "{name}");
    }
}

#[test]
fn what_was_found_out_by_the_content_is_not_taken_for_the_fs_verity_digest_nor_the_other_way_round() {
    let rules = "appraise func=BPRM_CHECK digest_type=verity appraise_type=sigv3\nappraise func=CREDS_CHECK";
    let bench = bench(rules, Mode::Enforce);
    let key = key();
    let _ = bench.checker.replace_keys(Arc::new(keyring(&key)), None);
    let digest = crypto::hash(HashAlgorithm::Sha256, &[b"tree"]).unwrap();
    let creds = [Hook { func: Func::CredsCheck, mask: 1 }];
    let content = Fake::new(b"x");
    content.label_with_digest();
    content.verity.set(Some(digest));
    for _ in 0..2 {
        assert_eq!(bench.check(&content, 0, &creds), Verdict::Allow);
        assert_eq!(bench.check(&content, 0, &EXECUTE), Verdict::Deny(Cause::VeritySignatureRequired));
    }
    let verity = Fake::new(b"y");
    verity.verity.set(Some(digest));
    *verity.label.borrow_mut() = Some(crate::label::sign_verity(&digest, &key, None).unwrap());
    bench.checker.changed(verity.id(), true);
    for _ in 0..2 {
        assert_eq!(bench.check(&verity, 0, &EXECUTE), Verdict::Allow);
        assert_eq!(bench.check(&verity, 0, &creds), Verdict::Deny(Cause::InvalidVeritySignature));
    }
}
