//! Sessions of an open-loop workload, merged into one stream in order of time.
//!
//! Memory: the requests of the sessions under way.

use std::collections::BTreeMap;

use crate::request::{Request, When};

/// Draws whole sessions, by rising start.
pub(super) trait Sessions {
    /// Appends the next session's requests with their times; the first is the earliest.
    fn draw(&mut self, session: &mut Vec<(u64, Request)>);
}

pub(super) struct Merge<S> {
    sessions: S,
    upcoming: Vec<(u64, Request)>,
    /// By time, then by the order in which they were drawn.
    waiting: BTreeMap<(u64, u64), Request>,
    drawn: u64,
    begin_ns: u64,
}

impl<S: Sessions> Merge<S> {
    /// Leaves out what comes before `begin_ns`, which becomes time 0.
    pub(super) fn new(mut sessions: S, begin_ns: u64) -> Self {
        let mut upcoming = Vec::new();
        sessions.draw(&mut upcoming);
        Merge { sessions, upcoming, waiting: BTreeMap::new(), drawn: 0, begin_ns }
    }

    fn pop(&mut self) -> Option<(u64, Request)> {
        while let Some((start, _)) = self.upcoming.first()
            && self.waiting.first_key_value().is_none_or(|((ns, _), _)| start < ns)
        {
            for (ns, request) in self.upcoming.drain(..) {
                self.waiting.insert((ns, self.drawn), request);
                self.drawn += 1;
            }
            self.sessions.draw(&mut self.upcoming);
        }
        let ((ns, _), request) = self.waiting.pop_first()?;
        Some((ns, request))
    }
}

impl<S: Sessions> Iterator for Merge<S> {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        loop {
            let (ns, request) = self.pop()?;
            if let Some(ns) = ns.checked_sub(self.begin_ns) {
                let when = When::At { ns };
                return Some(Request { when, ..request });
            }
        }
    }
}
