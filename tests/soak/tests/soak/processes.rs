//! The shop and its workers as processes.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// The shop. Dropping it ends the process.
pub struct Shop {
    _process: Child,
    calls: String,
    topic: String,
}

impl Shop {
    pub async fn start(folder: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_shop"))
            .arg(folder)
            // It ends when this is closed, however its parent does.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let stdout = process.stdout.take().expect("piped");
        let line = timeout(super::PATIENCE, BufReader::new(stdout).lines().next_line()).await;
        let line = line.expect("in time").expect("readable").expect("a line");
        let endpoints = line.strip_prefix("LISTENING ").expect("it says where");
        let (calls, topic) = endpoints.split_once(' ').expect("two endpoints");
        Self {
            _process: process,
            calls: calls.to_owned(),
            topic: topic.to_owned(),
        }
    }

    pub fn calls(&self) -> &str {
        &self.calls
    }

    pub fn calls_address(&self) -> SocketAddr {
        address(&self.calls)
    }

    pub fn topic_address(&self) -> SocketAddr {
        address(&self.topic)
    }
}

fn address(endpoint: &str) -> SocketAddr {
    let address = endpoint.strip_prefix("tcp://").expect("TCP");
    address.parse().expect("an address")
}

/// A worker of the queue. Dropping it kills the process.
pub struct Worker {
    endpoint: String,
    process: Child,
}

impl Worker {
    pub async fn start(endpoint: &str) -> Self {
        let process = Command::new(env!("CARGO_BIN_EXE_worker"))
            .arg(endpoint)
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        Self {
            endpoint: endpoint.to_owned(),
            process,
        }
    }

    pub async fn kill_and_restart(&mut self) {
        self.process.kill().await.expect("it can be killed");
        *self = Self::start(&self.endpoint).await;
    }

    /// Stops the process by SIGSTOP, and lets it go on after `time`.
    pub async fn stop_for(&mut self, time: Duration) {
        let id = self.process.id().expect("it runs");
        let id = Pid::from_raw(id as i32).expect("not zero");
        kill_process(id, Signal::STOP).expect("it can be stopped");
        sleep(time).await;
        kill_process(id, Signal::CONT).expect("it can go on");
    }
}
