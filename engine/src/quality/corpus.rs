//! The corpus of the tiny model: seeded dialogues with facts, questions and chat.
//!
//! A document begins with a system turn of six facts (28 tokens, `<bos>` included). Then come turns of
//! three kinds: a fact (`note ada apple`), a question whose answer is scored (`ask ada`, `ada apple`), and
//! chat, whose words follow a Markov chain so that the probability of every one of them is known. It ends
//! with an exam: up to eight questions, two of them about the system turn, and more chat. Every fact is
//! asked for once at most, so that the distance between a fact and its question is exact.
//!
//! `training/corpus.py` has the same generator. Both use 64-bit integers only, and tests on both sides hold
//! the same hashes.

use std::ops::Range;

use traces::random::{STEP, SplitMix64, scramble};

use crate::quality::vocabulary::{
    ASK, BOS, CHAT, DOT, END, FILL, MODEL, NAMES, NOTE, OK, START, SYSTEM, THINGS, USER,
};

/// Odds, of 256, of the 8 words that may follow a chat word. Before each stands the end with odds 1 : 15.
pub const ODDS: [u32; 8] = [96, 64, 32, 24, 16, 12, 8, 4];
/// Tokens of the system turn, `<bos>` included: what `num_keep` has to be to keep it.
pub const SYSTEM_TOKENS: u32 = 28;

const LANGUAGE: u64 = 0x6B76_6C61_6220_6368;
const WORDS: u32 = CHAT.end - CHAT.start;
const WORDS_MAX: usize = 40;
const SYSTEM_FACTS: usize = 6;
const ASKED_OF_SYSTEM: usize = 4;
const TURN: usize = 11;

/// The 8 successors of every state of the chat: its words, then the state before the first word.
struct Language(Vec<[u32; 8]>);

impl Language {
    fn new() -> Language {
        let mut rng = SplitMix64::new(LANGUAGE);
        let state = |_| {
            let mut words: Vec<u32> = (0..WORDS).collect();
            for i in 0..8 {
                let j = i + rng.index(WORDS as usize - i);
                words.swap(i, j);
            }
            [0, 1, 2, 3, 4, 5, 6, 7].map(|i| words[i])
        };
        Language((0..=WORDS).map(state).collect())
    }
}

/// What a token is as the target of a prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing that is scored by itself.
    Other,
    /// A chat word or the end of chat, of which the probability is known.
    Chat {
        /// Its probability, in 4096ths.
        odds: u32,
    },
    /// What a fact had told.
    Answer {
        /// Index of the token that told it.
        fact_at: u32,
    },
}

impl Kind {
    /// Negative log probability under the process that wrote the text, nats; none where it is not known.
    pub fn floor(self) -> Option<f64> {
        match self {
            Kind::Chat { odds } => Some(-(f64::from(odds) / 4096.0).ln()),
            _ => None,
        }
    }
}

/// The mean of [`Kind::floor`] over chat, nats: the entropy of the next word, in every state the same.
pub fn floor() -> f64 {
    let words = ODDS.iter().map(|odds| 15 * odds);
    let entropy = words.chain([256]).map(|odds| f64::from(odds) / 4096.0).map(|p| -p * p.ln());
    entropy.sum()
}

/// A dialogue.
#[derive(Clone, Debug, Default)]
pub struct Document {
    /// Tokens.
    pub tokens: Vec<u32>,
    /// What each of them is.
    pub kinds: Vec<Kind>,
    /// Index of the first token of the exam.
    pub exam: usize,
}

impl Document {
    /// Document `index` of the corpus `seed`: `body` tokens and an exam of `exam` tokens.
    ///
    /// # Panics
    /// If the body is shorter than the system turn.
    pub fn new(seed: u64, index: u64, body: usize, exam: usize) -> Document {
        assert!(body >= SYSTEM_TOKENS as usize, "a document begins with {SYSTEM_TOKENS} tokens");
        let rng = SplitMix64::new(scramble(seed.wrapping_mul(STEP).wrapping_add(index).wrapping_add(1)));
        let mut writer = Writer::new(rng);
        writer.system_turn();
        writer.body(body);
        writer.exam(exam);
        writer.document
    }

    /// Indices of the tokens of the exam.
    pub fn exam(&self) -> Range<usize> {
        self.exam..self.tokens.len()
    }

    /// A number that depends on all of it (FNV-1a over 64-bit words).
    pub fn hash(&self) -> u64 {
        let mut words = vec![self.tokens.len() as u64, self.exam as u64];
        let packed = |(&token, kind): (&u32, &Kind)| match *kind {
            Kind::Other => u64::from(token),
            Kind::Chat { odds } => u64::from(token) | 1 << 16 | u64::from(odds) << 32,
            Kind::Answer { .. } => u64::from(token) | 2 << 16,
        };
        words.extend(self.tokens.iter().zip(&self.kinds).map(packed));
        words.extend(self.kinds.iter().enumerate().filter_map(|(at, kind)| match *kind {
            Kind::Answer { fact_at } => Some(at as u64 | u64::from(fact_at) << 32),
            _ => None,
        }));
        words
            .iter()
            .fold(0xCBF2_9CE4_8422_2325, |hash: u64, word| (hash ^ word).wrapping_mul(0x100_0000_01B3))
    }

