//! Which attribute no longer agrees with a label, where that can be found out.
//!
//! A label does not say what it was made over, but whoever can verify it can try: change one thing back to what it may have
//! been, and see whether the label fits. Tried are every mode, the owners and groups that are likely, attributes taken away,
//! `security.ima` as a digest of the content, and what another kernel build or evmctl would have hashed. An RSA signature
//! gives the digest that was signed, so that a try costs one hash; otherwise it costs one verification.

use super::difference::Difference;
use super::rules::Rules;
use super::snapshot::Snapshot;
use super::verify::Verifier;
use super::{HMAC_TYPE, PORTABLE_TYPE, SIGNATURE_TYPE};
use crate::crypto;
use crate::label::v3_digest;
use imara_format::evm::{Form, MiscLayout, SECURITY_IMA, XattrList};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::label::encode_digest;
use imara_format::signature::{Signature, SignatureType};

/// What is likely.
#[derive(Debug, Clone, Default)]
pub struct Candidates {
    /// Users, the likely ones first.
    pub uids: Vec<u32>,
    /// Groups, the likely ones first.
    pub gids: Vec<u32>,
    /// The content's digests: what `security.ima` may have held.
    pub digests: Vec<Digest>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// With these changed back the label fits.
    Changed(Vec<Difference>),
    /// The label fits by the rules of another kernel, or of evmctl.
    Rules(&'static str),
}

/// What a search came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// What it found.
    pub cause: Option<Cause>,
    /// How many states were tried.
    pub tried: u64,
    /// Whether it ended before all were.
    pub cut_short: bool,
}

/// How to tell whether a label fits.
enum Test<'a> {
    /// Its HMAC.
    Hmac(&'a [u8]),
    /// The digest that an RSA signature was made over.
    Digest(Digest),
    /// The signature itself.
    Signature(Signature<'a>),
}

struct Searcher<'a> {
    verifier: &'a Verifier<'a>,
    form: Form,
    algorithm: HashAlgorithm,
    test: Test<'a>,
    tried: u64,
    goes_on: &'a mut dyn FnMut() -> bool,
    cut_short: bool,
}

/// Searches for what would make `snapshot`'s label fit; `goes_on` is asked now and then whether to.
///
/// `None` where there is no label of which that could be asked: none at all, one that cannot be read, one without its key.
pub fn search(
    verifier: &Verifier<'_>,
    snapshot: &Snapshot,
    candidates: &Candidates,
    goes_on: &mut dyn FnMut() -> bool,
) -> Option<Search> {
    let label = snapshot.label.value()?;
    let (form, algorithm, test) = match *label.first()? {
        HMAC_TYPE => {
            verifier.hmac_key?;
            (Form::Hmac, HashAlgorithm::Sha1, Test::Hmac(label.get(1..).filter(|hmac| hmac.len() == 20)?))
        }
        kind @ (SIGNATURE_TYPE | PORTABLE_TYPE) => {
            let form = if kind == PORTABLE_TYPE { Form::Portable } else { Form::Signature };
            let signature = Signature::parse(label).ok()?;
            let (algorithm, test) = match &signature {
                Signature::V2(v2) | Signature::V3(v2) => {
                    let key = verifier.keys.find(&v2.key_id)?;
                    let signed = key.signed_digest(v2.algorithm, v2.signature);
                    let test = match (&signature, signed) {
                        // Version 3 signs a digest of the digest.
                        (Signature::V2(_), Some(digest)) => Test::Digest(digest),
                        _ => Test::Signature(signature),
                    };
                    (v2.algorithm, test)
                }
                // Its digest's algorithm is an accident of its timestamp.
                Signature::V1(_) => return None,
            };
            (form, algorithm, test)
        }
        _ => return None,
    };
    let mut searcher = Searcher { verifier, form, algorithm, test, tried: 0, goes_on, cut_short: false };
    let cause = searcher.run(snapshot, candidates);
    Some(Search { cause, tried: searcher.tried, cut_short: searcher.cut_short })
}

