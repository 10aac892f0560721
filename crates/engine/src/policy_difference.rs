//! What two policies differ in: their rules as text, and the events that they decide differently.
//!
//! [`compare`] splits the events of each hook until both policies give all of a region one answer. Where the rules that
//! could still decide are the same in both, a region is left alone, so that two policies that have much in common are
//! compared at little cost. Every difference reported was decided by both policies for one event of it. The work is
//! bounded; a comparison whose bound was hit says so, and what it has found stands.

use crate::policy::{Classes, CompiledPolicy, Decision, Flags, Slot};
use crate::policy_space::{Dimension, Holds, LOOKUPS, Lookup, Matcher, Region, Set, Space, Witness};
use imara_format::policy::{AlgorithmSet, Class, Func, Lsm, Policy, Rule, TemplateName};
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

/// The events that two policies decide differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The differences; none means that the policies mean the same, if the comparison is complete.
    pub differences: Vec<Difference>,
    /// The hash algorithms that may be written to `security.ima`, where they differ: before and after, `None` for all.
    pub setxattr_algorithms: Option<[Option<AlgorithmSet>; 2]>,
    /// Whether every event was looked at.
    pub complete: bool,
}

impl Comparison {
    /// The same, with those differences as one that read the same and are of the same rules.
    #[must_use]
    pub fn merged(mut self) -> Self {
        let (mut merged, mut places) = (Vec::<Difference>::new(), HashMap::new());
        for found in self.differences {
            let place =
                *places.entry((found.class, found.before_by, found.after_by, found.words())).or_insert(merged.len());
            match merged.get_mut(place) {
                Some(other) => other.take_over(found.cases),
                None => merged.push(found),
            }
        }
        self.differences = merged;
        self
    }

    /// Whether it is certain that the two policies decide alike.
    pub fn is_same(&self) -> bool {
        self.differences.is_empty() && self.setxattr_algorithms.is_none() && self.complete
    }
}

/// One thing that is done otherwise, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The class.
    pub class: Class,
    /// What the first policy has done; `None` for nothing.
    pub before: Option<Done>,
    /// The rule of the first policy that decides so.
    pub before_by: Option<usize>,
    /// What the second policy has done.
    pub after: Option<Done>,
    /// The rule of the second policy that decides so.
    pub after_by: Option<usize>,
    /// When.
    pub cases: Vec<Case>,
    /// Whether it is so elsewhere, too.
    pub more: bool,
    /// An event that is decided so.
    pub example: Witness,
}

/// Some events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The hooks, in words.
    pub hooks: Vec<&'static str>,
    /// Which of their events, in words; empty for all.
    pub when: String,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hooks.join("|"))?;
        if self.when.is_empty() { Ok(()) } else { write!(f, ", {}", self.when) }
    }
}

/// What is done about a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Done {
    /// The class.
    pub class: Class,
    /// The PCR, where a rule names one that counts.
    pub pcr: Option<u32>,
    /// The template.
    pub template: Option<TemplateName>,
    /// Where the result of an appraisal is kept.
    pub slot: Slot,
    /// How, as far as it matters to the class.
    pub flags: Flags,
    /// The hash algorithms that an appraisal accepts.
    pub algorithms: Option<AlgorithmSet>,
}

impl Done {
    /// What `decision` has done about `class` when `func` asks.
    pub fn of(decision: &Decision, class: Class, func: Func) -> Option<Self> {
        decision.does(class)?;
        // The digest is everybody's, the rest concerns appraisals.
        let collected = Flags { verity_required: decision.flags.verity_required, ..Flags::default() };
        // What is no file takes PCR 0 for "none named".
        let buffer = matches!(func, Func::KexecCmdline | Func::KeyCheck | Func::CriticalData);
        let nothing = Self { class, pcr: None, template: None, slot: Slot::File, flags: collected, algorithms: None };
        Some(match class {
            Class::Measure => {
                let pcr = decision.pcr.filter(|pcr| !buffer || *pcr != 0);
                Self { pcr, template: decision.template, ..nothing }
            }
            Class::Appraise => Self {
                slot: decision.appraise_slot,
                flags: decision.flags,
                algorithms: decision.allowed_algorithms,
                ..nothing
            },
            Class::Audit | Class::Hash => nothing,
        })
    }
}

