//! Text to tokens and back: from `tokenizer.json`, or from the vocabulary of a GGUF file alone.
//!
//! Gemma 3 knows neither a space before the first word nor a mark for the end; the mark for the
//! beginning, bos, must be there, once.

mod pieces;

use std::path::Path;

pub use pieces::{Piece, PieceKind};

use pieces::Pieces;

use crate::error::EngineError;

/// Who speaks in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Whoever asks.
    User,
    /// The model.
    Model,
}

#[derive(Clone, Debug)]
enum Kind {
    Json(Box<tokenizers::Tokenizer>),
    Pieces(Pieces),
}

/// A vocabulary, and how text is cut into it.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    kind: Kind,
    bos: Option<u32>,
    end_of_turn: Option<u32>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`EngineError::File`] if it is missing or broken.
    pub fn from_json(path: &Path) -> Result<Tokenizer, EngineError> {
        let wrong = |error: tokenizers::Error| EngineError::File {
            path: path.to_owned(),
            what: format!("is no tokenizer: {error}"),
        };
        let mut json = tokenizers::Tokenizer::from_file(path).map_err(wrong)?;
        // Whoever wrote the file may have cut or padded texts; here they stay as they are.
        json.with_padding(None);
        json.with_truncation(None).map_err(wrong)?;
        let (bos, end_of_turn) = (json.token_to_id("<bos>"), json.token_to_id("<end_of_turn>"));
        Ok(Tokenizer { kind: Kind::Json(Box::new(json)), bos, end_of_turn })
    }

    /// A vocabulary whose pieces are merged by score.
    pub fn from_pieces(pieces: Vec<Piece>) -> Tokenizer {
        let pieces = Pieces::new(pieces);
        let (bos, end_of_turn) = (pieces.special("<bos>"), pieces.special("<end_of_turn>"));
        Tokenizer { kind: Kind::Pieces(pieces), bos, end_of_turn }
    }

    /// Tokens that it knows.
    pub fn vocab(&self) -> usize {
        match &self.kind {
            Kind::Json(json) => json.get_vocab_size(true),
            Kind::Pieces(pieces) => pieces.len(),
        }
    }

    /// The mark that every text begins with.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The mark that ends what one of a conversation says; it ends an answer.
    pub fn end_of_turn(&self) -> Option<u32> {
        self.end_of_turn
    }

    /// The tokens of a text; marks in it become what they mean. With `bos`, it begins with that
    /// mark, once, whether or not the text has it.
    ///
    /// # Errors
    /// A text that a `tokenizer.json` has no tokens for.
    pub fn encode(&self, text: &str, bos: bool) -> Result<Vec<u32>, EngineError> {
        let mut tokens = Vec::new();
        tokens.extend(self.bos.filter(|_| bos));
        let before = tokens.len();
        match &self.kind {
            Kind::Json(json) => {
                let encoding = json
                    .encode_fast(text, false)
                    .map_err(|error| EngineError::Batch(format!("text: {error}")))?;
                tokens.extend(encoding.get_ids());
            }
            Kind::Pieces(pieces) => pieces.encode(text, &mut tokens),
        }
        if before == 1 && tokens.get(1) == self.bos.as_ref() {
            tokens.remove(0);
        }
        Ok(tokens)
    }

    /// The text of tokens, without marks; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        match &self.kind {
            // Decoding fails for no decoder that Gemma's files use.
            Kind::Json(json) => json.decode(tokens, true).unwrap_or_default(),
            Kind::Pieces(pieces) => {
                let mut bytes = Vec::new();
                tokens.iter().for_each(|&token| pieces.bytes(token, &mut bytes));
                String::from_utf8_lossy(&bytes).into_owned()
            }
        }
    }

    /// Decodes tokens as they come.
    pub fn stream(&self) -> Stream<'_> {
        Stream { tokenizer: self, bytes: Vec::new(), context: Vec::new(), new: Vec::new() }
    }

    /// A conversation in the words that Gemma 3 was trained on, up to where the model speaks. The mark
    /// for the beginning is not in it: [`Tokenizer::encode`] adds it.
    pub fn chat(system: Option<&str>, turns: &[(Role, &str)]) -> String {
        let mut text = String::new();
        let mut system = system;
        for (role, words) in turns {
            let (name, before) = match role {
                Role::User => ("user", system.take()),
                Role::Model => ("model", None),
            };
            let before = before.map(|before| format!("{before}\n\n")).unwrap_or_default();
            text += &format!("<start_of_turn>{name}\n{before}{}<end_of_turn>\n", words.trim());
        }
        text + "<start_of_turn>model\n"
    }
}

/// Most tokens that a character is waited for: its bytes, and those of an emoji's parts.
const WAIT_MAX: usize = 16;

/// Text of tokens that come one by one. What is given out is never taken back: a character whose
/// bytes come in several tokens is given out with the last.
#[derive(Debug)]
pub struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    /// Bytes that may yet become a character.
    bytes: Vec<u8>,
    /// Tokens of the last text that was given out, as some decoders treat the first token otherwise.
    context: Vec<u32>,
    /// Tokens since.
    new: Vec<u32>,
}

impl Stream<'_> {
    /// Takes a token and gives out the text that is certain.
    pub fn push(&mut self, token: u32) -> String {
        match &self.tokenizer.kind {
            Kind::Pieces(pieces) => {
                pieces.bytes(token, &mut self.bytes);
                let certain = certain(&self.bytes);
                let text = String::from_utf8_lossy(&self.bytes[..certain]).into_owned();
                self.bytes.drain(..certain);
                text
            }
            Kind::Json(_) => {
                self.new.push(token);
                let text = self.fresh();
                if text.ends_with('\u{FFFD}') && self.new.len() < WAIT_MAX {
                    return String::new();
                }
                self.context = std::mem::take(&mut self.new);
                text
            }
        }
    }

    /// Gives out what is left.
    pub fn finish(self) -> String {
        match &self.tokenizer.kind {
            Kind::Pieces(_) => String::from_utf8_lossy(&self.bytes).into_owned(),
            Kind::Json(_) => self.fresh(),
        }
    }

    /// The text of the new tokens, after those before.
    fn fresh(&self) -> String {
        let before = self.tokenizer.decode(&self.context);
        let whole = self.tokenizer.decode(&[&*self.context, &*self.new].concat());
        whole.strip_prefix(&*before).map_or_else(|| self.tokenizer.decode(&self.new), str::to_owned)
    }
}

/// How many of some bytes mean the same whatever follows.
fn certain(bytes: &[u8]) -> usize {
    let mut at = 0;
    loop {
        match std::str::from_utf8(&bytes[at..]) {
            Ok(_) => return bytes.len(),
            Err(error) => match error.error_len() {
                Some(len) => at += error.valid_up_to() + len,
                None => return at + error.valid_up_to(),
            },
        }
    }
}
