//! The operations, on a TPM whose answers were noted.

use std::collections::VecDeque;

use imara_format::{
    hash::{Digest, HashAlgorithm, from_hex, to_hex},
    tpm::{ObjectAttributes, PcrSelection},
};
use proptest::prelude::*;

use super::{
    capability::{MANUFACTURER, letters},
    command::PATIENCE,
    error::Names,
    pcr::READINGS,
    response::{NO_SESSIONS, SESSIONS},
    *,
};

use HashAlgorithm::{Sha1, Sha256};

/// Answers each command as noted, and stands for no other.
struct Script(VecDeque<(String, String)>);

impl Transport for Script {
    fn transmit(&mut self, command: &[u8], response: &mut Vec<u8>) -> io::Result<()> {
        let (expected, answer) = self.0.pop_front().ok_or(io::ErrorKind::UnexpectedEof)?;
        assert_eq!(to_hex(command), expected);
        *response = from_hex(&answer).unwrap();
        Ok(())
    }
}

/// Answers every command with the same bytes.
struct Always(Vec<u8>);

impl Transport for Always {
    fn transmit(&mut self, _: &[u8], response: &mut Vec<u8>) -> io::Result<()> {
        response.clone_from(&self.0);
        Ok(())
    }
}

fn transcript() -> Vec<(String, String)> {
    let text = include_str!("../../../../tests/vectors/tpm/transcript/transcript.json");
    let entries: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
    let text = |entry: &serde_json::Value, key: &str| entry[key].as_str().unwrap().to_owned();
    entries.iter().map(|entry| (text(entry, "cmd"), text(entry, "rsp"))).collect()
}

const GET_BANKS: &str = "8001000000160000017a000000050000000000000001";
const EXTENDED: &str = "80020000001300000000000000000000010000";

fn scripted(exchanges: &[(&str, &str)]) -> Tpm {
    let script = exchanges.iter().map(|(command, answer)| ((*command).to_owned(), (*answer).to_owned())).collect();
    unhurried(Tpm::unstarted(Box::new(Script(script))))
}

fn unhurried(mut tpm: Tpm) -> Tpm {
    tpm.pause = |_| {};
    tpm
}

fn bank(algorithm: HashAlgorithm) -> Bank {
    Bank { tpm_id: algorithm.tpm_id().unwrap(), algorithm: Some(algorithm), digest_size: algorithm.digest_size() }
}

/// A TPM with the two banks of the transcript, which has these entries before it.
fn at(entries: &[usize]) -> Tpm {
    let transcript = transcript();
    let script = entries.iter().map(|entry| transcript[*entry].clone()).collect();
    let mut tpm = unhurried(Tpm::unstarted(Box::new(Script(script))));
    tpm.banks = vec![bank(Sha1), bank(Sha256)];
    tpm
}

fn digest(algorithm: HashAlgorithm, hex: &str) -> Digest {
    Digest::new(algorithm, &from_hex(hex).unwrap()).unwrap()
}

/// A response without authorisations.
fn response(code: u32, parameters: &str) -> String {
    format!("8001{:08x}{code:08x}{parameters}", 10 + parameters.len() / 2)
}

#[test]
fn banks_are_those_with_pcrs_allocated() {
    let script = VecDeque::from([transcript()[1].clone()]);
    assert_eq!(Tpm::new(Box::new(Script(script))).unwrap().banks(), [bank(Sha1), bank(Sha256)]);
}

