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
}

impl<S: Sessions> Merge<S> {
    pub(super) fn new(mut sessions: S) -> Self {
        let mut upcoming = Vec::new();
        sessions.draw(&mut upcoming);
        Merge { sessions, upcoming, waiting: BTreeMap::new(), drawn: 0 }
    }
}

impl<S: Sessions> Iterator for Merge<S> {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
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
        Some(Request { when: When::At { ns }, ..request })
    }
}
