//! `imara measurement`: shows, verifies and converts measurement lists.
//!
//! A list is read in pieces and never held as a whole. PCR values are read before it, so that they can be older than the
//! list but never newer: what the list has gained in between is said to be unproven.

use super::CommandResult;
use super::paths::read_text;
use crate::guard::control::{Request, ask};
use crate::output::{Failure, Outcome, print, print_json};
use clap::{Args, Subcommand, ValueEnum};
use imara_attest::proof::{BootAggregate, MatchKind, Prover, Report, Verdict};
use imara_format::hash::{HashAlgorithm, to_hex};
use imara_format::measurement_list::{ByteOrder, Decoder, ListForm, Record};
use imara_format::pcr::PcrValues;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Measurement lists: show, verify, convert.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Show(Show),
    Verify(Verify),
    Convert(Convert),
}

/// Show a list: as text, unless told otherwise.
#[derive(Args)]
struct Show {
    /// As the kernel's binary list.
    #[arg(long, group = "form")]
    binary: bool,
    /// As the kernel's ascii list, byte for byte, also on a terminal.
    #[arg(long, group = "form")]
    ascii: bool,
    /// As JSON.
    #[arg(long, group = "form")]
    json: bool,
    #[command(flatten)]
    list: List,
}

/// Verify a list: that each entry holds together, and that all of them come to the PCR values.
///
/// Exit status: 0 proven (without PCR values: consistent, which the output says), 1 not, 2 wrong command line, 3 PCR
/// values could not be had.
#[derive(Args)]
struct Verify {
    #[command(flatten)]
    list: List,
    /// PCR values: lines `sha256:10 HEX`, the output of tpm2_pcrread, lines `PCR-10: HEX` (see --bank), or a folder like
    /// /sys/class/tpm/tpm0. Without: those of this machine for its own list, none for any other.
    #[arg(long, value_name = "PCRS")]
    pcrs: Vec<PathBuf>,
    /// The bank of values whose form names none.
    #[arg(long, value_name = "ALGORITHM", default_value = "sha1", value_parser = algorithm)]
    bank: HashAlgorithm,
    /// Accept a list that goes on after the entries that the PCR values prove: it has grown since they were read. The
    /// running provider's own list, which grows all the time, is always accepted so.
    #[arg(long)]
    prefix: bool,
    /// Print a report as JSON.
    #[arg(long)]
    json: bool,
    /// Print errors only.
    #[arg(long, conflicts_with = "json")]
    quiet: bool,
}

/// Convert a list into another form.
#[derive(Args)]
struct Convert {
    /// The list; `-` is standard input.
    list: PathBuf,
    /// The form. `binary` keeps the byte order of a binary list and is little-endian for an ascii list.
    #[arg(long, value_name = "FORM")]
    to: Form,
}

#[derive(Clone, Copy, ValueEnum)]
enum Form {
    Binary,
    BinaryLe,
    BinaryBe,
    Ascii,
    Json,
    CelJson,
    CelCbor,
}

#[derive(Args)]
struct List {
    /// The list, binary or ascii; `-` is standard input. Without: the running guard's, or else the kernel's.
    list: Option<PathBuf>,
    /// Where a running guard keeps its state.
    #[arg(long, value_name = "DIR", default_value = "/run/imara")]
    runtime_dir: PathBuf,
}

/// The kernel's list.
const KERNEL_LIST: &str = "/sys/kernel/security/ima/binary_runtime_measurements";
/// The folder of the kernel's lists, the one with the older name included.
const KERNEL_FOLDERS: [&str; 2] = ["/sys/kernel/security/ima/", "/sys/kernel/security/integrity/ima/"];
/// The PCR that kernels measure into unless built otherwise.
const IMA_PCR: u32 = 10;
/// The kernel's view of the TPM.
const KERNEL_TPM: &str = "/sys/class/tpm/tpm0";