#[test]
fn banks_that_the_kernel_does_not_map_are_kept() {
    // SHA3-256, which the codec knows: its first PCR tells the size. 0x7fff, which nobody knows.
    let all = response(0, &"000000000500000003 002703feffff 7fff03ffffff 000b03ffffff".replace(' ', ""));
    let size = response(0, &format!("0000000100000001002703020000000000010020{}", "00".repeat(32)));
    let read = "8001000000140000017e00000001002703020000";
    let mut tpm = scripted(&[(GET_BANKS, &all), (read, &size)]);
    let unmapped = |tpm_id, digest_size| Bank { tpm_id, algorithm: None, digest_size };
    let banks = tpm.allocated_banks().unwrap();
    assert_eq!(banks, [unmapped(0x27, 32), unmapped(0x7fff, 0), bank(Sha256)]);
    assert_eq!(Names(&banks).to_string(), "0x0027, 0x7fff, sha256");

    let padded = format!("0027{}{}", "ab".repeat(20), "00".repeat(12));
    let extend =
        format!("80020000006300000182 0000000a 00000009 400000090000000000 00000002 000b{}{padded}", "cd".repeat(32));
    let mut tpm = scripted(&[(&extend.replace(' ', ""), EXTENDED)]);
    tpm.banks = banks;
    tpm.pcr_extend_every_bank(10, &[digest(Sha256, &"cd".repeat(32))], &[0xab; 20]).unwrap();
}

#[test]
fn extends_and_reads_are_the_transcripts_bytes() {
    let mut tpm = at(&[14, 15, 16, 17, 18, 19, 20]);
    for (sha1, sha256) in [
        (
            "55e19427c290674f58ab9ae99e79735ce1ce7be7",
            "8ddc42ec20980c6f43d667249252ed61ff26df5a07fcf08c0afad80c8fbe0df9",
        ),
        (
            "a5ed77f86fc83f95c78e05140d009d31acb93275",
            "36e0c39f58677473589b09293670eef7222b065362490fd3ccfc464a15102a38",
        ),
        (
            "5f18d6e62444c8688bbdcd6117ac295a7e0bd383",
            "9abb765c4a2e7c5ff6dc364f41e71df3f31c9fa580c897afdbcfdd7f8a80a9c4",
        ),
        (&"ff".repeat(20), &"ff".repeat(32)),
        (
            "bee6cd9c1cfcfeb0aa4689657f5827a7561788a5",
            "566b8c6bd021dbd941e24a7d91a0bf1c63d73a03b53fbc04de5b99872e5852f4",
        ),
        (
            "e2b242c18e99321cae09e9fbd8e6773fa330f94a",
            "66a67844add13db4e88d304bccdb2bade0313c161f1765866f4d68256ba596fa",
        ),
    ] {
        tpm.pcr_extend(10, &[digest(Sha1, sha1), digest(Sha256, sha256)]).unwrap();
    }
    let sha1 = digest(Sha1, "6181029bb71129c76f17aeb8ea75b5bb3ef2e722");
    let sha256 = digest(Sha256, "910337fe49f4e2902d4702d0bf66f40bf17f3b7e2eeac41d7a4badb55c423c22");
    assert_eq!(tpm.pcr_read_many(&[10]).unwrap(), [(Sha1, 10, sha1), (Sha256, 10, sha256)]);
    at(&[53]).pcr_extend(23, &[Digest::zeros(Sha256)]).unwrap();
}

#[test]
fn properties_and_random_bytes_are_the_transcripts() {
    let found = at(&[0]).tagged_properties(MANUFACTURER, 3).unwrap();
    assert_eq!(found.iter().map(|(_, value)| letters(*value)).collect::<Vec<_>>(), ["IBM", "SW  ", " TPM"]);
    let bytes = at(&[2]).random(32).unwrap();
    assert!(transcript()[2].1.ends_with(&to_hex(&bytes)));
    // 128 asked, 64 given: the rest is asked for.
    let (command, first) = transcript()[3].clone();
    let second = response(0, &format!("0040{}", "5a".repeat(64)));
    let bytes = scripted(&[(&command, &first), ("80010000000c0000017b0040", &second)]).random(128).unwrap();
    assert_eq!((bytes.len(), &bytes[..2], &bytes[127..]), (128, [0x1d, 0x18].as_slice(), [0x5a].as_slice()));
    let error = scripted(&[("80010000000c0000017b0001", &response(0, "0000"))]).random(1).unwrap_err();
    assert!(matches!(error, TpmError::NoRandom { wanted: 1 }));
}

