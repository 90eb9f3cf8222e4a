//! What a process holds: memory, file descriptors, tasks, bytes on disk. Linux only: elsewhere zeros.

use std::fs;
use std::path::Path;

/// Bytes of memory that this process has resident.
pub fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Open file descriptors of this process.
pub fn descriptors() -> u32 {
    fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u32)
}

/// Live tasks of the current tokio runtime.
pub fn tasks() -> u32 {
    tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks() as u32
}

/// Bytes of all files below `folder`.
pub fn disk_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(about) if about.is_dir() => disk_bytes(&entry.path()),
        Ok(about) => about.len(),
        // Removed in the meantime.
        Err(_) => 0,
    });
    bytes.sum()
}
