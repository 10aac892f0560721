//! The integrity subsystem's parameters on a kernel's command line, read as the kernel reads them.
//!
//! ```text
//! line   = *space *( word 1*space ) [ "--" words for init ]
//! word   = name [ "=" value ]             `-` and `_` are the same letter in a name
//!          spaces between double quotes are part of the word; a quote cannot be escaped
//! ```
//!
//! A quote at the word's or the value's beginning is taken away with the one at the word's end; others stay in the value.
//!
//! | parameter | name compared | said twice |
//! |---|---|---|
//! | `ima_policy=` | whole | items add up |
//! | `ima_tcb`, `ima_appraise_tcb`, `ima_canonical_fmt` | its beginning: `ima_tcbx` and `ima_tcb=0` count too | no difference |
//! | `ima_appraise=` | whole | the last one counts, valid or not |
//! | `ima_hash=` | whole | the first valid one counts |
//! | `ima_template=`, `ima_template_fmt=` | whole | the first valid one of both counts |
//! | `integrity_audit=`, `ima.ahash_…=` | whole | the last valid one counts |
//! | `evm=`, `ima=` | whole | `fix` stays; the last valid one counts |
//! | `trusted.source=`, `trusted.rng=`, `lsm=` | whole | the last one counts, valid or not |
//!
//! Nothing on a command line is an error: what the kernel does not take it skips. Each such [`Problem`] says where, what,
//! and what the kernel does instead.
//!
//! Source: Documentation/admin-guide/kernel-parameters.txt; `next_arg`, lib/cmdline.c; `parse_args`, kernel/params.c;
//! `obsolete_checksetup`, init/main.c; the `__setup` functions of security/integrity.

use crate::hash::HashAlgorithm;
use crate::kernel_config::KernelConfig;
use crate::kernel_number::{base, parse_u64};
use crate::policy::KernelVersion;
use crate::template::{Field, MAX_FIELDS, Template};
use std::borrow::Cow;

/// What a command line says to the integrity subsystem.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootParameters {
    /// The measurement policy chosen.
    pub tcb: Option<Tcb>,
    /// `ima_policy=appraise_tcb`, `ima_appraise_tcb`: all that root owns is appraised.
    pub appraise_tcb: bool,
    /// `ima_policy=secure_boot`: what the kernel itself reads needs a signature.
    pub secure_boot: bool,
    /// `ima_policy=critical_data`: the kernel's own data is measured.
    pub critical_data: bool,
    /// `ima_policy=fail_securely`: signatures on filesystems that cannot be trusted fail.
    pub fail_securely: bool,
    /// `ima_appraise=`.
    pub appraise: Option<AppraiseMode>,
    /// `ima_hash=`.
    pub hash: Option<HashAlgorithm>,
    /// `ima_template=`, `ima_template_fmt=`; without fields after an empty `ima_template=`, with which IMA does not start.
    pub template: Option<Template>,
    /// `ima_canonical_fmt`: little-endian lists on big-endian machines.
    pub canonical_fmt: bool,
    /// `integrity_audit=`: informational audit records.
    pub integrity_audit: bool,
    /// `ima=`, which counts only in a kernel started after a crash.
    pub ima: Option<bool>,
    /// `ima.ahash_minsize=`: the size in bytes from which files are hashed asynchronously.
    pub ahash_minsize: Option<u64>,
    /// `ima.ahash_bufsize=`: the buffer in bytes for it.
    pub ahash_bufsize: Option<u64>,
    /// `evm=fix`.
    pub evm_fix: bool,
    /// `trusted.source=`.
    pub trusted_source: Option<TrustedSource>,
    /// `trusted.rng=`.
    pub trusted_rng: Option<TrustedRng>,
    /// `lsm=`: the security modules to start.
    pub lsm: Option<String>,
    /// Whatever is not taken as it is written, in the line's order.
    pub problems: Vec<Problem>,
}

