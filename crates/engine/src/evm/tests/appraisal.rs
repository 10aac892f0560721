//! IMA's appraisal together with EVM, against what Linux 6.1 answered to reading files in every state of both labels.

use super::*;
use crate::appraise::{Requirement, appraise};
use imara_format::label::algorithm_of;

/// `security.evm` as it was before the read, as far as the table shows it: up to 60 characters of a line.
fn shown_label(row: &str) -> Option<Vec<u8>> {
    let hex = row.split_once("security.evm 0x")?.1;
    Some(bytes(&hex[..hex.len() & !1]))
}

#[test]
fn files_in_every_state_of_both_labels_are_appraised_as_the_kernel_does() {
    let rules = debian(KernelVersion::V6_1);
    let folder = "evm/kernel/keys";
    let ima = ["ima.der", "rsa4096.der", "evm.der"].map(|name| format!("{folder}/{name}"));
    let evm = ["evm.der", "rsa4096.der", "v1.pub"].map(|name| format!("{folder}/{name}"));
    let (ima, evm) = (keyring(&ima.each_ref().map(|path| &**path)), keyring(&evm.each_ref().map(|path| &**path)));
    let hmac = PlainKey::new(&bytes(text("appraise/matrix/boot0/evm-key.plain.hex").trim())).unwrap();
    let files: BTreeMap<String, Snapshot> = lines("appraise/matrix/boot2/stat.jsonl")
        .iter()
        .map(|case| (string(case, "path").trim_start_matches("/mnt/").to_owned(), snapshot(case)))
        .collect();
    let mut judged = 0;
    for row in text("appraise/matrix/matrix.tsv").lines().skip(1) {
        let columns: Vec<&str> = row.split('\t').collect();
        let (Some(name), boot) = (columns[1].strip_prefix("read "), columns[2]) else { continue };
        // The first 67 cases read each file once. One of them was not made for this; and what log and fix mode answer is not an appraisal.
        let number: u32 = columns[0].parse().unwrap();
        if number > 66 || name == "evm-key.blob" || matches!(boot, "boot7" | "boot8") {
            continue;
        }
        let mode = match boot {
            "boot3" => EvmMode::NONE,
            "boot4" => EvmMode::HMAC,
            "boot5" => EvmMode::X509,
            "boot6" => EvmMode::HMAC | EvmMode::X509,
            other => panic!("{other}"),
        };
        let mut file = files[name].clone();
        // What was done to the disk afterwards shows in the table alone. A signature that had become an HMAC by an earlier
        // case of the same boot is told as it was.
        if let Some(shown) = columns.get(5).and_then(|column| shown_label(column))
            && file.label.kind() == Some(HMAC_TYPE)
            && !file.label.value().unwrap().starts_with(&shown)
        {
            let whole = [&shown[..], &vec![0; 21usize.saturating_sub(shown.len())]].concat();
            file.label = EvmLabel::Value(whole);
        }
        if name.ends_with("type9.good") {
            file.xattrs.get_mut(SECURITY_IMA).unwrap()[0] = 9;
        }
        let content = if name.ends_with("empty.good") { String::new() } else { format!("the quick brown fox {name}") };
        let label = file.xattrs.get(SECURITY_IMA).cloned();
        let algorithm = label.as_deref().and_then(algorithm_of).unwrap_or(HashAlgorithm::Sha256);
        let digest = hash(algorithm, &[content.as_bytes()]).unwrap();
        let requirement = Requirement { signature: file.inode.uid == 2001, verity: false };
        let hmac_key = mode.contains(EvmMode::HMAC).then_some(&hmac as &dyn HmacKey);
        let verifier = Verifier { rules: &rules, mode, hmac_key, keys: &evm };
        let appraisal = appraise(label.as_deref(), &digest, content.is_empty(), false, requirement, &ima, || {
            verifier.verify_xattr(SECURITY_IMA, &file).status
        });
        let expected = columns[4].split("; ").find_map(|record| record.strip_prefix("appraise_data/"));
        assert_eq!(columns[3].ends_with("EACCES"), expected.is_some(), "{row}");
        assert_eq!(appraisal.cause.map(|cause| cause.words()), expected, "{row}");
        judged += 1;
    }
    assert_eq!(judged, 4 * 66);
}