impl fmt::Display for Done {
    /// `measured into PCR 11 with template ima-sig`; with `{:#}` the small things, too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.class {
            Class::Measure => "measured",
            Class::Appraise => "appraised",
            Class::Audit => "audited",
            Class::Hash => "hash kept in security.ima",
        })?;
        if let Some(pcr) = self.pcr {
            write!(f, " into PCR {pcr}")?;
        }
        if let Some(template) = self.template {
            write!(f, " with template {template}")?;
        }
        match (self.flags.signature_required, self.flags.modsig_allowed) {
            (true, true) => f.write_str(" with a signature, which may be an appended one")?,
            (true, false) => f.write_str(" with a signature")?,
            (false, _) => {}
        }
        if self.flags.verity_required {
            f.write_str(" by the fs-verity digest")?;
        }
        if let Some(algorithms) = self.algorithms {
            write!(f, ", {algorithms} alone")?;
        }
        if self.flags.permit_directio {
            f.write_str(", O_DIRECT permitted")?;
        }
        if self.flags.fail_unverifiable {
            f.write_str(", not on file systems that cannot be trusted")?;
        }
        if !f.alternate() || self.class != Class::Appraise {
            return Ok(());
        }
        if self.flags.check_blacklist {
            f.write_str(", the blacklist asked")?;
        }
        f.write_str(match self.slot {
            Slot::File => ", the result kept for FILE_CHECK",
            Slot::Mmap | Slot::Bprm | Slot::Creds | Slot::Read => ", the result kept for this hook",
        })
    }
}

impl Difference {
    /// Adds cases; hooks with the same events are told together.
    fn take_over(&mut self, cases: Vec<Case>) {
        for case in cases {
            match self.cases.iter_mut().find(|other| other.when == case.when) {
                Some(other) => other.hooks.extend(case.hooks),
                None => self.cases.push(case),
            }
        }
    }

    /// What is done before and after, in words; small things are told where nothing else differs.
    pub fn words(&self) -> [String; 2] {
        let plain = [self.before, self.after].map(|done| done.map(|done| done.to_string()));
        let told = if plain[0] == plain[1] {
            [self.before, self.after].map(|done| done.map(|done| format!("{done:#}")))
        } else {
            plain
        };
        told.map(|words| words.unwrap_or_else(|| not_done(self.class).to_owned()))
    }
}

/// What is not done, in words.
pub fn not_done(class: Class) -> &'static str {
    match class {
        Class::Measure => "not measured",
        Class::Appraise => "not appraised",
        Class::Audit => "not audited",
        Class::Hash => "no hash kept",
    }
}

/// How much work a comparison may be: rules judged, at all hooks together.
const BOUND: usize = 40_000_000;
/// What splitting a region costs, in rules judged.
const SPLIT: usize = 64;
/// How many regions of a difference are kept, to be put together to fewer ones for people.
const KEPT: usize = 64;

/// Compares what two policies decide, where `lsm` answers conditions on labels.
pub fn compare(before: &Policy, after: &Policy, lsm: Lsm) -> Comparison {
    compare_within(before, after, lsm, BOUND)
}

fn compare_within(before: &Policy, after: &Policy, lsm: Lsm, bound: usize) -> Comparison {
    let both = [before, after].map(|policy| CompiledPolicy::with_labels(policy.clone()));
    let signatures = signatures(both.each_ref());
    let mut complete = true;
    let mut found = Differences::default();
    for lookup in LOOKUPS {
        for classes in together(both.each_ref()) {
            let classes = classes.intersection(lookup.classes);
            let mut search = Search::new(lookup, classes, both.each_ref(), &signatures, lsm);
            search.run(bound / LOOKUPS.len() / 2, &mut found);
            complete &= search.complete;
        }
    }
    let algorithms = both.each_ref().map(CompiledPolicy::setxattr_algorithms);
    let setxattr_algorithms = (algorithms[0] != algorithms[1]).then_some(algorithms);
    Comparison { setxattr_algorithms, differences: found.found.into_iter().map(Found::told).collect(), complete }
}

