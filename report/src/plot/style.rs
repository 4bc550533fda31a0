//! Colours, dashes and markers: told apart without colour too.

/// Red, green, blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rgb(pub(crate) u8, pub(crate) u8, pub(crate) u8);

pub(crate) const INK: Rgb = Rgb(0x22, 0x22, 0x22);
pub(crate) const QUIET: Rgb = Rgb(0x66, 0x66, 0x66);
pub(crate) const DOMINATED: Rgb = Rgb(0xA8, 0xA8, 0xA8);
pub(crate) const GRID: Rgb = Rgb(0xE4, 0xE6, 0xE8);
pub(crate) const AXIS: Rgb = Rgb(0x9A, 0x9E, 0xA2);

impl Rgb {
    /// As SVG writes it.
    pub(crate) fn hex(self) -> String {
        format!("#{:02X}{:02X}{:02X}", self.0, self.1, self.2)
    }

    /// Mixed with white: 0 is the colour itself, 1 is white.
    pub(crate) fn paler(self, white: f64) -> Rgb {
        let mix = |c: u8| (f64::from(c) + (255.0 - f64::from(c)) * white).round() as u8;
        Rgb(mix(self.0), mix(self.1), mix(self.2))
    }
}

/// How a line is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dash {
    Solid,
    Long,
    Dotted,
    Mixed,
}

impl Dash {
    /// Lengths in pixels, as SVG writes them; empty for a whole line.
    pub(crate) fn array(self) -> &'static str {
        match self {
            Dash::Solid => "",
            Dash::Long => "9 4",
            Dash::Dotted => "2 2",
            Dash::Mixed => "10 3 2 3",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marker {
    None,
    Circle,
    Square,
    Triangle,
    Diamond,
    Cross,
    Plus,
}

/// How one series looks, in every plot of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    pub(crate) colour: Rgb,
    pub(crate) dash: Dash,
    pub(crate) marker: Marker,
}

/// The colours of Okabe and Ito, which most colour-blind readers tell apart; their yellow, which
/// nobody reads on white, is darkened.
const COLOURS: [Rgb; 8] = [
    Rgb(0x00, 0x72, 0xB2),
    Rgb(0xD5, 0x5E, 0x00),
    Rgb(0x00, 0x9E, 0x73),
    Rgb(0xCC, 0x79, 0xA7),
    Rgb(0xE6, 0x9F, 0x00),
    Rgb(0x56, 0xB4, 0xE9),
    Rgb(0x22, 0x22, 0x22),
    Rgb(0x9A, 0x8B, 0x00),
];
const DASHES: [Dash; 4] = [Dash::Solid, Dash::Long, Dash::Mixed, Dash::Dotted];
const MARKERS: [Marker; 6] =
    [Marker::Circle, Marker::Square, Marker::Triangle, Marker::Diamond, Marker::Cross, Marker::Plus];

/// The style of the series with this number. Colour, dash and marker repeat at different periods,
/// so that the first 144 are all different, also without dashes, and neighbours differ in everything.
pub(crate) fn style(index: usize) -> Style {
    let round = index / COLOURS.len();
    Style {
        colour: COLOURS[index % COLOURS.len()],
        dash: DASHES[(index + round) % DASHES.len()],
        marker: MARKERS[(index + index / (COLOURS.len() * 3)) % MARKERS.len()],
    }
}