fn algorithm(name: &str) -> Result<HashAlgorithm, String> {
    HashAlgorithm::from_name(name).ok_or_else(|| format!("no such hash algorithm: {name}"))
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: Arguments) -> CommandResult {
    match arguments.command {
        Command::Show(show) => {
            let form = match show {
                Show { binary: true, .. } => Form::Binary,
                Show { json: true, .. } => Form::Json,
                _ => Form::Ascii,
            };
            // A name can hold escape sequences, which a terminal would obey.
            let escape = !show.ascii && io::stdout().is_terminal();
            write_list(Source::find(&show.list)?, form, escape)
        }
        Command::Convert(convert) => write_list(Source::named(convert.list), convert.to, false),
        Command::Verify(verify) => self::verify(&verify),
    }
}

/// Where a list comes from, and so whose PCRs it went into.
enum Source {
    StandardInput,
    File(PathBuf),
    Guard(PathBuf),
    Kernel(PathBuf),
}

impl Source {
    /// Whether entries are added to it while it is read.
    const fn is_live(&self) -> bool {
        match self {
            Self::Guard(_) | Self::Kernel(_) => true,
            Self::StandardInput | Self::File(_) => false,
        }
    }

    fn named(path: PathBuf) -> Self {
        if path.as_os_str() == "-" { Self::StandardInput } else { Self::File(path) }
    }

    fn find(list: &List) -> Result<Self, Failure> {
        let guards = list.runtime_dir.join("measurements");
        match &list.list {
            Some(path) if *path == guards => Ok(Self::Guard(guards)),
            Some(path) if KERNEL_FOLDERS.iter().any(|folder| path.starts_with(folder)) => {
                Ok(Self::Kernel(path.clone()))
            }
            Some(path) => Ok(Self::named(path.clone())),
            None if guards.exists() => Ok(Self::Guard(guards)),
            None if is_hidden(&guards) => {
                Err(Failure::failed(format_args!("{}: it may not be looked at", guards.display()))
                    .next("run this as root, as the guard's owner"))
            }
            None if Path::new(KERNEL_LIST).exists() => Ok(Self::Kernel(KERNEL_LIST.into())),
            None => Err(Failure::lacking(format_args!(
                "there is no measurement list: no guard keeps one at {}, and the kernel has none at {KERNEL_LIST}",
                guards.display()
            ))
            .next("name a list, start `imara guard`, or run this as root where the kernel has IMA and securityfs")),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::StandardInput => "standard input".to_owned(),
            Self::File(path) | Self::Guard(path) | Self::Kernel(path) => path.display().to_string(),
        }
    }

    /// Standard input and pipes cannot.
    fn can_be_read_again(&self) -> bool {
        match self {
            Self::StandardInput => false,
            Self::File(path) | Self::Guard(path) | Self::Kernel(path) => path.is_file(),
        }
    }

    fn open(&self) -> Result<Pieces, Failure> {
        let (input, size): (Box<dyn Read>, _) = match self {
            Self::StandardInput => (Box::new(io::stdin()), None),
            Self::File(path) | Self::Guard(path) | Self::Kernel(path) => {
                let file = File::open(path).map_err(|error| unreadable(path, &error))?;
                let size = file.metadata().map_or(0, |metadata| metadata.len());
                // Files of securityfs have no size.
                (Box::new(file), (size > 0).then_some(size))
            }
        };
        Ok(Pieces { input, name: self.name(), room: vec![0; 1 << 20], progress: Progress::new(size) })
    }
}

/// Whether something may be there that we may not see.
fn is_hidden(path: &Path) -> bool {
    path.try_exists().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::failed(format_args!("{}: {error}", path.display()));
    match error.kind() {
        io::ErrorKind::PermissionDenied => failure.next("run this as root"),
        _ => failure,
    }
}

/// The pieces of a list.
struct Pieces {
    input: Box<dyn Read>,
    name: String,
    room: Vec<u8>,
    progress: Progress,
}

