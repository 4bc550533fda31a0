//! SentencePiece's greedy merging of pieces, from a vocabulary with scores alone.
//!
//! Of all neighbours whose concatenation is a piece, those with the best score are merged first, the
//! leftmost of several; what is no piece in the end is written in pieces for bytes. Source: Kudo,
//! Richardson 2018 (SentencePiece, `bpe_model.cc`), and what llama.cpp makes of GGUF's vocabularies.
//! A heap of candidates and a linked list of symbols make it O(n log n).

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// How a space is written in pieces.
const SPACE: char = '\u{2581}';

/// Marks of a conversation and others that are special even where a file says otherwise.
const SPECIAL: [&str; 9] = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
];

/// What a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    /// Text.
    Normal,
    /// A mark that no text contains; not printed.
    Control,
    /// Text that is never cut.
    UserDefined,
    /// Nothing.
    Unused,
    /// One byte, called `<0x00>` to `<0xFF>`.
    Byte,
}

/// A token of a vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Its text, with U+2581 for spaces.
    pub text: String,
    /// The higher, the earlier it is merged. Not NaN.
    pub score: f32,
    /// What it is for.
    pub kind: PieceKind,
}

/// A vocabulary that can be searched.
#[derive(Clone, Debug)]
pub(super) struct Pieces {
    pieces: Vec<Piece>,
    /// Pieces that merging makes, by their text.
    mergeable: Vec<u32>,
    /// The piece of every byte.
    bytes: Vec<Option<u32>>,
    /// Pieces that are never cut, by their text.
    whole: Vec<u32>,
    /// The lengths that these have, in bytes, by their first byte.
    whole_lens: BTreeMap<u8, BTreeSet<usize>>,
    unknown: Option<u32>,
}

/// A symbol of a text on its way to pieces: bytes of the text, and its neighbours.
struct Symbol {
    from: usize,
    to: usize,
    before: Option<usize>,
    after: Option<usize>,
}

/// Two neighbours that make a piece. The sizes tell whether they are what they were when found.
#[derive(PartialEq)]
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    bytes: usize,
}

impl Eq for Candidate {}

impl Ord for Candidate {
    fn cmp(&self, other: &Candidate) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left)).then(self.bytes.cmp(&other.bytes))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Candidate) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The byte that a piece is called after.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

impl Pieces {
    pub fn new(mut pieces: Vec<Piece>) -> Pieces {
        let mut bytes = vec![None; 256];
        for (piece, id) in pieces.iter_mut().zip(0..) {
            // A score of minus zero would sort below zero.
            piece.score += 0.0;
            if SPECIAL.contains(&&*piece.text) {
                piece.kind = PieceKind::Control;
            } else if let Some(byte) = byte_of(&piece.text) {
                piece.kind = PieceKind::Byte;
                bytes[usize::from(byte)] = Some(id);
            }
        }
        let of = |kinds: &[PieceKind]| -> Vec<u32> {
            let is_one = |id: &u32| {
                let piece = &pieces[*id as usize];
                kinds.contains(&piece.kind) && !piece.text.is_empty()
            };
            (0..pieces.len() as u32).filter(is_one).collect()
        };
        let mut mergeable = of(&[PieceKind::Normal, PieceKind::UserDefined]);
        let mut whole = of(&[PieceKind::Control, PieceKind::UserDefined]);
        for ids in [&mut mergeable, &mut whole] {
            // Of equal texts the first counts; sorting is stable.
            ids.sort_by(|&a, &b| pieces[a as usize].text.cmp(&pieces[b as usize].text));
            ids.dedup_by(|a, b| pieces[*a as usize].text == pieces[*b as usize].text);
        }
        let mut whole_lens: BTreeMap<u8, BTreeSet<usize>> = BTreeMap::new();
        for &id in &whole {
            let text = pieces[id as usize].text.as_bytes();
            whole_lens.entry(text[0]).or_default().insert(text.len());
        }
        let unknown = pieces.iter().position(|piece| piece.text == "<unk>").map(|id| id as u32);
        Pieces { mergeable, bytes, whole, whole_lens, unknown, pieces }
    }

    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// The piece that a mark is.
    pub fn special(&self, text: &str) -> Option<u32> {
        let is_it = |piece: &Piece| piece.kind == PieceKind::Control && piece.text == text;
        self.pieces.iter().position(is_it).map(|id| id as u32)
    }