/// Classes that are decided together, because a rule of one class says how another is done.
fn together(both: [&CompiledPolicy; 2]) -> Vec<Classes> {
    let mixing = |rule: &Rule| rule.verity || rule.permit_directio && rule.action.class() != Class::Appraise;
    if both.iter().any(|policy| policy.rules().iter().any(mixing)) {
        return vec![Classes::ALL];
    }
    // An appraise rule takes away the hash that an earlier rule gave.
    let labels = Classes::only(Class::Appraise).union(Classes::only(Class::Hash));
    vec![Classes::only(Class::Measure), labels, Classes::only(Class::Audit)]
}

/// Rules that say the same have the same number.
fn signatures(both: [&CompiledPolicy; 2]) -> [Vec<usize>; 2] {
    let mut different: Vec<Rule> = Vec::new();
    both.map(|policy| {
        let number = |rule: &Rule| {
            let rule = Rule { line: 0, ..rule.clone() };
            different.iter().position(|other| *other == rule).unwrap_or_else(|| {
                different.push(rule);
                different.len() - 1
            })
        };
        policy.rules().iter().map(number).collect()
    })
}

/// A rule that could still decide an event of some region.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    rule: usize,
    signature: usize,
    /// Whether it matches in all of the region.
    always: bool,
}

/// The comparison of one hook's events.
struct Search<'a> {
    space: Rc<Space>,
    classes: Classes,
    both: [&'a CompiledPolicy; 2],
    signatures: &'a [Vec<usize>; 2],
    matchers: [Vec<Option<Matcher>>; 2],
    work: usize,
    complete: bool,
}

