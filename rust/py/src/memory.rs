//! Large buffers on huge pages, as NumPy has them: at a million rows the page faults of fresh memory cost as much as
//! the work.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, asking for huge pages from [`LARGE`] bytes on.
pub struct Memory;

/// NumPy's bound.
const LARGE: usize = 4 << 20;
const HUGE_PAGE: usize = 2 << 20;

fn aligned(layout: Layout) -> Layout {
    if layout.size() < LARGE {
        return layout;
    }
    Layout::from_size_align(layout.size(), HUGE_PAGE.max(layout.align())).unwrap_or(layout)
}

fn advise(memory: *mut u8, size: usize) {
    #[cfg(target_os = "linux")]
    if size >= LARGE && !memory.is_null() {
        // SAFETY: the range was just allocated; the advice changes how it is backed, not what it holds. A kernel
        // without huge pages refuses, and nothing is lost.
        unsafe { libc::madvise(memory.cast(), size, libc::MADV_HUGEPAGE) };
    }
}

// SAFETY: every call goes to the system's allocator, with a layout that depends on the given one alone, so that
// memory is freed with the layout with which it was allocated.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract, with a larger alignment.
        let memory = unsafe { System.alloc(aligned(layout)) };
        advise(memory, layout.size());
        memory
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let memory = unsafe { System.alloc_zeroed(aligned(layout)) };
        advise(memory, layout.size());
        memory
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.size().max(size) < LARGE {
            // SAFETY: as above; neither layout is changed.
            return unsafe { System.realloc(memory, layout, size) };
        }
        // SAFETY: the caller's contract: `size` rounded up to the alignment fits an isize.
        let grown = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !grown.is_null() {
            // SAFETY: both are live, apart, and at least the smaller of the two sizes long.
            unsafe {
                std::ptr::copy_nonoverlapping(memory, grown, layout.size().min(size));
                self.dealloc(memory, layout);
            }
        }
        grown
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, aligned(layout)) };
    }
}