impl Pieces {
    /// The next piece; `None` at the end.
    fn next(&mut self) -> Result<Option<&[u8]>, Failure> {
        loop {
            match self.input.read(&mut self.room) {
                Ok(0) => return Ok(None),
                Ok(size) => {
                    self.progress.add(size);
                    return Ok(Some(&self.room[..size]));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::failed(format_args!("{}: {error}", self.name))),
            }
        }
    }
}

/// A bar on standard error, when it is a terminal and the work takes long.
struct Progress {
    bar: ProgressBar,
    begun: Instant,
    shown: bool,
}

impl Progress {
    fn new(size: Option<u64>) -> Self {
        let bar = ProgressBar::with_draw_target(size, ProgressDrawTarget::hidden());
        let template = if size.is_some() { "{wide_bar} {bytes}/{total_bytes} {eta}" } else { "{spinner} {bytes}" };
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, begun: Instant::now(), shown: false }
    }

    fn add(&mut self, size: usize) {
        if !self.shown && self.begun.elapsed() > Duration::from_secs(2) {
            self.shown = true;
            // Hidden by itself where standard error is no terminal.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.inc(size as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Writes a list to standard output in another form.
fn write_list(source: Source, form: Form, escape: bool) -> CommandResult {
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

/// Verifies a list.
fn verify(arguments: &Verify) -> CommandResult {
    let source = Source::find(&arguments.list)?;
    // Before the list, so that the list cannot be the older one.
    let claims = claimed(arguments, &source)?;
    let (mut report, mut is_ascii) = prove(&source, &claims, source.can_be_read_again())?;
    if source.can_be_read_again() && report.may_be_padded() {
        (report, is_ascii) = prove(&source, &claims, false)?;
    }
    let grown = !(arguments.prefix || source.is_live()) && report.verdict == Verdict::BeginningProven;
    let outcome = match report.verdict {
        Verdict::Proven | Verdict::OnlyConsistent => Outcome::Done,
        Verdict::BeginningProven if grown => Outcome::Failed,
        Verdict::BeginningProven => Outcome::Done,
        Verdict::Refused => Outcome::Failed,
    };
    if arguments.json {
        let mut value = serde_json::to_value(&report).map_err(Failure::failed)?;
        value["list"] = json!(source.name());
        print_json(&value);
        return Ok(outcome);
    }
    if !arguments.quiet {
        print(describe(&report, &source, &claims));
    }
    match (&report.bad_entry, &report.reason) {
        (Some(bad), _) => {
            let path = bad.path.as_ref().map(|path| format!(" ({path})")).unwrap_or_default();
            Err(Failure::failed(format_args!(
                "{}: entry {}{path}, at offset {}: {}",
                source.name(),
                bad.entry,
                bad.offset,
                bad.why
            ))
            .next(match (report.entries, is_ascii) {
                (0, _) => "this may be no measurement list, or its beginning is missing",
                (_, true) => "the list was changed, or the file's name holds a newline: verify the binary list",
                (_, false) => "the list was changed or cut from this entry on: get it from the machine anew",
            }))
        }
        (None, Some(reason)) => Err(Failure::failed(format_args!("{}: not proven: {reason}", source.name()))
            .next("the list was changed, or the PCR values are of another boot or machine")),
        (None, None) if grown => Err(Failure::failed(format_args!(
            "{}: the PCR values prove only the first {} of {} entries",
            source.name(),
            report.proven,
            report.entries
        ))
        .next("entries were added since the PCR values were read, or forged: read the values anew, or accept the rest as unproven with --prefix")),
        (None, None) => Ok(outcome),
    }
}

/// Reads and proves a list; with `per_bank_only` faster, but without the rarer ways to extend a PCR. Says also whether the
/// list is ascii.
fn prove(source: &Source, claims: &PcrValues, per_bank_only: bool) -> Result<(Report, bool), Failure> {
    let mut prover = Prover::new(claims.clone()).map_err(Failure::lacking)?;
    if claims.is_empty() {
        // The values are worth telling even though nothing is there to compare them with.
        prover = prover.with_banks(&[HashAlgorithm::Sha1, HashAlgorithm::Sha256]).map_err(Failure::lacking)?;
    }
    if per_bank_only {
        prover = prover.per_bank_only();
    }
    let mut pieces = source.open()?;
    while let Some(piece) = pieces.next()? {
        if !prover.feed(piece) {
            break;
        }
    }
    let is_ascii = matches!(prover.form(), Some(ListForm::Ascii { .. }));
    Ok((prover.finish().0, is_ascii))
}

/// What was and what was not proven, for people.
fn describe(report: &Report, source: &Source, claims: &PcrValues) -> String {
    let mut text = String::new();
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        // Writing into memory does not fail.
        let _ = writeln!(text, "{arguments}");
    };
    let Report { entries, violations, proven, .. } = report;
    line(format_args!("{}: entries {entries}, of them violations {violations}", source.name()));
    for pcr in &report.pcrs {
        let verdict = match (&pcr.claimed, &pcr.matched) {
            (None, _) => format!("{} (no value given)", pcr.replayed),
            (Some(claimed), None) => format!("differs: given {claimed}, replayed {}", pcr.replayed),
            (Some(_), Some(matched)) => {
                let by = match matched.by {
                    MatchKind::PerBank => "",
                    MatchKind::Sha1Padded => ", with SHA-1 template digests padded with zeros",
                    MatchKind::Sha1PaddedViolations => ", with SHA-1 template digests and violations padded with zeros",
                };
                let until = match matched.up_to_entry {
                    up_to if up_to == *entries => String::new(),
                    up_to => format!(" after entry {up_to}"),
                };
                format!("matches{until}{by}")
            }
        };
        line(format_args!("{} PCR {}, entries {}: {verdict}", pcr.bank, pcr.pcr, pcr.entries));
    }
    match &report.boot_aggregate {
        BootAggregate::Absent if *entries == 0 => {}
        BootAggregate::Absent => line(format_args!("boot_aggregate: the list does not begin with one")),
        BootAggregate::NoTpm => line(format_args!("boot_aggregate: zero, so the kernel had no TPM to sum up")),
        BootAggregate::Unchecked if claims.is_empty() => {}
        BootAggregate::Unchecked => {
            line(format_args!(
                "boot_aggregate: not checked, for that PCRs 0 to 9 (0 to 7 in sha1) are needed, and not all zero"
            ));
        }
        BootAggregate::Matched => line(format_args!("boot_aggregate: sums up the PCR values given")),
        BootAggregate::Mismatched { listed, computed } => {
            line(format_args!("boot_aggregate: listed as {listed}, but the PCR values give {computed}"));
        }
    }
    match report.verdict {
        Verdict::Proven => line(format_args!("proven: all {entries} entries")),
        Verdict::BeginningProven => line(format_args!(
            "proven: entries 1 to {proven}; NOT proven: the {} after them, which came after the PCR values",
            entries - proven
        )),
        Verdict::OnlyConsistent => line(format_args!(
            "NOT proven: no PCR values were given. Each entry's template digest fits its fields, which a forger can do \
             as well"
        )),
        Verdict::Refused => {}
    }
    if matches!(report.verdict, Verdict::Proven | Verdict::BeginningProven) {
        let also = match violations {
            0 => String::new(),
            1 => ", nor which file the violation concerns".to_owned(),
            _ => format!(", nor which files the {violations} violations concern"),
        };
        line(format_args!("no PCR proves the names of templates{also}"));
    }
    if claims.iter().any(|(pcr, value)| pcr == IMA_PCR && !value.is_zero())
        && report.pcrs.iter().all(|pcr| pcr.pcr != IMA_PCR)
    {
        line(format_args!(
            "PCR {IMA_PCR} has a value, but the list has no entry for it: this list is not all there is"
        ));
    }
    text
}

/// The PCR values to prove the list with.
fn claimed(arguments: &Verify, source: &Source) -> Result<PcrValues, Failure> {
    if arguments.pcrs.is_empty() {
        return match source {
            Source::StandardInput | Source::File(_) => Ok(PcrValues::new()),
            Source::Guard(_) => guard_pcrs(&arguments.list.runtime_dir),
            Source::Kernel(path) => {
                let values = read_folder(Path::new(KERNEL_TPM))?;
                if values.is_empty() {
                    return Err(Failure::lacking(format_args!(
                        "{KERNEL_TPM} has no PCR values to prove the list with"
                    ))
                    .next(format_args!(
                        "`imara measurement verify - < {}` checks the entries without a TPM",
                        path.display()
                    )));
                }
                Ok(values)
            }
        };
    }
    let mut values = PcrValues::new();
    for path in &arguments.pcrs {
        for (pcr, value) in read_pcrs(path, arguments.bank, source)?.iter() {
            values.insert(pcr, value).map_err(|error| Failure::failed(format_args!("{}: {error}", path.display())))?;
        }
    }
    if values.is_empty() {
        return Err(Failure::failed("--pcrs: there is no PCR value in what was given"));
    }
    Ok(values)
}

/// The values of the PCRs that the running guard extends.
fn guard_pcrs(runtime_dir: &Path) -> Result<PcrValues, Failure> {
    let answer = ask(runtime_dir, &Request::Pcrs)?;
    let text = answer.as_str().ok_or_else(|| Failure::failed("the guard's answer holds no PCR values"))?;
    PcrValues::from_text(text, HashAlgorithm::Sha1)
        .map_err(|error| Failure::failed(format_args!("the guard's PCR values: {error}")))
}

/// PCR values from a file, a folder or standard input; a file may be given as evmctl takes it, `ALGORITHM,FILE`.
fn read_pcrs(path: &Path, bank: HashAlgorithm, source: &Source) -> Result<PcrValues, Failure> {
    let split = path.to_str().and_then(|text| text.split_once(','));
    let (path, bank) = match split.and_then(|(name, file)| Some((HashAlgorithm::from_name(name)?, file))) {
        Some((bank, file)) if !path.exists() => (Path::new(file), bank),
        _ => (path, bank),
    };
    if path.is_dir() {
        return read_folder(path);
    }
    if path.as_os_str() == "-" && matches!(source, Source::StandardInput) {
        return Err(Failure::usage("the list and the PCR values cannot both come from standard input"));
    }
    let text = read_text(path).map_err(|error| unreadable(path, &error))?;
    PcrValues::from_text(&text, bank).map_err(|error| Failure::failed(format_args!("{}, {error}", path.display())))
}

/// PCR values from a folder of sysfs: `pcr-ALG` or one that has such folders.
fn read_folder(folder: &Path) -> Result<PcrValues, Failure> {
    let bank_of = |path: &Path| HashAlgorithm::from_name(path.file_name()?.to_str()?.strip_prefix("pcr-")?);
    let mut values = PcrValues::new();
    let banks = match bank_of(folder) {
        Some(_) => vec![folder.to_owned()],
        None => children(folder)?,
    };
    for path in banks {
        let Some(bank) = bank_of(&path) else { continue };
        for file in children(&path)? {
            let content = fs::read_to_string(&file).map_err(|error| unreadable(&file, &error))?;
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            values
                .add_sysfs(bank, [(name.as_ref(), content.as_str())])
                .map_err(|error| Failure::failed(format_args!("{}, {error}", folder.display())))?;
        }
    }
    Ok(values)
}

/// What a folder holds; nothing if it is not there.
fn children(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let read = || fs::read_dir(folder)?.map(|child| Ok(child?.path())).collect::<io::Result<Vec<_>>>();
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(unreadable(folder, &error)),
        Ok(children) => Ok(children),
    }
}
