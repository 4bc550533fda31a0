//! Traces that are read once and lent to every run of a process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use traces::{Request, TraceError};

/// Requests that all kept traces may have together, about 100 bytes each; what is longer is read
/// again by every run, in little memory.
const REQUESTS_MAX: usize = 2_000_000;

/// A stream of requests.
pub(super) type Requests = Box<dyn Iterator<Item = Result<Request, TraceError>>>;

/// What is known of a file: the hash of its content, and whether the seed changes what is read.
pub(super) type Facts = (String, bool);

/// Traces by name. A trace is read when a run first asks for it; whoever asks meanwhile waits for it.
#[derive(Debug, Default)]
pub struct Library {
    facts: Mutex<BTreeMap<String, Facts>>,
    traces: Mutex<BTreeMap<String, Arc<Mutex<Shelved>>>>,
    kept: AtomicUsize,
}

/// A trace in the library.
#[derive(Debug, Default)]
enum Shelved {
    /// Nobody has asked yet.
    #[default]
    Unread,
    /// Too long to keep, or not readable to its end: every run reads it, as far as it gets.
    Streamed,
    /// All of it.
    Kept(Arc<[Request]>),
}

/// What a thread that has panicked leaves is still whole: values are put in as one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Library {
    /// What `find` says of a file, which is asked once per name.
    pub(super) fn facts<E>(&self, name: &str, find: impl FnOnce() -> Result<Facts, E>) -> Result<Facts, E> {
        if let Some(facts) = lock(&self.facts).get(name) {
            return Ok(facts.clone());
        }
        let facts = find()?;
        lock(&self.facts).insert(name.to_owned(), facts.clone());
        Ok(facts)
    }

    /// The requests of the trace that `open` opens.
    ///
    /// # Errors
    /// What `open` says; what is wrong with a later line is told where it stands in the stream.
    pub(super) fn requests(
        &self,
        name: String,
        open: impl Fn() -> Result<Requests, TraceError>,
    ) -> Result<Requests, TraceError> {
        let copy = Arc::clone(lock(&self.traces).entry(name).or_default());
        let mut copy = lock(&copy);
        if let Shelved::Unread = *copy {
            *copy = self.read(open()?).map_or(Shelved::Streamed, Shelved::Kept);
        }
        match &*copy {
            Shelved::Kept(requests) => {
                let requests = Arc::clone(requests);
                Ok(Box::new((0..requests.len()).map(move |at| Ok(requests[at].clone()))))
            }
            Shelved::Unread | Shelved::Streamed => open(),
        }
    }

    /// All requests, where there is room for them and none is wrong.
    fn read(&self, requests: Requests) -> Option<Arc<[Request]>> {
        let room = REQUESTS_MAX.saturating_sub(self.kept.load(Ordering::Relaxed));
        let mut all = Vec::new();
        for request in requests {
            if all.len() == room {
                return None;
            }
            all.push(request.ok()?);
        }
        self.kept.fetch_add(all.len(), Ordering::Relaxed);
        Some(all.into())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use traces::{GenerateOptions, Workload, generate};

    use super::*;

    fn open(count: u64) -> Result<Requests, TraceError> {
        let options = GenerateOptions { requests: count, seed: 1, rate_per_s: None };
        Ok(Box::new(generate(Workload::Chat, &options)?.map(Ok)))
    }

    #[test]
    fn a_trace_is_read_once_and_gives_the_same_requests() {
        let (library, opened) = (Library::default(), Cell::new(0));
        let lend = || {
            let requests = library.requests("chat".into(), || {
                opened.set(opened.get() + 1);
                open(50)
            });
            requests.expect("the workload exists").map(|request| request.expect("no error")).collect()
        };
        let (first, second): (Vec<Request>, Vec<Request>) = (lend(), lend());
        let plain = open(50).expect("the workload exists").map(|request| request.expect("no error"));
        assert_eq!(first, plain.collect::<Vec<_>>());
        assert_eq!(first, second);
        assert_eq!(opened.get(), 1);
    }

    #[test]
    fn what_does_not_fit_is_streamed() {
        let library = Library { kept: AtomicUsize::new(REQUESTS_MAX - 10), ..Library::default() };
        let count = |requests| library.requests("chat".into(), || open(requests)).expect("it opens").count();
        assert_eq!(count(50), 50);
        assert_eq!(library.kept.load(Ordering::Relaxed), REQUESTS_MAX - 10);
    }
}
