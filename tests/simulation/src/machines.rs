//! Which machines there are, which of their processes live, and what their clocks say.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

/// One machine, by number. It survives its processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Machine(pub u16);

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "machine {}", self.0)
    }
}

/// One life of a machine: from a start to the next crash.
///
/// What was begun for a process carries it, so that a timer or an answer of the disk which comes
/// after the crash is known to be for nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process {
    /// Where it runs.
    pub machine: Machine,
    /// Counts the starts of the machine, from 1.
    pub life: u32,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (life {})", self.machine, self.life)
    }
}

/// All machines of a simulation, numbered from 0. They are up when they are made.
#[derive(Debug)]
pub struct Machines(Vec<State>);

#[derive(Debug)]
struct State {
    life: u32,
    is_up: bool,
    clock_ahead: Duration,
}

impl Machines {
    /// So many, with clocks that are ahead of true time by up to `clock_skew_max`.
    pub fn new(count: u16, clock_skew_max: Duration, random: &mut Rng) -> Self {
        let state = |_| State {
            life: 1,
            is_up: true,
            clock_ahead: clock_skew_max.mul_f64(random.f64()),
        };
        Self((0..count).map(state).collect())
    }

    /// The process that lives on a machine, or lived there last.
    pub fn process(&self, machine: Machine) -> Process {
        let life = self.state(machine).life;
        Process { machine, life }
    }

    /// Whether it still lives.
    pub fn is_alive(&self, process: Process) -> bool {
        let state = self.state(process.machine);
        state.is_up && state.life == process.life
    }

    /// Whether any process lives on a machine.
    pub fn is_up(&self, machine: Machine) -> bool {
        self.state(machine).is_up
    }

    /// Ends the process of a machine.
    pub fn crash(&mut self, machine: Machine) {
        self.0[usize::from(machine.0)].is_up = false;
    }

    /// Begins a new one.
    pub fn start(&mut self, machine: Machine) -> Process {
        let state = &mut self.0[usize::from(machine.0)];
        state.is_up = true;
        state.life += 1;
        self.process(machine)
    }

    /// What a machine's clock says when it is `now`.
    pub fn clock(&self, machine: Machine, now: Duration) -> Duration {
        now + self.state(machine).clock_ahead
    }

    /// Sets a clock, as an operator or NTP may at any time.
    pub fn set_clock(&mut self, machine: Machine, ahead: Duration) {
        self.0[usize::from(machine.0)].clock_ahead = ahead;
    }

    fn state(&self, machine: Machine) -> &State {
        &self.0[usize::from(machine.0)]
    }
}
