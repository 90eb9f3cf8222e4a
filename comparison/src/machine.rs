//! What the figures were measured on.

use std::process::Command;

pub fn describe() -> std::io::Result<String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let rustc = Command::new("rustc").arg("--version").output()?.stdout;
    Ok(format!(
        "{model}, {cores} cores, Linux {}, {}.\n",
        kernel.trim(),
        String::from_utf8_lossy(&rustc).trim(),
    ))
}
