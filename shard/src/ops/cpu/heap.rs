//! What becomes of memory that a step gives back.

/// Has the heap keep what is freed. Every operator of a step takes memory for its output and every next one
/// gives some back; where the system took it each time, it would have to clear the same pages anew, which takes
/// as long as a fifth of a prompt's computation. To be called before there are threads, which otherwise have
/// heaps of their own. The heap grows by no more than is asked for: what it has in advance it would clear itself,
/// which would take memory for KV blocks that nobody has written yet.
pub fn keep_freed_memory() {
    // Only speed depends on it: what the heap refuses stays as it was.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_MAX, 0),
        // All of memory.
        (libc::M_TRIM_THRESHOLD, -1),
    ] {
        // SAFETY: it changes how the heap grows and shrinks, and nothing that lies on it.
        unsafe { libc::mallopt(parameter, value) };
    }
}
