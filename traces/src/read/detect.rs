//! Tells the format of a trace from its first line.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::lines::Lines;
use super::{Format, kvlab};
use crate::error::{TraceError, shortened};

/// The fields that tell the JSON formats apart.
#[derive(Deserialize)]
struct Probe {
    requests: Option<IgnoredAny>,
    input_length: Option<IgnoredAny>,
    session_id: Option<IgnoredAny>,
}

/// Looks at the first line that is not blank, and leaves it to be read again.
pub(super) fn format(lines: &mut Lines) -> Result<Format, TraceError> {
    let file = lines.file().clone();
    let Some(line) = lines.next()? else {
        return Err(TraceError::Empty { file });
    };
    let Some(format) = of_line(line.trim_ascii()) else {
        return Err(TraceError::UnknownFormat {
            file,
            found: shortened(line),
            expected: Format::ALL.map(Format::name).join(", "),
        });
    };
    lines.hold();
    Ok(format)
}

fn of_line(line: &str) -> Option<Format> {
    if line.starts_with('{') {
        let probe: Probe = serde_json::from_str(line).ok()?;
        return match probe {
            Probe { requests: Some(_), .. } => Some(Format::Agents),
            Probe { input_length: Some(_), session_id: Some(_), .. } => Some(Format::RagPulse),
            Probe { input_length: Some(_), .. } => Some(Format::Mooncake),
            _ => None,
        };
    }
    let mut columns = line.split(',').map(str::trim_ascii);
    if line.starts_with("TIMESTAMP,") {
        Some(Format::Azure)
    } else if columns.clone().any(|column| column == "num_prefill_tokens") {
        Some(Format::Lengths)
    } else if columns.any(|column| kvlab::COLUMNS.contains(&column)) {
        Some(Format::Kvlab)
    } else {
        None
    }
}
