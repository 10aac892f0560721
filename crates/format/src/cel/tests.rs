//! What is written is read back, by readers that know only the encodings.

use super::*;
use crate::hash::from_hex;
use proptest::prelude::*;

/// A CBOR item.
#[derive(Clone, Debug, PartialEq)]
enum Item {
    Number(u64),
    Bytes(Vec<u8>),
    Text(String),
    Array(Vec<Self>),
    Map(Vec<(u64, Self)>),
}

/// Reads one item, which has to be deterministic.
fn cbor_item(bytes: &mut &[u8]) -> Item {
    fn take<'a>(bytes: &mut &'a [u8], size: usize) -> &'a [u8] {
        let (taken, rest) = bytes.split_at(size);
        *bytes = rest;
        taken
    }
    let head = take(bytes, 1)[0];
    let (value, least) = match head & 0x1f {
        short @ 0..=23 => (u64::from(short), 0),
        wide @ 24..=27 => {
            let size = 1 << (wide - 24);
            let value = take(bytes, size).iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
            (value, [24, 0x100, 0x1_0000, 0x1_0000_0000][usize::from(wide) - 24])
        }
        other => panic!("an indefinite length or no item: {other}"),
    };
    assert!(value >= least, "{value} is longer than it need be");
    let size = value as usize;
    match head >> 5 {
        0 => Item::Number(value),
        2 => Item::Bytes(take(bytes, size).to_vec()),
        3 => Item::Text(String::from_utf8(take(bytes, size).to_vec()).unwrap()),
        4 => Item::Array((0..size).map(|_| cbor_item(bytes)).collect()),
        5 => {
            let mut members: Vec<(u64, Item)> = Vec::new();
            for _ in 0..size {
                let Item::Number(key) = cbor_item(bytes) else { panic!("a key that is no number") };
                assert!(members.last().is_none_or(|(last, _)| *last < key), "keys do not ascend");
                members.push((key, cbor_item(bytes)));
            }
            Item::Map(members)
        }
        other => panic!("major type {other}"),
    }
}

/// The TLVs that bytes are one after the other.
fn tlvs(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut read = Vec::new();
    while let [kind, a, b, c, d, rest @ ..] = bytes {
        let (value, rest) = rest.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        read.push((*kind, value.to_vec()));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "{bytes:?} are left");
    read
}

#[derive(Clone, Debug)]
struct Told {
    pcr: u32,
    digests: Vec<BankDigest>,
    name: String,
    data: Vec<u8>,
}

fn log(encoding: Encoding, events: &[Told]) -> Vec<u8> {
    let (mut writer, mut records, mut log) = (Writer::new(encoding), Vec::new(), Vec::new());
    for Told { pcr, digests, name, data } in events {
        writer.record(&Event { pcr: *pcr, digests, template_name: name, template_data: data }, &mut records);
    }
    writer.begin(&mut log);
    log.append(&mut records);
    writer.end(&mut log);
    log
}

fn bank(algorithm: HashAlgorithm, byte: u8) -> BankDigest {
    Digest::new(algorithm, &vec![byte; algorithm.digest_size()]).unwrap().try_into().unwrap()
}

fn three() -> Vec<Told> {
    let told = |pcr, digests, name: &str, data: &[u8]| Told { pcr, digests, name: name.into(), data: data.to_vec() };
    vec![
        told(10, vec![bank(HashAlgorithm::Sha1, 0x11), bank(HashAlgorithm::Sha256, 0x22)], "ima-ng", b"\x01\0\0\0x"),
        told(11, vec![bank(HashAlgorithm::Sm3, 0x33)], "d|n", b""),
        told(10, vec![bank(HashAlgorithm::Sha1, 0xff)], "a\"\\\n", b"\xff"),
    ]
}