#[test]
fn properties_that_come_in_parts_are_put_together() {
    let mut tpm = scripted(&[
        ("8001000000160000017a000000060000010500000008", &transcript()[0].1),
        (
            "8001000000160000017a000000060000010800000005",
            &response(0, "0100000006000000020000010b201910230000010c00163636"),
        ),
    ]);
    let expected = Properties {
        manufacturer: "IBM".to_owned(),
        vendor: "SW   TPM".to_owned(),
        firmware: (0x2019_1023, 0x0016_3636),
    };
    assert_eq!(tpm.properties().unwrap(), expected);
}

#[test]
fn a_reading_goes_on_until_every_pcr_is_there() {
    // sha256 of PCRs 0 and 1: the TPM gives one at a time.
    let value = |byte: &str| byte.repeat(32);
    let first = response(0, &format!("0000000500000001000b03010000000000010020{}", value("aa")));
    let second = response(0, &format!("0000000500000001000b03020000000000010020{}", value("bb")));
    let other = response(0, &format!("0000000600000001000b03020000000000010020{}", value("cc")));
    let (both, rest) = ("8001000000140000017e00000001000b03030000", "8001000000140000017e00000001000b03020000");
    let expected =
        |one: &str, two: &str| vec![(Sha256, 0, digest(Sha256, &value(one))), (Sha256, 1, digest(Sha256, &value(two)))];
    let mut tpm = scripted(&[(both, &first), (rest, &second)]);
    tpm.banks = vec![bank(Sha256)];
    assert_eq!(tpm.pcr_read_many(&[1, 0]).unwrap(), expected("aa", "bb"));
    // The update counter moved in between: all anew.
    let mut tpm = scripted(&[(both, &first), (rest, &other), (both, &first), (rest, &second)]);
    tpm.banks = vec![bank(Sha256)];
    assert_eq!(tpm.pcr_read_many(&[0, 1]).unwrap(), expected("aa", "bb"));
    // It moves each time.
    let mut tpm = scripted(&[(both, first.as_str()), (rest, &other)].repeat(READINGS as usize));
    tpm.banks = vec![bank(Sha256)];
    assert!(matches!(tpm.pcr_read_many(&[0, 1]), Err(TpmError::Unsettled(READINGS))));
}

#[test]
fn the_returned_selection_counts() {
    let read = "8001000000140000017e00000001000b03000400";
    for (parameters, reason) in [
        ("0000000100000001000b0300000000000000", "the TPM returned no value for PCR 10 of bank sha256"),
        ("000000010000000000000000", "the TPM returned no value for PCR 10 of bank sha256"),
        (&format!("0000000100000001000b0300080000000001 0020{}", "00".repeat(32)), "nobody asked for"),
        (&format!("00000001000000010004030004000000000100 14{}", "00".repeat(20)), "nobody asked for"),
        (&format!("0000000100000001000b0300040000000001 0014{}", "00".repeat(20)), "digest's size is 20, 32 needed"),
        ("0000000100000001000b0300040000000000", "number of digests is 0, 1 needed"),
    ] {
        let mut tpm = scripted(&[(read, &response(0, &parameters.replace(' ', "")))]);
        tpm.banks = vec![bank(Sha256)];
        let error = tpm.pcr_read(Sha256, 10).unwrap_err().to_string();
        assert!(error.contains(reason), "{parameters}: {error}");
    }
}

#[test]
fn what_cannot_be_asked_is_refused_before_anything_is_sent() {
    let mut tpm = scripted(&[]);
    tpm.banks = vec![bank(Sha1), bank(Sha256)];
    let zeros = Digest::zeros(Sha256);
    for (error, reason) in [
        (tpm.pcr_read(HashAlgorithm::Sha384, 0).unwrap_err(), "the TPM has no sha384 PCR bank; it has sha1, sha256"),
        (tpm.pcr_read(Sha256, 24).unwrap_err(), "there is no PCR 24; a TPM has PCRs 0 to 23"),
        (tpm.pcr_read_many(&[0, 32]).unwrap_err(), "there is no PCR 32; a TPM has PCRs 0 to 23"),
        (tpm.pcr_extend(24, &[zeros]).unwrap_err(), "there is no PCR 24; a TPM has PCRs 0 to 23"),
        (tpm.pcr_extend(10, &[]).unwrap_err(), "a PCR extend takes 1 to 8 digests, 0 given"),
        (tpm.pcr_extend(10, &[zeros; 9]).unwrap_err(), "a PCR extend takes 1 to 8 digests, 9 given"),
        (
            tpm.pcr_extend(10, &[Digest::zeros(HashAlgorithm::Md5)]).unwrap_err(),
            "a TPM knows no hash md5: there is no PCR bank of it, and nothing is hashed with it",
        ),
    ] {
        assert_eq!(error.to_string(), reason);
    }
    assert_eq!(tpm.pcr_read_many(&[]).unwrap(), []);
}

