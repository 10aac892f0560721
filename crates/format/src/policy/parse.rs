//! A line read as a kernel reads it, and why it is refused.
//!
//! The kernel stops at the first token that it does not take, and judges the rule as a whole only after the last one; so
//! a refused line has exactly one error.

use super::{
    Action, AlgorithmSet, AppraiseType, Func, IdCondition, KernelVersion, LsmCondition, LsmField, LsmLabels, Mask,
    MaskCondition, Operator, Rule, Target, TemplateName,
};
use crate::hash::HashAlgorithm;
use crate::uuid::Uuid;
use std::fmt;

/// The error number that the kernel refuses a rule with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// The rule is not valid.
    Einval,
    /// A number does not fit.
    Erange,
}

impl Errno {
    /// The number's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Einval => "EINVAL",
            Self::Erange => "ERANGE",
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a line is refused, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {kind}")]
pub struct PolicyError {
    /// The line, from 1.
    pub line: usize,
    /// The column of the token, in bytes, from 1.
    pub column: usize,
    /// The token's length in bytes; 0 where the whole rule is meant.
    pub length: usize,
    /// The token, cut to its first 64 characters; empty where the whole rule is meant.
    pub token: String,
    /// The error number that the kernel gives.
    pub errno: Errno,
    /// What is wrong.
    pub kind: PolicyErrorKind,
}

impl PolicyError {
    /// What to write instead; empty where nothing can be said.
    pub fn hint(&self) -> String {
        self.kind.hint(&self.token)
    }
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyErrorKind {
    /// The token is no word of the language.
    #[error("`{0}` is not a word of the policy language")]
    UnknownToken(String),
    /// A key without its value.
    #[error("`{0}` needs a value")]
    NoValue(String),
    /// A word that the target's kernel does not have.
    #[error("`{word}` is not known to Linux {kernel}")]
    TooNew {
        /// The word.
        word: String,
        /// The kernel asked for.
        kernel: KernelVersion,
    },
    /// A value that the key does not have.
    #[error("`{value}` is not a value of `{key}=`")]
    UnknownValue {
        /// The key.
        key: &'static str,
        /// The value found.
        value: String,
    },
    /// A hook that exists but that no rule can name.
    #[error("no rule can name {0}")]
    NotWritable(Func),
    /// A value that is no number of the key's kind.
    #[error("`{value}` is not {needed}")]
    NotANumber {
        /// The value found.
        value: String,
        /// What was needed.
        needed: &'static str,
    },
    /// A number of more than 64 bits.
    #[error("`{0}` does not fit 64 bits")]
    NumberTooLarge(String),
    /// A number out of the key's range.
    #[error("`{value}` is out of range: {needed}")]
    OutOfRange {
        /// The value found.
        value: String,
        /// The range.
        needed: &'static str,
    },
    /// A value that is no UUID.
    #[error("`{0}` is not a UUID of 36 characters")]
    NotAUuid(String),
    /// A list with an empty item.
    #[error("the list `{0}` has an empty item")]
    EmptyItem(String),
    /// A hash algorithm without a name in the kernel.
    #[error("`{0}` is not a hash algorithm")]
    UnknownAlgorithm(String),
    /// A hash algorithm that the target cannot compute.
    #[error("hash algorithm {0} cannot be computed by this kernel")]
    MissingAlgorithm(HashAlgorithm),
    /// A second action.
    #[error("a second action; the rule already says `{0}`")]
    SecondAction(Action),
    /// A condition given twice.
    #[error("`{0}` is given twice")]
    Twice(&'static str),
    /// Two conditions that share one place.
    #[error("`{0}` and `{1}` exclude each other in one rule")]
    Exclusive(&'static str, &'static str),
    /// `template=` without `measure` to its left.
    #[error("`template=` needs `measure` to its left")]
    TemplateWithoutMeasure,
    /// `digest_type=` to the right of `appraise_type=`.
    #[error("`digest_type=` must stand to the left of `appraise_type=`")]
    DigestTypeAfterAppraiseType,
    /// An `appraise_type=` that does not go with fs-verity digests.
    #[error("`appraise_type={0}` does not go with `digest_type=verity`")]
    NotForVerity(&'static str),
    /// `sigv3` without `digest_type=verity` to its left.
    #[error("`appraise_type=sigv3` needs `digest_type=verity` to its left")]
    Sigv3WithoutVerity,
    /// A feature that the target's kernel was built without.
    #[error("this kernel was built without {0}")]
    NotBuilt(&'static str),
    /// A label that the security module does not know.
    #[error("the security module ({lsm}) knows no {field} `{value}`")]
    UnknownLabel {
        /// The security module.
        lsm: &'static str,
        /// The field asked for.
        field: LsmField,
        /// The value found.
        value: String,
    },
    /// No action.
    #[error("the rule has no action")]
    NoAction,
    /// A word that does not go with the rule's action.
    #[error("`{word}` needs the action `{needed}`, the rule says `{found}`")]
    NotForAction {
        /// The word.
        word: &'static str,
        /// The action it needs.
        needed: Action,
        /// The rule's action.
        found: Action,
    },
    /// A word that does not go with the rule's hook.
    #[error("`{word}` is not allowed {}", place(*.func))]
    NotForFunc {
        /// The word.
        word: &'static str,
        /// The rule's hook.
        func: Option<Func>,
    },
    /// An action that does not go with the rule's hook.
    #[error("`{action}` is not allowed with `func={func}`")]
    ActionNotForFunc {
        /// The rule's action.
        action: Action,
        /// The rule's hook.
        func: Func,
    },
    /// A word that the rule lacks.
    #[error("`{0}` is missing: `{1}` needs it")]
    Missing(&'static str, &'static str),
    /// A byte 0, where the kernel takes the line to end.
    #[error("a byte 0 in the line")]
    Nul,
    /// A value that is not UTF-8.
    #[error("byte {0:#04x} is not UTF-8 text")]
    NotUtf8(u8),
}

fn place(func: Option<Func>) -> String {
    func.map_or_else(|| "in a rule without `func=`".to_owned(), |func| format!("with `func={func}`"))
}

const KEYS: &[&str] = &[
    "func",
    "mask",
    "fsmagic",
    "fsname",
    "fs_subtype",
    "fsuuid",
    "uid",
    "euid",
    "gid",
    "egid",
    "fowner",
    "fgroup",
    "obj_user",
    "obj_role",
    "obj_type",
    "subj_user",
    "subj_role",
    "subj_type",
    "pcr",
    "template",
    "keyrings",
    "label",
    "digest_type",
    "appraise_type",
    "appraise_flag",
    "appraise_algos",
];

impl PolicyErrorKind {
    fn hint(&self, token: &str) -> String {
        match self {
            Self::UnknownToken(_) if token.starts_with('#') => "a comment needs a line of its own".into(),
            Self::UnknownToken(word) if word.ends_with('\r') => "end lines with LF alone, not CR LF".into(),
            Self::UnknownToken(word) | Self::UnknownValue { value: word, .. } if word.contains(['"', '\'']) => {
                "values are not quoted".into()
            }
            Self::UnknownToken(word) => {
                let (key, value) = word.split_once('=').map_or((word.as_str(), None), |(key, value)| (key, Some(value)));
                let actions = Action::ALL.iter().map(|action| action.name()).chain(["permit_directio"]);
                match value {
                    _ if KEYS.contains(&key) => Some(format!("write `{key}=VALUE`, without blanks")),
                    Some(value) => Some(match nearest(key, KEYS.iter().copied()) {
                        Some(key) => format!("did you mean `{key}={value}`?"),
                        None => format!("conditions and options are {}", KEYS.join(", ")),
                    }),
                    None => nearest(key, actions).map(|word| format!("did you mean `{word}`?")),
                }
                .unwrap_or_else(|| "a rule is an action, such as `measure`, and conditions, such as `func=BPRM_CHECK`".into())
            }
            Self::UnknownValue { value, .. } if value.ends_with('\r') => "end lines with LF alone, not CR LF".into(),
            Self::UnknownValue { key: "func", value } => {
                let writable = Func::ALL.iter().filter(|func| **func != Func::PostSetattr).map(|func| func.name());
                nearest(value, writable).map(|name| format!("did you mean `{name}`?")).unwrap_or_default()
            }
            Self::UnknownValue { key: "mask", value } if value.contains(['|', ',']) => {
                "a rule takes one access; write one rule for each".into()
            }
            Self::UnknownValue { key: "mask", .. } => "one of MAY_READ, MAY_WRITE, MAY_EXEC, MAY_APPEND, `^` before it for \"contains\"".into(),
            Self::UnknownValue { key: "template", .. } => {
                let names: Vec<_> = TemplateName::ALL.iter().map(|template| template.name()).collect();
                format!("one of {}", names.join(", "))
            }
            Self::UnknownValue { key: "appraise_type", .. } => "one of imasig, imasig|modsig, sigv3".into(),
            Self::UnknownValue { key: "digest_type", .. } => "the only one is verity".into(),
            Self::UnknownValue { .. } => String::new(),
            Self::NoValue(key) => format!("write `{key}VALUE` or leave it out"),
            Self::TooNew { word, .. } if word.starts_with("MMAP_CHECK_REQPROT") => "use MMAP_CHECK, or Linux 6.12".into(),
            Self::TooNew { .. } => "leave it out, or choose a newer kernel".into(),
            Self::NotWritable(_) => "attribute changes are judged by the rules for other hooks".into(),
            Self::NotANumber { value, .. } if value.starts_with('=') => {
                "there is no `>=` or `<=`: use the neighbouring number with `>` or `<`".into()
            }
            Self::NotANumber { value, .. } if value.ends_with('\r') => "end lines with LF alone, not CR LF".into(),
            Self::NotANumber { value, needed } if needed.starts_with("an id") && !value.is_empty() => {
                "ids are plain decimal numbers; names are not looked up".into()
            }
            Self::NotANumber { .. } | Self::NumberTooLarge(_) | Self::OutOfRange { .. } => String::new(),
            Self::NotAUuid(_) => "8-4-4-4-12 hexadecimal digits with hyphens".into(),
            Self::EmptyItem(_) => "remove the separator that has nothing beside it".into(),
            Self::UnknownAlgorithm(name) => nearest(name, HashAlgorithm::ALL.iter().map(|algorithm| algorithm.name()))
                .map(|name| format!("did you mean `{name}`?"))
                .unwrap_or_default(),
            Self::MissingAlgorithm(_) => "leave it out, or load the kernel's module for it".into(),
            Self::SecondAction(_) => "write one rule for each action".into(),
            Self::Twice(_) => "write one rule for each, or leave one out".into(),
            Self::Exclusive(..) => "write one rule for each".into(),
            Self::TemplateWithoutMeasure | Self::NotForAction { needed: Action::Measure, .. } => {
                "begin the rule with `measure`".into()
            }
            Self::NotForAction { needed, .. } => format!("it says how to `{needed}`; leave it out here"),
            Self::DigestTypeAfterAppraiseType | Self::Sigv3WithoutVerity => {
                "write `digest_type=verity appraise_type=sigv3`".into()
            }
            Self::NotForVerity(_) => "fs-verity digests are signed as sigv3: `appraise_type=sigv3`".into(),
            Self::NotBuilt(_) => "leave it out, or use a kernel that has it".into(),
            Self::UnknownLabel { .. } => {
                "a label must be known when the first policy is loaded; AppArmor has subj_role, Smack subj_user and obj_user".into()
            }
            Self::NoAction => "begin it with measure, appraise, audit, hash or one of their dont_ forms".into(),
            Self::NotForFunc { word: "appraise_type=imasig|modsig", .. } => {
                "appended signatures are for MODULE_CHECK, KEXEC_KERNEL_CHECK and KEXEC_INITRAMFS_CHECK".into()
            }
            Self::NotForFunc { word: "keyrings=", .. } => "it goes with `func=KEY_CHECK`".into(),
            Self::NotForFunc { word: "label=", .. } => "it goes with `func=CRITICAL_DATA`".into(),
            Self::NotForFunc { .. } => "leave it out".into(),
            Self::ActionNotForFunc { func: Func::SetxattrCheck, .. } => "only `appraise` goes with it".into(),
            Self::ActionNotForFunc { .. } => "only `measure` and `dont_measure` go with it".into(),
            Self::Missing(word, _) => format!("add `{word}`"),
            Self::Nul | Self::NotUtf8(_) => "a policy is plain text".into(),
        }
    }
}

/// The nearest of `words` to `found`, if a slip of the finger could have made the one of the other.
fn nearest<'a>(found: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let found = found.to_ascii_lowercase();
    words
        .map(|word| (distance(&found, &word.to_ascii_lowercase()), word))
        .filter(|(distance, word)| *distance <= 2 && distance.saturating_mul(2) < word.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// How many letters must be changed, added or removed to make `b` of `a`; two neighbours that are swapped count once.
fn distance(a: &str, b: &str) -> usize {
    let (letters, others) = (a.as_bytes(), b.as_bytes());
    let swapped = letters.len() == others.len()
        && letters.iter().zip(others).filter(|(letter, other)| letter != other).count() == 2
        && letters
            .windows(2)
            .zip(others.windows(2))
            .any(|(pair, other)| matches!((pair, other), ([a, b], [c, d]) if a == d && b == c && a != b));
    if swapped {
        return 1;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (index, letter) in a.bytes().enumerate() {
        let (mut diagonal, mut left) = (index, index.saturating_add(1));
        let letters = b.bytes();
        let mut next = vec![left];
        for (other, above) in letters.zip(row.iter().skip(1)) {
            let changed = diagonal.saturating_add(usize::from(letter != other));
            left = changed.min(above.saturating_add(1)).min(left.saturating_add(1));
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

/// Reads one line, without its newline, as `target` would take it; `None` for an empty line or a comment.
///
/// # Errors
/// The first thing that the kernel does not take.
pub fn parse_line(line: &[u8], number: usize, target: &Target) -> Result<Option<Rule>, PolicyError> {
    let refuse = |token: Token<'_>, kind| token.refuse(number, kind);
    if let Some(offset) = line.iter().position(|byte| *byte == 0) {
        return Err(refuse(Token { text: "", offset, length: 1 }, PolicyErrorKind::Nul));
    }
    let mut tokens = tokens(line).peekable();
    match tokens.peek() {
        None => return Ok(None),
        Some((_, bytes)) if bytes.starts_with(b"#") => return Ok(None),
        Some(_) => {}
    }
    let mut reader = Reader { rule: None, pending: Rule::new(Action::Measure), seen: Vec::new(), target };
    for (offset, bytes) in tokens {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let at = error.valid_up_to();
                let byte = bytes.get(at).copied().unwrap_or(0);
                let token = Token { text: "", offset: offset.saturating_add(at), length: 1 };
                return Err(refuse(token, PolicyErrorKind::NotUtf8(byte)));
            }
        };
        let token = Token { text, offset, length: text.len() };
        reader.token(token).map_err(|kind| refuse(token, kind))?;
    }
    let (mut rule, seen) = reader.finish().map_err(|kind| {
        let start = line.iter().take_while(|byte| is_blank(**byte)).count();
        refuse(Token { text: "", offset: start, length: 0 }, kind)
    })?;
    rule.line = number;
    match judge(&rule, &seen, target) {
        Ok(()) => Ok(Some(rule)),
        Err((token, kind)) => Err(refuse(token, kind)),
    }
}

#[derive(Clone, Copy)]
struct Token<'a> {
    text: &'a str,
    offset: usize,
    length: usize,
}

impl Token<'_> {
    fn refuse(self, line: usize, kind: PolicyErrorKind) -> PolicyError {
        PolicyError {
            line,
            column: self.offset.saturating_add(1),
            length: self.length,
            token: cut(self.text),
            errno: match kind {
                PolicyErrorKind::NumberTooLarge(_) => Errno::Erange,
                _ => Errno::Einval,
            },
            kind,
        }
    }
}

/// A token as far as an error shows it.
fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// The tokens of a line and where they stand.
fn tokens(line: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut rest = line;
    let mut offset = 0usize;
    std::iter::from_fn(move || {
        let start = rest.iter().position(|byte| !is_blank(*byte))?;
        let (_, from) = rest.split_at_checked(start)?;
        let end = from.iter().position(|byte| is_blank(*byte)).unwrap_or(from.len());
        let (token, after) = from.split_at_checked(end)?;
        let at = offset.saturating_add(start);
        offset = at.saturating_add(end);
        rest = after;
        Some((at, token))
    })
}

/// Words and where each first stood.
type Seen<'a> = Vec<(&'static str, Token<'a>)>;

struct Reader<'a> {
    /// The action, once read.
    rule: Option<Action>,
    /// The rule as far as it is read; its action counts only once `rule` is set.
    pending: Rule,
    /// The words read and where each first stood.
    seen: Seen<'a>,
    target: &'a Target,
}

use PolicyErrorKind as Kind;

impl<'a> Reader<'a> {
    fn token(&mut self, token: Token<'a>) -> Result<(), Kind> {
        let text = token.text;
        if let Some(action) = Action::from_name(text) {
            if action == Action::DontAudit && self.target.kernel < KernelVersion::Latest {
                return Err(Kind::TooNew { word: cut(text), kernel: self.target.kernel });
            }
            return match self.rule.replace(action) {
                Some(first) => Err(Kind::SecondAction(first)),
                None => Ok(()),
            };
        }
        if text == "permit_directio" {
            self.pending.permit_directio = true;
            self.saw("permit_directio", token);
            return Ok(());
        }
        let unknown = || Kind::UnknownToken(cut(text));
        let at = text.find(['=', '<', '>']).ok_or_else(unknown)?;
        let (key, rest) = text.split_at_checked(at).ok_or_else(unknown)?;
        let op = match rest.as_bytes().first() {
            Some(b'<') => Operator::Less,
            Some(b'>') => Operator::Greater,
            _ => Operator::Equal,
        };
        let value = rest.get(1..).ok_or_else(unknown)?;
        let word = self.key(key, op, value, text)?;
        self.saw(word, token);
        Ok(())
    }

    fn saw(&mut self, word: &'static str, token: Token<'a>) {
        // Where a word stands twice, the first place says enough.
        if self.seen.iter().all(|(seen, _)| *seen != word) {
            self.seen.push((word, token));
        }
    }

    /// Reads `key op value` and gives the word that stands for the key.
    fn key(&mut self, key: &str, op: Operator, value: &str, text: &str) -> Result<&'static str, Kind> {
        let unknown = || Kind::UnknownToken(cut(text));
        let word = known_key(key).ok_or_else(unknown)?;
        let is_id = matches!(word, "uid=" | "euid=" | "gid=" | "egid=" | "fowner=" | "fgroup=");
        if op != Operator::Equal && !is_id {
            return Err(unknown());
        }
        if value.is_empty() {
            return Err(Kind::NoValue(cut(text)));
        }
        let (rule, target) = (&mut self.pending, self.target);
        let value_of = |key| Kind::UnknownValue { key, value: cut(value) };
        let id = |earlier: Option<IdCondition>, sharing: Option<IdCondition>, other| {
            if earlier.is_some() {
                return Err(Kind::Twice(word));
            }
            if sharing.is_some() {
                return Err(Kind::Exclusive(word, other));
            }
            Ok(Some(IdCondition { op, id: parse_id(value)? }))
        };
        match word {
            "func=" => {
                if rule.func.is_some() {
                    return Err(Kind::Twice(word));
                }
                rule.func = Some(match Func::from_name(value).ok_or_else(|| value_of("func"))? {
                    func @ Func::PostSetattr => return Err(Kind::NotWritable(func)),
                    Func::MmapCheckReqprot if target.kernel < KernelVersion::V6_12 => {
                        return Err(Kind::TooNew { word: cut(value), kernel: target.kernel });
                    }
                    func => func,
                });
            }
            "mask=" => {
                if rule.mask.is_some() {
                    return Err(Kind::Twice(word));
                }
                let name = value.strip_prefix('^');
                let mask = Mask::from_name(name.unwrap_or(value)).ok_or_else(|| value_of("mask"))?;
                rule.mask =
                    Some(if name.is_some() { MaskCondition::Contains(mask) } else { MaskCondition::Exact(mask) });
            }
            "fsmagic=" => {
                if rule.fsmagic.is_some_and(|magic| magic != 0) {
                    return Err(Kind::Twice(word));
                }
                rule.fsmagic = Some(parse_unsigned(value, 16, "a hexadecimal number")?);
            }
            "fsname=" => rule.fsname = Some(value.to_owned()),
            "fs_subtype=" => {
                if target.kernel < KernelVersion::Latest {
                    return Err(Kind::TooNew { word: "fs_subtype=".to_owned(), kernel: target.kernel });
                }
                if rule.fs_subtype.is_some() {
                    return Err(Kind::Twice(word));
                }
                rule.fs_subtype = Some(value.to_owned());
            }
            "fsuuid=" => {
                if rule.fsuuid.is_some_and(|uuid| uuid != [0; 16]) {
                    return Err(Kind::Twice(word));
                }
                rule.fsuuid = Some(Uuid::starting(value).ok_or_else(|| Kind::NotAUuid(cut(value)))?.0);
            }
            "uid=" => rule.uid = id(rule.uid, rule.euid, "euid=")?,
            "euid=" => rule.euid = id(rule.euid, rule.uid, "uid=")?,
            "gid=" => rule.gid = id(rule.gid, rule.egid, "egid=")?,
            "egid=" => rule.egid = id(rule.egid, rule.gid, "gid=")?,
            "fowner=" => rule.fowner = id(rule.fowner, None, "")?,
            "fgroup=" => rule.fgroup = id(rule.fgroup, None, "")?,
            "pcr=" => rule.pcr = Some(parse_pcr(value)?),
            "template=" => {
                if self.rule != Some(Action::Measure) {
                    return Err(Kind::TemplateWithoutMeasure);
                }
                let template = TemplateName::from_name_or_format(value).ok_or_else(|| value_of("template"))?;
                if rule.template.replace(template).is_some() {
                    return Err(Kind::Twice(word));
                }
            }
            "keyrings=" => {
                if !target.key_measurement {
                    return Err(Kind::NotBuilt("the measurement of keys"));
                }
                rule.keyrings = parse_list(&rule.keyrings, value, word)?;
            }
            "label=" => rule.label = parse_list(&rule.label, value, word)?,
            "digest_type=" => {
                if rule.appraise_type.is_some() {
                    return Err(Kind::DigestTypeAfterAppraiseType);
                }
                if value != "verity" {
                    return Err(value_of("digest_type"));
                }
                rule.verity = true;
            }
            "appraise_type=" => {
                let (name, appraise_type) = match value {
                    "imasig" => ("imasig", AppraiseType::Imasig),
                    "imasig|modsig" if target.modsig => ("imasig|modsig", AppraiseType::ImasigModsig),
                    "imasig|modsig" => return Err(Kind::NotBuilt("appended signatures (modsig)")),
                    "sigv3" if rule.verity => ("sigv3", AppraiseType::Sigv3),
                    "sigv3" => return Err(Kind::Sigv3WithoutVerity),
                    _ => return Err(value_of("appraise_type")),
                };
                if rule.verity && appraise_type != AppraiseType::Sigv3 {
                    return Err(Kind::NotForVerity(name));
                }
                // Each occurrence adds to what is required, so the stronger one stays.
                if rule.appraise_type != Some(AppraiseType::ImasigModsig) {
                    rule.appraise_type = Some(appraise_type);
                }
                rule.check_blacklist |= target.kernel >= KernelVersion::V6_12;
            }
            // From 6.12 on any value is taken and none does anything.
            "appraise_flag=" if target.kernel >= KernelVersion::V6_12 => {}
            "appraise_flag=" => {
                if !target.modsig {
                    return Err(Kind::NotBuilt("appended signatures (modsig)"));
                }
                if !value.contains("blacklist") {
                    return Err(value_of("appraise_flag"));
                }
                rule.appraise_flag = true;
                rule.check_blacklist = true;
            }
            "appraise_algos=" => {
                if rule.appraise_algos.is_some() {
                    return Err(Kind::Twice(word));
                }
                rule.appraise_algos = Some(parse_algorithms(value, target.algorithms)?);
            }
            _ => {
                let field = LsmField::ALL.iter().copied().find(|field| field.name() == key).ok_or_else(unknown)?;
                self.lsm_condition(field, word, value)?;
            }
        }
        Ok(word)
    }

    fn lsm_condition(&mut self, field: LsmField, word: &'static str, value: &str) -> Result<(), Kind> {
        let conditions = &mut self.pending.lsm;
        match self.target.lsm_labels {
            LsmLabels::Known if self.target.lsm.has(field) => {
                if conditions.iter().any(|condition| condition.field == field) {
                    return Err(Kind::Twice(word));
                }
            }
            LsmLabels::Known | LsmLabels::Unknown => {
                return Err(Kind::UnknownLabel { lsm: self.target.lsm.name(), field, value: cut(value) });
            }
            // A value that is not resolved leaves its place free for the next one.
            LsmLabels::Inactive => conditions.retain(|condition| condition.field != field),
        }
        conditions.push(LsmCondition { field, value: value.to_owned() });
        conditions.sort_by_key(|condition| condition.field);
        Ok(())
    }

    fn finish(self) -> Result<(Rule, Seen<'a>), Kind> {
        let action = self.rule.ok_or(Kind::NoAction)?;
        Ok((Rule { action, ..self.pending }, self.seen))
    }
}

/// The word for a key, for all of its operators.
fn known_key(key: &str) -> Option<&'static str> {
    const WORDS: &[&str] = &[
        "func=",
        "mask=",
        "fsmagic=",
        "fsname=",
        "fs_subtype=",
        "fsuuid=",
        "uid=",
        "euid=",
        "gid=",
        "egid=",
        "fowner=",
        "fgroup=",
        "obj_user=",
        "obj_role=",
        "obj_type=",
        "subj_user=",
        "subj_role=",
        "subj_type=",
        "pcr=",
        "template=",
        "keyrings=",
        "label=",
        "digest_type=",
        "appraise_type=",
        "appraise_flag=",
        "appraise_algos=",
    ];
    WORDS.iter().copied().find(|word| word.strip_suffix('=') == Some(key))
}

/// A number as the kernel reads it: one `+` at most, with radix 16 a `0x`, then digits to the end.
fn parse_unsigned(value: &str, radix: u32, needed: &'static str) -> Result<u64, Kind> {
    parse_digits(value.strip_prefix('+').unwrap_or(value), radix).map_err(|wrong| wrong.kind(value, needed))
}

enum Wrong {
    NotANumber,
    TooLarge,
}

impl Wrong {
    fn kind(self, value: &str, needed: &'static str) -> Kind {
        match self {
            Self::NotANumber => Kind::NotANumber { value: cut(value), needed },
            Self::TooLarge => Kind::NumberTooLarge(cut(value)),
        }
    }
}

fn parse_digits(text: &str, radix: u32) -> Result<u64, Wrong> {
    let prefixed = || text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let text = if radix == 16 { prefixed().unwrap_or(text) } else { text };
    let digits = text.bytes().take_while(|byte| char::from(*byte).is_digit(radix)).count();
    let mut number = 0u64;
    for digit in text.chars().take(digits).filter_map(|letter| letter.to_digit(radix)) {
        let next = number.checked_mul(u64::from(radix)).and_then(|number| number.checked_add(u64::from(digit)));
        // The kernel finds the overflow before it looks at what follows the digits.
        number = next.ok_or(Wrong::TooLarge)?;
    }
    if digits == 0 || digits != text.len() { Err(Wrong::NotANumber) } else { Ok(number) }
}

fn parse_id(value: &str) -> Result<u32, Kind> {
    let number = parse_unsigned(value, 10, "an id (a decimal number)")?;
    match u32::try_from(number) {
        // The last number stands for "no id".
        Ok(u32::MAX) | Err(_) => Err(Kind::OutOfRange { value: cut(value), needed: "ids go from 0 to 4294967294" }),
        Ok(id) => Ok(id),
    }
}

fn parse_pcr(value: &str) -> Result<u32, Kind> {
    let needed = "a PCR (a decimal number)";
    let range = || Kind::OutOfRange { value: cut(value), needed: "PCRs go from 0 to 63" };
    let (text, negative) = match value.strip_prefix('-') {
        Some(text) => (text, true),
        None => (value.strip_prefix('+').unwrap_or(value), false),
    };
    match parse_digits(text, 10) {
        Ok(0) => Ok(0),
        Ok(number @ 1..=63) if !negative => u32::try_from(number).map_err(|_| range()),
        Ok(_) | Err(Wrong::TooLarge) => Err(range()),
        Err(wrong @ Wrong::NotANumber) => Err(wrong.kind(value, needed)),
    }
}

fn parse_list(earlier: &[String], value: &str, word: &'static str) -> Result<Vec<String>, Kind> {
    if !earlier.is_empty() {
        return Err(Kind::Twice(word));
    }
    if value.split('|').any(str::is_empty) {
        return Err(Kind::EmptyItem(cut(value)));
    }
    Ok(value.split('|').map(str::to_owned).collect())
}

fn parse_algorithms(value: &str, available: AlgorithmSet) -> Result<AlgorithmSet, Kind> {
    let mut set = AlgorithmSet::EMPTY;
    for name in value.split(',') {
        if name.is_empty() {
            return Err(Kind::EmptyItem(cut(value)));
        }
        let algorithm = HashAlgorithm::from_name(name).ok_or_else(|| Kind::UnknownAlgorithm(cut(name)))?;
        if !available.contains(algorithm) {
            return Err(Kind::MissingAlgorithm(algorithm));
        }
        set = set.with(algorithm);
    }
    Ok(set)
}

/// Hooks that take the same words.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    /// A file, or no hook named.
    File,
    /// A file that the kernel reads for itself and that may carry an appended signature.
    KernelFile,
    /// KEXEC_CMDLINE.
    Cmdline,
    /// KEY_CHECK and CRITICAL_DATA.
    Data,
    /// SETXATTR_CHECK.
    Setxattr,
}

impl Group {
    const fn of(func: Option<Func>) -> Self {
        match func {
            None => Self::File,
            Some(func) => match func {
                Func::FileCheck
                | Func::MmapCheck
                | Func::MmapCheckReqprot
                | Func::BprmCheck
                | Func::CredsCheck
                | Func::PostSetattr
                | Func::FirmwareCheck
                | Func::PolicyCheck => Self::File,
                Func::ModuleCheck | Func::KexecKernelCheck | Func::KexecInitramfsCheck => Self::KernelFile,
                Func::KexecCmdline => Self::Cmdline,
                Func::KeyCheck | Func::CriticalData => Self::Data,
                Func::SetxattrCheck => Self::Setxattr,
            },
        }
    }

