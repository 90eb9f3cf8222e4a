//! What a small message may allocate: one for its body (`capnp`'s list of segments), none for its
//! header, none to open both. What they are copied into is allocated once for many.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bowline::call::RawRequest;
use bowline::message::{Msg, Plain};
use bowline::{__measured, Limits, Reply};
use bowline_test_schemas::everything::{BASE_SERVICE, PingParams};
use bytes::Bytes;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: passes every call on to the system's allocator unchanged; counting touches a thread
// local of a plain number, which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no count any more, and nobody who asks for it.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of one run, after some that fill the pools.
fn allocations<T>(mut run: impl FnMut() -> T) -> u64 {
    for _ in 0..10 {
        run();
    }
    let before = ALLOCATIONS.get();
    let kept = run();
    let count = ALLOCATIONS.get() - before;
    drop(kept);
    count
}

#[test]
fn a_body_takes_one_allocation_to_build_and_nothing_else_takes_any() {
    let body = PingParams {
        text: "hello".into(),
    }
    .to_bytes()
    .unwrap();
    let request = RawRequest::new(&BASE_SERVICE.methods[0], body.clone());
    let built = allocations(|| Reply::<PingParams>::build(|mut p| p.set_text("hello")));
    assert!(built <= 1, "{built} to build a body");
    let built = allocations(|| __measured::build_header(&request));
    assert_eq!(built, 0, "to build a header");

    // As they arrive: behind other bytes, not at a multiple of eight.
    let shifted = |bytes: &[u8]| Bytes::from([&[0; 3][..], bytes].concat()).slice(3..);
    let header = shifted(&__measured::build_header(&request));
    let body = shifted(&body);
    let limits = Limits::default();
    let opened = allocations(|| {
        let method = __measured::open_header(&header);
        let message = Msg::<PingParams>::open(body.clone(), &limits).unwrap();
        assert_eq!(message.get().unwrap().get_text().unwrap(), "hello");
        (method, message)
    });
    assert_eq!(opened, 0, "to open");
}
