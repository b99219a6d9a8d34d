//! The calls into Intel's library, by way of `multi_buffer.c`: all of this crate's `unsafe`, and nothing else.

use std::cell::OnceCell;
use std::ffi::c_int;
use std::marker::{PhantomData, PhantomPinned};
use std::ptr::NonNull;

/// `IMB_MGR`, of which only the library knows what is in it.
#[repr(C)]
struct Opaque {
    _bytes: [u8; 0],
    _not_to_be_moved_or_shared: PhantomData<(*mut u8, PhantomPinned)>,
}

unsafe extern "C" {
    fn znet_mb_new() -> *mut Opaque;
    fn znet_mb_free(manager: *mut Opaque);
    #[rustfmt::skip]
    fn znet_mb_run(
        manager: *mut Opaque,
        seal: c_int,
        key: *const u8,
        nonce: *const u8,
        aad: *const u8,
        aad_length: usize,
        data: *mut u8,
        length: usize,
        tag: *mut u8,
    ) -> c_int;
}

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Seal,
    Open,
}

/// A thread's manager, 200 KB. A manager must not be used by two threads at once, and need not be.
struct Manager(NonNull<Opaque>);

impl Drop for Manager {
    fn drop(&mut self) {
        // SAFETY: it came from `znet_mb_new`, and nobody has it after this.
        unsafe { znet_mb_free(self.0.as_ptr()) };
    }
}

thread_local! {
    static MANAGER: OnceCell<Option<Manager>> = const { OnceCell::new() };
}

fn with<T>(f: impl FnOnce(&Manager) -> T) -> Option<T> {
    MANAGER.with(|manager| {
        // SAFETY: it has no preconditions, and NULL is its way to say no.
        manager.get_or_init(|| NonNull::new(unsafe { znet_mb_new() }).map(Manager)).as_ref().map(f)
    })
}

/// Whether this processor has what makes the library worth it, and the library works.
pub(crate) fn there() -> bool {
    with(|_| ()).is_some()
}

/// Seals or opens `data` in place; returns the tag that belongs to it, which who opens has to compare. `None` if the library
/// does not do it.
pub(crate) fn run(
    way: Way,
    key: &[u8; 32],
    nonce: &[u8; 12],
    aad: &[u8],
    data: &mut [u8],
) -> Option<[u8; 16]> {
    let mut tag = [0; 16];
    let done = with(|manager| {
        // SAFETY: the manager is this thread's alone, and `f` of `with` is not called within itself; all pointers are
        // of living borrows of the lengths that go with them, and the library keeps none of them after it has returned, as this
        // cipher is done at once.
        unsafe {
            znet_mb_run(
                manager.0.as_ptr(),
                c_int::from(way == Way::Seal),
                key.as_ptr(),
                nonce.as_ptr(),
                aad.as_ptr(),
                aad.len(),
                data.as_mut_ptr(),
                data.len(),
                tag.as_mut_ptr(),
            )
        }
    });
    (done == Some(1)).then_some(tag)
}