    const fn permits(self, action: Action) -> bool {
        match self {
            Self::File | Self::KernelFile => true,
            Self::Cmdline | Self::Data => matches!(action, Action::Measure | Action::DontMeasure),
            Self::Setxattr => matches!(action, Action::Appraise),
        }
    }
}

/// Judges a rule that is read to its end.
fn judge<'a>(rule: &Rule, seen: &[(&'static str, Token<'a>)], target: &Target) -> Result<(), (Token<'a>, Kind)> {
    let group = Group::of(rule.func);
    for (word, token) in seen {
        let (word, token) = (*word, *token);
        // The word as an error shows it: for `appraise_type=` the value is what matters.
        let shown = match rule.appraise_type {
            Some(AppraiseType::ImasigModsig) if word == "appraise_type=" => "appraise_type=imasig|modsig",
            _ => word,
        };
        let needed = match word {
            "pcr=" => Some(Action::Measure),
            "appraise_type=" | "appraise_algos=" => Some(Action::Appraise),
            "appraise_flag=" if rule.appraise_flag => Some(Action::Appraise),
            _ => None,
        };
        match needed {
            Some(needed) if rule.action != needed => {
                return Err((token, Kind::NotForAction { word, needed, found: rule.action }));
            }
            _ => {}
        }
        if !allowed(word, rule, group) {
            return Err((token, Kind::NotForFunc { word: shown, func: rule.func }));
        }
        if word == "func=" && !group.permits(rule.action) {
            let func = rule.func.unwrap_or(Func::FileCheck);
            return Err((token, Kind::ActionNotForFunc { action: rule.action, func }));
        }
        if word == "func=" && group == Group::Setxattr && rule.appraise_algos.is_none() {
            return Err((token, Kind::Missing("appraise_algos=", "func=SETXATTR_CHECK")));
        }
        if word == "appraise_flag="
            && target.kernel < KernelVersion::V6_12
            && rule.appraise_type != Some(AppraiseType::ImasigModsig)
        {
            return Err((token, Kind::Missing("appraise_type=imasig|modsig", "appraise_flag=")));
        }
        if word == "digest_type=" && rule.action == Action::Appraise && rule.appraise_type.is_none() {
            return Err((token, Kind::Missing("appraise_type=sigv3", "digest_type=verity")));
        }
    }
    Ok(())
}

/// Whether `word` goes with the rule's hook.
fn allowed(word: &str, rule: &Rule, group: Group) -> bool {
    match word {
        "mask=" | "permit_directio" => matches!(group, Group::File | Group::KernelFile),
        "fsmagic=" | "fsname=" | "fs_subtype=" | "fsuuid=" | "euid=" | "egid=" | "fowner=" | "fgroup=" => {
            matches!(group, Group::File | Group::KernelFile | Group::Cmdline)
        }
        "uid=" | "gid=" | "pcr=" => group != Group::Setxattr,
        "digest_type=" => group == Group::File,
        "appraise_type=" => match rule.appraise_type {
            Some(AppraiseType::ImasigModsig) => group == Group::KernelFile,
            Some(AppraiseType::Sigv3) => group == Group::File,
            Some(AppraiseType::Imasig) | None => matches!(group, Group::File | Group::KernelFile),
        },
        "appraise_algos=" => matches!(group, Group::File | Group::KernelFile | Group::Setxattr),
        "appraise_flag=" => group == Group::KernelFile || !rule.appraise_flag,
        "keyrings=" => rule.func == Some(Func::KeyCheck),
        "label=" => rule.func == Some(Func::CriticalData),
        // For SETXATTR_CHECK they are taken and never looked at.
        "obj_user=" | "obj_role=" | "obj_type=" | "subj_user=" | "subj_role=" | "subj_type=" => group != Group::Data,
        _ => true,
    }
}
