//! Which operation on which blocks comes next: a pure function of the seed.

use penstock_reactor::rng::Rng;

/// The shape of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "lower")]
pub enum Pattern {
    /// Sequential reads.
    Read,
    /// Sequential writes.
    Write,
    /// Random reads.
    RandRead,
    /// Random writes.
    RandWrite,
    /// Sequential, reads and writes mixed.
    Rw,
    /// Random, reads and writes mixed.
    RandRw,
}

impl Pattern {
    /// Whether places are random.
    #[must_use]
    pub fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite | Self::RandRw)
    }

    /// Reads in a hundred, where `mix` is what a mixed pattern was asked to have.
    #[must_use]
    pub fn read_percent(self, mix: u8) -> u8 {
        match self {
            Self::Read | Self::RandRead => 100,
            Self::Write | Self::RandWrite => 0,
            Self::Rw | Self::RandRw => mix.min(100),
        }
    }
}

/// One step of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// A read, or a write.
    pub is_read: bool,
    /// Which piece of the device, in units of one I/O.
    pub slot: u64,
}

/// Makes the steps of one worker.
#[derive(Debug, Clone)]
pub struct Generator {
    rng: Rng,
    is_random: bool,
    read_percent: u8,
    /// The pieces this worker uses: `first .. first + slots`.
    first: u64,
    slots: u64,
    cursor: u64,
}

impl Generator {
    /// Steps over the pieces `first .. first + slots`.
    #[must_use]
    pub fn new(pattern: Pattern, mix: u8, first: u64, slots: u64, seed: u64) -> Self {
        Self {
            rng: Rng::seeded(seed),
            is_random: pattern.is_random(),
            read_percent: pattern.read_percent(mix),
            first,
            slots: slots.max(1),
            cursor: 0,
        }
    }

    /// The next step.
    #[inline]
    pub fn step(&mut self) -> Step {
        let slot = if self.is_random {
            self.rng.below(self.slots)
        } else {
            let slot = self.cursor;
            self.cursor = if slot + 1 == self.slots { 0 } else { slot + 1 };
            slot
        };
        let is_read = match self.read_percent {
            100 => true,
            0 => false,
            percent => self.rng.below(100) < u64::from(percent),
        };
        Step { is_read, slot: self.first + slot }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequential_load_covers_its_part_in_order_and_begins_again() {
        let mut load = Generator::new(Pattern::Write, 50, 10, 3, 1);
        let slots: Vec<u64> = (0..7).map(|_| load.step().slot).collect();
        assert_eq!(slots, [10, 11, 12, 10, 11, 12, 10]);
    }

    #[test]
    fn a_mixed_load_keeps_its_mix_and_its_bounds() {
        let mut load = Generator::new(Pattern::RandRw, 70, 100, 50, 9);
        let steps: Vec<Step> = (0..10_000).map(|_| load.step()).collect();
        let reads = steps.iter().filter(|step| step.is_read).count();
        assert!((6800..7200).contains(&reads), "{reads} reads of 10000");
        assert!(steps.iter().all(|step| (100..150).contains(&step.slot)));
    }
}