/// A measurement policy that is built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tcb {
    /// `ima_tcb`.
    Old,
    /// `ima_policy=tcb`.
    New,
}

/// `ima_appraise=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppraiseMode {
    /// Nothing is appraised.
    Off,
    /// It is recorded.
    Log,
    /// It is recorded, and digests are written.
    Fix,
    /// What does not verify is refused.
    Enforce,
}

impl AppraiseMode {
    const ALL: [Self; 4] = [Self::Off, Self::Log, Self::Fix, Self::Enforce];

    /// Its word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Log => "log",
            Self::Fix => "fix",
            Self::Enforce => "enforce",
        }
    }
}

/// Where trusted keys come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustedSource {
    /// The TPM.
    Tpm,
    /// A trusted execution environment.
    Tee,
    /// NXP's Cryptographic Acceleration and Assurance Module.
    Caam,
    /// NXP's Data Co-Processor (6.10 on).
    Dcp,
}

impl TrustedSource {
    const ALL: [Self; 4] = [Self::Tpm, Self::Tee, Self::Caam, Self::Dcp];

    /// Its word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tpm => "tpm",
            Self::Tee => "tee",
            Self::Caam => "caam",
            Self::Dcp => "dcp",
        }
    }

    fn known(kernel: KernelVersion) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |source| *source != Self::Dcp || kernel > KernelVersion::V6_1)
    }
}

/// What makes the random bytes of new trusted keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustedRng {
    /// `default`: the source's own generator.
    Default,
    /// `kernel`: the kernel's.
    Kernel,
    /// That of this source, which must be the one in use.
    Source(TrustedSource),
}

/// Something on the command line that the kernel does not take as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, in bytes from the line's beginning.
    pub offset: usize,
    /// What was found there.
    pub found: String,
    /// What the kernel does with it.
    pub kind: ProblemKind,
}

