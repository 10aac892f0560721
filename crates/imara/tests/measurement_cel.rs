//! `imara measurement convert --to cel-…`: lists of a real kernel as Canonical Event Logs, read back and replayed.

use imara_engine::crypto::hash;
use imara_format::hash::{Digest, HashAlgorithm, from_hex};
use imara_format::pcr::PcrValues;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors")
}

/// The folders of lists, and their names.
fn cases() -> Vec<(String, PathBuf)> {
    let folders = fs::read_dir(vectors().join("measurement_list")).unwrap().map(|case| case.unwrap().path());
    let named = |case: PathBuf| (case.file_name().unwrap().to_str().unwrap().to_owned(), case);
    let cases: Vec<_> = folders.filter(|case| case.is_dir()).map(named).collect();
    assert!(cases.len() > 20);
    cases
}

fn convert(list: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_imara"))
        .args(["measurement", "convert", list.to_str().unwrap()])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn converted(list: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = convert(list, arguments);
    assert_eq!(output.status.code(), Some(0), "{list:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A record, as any of the encodings has it.
#[derive(Clone, Debug, PartialEq)]
struct Record {
    number: u64,
    pcr: u64,
    digests: Vec<Digest>,
    template_name: String,
    template_data: Vec<u8>,
}

/// The members of a JSON object, which has exactly these.
fn members<'a, const N: usize>(value: &'a Value, names: [&str; N]) -> [&'a Value; N] {
    assert_eq!(value.as_object().unwrap().len(), N, "{value}");
    names.map(|name| &value[name])
}

fn from_json(log: &[u8]) -> Vec<Record> {
    let log: Value = serde_json::from_slice(log).unwrap();
    let hex = |value: &Value| from_hex(value.as_str().unwrap()).unwrap();
    let digest = |value: &Value| {
        let [algorithm, digest] = members(value, ["hashAlg", "digest"]);
        let algorithm = HashAlgorithm::from_name(algorithm.as_str().unwrap()).unwrap();
        Digest::new(algorithm, &hex(digest)).unwrap()
    };
    let record = |value: &Value| {
        let [number, pcr, digests, kind, content] =
            members(value, ["recnum", "pcr", "digests", "content_type", "content"]);
        assert_eq!(kind, "ima_template");
        let [name, data] = members(content, ["template_name", "template_data"]);
        Record {
            number: number.as_u64().unwrap(),
            pcr: pcr.as_u64().unwrap(),
            digests: digests.as_array().unwrap().iter().map(digest).collect(),
            template_name: name.as_str().unwrap().to_owned(),
            template_data: hex(data),
        }
    };
    log.as_array().unwrap().iter().map(record).collect()
}

/// Reads CBOR as far as these logs need it.
struct Cbor<'a>(&'a [u8]);

impl<'a> Cbor<'a> {
    fn take(&mut self, size: u64) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(size as usize);
        self.0 = rest;
        taken
    }

    /// The value or length of an item, which must be of that major type.
    fn head(&mut self, major: u8) -> u64 {
        let head = self.take(1)[0];
        assert_eq!(head >> 5, major);
        match head & 0x1f {
            short @ 0..=23 => short.into(),
            wide @ 24..=27 => self.take(1 << (wide - 24)).iter().fold(0, |value, byte| value << 8 | u64::from(*byte)),
            other => panic!("an indefinite length or no item: {other}"),
        }
    }

    fn map<const N: usize>(&mut self) {
        assert_eq!(self.head(5), N as u64);
    }

    fn key(&mut self, key: u64) {
        assert_eq!(self.head(0), key);
    }

    fn string(&mut self, major: u8) -> &'a [u8] {
        let size = self.head(major);
        self.take(size)
    }

    fn digest(&mut self) -> Digest {
        self.map::<2>();
        self.key(0);
        let algorithm = HashAlgorithm::from_tpm_id(self.head(0) as u16).unwrap();
        self.key(1);
        Digest::new(algorithm, self.string(2)).unwrap()
    }

    fn record(&mut self) -> Record {
        self.map::<5>();
        self.key(0);
        let number = self.head(0);
        self.key(1);
        let pcr = self.head(0);
        self.key(3);
        let digests = (0..self.head(4)).map(|_| self.digest()).collect();
        self.key(9);
        assert_eq!(self.head(0), 7);
        self.key(10);
        self.map::<2>();
        self.key(0);
        let template_name = String::from_utf8(self.string(3).to_vec()).unwrap();
        self.key(1);
        Record { number, pcr, digests, template_name, template_data: self.string(2).to_vec() }
    }
}

