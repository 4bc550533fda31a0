//! The loop: requests arrive, steps take time, requests end.
//!
//! Virtual time is nanoseconds in a `u64`. Between two steps everything that has arrived is
//! submitted, in order of time and, at equal times, in order of the trace; then the scheduler
//! forms a step and the cost model says how long it takes. Nothing else moves the clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::ops::Range;

use policies::scheduler::{Event, Job, Scheduler, Step, Unbreakable};
use policies::{Attention, Content, Effect, Reach, Why};
use traces::{Outcome, Request, Served, Slo, When};

use crate::attention::{StandIn, wanted};
use crate::cost::{CostModel, Moves, Prefill, Work};
use crate::totals::Totals;

/// The display stands still for so long before people call it frozen, ns. A choice: beyond 100 ms
/// a reaction no longer seems instant, and a desktop that drops a dozen frames in a row is seen
/// to hang. Windows itself steps in after 2 s and resets the driver.
pub const FREEZE_NS: u64 = 200_000_000;

/// Main memory that a server loses with every image it processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leak {
    /// Bytes per image.
    pub image_bytes: u64,
    /// Bytes of main memory that are left when the server starts. Once leaks have filled it, the
    /// server is killed and started again. None: without end.
    pub room_bytes: Option<u64>,
}

impl Leak {
    /// Ollama 0.6.6 with Gemma 3: the pixels of an image (896 x 896 x 3 numbers of 32 bits) and
    /// the graph that encoded it, about 3.5 MB.
    pub const OLLAMA_IMAGE_BYTES: u64 = 896 * 896 * 3 * 4 + 3_500_000;
}

/// What a replay is told beside its trace.
pub struct Replay {
    /// Who forms the steps.
    pub scheduler: Box<dyn Scheduler>,
    /// How long the model takes to load again after a crash.
    pub reload_ns: u64,
    /// Bytes of a cell, per layer class; weights of the means over classes.
    pub cell_bytes: Vec<u64>,
    /// When the run is cut off, in virtual time.
    pub until_ns: Option<u64>,
    /// What counts as goodput.
    pub slo: Slo,
    /// Check the policy's books after every step; a contradiction ends the run.
    pub audit: bool,
    /// Steps in which the display stands still for so long or longer count as freezes
    /// ([`FREEZE_NS`]). None: not counted.
    pub freeze_ns: Option<u64>,
    /// What images leak; none: nothing.
    pub leak: Option<Leak>,
}

/// Executes steps, or prices them: whoever knows how long one takes.
///
/// The loop is the same for a cost model in virtual time and for an engine that computes: who is
/// in a batch and where its cells are depends on the executor only through the time it takes.
pub trait Executor {
    /// A request is about to be submitted.
    fn submitted(&mut self, request: &Request) {
        let _ = request;
    }

    /// Something has happened to a request. What [`Scheduler::next`] told comes before
    /// [`run`](Executor::run), what [`Scheduler::done`] told after it.
    fn happened(&mut self, event: &Event) {
        let _ = event;
    }

    /// Nothing is to be done before `until_ns`; the clock then stands there.
    fn idle(&mut self, until_ns: u64) {
        let _ = until_ns;
    }

    /// Executes the scheduler's [current step](Scheduler::step), of which `work` is the size, and
    /// returns how long it took, ns. Not called for a step that is a reload.
    ///
    /// # Errors
    /// Whatever keeps the step from being executed; it ends the run.
    fn run(
        &mut self,
        work: &Work,
        scheduler: &dyn Scheduler,
    ) -> Result<u64, Box<dyn std::error::Error + Send + Sync>>;

    /// Appends what the tokens of the step just run looked at, as far as the scheduler's policy
    /// [wants to know](policies::Policy::wants_attention). `stand_in` is for whoever computes nothing.
    fn attention(&mut self, scheduler: &dyn Scheduler, stand_in: &mut StandIn, into: &mut Vec<Attention>) {
        stand_in.look(scheduler, into);
    }

    /// The part of the step just run, which took `step_ns`, that copies, rotations and transfers took.
    fn moves_ns(&mut self, work: &Work, step_ns: u64) -> u64;

    /// The part of the step just run for which the display stood still ([`CostModel::stall_ns`]).
    fn stall_ns(&mut self, work: &Work) -> u64 {
        let _ = work;
        0
    }
}