/// What the kernel does with what it does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProblemKind {
    /// A name that looks like one of the subsystem's.
    #[error("is no parameter of Linux {0}: it does nothing")]
    NotAParameter(KernelVersion),
    /// The parameter exists, the kernel was built without it.
    #[error("does nothing: the kernel is built without CONFIG_{0}")]
    NotBuiltIn(&'static str),
    /// It follows `--`.
    #[error("does nothing: what follows `--` is for init")]
    AfterDashes,
    /// Nothing but the name.
    #[error("does nothing without a value")]
    NoValue,
    /// More than there is room for.
    #[error("is longer than {0} bytes: it is ignored")]
    TooLong(usize),
    /// A quotation mark that is not closed.
    #[error("the quotation mark is not closed: all the rest of the line is taken as this word")]
    OpenQuote,
    /// Longer or with more to it than what is compared.
    #[error("is taken as `{0}`: only the beginning is compared")]
    TakenAs(&'static str),
    /// A word of `ima_policy=` that does not exist.
    #[error("is no built-in policy: it is ignored, the other items count")]
    NoSuchPolicy,
    /// `tcb` after `tcb` or `ima_tcb`.
    #[error("is ignored: `{0}` came first")]
    TcbChosen(&'static str),
    /// A later occurrence takes its place.
    #[error("is ignored: `{0}=` comes again, and the last one counts")]
    Overridden(&'static str),
    /// An earlier occurrence stays.
    #[error("is ignored: `{0}` came first")]
    Later(String),
    /// A value out of a closed set.
    #[error("is none of {0}: it is ignored")]
    NoneOf(&'static str),
    /// An unknown hash algorithm.
    #[error("is no hash algorithm of Linux {0}: it is ignored")]
    NoSuchHash(KernelVersion),
    /// A hash algorithm that the template cannot hold.
    #[error("does not go with the template `ima`, which holds sha1 or md5: it is ignored")]
    HashForLegacyTemplate,
    /// The other way round.
    #[error("does not go with ima_hash={0}, which came first: it is ignored")]
    LegacyTemplateForHash(HashAlgorithm),
    /// Template `ima` by its format, which escapes that check.
    #[error("is the template `ima`, though ima_hash={0} does not go with it: named by its format it is not checked")]
    LegacyTemplateUnchecked(HashAlgorithm),
    /// An unknown template.
    #[error("is no template: it is ignored")]
    NoSuchTemplate,
    /// An empty `ima_template=`.
    #[error("names the template without fields: with it IMA does not start")]
    EmptyTemplate,
    /// Too many fields.
    #[error("has {0} fields, {MAX_FIELDS} are the most: it is ignored")]
    TooManyFields(usize),
    /// An unknown field.
    #[error("is no template field: the whole format is ignored")]
    NoSuchField,
    /// Not a number, or not one that fits.
    #[error("is no number that fits: it is ignored")]
    NotANumber,
    /// `ima=` in a kernel that was not started after a crash.
    #[error("is ignored: this counts only in a kernel started after a crash (one with `elfcorehdr=`)")]
    NotAfterACrash,
    /// `lsm=` without `integrity` on a kernel where IMA needs it.
    #[error("leaves out `integrity`: on Linux 6.1 the kernel panics at the first file that the policy asks about")]
    WithoutIntegrity,
}

impl BootParameters {
    /// Reads a command line as a kernel of that version and with those build options does. A NUL ends the line.
    pub fn parse(line: &[u8], kernel: KernelVersion, config: &KernelConfig) -> Self {
        let line = line.split(|byte| *byte == 0).next().unwrap_or(line);
        let mut reader = Reader {
            kernel,
            config,
            after_crash: words(line)
                .take_while(|word| !word.ends_parameters())
                .any(|word| word.normal_name() == b"elfcorehdr" && word.value.is_some()),
            appraise: None,
            trusted_source: None,
            trusted_rng: None,
            lsm: None,
            found: Self::default(),
        };
        let mut for_init = false;
        for word in words(line) {
            if word.open_quote && !for_init {
                reader.report(word.whole, ProblemKind::OpenQuote);
            }
            if for_init {
                if looks_like_ours(&word.normal_name()) {
                    reader.report(word.whole, ProblemKind::AfterDashes);
                }
            } else if word.ends_parameters() {
                for_init = true;
            } else {
                reader.word(&word);
            }
        }
        reader.finish()
    }
}

/// A piece of the line.
#[derive(Clone, Copy)]
struct Piece<'a> {
    offset: usize,
    text: &'a [u8],
}

impl<'a> Piece<'a> {
    fn lossy(self) -> String {
        String::from_utf8_lossy(self.text).into_owned()
    }

    /// The value as text; what is not UTF-8 names nothing.
    fn utf8(self) -> &'a str {
        std::str::from_utf8(self.text).unwrap_or("\u{fffd}")
    }

    /// Parts between separators, with their places.
    fn split(self, separator: impl Fn(u8) -> bool) -> impl Iterator<Item = Piece<'a>> {
        let mut offset = self.offset;
        self.text.split(move |byte| separator(*byte)).map(move |text| {
            let piece = Piece { offset, text };
            offset = offset.saturating_add(text.len()).saturating_add(1);
            piece
        })
    }
}

/// A word of the line, without its quotes.
struct Word<'a> {
    whole: Piece<'a>,
    name: Piece<'a>,
    value: Option<Piece<'a>>,
    open_quote: bool,
}

impl Word<'_> {
    /// The name with `_` for `-`.
    fn normal_name(&self) -> Vec<u8> {
        self.name.text.iter().map(|byte| if *byte == b'-' { b'_' } else { *byte }).collect()
    }

    fn ends_parameters(&self) -> bool {
        self.name.text == b"--" && self.value.is_none()
    }
}

/// The kernel's idea of a space: that of Latin-1, where 0xa0 is one.
const fn is_space(byte: u8) -> bool {
    matches!(byte, 9..=13 | 32 | 0xa0)
}

