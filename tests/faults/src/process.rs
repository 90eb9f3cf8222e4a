//! Services in processes of their own, which can be killed.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

/// A running service. Dropping it kills the process.
#[derive(Debug)]
pub struct Service {
    binary: String,
    endpoint: String,
    arguments: Vec<String>,
    process: Child,
}

impl Service {
    /// Starts `binary` on a free port of loopback, and returns once it listens.
    ///
    /// # Panics
    /// Where it does not start.
    pub async fn start(binary: &str, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        Self::start_at("tcp://127.0.0.1:0".to_owned(), binary.to_owned(), arguments).await
    }

    async fn start_at(endpoint: String, binary: String, arguments: Vec<String>) -> Self {
        let mut process = Command::new(&binary)
            .arg(endpoint)
            .args(&arguments)
            // It ends when this is closed, however its parent does.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let stdout = process.stdout.take().expect("piped");
        let line = timeout(PATIENCE, BufReader::new(stdout).lines().next_line()).await;
        let line = line.expect("in time").expect("readable").expect("a line");
        let endpoint = line.strip_prefix("LISTENING ").expect("it says where");
        Self {
            binary,
            endpoint: endpoint.to_owned(),
            arguments,
            process,
        }
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Kills it with SIGKILL; returns when it is dead.
    ///
    /// # Panics
    /// Where it was dead already.
    pub async fn kill(&mut self) {
        assert_eq!(self.process.try_wait().expect("ours"), None, "it lived");
        self.process.kill().await.expect("it can be killed");
    }

    /// Starts it again on the same port.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub async fn restart(&mut self) {
        let again = Self::start_at(
            self.endpoint.clone(),
            self.binary.clone(),
            self.arguments.clone(),
        );
        *self = again.await;
    }

    /// Bytes of memory that it has resident. Linux only: elsewhere 0.
    pub fn resident_bytes(&self) -> u64 {
        let id = self.process.id().unwrap_or_default();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
        kibibytes.unwrap_or(0) * 1024
    }
}
