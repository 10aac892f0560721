//! The threads that answer: one of them always reads, whatever the others wait for.
//!
//! A decision can wait for a disk, for the TPM, for the list's lock; and whoever it waits for (the software TPM, whose
//! state may lie on a watched file system) can itself be waiting for an answer of ours. So the thread that reads must never
//! wait. Handing every event to another thread would cost a wake-up each, which is more than most decisions take.
//!
//! Hence leader and followers: the leader reads, answers what is exempt at once, and works on one event itself, waking
//! followers only for what else has come. A watchdog looks every [`PATIENCE`] whether the leader is still on the same
//! event, or has not come back from reading although there is more to read (the kernel opens the file for us, which a file
//! system can delay for ever); then it makes another thread the leader, so that reading goes on. When all threads that may be
//! started are busy, the watchdog itself reads, answers what is exempt and queues the rest.

use crate::sys;
use imara_engine::lock::{Lock, QUEUE};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long the leader may work on one event before another thread reads on.
pub const PATIENCE: Duration = Duration::from_millis(5);

/// How long the watchdog looks on after the last event before it sleeps.
const REST: Duration = Duration::from_secs(1);

/// How long it is waited for threads that are to end: one that the kernel does not let go is left behind.
const FAREWELL: Duration = Duration::from_secs(3);

/// What the threads do.
pub trait Service: Send + Sync + 'static {
    /// One piece of work.
    type Job: Send + 'static;

    /// Waits for work, does at once what cannot wait and appends the rest.
    ///
    /// # Errors
    /// EINTR ends the wait; any other error has been dealt with and is only told.
    fn read(&self, jobs: &mut VecDeque<Self::Job>) -> io::Result<()>;

    /// Waits until there is something to read, or for so long, or until a signal comes.
    fn wait(&self, most: Duration);

    /// Whether there is something to read.
    fn is_pending(&self) -> bool;

    /// Does one piece of work; it may block.
    fn work(&self, job: Self::Job);
}

/// The threads, as long as they run.
pub struct Workers<S: Service> {
    shared: Arc<Shared<S>>,
    watchdog: Option<JoinHandle<()>>,
}

struct Shared<S: Service> {
    service: Arc<S>,
    state: Lock<State<S::Job>>,
    wake: Condvar,
    /// Grows with every event that a leader starts and ends: odd while it works.
    leader_events: AtomicU64,
    /// The watchdog's thread, once it runs.
    watchdog: AtomicI32,
    stopping: AtomicBool,
}

struct State<J> {
    queue: VecDeque<J>,
    leading: bool,
    /// Whose turn it is: a leader that finds another number here has been replaced.
    turn: u64,
    idle: usize,
    threads: Vec<(i32, JoinHandle<()>)>,
    started: usize,
    most: usize,
}

impl<S: Service> Workers<S> {
    /// Starts `least` threads; up to `most` when they are all held up.
    ///
    /// # Errors
    /// What starting a thread says.
    pub fn start(service: Arc<S>, least: usize, most: usize) -> io::Result<Self> {
        sys::process::prepare_interrupts();
        let state = State {
            queue: VecDeque::new(),
            leading: false,
            turn: 0,
            idle: 0,
            threads: Vec::new(),
            started: 0,
            most: most.max(least),
        };
        let shared = Arc::new(Shared {
            service,
            state: Lock::new(state, &QUEUE),
            wake: Condvar::new(),
            leader_events: AtomicU64::new(0),
            watchdog: AtomicI32::new(0),
            stopping: AtomicBool::new(false),
        });
        for _ in 0..least.max(2) {
            shared.start_thread()?;
        }
        let watchdog = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("watchdog".into()).spawn(move || {
                shared.watchdog.store(sys::process::current_thread(), Ordering::SeqCst);
                shared.watch();
            })?
        };
        Ok(Self { shared, watchdog: Some(watchdog) })
    }

    /// Ends all threads; work that is under way is finished, work that is queued is dropped. A thread that does not come
    /// back from the kernel is left behind.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::SeqCst);
        let mut threads = std::mem::take(&mut shared.lock().threads);
        threads.extend(self.watchdog.take().map(|thread| (shared.watchdog.load(Ordering::SeqCst), thread)));
        let begun = Instant::now();
        while threads.iter().any(|(_, thread)| !thread.is_finished()) && begun.elapsed() < FAREWELL {
            shared.wake.notify_all();
            for (tid, _) in threads.iter().filter(|(_, thread)| !thread.is_finished()) {
                // It may have ended meanwhile. A signal that comes just before the wait begins is lost, hence again and again.
                let _ = sys::process::interrupt(*tid);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        for (_, thread) in threads.into_iter().filter(|(_, thread)| thread.is_finished()) {
            // A thread that panicked has told so.
            let _ = thread.join();
        }
        shared.lock().queue.clear();
    }
}

