//! The free map against a list of booleans.

use policies::Run;
use policies::free::{Fit, FreeMap};
use proptest::prelude::*;

/// The naive model: one flag per cell, every question answered by looking at all.
struct Naive {
    free: Vec<bool>,
    cursor: usize,
}

impl Naive {
    fn runs(&self) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (cell, &free) in self.free.iter().enumerate() {
            match runs.last_mut() {
                Some((start, len)) if free && *start + *len == cell => *len += 1,
                _ if free => runs.push((cell, 1)),
                _ => {}
            }
        }
        runs
    }

    fn find(&self, fit: Fit, len: usize) -> Option<usize> {
        let runs = self.runs();
        let first = |from: usize| {
            let starts = runs.iter().map(|&(start, size)| (start.max(from), start + size));
            starts.filter(|&(start, end)| start + len <= end).map(|(start, _)| start).next()
        };
        match fit {
            Fit::First => first(0),
            Fit::Next => first(self.cursor).or_else(|| first(0)),
            Fit::Best => runs
                .iter()
                .filter(|run| run.1 >= len)
                .min_by_key(|&&(start, size)| (size, start))
                .map(|run| run.0),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_map_answers_like_a_scan(
        cells in 1..700u32,
        calls in prop::collection::vec((any::<bool>(), 1..160u32, any::<prop::sample::Index>()), 1..60),
        fit in prop_oneof![Just(Fit::First), Just(Fit::Next), Just(Fit::Best)],
    ) {
        let mut map = FreeMap::new(cells, fit);
        let mut naive = Naive { free: vec![true; cells as usize], cursor: 0 };
        let mut taken: Vec<(u32, u32)> = Vec::new();
        for (take, len, index) in calls {
            if take || taken.is_empty() {
                let expected = naive.find(fit, len as usize);
                prop_assert_eq!(map.take(len).map(|start| start as usize), expected);
                if let Some(start) = expected {
                    naive.free[start..start + len as usize].fill(false);
                    naive.cursor = (start + len as usize) % cells as usize;
                    taken.push((start as u32, len));
                }
            } else {
                // Give back a part of something taken, so that rows split and join.
                let (start, size) = taken.swap_remove(index.index(taken.len()));
                let len = len.min(size);
                let from = start + index.index((size - len + 1) as usize) as u32;
                map.vacate(from..from + len);
                naive.free[from as usize..(from + len) as usize].fill(true);
                if from > start {
                    taken.push((start, from - start));
                }
                if from + len < start + size {
                    taken.push((from + len, start + size - from - len));
                }
            }
            let runs = naive.runs();
            let shape = map.shape();
            prop_assert_eq!(shape.largest_free_run as usize, runs.iter().map(|run| run.1).max().unwrap_or(0));
            prop_assert_eq!(shape.free_runs as usize, runs.len());
            prop_assert_eq!(shape.high_water as usize, naive.free.iter().rposition(|&free| !free).map_or(0, |last| last + 1));
            prop_assert_eq!(map.free() as usize, naive.free.iter().filter(|&&free| free).count());
            let from = index.index(cells as usize);
            for len in [1, 2, 5, 64, 70] {
                let starts = from..(cells as usize + 1).saturating_sub(len);
                let first = starts.into_iter().find(|&start| naive.free[start..start + len].iter().all(|&free| free));
                let found = map.first_fit_from(from as u32, len as u32);
                prop_assert_eq!(found.map(|start| start as usize), first, "{} cells from {}", len, from);
            }
            let next = naive.free[from..].iter().position(|&free| !free).map_or(cells as usize, |i| from + i);
            prop_assert_eq!(map.next_used(from as u32) as usize, next);
            let before = naive.free[..from].iter().rposition(|&free| !free);
            prop_assert_eq!(map.prev_used(from as u32).map(|cell| cell as usize), before);
            if let Some(last) = before {
                let run_start = naive.free[..last].iter().rposition(|&free| free).map_or(0, |cell| cell + 1);
                prop_assert_eq!(map.used_run_start(last as u32) as usize, run_start);
            }
        }
    }

    #[test]
    fn compaction_and_many_at_once_leave_the_map_as_one_by_one(
        cells in 1..900u32,
        lens in prop::collection::vec((1..20u32, any::<bool>()), 1..120),
        budget in prop_oneof![Just(u32::MAX), 0..200u32],
        fit in prop_oneof![Just(Fit::First), Just(Fit::Best)],
    ) {
        let mut map = FreeMap::new(cells, fit);
        let mut free = vec![true; cells as usize];
        let mut gone: Vec<Run> = Vec::new();
        for (len, goes) in lens {
            let Some(start) = map.take(len) else { break };
            free[start as usize..(start + len) as usize].fill(false);
            if goes {
                gone.push(Run { start, len });
            }
        }
        map.vacate_all(&gone);
        gone.iter().for_each(|run| free[run.start as usize..(run.start + run.len) as usize].fill(true));
        check_shape(&map, &free)?;
        // Cell by cell: the lowest free one is filled from the highest run, whose tail goes in order.
        let mut moves = Vec::new();
        let moved = map.compact(budget, |from, to, len| moves.push((from, to, len)));
        prop_assert_eq!(moved, moves.iter().map(|&(_, _, len)| len).sum::<u32>());
        prop_assert!(moved <= budget);
        for &(from, to, len) in &moves {
            let first_free = free.iter().position(|&free| free);
            let last_used = free.iter().rposition(|&free| !free);
            prop_assert_eq!(first_free, Some(to as usize));
            prop_assert_eq!(last_used, Some((from + len - 1) as usize));
            for i in 0..len {
                prop_assert!(!free[(from + i) as usize] && free[(to + i) as usize]);
                free[(from + i) as usize] = true;
                free[(to + i) as usize] = false;
            }
        }
        check_shape(&map, &free)?;
        if moved < budget {
            prop_assert_eq!(map.high_water() + map.free(), cells, "a hole is left below a used cell");
        }
    }
}

fn check_shape(map: &FreeMap, free: &[bool]) -> Result<(), TestCaseError> {
    let runs = Naive { free: free.to_vec(), cursor: 0 }.runs();
    let shape = map.shape();
    prop_assert_eq!(shape.largest_free_run as usize, runs.iter().map(|run| run.1).max().unwrap_or(0));
    prop_assert_eq!(shape.free_runs as usize, runs.len());
    prop_assert_eq!(
        shape.high_water as usize,
        free.iter().rposition(|&free| !free).map_or(0, |last| last + 1)
    );
    prop_assert_eq!(map.free() as usize, free.iter().filter(|&&free| free).count());
    for len in [1, 2, 3, 7, 64, 65, 130] {
        let first = runs.iter().find(|run| run.1 >= len as usize).map(|run| run.0 as u32);
        prop_assert_eq!(map.first_fit(len), first, "first fit of {}", len);
    }
    Ok(())
}
