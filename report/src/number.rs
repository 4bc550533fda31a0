//! Numbers for people: three significant digits, separated thousands, a unit that fits the size.

/// What a number counts, and so how it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// Things, whole unless they are a mean.
    Count,
    /// Cells or tokens: like [`Unit::Count`], but axes are divided at powers of two.
    Cells,
    /// Anything else without a unit, rates among them.
    Plain,
    /// A share from 0 to 1, written in percent.
    Share,
    /// Milliseconds; written in seconds when large, in microseconds when small.
    Milliseconds,
    /// Seconds; written in milliseconds or microseconds when small.
    Seconds,
}

/// A value in the unit's own size, for example `1.23 s` for 1230 milliseconds. Values that are
/// not finite are written as `-`.
///
/// ```
/// use report::number::{Unit, human};
/// assert_eq!(human(1234567.0, Unit::Count), "1,234,567");
/// assert_eq!(human(0.1234, Unit::Share), "12.3 %");
/// assert_eq!(human(1230.0, Unit::Milliseconds), "1.23 s");
/// ```
pub fn human(value: f64, unit: Unit) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    let (factor, suffix) = scale(value.abs(), unit);
    let scaled = value * factor;
    if !scaled.is_finite() {
        return "-".to_owned();
    }
    format!("{}{suffix}", fixed(scaled, decimals(scaled, unit)))
}

/// A mean and the half-width of its interval in one unit, for example `1.23 ±0.04 s`.
pub fn human_with(mean: f64, half_width: f64, unit: Unit) -> String {
    if !mean.is_finite() || !half_width.is_finite() {
        return human(mean, unit);
    }
    let (factor, suffix) = scale(mean.abs().max(half_width), unit);
    let (mean, half_width) = (mean * factor, half_width * factor);
    let first_digit = (-magnitude(half_width)).clamp(0, 6);
    let least = usize::try_from(first_digit).unwrap_or(0);
    let most = decimals(mean, unit) + 2;
    let places = decimals(mean, unit).max(least.min(most));
    format!("{} ±{}{suffix}", fixed(mean, places), fixed(half_width, places))
}

/// A relative change in percent with its sign, for example `+12.3 %` for 0.123.
pub fn change(share: f64) -> String {
    signed(share * 100.0) + " %"
}

/// A number with its sign and three significant digits; zero has no sign.
pub fn signed(value: f64) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    let text = fixed(value, decimals(value, Unit::Plain));
    if value > 0.0 && text != "0" { format!("+{text}") } else { text }
}

/// A plain number without zeros at its end: `0.8`, where [`human`] writes `0.800`.
pub(crate) fn brief(value: f64) -> String {
    let text = human(value, Unit::Plain);
    let is_cut = text.contains('.') && text.ends_with(|c: char| c.is_ascii_digit());
    if is_cut { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// The text with a fixed number of places and separated thousands.
pub(crate) fn fixed(value: f64, places: usize) -> String {
    let text = format!("{value:.places$}");
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) if digits.bytes().any(|b| b.is_ascii_digit() && b != b'0') => ("-", digits),
        Some(digits) => ("", digits),
        None => ("", text.as_str()),
    };
    let (whole, rest) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    format!("{sign}{}{rest}", thousands(whole))
}

/// Digits with a comma after every third from the right.
pub(crate) fn thousands(digits: &str) -> String {
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Factor and suffix that bring a value of this size to a readable unit.
pub(crate) fn scale(size: f64, unit: Unit) -> (f64, &'static str) {
    match unit {
        Unit::Count | Unit::Cells | Unit::Plain if size >= 1e13 => (1e-12, " T"),
        Unit::Count | Unit::Cells | Unit::Plain if size >= 1e10 => (1e-9, " G"),
        Unit::Count | Unit::Cells | Unit::Plain if size >= 1e7 => (1e-6, " M"),
        Unit::Count | Unit::Cells | Unit::Plain => (1.0, ""),
        Unit::Share => (100.0, " %"),
        Unit::Milliseconds => seconds(size / 1e3, 1e-3),
        Unit::Seconds => seconds(size, 1.0),
    }
}

fn seconds(size_s: f64, per_unit: f64) -> (f64, &'static str) {
    // A hair less is still a whole one: 1000 µs that came out of a sum is written 1 ms.
    if size_s >= 0.999_999 || size_s == 0.0 {
        (per_unit, " s")
    } else if size_s >= 0.999_999e-3 {
        (per_unit * 1e3, " ms")
    } else {
        (per_unit * 1e6, " µs")
    }
}

/// Power of ten of the first digit, after rounding to three digits.
fn magnitude(value: f64) -> i32 {
    let size = value.abs();
    if !(size > 0.0 && size.is_finite()) {
        return 0;
    }
    let power = size.log10().floor().clamp(-300.0, 300.0);
    // 9.996 is written 10.0: one digit more in front, one less behind.
    let rounded = if size / 10f64.powf(power) >= 9.995 { power + 1.0 } else { power };
    rounded as i32
}

fn decimals(value: f64, unit: Unit) -> usize {
    let whole = (value - value.round()).abs() <= value.abs() * 1e-9;
    let most = match unit {
        Unit::Count | Unit::Cells if value.abs() < 1e7 => 1,
        _ => 6,
    };
    if whole { 0 } else { usize::try_from((2 - magnitude(value)).clamp(0, most)).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_keep_their_unit() {
        let cases = [
            (0.0, Unit::Plain, "0"),
            (-0.0, Unit::Plain, "0"),
            (1234.5, Unit::Plain, "1,234"),
            (9.9999, Unit::Plain, "10.0"),
            (0.01234, Unit::Plain, "0.0123"),
            (-12.34, Unit::Plain, "-12.3"),
            (970.4, Unit::Count, "970"),
            (1.25, Unit::Count, "1.2"),
            (12_345_678.0, Unit::Count, "12.3 M"),
            (1.0, Unit::Share, "100 %"),
            (999.0, Unit::Milliseconds, "999 ms"),
            (123_456.0, Unit::Milliseconds, "123 s"),
            (0.05, Unit::Milliseconds, "50 µs"),
            (0.999_999_999, Unit::Milliseconds, "1 ms"),
            (0.07 + 1e-17, Unit::Share, "7 %"),
            (0.25, Unit::Seconds, "250 ms"),
            (f64::NAN, Unit::Plain, "-"),
            (f64::INFINITY, Unit::Share, "-"),
        ];
        for (value, unit, expected) in cases {
            assert_eq!(human(value, unit), expected, "{value} {unit:?}");
        }
    }

    #[test]
    fn brief_numbers_end_without_zeros() {
        for (value, expected) in [(0.8, "0.8"), (0.5999, "0.6"), (10.0, "10"), (0.0667, "0.0667"), (0.0, "0")]
        {
            assert_eq!(brief(value), expected);
        }
    }

    #[test]
    fn an_interval_shares_the_unit_and_the_places_of_its_mean() {
        assert_eq!(human_with(1234.0, 40.0, Unit::Milliseconds), "1.23 ±0.04 s");
        assert_eq!(human_with(970.0, 2.3, Unit::Count), "970 ±2");
        assert_eq!(human_with(970.125, 0.31, Unit::Count), "970.1 ±0.3");
        assert_eq!(human_with(0.0, 0.0, Unit::Count), "0 ±0");
    }
}
