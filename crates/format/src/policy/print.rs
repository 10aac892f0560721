//! Rules as text: in a form that loads again, and in the form of the kernel's own `policy` file.

use super::{AppraiseType, IdCondition, MaskCondition, Policy, Rule};
use crate::uuid::Uuid;
use std::fmt;

impl fmt::Display for Policy {
    /// A rule a line; what is printed loads again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rules.iter().try_for_each(|rule| writeln!(f, "{rule}"))
    }
}

impl fmt::Display for Rule {
    /// The rule without a newline; what is printed is read back as the same rule.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.action)?;
        if let Some(func) = self.func {
            write!(f, " func={func}")?;
        }
        if let Some(mask) = self.mask {
            write!(f, " {mask}")?;
        }
        if let Some(magic) = self.fsmagic {
            write!(f, " fsmagic={magic:#x}")?;
        }
        if let Some(name) = &self.fsname {
            write!(f, " fsname={name}")?;
        }
        if let Some(subtype) = &self.fs_subtype {
            write!(f, " fs_subtype={subtype}")?;
        }
        write_list(f, " keyrings=", &self.keyrings)?;
        write_list(f, " label=", &self.label)?;
        if let Some(pcr) = self.pcr {
            write!(f, " pcr={pcr}")?;
        }
        if let Some(uuid) = self.fsuuid {
            write!(f, " fsuuid={}", Uuid(uuid))?;
        }
        for (name, condition) in self.ids() {
            if let Some(IdCondition { op, id }) = condition {
                write!(f, " {name}{}{id}", op.symbol())?;
            }
        }
        if let Some(algorithms) = self.appraise_algos {
            write!(f, " appraise_algos={algorithms}")?;
        }
        for condition in &self.lsm {
            write!(f, " {}={}", condition.field, condition.value)?;
        }
        if let Some(template) = self.template {
            write!(f, " template={template}")?;
        }
        // The parser takes `sigv3` only after `digest_type=verity`.
        if self.verity {
            f.write_str(" digest_type=verity")?;
        }
        if let Some(appraise_type) = self.appraise_type {
            write!(f, " appraise_type={}", appraise_type.name())?;
        }
        if self.appraise_flag {
            f.write_str(" appraise_flag=check_blacklist")?;
        }
        if self.permit_directio {
            f.write_str(" permit_directio")?;
        }
        Ok(())
    }
}

impl fmt::Display for MaskCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(mask) => write!(f, "mask={}", mask.name()),
            Self::Contains(mask) => write!(f, "mask=^{}", mask.name()),
        }
    }
}

/// A rule as the kernel's own `policy` file shows it, without the newline; not all of it can be loaded again.
///
/// Each piece ends in a space, ids are signed, names of filesystems are cut to 63 bytes, and `digest_type=` comes after
/// `appraise_type=`, where no parser takes it.
pub struct KernelDisplay<'a>(pub &'a Rule);

impl fmt::Display for KernelDisplay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = self.0;
        write!(f, "{} ", rule.action)?;
        if let Some(func) = rule.func {
            write!(f, "func={func} ")?;
        }
        if let Some(mask) = rule.mask {
            write!(f, "{mask} ")?;
        }
        if let Some(magic) = rule.fsmagic {
            write!(f, "fsmagic={magic:#x} ")?;
        }
        if let Some(name) = &rule.fsname {
            // 63 bytes; a character that straddles the end is left out, where the kernel would cut through it.
            let end = name.char_indices().map(|(at, c)| at.saturating_add(c.len_utf8())).take_while(|end| *end <= 63);
            write!(f, "fsname={} ", name.get(..end.last().unwrap_or(0)).unwrap_or(name))?;
        }
        if let Some(subtype) = &rule.fs_subtype {
            write!(f, "fs_subtype={subtype} ")?;
        }
        for (key, items) in [("keyrings=", &rule.keyrings), ("label=", &rule.label)] {
            if !items.is_empty() {
                write_list(f, key, items)?;
                f.write_str(" ")?;
            }
        }
        if let Some(pcr) = rule.pcr {
            write!(f, "pcr={pcr} ")?;
        }
        if let Some(uuid) = rule.fsuuid {
            write!(f, "fsuuid={} ", Uuid(uuid))?;
        }
        for (name, condition) in rule.ids() {
            if let Some(IdCondition { op, id }) = condition {
                write!(f, "{name}{}{} ", op.symbol(), id.cast_signed())?;
            }
        }
        if let Some(algorithms) = rule.appraise_algos {
            write!(f, "appraise_algos={algorithms} ")?;
        }
        for condition in &rule.lsm {
            write!(f, "{}={} ", condition.field, condition.value)?;
        }
        if let Some(template) = rule.template {
            write!(f, "template={template} ")?;
        }
        if let Some(appraise_type) = rule.appraise_type {
            let shown = if rule.verity { AppraiseType::Sigv3 } else { appraise_type };
            write!(f, "appraise_type={} ", shown.name())?;
        }
        if rule.verity {
            f.write_str("digest_type=verity ")?;
        }
        if rule.appraise_flag {
            f.write_str("appraise_flag=check_blacklist ")?;
        }
        if rule.permit_directio {
            f.write_str("permit_directio ")?;
        }
        Ok(())
    }
}

impl Rule {
    fn ids(&self) -> [(&'static str, Option<IdCondition>); 6] {
        [
            ("uid", self.uid),
            ("euid", self.euid),
            ("gid", self.gid),
            ("egid", self.egid),
            ("fowner", self.fowner),
            ("fgroup", self.fgroup),
        ]
    }
}

fn write_list(f: &mut fmt::Formatter<'_>, key: &str, items: &[String]) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        write!(f, "{}{item}", if index == 0 { key } else { "|" })?;
    }
    Ok(())
}