#[test]
fn a_command_is_sent_again_while_the_tpm_asks_for_it() {
    let command = transcript()[53].0.clone();
    for code in [0x922, 0x90a, 0x908] {
        let busy = response(code, "");
        let mut tpm = scripted(&[(&command, &busy), (&command, &busy), (&command, EXTENDED)]);
        tpm.pcr_extend(23, &[Digest::zeros(Sha256)]).unwrap();
    }
    let busy = from_hex(&response(0x922, "")).unwrap();
    let mut tpm = unhurried(Tpm::unstarted(Box::new(Always(busy))));
    let error = tpm.pcr_extend(23, &[Digest::zeros(Sha256)]).unwrap_err();
    assert!(matches!(error, TpmError::Busy { waited, .. } if waited >= PATIENCE), "{error}");
    // Other warnings are answers.
    let mut tpm = scripted(&[(&command, &response(0x921, ""))]);
    assert!(matches!(
        tpm.pcr_extend(23, &[Digest::zeros(Sha256)]),
        Err(TpmError::Refused { code: ResponseCode::LOCKOUT, .. })
    ));
}

#[test]
fn starting_tells_a_tpm_that_had_been_started() {
    let (clear, state) = ("80010000000c000001440000", "80010000000c000001440001");
    let banks = transcript()[1].1.clone();
    for (answer, started) in [(response(0, ""), Started::Now), (response(0x100, ""), Started::Already)] {
        let mut tpm = scripted(&[(clear, &answer), (GET_BANKS, &banks)]);
        assert_eq!(tpm.startup(StartupType::Clear).unwrap(), started);
        assert_eq!(tpm.banks().len(), 2);
    }
    let error = scripted(&[(state, &response(0x1c4, ""))]).startup(StartupType::State).unwrap_err();
    assert!(matches!(error, TpmError::Refused { code: ResponseCode(0x1c4), .. }));
    scripted(&[("80010000000c000001450001", &response(0, ""))]).shutdown(StartupType::State).unwrap();
}

#[test]
fn a_response_that_is_no_answer_is_refused_with_the_place() {
    for (answer, reason) in [
        ("", "at byte 0: tag is 0, 2 needed"),
        ("80010000000a0000", "at byte 6: response code is 2, 4 needed"),
        ("80010000000b00000000", "at byte 2: size is 11, 10 needed"),
        ("12340000000a00000000", "at byte 0: tag is 4660, 32769 needed"),
        // Success, but without the authorisation's answer.
        ("80010000000a00000000", "at byte 0: tag is 32769, 32770 needed"),
        ("80020000000a00000000", "at byte 10: size of the parameters is 0, 4 needed"),
        ("80020000000e00000000ffffffff", "at byte 14: parameters is 0, 4294967295 needed"),
        ("80020000000f000000000000000100", "at byte 14: bytes after the end is 1, 0 needed"),
    ] {
        let mut tpm = Tpm::unstarted(Box::new(Always(from_hex(answer).unwrap())));
        let error = tpm.pcr_extend(10, &[Digest::zeros(Sha1)]).unwrap_err().to_string();
        assert!(error.ends_with(reason), "{answer}: {error}");
    }
    // A TPM 1.2 answers with a tag of its own.
    let mut tpm = Tpm::unstarted(Box::new(Always(from_hex("00c40000000a0000001e").unwrap())));
    let error = tpm.random(1).unwrap_err().to_string();
    assert!(error.contains("a TPM 1.2 cannot be used"), "{error}");
}