impl Searcher<'_> {
    fn run(&mut self, now: &Snapshot, candidates: &Candidates) -> Option<Cause> {
        self.xattrs(now, candidates)
            .or_else(|| self.modes(now))
            .or_else(|| self.owners(now, candidates))
            .or_else(|| self.rules(now))
    }

    fn fits(&mut self, snapshot: &Snapshot, rules: &Rules, form: Form) -> bool {
        self.cut_short |= self.tried.is_multiple_of(64) && !(self.goes_on)();
        if self.cut_short {
            return false;
        }
        self.tried += 1;
        if let Test::Hmac(expected) = self.test {
            let hmac = self.verifier.hmac_key.and_then(|key| snapshot.hmac(rules, key).ok());
            return hmac.is_some_and(|hmac| crypto::equal(&hmac, expected));
        }
        let Ok(digest) = snapshot.digest(form, rules, self.algorithm) else { return false };
        match &self.test {
            Test::Hmac(_) => false,
            Test::Digest(signed) => digest == *signed,
            Test::Signature(Signature::V2(signature)) => self.verifier.keys.verify(signature, &digest).is_ok(),
            Test::Signature(Signature::V3(signature)) => {
                let kind = if form == Form::Portable { SignatureType::Portable } else { SignatureType::Signature };
                v3_digest(kind, &digest).is_ok_and(|digest| self.verifier.keys.verify(signature, &digest).is_ok())
            }
            Test::Signature(Signature::V1(_)) => false,
        }
    }

    fn try_as(&mut self, was: &Snapshot, now: &Snapshot) -> Option<Cause> {
        let fits = self.fits(was, self.verifier.rules, self.form);
        fits.then(|| Cause::Changed(was.differences(now)))
    }

    /// Attributes that are new, and `security.ima` as it would be for this content.
    fn xattrs(&mut self, now: &Snapshot, candidates: &Candidates) -> Option<Cause> {
        for name in now.xattrs.keys() {
            let mut was = now.clone();
            was.xattrs.remove(name);
            if let Some(cause) = self.try_as(&was, now) {
                return Some(cause);
            }
        }
        for digest in &candidates.digests {
            let mut was = now.clone();
            was.xattrs.insert(SECURITY_IMA.to_owned(), encode_digest(digest));
            if let Some(cause) = self.try_as(&was, now) {
                return Some(cause);
            }
        }
        None
    }

    fn modes(&mut self, now: &Snapshot) -> Option<Cause> {
        let mut was = now.clone();
        (0..0o10_000).find_map(|permissions| {
            was.inode.mode = now.inode.mode & 0o170_000 | permissions;
            self.try_as(&was, now)
        })
    }

    fn owners(&mut self, now: &Snapshot, candidates: &Candidates) -> Option<Cause> {
        let mut was = now.clone();
        for uid in &candidates.uids {
            was.inode.uid = *uid;
            if let Some(cause) = self.try_as(&was, now) {
                return Some(cause);
            }
        }
        was.inode.uid = now.inode.uid;
        for gid in &candidates.gids {
            was.inode.gid = *gid;
            if let Some(cause) = self.try_as(&was, now) {
                return Some(cause);
            }
        }
        // Both at once: a user and the group of the same number, or root's.
        for uid in &candidates.uids {
            was.inode.uid = *uid;
            for gid in [*uid, 0] {
                was.inode.gid = gid;
                if let Some(cause) = self.try_as(&was, now) {
                    return Some(cause);
                }
            }
        }
        None
    }

    fn rules(&mut self, now: &Snapshot) -> Option<Cause> {
        let rules = self.verifier.rules;
        let with = |change: &dyn Fn(&mut Rules)| {
            let mut rules = rules.clone();
            change(&mut rules);
            rules
        };
        let narrow = with(&|rules| rules.layout = MiscLayout { bits_64: !rules.layout.bits_64, ..rules.layout });
        let unbound = with(&|rules| rules.fs_uuid = !rules.fs_uuid);
        let evmctl = with(&|rules| rules.xattrs = XattrList::evmctl(false));
        let smack = with(&|rules| rules.xattrs = XattrList::evmctl(true));
        let swapped = with(&|rules| rules.layout.big_endian = !rules.layout.big_endian);
        for (other, what) in [
            (&narrow, "it fits a kernel of the other word size (32 or 64 bits)"),
            (&unbound, "it was made without (or with) the filesystem's UUID, unlike this kernel's"),
            (&evmctl, "it covers the attributes that evmctl takes, not those that this kernel protects"),
            (&smack, "it covers Smack's attributes, too, as `evmctl --smack` takes them"),
            (&swapped, "it was made on a machine of the other byte order"),
        ] {
            if self.fits(now, other, self.form) {
                return Some(Cause::Rules(what));
            }
        }
        let immutable = self.form == Form::Signature && self.fits(now, rules, Form::EvmctlImmutable);
        immutable.then_some(Cause::Rules("it was made by `evmctl sign --imm`, which no kernel verifies"))
    }
}