fn from_cbor(log: &[u8]) -> Vec<Record> {
    let mut cbor = Cbor(log);
    let records = (0..cbor.head(4)).map(|_| cbor.record()).collect();
    assert!(cbor.0.is_empty());
    records
}

/// The TLVs that bytes are one after the other.
fn tlvs(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut read = Vec::new();
    while let [kind, a, b, c, d, rest @ ..] = bytes {
        let (value, rest) = rest.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        read.push((*kind, value));
        bytes = rest;
    }
    assert!(bytes.is_empty());
    read
}

fn from_tlv(log: &[u8]) -> Vec<Record> {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    let record = |fields: &[(u8, &[u8])]| {
        let [(0, recnum), (1, pcr), (3, digests), (7, content)] = *fields else { panic!("{fields:?}") };
        let content = tlvs(content);
        let [(0, name), (1, data)] = *content else { panic!("{content:?}") };
        let digest =
            |(id, digest): (u8, &[u8])| Digest::new(HashAlgorithm::from_tpm_id(id.into()).unwrap(), digest).unwrap();
        Record {
            number: number(recnum),
            pcr: number(pcr),
            digests: tlvs(digests).into_iter().map(digest).collect(),
            template_name: String::from_utf8(name.to_vec()).unwrap(),
            template_data: data.to_vec(),
        }
    };
    tlvs(log).chunks(4).map(record).collect()
}

/// The binary list that the records were made of, with its SHA-1 template digests.
fn binary_list(records: &[Record]) -> Vec<u8> {
    let mut list = Vec::new();
    for Record { pcr, digests, template_name, template_data, .. } in records {
        list.extend((*pcr as u32).to_le_bytes());
        let sha1 = digests.iter().find(|digest| digest.algorithm() == HashAlgorithm::Sha1).unwrap();
        let violation = *sha1 == Digest::ones(HashAlgorithm::Sha1);
        list.extend(if violation { &[0; 20] } else { sha1.as_bytes() });
        list.extend((template_name.len() as u32).to_le_bytes());
        list.extend(template_name.as_bytes());
        if template_name != "ima" {
            list.extend((template_data.len() as u32).to_le_bytes());
        }
        list.extend(template_data);
    }
    list
}

/// What PCRs come to when they are extended with the digests of all records, without a thought for what these are.
fn replayed(records: &[Record]) -> BTreeMap<(u32, HashAlgorithm), Digest> {
    let mut pcrs = BTreeMap::new();
    for record in records {
        for digest in &record.digests {
            let bank = digest.algorithm();
            let pcr = pcrs.entry((record.pcr as u32, bank)).or_insert_with(|| Digest::zeros(bank));
            *pcr = hash(bank, &[pcr.as_bytes(), digest.as_bytes()]).unwrap();
        }
    }
    pcrs
}

#[test]
fn every_kernel_list_is_read_back_whole_and_its_digests_come_to_the_pcrs() {
    for (name, case) in cases() {
        let list = case.join("binary");
        let every_bank = ["--bank", "sha1,sha256,sha384", "--bank", "sha512"];
        let log = |form| converted(&list, &[&["--to", form], &every_bank[..]].concat());
        let records = from_json(&log("cel-json"));
        assert_eq!(from_cbor(&log("cel-cbor")), records, "{name}");
        assert_eq!(from_tlv(&log("cel-tlv")), records, "{name}");
        assert!(binary_list(&records) == fs::read(&list).unwrap(), "{name}");
        let claims =
            PcrValues::from_text(&fs::read_to_string(case.join("pcrs")).unwrap(), HashAlgorithm::Sha1).unwrap();
        let mut compared = 0;
        for ((pcr, bank), value) in replayed(&records) {
            // This kernel could not load SHA-384 and SHA-512: it padded SHA-1 digests.
            if name == "tcb-sha512-nomod" && matches!(bank, HashAlgorithm::Sha384 | HashAlgorithm::Sha512) {
                continue;
            }
            if let Some(claimed) = claims.value(bank, pcr) {
                assert_eq!(value, claimed, "{name}: PCR {pcr}");
                compared += 1;
            }
        }
        assert_eq!(compared == 0, name == "notpm", "{name}");
        let mut next = BTreeMap::new();
        for record in &records {
            let expected = next.entry(record.pcr).or_insert(0);
            assert_eq!(record.number, *expected, "{name}");
            *expected += 1;
        }
    }
}