/// Every operation, on a TPM that answers each command so.
fn exercise(answer: &[u8]) {
    let mut tpm = unhurried(Tpm::unstarted(Box::new(Always(answer.to_vec()))));
    tpm.banks = vec![bank(Sha1), bank(Sha256)];
    let _ = tpm.pcr_read(Sha256, 10);
    let _ = tpm.pcr_read_many(&[0, 10, 23]);
    let _ = tpm.pcr_extend(10, &[Digest::zeros(Sha1)]);
    let _ = tpm.properties();
    let _ = tpm.random(32);
    let _ = tpm.shutdown(StartupType::State);
    let _ = tpm.startup(StartupType::Clear);
    let _ = (tpm.clock(), tpm.lockout(), tpm.handles_loaded(), tpm.persistent_handles());
    let none = AuthValue::empty();
    let srk = template::srk(template::KeyKind::P256);
    let parent = tpm.create_primary(Hierarchy::Owner, &none, &srk);
    let parent = parent.unwrap_or_else(|_| Object::invented(0x8100_0001, srk));
    let selection = PcrSelection::of(Sha256, [10]).unwrap();
    let _ = tpm.quote(&parent, &none, b"nonce", &selection);
    let sealing =
        Sealing { data: b"x", auth: &none, attributes: ObjectAttributes(0x40), name_algorithm: 0xb, policy: &[] };
    let _ = tpm.seal(&parent, &none, &sealing);
    let sealed = SealedObject { public: parent.public().clone(), private: vec![1; 32] };
    let _ = tpm.unseal(&parent, &none, &sealed, &none, None);
    let _ = tpm.leaving_nothing(|tpm| tpm.object(0x8000_0000));
    let _ = tpm.banks().iter().map(ToString::to_string).collect::<Vec<_>>();
}

proptest! {
    #[test]
    fn no_response_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        exercise(&bytes);
    }

    #[test]
    fn no_response_with_a_sound_header_panics(
        tag in prop_oneof![Just(NO_SESSIONS), Just(SESSIONS)],
        code in prop_oneof![4 => Just(0), 1 => any::<u32>()],
        body in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let size = 10 + body.len() as u32;
        let header = [tag.to_be_bytes().as_slice(), &size.to_be_bytes(), &code.to_be_bytes()].concat();
        exercise(&[header, body].concat());
    }

    #[test]
    fn no_cut_or_changed_response_panics(
        entry in prop::sample::select(vec![0usize, 1, 2, 3, 13, 14, 20]),
        change in any::<(prop::sample::Index, u8)>(),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut answer = from_hex(&transcript()[entry].1).unwrap();
        let place = change.0.index(answer.len());
        answer[place] = change.1;
        if let Some(cut) = cut {
            answer.truncate(cut.index(answer.len()));
            let size = answer.len() as u32;
            if let Some(field) = answer.get_mut(2..6) {
                field.copy_from_slice(&size.to_be_bytes());
            }
        }
        exercise(&answer);
    }
}

#[test]
fn a_sequence_that_is_complete_is_not_flushed_again() {
    // The kernel's resource manager takes it for an error of the program.
    let (first, last) = ("07".repeat(1024), "08".repeat(32));
    let start = ("80010000000e000001860000000b", "80010000000e0000000080000000");
    let empty = "80000000000000094000000900000000 00".replace(' ', "");
    let update = format!("80020000041d0000015c{empty}0400{first}");
    let complete = format!("8002000000220000013e{empty}00010740000007");
    let digest = format!("80020000003d000000000000002a0020{last}80244000000700000000010000");
    let mut tpm = scripted(&[start, (&update, EXTENDED), (&complete, &digest)]);
    let mut pieces = vec![vec![7; 1025], Vec::new()].into_iter();
    let hashed = tpm.hash(Sha256, None, || Ok::<_, TpmError>(pieces.next().unwrap())).unwrap();
    assert_eq!((hashed.digest.to_hex(), hashed.may_be_signed), (last, false));
    assert_eq!(hashed.ticket, from_hex("8024400000070000").unwrap());
}
