//! Python scripts of tests/interop as the other end.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

pub const LONG: Duration = Duration::from_secs(30);

/// Starts a script; it ends with the test.
pub fn python(script: &str, arguments: &[&str]) -> Child {
    let python = std::env::var_os("BOWLINE_PYTHON").expect("run tests/interop/run, which sets it");
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../interop/");
    Command::new(python)
        .arg(format!("{root}{script}"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("Python runs")
}

/// What it says next.
pub async fn line(child: &mut Child) -> String {
    let stdout = child.stdout.as_mut().expect("it is piped");
    let mut line = String::new();
    let mut reader = BufReader::with_capacity(1, stdout);
    timeout(LONG, reader.read_line(&mut line))
        .await
        .expect("it says something")
        .unwrap();
    line.trim().to_owned()
}

/// Says something to it.
#[allow(dead_code, reason = "not every test has something to say")]
pub async fn tell(child: &mut Child, line: &str) {
    let stdin = child.stdin.as_mut().expect("it is piped");
    stdin
        .write_all(format!("{line}\n").as_bytes())
        .await
        .unwrap();
}