/// A cost model as an executor: virtual time.
pub struct Priced<'a>(pub &'a dyn CostModel);

impl Executor for Priced<'_> {
    fn run(
        &mut self,
        work: &Work,
        _: &dyn Scheduler,
    ) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.step_ns(work))
    }

    fn moves_ns(&mut self, work: &Work, step_ns: u64) -> u64 {
        let none = vec![0; work.moves.copied_cells.len()];
        let moves = Moves {
            copied_cells: none.clone(),
            rotated_cells: none.clone(),
            requantised_cells: none.clone(),
            swapped_cells: none.clone(),
            mapped: none.clone(),
            unmapped: none,
            ..Moves::default()
        };
        step_ns.saturating_sub(self.0.step_ns(&Work { moves, ..work.clone() }))
    }

    fn stall_ns(&mut self, work: &Work) -> u64 {
        self.0.stall_ns(work)
    }
}

/// Looks on while a replay runs.
pub trait Observer {
    /// A request has ended, or the run has before it.
    fn served(&mut self, served: &Served) {
        let _ = served;
    }

    /// A step ends at `now_ns`. Called after every step; the scheduler may be asked to settle.
    fn stepped(&mut self, now_ns: u64, scheduler: &mut dyn Scheduler, step: StepSummary<'_>) {
        let _ = (now_ns, scheduler, step);
    }
}

/// What an observer is told of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepSummary<'a> {
    /// Per class, tokens that may still be read.
    pub live: &'a [u64],
    /// Per class, tokens that idle slots keep for a next request.
    pub kept: &'a [u64],
    /// How long the step took.
    pub step_ns: u64,
}

/// An observer that looks away.
pub struct Nobody;

impl Observer for Nobody {}

/// Why a replay ended early.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError<E: std::error::Error> {
    /// The trace could not be read on.
    #[error(transparent)]
    Trace(E),
    /// A step could not be executed.
    #[error("step {step} cannot be executed: {source}")]
    Step {
        /// Number of the step.
        step: u64,
        /// What the executor said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The policy's books contradict each other.
    #[error("the policy's books do not agree after step {step}: {what}")]
    Audit {
        /// Number of the step.
        step: u64,
        /// What does not agree.
        what: String,
    },
}

/// What a policy is told of a request's tokens.
pub fn content_of(request: &Request) -> Content {
    Content {
        chain: request.prefix.ids.clone(),
        chain_tokens: request.prefix.block_tokens.max(1),
        chain_end: request.prompt_tokens,
        own: request.id,
    }
}

/// A request on its way.
struct Flight {
    served: Served,
    session: Option<u64>,
    images: u64,
}

/// Replays a trace to its end over a cost model and returns the sums.
///
/// # Errors
/// [`ReplayError`] when the trace cannot be read or, with `audit`, when the policy is inconsistent.
pub fn replay<E: std::error::Error>(
    setup: Replay,
    cost: &dyn CostModel,
    trace: impl Iterator<Item = Result<Request, E>>,
    observer: &mut dyn Observer,
) -> Result<Totals, ReplayError<E>> {
    drive(setup, &mut Priced(cost), trace, observer)
}

/// Replays a trace to its end over any executor and returns the sums.
///
/// # Errors
/// As [`replay`], and when the executor fails.
pub fn drive<E: std::error::Error>(
    setup: Replay,
    executor: &mut dyn Executor,
    trace: impl Iterator<Item = Result<Request, E>>,
    observer: &mut dyn Observer,
) -> Result<Totals, ReplayError<E>> {
    let mut running = Running::new(setup, executor);
    let mut arrivals = Arrivals::new(trace);
    loop {
        arrivals.read_ahead().map_err(ReplayError::Trace)?;
        while let Some((arrival_ns, request)) = arrivals.pop_until(running.now_ns) {
            running.submit(arrival_ns, request);
            arrivals.read_ahead().map_err(ReplayError::Trace)?;
        }
        if running.setup.until_ns.is_some_and(|until| running.now_ns >= until) {
            break;
        }
        let stepped = running
            .step(&mut arrivals, observer)
            .map_err(|source| ReplayError::Step { step: running.totals.steps, source })?;
        running.audit().map_err(|what| ReplayError::Audit { step: running.totals.steps, what })?;
        if !stepped {
            match arrivals.next_ns() {
                Some(ns) => running.wait_until(ns),
                None => break,
            }
        }
    }
    arrivals
        .read_rest(|arrival_ns, request| running.never_sent(arrival_ns, &request, observer))
        .map_err(ReplayError::Trace)?;
    Ok(running.finish(observer))
}

