//! Deciding allocates nothing: an event is held up until it is decided, and must not wait for memory.

use imara_engine::policy::{CompiledPolicy, Event, FileFacts, Subject};
use imara_format::policy::{Func, LsmCondition, Policy, Target, builtin};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting what each thread asks for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

// SAFETY: each call goes to the system's allocator as it came; counting touches no memory but the thread's own cell.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps to what `alloc` asks of it.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to what `dealloc` asks of it, and all memory of ours is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps to what `realloc` asks of it, and all memory of ours is the system's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATIONS.get();
    let result = work();
    (result, ALLOCATIONS.get() - before)
}

struct Root;

impl Subject for Root {
    fn uid(&self) -> u32 {
        0
    }
    fn gid(&self) -> u32 {
        0
    }
    fn euids(&self) -> [u32; 3] {
        [0; 3]
    }
    fn egids(&self) -> [u32; 3] {
        [0; 3]
    }
    fn can_setuid(&self) -> bool {
        true
    }
    fn can_setgid(&self) -> bool {
        true
    }
    fn has_label(&self, condition: &LsmCondition) -> bool {
        condition.value == "t"
    }
}

#[test]
fn deciding_allocates_nothing() {
    let every_condition = "measure func=KEY_CHECK keyrings=.ima|.evm uid=0\n\
        measure func=FILE_CHECK mask=^MAY_READ fsmagic=0xef53 fsname=ext4 fs_subtype=a uid=0\n\
        appraise fsuuid=07070707-0707-0707-0707-070707070707 fowner=0 fgroup<9 euid=0 gid=0 obj_type=t\n\
        audit egid=0 obj_type=u\n"
        .repeat(40);
    let file =
        FileFacts { owner: 0, group: 0, fsmagic: 0xef53, fsname: "ext4", fs_subtype: "a", fsuuid: Some([7; 16]) };
    for (name, policy) in [
        ("tcb", builtin("tcb").unwrap()),
        ("appraise_tcb", builtin("appraise_tcb").unwrap()),
        ("every condition", Policy::parse(every_condition.as_bytes(), &Target::guard()).unwrap()),
    ] {
        let policy = CompiledPolicy::with_labels(policy);
        for func in Func::ALL {
            let event = Event { func: *func, mask: 4, file: &file, subject: &Root, data: Some(".evm") };
            let (decision, allocations) = allocations(|| policy.decide(&event));
            assert_eq!(allocations, 0, "{name}: {func}: {decision:?}");
        }
    }
}

#[test]
fn an_allocation_is_counted() {
    assert_eq!(allocations(|| vec![1; 10]).1, 1);
}