#[test]
fn json_is_an_array_with_a_record_a_line() {
    let expected = format!(
        concat!(
            r#"[
{{"recnum":0,"pcr":10,"digests":[{{"hashAlg":"sha1","digest":"{}"}},{{"hashAlg":"sha256","digest":"{}"}}],"#,
            r#""content_type":"ima_template","content":{{"template_name":"ima-ng","template_data":"0100000078"}}}},
{{"recnum":0,"pcr":11,"digests":[{{"hashAlg":"sm3_256","digest":"{}"}}],"#,
            r#""content_type":"ima_template","content":{{"template_name":"d|n","template_data":""}}}},
{{"recnum":1,"pcr":10,"digests":[{{"hashAlg":"sha1","digest":"{}"}}],"#,
            r#""content_type":"ima_template","content":{{"template_name":"a\"\\\u000a","template_data":"ff"}}}}
]
"#
        ),
        "11".repeat(20),
        "22".repeat(32),
        "33".repeat(32),
        "ff".repeat(20)
    );
    assert_eq!(String::from_utf8(log(Encoding::Json, &three())).unwrap(), expected);
}

#[test]
fn cbor_and_tlv_have_their_bytes() {
    let one = &three()[..1];
    let (sha1, sha256) = ("11".repeat(20), "22".repeat(32));
    for (encoding, expected) in [
        (
            Encoding::Cbor,
            format!(
                "81 a5 0000 010a 0382 a2000401 54{sha1} a2000b01 5820{sha256} 0907 0aa2 0066696d612d6e67 01450100000078"
            ),
        ),
        (
            Encoding::Tlv,
            format!(
                "00000000080000000000000000 01000000010a 030000003e 0400000014{sha1} 0b00000020{sha256} \
                 0700000015 0000000006696d612d6e67 01000000050100000078"
            ),
        ),
    ] {
        let expected = from_hex(&expected.replace(' ', "")).unwrap();
        assert_eq!(to_hex(&log(encoding, one)), to_hex(&expected), "{encoding:?}");
    }
}

#[test]
fn a_log_without_records_is_one_as_well() {
    assert_eq!(log(Encoding::Json, &[]), b"[]\n");
    assert_eq!(log(Encoding::Cbor, &[]), [0x80]);
    assert_eq!(log(Encoding::Tlv, &[]), b"");
}

#[test]
fn a_digest_that_no_pcr_bank_has_is_refused() {
    let error = BankDigest::try_from(Digest::zeros(HashAlgorithm::Sha3_256)).unwrap_err();
    let expected = "no TPM has a PCR bank of sha3-256; sha1, sha256, sha384, sha512, sm3 are the banks there can be";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn numbers_are_as_short_as_they_can_be() {
    for (value, expected) in [
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (255, "18ff"),
        (256, "190100"),
        (65_535, "19ffff"),
        (65_536, "1a00010000"),
        (u64::from(u32::MAX), "1affffffff"),
        (1 << 32, "1b0000000100000000"),
        (u64::MAX, "1bffffffffffffffff"),
    ] {
        let mut out = Vec::new();
        cbor_head(CBOR_UNSIGNED, value, &mut out);
        assert_eq!(to_hex(&out), expected);
        assert_eq!(cbor_item(&mut out.as_slice()), Item::Number(value));
    }
}

fn told() -> impl Strategy<Value = Told> {
    let algorithms = [HashAlgorithm::Sha1, HashAlgorithm::Sha256, HashAlgorithm::Sha384, HashAlgorithm::Sha512];
    let digests = proptest::sample::subsequence(algorithms.to_vec(), 1..=4);
    let digests = (digests, any::<u8>())
        .prop_map(|(algorithms, byte)| algorithms.into_iter().map(|algorithm| bank(algorithm, byte)).collect());
    (0_u32..24, digests, any::<String>(), proptest::collection::vec(any::<u8>(), 0..300))
        .prop_map(|(pcr, digests, name, data)| Told { pcr, digests, name, data })
}

proptest! {
    #[test]
    fn any_log_is_read_back(events in proptest::collection::vec(told(), 0..30)) {
        let written = log(Encoding::Cbor, &events);
        let mut bytes = written.as_slice();
        let Item::Array(read) = cbor_item(&mut bytes) else { panic!("no array") };
        prop_assert!(bytes.is_empty());
        prop_assert_eq!(read.len(), events.len());
        let tlv = tlvs(&log(Encoding::Tlv, &events));
        prop_assert_eq!(tlv.len(), events.len() * 4);
        let mut next = [0_u64; 24];
        for ((event, item), fields) in events.iter().zip(&read).zip(tlv.chunks(4)) {
            let number = next[event.pcr as usize];
            next[event.pcr as usize] += 1;
            let digests: Vec<(u8, Vec<u8>)> =
                event.digests.iter().map(|bank| (bank.id, bank.digest.as_bytes().to_vec())).collect();
            let in_cbor = digests.iter().map(|(id, digest)| {
                Item::Map(vec![(0, Item::Number((*id).into())), (1, Item::Bytes(digest.clone()))])
            });
            prop_assert_eq!(item, &Item::Map(vec![
                (0, Item::Number(number)),
                (1, Item::Number(event.pcr.into())),
                (3, Item::Array(in_cbor.collect())),
                (9, Item::Number(7)),
                (10, Item::Map(vec![
                    (0, Item::Text(event.name.clone())),
                    (1, Item::Bytes(event.data.clone())),
                ])),
            ]));
            prop_assert_eq!(&fields[0], &(0, number.to_be_bytes().to_vec()));
            prop_assert_eq!(&fields[1], &(1, vec![event.pcr as u8]));
            prop_assert_eq!((fields[2].0, tlvs(&fields[2].1)), (3, digests));
            let content = vec![(0, event.name.clone().into_bytes()), (1, event.data.clone())];
            prop_assert_eq!((fields[3].0, tlvs(&fields[3].1)), (7, content));
        }
    }
}