/// The trace, and the follow-ups of sessions that wait for an answer.
struct Arrivals<I> {
    trace: I,
    /// The next request of the trace that has a time of its own.
    next: Option<(u64, Request)>,
    /// Read past the end of a session.
    peeked: Option<Request>,
    ended: bool,
    followers: BTreeMap<u64, VecDeque<Request>>,
    /// Follow-ups whose time is known: (time, order, request).
    timers: BinaryHeap<Reverse<Timer>>,
    timer_count: u64,
}

struct Timer {
    at: (u64, u64),
    request: Request,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

impl<E, I: Iterator<Item = Result<Request, E>>> Arrivals<I> {
    fn new(trace: I) -> Self {
        Arrivals {
            trace,
            next: None,
            peeked: None,
            ended: false,
            followers: BTreeMap::new(),
            timers: BinaryHeap::new(),
            timer_count: 0,
        }
    }

    fn read(&mut self) -> Result<Option<Request>, E> {
        if let Some(request) = self.peeked.take() {
            return Ok(Some(request));
        }
        if self.ended {
            return Ok(None);
        }
        let request = self.trace.next().transpose()?;
        self.ended = request.is_none();
        Ok(request)
    }

    /// Reads the next request with a time of its own, and the follow-ups behind it.
    fn read_ahead(&mut self) -> Result<(), E> {
        if self.next.is_some() {
            return Ok(());
        }
        let Some(request) = self.read()? else { return Ok(()) };
        let ns = match request.when {
            When::At { ns } => ns,
            When::After { wait_ns } => wait_ns,
        };
        while let Some(follower) = self.read()? {
            match (follower.when, follower.session) {
                (When::After { .. }, Some(session)) => {
                    self.followers.entry(session).or_default().push_back(follower)
                }
                _ => {
                    self.peeked = Some(follower);
                    break;
                }
            }
        }
        self.next = Some((ns, request));
        Ok(())
    }

    fn next_ns(&self) -> Option<u64> {
        let timer = self.timers.peek().map(|Reverse(timer)| timer.at.0);
        let next = self.next.as_ref().map(|(ns, _)| *ns);
        timer.into_iter().chain(next).min()
    }

    /// The earliest request that is due; at equal times those of the trace come first.
    fn pop_until(&mut self, now_ns: u64) -> Option<(u64, Request)> {
        let ns = self.next_ns().filter(|&ns| ns <= now_ns)?;
        if self.next.as_ref().is_some_and(|(next, _)| *next == ns) {
            return self.next.take();
        }
        self.timers.pop().map(|Reverse(timer)| (timer.at.0, timer.request))
    }

    /// A request of a session has ended: its follow-up gets a time.
    fn session_goes_on(&mut self, session: u64, now_ns: u64) {
        let Some(queue) = self.followers.get_mut(&session) else { return };
        if let Some(request) = queue.pop_front() {
            let wait_ns = match request.when {
                When::After { wait_ns } => wait_ns,
                When::At { .. } => 0,
            };
            self.timers
                .push(Reverse(Timer { at: (now_ns.saturating_add(wait_ns), self.timer_count), request }));
            self.timer_count += 1;
        }
        if queue.is_empty() {
            self.followers.remove(&session);
        }
    }

    /// Everything that was not sent before the run was cut off, in order of their numbers.
    fn read_rest(mut self, mut each: impl FnMut(u64, Request)) -> Result<(), E> {
        let mut rest: Vec<(u64, Request)> = self.next.take().into_iter().collect();
        rest.extend(self.timers.drain().map(|Reverse(timer)| (timer.at.0, timer.request)));
        rest.extend(
            std::mem::take(&mut self.followers).into_values().flatten().map(|request| (u64::MAX, request)),
        );
        rest.sort_by_key(|(_, request)| request.id);
        rest.into_iter().for_each(|(ns, request)| each(ns, request));
        while let Some(request) = self.read()? {
            let ns = match request.when {
                When::At { ns } => ns,
                When::After { .. } => u64::MAX,
            };
            each(ns, request);
        }
        Ok(())
    }
}

/// The state of a replay.
struct Running<'a> {
    setup: Replay,
    executor: &'a mut dyn Executor,
    now_ns: u64,
    flights: BTreeMap<u64, Flight>,
    totals: Totals,
    leaked_bytes: u64,
    work: Work,
    live: Vec<u64>,
    kept: Vec<u64>,
    events: Vec<Event>,
    stand_in: StandIn,
    attention: Vec<Attention>,
}

