//! The memory of idle peers, as the allocator really hands it out.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::{Node, stranger};
use crate::directory::PEERS;

/// What a peer that is only known may take, in bytes.
const GOAL: usize = 250;
/// What the allocator itself keeps beside each allocation (glibc's chunk header), in bytes.
const HEADER: usize = 8;

#[global_allocator]
static COUNTING: Counting = Counting(AtomicUsize::new(0));

/// The system's allocator, and the bytes that it handed out and did not get back.
struct Counting(AtomicUsize);

impl Counting {
    fn bytes(&self, pointer: *mut u8) -> usize {
        if pointer.is_null() {
            return 0;
        }
        // SAFETY: the pointer came from the system's allocator, which is malloc, and was not given back yet.
        HEADER + unsafe { libc::malloc_usable_size(pointer.cast()) }
    }
}

// SAFETY: everything is done by the system's allocator; this only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those of `System`.
        let pointer = unsafe { System.alloc(layout) };
        self.0.fetch_add(self.bytes(pointer), Ordering::Relaxed);
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.0.fetch_sub(self.bytes(pointer), Ordering::Relaxed);
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.dealloc(pointer, layout) };
    }
}

/// Prints what an idle peer with an IPv6 and an IPv4 address and one endpoint takes.
pub(crate) fn print() {
    let node = Node::new(1);
    let before = COUNTING.0.load(Ordering::Relaxed);
    for n in 0..PEERS {
        node.network.put_peers(vec![stranger(n)]);
    }
    let each = (COUNTING.0.load(Ordering::Relaxed) - before) / PEERS as usize;
    println!("an idle peer among {PEERS} takes {each} bytes (goal: at most {GOAL})");
}