impl<S: Service> Drop for Workers<S> {
    fn drop(&mut self) {
        if self.watchdog.is_some() {
            self.end();
        }
    }
}

impl<S: Service> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, State<S::Job>> {
        self.state.lock()
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    fn start_thread(self: &Arc<Self>) -> io::Result<()> {
        let shared = Arc::clone(self);
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("guard".into()).spawn(move || {
            // The one that waits for it is there, or nobody needs it.
            let _ = sender.send(sys::process::current_thread());
            shared.serve();
        })?;
        let tid = receiver.recv().unwrap_or(0);
        let mut state = self.lock();
        state.threads.push((tid, thread));
        state.started += 1;
        Ok(())
    }

    /// A thread's life: work from the queue first, else lead when nobody does, else wait.
    fn serve(&self) {
        let mut state = self.lock();
        while !self.stopping() {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                self.service.work(job);
                state = self.lock();
            } else if state.leading {
                state.idle += 1;
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            } else {
                state.leading = true;
                state.turn += 1;
                let turn = state.turn;
                drop(state);
                self.lead(turn);
                state = self.lock();
                if state.turn == turn {
                    state.leading = false;
                }
            }
        }
    }

    fn lead(&self, turn: u64) {
        let mut jobs = VecDeque::new();
        while !self.stopping() {
            // What could not be read has been dealt with, and there is nobody to tell who could do more.
            let _ = self.service.read(&mut jobs);
            let Some(first) = jobs.pop_front() else {
                if self.lock().turn != turn {
                    return;
                }
                continue;
            };
            let mut state = self.lock();
            if state.turn != turn {
                // Another one leads by now.
                state.queue.push_back(first);
                state.queue.append(&mut jobs);
                return;
            }
            self.leader_events.fetch_add(1, Ordering::SeqCst);
            let more = jobs.len().min(state.idle);
            if !jobs.is_empty() {
                state.queue.append(&mut jobs);
            }
            drop(state);
            for _ in 0..more {
                self.wake.notify_one();
            }
            self.service.work(first);
            let mut next = {
                let state = self.lock();
                if state.turn != turn {
                    return;
                }
                self.leader_events.fetch_add(1, Ordering::SeqCst);
                state
            };
            // What nobody took up while we worked is ours before we read on.
            while let Some(job) = next.queue.pop_front() {
                self.leader_events.fetch_add(1, Ordering::SeqCst);
                drop(next);
                self.service.work(job);
                next = self.lock();
                if next.turn != turn {
                    return;
                }
                self.leader_events.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    /// The watchdog's life.
    fn watch(self: &Arc<Self>) {
        let mut seen = 0;
        while !self.stopping() {
            self.service.wait(REST);
            if self.leader_events.load(Ordering::SeqCst) == seen && !self.service.is_pending() {
                continue;
            }
            seen = self.leader_events.load(Ordering::SeqCst);
            let mut quiet = Instant::now();
            let mut unread = false;
            while !self.stopping() {
                std::thread::sleep(PATIENCE);
                let now = self.leader_events.load(Ordering::SeqCst);
                if now != seen {
                    (seen, quiet, unread) = (now, Instant::now(), false);
                } else if now % 2 == 1 {
                    self.replace_leader(now);
                } else if self.service.is_pending() {
                    // Twice in a row: the leader may just be about to read it.
                    if unread {
                        self.replace_leader(now);
                    }
                    unread = !unread;
                } else if !self.find_leader(self.lock()) && quiet.elapsed() > REST {
                    break;
                }
            }
        }
    }

    /// The leader has been on one event for too long, or does not come back from reading: somebody else reads on.
    fn replace_leader(self: &Arc<Self>, seen: u64) {
        let mut state = self.lock();
        if self.leader_events.load(Ordering::SeqCst) != seen || !state.leading {
            self.find_leader(state);
            return;
        }
        if seen % 2 == 1 {
            // Now even: nobody is under way as the leader.
            self.leader_events.fetch_add(1, Ordering::SeqCst);
        }
        state.turn += 1;
        state.leading = false;
        self.find_leader(state);
    }

    /// Sees to it that somebody leads, and says whether nobody did. Whoever is woken takes queued work first, and may be
    /// held up by it, so this is asked again and again.
    fn find_leader<'a>(self: &'a Arc<Self>, mut state: MutexGuard<'a, State<S::Job>>) -> bool {
        if state.leading {
            return false;
        }
        if state.idle > 0 {
            self.wake.notify_one();
            return true;
        }
        if state.started < state.most {
            drop(state);
            if self.start_thread().is_ok() {
                return true;
            }
            state = self.lock();
            if state.leading {
                return true;
            }
        }
        // Nobody is left: read here until somebody is, and work on nothing.
        state.leading = true;
        let turn = state.turn;
        drop(state);
        let mut jobs = VecDeque::new();
        while !self.stopping() {
            // As in `lead`.
            let _ = self.service.read(&mut jobs);
            let mut state = self.lock();
            state.queue.append(&mut jobs);
            if state.idle > 0 || state.turn != turn {
                state.leading = false;
                drop(state);
                self.wake.notify_all();
                return true;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};

    enum Piece {
        Quick(u32),
        /// Waits until told.
        Slow(Receiver<()>),
        /// What the reader deals with itself.
        Exempt(Sender<()>),
        /// What one read brings.
        Together(Vec<Piece>),
        /// Holds up whoever reads it until told.
        Unreadable(Receiver<()>),
    }

    #[derive(Default)]
    struct Bench {
        pieces: Mutex<VecDeque<Piece>>,
        come: Condvar,
        done: Mutex<Vec<u32>>,
    }

    impl Bench {
        fn send(&self, piece: Piece) {
            self.pieces.lock().unwrap().push_back(piece);
            self.come.notify_all();
        }

        fn next(&self) -> Option<Piece> {
            let pieces = self.pieces.lock().unwrap();
            let none = |pieces: &mut VecDeque<Piece>| pieces.is_empty();
            self.come.wait_timeout_while(pieces, Duration::from_millis(20), none).unwrap().0.pop_front()
        }
    }

    impl Service for Bench {
        type Job = Piece;

        fn read(&self, jobs: &mut VecDeque<Piece>) -> io::Result<()> {
            match self.next() {
                Some(Piece::Exempt(answer)) => answer.send(()).unwrap(),
                Some(Piece::Together(pieces)) => jobs.extend(pieces),
                // Whoever holds it may be gone by the end.
                Some(Piece::Unreadable(go)) => drop(go.recv()),
                Some(piece) => jobs.push_back(piece),
                None => return Err(io::ErrorKind::Interrupted.into()),
            }
            Ok(())
        }

        fn wait(&self, _: Duration) {
            let pieces = self.pieces.lock().unwrap();
            let none = |pieces: &mut VecDeque<Piece>| pieces.is_empty();
            drop(self.come.wait_timeout_while(pieces, Duration::from_millis(20), none).unwrap());
        }

        fn is_pending(&self) -> bool {
            !self.pieces.lock().unwrap().is_empty()
        }

        fn work(&self, job: Piece) {
            match job {
                Piece::Quick(number) => self.done.lock().unwrap().push(number),
                Piece::Slow(go) => go.recv().unwrap(),
                Piece::Exempt(_) | Piece::Together(_) | Piece::Unreadable(_) => {
                    unreachable!("dealt with by the reader")
                }
            }
        }
    }

    #[test]
    fn every_piece_of_work_is_done() {
        let bench = Arc::new(Bench::default());
        let workers = Workers::start(Arc::clone(&bench), 3, 3).unwrap();
        for number in 0..1000 {
            bench.send(Piece::Quick(number));
        }
        let start = Instant::now();
        while bench.done.lock().unwrap().len() < 1000 && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        workers.stop();
        let mut done = bench.done.lock().unwrap().clone();
        done.sort_unstable();
        assert_eq!(done, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn reading_goes_on_when_every_thread_is_held_up() {
        let bench = Arc::new(Bench::default());
        let workers = Workers::start(Arc::clone(&bench), 2, 4).unwrap();
        let mut held = Vec::new();
        // More than there can be threads: the rest stays queued.
        for _ in 0..8 {
            let (go, wait) = channel();
            bench.send(Piece::Slow(wait));
            held.push(go);
        }
        let (answer, answered) = channel();
        bench.send(Piece::Exempt(answer));
        answered.recv_timeout(Duration::from_secs(20)).expect("what is exempt is answered though all others wait");
        for go in held {
            go.send(()).unwrap();
        }
        bench.send(Piece::Quick(7));
        let start = Instant::now();
        while bench.done.lock().unwrap().is_empty() && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        workers.stop();
        assert_eq!(*bench.done.lock().unwrap(), [7]);
    }

    #[test]
    fn reading_goes_on_when_reading_itself_holds_up_the_reader() {
        let bench = Arc::new(Bench::default());
        let workers = Workers::start(Arc::clone(&bench), 2, 8).unwrap();
        let mut held = Vec::new();
        for round in 0..4 {
            let (go, wait) = channel();
            bench.send(Piece::Unreadable(wait));
            held.push(go);
            // Also after everybody has gone to sleep.
            std::thread::sleep(if round == 2 { REST + Duration::from_millis(200) } else { Duration::ZERO });
            let (answer, answered) = channel();
            bench.send(Piece::Exempt(answer));
            answered.recv_timeout(Duration::from_secs(20)).expect("somebody else reads on");
        }
        bench.send(Piece::Quick(7));
        let start = Instant::now();
        while bench.done.lock().unwrap().is_empty() && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(held);
        workers.stop();
        assert_eq!(*bench.done.lock().unwrap(), [7]);
    }

    #[test]
    fn a_thread_that_does_not_come_back_is_left_behind() {
        let bench = Arc::new(Bench::default());
        let workers = Workers::start(Arc::clone(&bench), 2, 4).unwrap();
        let (go, wait) = channel();
        bench.send(Piece::Slow(wait));
        while !bench.pieces.lock().unwrap().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let begun = Instant::now();
        workers.stop();
        assert!(begun.elapsed() < FAREWELL + Duration::from_secs(10));
        go.send(()).unwrap();
    }

    #[test]
    fn reading_goes_on_when_those_who_could_lead_take_queued_work_that_holds_them_up() {
        for most in [4, 8, 64] {
            let bench = Arc::new(Bench::default());
            let workers = Workers::start(Arc::clone(&bench), 4, most).unwrap();
            let (held, pieces): (Vec<_>, Vec<_>) = (0..12)
                .map(|_| {
                    let (go, wait) = channel();
                    (go, Piece::Slow(wait))
                })
                .unzip();
            bench.send(Piece::Together(pieces));
            for _ in 0..3 {
                let (answer, answered) = channel();
                bench.send(Piece::Exempt(answer));
                answered
                    .recv_timeout(Duration::from_secs(20))
                    .expect("what is exempt is answered though all others wait");
            }
            for go in held {
                go.send(()).unwrap();
            }
            bench.send(Piece::Quick(7));
            let start = Instant::now();
            while bench.done.lock().unwrap().is_empty() && start.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(5));
            }
            workers.stop();
            assert_eq!(*bench.done.lock().unwrap(), [7], "{most}");
        }
    }
}