    fn say(&mut self, token: u32) {
        self.tokens.push(token);
        self.kinds.push(Kind::Other);
    }

    fn say_scored(&mut self, token: u32, kind: Kind) {
        self.tokens.push(token);
        self.kinds.push(kind);
    }
}

/// A planted pair.
#[derive(Clone, Copy, Debug)]
struct Fact {
    name: u32,
    thing: u32,
    /// Index of the token that tells the thing.
    at: usize,
}

/// Writes one document.
struct Writer {
    rng: SplitMix64,
    language: Language,
    document: Document,
    /// Names that no fact is about yet.
    names: Vec<u32>,
    /// Facts that were not asked for yet: of the system turn, of later turns.
    system: Vec<Fact>,
    facts: Vec<Fact>,
}

impl Writer {
    fn new(mut rng: SplitMix64) -> Writer {
        let mut names: Vec<u32> = NAMES.collect();
        rng.shuffle(&mut names);
        let (system, facts) = (Vec::new(), Vec::new());
        Writer { rng, language: Language::new(), document: Document::default(), names, system, facts }
    }

    fn len(&self) -> usize {
        self.document.tokens.len()
    }

    fn say_all(&mut self, tokens: &[u32]) {
        tokens.iter().for_each(|&token| self.document.say(token));
    }

    /// Says a new fact about a name.
    fn tell(&mut self, name: u32) -> Fact {
        let thing = THINGS.start + self.rng.below(THINGS.end - THINGS.start);
        self.document.say(name);
        let at = self.len();
        self.document.say(thing);
        Fact { name, thing, at }
    }

    fn system_turn(&mut self) {
        self.say_all(&[BOS, START, SYSTEM]);
        for _ in 0..SYSTEM_FACTS {
            self.document.say(NOTE);
            let name = self.names.pop().expect("64 names are more than the facts of a system turn");
            let fact = self.tell(name);
            self.document.say(DOT);
            self.system.push(fact);
        }
        self.document.say(END);
    }

    fn fact(&mut self, name: u32) {
        self.say_all(&[START, USER, NOTE]);
        let fact = self.tell(name);
        self.say_all(&[DOT, END, START, MODEL, OK, END]);
        self.facts.push(fact);
    }

    fn ask(&mut self, fact: Fact) {
        self.say_all(&[START, USER, ASK, fact.name, END, START, MODEL, fact.name]);
        self.document.say_scored(fact.thing, Kind::Answer { fact_at: fact.at as u32 });
        self.say_all(&[DOT, END]);
    }

    /// A turn of 1 to `words_max` words. Its first word is not scored, nor an end that comes by force.
    fn chat_part(&mut self, role: u32, words_max: usize) {
        self.say_all(&[START, role]);
        let mut state = WORDS as usize;
        for word in 0..words_max {
            if word > 0 && self.rng.below(16) == 0 {
                self.document.say_scored(END, Kind::Chat { odds: 256 });
                return;
            }
            let (mut draw, mut rank) = (self.rng.below(256), 0);
            while draw >= ODDS[rank] {
                draw -= ODDS[rank];
                rank += 1;
            }
            state = self.language.0[state][rank] as usize;
            let token = CHAT.start + state as u32;
            match word {
                0 => self.document.say(token),
                _ => self.document.say_scored(token, Kind::Chat { odds: 15 * ODDS[rank] }),
            }
        }
        self.document.say(END);
    }

    /// Two chat turns in at most `room` tokens, at least 8.
    fn chat(&mut self, room: usize) {
        let before = self.len();
        self.chat_part(USER, WORDS_MAX.min(room - 7));
        let used = self.len() - before;
        self.chat_part(MODEL, WORDS_MAX.min(room - used - 3));
    }

    fn fill(&mut self, length: usize) {
        while self.len() < length {
            self.document.say(FILL);
        }
    }

    /// Turns of three kinds up to `length` tokens.
    fn body(&mut self, length: usize) {
        const FACT: u32 = 6;
        const QUESTION: u32 = 3;
        const CHAT: u32 = 7;
        while length - self.len() >= TURN {
            let room = length - self.len();
            match self.rng.below(FACT + QUESTION + CHAT) {
                draw if draw < FACT => match self.names.pop() {
                    Some(name) => self.fact(name),
                    None => self.chat(room),
                },
                draw if draw < FACT + QUESTION && self.ask_any() => {}
                _ => self.chat(room),
            }
        }
        self.fill(length);
        self.document.exam = length;
    }

    /// Asks for a fact, if one may be asked for: two of the system turn stay for the exam.
    fn ask_any(&mut self) -> bool {
        let system = self.system.len().saturating_sub(SYSTEM_FACTS - ASKED_OF_SYSTEM);
        if system + self.facts.len() == 0 {
            return false;
        }
        let draw = self.rng.index(system + self.facts.len());
        let fact = if draw < system {
            let at = self.rng.index(self.system.len());
            self.system.remove(at)
        } else {
            self.facts.remove(draw - system)
        };
        self.ask(fact);
        true
    }

