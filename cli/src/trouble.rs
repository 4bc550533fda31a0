//! Kinds of trouble: what the user gave is wrong (exit code 2), the run failed (1), or results are as they
//! were not to be (3).

use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use crate::experiment::Shortage;

/// An error with the exit code it leads to.
#[derive(Debug)]
pub enum Trouble {
    /// Usage or input is wrong; the text says where and what was expected.
    Usage(String),
    /// The model does not fit where it is to run: what is short, and the text for people.
    NoRoom(Shortage, String),
    /// The run failed.
    Run(anyhow::Error),
    /// A condition of `--fail-if` is met.
    Met(String),
    /// No setting keeps the objective of an advice.
    Unmet(String),
}

impl Trouble {
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Trouble::Usage(_) | Trouble::NoRoom(..) => 2,
            Trouble::Run(_) => 1,
            Trouble::Met(_) | Trouble::Unmet(_) => 3,
        }
    }

    /// The text for people.
    pub fn text(&self) -> String {
        match self {
            Trouble::Usage(text) | Trouble::NoRoom(_, text) if text.starts_with("error") => text.clone(),
            Trouble::Usage(text) | Trouble::NoRoom(_, text) => format!("error: {text}"),
            Trouble::Run(error) => format!("error: {error:#}"),
            Trouble::Met(text) => format!("fail-if: {text}"),
            Trouble::Unmet(text) => format!("advise: {text}"),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Trouble::Run(error.into())
    }
}

/// Trouble that the user can mend.
pub fn usage(text: impl ToString) -> Trouble {
    Trouble::Usage(text.to_string())
}

/// A text that the user wrote, and what it is called.
#[derive(Clone, Debug)]
pub struct Source(Arc<(String, String)>);

impl Source {
    /// A file or a command line.
    pub fn new(name: String, text: String) -> Self {
        Source(Arc::new((name, text)))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.0
    }

    /// A message with the lines concerned and a caret under them.
    pub fn point(&self, at: Range<usize>, message: &str) -> String {
        let (name, text) = &*self.0;
        let end = at.end.min(text.len());
        let at = at.start.min(end)..end;
        let (title, label) = message.split_once("; ").unwrap_or((message, ""));
        let annotation = AnnotationKind::Primary.span(at).label(label);
        let snippet = Snippet::source(text.as_str()).path(name.as_str()).annotation(annotation);
        let report = [Level::ERROR.primary_title(title).element(snippet)];
        Renderer::plain().render(&report).to_string()
    }
}
