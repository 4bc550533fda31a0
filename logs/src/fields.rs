//! Values in a log line: `key=value`, `--flag value`, `Key:value`, and what stands after a text.

use std::borrow::Cow;

use jiff::SignedDuration;
use memchr::memmem;

/// Bytes of a value that are looked at.
const VALUE_BYTES_MAX: usize = 512;

/// What stands directly after a text, if the line has it.
pub(crate) fn after<'a>(line: &'a [u8], text: &str) -> Option<&'a [u8]> {
    memmem::find(line, text.as_bytes()).map(|at| &line[at + text.len()..])
}

/// The value of ` key=value`, without quotes.
pub(crate) fn value<'a>(line: &'a [u8], key: &str) -> Option<&'a [u8]> {
    let mut rest = line;
    loop {
        let found = after(rest, key)?;
        let at = line.len() - found.len() - key.len();
        let is_start = at == 0 || !(line[at - 1].is_ascii_alphanumeric() || line[at - 1] == b'.');
        if is_start && found.first() == Some(&b'=') {
            return Some(word(&found[1..]));
        }
        rest = found;
    }
}

/// A word, or what is quoted.
fn word(text: &[u8]) -> &[u8] {
    let text = &text[..text.len().min(VALUE_BYTES_MAX)];
    if text.first() == Some(&b'"') {
        let end = text[1..].iter().position(|byte| *byte == b'"').map_or(text.len(), |end| end + 1);
        return &text[1..end];
    }
    let end = text.iter().position(|byte| byte.is_ascii_whitespace() || matches!(byte, b'"' | b'}' | b']'));
    &text[..end.unwrap_or(text.len())]
}

/// The whole number at the start of a text, after spaces.
pub(crate) fn leading<T: TryFrom<u64>>(text: &[u8]) -> Option<T> {
    let text = text.trim_ascii_start();
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 || digits > 18 {
        return None;
    }
    let number = text[..digits].iter().fold(0, |sum: u64, digit| sum * 10 + u64::from(digit - b'0'));
    T::try_from(number).ok()
}

/// The whole number after a text.
pub(crate) fn number_after<T: TryFrom<u64>>(line: &[u8], text: &str) -> Option<T> {
    leading(after(line, text)?)
}

/// The whole number of ` key=number`.
pub(crate) fn number<T: TryFrom<u64>>(line: &[u8], key: &str) -> Option<T> {
    leading(value(line, key)?)
}

/// The word after `--flag ` or `--flag=`.
pub(crate) fn flag<'a>(line: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut rest = line;
    loop {
        rest = after(rest, name)?;
        let start = line.len() - rest.len() - name.len();
        let is_flag = start == 0 || matches!(line[start - 1], b' ' | b'"');
        if is_flag && matches!(rest.first(), Some(b' ' | b'=')) {
            return Some(word(rest[1..].trim_ascii_start()));
        }
    }
}

/// Whether the line has this flag as a whole word.
pub(crate) fn has_flag(line: &[u8], name: &str) -> bool {
    let mut rest = line;
    while let Some(found) = after(rest, name) {
        if found.first().is_none_or(|byte| matches!(byte, b' ' | b'"' | b'=' | b'\n')) {
            return true;
        }
        rest = found;
    }
    false
}

/// A duration as Go prints it: `1.234567s`, `1h24m39s`, `414.019us` with either micro sign.
pub(crate) fn duration_ns(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text.trim_ascii()).ok()?;
    // Go writes the micro sign; the Greek letter looks the same.
    let text =
        if text.contains('\u{3bc}') { Cow::from(text.replace('\u{3bc}', "\u{b5}")) } else { text.into() };
    let duration: SignedDuration = text.parse().ok()?;
    u64::try_from(duration.as_nanos()).ok()
}

/// Milliseconds with a decimal point, as nanoseconds.
pub(crate) fn millis_ns(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii_start();
    let end = text.iter().take(24).take_while(|byte| byte.is_ascii_digit() || **byte == b'.').count();
    let millis: f64 = std::str::from_utf8(&text[..end]).ok()?.parse().ok()?;
    // Thirty years of milliseconds; nothing runs longer.
    (0.0..1e12).contains(&millis).then_some((millis * 1e6).round() as u64)
}

/// The line without escape sequences for colours.
pub(crate) fn without_colours(line: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(0x1b, line).is_none() {
        return line.into();
    }
    let mut plain = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = memchr::memchr(0x1b, rest) {
        plain.extend_from_slice(&rest[..at]);
        rest = &rest[at + 1..];
        if rest.first() == Some(&b'[') {
            let end = rest[1..].iter().position(|byte| (0x40..0x7f).contains(byte));
            rest = end.map_or(&[], |end| &rest[end + 2..]);
        }
    }
    plain.extend_from_slice(rest);
    plain.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_whole_key() {
        let line = br#"level=WARN msg="truncating input prompt" limit=2048 prompt=5065 keep=5 new=2048"#;
        assert_eq!(number::<u32>(line, "prompt"), Some(5065));
        assert_eq!(number::<u32>(line, "limit"), Some(2048));
        assert_eq!(value(line, "msg"), Some(&b"truncating input prompt"[..]));
        assert_eq!(value(line, "mit"), None);
        assert_eq!(number::<u32>(b"memory.required.full=3 full=4", "full"), Some(4));
        assert_eq!(number::<u32>(b"a=99999999999999999999", "a"), None);
        assert_eq!(number::<u32>(b"a=5000000000", "a"), None);
    }

    #[test]
    fn flags_are_whole_words() {
        let line = br#"cmd="ollama runner --ctx-size 8192 --batch-size 512 --flash-attn --parallel 2 -c=7""#;
        assert_eq!(flag(line, "--ctx-size"), Some(&b"8192"[..]));
        assert_eq!(flag(line, "--parallel"), Some(&b"2"[..]));
        assert_eq!(flag(line, "-c"), Some(&b"7"[..]));
        assert_eq!(flag(line, "--port"), None);
        assert!(has_flag(line, "--flash-attn") && !has_flag(line, "--flash"));
    }

    #[test]
    fn durations_of_go_are_read() {
        let cases = [
            ("1.234567s", 1_234_567_000),
            ("  4.513843834s ", 4_513_843_834),
            ("1h24m39s", 5_079_000_000_000),
            ("30m0s", 1_800_000_000_000),
            ("414.019\u{b5}s", 414_019),
            ("414.019\u{3bc}s", 414_019),
            ("87.5125ms", 87_512_500),
            ("0s", 0),
            ("12ns", 12),
        ];
        for (text, ns) in cases {
            assert_eq!(duration_ns(text.as_bytes()), Some(ns), "{text}");
        }
        for text in ["", "s", "-5s", "1.5", "\u{ff}", "999999999999999999999h"] {
            assert_eq!(duration_ns(text.as_bytes()), None, "{text}");
        }
        assert_eq!(millis_ns(b"   7212.92 ms"), Some(7_212_920_000));
        assert_eq!(millis_ns(b"nan ms"), None);
    }

    #[test]
    fn colours_are_taken_out() {
        let line = b"[GIN] 2025 |\x1b[97;42m 200 \x1b[0m| 1s";
        assert_eq!(&*without_colours(line), b"[GIN] 2025 | 200 | 1s");
        assert_eq!(&*without_colours(b"a\x1b[97"), b"a");
        assert_eq!(&*without_colours(b"a\x1b"), b"a");
    }
}
