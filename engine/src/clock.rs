//! Which time a step is said to take.

use std::time::{Duration, Instant};

/// A clock for steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clock {
    /// The time that passes.
    #[default]
    Wall,
    /// The time that this process computes, all threads together. What other programs take does not
    /// count. It says something about the time that passes only where one thread computes.
    Processor,
}

/// A clock that runs since [`Clock::start`].
#[derive(Clone, Copy, Debug)]
pub struct Started {
    wall: Instant,
    /// What the process had computed; none for a clock of the time that passes.
    processor: Option<Duration>,
}

impl Clock {
    /// Whether this system has the clock.
    pub fn is_there(self) -> bool {
        self == Clock::Wall || processor_time().is_some()
    }

    /// Starts it. A clock that is not there is one of the time that passes.
    pub fn start(self) -> Started {
        let processor = if self == Clock::Processor { processor_time() } else { None };
        Started { wall: Instant::now(), processor }
    }
}

impl Started {
    /// The time since it was started.
    pub fn elapsed(&self) -> Duration {
        match self.processor {
            Some(before) => processor_time().unwrap_or(before).saturating_sub(before),
            None => self.wall.elapsed(),
        }
    }
}

/// What all threads of this process have computed.
#[cfg(unix)]
fn processor_time() -> Option<Duration> {
    use rustix::time::{ClockId, clock_gettime};
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).ok()
}

#[cfg(not(unix))]
fn processor_time() -> Option<Duration> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_is_slept_passes_on_the_wall_alone() {
        let (wall, processor) = (Clock::Wall.start(), Clock::Processor.start());
        std::thread::sleep(Duration::from_millis(30));
        assert!(wall.elapsed() >= Duration::from_millis(30));
        if Clock::Processor.is_there() {
            assert!(processor.elapsed() < wall.elapsed());
        }
    }

    #[test]
    fn what_is_computed_counts_on_both() {
        for clock in [Clock::Wall, Clock::Processor] {
            let started = clock.start();
            let mut number = 1u64;
            while Clock::is_there(clock) && started.elapsed() < Duration::from_millis(2) {
                number = std::hint::black_box(number.wrapping_mul(3));
            }
        }
    }
}
