//! Work that several threads share out, and whose results are told in the order in which it was found.
//!
//! One thread finds, the others work. A thread that ends what is next to be told tells it, and all that waited for it, so
//! that nobody is woken for that: on a virtual machine waking a thread takes as long as hashing a small file.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is found ahead of the work; it keeps folders open.
const QUEUE: usize = 16;

/// So far the work may get ahead of what can be told, which one large file can hold up.
const AHEAD: u64 = 4096;

/// Does `work` for all that `next` finds, on `threads` threads, each with what `begin` has made for it, and tells `deliver` the
/// results in the order found. Meanwhile the calling thread does `tick` from time to time.
pub fn in_order<S, B: Send, R: Send>(
    threads: usize,
    next: impl FnMut() -> Option<B> + Send,
    begin: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, B) -> R + Sync,
    deliver: impl FnMut(R) + Send,
    mut tick: impl FnMut(),
) {
    let shared = Shared {
        queue: Mutex::new(Queue { waiting: VecDeque::new(), found: 0, ended: false, idle: 0, finder_waits: false }),
        found: Condvar::new(),
        room: Condvar::new(),
        order: Mutex::new(Order { early: BTreeMap::new(), next: 0, telling: false, stopped: false, waiting: 0 }),
        told: Condvar::new(),
        deliver: Mutex::new(deliver),
        running: Mutex::new(threads.max(1)),
        over: Condvar::new(),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _stop = Stop(&shared);
            shared.find(next);
        });
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let _stop = Stop(&shared);
                let _over = Over(&shared);
                let mut state = begin();
                while let Some((number, found)) = shared.take() {
                    let result = work(&mut state, found);
                    if shared.tell(number, result).is_none() {
                        break;
                    }
                }
            });
        }
        let mut running = lock(&shared.running);
        while *running > 0 {
            let waited = shared.over.wait_timeout(running, Duration::from_millis(100));
            running = waited.unwrap_or_else(PoisonError::into_inner).0;
            tick();
        }
    });
}

struct Shared<B, R, D> {
    queue: Mutex<Queue<B>>,
    found: Condvar,
    room: Condvar,
    order: Mutex<Order<R>>,
    told: Condvar,
    deliver: Mutex<D>,
    running: Mutex<usize>,
    over: Condvar,
}

struct Queue<B> {
    waiting: VecDeque<(u64, B)>,
    found: u64,
    ended: bool,
    idle: usize,
    finder_waits: bool,
}

struct Order<R> {
    early: BTreeMap<u64, R>,
    next: u64,
    telling: bool,
    stopped: bool,
    waiting: usize,
}

impl<B, R, D: FnMut(R)> Shared<B, R, D> {
    fn find(&self, mut next: impl FnMut() -> Option<B>) {
        while let Some(found) = next() {
            let mut queue = lock(&self.queue);
            while queue.waiting.len() >= QUEUE && !queue.ended {
                queue.finder_waits = true;
                queue = wait(&self.room, queue);
            }
            if queue.ended {
                return;
            }
            let number = queue.found;
            queue.found += 1;
            queue.waiting.push_back((number, found));
            if queue.idle > 0 {
                self.found.notify_one();
            }
        }
        lock(&self.queue).ended = true;
        self.found.notify_all();
    }

    fn take(&self) -> Option<(u64, B)> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(found) = queue.waiting.pop_front() {
                if queue.finder_waits && queue.waiting.len() <= QUEUE / 2 {
                    queue.finder_waits = false;
                    self.room.notify_one();
                }
                return Some(found);
            }
            if queue.ended {
                return None;
            }
            queue.idle += 1;
            queue = wait(&self.found, queue);
            queue.idle -= 1;
        }
    }

    /// None when another thread has panicked, and all is to end.
    fn tell(&self, number: u64, result: R) -> Option<()> {
        let mut order = lock(&self.order);
        while number > order.next + AHEAD && !order.stopped {
            order.waiting += 1;
            order = wait(&self.told, order);
            order.waiting -= 1;
        }
        if order.stopped {
            return None;
        }
        order.early.insert(number, result);
        while !order.telling {
            let next = order.next;
            let Some(result) = order.early.remove(&next) else { break };
            order.next += 1;
            order.telling = true;
            if order.waiting > 0 {
                self.told.notify_all();
            }
            drop(order);
            lock(&self.deliver)(result);
            order = lock(&self.order);
            order.telling = false;
        }
        Some(())
    }
}

/// Ends the others when a thread panics, which would else wait for it for ever.
struct Stop<'s, B, R, D>(&'s Shared<B, R, D>);

impl<B, R, D> Drop for Stop<'_, B, R, D> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut queue = lock(&self.0.queue);
            queue.waiting.clear();
            queue.ended = true;
            drop(queue);
            lock(&self.0.order).stopped = true;
            self.0.found.notify_all();
            self.0.room.notify_all();
            self.0.told.notify_all();
        }
    }
}

/// Counts a thread that is over.
struct Over<'s, B, R, D>(&'s Shared<B, R, D>);

impl<B, R, D> Drop for Over<'_, B, R, D> {
    fn drop(&mut self) {
        *lock(&self.0.running) -= 1;
        self.0.over.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait<'m, T>(condition: &Condvar, guard: MutexGuard<'m, T>) -> MutexGuard<'m, T> {
    condition.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn numbers(count: u64) -> impl FnMut() -> Option<u64> + Send {
        let mut numbers = 0..count;
        move || numbers.next()
    }

    #[test]
    fn results_are_told_in_the_order_found_however_long_each_takes() {
        for (threads, count) in [(1, 100), (4, 3 * AHEAD), (16, 5), (3, 0)] {
            let mut told = Vec::new();
            let work = |done: &mut u64, number: u64| {
                *done += 1;
                if number.is_multiple_of(97) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                number * 2
            };
            in_order(threads, numbers(count), || 0, work, |result| told.push(result), || {});
            assert_eq!(told, (0..count).map(|number| number * 2).collect::<Vec<_>>());
        }
    }

    #[test]
    fn nobody_gets_further_ahead_of_what_can_be_told_than_allowed() {
        let (most, told) = (AtomicU64::new(0), AtomicU64::new(0));
        let work = |_: &mut (), number: u64| {
            if number == 0 {
                std::thread::sleep(Duration::from_millis(300));
            }
            most.fetch_max(number.saturating_sub(told.load(Ordering::SeqCst)), Ordering::SeqCst);
            number
        };
        let deliver = |number| told.store(number, Ordering::SeqCst);
        in_order(4, numbers(4 * AHEAD), || (), work, deliver, || {});
        // Each thread may hold one result, and what is being told is not counted yet.
        assert!(most.load(Ordering::SeqCst) <= AHEAD + 5, "{most:?}");
    }

    #[test]
    fn a_panic_ends_all_and_is_passed_on() {
        for place in ["find", "work", "deliver"] {
            let run = std::panic::catch_unwind(|| {
                let mut find = numbers(100_000);
                let next = move || find().inspect(|number| assert!(place != "find" || *number < 50));
                let work = |_: &mut (), number: u64| {
                    assert!(place != "work" || number != 5000);
                    number
                };
                in_order(4, next, || (), work, |number| assert!(place != "deliver" || number != 5000), || {});
            });
            assert!(run.is_err(), "{place}");
        }
    }
}