    /// Questions and chat, `length` tokens in all.
    fn exam(&mut self, length: usize) {
        let end = self.len() + length;
        self.rng.shuffle(&mut self.system);
        self.rng.shuffle(&mut self.facts);
        let mut asked: Vec<Fact> =
            self.system.iter().take(2).chain(self.facts.iter().take(6)).copied().collect();
        self.rng.shuffle(&mut asked);
        loop {
            let room = end - self.len();
            let free = room.saturating_sub(TURN * asked.len());
            if free >= 8 && (asked.is_empty() || self.rng.below(16) < 5) {
                self.chat(free);
            } else if let Some(fact) = asked.pop_if(|_| room >= TURN) {
                self.ask(fact);
            } else {
                break;
            }
        }
        self.fill(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `training/corpus.py` holds the same numbers.
    const HASHES: [(u64, u64); 3] =
        [(1, 0x026A_8088_0B23_18DB), (2, 0xBE4D_4CF1_AF28_D6F2), (3_000_000_019, 0x52BC_0697_DA76_4CAA)];

    #[test]
    fn documents_are_those_of_the_training_script() {
        for (seed, expected) in HASHES {
            let hashes = (0..8).map(|index| Document::new(seed, index, 1024, 128).hash());
            let hash = hashes.fold(0, |all: u64, hash| scramble(all ^ hash));
            assert_eq!(hash, expected, "seed {seed}: {hash:#x}");
        }
    }

    #[test]
    fn an_answer_repeats_the_fact_at_its_distance_and_no_fact_is_asked_for_twice() {
        for index in 0..32 {
            let document = Document::new(2, index, 1024, 128);
            assert_eq!((document.tokens.len(), document.kinds.len(), document.exam), (1152, 1152, 1024));
            let mut asked = Vec::new();
            for (at, kind) in document.kinds.iter().enumerate() {
                let Kind::Answer { fact_at } = *kind else { continue };
                let fact = fact_at as usize;
                assert_eq!(document.tokens[at], document.tokens[fact], "the thing");
                assert_eq!(document.tokens[at - 1], document.tokens[fact - 1], "the name");
                assert!(document.tokens[fact + 1] == DOT && document.tokens[fact - 2] == NOTE);
                let between = &document.tokens[fact + 1..at - 1];
                let names = between.iter().filter(|&&token| token == document.tokens[fact - 1]);
                assert_eq!(names.count(), 1, "only the question says the name again");
                asked.push(fact);
            }
            let count = asked.len();
            asked.dedup();
            asked.sort_unstable();
            asked.dedup();
            assert_eq!(asked.len(), count);
            let of_system = asked.iter().filter(|&&fact| fact < SYSTEM_TOKENS as usize);
            assert!(of_system.count() >= 2, "two facts of the system turn are left for the exam");
        }
    }

    /// The analytic floor against a sum over all states and their successors, with every state's words
    /// distinct and the chat of real documents walking along them.
    #[test]
    fn the_floor_is_the_entropy_of_every_state() {
        let language = Language::new();
        for successors in &language.0 {
            let mut chances = vec![0.0; WORDS as usize];
            for (&word, odds) in successors.iter().zip(ODDS) {
                chances[word as usize] += 15.0 / 16.0 * f64::from(odds) / 256.0;
            }
            chances.push(1.0 / 16.0);
            let entropy: f64 = chances.iter().filter(|&&p| p > 0.0).map(|p| -p * p.ln()).sum();
            assert!((entropy - floor()).abs() < 1e-12, "{entropy}");
            assert!((chances.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
        assert!((floor() - 1.8147).abs() < 5e-5, "{}", floor());
        let documents = (0..64).map(|index| Document::new(2, index, 1024, 128));
        let (mut sum, mut count) = (0.0, 0);
        for document in documents {
            for (at, kind) in document.kinds.iter().enumerate() {
                let Kind::Chat { odds } = *kind else { continue };
                let state = (document.tokens[at - 1] - CHAT.start) as usize;
                let word = document.tokens[at].checked_sub(CHAT.start);
                let rank = word.map(|word| language.0[state].iter().position(|&next| next == word).unwrap());
                assert_eq!(odds, rank.map_or(256, |rank| 15 * ODDS[rank]));
                sum += kind.floor().unwrap();
                count += 1;
            }
        }
        assert!((sum / f64::from(count) - floor()).abs() < 0.02, "{} of {count}", sum / f64::from(count));
    }

    #[test]
    fn an_exam_of_any_length_ends_where_it_should() {
        for exam in [0, 1, 7, 8, 11, 12, 40, 200] {
            for body in [28, 30, 39, 64, 300] {
                let document = Document::new(5, 0, body, exam);
                assert_eq!((document.tokens.len(), document.exam), (body + exam, body));
            }
        }
    }
}
