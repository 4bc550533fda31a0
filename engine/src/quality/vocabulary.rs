//! The 256 words of the tiny model, by id.

use std::ops::Range;

/// Begins every document.
pub const BOS: u32 = 2;
/// Opens a turn.
pub const START: u32 = 4;
/// Closes a turn.
pub const END: u32 = 5;
/// Role of the first turn.
pub const SYSTEM: u32 = 6;
/// Role of who asks.
pub const USER: u32 = 7;
/// Role of who answers.
pub const MODEL: u32 = 8;
/// A fact follows.
pub const NOTE: u32 = 9;
/// A name follows whose thing is asked for.
pub const ASK: u32 = 10;
/// The answer to a fact.
pub const OK: u32 = 11;
/// Ends a fact.
pub const DOT: u32 = 12;
/// Fills up a document.
pub const FILL: u32 = 13;
/// Ids of the names that facts are about.
pub const NAMES: Range<u32> = 16..80;
/// Ids of the things that facts tell.
pub const THINGS: Range<u32> = 80..144;
/// Ids of the words of chat.
pub const CHAT: Range<u32> = 144..256;

const WORDS: &str = include_str!("../../models/tiny/vocabulary.txt");

/// The words, by id.
pub fn words() -> Vec<&'static str> {
    WORDS.lines().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_ids_are_those_of_the_words() {
        let words = words();
        assert_eq!(words.len(), 256);
        let named = [
            (BOS, "<bos>"),
            (START, "<start_of_turn>"),
            (END, "<end_of_turn>"),
            (SYSTEM, "system"),
            (USER, "user"),
            (MODEL, "model"),
            (NOTE, "note"),
            (ASK, "ask"),
            (OK, "ok"),
            (DOT, "."),
            (FILL, "<fill>"),
            (NAMES.start, "ada"),
            (THINGS.start, "apple"),
            (CHAT.start, "about"),
        ];
        for (id, word) in named {
            assert_eq!(words[id as usize], word);
        }
        let mut sorted = words.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 256, "no word stands twice");
    }
}
