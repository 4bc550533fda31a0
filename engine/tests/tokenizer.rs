//! Tokenizers: greedy merging against a naive merger and against the `tokenizers` crate, and what is
//! special.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::collections::BTreeSet;
use std::fs;

use engine::EngineError;
use engine::tokenizer::{Piece, PieceKind, Role, Tokenizer};
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

const BOS: u32 = 2;
const START: u32 = 4;
const END: u32 = 5;

/// Marks, then all bytes, then letters, then what pairs of earlier pieces make: every piece of
/// several letters is made of one pair only, so that both ways of merging agree.
#[derive(Debug)]
struct Vocabulary {
    pieces: Vec<Piece>,
    merges: Vec<(String, String)>,
}

const ALPHABET: [&str; 7] = ["a", "b", "c", "\u{2581}", "\n", "\u{e9}", "\u{1F600}"];

/// A vocabulary from numbers that choose pairs.
fn vocabulary(pairs: &[(usize, usize)]) -> Vocabulary {
    let piece = |text: &str, score: f32, kind: PieceKind| Piece { text: text.to_owned(), score, kind };
    let marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"];
    // As in Google's own file, some marks are said to be plain text.
    let mut pieces: Vec<_> = marks.iter().map(|mark| piece(mark, 0.0, PieceKind::Normal)).collect();
    pieces.extend((0..256).map(|byte| piece(&format!("<0x{byte:02X}>"), 0.0, PieceKind::Byte)));
    let first = pieces.len();
    pieces.extend(ALPHABET.iter().map(|letter| piece(letter, 0.0, PieceKind::Normal)));
    let mut merges = Vec::new();
    for &(a, b) in pairs {
        let count = pieces.len() - first;
        let (a, b) = (&pieces[first + a % count].text, &pieces[first + b % count].text);
        let both = format!("{a}{b}");
        let texts: BTreeSet<&str> = pieces[first..].iter().map(|piece| &*piece.text).collect();
        let splits = |text: &str| {
            let cuts = text.char_indices().skip(1).filter(|&(at, _)| {
                let (a, b) = text.split_at(at);
                texts.contains(a) && texts.contains(b)
            });
            cuts.count()
        };
        let is_new = !texts.contains(&*both) && splits(&both) == 1 && both.chars().count() <= 8;
        // No older piece may become a pair by this one.
        let is_split = |text: &&str| {
            text.char_indices().skip(1).any(|(at, _)| {
                let (a, b) = text.split_at(at);
                (a == both && texts.contains(b)) || (b == both && texts.contains(a))
            })
        };
        if is_new && !texts.iter().any(is_split) {
            merges.push((a.clone(), b.clone()));
            pieces.push(piece(&both, -(merges.len() as f32), PieceKind::Normal));
        }
    }
    Vocabulary { pieces, merges }
}

fn vocabularies() -> impl Strategy<Value = Vocabulary> {
    prop::collection::vec((0..40_usize, 0..40_usize), 0..30).prop_map(|pairs| vocabulary(&pairs))
}

/// Letters of the alphabet, spaces, and some that are in no vocabulary.
fn texts() -> impl Strategy<Value = String> {
    let letters = ["a", "b", "c", " ", "\n", "\u{e9}", "\u{1F600}", "d", "\u{65e5}", "<", "0", "\u{0}"];
    prop::collection::vec(prop::sample::select(letters.to_vec()), 0..60).prop_map(|letters| letters.concat())
}

/// Merges the best pair, the leftmost of several, until none is left.
fn naive(pieces: &[Piece], text: &str) -> Vec<u32> {
    let id = |text: &str| {
        let is_it = |piece: &Piece| piece.text == text && piece.kind == PieceKind::Normal;
        pieces.iter().skip(6).position(is_it).map(|id| id + 6)
    };
    let mut symbols: Vec<String> = text.replace(' ', "\u{2581}").chars().map(String::from).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for left in 0..symbols.len().saturating_sub(1) {
            let both = id(&format!("{}{}", symbols[left], symbols[left + 1]));
            if let Some(score) = both.map(|id| pieces[id].score)
                && best.is_none_or(|(most, _)| score > most)
            {
                best = Some((score, left));
            }
        }
        let Some((_, left)) = best else { break };
        let right = symbols.remove(left + 1);
        symbols[left].push_str(&right);
    }
    let tokens = symbols.iter().flat_map(|symbol| match id(symbol) {
        Some(id) => vec![id as u32],
        None => symbol.bytes().map(|byte| 6 + u32::from(byte)).collect(),
    });
    tokens.collect()
}