impl<'a> Search<'a> {
    fn new(
        lookup: &'static Lookup,
        classes: Classes,
        both: [&'a CompiledPolicy; 2],
        signatures: &'a [Vec<usize>; 2],
        lsm: Lsm,
    ) -> Self {
        let rules: Vec<&Rule> = both.iter().flat_map(|policy| policy.rules()).collect();
        let space = Rc::new(Space::new(lookup, &rules, lsm));
        let matchers = both.map(|policy| {
            let asked = classes.intersection(policy.classes());
            let looked_at = |rule: &&Rule| asked.contains(rule.action.class());
            policy
                .rules()
                .iter()
                .map(|rule| Some(rule).filter(looked_at).and_then(|rule| space.matcher(rule)))
                .collect()
        });
        let complete = space.complete;
        Self { space, classes, both, signatures, matchers, work: 0, complete }
    }

    fn run(&mut self, bound: usize, found: &mut Differences) {
        let all = |of: &Vec<Option<Matcher>>| (0..of.len()).filter(|at| of[*at].is_some()).collect::<Vec<_>>();
        let start = self.matchers.each_ref().map(all);
        let mut open = vec![(self.space.whole(), start)];
        while let Some((region, rules)) = open.pop() {
            if self.work > bound {
                self.complete = false;
                return;
            }
            let candidates = [0, 1].map(|policy| self.candidates(policy, &rules[policy], &region));
            let [before, after] = &candidates;
            let Some(at) = first_difference(before, after) else { continue };
            match self.split(&region, before, after, at) {
                Some((dimension, set)) => {
                    self.work += SPLIT;
                    let left = candidates.map(|list| list.iter().map(|candidate| candidate.rule).collect::<Vec<_>>());
                    let (inside, outside) = region.split(dimension, &set);
                    open.push((outside, left.clone()));
                    open.push((inside, left));
                }
                None => {
                    self.work += self.both.iter().map(|policy| policy.rules().len()).sum::<usize>();
                    self.record(&region, found);
                }
            }
        }
    }

    /// The rules that could decide an event of `region`, in their order.
    fn candidates(&mut self, policy: usize, rules: &[usize], region: &Region) -> Vec<Candidate> {
        let mut open = [true; 4];
        let mut candidates = Vec::new();
        for rule in rules {
            let class = self.both[policy].rules()[*rule].action.class();
            let Some(matcher) = self.matchers[policy][*rule].as_ref().filter(|_| open[class as usize]) else {
                continue;
            };
            self.work += 1;
            let always = match matcher.holds(region) {
                Holds::Never => continue,
                Holds::Always => true,
                Holds::Sometimes(..) => false,
            };
            open[class as usize] = !always;
            candidates.push(Candidate { rule: *rule, signature: self.signatures[policy][*rule], always });
        }
        // What is excepted from nothing changes nothing, unless it says how others are done.
        let mut counting = Classes::default();
        let mut kept: Vec<Candidate> = Vec::with_capacity(candidates.len());
        for candidate in candidates.into_iter().rev() {
            let rule = &self.both[policy].rules()[candidate.rule];
            let class = rule.action.class();
            if counting.contains(class) || rule.action.does() || rule.verity || rule.permit_directio {
                counting = counting.union(Classes::only(class));
                kept.push(candidate);
            }
        }
        kept.reverse();
        kept
    }

    /// Where to split next; `None` where every candidate matches always. The place where the two lists begin to differ
    /// comes first: outside of it they may be the same.
    fn split(&self, region: &Region, before: &[Candidate], after: &[Candidate], at: usize) -> Option<(Dimension, Set)> {
        let lists = [(0, before), (1, after)];
        let here = lists.iter().filter_map(|(policy, list)| list.get(at).map(|candidate| (*policy, candidate)));
        let all = lists.iter().flat_map(|(policy, list)| list.iter().map(|candidate| (*policy, candidate)));
        let (policy, candidate) = here.chain(all).find(|(_, candidate)| !candidate.always)?;
        match self.matchers[policy][candidate.rule].as_ref()?.holds(region) {
            Holds::Sometimes(dimension, set) => Some((dimension, set)),
            Holds::Always | Holds::Never => None,
        }
    }

    /// Decides an event of a region in which both policies give one answer each.
    fn record(&self, region: &Region, found: &mut Differences) {
        let Some(example) = self.space.witness(region) else { return };
        let file = example.file();
        let decisions = self.both.map(|policy| policy.decide_classes(&example.event(&file), self.space.lookup.classes));
        for class in Class::ALL.iter().filter(|class| self.classes.contains(**class)) {
            let [before, after] = decisions.each_ref().map(|decision| Done::of(decision, *class, example.func));
            if before == after {
                continue;
            }
            let [before_by, after_by] = decisions.each_ref().map(|decision| decision.decided_by.class(*class));
            let key = Key { class: *class, before, before_by, after, after_by };
            found.add(key, &example, &self.space, region);
        }
    }
}

/// Where two lists of candidates begin to differ.
fn first_difference(before: &[Candidate], after: &[Candidate]) -> Option<usize> {
    let same = before.iter().zip(after).take_while(|(left, right)| left.signature == right.signature).count();
    (same < before.len() || same < after.len()).then_some(same)
}

/// What makes two differences one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    class: Class,
    before: Option<Done>,
    before_by: Option<usize>,
    after: Option<Done>,
    after_by: Option<usize>,
}

/// The differences found so far, in the order found.
#[derive(Default)]
struct Differences {
    found: Vec<Found>,
    places: HashMap<Key, usize>,
}

impl Differences {
    fn add(&mut self, key: Key, example: &Witness, space: &Rc<Space>, region: &Region) {
        let next = self.found.len();
        let at = *self.places.entry(key).or_insert(next);
        if at == next {
            self.found.push(Found { key, example: example.clone(), regions: Vec::new(), more: false });
        }
        let found = &mut self.found[at];
        let here = match found.regions.iter().position(|(other, _)| other.lookup == space.lookup) {
            Some(here) => here,
            None => {
                found.regions.push((Rc::clone(space), Vec::new()));
                found.regions.len() - 1
            }
        };
        let regions = &mut found.regions[here].1;
        if regions.len() < KEPT {
            regions.push(region.clone());
        } else {
            found.more = true;
        }
    }
}

/// A difference with the regions where it is so.
struct Found {
    key: Key,
    example: Witness,
    regions: Vec<(Rc<Space>, Vec<Region>)>,
    /// Whether it is so elsewhere, too.
    more: bool,
}

