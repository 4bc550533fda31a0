//! Numbers and times in words.

/// `1 request`, `2 requests`, with thousands set off.
pub(crate) fn count(number: u64, (one, many): (&str, &str)) -> String {
    format!("{} {}", thousands(number), if number == 1 { one } else { many })
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `3 d 4 h`, `2 h 29 min`, `12 min 5 s`, `1.2 s`.
pub(crate) fn span(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{:.1} s", ns as f64 / 1e9),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {} min", minutes % 60),
        (days, hours, _) => format!("{days} d {} h", hours % 24),
    }
}

/// `a`, `a and b`, `a, b and c`.
pub(crate) fn list(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_read_well() {
        assert_eq!(count(1, ("line", "lines")), "1 line");
        assert_eq!(count(1_234_567, ("line", "lines")), "1,234,567 lines");
        let seconds = |s: u64| span(s * 1_000_000_000);
        assert_eq!(
            [seconds(1), seconds(725), seconds(8940), seconds(273_600)],
            ["1.0 s", "12 min 5 s", "2 h 29 min", "3 d 4 h"]
        );
        assert_eq!(list(&["a".into(), "b".into(), "c".into()]), "a, b and c");
    }
}
