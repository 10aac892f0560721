//! Entries against those of a real kernel, for every template: what its list shows of each file is measured again, and must come to the
//! same bytes.

use imara_engine::measure::{Added, Attributes, Measured, MeasurementLog, Store};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::measurement_list::{ByteOrder, Entry, Reader};
use imara_format::template::{Field, Template};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Store for Memory {
    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().extend(record);
        Ok(())
    }
}

fn number(stored: &[u8]) -> u32 {
    stored.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// The attributes that an entry of `evm-sig` shows.
fn attributes(field: impl Fn(Field) -> Vec<u8>) -> Attributes {
    let names = field(Field::Xattrnames);
    let names = std::str::from_utf8(&names).unwrap().trim_end_matches('\0').to_owned();
    let (lengths, values) = (field(Field::Xattrlengths), field(Field::Xattrvalues));
    let mut rest = &values[..];
    let mut xattrs = Vec::new();
    for (name, length) in names.split('|').zip(lengths.chunks(4)) {
        let (value, after) = rest.split_at(number(length) as usize);
        xattrs.push((name.to_owned(), value.to_vec()));
        rest = after;
    }
    assert!(rest.is_empty(), "{names}");
    let [uid, gid, mode] = [Field::Iuid, Field::Igid, Field::Imode].map(|id| number(&field(id)));
    Attributes { uid, gid, mode: mode as u16, xattrs }
}

/// Measures again what an entry shows; `None` for what is no file.
fn again(entry: &Entry, log: &MeasurementLog) -> Option<()> {
    let template = Template::from_name_or_format(&entry.template).unwrap();
    let fields: BTreeMap<&str, Vec<u8>> =
        template.fields.iter().map(|field| field.id()).zip(entry.fields.iter().cloned()).collect();
    let field = |field: Field| fields.get(field.id()).cloned().unwrap_or_default();
    if !field(Field::Buf).is_empty() || !field(Field::Modsig).is_empty() || !field(Field::DModsig).is_empty() {
        return None;
    }
    let name = [Field::NNg, Field::N].into_iter().map(field).find(|name| !name.is_empty()).unwrap_or_default();
    let path = name.strip_suffix(&[0]).unwrap_or(&name);
    if path == b"boot_aggregate" {
        return None;
    }
    let attributes = attributes(field);
    // Where a file has no signature of its own its portable one stands there.
    let (label, evm_label) = match field(Field::Sig) {
        portable if portable.first() == Some(&5) => (Vec::new(), portable),
        label => (label, field(Field::Evmsig)),
    };
    if entry.is_violation() {
        log.add_violation(&template, path, &evm_label, Some(&attributes)).unwrap();
        return Some(());
    }
    let digest = entry.digest()?;
    let measured = Measured {
        digest: &digest,
        verity: field(Field::DNgV2).starts_with(b"verity:"),
        short: None,
        path,
        label: &label,
        evm_label: &evm_label,
        attributes: Some(&attributes),
    };
    assert_eq!(log.add(&template, entry.pcr, &measured).unwrap(), Added::Listed);
    Some(())
}

#[test]
fn an_entry_of_every_template_is_the_kernels_to_the_byte() {
    let folder = format!("{}/../../tests/vectors/measurement_list", env!("CARGO_MANIFEST_DIR"));
    let mut compared = BTreeMap::<String, u32>::new();
    for name in
        ["tpl-ima", "tpl-ima-ng", "tpl-ima-sigv2", "tpl-ima-ngv2", "tpl-ima-modsig", "tpl-evm-sig", "tcb", "verity"]
    {
        let list = std::fs::read(format!("{folder}/{name}/binary")).unwrap();
        let mut reader = Reader::new(&list);
        while let Some(record) = reader.next_record().unwrap() {
            let entry = record.to_entry();
            let memory = Memory::default();
            let log = MeasurementLog::new(Box::new(memory.clone()), None, HashAlgorithm::Sha256, 10).unwrap();
            if again(&entry, &log).is_none() {
                continue;
            }
            let mut expected = Vec::new();
            entry.write_binary(ByteOrder::Little, &mut expected);
            assert_eq!(*memory.0.lock().unwrap(), expected, "{name}: {entry:?}");
            *compared.entry(entry.template).or_default() += 1;
        }
    }
    for template in ["ima", "ima-ng", "ima-sig", "ima-ngv2", "ima-sigv2", "ima-modsig", "evm-sig"] {
        assert!(compared.get(template).is_some_and(|count| *count > 3), "{template}: {compared:?}");
    }
}

#[test]
fn a_digest_that_the_template_ima_has_no_room_for_is_listed_by_the_one_that_stands_for_it() {
    let memory = Memory::default();
    let log = MeasurementLog::new(Box::new(memory.clone()), None, HashAlgorithm::Sha256, 10).unwrap();
    let (long, short) = (Digest::ones(HashAlgorithm::Sha256), Digest::ones(HashAlgorithm::Sha1));
    let measured = Measured {
        digest: &long,
        verity: true,
        short: Some(&short),
        path: b"/a",
        label: &[],
        evm_label: &[],
        attributes: None,
    };
    log.add(Template::built_in("ima").unwrap(), 10, &measured).unwrap();
    log.add_boot_aggregate(Template::built_in("ima").unwrap()).unwrap();
    log.add_boot_aggregate(Template::built_in("evm-sig").unwrap()).unwrap();
    let list = memory.0.lock().unwrap();
    let mut reader = Reader::new(&list);
    let mut digests = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        digests.push(record.digest().unwrap());
    }
    assert_eq!(digests, [short, Digest::zeros(HashAlgorithm::Sha1), Digest::zeros(HashAlgorithm::Sha256)]);
}
