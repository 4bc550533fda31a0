//! Counts over time in constant memory: total, first and last, busiest minute, and a coarse curve.

use crate::events::Kind;

const MINUTE_NS: i64 = 60_000_000_000;

/// Minutes that are still being counted, so that a few lines out of order do no harm.
const MINUTES_OPEN: usize = 8;

/// Points of the curve.
pub(crate) const POINTS: usize = 48;

/// A point in time as the log has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// Nanoseconds since 1970, or since the start of the server where the log has no dates.
    pub ns: i64,
}

/// How often and when an event was seen.
#[derive(Clone, Debug)]
pub struct Tally {
    /// The event.
    pub kind: Kind,
    /// How many lines.
    pub count: u64,
    /// The earliest that has a time.
    pub first: Option<Moment>,
    /// The latest that has a time.
    pub last: Option<Moment>,
    /// The start of the minute with the most lines, and how many.
    pub busiest: Option<(Moment, u64)>,
    /// Lines in equal parts of the log's time, first to last; empty where nothing has a time.
    pub curve: Vec<u64>,
    open: Vec<(i64, u64)>,
    bins: Bins,
}

impl Tally {
    pub(crate) fn new(kind: Kind) -> Tally {
        let bins = Bins::default();
        Tally {
            kind,
            count: 0,
            first: None,
            last: None,
            busiest: None,
            curve: Vec::new(),
            open: Vec::new(),
            bins,
        }
    }

    pub(crate) fn add(&mut self, at_ns: Option<i64>) {
        self.count += 1;
        let Some(ns) = at_ns else { return };
        let moment = Moment { ns };
        self.first = Some(self.first.map_or(moment, |first| first.min(moment)));
        self.last = Some(self.last.map_or(moment, |last| last.max(moment)));
        self.bins.add(ns);
        let minute = ns.div_euclid(MINUTE_NS);
        if let Some((_, count)) = self.open.iter_mut().find(|(open, _)| *open == minute) {
            *count += 1;
            return;
        }
        if self.open.len() == MINUTES_OPEN {
            let (oldest, count) = self.open.remove(0);
            self.close(oldest, count);
        }
        self.open.push((minute, 1));
    }

    fn close(&mut self, minute: i64, count: u64) {
        if self.busiest.is_none_or(|(_, most)| count > most) {
            self.busiest = Some((Moment { ns: minute.saturating_mul(MINUTE_NS) }, count));
        }
    }

    /// Ends the counting; the curve covers the time of the whole log.
    pub(crate) fn finish(&mut self, span: Option<(Moment, Moment)>) {
        for (minute, count) in std::mem::take(&mut self.open) {
            self.close(minute, count);
        }
        if let Some((first, last)) = span {
            self.curve = self.bins.curve(first.ns, last.ns);
        }
    }

    /// Lines an hour over a time; none over no time.
    pub fn per_hour(&self, span_ns: u64) -> Option<f64> {
        (span_ns > 0).then(|| self.count as f64 * 3.6e12 / span_ns as f64)
    }
}

/// Counts in bins of equal width that doubles whenever the times no longer fit.
#[derive(Clone, Debug, Default)]
struct Bins {
    /// Start of the first bin, a multiple of the width.
    start: i128,
    /// Width as a power of two, ns.
    shift: u32,
    counts: Vec<u64>,
}

/// Bins kept: twice the points of the curve, so that no point is coarser than two of them.
const BINS: usize = 4 * POINTS;

impl Bins {
    fn add(&mut self, ns: i64) {
        if self.counts.is_empty() {
            self.shift = 30;
            self.start = i128::from(ns >> self.shift) << self.shift;
            self.counts = vec![0; BINS];
        }
        while !self.holds(ns) {
            self.widen(i128::from(ns) < self.start);
        }
        let bin = (i128::from(ns) - self.start) >> self.shift;
        self.counts[usize::try_from(bin).expect("the bins reach to this time")] += 1;
    }

    fn holds(&self, ns: i64) -> bool {
        let width = i128::from(ns) - self.start;
        width >= 0 && (width >> self.shift) < BINS as i128
    }