fn words(line: &[u8]) -> impl Iterator<Item = Word<'_>> {
    let mut next = 0_usize;
    std::iter::from_fn(move || {
        let after = |from: usize| line.get(from..).unwrap_or_default();
        next = next.saturating_add(after(next).iter().take_while(|byte| is_space(**byte)).count());
        if after(next).is_empty() {
            return None;
        }
        let begin = next;
        let quoted = after(begin).starts_with(b"\"");
        let start = begin.saturating_add(usize::from(quoted));
        let (mut in_quote, mut equals) = (quoted, None);
        let mut end = start;
        for byte in after(start) {
            match byte {
                _ if is_space(*byte) && !in_quote => break,
                // One at the very beginning is part of the name.
                b'=' if equals.is_none() && end > start => equals = Some(end),
                b'"' => in_quote = !in_quote,
                _ => {}
            }
            end = end.saturating_add(1);
        }
        next = end;
        let slice = |from: usize, to: usize| Piece { offset: from, text: line.get(from..to).unwrap_or_default() };
        let mut to = end;
        let value_start = equals.map(|equals| equals.saturating_add(1));
        let value_quoted = value_start.is_some_and(|start| after(start).starts_with(b"\""));
        let closed = end > start && slice(start, end).text.ends_with(b"\"");
        if (quoted || value_quoted) && closed {
            to = end.saturating_sub(1);
        }
        Some(Word {
            whole: slice(begin, end),
            name: slice(start, equals.unwrap_or(to)),
            value: value_start.map(|start| slice(start.saturating_add(usize::from(value_quoted)), to)),
            open_quote: in_quote,
        })
    })
}

/// Whether a name that no parameter has was meant for the integrity subsystem.
fn looks_like_ours(name: &[u8]) -> bool {
    ["ima", "evm", "integrity"].iter().any(|subsystem| {
        name.strip_prefix(subsystem.as_bytes()).is_some_and(|rest| matches!(rest.first(), None | Some(b'_' | b'.')))
    })
}

const POLICIES: &str = "ima_policy";
const APPRAISE: &str = "ima_appraise";

/// The longest text, in bytes, that a module's parameter takes (`param_set_charp`).
const MAX_CHARP: usize = 1024;

struct Reader<'a> {
    kernel: KernelVersion,
    config: &'a KernelConfig,
    after_crash: bool,
    /// The last value so far, of those of which the kernel looks only at the last.
    appraise: Option<Piece<'a>>,
    trusted_source: Option<Piece<'a>>,
    trusted_rng: Option<Piece<'a>>,
    lsm: Option<Piece<'a>>,
    found: BootParameters,
}

impl<'a> Reader<'a> {
    fn report(&mut self, piece: Piece<'_>, kind: ProblemKind) {
        self.found.problems.push(Problem { offset: piece.offset, found: piece.lossy(), kind });
    }