impl<'a> Running<'a> {
    fn new(setup: Replay, executor: &'a mut dyn Executor) -> Self {
        let classes = setup.cell_bytes.len();
        let mut work = Work { decode_reads: vec![0; classes], ..Work::default() };
        work.moves.copied_cells = vec![0; classes];
        work.moves.rotated_cells = vec![0; classes];
        work.moves.requantised_cells = vec![0; classes];
        work.moves.swapped_cells = vec![0; classes];
        work.moves.mapped = vec![0; classes];
        work.moves.unmapped = vec![0; classes];
        let totals = Totals::new(setup.slo, &setup.cell_bytes);
        let (flights, events) = (BTreeMap::new(), Vec::new());
        Running {
            setup,
            executor,
            now_ns: 0,
            flights,
            totals,
            leaked_bytes: 0,
            work,
            live: Vec::new(),
            kept: Vec::new(),
            events,
            stand_in: StandIn::default(),
            attention: Vec::new(),
        }
    }

    fn wait_until(&mut self, ns: u64) {
        if ns > self.now_ns {
            self.executor.idle(ns);
            self.now_ns = ns;
        }
    }

    fn submit(&mut self, arrival_ns: u64, request: Request) {
        self.executor.submitted(&request);
        self.totals.requests += 1;
        self.totals.first_arrival_ns.get_or_insert(arrival_ns);
        let (served, images) = (unserved(arrival_ns, &request), request.images.len() as u64);
        self.flights.insert(request.id, Flight { served, session: request.session, images });
        let content = content_of(&request);
        let pieces = request.images.iter().map(|image| Unbreakable { at: image.at, tokens: image.tokens });
        self.setup.scheduler.submit(Job {
            content,
            session: request.session,
            unbreakable: pieces.collect(),
            ..Job::new(request.id, request.prompt_tokens, request.output_tokens)
        });
    }

    /// One step; false if there was nothing to do.
    fn step<E, I>(
        &mut self,
        arrivals: &mut Arrivals<I>,
        observer: &mut dyn Observer,
    ) -> Result<bool, Box<dyn std::error::Error + Send + Sync>>
    where
        I: Iterator<Item = Result<Request, E>>,
    {
        let Some(step) = self.setup.scheduler.next() else {
            self.handle_events(arrivals, observer);
            return Ok(false);
        };
        let moves = fill_work(&mut self.work, step);
        let is_reload = step.reload;
        self.live.clone_from(&step.live);
        self.kept.clone_from(&step.kept);
        self.totals.steps += 1;
        self.totals.defrag_passes += u64::from(step.plan.defrag_passes());
        self.totals.corrupted_steps += u64::from(step.foreign > 0);
        self.totals.drained_steps += u64::from(step.drained);
        self.count_scores();
        self.count_turns();
        // What happened as the step was formed belongs to its beginning.
        self.handle_events(arrivals, observer);
        let step_ns = if is_reload {
            self.setup.reload_ns
        } else {
            self.executor.run(&self.work, &*self.setup.scheduler)?
        };
        if let Some(freeze_ns) = self.setup.freeze_ns.filter(|_| !is_reload) {
            let stall_ns = self.executor.stall_ns(&self.work);
            if stall_ns > 0 && stall_ns >= freeze_ns {
                self.totals.freezes += 1;
                self.totals.frozen_ns += stall_ns;
            }
        }
        if moves {
            self.count_moves();
            // A reload is no step: what its plan moves takes no time of its own.
            if !is_reload {
                self.totals.stall_ns += self.executor.moves_ns(&self.work, step_ns);
            }
        }
        let scheduler = &*self.setup.scheduler;
        self.totals.add_usage(scheduler, &self.live, &self.kept, step_ns);
        self.now_ns += step_ns;
        let summary = StepSummary { live: &self.live, kept: &self.kept, step_ns };
        observer.stepped(self.now_ns, &mut *self.setup.scheduler, summary);
        if !is_reload {
            self.tell_attention();
        }
        self.setup.scheduler.done();
        self.handle_events(arrivals, observer);
        self.kill_if_leaks_fill_memory(arrivals, observer);
        Ok(true)
    }

