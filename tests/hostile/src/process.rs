//! Processes: how one is started, watched and limited, and what it says of itself.

use std::fmt::Display;
use std::io::{self, BufRead, BufReader, Lines, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Says an address, in the form that [`Victim::start`] reads.
pub fn say(name: &str, endpoint: &impl Display) {
    let endpoint = endpoint.to_string();
    println!("{name} {}", endpoint.trim_start_matches("tcp://"));
}

/// The value of this process's argument `<name>=<value>`.
pub fn argument(name: &str) -> Option<String> {
    std::env::args().find_map(|argument| {
        let value = argument.strip_prefix(name)?.strip_prefix('=')?;
        Some(value.to_owned())
    })
}

/// Limits this process as its arguments `memory=<bytes>` and `files=<n>` say.
///
/// # Errors
/// Where an argument is no number, or the system refuses.
pub fn limit_from_arguments() -> Result<(), Box<dyn std::error::Error>> {
    for (name, resource) in [("memory", Resource::As), ("files", Resource::Nofile)] {
        let Some(value) = argument(name) else {
            continue;
        };
        let limit = Some(value.parse()?);
        let limit = Rlimit {
            current: limit,
            maximum: limit,
        };
        setrlimit(resource, limit)?;
    }
    Ok(())
}

/// Lets this process open as many files as it ever may.
///
/// # Errors
/// Where the system refuses.
pub fn raise_file_limit() -> io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// Returns when whoever started this process has let go of it.
pub async fn until_input_ends() {
    let reading = tokio::task::spawn_blocking(|| {
        let mut rest = Vec::new();
        io::stdin().read_to_end(&mut rest)
    });
    // Either way it has ended.
    let _ = reading.await;
}

/// A process that is attacked. It ends with this value.
#[derive(Debug)]
pub struct Victim {
    child: Child,
    /// It ends when this is closed.
    _input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
    addresses: Vec<(String, SocketAddr)>,
}

impl Victim {
    /// Starts it, and reads `addresses` lines of where it listens. Its complaints go to `errors`.
    ///
    /// # Errors
    /// Where it does not start, or says something else.
    pub fn start(
        program: &Path,
        arguments: &[&str],
        addresses: usize,
        errors: Stdio,
    ) -> io::Result<Self> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut output = BufReader::new(output).lines();
        let lines: io::Result<Vec<_>> = output.by_ref().take(addresses).collect();
        let addresses = lines?
            .into_iter()
            .filter_map(|line| {
                let (name, address) = line.split_once(' ')?;
                Some((name.to_owned(), address.parse().ok()?))
            })
            .collect();
        Ok(Self {
            child,
            _input: input,
            output,
            addresses,
        })
    }

    /// Its address of this name.
    ///
    /// # Panics
    /// If it has not said one.
    pub fn address(&self, name: &str) -> SocketAddr {
        let found = self.addresses.iter().find(|(of, _)| of == name);
        found.unwrap_or_else(|| panic!("no address of {name}")).1
    }

    /// All, as arguments of `hostile`.
    pub fn arguments(&self) -> Vec<String> {
        let addresses = self.addresses.iter();
        addresses.map(|(name, at)| format!("{name}={at}")).collect()
    }

    /// Waits until it has said each of these lines, in any order; whether it has.
    pub fn says(&mut self, mut lines: Vec<&str>) -> bool {
        while !lines.is_empty() {
            match self.line() {
                Some(said) => lines.retain(|line| *line != said),
                None => return false,
            }
        }
        true
    }

    /// Waits for the next line that it says; `None` once it has ended.
    pub fn line(&mut self) -> Option<String> {
        self.output.next()?.ok()
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// The most memory that it has had so far, in bytes; 0 once it has ended.
    pub fn resident_max(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// The memory that it has now, in bytes; 0 once it has ended.
    pub fn resident(&self) -> u64 {
        self.status("VmRSS:")
    }

    fn status(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// Its process, to be stopped and continued.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
