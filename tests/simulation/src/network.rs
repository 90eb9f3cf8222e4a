//! A network that loses, repeats, reorders, delays and partitions.

use std::time::Duration;

use fastrand::Rng;

use crate::{Machine, Simulation};

/// How bad a network is. Probabilities are from 0 to 1, for each message.
#[derive(Clone, Debug)]
pub struct NetworkFaults {
    /// Of being lost.
    pub drop: f64,
    /// Of arriving twice.
    pub duplicate: f64,
    /// Of being overtaken by what is sent later.
    pub reorder: f64,
    /// Of being held up for up to [`delay_max`](Self::delay_max).
    pub delay: f64,
    /// The longest time that a message is held up.
    pub delay_max: Duration,
    /// The usual time from one machine to another, at most.
    pub latency_max: Duration,
}

impl NetworkFaults {
    /// A network that works.
    pub fn none() -> Self {
        Self {
            drop: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            delay: 0.0,
            delay_max: Duration::ZERO,
            latency_max: Duration::from_millis(1),
        }
    }

    /// From a good one to a bad one.
    pub fn some(random: &mut Rng) -> Self {
        Self {
            drop: 0.2 * random.f64(),
            duplicate: 0.2 * random.f64(),
            reorder: 0.3 * random.f64(),
            delay: 0.1 * random.f64(),
            delay_max: Duration::from_secs(random.u64(1..20)),
            latency_max: Duration::from_millis(random.u64(1..20)),
        }
    }
}

/// What lies between the machines.
#[derive(Clone, Debug)]
pub struct Network {
    faults: NetworkFaults,
    /// Machines that cannot reach the others, nor be reached by them; they reach each other.
    apart: Vec<Machine>,
}

impl Network {
    /// With all machines together.
    pub fn new(faults: NetworkFaults) -> Self {
        let apart = Vec::new();
        Self { faults, apart }
    }

    /// Cuts these machines off from all others. Replaces an earlier partition.
    pub fn part<E>(&mut self, simulation: &mut Simulation<E>, machines: Vec<Machine>) {
        simulation.faults().count("network: partition");
        simulation.note(|| format!("partition: {machines:?} are apart"));
        self.apart = machines;
    }

    /// Ends the partition.
    pub fn heal<E>(&mut self, simulation: &mut Simulation<E>) {
        simulation.note(|| "the partition ends".to_owned());
        self.apart.clear();
    }

    /// From now on, what is sent arrives.
    pub fn become_good(&mut self) {
        *self = Self::new(NetworkFaults::none());
    }

    /// Whether one can reach the other.
    pub fn reaches(&self, from: Machine, to: Machine) -> bool {
        self.apart.contains(&from) == self.apart.contains(&to)
    }

    /// Sends a message: it arrives once, later, twice or never.
    ///
    /// `arrived` makes what happens when it arrives. A partition that begins while it travels does
    /// not hold it up.
    pub fn send<E>(
        &self,
        simulation: &mut Simulation<E>,
        from: Machine,
        to: Machine,
        arrived: impl Fn() -> E,
    ) {
        if !self.reaches(from, to) {
            simulation.faults().count("network: lost to a partition");
            simulation.note(|| format!("lost to the partition: {from} to {to}"));
            return;
        }
        if simulation.chance(self.faults.drop) {
            simulation.faults().count("network: drop");
            simulation.note(|| format!("dropped: {from} to {to}"));
            return;
        }
        let wait = self.travel_time(simulation);
        simulation.after(wait, arrived());
        if simulation.chance(self.faults.duplicate) {
            simulation.faults().count("network: duplicate");
            let wait = self.travel_time(simulation);
            simulation.note(|| format!("duplicated: {from} to {to}"));
            simulation.after(wait, arrived());
        }
    }

    fn travel_time<E>(&self, simulation: &mut Simulation<E>) -> Duration {
        let NetworkFaults {
            latency_max,
            delay_max,
            ..
        } = self.faults;
        let mut wait = simulation.duration(latency_max / 10, latency_max);
        if simulation.chance(self.faults.reorder) {
            simulation.faults().count("network: reorder");
            wait += simulation.duration(latency_max, latency_max * 5);
        }
        if simulation.chance(self.faults.delay) {
            simulation.faults().count("network: delay");
            wait += simulation.duration(Duration::ZERO, delay_max);
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Seed;

    fn arrivals(faults: NetworkFaults, sent: u32) -> Vec<u32> {
        let mut simulation = Simulation::new(Seed::quiet(1));
        let network = Network::new(faults);
        for number in 0..sent {
            network.send(&mut simulation, Machine(0), Machine(1), || number);
        }
        std::iter::from_fn(|| simulation.next()).collect()
    }

    #[test]
    fn a_good_network_delivers_everything_once() {
        let mut arrived = arrivals(NetworkFaults::none(), 100);
        arrived.sort();
        assert_eq!(arrived, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_bad_one_loses_repeats_and_reorders() {
        let faults = NetworkFaults {
            drop: 0.1,
            duplicate: 0.1,
            reorder: 0.5,
            ..NetworkFaults::none()
        };
        let arrived = arrivals(faults, 1000);
        let mut unique = arrived.clone();
        unique.sort();
        unique.dedup();
        assert!(unique.len() < 950, "{} were not lost", unique.len());
        assert!(arrived.len() > unique.len() + 50);
        assert!(!arrived.is_sorted());
    }

    #[test]
    fn machines_that_are_apart_reach_each_other_and_nobody_else() {
        let mut simulation = Simulation::<()>::new(Seed::quiet(1));
        let mut network = Network::new(NetworkFaults::none());
        network.part(&mut simulation, vec![Machine(0), Machine(1)]);
        assert!(network.reaches(Machine(0), Machine(1)));
        assert!(network.reaches(Machine(2), Machine(3)));
        assert!(!network.reaches(Machine(1), Machine(2)));
        network.heal(&mut simulation);
        assert!(network.reaches(Machine(1), Machine(2)));
    }
}
