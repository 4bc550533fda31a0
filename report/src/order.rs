//! The order of values for people: numbers by size, texts with the numbers in them by size too.

use std::cmp::Ordering;

/// Numbers before texts and by size; in texts, digits count as numbers: `paged:16` stands before `paged:128`.
///
/// ```
/// use report::order::natural;
/// let mut values = vec!["paged:128", "10", "0.5", "paged:16", "9"];
/// values.sort_by(|a, b| natural(a, b));
/// assert_eq!(values, ["0.5", "9", "10", "paged:16", "paged:128"]);
/// ```
pub fn natural(a: &str, b: &str) -> Ordering {
    match (number(a), number(b)) {
        (Some(x), Some(y)) => x.total_cmp(&y).then_with(|| a.cmp(b)),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => pieces(a).cmp(pieces(b)).then_with(|| a.cmp(b)),
    }
}

/// The text as a finite number.
pub fn number(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|x: &f64| x.is_finite())
}

/// Texts and whole numbers in turn.
fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let is_digit = rest.chars().next()?.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != is_digit).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        rest = after;
        let digits = piece.trim_start_matches('0');
        Some(if is_digit { Piece::Number(digits.len(), digits) } else { Piece::Text(piece) })
    })
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Piece<'a> {
    /// How many digits, then which: the order of numbers of any length.
    Number(usize, &'a str),
    Text(&'a str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_texts_have_one_order() {
        let texts =
            ["", "0", "00", "0.05", "1e3", "999", "a", "a1", "a01", "a2b", "a10", "a2", "nan", "16 + 256"];
        for a in texts {
            assert_eq!(natural(a, a), Ordering::Equal);
            for b in texts {
                assert_eq!(natural(a, b), natural(b, a).reverse(), "{a} {b}");
                assert_eq!(natural(a, b) == Ordering::Equal, a == b, "{a} {b}");
                for c in texts {
                    if natural(a, b).is_lt() && natural(b, c).is_lt() {
                        assert!(natural(a, c).is_lt(), "{a} {b} {c}");
                    }
                }
            }
        }
        assert!(natural("16 + 256", "112 + 1").is_lt());
    }
}
