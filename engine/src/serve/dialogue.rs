//! What is said: the tokens of every prompt, and of answers that are known beforehand.

use std::collections::BTreeMap;

use policies::Content;
use policies::scheduler::{Job, Unbreakable};
use traces::{Prefix, Request, When};

/// Tokens that one id covers in the prefixes of [`requests`](Dialogue::requests).
const BLOCK: usize = 16;

/// One request's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// The answer, where it is known beforehand: these tokens are fed whatever is sampled. Otherwise
    /// the most likely token is.
    pub answer: Option<Vec<u32>>,
}

/// Where tokens come from that no trace tells.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A hash, within a vocabulary of so many tokens.
    Hash(usize),
    /// Stretches of a text, which begins anew at its end. Where two prompts part, the first that is met reads
    /// on and the other begins elsewhere. Not empty.
    Text(&'a [u32]),
}

/// Gives tokens to contents: equal where they are equal.
struct Speaker<'a> {
    source: Source<'a>,
    seed: u64,
    /// Where the text of a piece begins, by the key of its first token.
    starts: BTreeMap<u64, usize>,
    /// Which piece reads on where another ends.
    heirs: BTreeMap<u64, u64>,
}

impl Speaker<'_> {
    /// Appends the first `total` tokens of a content.
    fn speak(&mut self, content: &Content, total: u32) -> Vec<u32> {
        let text = match self.source {
            Source::Hash(vocab) => {
                let token = |at| (mix(self.seed, content.key(at + 1)) % vocab.max(1) as u64) as u32;
                return (0..total).map(token).collect();
            }
            Source::Text(text) => text,
        };
        let mut tokens = Vec::with_capacity(total as usize);
        let (chained, mut before) = (content.chained().min(total), None);
        while (tokens.len() as u32) < total {
            let first = tokens.len() as u32;
            // What the chain tells of is cut in its blocks; the rest is one piece.
            let end = if first < chained { chained.min(first + content.chain_tokens) } else { total };
            let key = content.key(first + 1);
            let start = self.start(text.len(), before, key);
            tokens.extend((0..(end - first) as usize).map(|at| text[(start + at) % text.len()]));
            before = Some((key, (start + (end - first) as usize) % text.len()));
        }
        tokens
    }

    /// Where the piece of a key begins; `before` is the piece before it, and where that ended.
    fn start(&mut self, len: usize, before: Option<(u64, usize)>, key: u64) -> usize {
        let (seed, heirs) = (self.seed, &mut self.heirs);
        *self.starts.entry(key).or_insert_with(|| match before {
            Some((parent, end)) if *heirs.entry(parent).or_insert(key) == key => end,
            _ => (mix(seed, key) % len as u64) as usize,
        })
    }
}

/// The tokens of a trace, by request.
#[derive(Clone, Debug, Default)]
pub struct Dialogue {
    scripts: BTreeMap<u64, Script>,
}

/// Mixes two words into one (the finaliser of SplitMix64, Steele et al. 2014).
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_add(b.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The request as a scheduler is told of it.
pub fn job(request: &Request) -> Job {
    let content = Content {
        chain: request.prefix.ids.clone(),
        chain_tokens: request.prefix.block_tokens.max(1),
        chain_end: request.prompt_tokens,
        own: request.id,
    };
    let pieces = request.images.iter().map(|image| Unbreakable { at: image.at, tokens: image.tokens });
    Job {
        content,
        session: request.session,
        unbreakable: pieces.collect(),
        ..Job::new(request.id, request.prompt_tokens, request.output_tokens)
    }
}

impl Dialogue {
    /// Tokens for traces that tell lengths only: equal where the trace says that prompts are, different
    /// (but for chance) elsewhere. An answer that a later turn of its session repeats is what that turn
    /// says it was.
    pub fn seeded(requests: &[Request], source: Source<'_>, seed: u64) -> Dialogue {
        let mut sessions: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (index, request) in requests.iter().enumerate() {
            // Whoever has no session is alone in one that no session can be.
            sessions
                .entry(request.session.map_or(index as u64, |id| mix(id, 1) | 1 << 63))
                .or_default()
                .push(index);
        }
        let mut speaker = Speaker { source, seed, starts: BTreeMap::new(), heirs: BTreeMap::new() };
        let mut scripts = BTreeMap::new();
        for turns in sessions.values() {
            let jobs: Vec<Job> = turns.iter().map(|&index| job(&requests[index])).collect();
            let mut texts: Vec<Vec<u32>> = vec![Vec::new(); jobs.len()];
            // From the last turn back: what a turn says of an earlier one is known before that one.
            for turn in (0..jobs.len()).rev() {
                let total = jobs[turn].prompt_tokens + jobs[turn].output_tokens;
                let heir = (turn + 1..jobs.len()).find(|&later| jobs[turn].is_continued_by(&jobs[later]));
                texts[turn] = match heir {
                    Some(later) => texts[later][..total as usize].to_vec(),
                    None => speaker.speak(&jobs[turn].content, total),
                };
            }
            for (job, mut prompt) in jobs.iter().zip(texts) {
                let answer = prompt.split_off(job.prompt_tokens as usize);
                scripts.insert(job.id, Script { prompt, answer: Some(answer) });
            }
        }
        Dialogue { scripts }
    }

    /// Real prompts, numbered from 0, whose answers are what the model says. Empty prompts are left out.
    pub fn spoken(prompts: impl IntoIterator<Item = Vec<u32>>) -> Dialogue {
        let prompts = prompts.into_iter().filter(|prompt| !prompt.is_empty());
        let scripts = (0..).zip(prompts.map(|prompt| Script { prompt, answer: None }));
        Dialogue { scripts: scripts.collect() }
    }

    /// The requests of this dialogue, sent at these times, with answers of so many tokens. What prompts
    /// have in common is told in blocks of 16 tokens.
    pub fn requests(&self, arrival_ns: impl Fn(u64) -> u64, output_tokens: u32) -> Vec<Request> {
        let request = |(&id, script): (&u64, &Script)| {
            let mut link = 0;
            let blocks = script.prompt.chunks_exact(BLOCK).map(|block| {
                link = block.iter().fold(mix(link, 1), |link, &token| mix(link, u64::from(token)));
                link
            });
            Request {
                id,
                session: None,
                when: When::At { ns: arrival_ns(id) },
                prompt_tokens: script.prompt.len() as u32,
                output_tokens: output_tokens.max(1),
                prefix: Prefix::chained(BLOCK as u32, blocks.collect()),
                images: Vec::new(),
            }
        };
        self.scripts.iter().map(request).collect()
    }

    /// What a request says, and is told.
    pub fn script(&self, id: u64) -> Option<&Script> {
        self.scripts.get(&id)
    }

    /// The requests that say something.
    pub fn ids(&self) -> impl Iterator<Item = u64> + '_ {
        self.scripts.keys().copied()
    }

    /// The same prompts with these answers, where they are known.
    pub fn with_answers(mut self, answers: impl IntoIterator<Item = (u64, Vec<u32>)>) -> Dialogue {
        for (id, answer) in answers {
            if let Some(script) = self.scripts.get_mut(&id) {
                script.answer = Some(answer);
            }
        }
        self
    }
}