impl Found {
    /// The difference with its cases in words; hooks with the same cases are told together.
    fn told(self) -> Difference {
        let Key { class, before, before_by, after, after_by } = self.key;
        let (example, cases) = (self.example, Vec::new());
        let mut told = Difference { class, before, before_by, after, after_by, cases, more: self.more, example };
        for (space, regions) in self.regions {
            let case = |region: &Region| Case { hooks: vec![space.lookup.name], when: space.describe(region) };
            told.take_over(joined(regions).iter().map(case).collect());
        }
        told
    }
}

/// Fewer regions that are the same together.
fn joined(mut regions: Vec<Region>) -> Vec<Region> {
    let mut again = true;
    while again {
        again = false;
        let mut fewer: Vec<Region> = Vec::with_capacity(regions.len());
        for region in regions {
            let with = fewer.iter().enumerate().find_map(|(at, other)| Some((at, other.joined(&region)?)));
            match with {
                Some((at, joined)) => {
                    fewer[at] = joined;
                    again = true;
                }
                None => fewer.push(region),
            }
        }
        regions = fewer;
    }
    regions
}

/// One step from the first policy's text to the second's; rules are named by their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// A rule of the first policy that the second lacks.
    Removed(usize),
    /// A rule of the second policy that the first lacks.
    Added(usize),
    /// A rule that both have, before or after other rules.
    Moved {
        /// Its place in the first policy.
        from: usize,
        /// Its place in the second policy.
        to: usize,
    },
}

/// The rules to take away, to add and to move, as few as can be, in the order of the second policy.
pub fn edits(before: &Policy, after: &Policy) -> Vec<Edit> {
    let text = |policy: &Policy| policy.rules.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (before, after) = (text(before), text(after));
    // The length of the longest common subsequence of what follows each pair of places.
    let width = after.len() + 1;
    let mut common = vec![0u32; (before.len() + 1) * width];
    for left in (0..before.len()).rev() {
        for right in (0..after.len()).rev() {
            common[left * width + right] = if before[left] == after[right] {
                common[(left + 1) * width + right + 1] + 1
            } else {
                common[(left + 1) * width + right].max(common[left * width + right + 1])
            };
        }
    }
    let (mut left, mut right, mut edits) = (0, 0, Vec::new());
    while left < before.len() || right < after.len() {
        if left < before.len() && right < after.len() && before[left] == after[right] {
            (left, right) = (left + 1, right + 1);
        } else if right == after.len()
            || left < before.len() && common[(left + 1) * width + right] >= common[left * width + right + 1]
        {
            edits.push(Edit::Removed(left));
            left += 1;
        } else {
            edits.push(Edit::Added(right));
            right += 1;
        }
    }
    // What is taken away in one place and added in another has moved.
    let mut gone: Vec<usize> = edits.iter().filter_map(Edit::removed).collect();
    for edit in &mut edits {
        let Edit::Added(to) = *edit else { continue };
        if let Some(at) = gone.iter().position(|from| before[*from] == after[to]) {
            *edit = Edit::Moved { from: gone.remove(at), to };
        }
    }
    edits.retain(|edit| edit.removed().is_none_or(|from| gone.contains(&from)));
    edits
}

