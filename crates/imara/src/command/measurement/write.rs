//! `imara measurement show` and `convert`: a list in another form, written as it is read.

use super::{Form, Source};
use crate::command::CommandResult;
use crate::output::{Failure, Outcome};
use imara_format::hash::to_hex;
use imara_format::measurement_list::{ByteOrder, Decoder, ListForm, Record};
use serde_json::{Value, json};
use std::io::{self, BufWriter, Write};

/// Writes a list to standard output in another form.
pub fn write_list(source: Source, form: Form, escape: bool) -> CommandResult {
    if matches!(form, Form::CelJson | Form::CelCbor) {
        return Err(Failure::usage("the canonical event log (cel-json, cel-cbor) cannot be written yet")
            .next("use --to json, binary, binary-be or ascii"));
    }
    let mut pieces = source.open()?;
    let mut decoder = Decoder::new();
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let mut room = Vec::new();
    let mut ended = false;
    loop {
        match decoder.next_record() {
            Ok(Some(record)) => {
                room.clear();
                write_record(&record, form, escape, &mut room)?;
                if let Err(error) = out.write_all(&room) {
                    return reader_gone(&error);
                }
            }
            Ok(None) if ended => break,
            Ok(None) => match pieces.next()? {
                Some(piece) => decoder.feed(piece),
                None => {
                    decoder.end();
                    ended = true;
                }
            },
            Err(error) => {
                // What could be read is still worth having; a failure to write it changes nothing.
                if matches!(form, Form::Json) {
                    let begin = if error.entry == 1 { "{\n  \"schema\": 1,\n  \"entries\": [" } else { "" };
                    let _ = write!(out, "{begin}\n  ],\n  \"error\": {}\n}}\n", json!(error.to_string()));
                }
                let _ = out.flush();
                return Err(Failure::failed(format_args!("{}: {error}", source.name()))
                    .next("what was printed are the entries before it"));
            }
        }
    }
    let end: &[u8] = match (form, decoder.form()) {
        (Form::Json, Some(_)) => b"\n  ]\n}\n",
        (Form::Json, None) => b"{\n  \"schema\": 1,\n  \"entries\": []\n}\n",
        _ => b"",
    };
    match out.write_all(end).and_then(|()| out.flush()) {
        Ok(()) => Ok(Outcome::Done),
        Err(error) => reader_gone(&error),
    }
}

/// A reader that went away (`| head`) ends the program quietly, as tools do.
fn reader_gone(error: &io::Error) -> CommandResult {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(Outcome::Failed),
        _ => Err(Failure::failed(format_args!("standard output: {error}"))),
    }
}

fn write_record(record: &Record<'_>, form: Form, escape: bool, out: &mut Vec<u8>) -> Result<(), Failure> {
    match form {
        Form::Binary => {
            let order = match record.form {
                ListForm::Binary { order, .. } => order,
                ListForm::Ascii { .. } => ByteOrder::Little,
            };
            record.write_binary(order, out);
        }
        Form::BinaryLe => record.write_binary(ByteOrder::Little, out),
        Form::BinaryBe => record.write_binary(ByteOrder::Big, out),
        Form::Ascii => {
            record.write_ascii(out);
            if escape {
                *out = escape_controls(out);
            }
        }
        Form::Json => {
            let begin = if record.number == 1 { "{\n  \"schema\": 1,\n  \"entries\": [\n    " } else { ",\n    " };
            out.extend_from_slice(begin.as_bytes());
            serde_json::to_writer(out, &entry_json(record)).map_err(Failure::failed)?;
        }
        Form::CelJson | Form::CelCbor => return Err(Failure::usage("the canonical event log cannot be written yet")),
    }
    Ok(())
}

/// A line with its control characters, the ending newline excepted, as `\xNN`.
fn escape_controls(line: &[u8]) -> Vec<u8> {
    let (text, newline) = line.split_at(line.len().saturating_sub(1));
    let mut out = Vec::with_capacity(line.len());
    for byte in text {
        match byte {
            0..=0x1f | 0x7f => out.extend(format!("\\x{byte:02x}").bytes()),
            _ => out.push(*byte),
        }
    }
    out.extend_from_slice(newline);
    out
}

/// An entry with everything it holds: fields as the ascii list shows them and, where that loses something, their bytes.
fn entry_json(record: &Record<'_>) -> Value {
    let field = |(field, stored): (&imara_format::template::Field, &[u8])| {
        let mut shown = Vec::new();
        field.write_ascii(stored, &mut shown);
        let mut value = json!({ "field": field.id(), "value": String::from_utf8_lossy(&shown) });
        if field.read_ascii(&shown).as_deref() != Some(stored) || std::str::from_utf8(&shown).is_err() {
            value["hex"] = json!(to_hex(stored));
        }
        value
    };
    json!({
        "entry": record.number,
        "pcr": record.pcr,
        "template_digest": to_hex(record.template_digest),
        "template": record.template.listed_name(),
        "violation": record.is_violation(),
        "path": record.path().map(String::from_utf8_lossy),
        "digest": record.digest().map(|digest| digest.to_string()),
        "signature": record.signature().map(to_hex),
        "fields": record.template.fields.iter().zip(record.fields()).map(field).collect::<Vec<_>>(),
    })
}