    fn word(&mut self, word: &Word<'a>) {
        let name = word.normal_name();
        let name = std::str::from_utf8(&name).unwrap_or_default();
        for flag in ["ima_tcb", "ima_appraise_tcb", "ima_canonical_fmt"] {
            let Some(rest) = name.strip_prefix(flag) else { continue };
            if !self.config.ima {
                return self.report(word.whole, ProblemKind::NotBuiltIn("IMA"));
            }
            match flag {
                "ima_tcb" => self.found.tcb = self.found.tcb.or(Some(Tcb::Old)),
                "ima_appraise_tcb" => self.found.appraise_tcb = true,
                _ => self.found.canonical_fmt = true,
            }
            if !rest.is_empty() || word.value.is_some() {
                self.report(word.whole, ProblemKind::TakenAs(flag));
            }
            return;
        }
        let built_in = match name {
            POLICIES | "ima_hash" | "ima_template" | "ima_template_fmt" => Some((self.config.ima, "IMA")),
            "ima.ahash_minsize" | "ima.ahash_bufsize" => Some((self.config.ima, "IMA")),
            "ima" if self.kernel == KernelVersion::Latest => Some((self.config.ima, "IMA")),
            APPRAISE => Some((self.config.ima_appraise_bootparam, "IMA_APPRAISE_BOOTPARAM")),
            "integrity_audit" => Some((self.config.integrity_audit, "INTEGRITY_AUDIT")),
            "evm" => Some((self.config.evm, "EVM")),
            "trusted.source" | "trusted.rng" => Some((self.config.trusted_keys, "TRUSTED_KEYS")),
            "lsm" => Some((true, "SECURITY")),
            _ => None,
        };
        let value = match (built_in, word.value) {
            (None, _) if !looks_like_ours(name.as_bytes()) => return,
            (None, _) => return self.report(word.whole, ProblemKind::NotAParameter(self.kernel)),
            (Some((false, option)), _) => return self.report(word.whole, ProblemKind::NotBuiltIn(option)),
            (Some((true, _)), None) => return self.report(word.whole, ProblemKind::NoValue),
            (Some((true, _)), Some(value)) => value,
        };
        match name {
            POLICIES => self.policies(value),
            APPRAISE => self.last(|reader| &mut reader.appraise, APPRAISE, value, MAX_CHARP),
            "ima_hash" => self.hash(word, value),
            "ima_template" => self.template(word, value),
            "ima_template_fmt" => self.template_format(word, value),
            "ima" => self.ima(word, value),
            "integrity_audit" => match parse_u64(value.text).ok() {
                Some(number) => self.found.integrity_audit = number != 0,
                None => self.report(value, ProblemKind::NotANumber),
            },
            "ima.ahash_minsize" => match parse_u64(value.text).ok() {
                Some(size) => self.found.ahash_minsize = Some(size),
                None => self.report(value, ProblemKind::NotANumber),
            },
            "ima.ahash_bufsize" => match buffer_size(value.text) {
                Some(size) => self.found.ahash_bufsize = Some(size),
                None => self.report(value, ProblemKind::NotANumber),
            },
            "evm" => match value.text.strip_prefix(b"fix") {
                Some(rest) => {
                    self.found.evm_fix = true;
                    if !rest.is_empty() {
                        self.report(value, ProblemKind::TakenAs("fix"));
                    }
                }
                None => self.report(value, ProblemKind::NoneOf("fix")),
            },
            "trusted.source" => self.last(|reader| &mut reader.trusted_source, "trusted.source", value, MAX_CHARP),
            "trusted.rng" => self.last(|reader| &mut reader.trusted_rng, "trusted.rng", value, MAX_CHARP),
            _ => self.last(|reader| &mut reader.lsm, "lsm", value, usize::MAX),
        }
    }

    /// Keeps a value of a parameter of which the last one counts, if it has at most so many bytes.
    fn last(
        &mut self,
        slot: impl Fn(&mut Self) -> &mut Option<Piece<'a>>,
        name: &'static str,
        value: Piece<'a>,
        most: usize,
    ) {
        if value.text.len() > most {
            return self.report(value, ProblemKind::TooLong(most));
        }
        if let Some(earlier) = slot(self).replace(value) {
            self.report(earlier, ProblemKind::Overridden(name));
        }
    }

    fn policies(&mut self, value: Piece<'a>) {
        for item in value.split(|byte| matches!(byte, b' ' | b'|' | b'\n')) {
            match (item.text, self.found.tcb) {
                (b"tcb", None) => self.found.tcb = Some(Tcb::New),
                (b"tcb", Some(Tcb::Old)) => self.report(item, ProblemKind::TcbChosen("ima_tcb")),
                (b"tcb", Some(Tcb::New)) => self.report(item, ProblemKind::TcbChosen("ima_policy=tcb")),
                (b"appraise_tcb", _) => self.found.appraise_tcb = true,
                (b"secure_boot", _) => self.found.secure_boot = true,
                (b"critical_data", _) => self.found.critical_data = true,
                (b"fail_securely", _) => self.found.fail_securely = true,
                _ => self.report(item, ProblemKind::NoSuchPolicy),
            }
        }
    }

