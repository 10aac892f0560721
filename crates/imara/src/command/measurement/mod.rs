//! `imara measurement`: shows, verifies and converts measurement lists.
//!
//! A list is read in pieces and never held as a whole.

mod cel;
mod verify;
mod write;

pub use verify::{prove_file, why_not_proven};

use super::{CommandResult, pcr_files};
use crate::output::{Failure, tell};
use clap::{Args, Subcommand, ValueEnum};
use imara_format::hash::HashAlgorithm;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fs::File;
use std::io::{self, IsTerminal, Read};
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
    Verify(verify::Verify),
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

/// Convert a list into another form.
///
/// A Canonical Event Log says what was extended, so each entry's template digest is computed anew; it ends before an entry whose
/// listed one is another. The other forms have such entries as they are.
///
/// Exit status: 0 converted, 1 not all of it (what was printed are the entries before), 2 wrong command line.
#[derive(Args)]
struct Convert {
    /// The list; `-` is standard input.
    list: PathBuf,
    /// The form.
    #[arg(long, value_name = "FORM")]
    to: Form,
    /// The PCR banks whose digests a Canonical Event Log has, separated by commas; without, sha1 and sha256. A digest is what
    /// is extended into the bank: the template digest, or 0xff bytes for a violation.
    #[arg(long, value_name = "ALGORITHM", value_delimiter = ',', value_parser = cel::bank)]
    bank: Option<Vec<HashAlgorithm>>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Form {
    /// The kernel's binary list, in the byte order that a binary list has; little-endian for an ascii list.
    Binary,
    /// The kernel's binary list, little-endian.
    BinaryLe,
    /// The kernel's binary list, big-endian.
    BinaryBe,
    /// The kernel's ascii list.
    Ascii,
    /// JSON, with each field as text.
    Json,
    /// Canonical Event Log of the TCG in JSON: an array of records.
    CelJson,
    /// Canonical Event Log in CBOR: an array of records, deterministically encoded.
    CelCbor,
    /// Canonical Event Log in TLV: records one after the other.
    CelTlv,
}

impl Form {
    const fn is_canonical_log(self) -> bool {
        match self {
            Self::CelJson | Self::CelCbor | Self::CelTlv => true,
            Self::Binary | Self::BinaryLe | Self::BinaryBe | Self::Ascii | Self::Json => false,
        }
    }
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
            write::write_list(Source::find(&show.list)?, form, escape, None)
        }
        Command::Convert(Convert { list, to, bank }) => {
            if bank.is_some() && !to.is_canonical_log() {
                return Err(Failure::usage(
                    "--bank is for Canonical Event Logs, and the other forms keep the digests of the list",
                )
                .next("leave it out, or use --to cel-json, cel-cbor or cel-tlv"));
            }
            write::write_list(Source::named(list), to, false, bank.as_deref())
        }
        Command::Verify(arguments) => verify::verify(&arguments),
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
        tell(format_args!("reading the list from {}", self.name()));
        let (input, size): (Box<dyn Read>, _) = match self {
            Self::StandardInput => (Box::new(io::stdin()), None),
            Self::File(path) | Self::Guard(path) | Self::Kernel(path) => {
                let file = File::open(path).map_err(|error| pcr_files::unreadable(path, &error))?;
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
