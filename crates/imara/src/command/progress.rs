//! A line on standard error that counts, for what takes longer than two seconds on a terminal.

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a command may take before it is told how far it is.
const SILENT: Duration = Duration::from_secs(2);

/// A file costs as much as so many bytes of content, whatever its size: for the time left.
const COST_OF_A_FILE: u64 = 16 * 1024;

/// What is done so far, counted by whoever does it.
pub struct Progress {
    noun: &'static str,
    started: Instant,
    wanted: bool,
    bar: OnceLock<ProgressBar>,
    done: Amount,
    total: OnceLock<(u64, u64)>,
    /// When it was shown last, in milliseconds since the start.
    shown: AtomicU64,
}

/// Files, or what else is counted, and bytes.
#[derive(Default)]
struct Amount {
    count: AtomicU64,
    bytes: AtomicU64,
}

impl Progress {
    /// None yet; with `quiet`, never any. `noun` is what is counted.
    pub fn new(quiet: bool, noun: &'static str) -> Self {
        let wanted = !quiet && std::io::stderr().is_terminal();
        let (started, bar, total) = (Instant::now(), OnceLock::new(), OnceLock::new());
        Self { noun, started, wanted, bar, done: Amount::default(), total, shown: AtomicU64::new(0) }
    }

    /// Whether a line is shown by now.
    pub fn is_shown(&self) -> bool {
        self.bar.get().is_some()
    }

    /// So many more are done.
    pub fn count(&self, more: u64) {
        self.done.count.fetch_add(more, Ordering::Relaxed);
    }

    /// So many more bytes are done.
    pub fn bytes(&self, more: u64) {
        self.done.bytes.fetch_add(more, Ordering::Relaxed);
    }

    /// How much there is to do, once that is known.
    pub fn set_total(&self, count: u64, bytes: u64) {
        // It is found out once.
        let _ = self.total.set((count, bytes));
    }

    /// Shows how far it is; to be called from time to time, and cheap to be called often.
    pub fn tick(&self) {
        let elapsed = self.started.elapsed();
        let since = elapsed.as_millis() as u64;
        if !self.wanted || elapsed < SILENT || since.saturating_sub(self.shown.load(Ordering::Relaxed)) < 100 {
            return;
        }
        self.shown.store(since, Ordering::Relaxed);
        let bar = self.bar.get_or_init(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("the template is right"));
            bar
        });
        bar.set_message(self.told(elapsed));
        bar.tick();
    }

    /// Prints what is to be told while the line is out of the way.
    pub fn suspend(&self, print: impl FnOnce()) {
        match self.bar.get() {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn told(&self, elapsed: Duration) -> String {
        let (count, bytes) = (self.done.count.load(Ordering::Relaxed), self.done.bytes.load(Ordering::Relaxed));
        let seconds = elapsed.as_secs_f64().max(0.001);
        let of = self.total.get().map(|(total, _)| format!(" of {}", HumanCount(*total))).unwrap_or_default();
        let mut text = format!("{}{of} {}", HumanCount(count), self.noun);
        if bytes > 0 {
            text += &format!(", {}", HumanBytes(bytes));
        }
        text += &format!(", {} a second", HumanCount((count as f64 / seconds) as u64));
        if bytes > 0 {
            text += &format!(", {}/s", HumanBytes((bytes as f64 / seconds) as u64));
        }
        if let Some((total, total_bytes)) = self.total.get() {
            let cost = |count: u64, bytes: u64| count.saturating_mul(COST_OF_A_FILE).saturating_add(bytes) as f64;
            let (done, all) = (cost(count, bytes), cost(*total, *total_bytes));
            if done > 0.0 {
                text += &format!(", {} left", for_people((seconds * (all - done).max(0.0) / done) as u64));
            }
        }
        text
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}

fn for_people(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_it_is_is_told_with_rate_and_time_left() {
        let progress = Progress::new(true, "files");
        progress.count(1000);
        assert_eq!(progress.told(Duration::from_secs(4)), "1,000 files, 250 a second");
        progress.bytes(16_384_000);
        progress.set_total(4000, 65_536_000);
        assert_eq!(
            progress.told(Duration::from_secs(4)),
            "1,000 of 4,000 files, 15.62 MiB, 250 a second, 3.91 MiB/s, 12 s left"
        );
        assert_eq!((for_people(7199), for_people(7260)), ("119 min".to_owned(), "2 h 1 min".to_owned()));
    }
}