    /// Joins the bins in pairs; the new half lies before the old one, or after it.
    fn widen(&mut self, before: bool) {
        // The start must be a multiple of the doubled width.
        let odd = usize::from((self.start >> self.shift) & 1 == 1);
        let offset = if before { BINS - odd } else { odd };
        let mut joined = vec![0; BINS];
        for (bin, count) in self.counts.iter().enumerate() {
            joined[(bin + offset) / 2] += count;
        }
        self.start -= (offset as i128) << self.shift;
        self.counts = joined;
        self.shift += 1;
    }

    fn curve(&self, first: i64, last: i64) -> Vec<u64> {
        if self.counts.is_empty() || last <= first {
            return Vec::new();
        }
        let span = i128::from(last) - i128::from(first);
        let mut curve = vec![0; POINTS];
        for (bin, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let middle = self.start + ((2 * bin as i128 + 1) << self.shift >> 1);
            let point = (middle - i128::from(first)) * POINTS as i128 / span;
            let point = usize::try_from(point.clamp(0, POINTS as i128 - 1)).unwrap_or(0);
            curve[point] += count;
        }
        curve
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND_NS: i64 = 1_000_000_000;

    fn tally(seconds: &[i64]) -> Tally {
        let mut tally = Tally::new(Kind::Defrag);
        for second in seconds {
            tally.add(Some(second * SECOND_NS));
        }
        let (first, last) = (tally.first.unwrap(), tally.last.unwrap());
        tally.finish(Some((first, last)));
        tally
    }

    #[test]
    fn the_busiest_minute_is_found_though_lines_are_out_of_order() {
        let tally = tally(&[0, 59, 61, 60, 62, 58, 63, 600, 601, 1200]);
        assert_eq!(tally.busiest, Some((Moment { ns: 60 * SECOND_NS }, 4)));
        assert_eq!((tally.first.unwrap().ns, tally.last.unwrap().ns), (0, 1200 * SECOND_NS));
        assert_eq!(tally.per_hour(1_200_000_000_000), Some(30.0));
    }

    #[test]
    fn any_time_is_counted() {
        for time in [i64::MIN, i64::MIN + 1, -1, i64::MAX] {
            let mut tally = Tally::new(Kind::Defrag);
            tally.add(Some(time));
            tally.finish(tally.first.zip(tally.last));
            assert_eq!(tally.busiest.map(|(_, lines)| lines), Some(1), "{time}");
        }
    }

    #[test]
    fn lines_without_times_are_counted() {
        let mut tally = Tally::new(Kind::Defrag);
        tally.add(None);
        tally.finish(None);
        assert_eq!((tally.count, tally.first, tally.busiest), (1, None, None));
        assert!(tally.curve.is_empty());
    }

    proptest! {
        #[test]
        fn bins_hold_what_falls_into_them(times in prop::collection::vec(-400_000_000..400_000_000i64, 1..60)) {
            let times: Vec<i64> = times.into_iter().map(|time| time * 1_000_003).collect();
            let mut bins = Bins::default();
            times.iter().for_each(|time| bins.add(*time));
            for (bin, count) in bins.counts.iter().enumerate() {
                let start = bins.start + ((bin as i128) << bins.shift);
                let inside = start..start + (1 << bins.shift);
                let naive = times.iter().filter(|time| inside.contains(&i128::from(**time))).count();
                prop_assert_eq!(*count, naive as u64, "bin {} of width 2^{}", bin, bins.shift);
            }
        }

        #[test]
        fn the_curve_counts_every_line(times in prop::collection::vec(any::<i64>(), 1..200)) {
            let mut tally = Tally::new(Kind::Defrag);
            for &time in &times {
                tally.add(Some(time));
            }
            let (first, last) = (tally.first.unwrap(), tally.last.unwrap());
            tally.finish(Some((first, last)));
            if last > first {
                prop_assert_eq!(tally.curve.iter().sum::<u64>(), times.len() as u64);
            }
            prop_assert!(tally.busiest.unwrap().1 <= times.len() as u64);
        }

        #[test]
        fn the_curve_puts_lines_where_they_are(times in prop::collection::vec(0..100_000i64, 2..200)) {
            let seconds: Vec<i64> = times.iter().copied().chain([0, 100_000]).collect();
            let tally = tally(&seconds);
            let half = tally.curve[..POINTS / 2].iter().sum::<u64>() as i64;
            let early = |limit: i64| seconds.iter().filter(|&&s| s < limit).count() as i64;
            // Bins are at most half a point wide.
            prop_assert!(early(49_000) <= half && half <= early(51_100), "{half} {}", early(50_000));
        }
    }
}