/// The same vocabulary as a `tokenizer.json` of Gemma's kind.
fn json_tokenizer(vocabulary: &Vocabulary) -> Tokenizer {
    let vocab: serde_json::Map<_, _> =
        vocabulary.pieces.iter().enumerate().map(|(id, piece)| (piece.text.clone(), json!(id))).collect();
    let mark = |(id, piece): (usize, &Piece)| {
        json!({ "id": id, "content": piece.text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    let file = json!({
        "version": "1.0",
        "truncation": { "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0 },
        "padding": null,
        "added_tokens": vocabulary.pieces.iter().take(6).enumerate().map(mark).collect::<Vec<_>>(),
        "normalizer": { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" },
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": vocabulary.merges,
        },
    });
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tokenizer.json");
    fs::write(&path, file.to_string()).unwrap();
    Tokenizer::from_json(&path).unwrap()
}

fn both(vocabulary: &Vocabulary) -> [Tokenizer; 2] {
    [Tokenizer::from_pieces(vocabulary.pieces.clone()), json_tokenizer(vocabulary)]
}

/// Texts that a stream gives out, joined.
fn streamed(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
    let mut stream = tokenizer.stream();
    let mut text: String = tokens.iter().map(|&token| stream.push(token)).collect();
    text += &stream.finish();
    text
}

/// Vocabularies that a trainer would make: any pair, the same piece in several ways.
fn any_pieces() -> impl Strategy<Value = Vec<Piece>> {
    let made = prop::collection::vec((0..40_usize, 0..40_usize, -4_i8..4), 0..40);
    made.prop_map(|made| {
        let mut pieces = vocabulary(&[]).pieces;
        let first = pieces.len() - ALPHABET.len();
        for (a, b, score) in made {
            let count = pieces.len() - first;
            let text = format!("{}{}", pieces[first + a % count].text, pieces[first + b % count].text);
            if text.chars().count() <= 12 && pieces.iter().all(|piece| piece.text != text) {
                pieces.push(Piece { text, score: f32::from(score), kind: PieceKind::Normal });
            }
        }
        pieces
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn merging_with_a_heap_is_merging_the_best_pair_again_and_again(pieces in any_pieces(), text in texts()) {
        let tokenizer = Tokenizer::from_pieces(pieces.clone());
        prop_assert_eq!(tokenizer.encode(&text, false).unwrap(), naive(&pieces, &text));
    }

    #[test]
    fn a_text_comes_back_from_its_tokens_all_at_once_and_one_by_one(pieces in any_pieces(), text in any::<String>()) {
        // A space comes back for U+2581, which is how spaces are written.
        let text = text.replace('\u{2581}', " ");
        let tokenizer = Tokenizer::from_pieces(pieces);
        let tokens = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(&tokenizer.decode(&tokens), &text);
        prop_assert_eq!(&streamed(&tokenizer, &tokens), &text);
    }

    #[test]
    fn any_tokens_decode_to_the_same_all_at_once_and_one_by_one(tokens in prop::collection::vec(0..280_u32, 0..40)) {
        let tokenizer = Tokenizer::from_pieces(vocabulary(&[(0, 1), (7, 2)]).pieces);
        prop_assert_eq!(streamed(&tokenizer, &tokens), tokenizer.decode(&tokens));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn both_formats_of_a_vocabulary_cut_and_join_alike(vocabulary in vocabularies(), text in texts()) {
        let [pieces, json] = both(&vocabulary);
        let tokens = pieces.encode(&text, true).unwrap();
        prop_assert_eq!(&tokens, &json.encode(&text, true).unwrap());
        prop_assert_eq!(&json.decode(&tokens), &text);
        prop_assert_eq!(&streamed(&json, &tokens), &text);
        prop_assert_eq!(pieces.vocab(), json.vocab());
    }
}

#[test]
fn a_text_begins_with_one_mark_for_the_beginning() {
    for tokenizer in both(&vocabulary(&[])) {
        assert_eq!(tokenizer.bos(), Some(BOS));
        let plain = tokenizer.encode("abc", false).unwrap();
        assert_eq!(tokenizer.encode("abc", true).unwrap(), [&[BOS], &*plain].concat());
        assert_eq!(tokenizer.encode("<bos>abc", true).unwrap(), [&[BOS], &*plain].concat());
        assert_eq!(tokenizer.encode("<bos>abc", false).unwrap(), [&[BOS], &*plain].concat());
        assert_eq!(tokenizer.encode("", true).unwrap(), [BOS]);
        assert!(tokenizer.encode("", false).unwrap().is_empty());
    }
}

#[test]
fn marks_are_special_by_name_and_are_not_printed() {
    for tokenizer in both(&vocabulary(&[])) {
        assert_eq!(tokenizer.end_of_turn(), Some(END));
        let tokens = tokenizer.encode("a<start_of_turn>b<end_of_turn> c", false).unwrap();
        assert_eq!((tokens[1], tokens[3], tokens.len()), (START, END, 6));
        assert_eq!(tokenizer.decode(&tokens), "ab c");
        // Half a mark is text.
        let tokens = tokenizer.encode("<start_of_turn", false).unwrap();
        assert!(!tokens.contains(&START));
        assert_eq!(tokenizer.decode(&tokens), "<start_of_turn");
    }
}

#[test]
fn a_name_of_a_byte_in_a_text_is_text() {
    for tokenizer in both(&vocabulary(&[])) {
        let tokens = tokenizer.encode("<0x41>", false).unwrap();
        assert_eq!(tokens.len(), 6);
        assert_eq!(tokenizer.decode(&tokens), "<0x41>");
        assert_eq!(tokenizer.decode(&[6 + 0x41]), "A");
    }
}

#[test]
fn text_that_is_never_cut_is_found_longest_first() {
    let mut pieces = vocabulary(&[]).pieces;
    let first = pieces.len() as u32;
    for text in ["\n\n", "\n\n\n", "  ", "abc", "b"] {
        pieces.push(Piece { text: text.to_owned(), score: 0.0, kind: PieceKind::UserDefined });
    }
    let tokenizer = Tokenizer::from_pieces(pieces);
    let encode = |text: &str| tokenizer.encode(text, false).unwrap();
    assert_eq!(encode("\n\n\n\n\n"), [first + 1, first]);
    assert_eq!(encode("abc"), [first + 3]);
    assert_eq!(encode("   "), [first + 2, 262 + 3]);
    assert_eq!(tokenizer.decode(&encode("a  \n\n c")), "a  \n\n c");
}

#[test]
fn a_character_in_several_tokens_is_given_out_with_the_last() {
    for tokenizer in both(&vocabulary(&[])) {
        let mut stream = tokenizer.stream();
        let given: Vec<String> = "\u{65e5}".bytes().map(|byte| stream.push(6 + u32::from(byte))).collect();
        assert_eq!(given, ["", "", "\u{65e5}"]);
        // A character that never ends is given out as what it is.
        assert_eq!(stream.push(6 + 0xE6), "");
        assert_eq!(stream.finish(), "\u{FFFD}");
    }
}

#[test]
fn conversations_are_worded_as_gemma_was_trained() {
    let turns = [(Role::User, " Hello\n"), (Role::Model, "Good day."), (Role::User, "Why?")];
    let expected = "<start_of_turn>user\nBe brief.\n\nHello<end_of_turn>\n<start_of_turn>model\nGood day.<end_of_turn>\n\
                    <start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n";
    assert_eq!(Tokenizer::chat(Some("Be brief."), &turns), expected);
    let alone = "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n";
    assert_eq!(Tokenizer::chat(None, &turns[2..]), alone);
}

#[test]
fn a_long_text_takes_no_long_time() {
    // Half a million letters, which a merger that looks at all pairs again and again never ends.
    let pieces = vocabulary(&[(0, 0), (7, 7), (8, 8), (9, 9)]).pieces;
    let tokenizer = Tokenizer::from_pieces(pieces);
    let text = "a".repeat(500_000) + &"b ".repeat(10_000);
    assert_eq!(tokenizer.decode(&tokenizer.encode(&text, false).unwrap()), text);
}

#[test]
fn a_broken_file_is_refused_with_its_name() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tokenizer.json");
    for text in ["", "{", "{}", "[1,2]", "{\"version\":\"1.0\",\"model\":{\"type\":\"BPE\"}}"] {
        fs::write(&path, text).unwrap();
        let error = Tokenizer::from_json(&path).unwrap_err();
        assert!(matches!(error, EngineError::File { .. }));
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }
    assert!(Tokenizer::from_json(&folder.path().join("none.json")).is_err());
}