    /// Whether what came so far makes lists with the template `ima`.
    fn legacy_template(&self) -> bool {
        self.found.template.as_ref().unwrap_or(self.config.default_template).is_legacy()
    }

    fn hash(&mut self, word: &Word<'_>, value: Piece<'a>) {
        if let Some(chosen) = self.found.hash {
            return self.report(word.whole, ProblemKind::Later(format!("ima_hash={chosen}")));
        }
        if self.legacy_template() {
            let legacy = [HashAlgorithm::Sha1, HashAlgorithm::Md5];
            match legacy.into_iter().find(|hash| value.text.starts_with(hash.name().as_bytes())) {
                None => self.report(value, ProblemKind::HashForLegacyTemplate),
                Some(hash) => {
                    self.found.hash = Some(hash);
                    if value.text != hash.name().as_bytes() {
                        self.report(value, ProblemKind::TakenAs(hash.name()));
                    }
                }
            }
            return;
        }
        match HashAlgorithm::from_name(value.utf8()) {
            Some(hash) if known_hash(hash, self.kernel) => self.found.hash = Some(hash),
            Some(_) | None => self.report(value, ProblemKind::NoSuchHash(self.kernel)),
        }
    }

    /// Whether a template has been chosen; then `word` is reported.
    fn template_chosen(&mut self, word: &Word<'_>) -> bool {
        let Some(chosen) = &self.found.template else { return false };
        let kind = ProblemKind::Later(match &*chosen.name {
            "" if chosen.fields.is_empty() => "ima_template=".to_owned(),
            "" => format!("ima_template_fmt={}", chosen.format()),
            name => format!("ima_template={name}"),
        });
        self.report(word.whole, kind);
        true
    }

    fn template(&mut self, word: &Word<'_>, value: Piece<'a>) {
        if self.template_chosen(word) {
            return;
        }
        let wrong_hash = self.found.hash.filter(|hash| !matches!(hash, HashAlgorithm::Sha1 | HashAlgorithm::Md5));
        match (Template::built_in(value.utf8()), wrong_hash) {
            // The room that the kernel keeps for a custom format has an empty name.
            (None, _) if value.text.is_empty() => {
                self.found.template = Some(Template { name: Cow::Borrowed(""), fields: Cow::Borrowed(&[]) });
                self.report(word.whole, ProblemKind::EmptyTemplate);
            }
            (None, _) => self.report(value, ProblemKind::NoSuchTemplate),
            (Some(template), Some(hash)) if template.is_legacy() => {
                if value.text == template.name.as_bytes() {
                    return self.report(value, ProblemKind::LegacyTemplateForHash(hash));
                }
                self.found.template = Some(template.clone());
                self.report(value, ProblemKind::LegacyTemplateUnchecked(hash));
            }
            (Some(template), _) => self.found.template = Some(template.clone()),
        }
    }

    fn template_format(&mut self, word: &Word<'_>, value: Piece<'a>) {
        if self.template_chosen(word) {
            return;
        }
        let fields: Vec<_> = value.split(|byte| byte == b'|').collect();
        if fields.len() > MAX_FIELDS {
            return self.report(value, ProblemKind::TooManyFields(fields.len()));
        }
        let mut known = Vec::new();
        for field in fields {
            match Field::from_id(field.utf8()) {
                Some(id) => known.push(id),
                None => return self.report(field, ProblemKind::NoSuchField),
            }
        }
        self.found.template = Some(Template { name: Cow::Borrowed(""), fields: Cow::Owned(known) });
    }

