//! Text for people: headings and paragraphs of a readable width.

use crate::tables::terminal_width;

/// Widest line of a paragraph.
const WIDTH_MAX: usize = 100;

/// Narrowest; in a smaller terminal lines are broken by the terminal.
const WIDTH_MIN: usize = 40;

/// Text in the making.
pub struct Paragraphs {
    text: String,
    width: usize,
}

impl Paragraphs {
    /// No text yet, as wide as the terminal allows.
    pub fn new() -> Self {
        Paragraphs { text: String::new(), width: width() }
    }

    /// A heading, with a blank line above.
    pub fn heading(&mut self, text: &str) -> &mut Self {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text += text;
        self.text.push('\n');
        self
    }

    /// A paragraph, the first line set off by `first` and the others by as many spaces.
    pub fn paragraph(&mut self, first: &str, text: &str) -> &mut Self {
        let indent = " ".repeat(first.chars().count());
        let mut line = first.to_owned();
        let mut is_empty = true;
        for word in text.split_whitespace() {
            let length = line.chars().count() + 1 + word.chars().count();
            if !is_empty && length > self.width {
                self.text += line.trim_end();
                self.text.push('\n');
                line.clone_from(&indent);
                is_empty = true;
            }
            if !is_empty {
                line.push(' ');
            }
            line += word;
            is_empty = false;
        }
        self.text += line.trim_end();
        self.text.push('\n');
        self
    }

    /// Lines as they are.
    pub fn lines(&mut self, text: &str) -> &mut Self {
        self.text += text;
        self
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }
}

/// Width of paragraphs and tables.
pub fn width() -> usize {
    terminal_width().unwrap_or(WIDTH_MAX).clamp(WIDTH_MIN, WIDTH_MAX)
}