    /// Work for scores: pairs of a query and a token that it looks at, which have to be written and added up.
    fn count_scores(&mut self) {
        self.work.scored.clear();
        if !self.setup.scheduler.policy().needs_scores() {
            return;
        }
        let wanted = wanted(&*self.setup.scheduler);
        let classes = &self.setup.scheduler.policy().geometry().classes;
        let Some(scored) = classes.iter().position(|class| class.reach == Reach::Full) else { return };
        if wanted.is_empty() {
            return;
        }
        let pairs = |queries: &Range<u32>| queries.clone().map(|query| u64::from(query) + 1).sum::<u64>();
        self.work.scored.resize(classes.len(), 0);
        self.work.scored[scored] = wanted.iter().map(|(_, queries)| pairs(queries)).sum();
    }

    /// Keys that are rotated as they are read: each once for its sequence, or once for all who walk over it.
    fn count_turns(&mut self) {
        let policy = self.setup.scheduler.policy();
        let work = &mut self.work;
        work.turned.clear();
        if !policy.rotates_on_read() {
            return;
        }
        if !work.walked.is_empty() {
            work.turned.clone_from(&work.walked);
            return;
        }
        for (class, reads) in policy.geometry().classes.iter().zip(&work.decode_reads) {
            let before = work.prefills.iter().map(|piece| u64::from(class.reach.clip(piece.context)));
            work.turned.push(reads + before.sum::<u64>());
        }
    }

    fn tell_attention(&mut self) {
        if !self.setup.scheduler.policy().needs_scores() {
            return;
        }
        let mut attention = std::mem::take(&mut self.attention);
        self.executor.attention(&*self.setup.scheduler, &mut self.stand_in, &mut attention);
        attention.iter().for_each(|attention| self.setup.scheduler.attended(attention));
        attention.clear();
        self.attention = attention;
    }

    /// The system kills a server that has leaked all the memory there was. Everything in flight is
    /// lost; the server that is started in its place has leaked nothing yet.
    fn kill_if_leaks_fill_memory<E, I>(&mut self, arrivals: &mut Arrivals<I>, observer: &mut dyn Observer)
    where
        I: Iterator<Item = Result<Request, E>>,
    {
        let room_bytes = self.setup.leak.and_then(|leak| leak.room_bytes);
        if room_bytes.is_some_and(|room| self.leaked_bytes >= room && self.leaked_bytes > 0)
            && self.setup.scheduler.kill()
        {
            self.totals.killed += 1;
            self.handle_events(arrivals, observer);
            self.now_ns += self.setup.reload_ns;
        }
    }

    fn count_moves(&mut self) {
        let moves = &self.work.moves;
        self.totals.cells_copied += moves.copied_cells.iter().sum::<u64>();
        self.totals.cells_rotated += moves.rotated_cells.iter().sum::<u64>();
        self.totals.cells_requantised += moves.requantised_cells.iter().sum::<u64>();
        self.totals.cells_swapped += moves.swapped_cells.iter().sum::<u64>();
    }

    fn handle_events<E, I>(&mut self, arrivals: &mut Arrivals<I>, observer: &mut dyn Observer)
    where
        I: Iterator<Item = Result<Request, E>>,
    {
        let mut events = std::mem::take(&mut self.events);
        self.setup.scheduler.take_events(&mut events);
        for event in events.drain(..) {
            self.executor.happened(&event);
            self.handle(event, arrivals, observer);
        }
        self.events = events;
    }

