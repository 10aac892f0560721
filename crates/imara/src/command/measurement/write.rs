//! `imara measurement show` and `convert`: a list in another form, written as it is read.

use super::cel::CanonicalLog;
use super::{Form, Pieces, Source};
use crate::command::CommandResult;
use crate::output::{Failure, Outcome};
use imara_format::cel::Encoding;
use imara_format::hash::{HashAlgorithm, to_hex};
use imara_format::measurement_list::{ByteOrder, Decoder, ListForm, Record};
use serde_json::{Value, json};
use std::io::{self, BufWriter, Write};

/// Writes a list to standard output in another form; `banks` are for Canonical Event Logs.
pub fn write_list(source: Source, form: Form, escape: bool, banks: Option<&[HashAlgorithm]>) -> CommandResult {
    let mut shape = Shape::new(form, escape, banks)?;
    let mut pieces = source.open()?;
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let (failure, error) = match copy(&mut pieces, &mut shape, &mut out) {
        Ok(()) => {
            return match shape.end(None, &mut out).and_then(|()| out.flush()) {
                Ok(()) => Ok(Outcome::Done),
                Err(error) => reader_gone(&error),
            };
        }
        Err(Stop::Output(error)) => return reader_gone(&error),
        Err(Stop::List(error)) => (Failure::failed(format_args!("{}: {error}", source.name())), error),
        Err(Stop::Input(failure)) => (Failure::failed(&failure.what), failure.what),
    };
    // What could be read is still worth having; a failure to write it changes nothing.
    let _ = shape.end(Some(&error), &mut out).and_then(|()| out.flush());
    Err(failure.next("what was printed are the entries before it"))
}

/// Why not the whole list was written.
enum Stop {
    /// It is no list, or not from an entry on.
    List(String),
    /// It could not be read.
    Input(Failure),
    /// Standard output.
    Output(io::Error),
}

/// Writes the entries.
fn copy(pieces: &mut Pieces, shape: &mut Shape, out: &mut impl Write) -> Result<(), Stop> {
    let mut decoder = Decoder::new();
    let mut room = Vec::new();
    let mut ended = false;
    loop {
        match decoder.next_record() {
            Ok(Some(record)) => {
                room.clear();
                shape.record(&record, &mut room)?;
                out.write_all(&room).map_err(Stop::Output)?;
            }
            Ok(None) if ended => return Ok(()),
            Ok(None) => match pieces.next().map_err(Stop::Input)? {
                Some(piece) => decoder.feed(piece),
                None => {
                    decoder.end();
                    ended = true;
                }
            },
            Err(error) => return Err(Stop::List(error.to_string())),
        }
    }
}

/// A reader that went away (`| head`) ends the program quietly, as tools do.
fn reader_gone(error: &io::Error) -> CommandResult {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(Outcome::Failed),
        _ => Err(Failure::failed(format_args!("standard output: {error}"))),
    }
}

/// The form that entries are written in.
enum Shape {
    /// In a byte order, or in the list's own.
    Binary(Option<ByteOrder>),
    Ascii {
        escape: bool,
    },
    Json {
        begun: bool,
    },
    Canonical(Box<CanonicalLog>),
}

impl Shape {
    fn new(form: Form, escape: bool, banks: Option<&[HashAlgorithm]>) -> Result<Self, Failure> {
        let encoding = match form {
            Form::Binary => return Ok(Self::Binary(None)),
            Form::BinaryLe => return Ok(Self::Binary(Some(ByteOrder::Little))),
            Form::BinaryBe => return Ok(Self::Binary(Some(ByteOrder::Big))),
            Form::Ascii => return Ok(Self::Ascii { escape }),
            Form::Json => return Ok(Self::Json { begun: false }),
            Form::CelJson => Encoding::Json,
            Form::CelCbor => Encoding::Cbor,
            Form::CelTlv => Encoding::Tlv,
        };
        Ok(Self::Canonical(Box::new(CanonicalLog::new(encoding, banks)?)))
    }

    /// Appends an entry.
    fn record(&mut self, record: &Record<'_>, out: &mut Vec<u8>) -> Result<(), Stop> {
        match self {
            Self::Binary(order) => {
                let own = match record.form {
                    ListForm::Binary { order, .. } => order,
                    ListForm::Ascii { .. } => ByteOrder::Little,
                };
                record.write_binary(order.unwrap_or(own), out);
            }
            Self::Ascii { escape } => {
                record.write_ascii(out);
                if *escape {
                    *out = escape_controls(out);
                }
            }
            Self::Json { begun } => {
                out.extend_from_slice(if *begun { b",\n    " } else { b"{\n  \"schema\": 1,\n  \"entries\": [\n    " });
                *begun = true;
                serde_json::to_writer(out, &entry_json(record)).map_err(|error| Stop::Output(error.into()))?;
            }
            Self::Canonical(log) => log.record(record, out).map_err(|error| Stop::List(error.to_string()))?,
        }
        Ok(())
    }

    /// Writes what stands after the last entry, and what was wrong after it where the form has room for that.
    fn end(&mut self, error: Option<&str>, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Binary(_) | Self::Ascii { .. } => Ok(()),
            Self::Json { begun } => {
                let begin = if *begun { "\n  " } else { "{\n  \"schema\": 1,\n  \"entries\": [" };
                let error = error.map(|error| format!(",\n  \"error\": {}", json!(error))).unwrap_or_default();
                write!(out, "{begin}]{error}\n}}\n")
            }
            Self::Canonical(log) => log.end(out),
        }
    }
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