    fn ima(&mut self, word: &Word<'_>, value: Piece<'a>) {
        if !self.after_crash {
            return self.report(word.whole, ProblemKind::NotAfterACrash);
        }
        let known = [("off", false), ("on", true)].into_iter();
        match known.into_iter().find(|(name, _)| value.text.starts_with(name.as_bytes())) {
            None => self.report(value, ProblemKind::NoneOf("on, off")),
            Some((name, on)) => {
                self.found.ima = Some(on);
                if value.text != name.as_bytes() {
                    self.report(value, ProblemKind::TakenAs(name));
                }
            }
        }
    }

    /// Those that the kernel looks at when the whole line has been read.
    fn finish(mut self) -> BootParameters {
        if let Some(value) = self.appraise {
            match AppraiseMode::ALL.into_iter().find(|mode| value.text.starts_with(mode.name().as_bytes())) {
                None => self.report(value, ProblemKind::NoneOf("off, log, fix, enforce")),
                Some(mode) => {
                    self.found.appraise = Some(mode);
                    if value.text != mode.name().as_bytes() {
                        self.report(value, ProblemKind::TakenAs(mode.name()));
                    }
                }
            }
        }
        if let Some(value) = self.trusted_source {
            match TrustedSource::known(self.kernel).find(|source| value.text.starts_with(source.name().as_bytes())) {
                None => self.report(value, ProblemKind::NoneOf("tpm, tee, caam, dcp (6.10 on)")),
                Some(source) => {
                    self.found.trusted_source = Some(source);
                    if value.text != source.name().as_bytes() {
                        self.report(value, ProblemKind::TakenAs(source.name()));
                    }
                }
            }
        }
        if let Some(value) = self.trusted_rng {
            let source = TrustedSource::known(self.kernel).find(|source| source.name().as_bytes() == value.text);
            self.found.trusted_rng = match value.text {
                b"default" => Some(TrustedRng::Default),
                b"kernel" => Some(TrustedRng::Kernel),
                _ => source.map(TrustedRng::Source),
            };
            if self.found.trusted_rng.is_none() {
                self.report(value, ProblemKind::NoneOf("default, kernel, a trusted key source"));
            }
        }
        if let Some(value) = self.lsm {
            let integrity = value.text.split(|byte| *byte == b',').any(|module| module == b"integrity");
            if self.kernel == KernelVersion::V6_1 && self.config.ima && !integrity {
                self.report(value, ProblemKind::WithoutIntegrity);
            }
            self.found.lsm = Some(value.lossy());
        }
        self.found.problems.sort_by_key(|problem| problem.offset);
        self.found
    }
}

fn known_hash(hash: HashAlgorithm, kernel: KernelVersion) -> bool {
    let sha3 = matches!(hash, HashAlgorithm::Sha3_256 | HashAlgorithm::Sha3_384 | HashAlgorithm::Sha3_512);
    !sha3 || kernel > KernelVersion::V6_1
}

/// A buffer's size: digits, K, M, G …; what follows is not looked at. The kernel takes whole powers of two of pages, up
/// to 4 MiB.
fn buffer_size(text: &[u8]) -> Option<u64> {
    const PAGE: u64 = 4096;
    const MOST: u64 = 4 << 20;
    let text = std::str::from_utf8(text).ok()?;
    let (base, digits) = base(text);
    let end = digits.find(|digit: char| !digit.is_digit(base)).unwrap_or(digits.len());
    let (digits, unit) = digits.split_at_checked(end)?;
    let shift = match unit.chars().next().map(|unit| unit.to_ascii_uppercase()) {
        Some('K') => 10,
        Some('M') => 20,
        Some('G') => 30,
        Some('T' | 'P' | 'E') => 40,
        _ => 0,
    };
    let size = u64::from_str_radix(digits, base).ok()?.checked_mul(1 << shift)?;
    size.max(PAGE).checked_next_power_of_two().filter(|rounded| size > 0 && *rounded <= MOST)
}

#[cfg(test)]
mod tests;