    fn handle<E, I>(&mut self, event: Event, arrivals: &mut Arrivals<I>, observer: &mut dyn Observer)
    where
        I: Iterator<Item = Result<Request, E>>,
    {
        let (id, ended) = match event {
            Event::Crashed => {
                self.totals.crashes += 1;
                self.leaked_bytes = 0;
                return;
            }
            Event::Rejected { id, .. } => (id, Some((Outcome::Rejected, 0, false))),
            Event::Failed { id, output_tokens } => (id, Some((Outcome::Failed, output_tokens, false))),
            Event::Finished { id, output_tokens, at_limit } => {
                (id, Some((Outcome::Completed, output_tokens, at_limit)))
            }
            Event::Admitted { id, .. }
            | Event::Truncated { id, .. }
            | Event::Shifted { id, .. }
            | Event::Preempted { id }
            | Event::Recomputed { id, .. }
            | Event::FirstToken { id } => (id, None),
        };
        if let Some((outcome, output_tokens, at_limit)) = ended {
            let mut flight = self.flights.remove(&id).expect("an event names a request under way");
            flight.served.outcome = outcome;
            flight.served.finished_ns = Some(self.now_ns);
            flight.served.output_tokens = output_tokens;
            flight.served.stopped_at_limit = at_limit;
            self.totals.add(&flight.served, self.now_ns);
            observer.served(&flight.served);
            if let Some(session) = flight.session {
                arrivals.session_goes_on(session, self.now_ns);
            }
            return;
        }
        let flight = self.flights.get_mut(&id).expect("an event names a request under way");
        let (served, images) = (&mut flight.served, flight.images);
        match event {
            Event::Admitted { cached_tokens, .. } => {
                served.admitted_ns = Some(self.now_ns);
                served.cached_tokens = cached_tokens;
                if let Some(leak) = self.setup.leak {
                    let bytes = images.saturating_mul(leak.image_bytes);
                    self.leaked_bytes = self.leaked_bytes.saturating_add(bytes);
                    self.totals.leaked_bytes = self.totals.leaked_bytes.max(self.leaked_bytes);
                }
            }
            Event::Truncated { tokens, .. } => served.truncated_tokens += tokens,
            Event::Shifted { tokens, left, .. } => {
                served.shifts += u32::from(left == 0);
                served.shifted_tokens += u64::from(tokens);
            }
            Event::Preempted { .. } => served.preemptions += 1,
            Event::Recomputed { tokens, .. } => served.recomputed_tokens += u64::from(tokens),
            Event::FirstToken { .. } => served.first_token_ns = Some(self.now_ns),
            Event::Crashed | Event::Rejected { .. } | Event::Failed { .. } | Event::Finished { .. } => {}
        }
    }

    fn audit(&mut self) -> Result<(), String> {
        if self.setup.audit {
            self.setup.scheduler.settle();
            self.setup.scheduler.policy().audit()?;
        }
        Ok(())
    }

    /// A request of the trace whose time did not come before the run was cut off.
    fn never_sent(&mut self, arrival_ns: u64, request: &Request, observer: &mut dyn Observer) {
        self.totals.requests += 1;
        let served = unserved(arrival_ns.max(self.now_ns), request);
        self.totals.add(&served, self.now_ns);
        observer.served(&served);
    }

    fn finish(mut self, observer: &mut dyn Observer) -> Totals {
        for flight in std::mem::take(&mut self.flights).into_values() {
            self.totals.add(&flight.served, self.now_ns);
            observer.served(&flight.served);
        }
        self.totals.event_hash = self.setup.scheduler.event_hash();
        self.totals
    }
}

fn unserved(arrival_ns: u64, request: &Request) -> Served {
    Served {
        id: request.id,
        outcome: Outcome::Unfinished,
        arrival_ns,
        admitted_ns: None,
        first_token_ns: None,
        finished_ns: None,
        prompt_tokens: request.prompt_tokens,
        output_tokens_asked: request.output_tokens,
        output_tokens: 0,
        truncated_tokens: 0,
        shifts: 0,
        shifted_tokens: 0,
        preemptions: 0,
        cached_tokens: 0,
        recomputed_tokens: 0,
        stopped_at_limit: false,
    }
}