    /// The one of some pieces, sorted by text, that has this text.
    fn find(&self, among: &[u32], text: &[u8]) -> Option<u32> {
        let at = among.binary_search_by(|&id| self.pieces[id as usize].text.as_bytes().cmp(text));
        at.ok().map(|at| among[at])
    }

    /// The longest piece that is never cut and begins a text.
    fn find_whole(&self, text: &[u8]) -> Option<u32> {
        let lens = self.whole_lens.get(text.first()?)?;
        let mut texts = lens.iter().rev().filter_map(|&len| text.get(..len));
        texts.find_map(|text| self.find(&self.whole, text))
    }

    /// Appends the tokens of a text.
    pub fn encode(&self, text: &str, tokens: &mut Vec<u32>) {
        let (mut done, mut at) = (0, 0);
        while at < text.len() {
            let Some(id) = self.find_whole(&text.as_bytes()[at..]) else {
                at += 1;
                continue;
            };
            self.encode_between(&text[done..at], tokens);
            tokens.push(id);
            at += self.pieces[id as usize].text.len();
            done = at;
        }
        self.encode_between(&text[done..], tokens);
    }

    /// Appends the tokens of a text without marks.
    fn encode_between(&self, text: &str, tokens: &mut Vec<u32>) {
        let text = text.replace(' ', SPACE.encode_utf8(&mut [0; 4]));
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (from, char))| Symbol {
                from,
                to: from + char.len_utf8(),
                before: index.checked_sub(1),
                after: Some(index + 1),
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.after = None;
        }
        self.merge(&text, &mut symbols);
        let mut next = (!symbols.is_empty()).then_some(0);
        while let Some(at) = next {
            self.put(&text[symbols[at].from..symbols[at].to], tokens);
            next = symbols[at].after;
        }
    }

    /// Merges neighbours until none make a piece.
    fn merge(&self, text: &str, symbols: &mut [Symbol]) {
        let mut candidates = BinaryHeap::new();
        let candidate = |symbols: &[Symbol], left: Option<usize>, right: Option<usize>| {
            let (left, right) = (left?, right?);
            let both = &text[symbols[left].from..symbols[right].to];
            let score = self.pieces[self.find(&self.mergeable, both.as_bytes())? as usize].score;
            Some(Candidate { score, left, right, bytes: both.len() })
        };
        for left in 0..symbols.len() {
            candidates.extend(candidate(symbols, Some(left), symbols[left].after));
        }
        while let Some(Candidate { left, right, bytes, .. }) = candidates.pop() {
            let is_stale = symbols[left].after != Some(right)
                || symbols[right].from == symbols[right].to
                || symbols[right].to - symbols[left].from != bytes;
            if is_stale || symbols[left].from == symbols[left].to {
                continue;
            }
            symbols[left].to = symbols[right].to;
            // What was merged away is empty from now on.
            symbols[right].from = symbols[right].to;
            let after = symbols[right].after;
            symbols[left].after = after;
            if let Some(after) = after {
                symbols[after].before = Some(left);
            }
            candidates.extend(candidate(symbols, symbols[left].before, Some(left)));
            candidates.extend(candidate(symbols, Some(left), after));
        }
    }

    /// Appends the piece of a text, or those of its bytes.
    fn put(&self, text: &str, tokens: &mut Vec<u32>) {
        match self.find(&self.mergeable, text.as_bytes()) {
            Some(id) => tokens.push(id),
            None => {
                let byte = |byte: u8| self.bytes[usize::from(byte)].or(self.unknown);
                tokens.extend(text.bytes().filter_map(byte));
            }
        }
    }

    /// Appends the bytes of a token's text; a mark and what is no token have none.
    pub fn bytes(&self, token: u32, bytes: &mut Vec<u8>) {
        let Some(piece) = self.pieces.get(token as usize) else { return };
        match piece.kind {
            PieceKind::Control | PieceKind::Unused => {}
            PieceKind::Byte => bytes.extend(byte_of(&piece.text)),
            PieceKind::Normal | PieceKind::UserDefined => {
                bytes.extend(piece.text.replace(SPACE, " ").as_bytes());
            }
        }
    }
}
