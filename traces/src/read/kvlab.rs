//! kvlab's own CSV, described in [`crate::read`]; [`crate::write`] writes it.

use super::Rows;
use super::field;
use super::lines::Lines;
use crate::error::{Bad, TraceError, seconds, shortened};
use crate::request::{Image, Prefix, Request, When};

/// The columns, in the order in which they are written.
pub(crate) const COLUMNS: [&str; 8] = [ARRIVAL, WAIT, SESSION, PROMPT, OUTPUT, BLOCK, IDS, IMAGES];
const ARRIVAL: &str = "arrival_s";
const WAIT: &str = "wait_s";
const SESSION: &str = "session";
const PROMPT: &str = "prompt_tokens";
const OUTPUT: &str = "output_tokens";
const BLOCK: &str = "prefix_block";
const IDS: &str = "prefix_ids";
const IMAGES: &str = "images";
const MANDATORY: [&str; 3] = [ARRIVAL, PROMPT, OUTPUT];

pub(super) struct Kvlab {
    /// For each column of the file its place in [`COLUMNS`].
    places: Vec<usize>,
    /// Time and line of the last row with a time.
    last: (u64, u64),
    /// Session of the row before; none before the first.
    session: Option<u64>,
}

impl Kvlab {
    pub(super) fn new(lines: &mut Lines) -> Result<Self, TraceError> {
        let file = lines.file().clone();
        let header = lines.next()?.ok_or(TraceError::Empty { file: file.clone() })?;
        let mut places = Vec::new();
        let mut wrong = None;
        for name in header.split(',').map(str::trim_ascii) {
            let place = COLUMNS.iter().position(|column| *column == name);
            match place.filter(|place| !places.contains(place)) {
                Some(place) => places.push(place),
                None if place.is_some() => {
                    wrong = Some((format!("{name} twice"), "each column once".to_owned()));
                    break;
                }
                None => {
                    wrong = Some((shortened(name), format!("only {}", COLUMNS.join(", "))));
                    break;
                }
            }
        }
        let missing = MANDATORY.into_iter().find(|name| !places.iter().any(|place| COLUMNS[*place] == *name));
        if let (None, Some(name)) = (&wrong, missing) {
            wrong = Some((shortened(header), format!("a column {name}")));
        }
        if let Some((found, expected)) = wrong {
            return Err(TraceError::Columns { file, line: lines.number(), found, expected });
        }
        Ok(Kvlab { places, last: (0, 0), session: None })
    }

    fn request(&self, line: &str) -> Result<Request, Bad> {
        let mut texts = [""; COLUMNS.len()];
        let mut places = self.places.iter();
        for text in line.split(',') {
            let Some(place) = places.next() else {
                let expected = format!("{} columns as in the header", self.places.len());
                return Err(Bad::new("last column", text, expected));
            };
            texts[*place] = text.trim_ascii();
        }
        if let Some(place) = places.next() {
            let expected = format!("{} columns as in the header", self.places.len());
            return Err(Bad::new(COLUMNS[*place], "the end of the line", expected));
        }
        let [arrival, wait, session, prompt, output, block, ids, images] = texts;
        let prompt_tokens = field::tokens(PROMPT, prompt)?;
        let session = match session {
            "" => None,
            text => Some(field::whole(SESSION, text)?),
        };
        Ok(Request {
            id: 0,
            session,
            when: self.when(arrival, wait, session)?,
            prompt_tokens,
            output_tokens: field::tokens(OUTPUT, output)?,
            prefix: self.prefix(block, ids, prompt_tokens)?,
            images: image_list(images, prompt_tokens)?,
        })
    }

    fn when(&self, arrival: &str, wait: &str, session: Option<u64>) -> Result<When, Bad> {
        match (arrival, wait) {
            ("", "") => Err(Bad::new(ARRIVAL, "", "a time, here or in wait_s")),
            (arrival, "") => Ok(When::At { ns: field::time(ARRIVAL, arrival)? }),
            ("", wait) if session.is_some() && session == self.session => {
                Ok(When::After { wait_ns: field::time(WAIT, wait)? })
            }
            ("", wait) => Err(Bad::new(WAIT, wait, "a session, the same as in the row above")),
            (_, wait) => Err(Bad::new(WAIT, wait, "nothing where arrival_s is given")),
        }
    }

    fn prefix(&self, block: &str, ids: &str, prompt_tokens: u32) -> Result<Prefix, Bad> {
        if ids.is_empty() {
            return match block {
                "" => Ok(Prefix::unknown()),
                text => Err(Bad::new(BLOCK, text, "nothing where prefix_ids is empty")),
            };
        }
        let block_tokens = field::tokens(BLOCK, block)?;
        let most = u64::from(prompt_tokens.div_ceil(block_tokens));
        let mut all: Vec<u64> = Vec::new();
        for part in ids.split(';') {
            let (first, last) = match part.split_once("..") {
                Some((first, last)) => (field::whole(IDS, first)?, field::whole(IDS, last)?),
                None => (field::whole(IDS, part)?, field::whole(IDS, part)?),
            };
            if last < first {
                return Err(Bad::new(IDS, part, "first..last with first below last"));
            }
            // Counted before they are made: a range may name any number of ids.
            let count = (all.len() as u64).saturating_add((last - first).saturating_add(1));
            if count > most {
                let expected = format!("at most {most} for {prompt_tokens} tokens");
                return Err(Bad::new(IDS, format!("{count} ids"), expected));
            }
            all.extend(first..=last);
        }
        Ok(Prefix::chained(block_tokens, all))
    }
}

fn image_list(text: &str, prompt_tokens: u32) -> Result<Vec<Image>, Bad> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let mut end = 0u64;
    let image = |pair: &str| {
        let wrong = || Bad::new(IMAGES, pair, "offset:tokens inside the prompt, after the image before it");
        let (at, tokens) = pair.split_once(':').ok_or_else(wrong)?;
        let at = field::digits(at.as_bytes()).ok_or_else(wrong)?;
        let tokens = field::tokens(IMAGES, tokens)?;
        let after = at.saturating_add(u64::from(tokens));
        if at < end || after > u64::from(prompt_tokens) {
            return Err(wrong());
        }
        end = after;
        Ok(Image { at: at as u32, tokens })
    };
    text.split(';').map(image).collect()
}

impl Rows for Kvlab {
    fn next(&mut self, lines: &mut Lines) -> Result<Option<Request>, TraceError> {
        let Some(line) = lines.next()? else {
            return Ok(None);
        };
        let request = self.request(line);
        let number = lines.number();
        let request = request.map_err(|bad| bad.at(lines.file(), number))?;
        if let When::At { ns } = request.when {
            let (last, last_line) = self.last;
            if ns < last {
                return Err(TraceError::OutOfOrder {
                    file: lines.file().clone(),
                    line: number,
                    time: seconds(ns),
                    previous_line: last_line,
                    previous_time: seconds(last),
                });
            }
            self.last = (ns, number);
        }
        self.session = request.session;
        Ok(Some(request))
    }
}