/// Says what a step asks of the hardware. Returns whether its plan moves anything.
fn fill_work(work: &mut Work, step: &Step) -> bool {
    work.tokens = step.tokens();
    work.sequences = step.sequences();
    work.samples = step.samples();
    work.decodes = step.decoding.len() as u32;
    work.decode_reads.clone_from(&step.decode_reads);
    work.decode_spared.clone_from(&step.decode_spared);
    work.context_spared.clone_from(&step.context_spared);
    work.walked.clear();
    work.walked.extend(step.walks.iter().map(|walk| u64::from(walk.len)));
    work.prefills.clear();
    work.prefills
        .extend(step.prefills.iter().map(|chunk| Prefill { tokens: chunk.tokens, context: chunk.context }));
    let moves = &mut work.moves;
    if !moves.is_empty() {
        moves.copied_cells.fill(0);
        moves.rotated_cells.fill(0);
        moves.requantised_cells.fill(0);
        moves.swapped_cells.fill(0);
        moves.mapped.fill(0);
        moves.unmapped.fill(0);
        (moves.copies, moves.rotations, moves.requantisations) = (0, 0, 0);
    }
    let mut any = false;
    for effect in step.plan.effects() {
        any = true;
        match *effect {
            Effect::Write { .. } => {}
            Effect::Copy { class, len, why, .. } => {
                moves.copied_cells[class.index()] += u64::from(len);
                moves.copies += u64::from(why != Why::Background);
            }
            Effect::Rotate { class, run, .. } => {
                moves.rotated_cells[class.index()] += u64::from(run.len);
                moves.rotations += 1;
            }
            Effect::Requantise { class, run, .. } => {
                moves.requantised_cells[class.index()] += u64::from(run.len);
                moves.requantisations += 1;
            }
            Effect::Map { class, .. } => moves.mapped[class.index()] += 1,
            Effect::Unmap { class, .. } => moves.unmapped[class.index()] += 1,
            Effect::SwapOut { class, run, .. }
            | Effect::SwapIn { class, run, .. }
            | Effect::Offload { class, run, .. }
            | Effect::Fetch { class, run, .. } => {
                moves.swapped_cells[class.index()] += u64::from(run.len);
            }
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use policies::{ClassId, KvBits, Plan, Run, SeqId};

    use super::*;

    fn step(plan: Plan) -> Step {
        Step {
            prefills: Vec::new(),
            decoding: Vec::new(),
            decode_reads: vec![0, 0],
            decode_spared: Vec::new(),
            context_spared: Vec::new(),
            walks: Vec::new(),
            live: vec![0, 0],
            kept: vec![0, 0],
            plan,
            placements: Vec::new(),
            foreign: 0,
            reload: false,
            drained: false,
        }
    }

    fn nothing() -> Moves {
        let none = vec![0, 0];
        Moves {
            copied_cells: none.clone(),
            rotated_cells: none.clone(),
            requantised_cells: none.clone(),
            swapped_cells: none.clone(),
            mapped: none.clone(),
            unmapped: none,
            ..Moves::default()
        }
    }

    /// A step asks for the same whatever the step before it asked for, and for nothing once its plan is empty.
    fn asks_for(plan: Plan, asked: &Moves) {
        let mut work = Work { moves: nothing(), ..Work::default() };
        let mut step = step(plan);
        for _ in 0..2 {
            assert!(fill_work(&mut work, &step));
            assert_eq!(work.moves, *asked);
        }
        step.plan.clear();
        assert!(!fill_work(&mut work, &step));
        assert_eq!(work.moves, nothing());
    }

    #[test]
    fn a_step_asks_for_the_roundings_of_its_own_plan_and_no_others() {
        let mut plan = Plan::new();
        for (class, len, to) in [(0, 3, KvBits::Q8_0), (1, 5, KvBits::Q4_0), (1, 2, KvBits::Q8_0)] {
            plan.push(Effect::Requantise { class: ClassId(class), run: Run { start: 7, len }, to });
        }
        asks_for(plan, &Moves { requantised_cells: vec![3, 7], requantisations: 3, ..nothing() });
    }

    #[test]
    fn a_step_asks_for_granules_by_their_number() {
        let mut plan = Plan::new();
        let (seq, run) = (SeqId(1), Run { start: 32, len: 16 });
        for class in [0, 1, 1] {
            plan.push(Effect::Map { class: ClassId(class), seq, first: 0, run });
        }
        plan.push(Effect::Unmap { class: ClassId(1), seq, first: 16, run });
        asks_for(plan, &Moves { mapped: vec![1, 2], unmapped: vec![0, 1], ..nothing() });
    }

    #[test]
    fn copies_beside_a_step_are_cells_without_commands() {
        for (why, copies) in [(Why::Defrag, 1), (Why::Grow, 1), (Why::Background, 0)] {
            let mut plan = Plan::new();
            plan.push(Effect::Copy { class: ClassId(1), from: 9, to: 2, len: 4, why });
            asks_for(plan, &Moves { copied_cells: vec![0, 4], copies, ..nothing() });
        }
    }
}