impl Edit {
    fn removed(&self) -> Option<usize> {
        match self {
            Self::Removed(from) => Some(*from),
            Self::Added(_) | Self::Moved { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy_space::tests::{events, rules, target};
    use proptest::prelude::*;

    fn policy(rules: &str) -> Policy {
        Policy::parse(rules.replace(';', "\n").as_bytes(), &target()).unwrap()
    }

    /// Each difference on a line: `case / case: before -> after`, rules by their places.
    fn told(before: &str, after: &str) -> Vec<String> {
        let comparison = compare(&policy(before), &policy(after), Lsm::Selinux).merged();
        assert!(comparison.complete);
        let told = |difference: &Difference| {
            let [before, after] = difference.words();
            let by = |by: Option<usize>| by.map_or_else(String::new, |by| format!(" ({by})"));
            let cases: Vec<_> = difference.cases.iter().map(Case::to_string).collect();
            let (before_by, after_by) = (by(difference.before_by), by(difference.after_by));
            format!("{}: {before}{before_by} -> {after}{after_by}", cases.join(" / "))
        };
        comparison.differences.iter().map(told).collect()
    }

    #[test]
    fn policies_differ_by_what_they_decide_and_not_by_their_text() {
        for (name, before, after, expected) in [
            ("the same", "measure uid=0;audit", "audit;measure uid=0", vec![]),
            (
                "two halves of one",
                "measure func=BPRM_CHECK",
                "measure func=BPRM_CHECK uid<5;measure func=BPRM_CHECK uid>4",
                vec![],
            ),
            (
                "a mask that the hook always passes",
                "measure func=BPRM_CHECK",
                "measure func=BPRM_CHECK mask=MAY_EXEC",
                vec![],
            ),
            ("a rule behind one that covers it", "measure", "measure;measure uid=0", vec![]),
            ("an exception from nothing", "measure", "dont_appraise fsname=ext4;measure", vec![]),
            ("a name with its magic number", "measure fsname=ext4", "measure fsname=ext4 fsmagic=0xef53", vec![]),
            ("PCR 0 of what is no file", "measure func=KEY_CHECK", "measure func=KEY_CHECK pcr=0", vec![]),
            (
                "a signature",
                "dont_appraise fsname=ext4;appraise func=BPRM_CHECK uid=0",
                "appraise func=BPRM_CHECK uid=0 fsname=ext4 appraise_type=imasig;dont_appraise fsname=ext4;\
                 appraise func=BPRM_CHECK uid=0",
                vec!["BPRM_CHECK|POST_SETATTR, ext4, uid 0: not appraised (0) -> appraised with a signature (0)"],
            ),
            (
                "where the result is kept",
                "appraise func=BPRM_CHECK",
                "appraise func=MMAP_CHECK;appraise",
                vec![
                    "FILE_CHECK|MMAP_CHECK_REQPROT|CREDS_CHECK|MODULE_CHECK|FIRMWARE_CHECK|KEXEC_KERNEL_CHECK|\
                     KEXEC_INITRAMFS_CHECK|POLICY_CHECK|FILE_CHECK of a new file: not appraised -> appraised (1)",
                    "MMAP_CHECK: not appraised -> appraised (0)",
                    "BPRM_CHECK: appraised, the result kept for this hook (0) -> \
                     appraised, the result kept for FILE_CHECK (1)",
                ],
            ),
            (
                "the order of hash and appraise",
                "hash func=BPRM_CHECK;appraise func=BPRM_CHECK",
                "appraise func=BPRM_CHECK;hash func=BPRM_CHECK",
                vec!["BPRM_CHECK|POST_SETATTR: no hash kept (0) -> hash kept in security.ima (1)"],
            ),
            (
                "CAP_SETUID lets other ids count",
                "measure func=BPRM_CHECK euid=0",
                "measure func=BPRM_CHECK uid=0;measure func=BPRM_CHECK euid=0",
                vec!["BPRM_CHECK, uid 0, euid 1 and above, without CAP_SETUID: not measured -> measured (0)"],
            ),
            (
                "one mask",
                "measure func=FILE_CHECK mask=MAY_READ",
                "measure func=FILE_CHECK mask=^MAY_READ",
                vec!["FILE_CHECK, MAY_READ with more: not measured -> measured (0)"],
            ),
            (
                "an exception from what only says how others are done",
                "dont_hash digest_type=verity;measure func=BPRM_CHECK;hash",
                "dont_hash fsname=ext4;dont_hash digest_type=verity;measure func=BPRM_CHECK;hash",
                vec!["BPRM_CHECK, ext4: measured by the fs-verity digest (1) -> measured (2)"],
            ),
            (
                "a keyring",
                "measure func=KEY_CHECK keyrings=.ima",
                "measure func=KEY_CHECK",
                vec!["KEY_CHECK, keyrings but .ima: not measured -> measured (0)"],
            ),
            (
                "a label",
                "measure func=BPRM_CHECK",
                "dont_measure obj_type=a;measure func=BPRM_CHECK",
                vec!["BPRM_CHECK, obj_type a: measured (0) -> not measured (0)"],
            ),
        ] {
            assert_eq!(told(before, after), expected, "{name}");
        }
    }

    #[test]
    fn other_algorithms_for_the_label_are_a_difference() {
        let [one, two] = ["sha256", "sha512"]
            .map(|name| policy(&format!("measure;appraise func=SETXATTR_CHECK appraise_algos={name}")));
        let none = policy("measure");
        assert!(compare(&one, &one, Lsm::None).is_same());
        for other in [&two, &none] {
            let comparison = compare(&one, other, Lsm::None);
            assert!(!comparison.is_same());
            let algorithms = [&one, other].map(|policy| CompiledPolicy::new(policy.clone()).setxattr_algorithms());
            assert_eq!(comparison.setxattr_algorithms, Some(algorithms));
        }
    }

    #[test]
    fn the_edit_script_is_minimal_and_knows_what_moved() {
        use Edit::*;
        for (before, after, expected) in [
            ("measure;audit", "measure;audit", vec![]),
            ("measure;audit", "audit", vec![Removed(0)]),
            ("audit", "measure;audit;hash", vec![Added(0), Added(2)]),
            ("measure;audit;hash", "hash;measure;audit", vec![Moved { from: 2, to: 0 }]),
            ("measure;measure", "measure", vec![Removed(1)]),
            ("", "", vec![]),
        ] {
            assert_eq!(edits(&policy(before), &policy(after)), expected, "{before} -> {after}");
        }
    }

    #[test]
    fn a_comparison_that_is_cut_short_says_so() {
        let (before, after) = large();
        let comparison = compare_within(&before, &after, Lsm::None, 1000);
        assert!(!comparison.complete);
    }

    /// Two policies of a hundred rules with no more in common than a form.
    fn large() -> (Policy, Policy) {
        let rules = |mut state: u64| {
            let mut any = |of: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % of
            };
            let rule = |_| {
                let action = ["measure", "dont_measure", "appraise", "dont_appraise"][any(4) as usize];
                let func = ["FILE_CHECK", "BPRM_CHECK", "MMAP_CHECK"][any(3) as usize];
                let mut rule = format!("{action} func={func}");
                for condition in ["uid", "gid", "fowner", "fgroup"] {
                    if any(8) != 0 {
                        rule += &format!(" {condition}{}{}", ["=", "<", ">"][any(3) as usize], any(100));
                    }
                }
                rule + "\n"
            };
            Policy::parse((0..100).map(rule).collect::<String>().as_bytes(), &target()).unwrap()
        };
        (rules(1), rules(77))
    }

    #[test]
    fn large_policies_are_compared_in_a_bounded_time() {
        let (before, after) = large();
        let start = std::time::Instant::now();
        let comparison = compare(&before, &after, Lsm::None);
        assert!(!comparison.differences.is_empty());
        // Tests are built without much optimising, and machines differ.
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn what_random_events_tell_apart_is_found_and_what_is_found_is_so(
            before in rules(),
            after in rules(),
            share in any::<bool>(),
            events in proptest::collection::vec(events(), 64),
        ) {
            // Policies that have much in common, too.
            let after = if share { format!("{before}\n{after}") } else { after };
            let both = [policy(&before), policy(&after)];
            let comparison = compare(&both[0], &both[1], Lsm::Selinux);
            let compiled = both.map(CompiledPolicy::with_labels);
            let done = |lookup: &Lookup, witness: &Witness, class| {
                let file = witness.file();
                let event = witness.event(&file);
                compiled.each_ref().map(|policy| {
                    let decision = policy.decide_classes(&event, lookup.classes);
                    Done::of(&decision, class, lookup.func)
                })
            };
            for (lookup, witness) in &events {
                for class in Class::ALL {
                    let [before, after] = done(lookup, witness, *class);
                    let found = comparison.differences.iter().any(|found| {
                        found.class == *class && found.before == before && found.after == after
                    });
                    prop_assert!(before == after || found || !comparison.complete, "{} is not found", witness);
                }
            }
            for found in &comparison.differences {
                prop_assert!(!found.cases.is_empty() && found.before != found.after);
                let lookup = LOOKUPS.iter().find(|lookup| {
                    lookup.func == found.example.func && lookup.masks.contains(&found.example.mask)
                });
                let [before, after] = done(lookup.unwrap(), &found.example, found.class);
                prop_assert_eq!((before, after), (found.before, found.after), "{}", found.example);
            }
        }
    }
}