#[test]
fn a_violation_is_told_with_what_was_extended() {
    let records = from_json(&converted(&vectors().join("measurement_list/tcb/binary"), &["--to", "cel-json"]));
    let ones = [Digest::ones(HashAlgorithm::Sha1), Digest::ones(HashAlgorithm::Sha256)];
    let violations = records.iter().filter(|record| record.digests == ones);
    assert_eq!(violations.count(), 3);
}

#[test]
fn other_programs_logs_of_the_same_list_have_the_same_records() {
    for case in ["tcb", "custom"] {
        let list = vectors().join("measurement_list").join(case).join("binary");
        for (form, read) in [("json", from_json as fn(&[u8]) -> Vec<Record>), ("cbor", from_cbor), ("tlv", from_tlv)] {
            let ours = read(&converted(&list, &["--to", &format!("cel-{form}"), "--bank", "sha1"]));
            let mut theirs = read(&fs::read(vectors().join("cel").join(case).join(form)).unwrap());
            // They have a violation's digest as it is listed, not as it was extended.
            for digest in theirs.iter_mut().flat_map(|record| &mut record.digests).filter(|digest| digest.is_zero()) {
                *digest = Digest::ones(digest.algorithm());
            }
            assert_eq!(ours, theirs, "{case}, {form}");
        }
    }
}

#[test]
fn digests_of_other_byte_orders_and_forms_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let list = vectors().join("measurement_list/fmt-many/binary");
    let expected = from_cbor(&converted(&list, &["--to", "cel-cbor"]));
    assert_eq!(
        expected[0].digests.iter().map(Digest::algorithm).collect::<Vec<_>>(),
        [HashAlgorithm::Sha1, HashAlgorithm::Sha256]
    );
    for form in ["binary-be", "ascii"] {
        let other = folder.path().join(form);
        fs::write(&other, converted(&list, &["--to", form])).unwrap();
        assert_eq!(from_cbor(&converted(&other, &["--to", "cel-cbor"])), expected, "{form}");
    }
}

#[test]
fn what_does_not_hold_together_ends_a_log_that_can_still_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let whole = fs::read(vectors().join("measurement_list/tcb/binary")).unwrap();
    let mut edited = whole.clone();
    let at = edited.windows(11).position(|window| window == b"/mnt/empty-").unwrap();
    edited[at + 5] = b'E';
    let cut = &whole[..whole.len() - 1];
    for (bytes, entries, expected) in [
        (&edited[..], 5, "entry 6 (/mnt/Empty-alpha): the template digest is listed as"),
        (cut, 26, "the list ends within"),
        (b"", 0, ""),
        (b"no list", 0, "this is no measurement list"),
    ] {
        let list = folder.path().join("list");
        fs::write(&list, bytes).unwrap();
        for (form, read) in
            [("cel-json", from_json as fn(&[u8]) -> Vec<Record>), ("cel-cbor", from_cbor), ("cel-tlv", from_tlv)]
        {
            let output = convert(&list, &["--to", form]);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(i32::from(!expected.is_empty())), "{form}: {errors}");
            assert!(errors.contains(expected), "{form}: {errors}");
            assert_eq!(read(&output.stdout).len(), entries, "{form}: {errors}");
        }
    }
}

#[test]
fn banks_that_cannot_be_are_refused_with_what_can_be() {
    let list = vectors().join("measurement_list/tcb/binary");
    for (arguments, expected) in [
        (["--to", "cel-json", "--bank", "md5"], "no TPM has a PCR bank of md5; sha1, sha256, sha384, sha512, sm3"),
        (["--to", "cel-json", "--bank", "sha255"], "no such hash algorithm: sha255"),
        (["--to", "json", "--bank", "sha1"], "--bank is for Canonical Event Logs"),
    ] {
        let output = convert(&list, &arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains(expected), "{arguments:?}: {errors}");
    }
    let sm3 = convert(&list, &["--to", "cel-json", "--bank", "sm3,sm3"]);
    let log: Value = serde_json::from_slice(&sm3.stdout).unwrap();
    let digests = log[0]["digests"].as_array().unwrap();
    assert_eq!((digests.len(), digests[0]["hashAlg"].as_str().unwrap()), (1, "sm3_256"));
}
