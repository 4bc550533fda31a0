//! Cell maps in files: a text per moment, runs of equal ranges in it, what has not changed said in one mark.
//!
//! `96f 12l17 4w17 80=` are 96 free ranges, 12 with tokens of request 17, 4 held for it and not used, and 80 as
//! the moment before had them. `c` is kept for reuse, `x7` is held by request 7 with K and V of another in it.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::row::{CellMap, Held, MapColumn};

/// Ranges of a moment, and moments of a map, that a file may have.
const SIDE_MAX: u32 = 4096;

/// A map as JSON has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MapText {
    cells: u32,
    class: String,
    columns: Vec<(u64, String)>,
    policy: String,
    ranges: u32,
    row: String,
}

/// A map that is not one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapTextError {
    /// It has more than a picture could show.
    #[error("a map of {ranges} ranges and {columns} moments; expected at most {SIDE_MAX} of either")]
    Size {
        /// Ranges per moment.
        ranges: u32,
        /// Moments.
        columns: usize,
    },
    /// A piece is not understood, or there are too many ranges.
    #[error(
        "moment {column}: {piece:?}; expected runs as 96f, 8c, 12l17, 4w17, 1x17 or 80=, {ranges} ranges in all"
    )]
    Piece {
        /// The moment, from 0.
        column: usize,
        /// What stands there.
        piece: String,
        /// Ranges that a moment may have.
        ranges: u32,
    },
}

impl From<CellMap> for MapText {
    fn from(map: CellMap) -> MapText {
        let mut before: &[Held] = &[];
        let mut columns = Vec::with_capacity(map.columns.len());
        for column in &map.columns {
            columns.push((column.time_ns, text(before, &column.ranges)));
            before = &column.ranges;
        }
        MapText {
            cells: map.cells,
            class: map.class,
            columns,
            policy: map.policy,
            ranges: map.rows,
            row: map.row,
        }
    }
}

fn text(before: &[Held], ranges: &[Held]) -> String {
    let mut out = String::new();
    let mut at = 0;
    while at < ranges.len() {
        let rest = &ranges[at..];
        let unchanged =
            before.get(at..).unwrap_or_default().iter().zip(rest).take_while(|(a, b)| a == b).count();
        let alike = rest.iter().take_while(|held| **held == rest[0]).count();
        if at > 0 {
            out.push(' ');
        }
        // Writing to a string cannot fail.
        let _ = match rest[0] {
            _ if unchanged >= alike => write!(out, "{unchanged}="),
            Held::Free => write!(out, "{alike}f"),
            Held::Cached => write!(out, "{alike}c"),
            Held::Live(request) => write!(out, "{alike}l{request}"),
            Held::Wasted(request) => write!(out, "{alike}w{request}"),
            Held::Foreign(request) => write!(out, "{alike}x{request}"),
        };
        at += unchanged.max(alike);
    }
    out
}

impl TryFrom<MapText> for CellMap {
    type Error = MapTextError;

    fn try_from(text: MapText) -> Result<CellMap, MapTextError> {
        if text.ranges > SIDE_MAX || text.columns.len() > SIDE_MAX as usize {
            return Err(MapTextError::Size { ranges: text.ranges, columns: text.columns.len() });
        }
        let mut columns: Vec<MapColumn> = Vec::with_capacity(text.columns.len());
        for (index, (time_ns, runs)) in text.columns.into_iter().enumerate() {
            let mut ranges: Vec<Held> = Vec::new();
            for piece in runs.split_whitespace() {
                let before = columns.last().map_or(&[][..], |column| &column.ranges);
                let added = run(piece, before.get(ranges.len()..).unwrap_or_default(), text.ranges);
                let added = added.filter(|added| ranges.len() + added.len() <= text.ranges as usize);
                let wrong =
                    || MapTextError::Piece { column: index, piece: piece.to_owned(), ranges: text.ranges };
                ranges.extend(added.ok_or_else(wrong)?);
            }
            columns.push(MapColumn { time_ns, ranges });
        }
        let MapText { cells, class, policy, ranges: rows, row, .. } = text;
        Ok(CellMap { row, policy, class, cells, rows, columns })
    }
}

/// The ranges of a piece; `before` is what the last moment had from there on.
fn run(piece: &str, before: &[Held], most: u32) -> Option<Vec<Held>> {
    let digits = piece.find(|c: char| !c.is_ascii_digit())?;
    let count: usize = piece[..digits].parse().ok().filter(|count| *count <= most as usize)?;
    let (kind, request) = piece[digits..].split_at_checked(1)?;
    let held = match (kind, request) {
        ("=", "") => return before.get(..count).map(<[Held]>::to_vec),
        ("f", "") => Held::Free,
        ("c", "") => Held::Cached,
        ("l", request) => Held::Live(request.parse().ok()?),
        ("w", request) => Held::Wasted(request.parse().ok()?),
        ("x", request) => Held::Foreign(request.parse().ok()?),
        _ => return None,
    };
    Some(vec![held; count])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn held() -> impl Strategy<Value = Held> {
        prop_oneof![
            Just(Held::Free),
            Just(Held::Cached),
            (0_u64..4).prop_map(Held::Live),
            (0_u64..4).prop_map(Held::Wasted),
            any::<u64>().prop_map(Held::Foreign),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_map_comes_back_as_it_was(
            columns in prop::collection::vec((any::<u64>(), prop::collection::vec(held(), 0..12)), 0..12),
            copies in prop::collection::vec(any::<bool>(), 12),
        ) {
            let mut columns: Vec<MapColumn> =
                columns.into_iter().map(|(time_ns, ranges)| MapColumn { time_ns, ranges }).collect();
            // Neighbours that are alike are the rule in a cache.
            for at in 1..columns.len() {
                if copies[at] {
                    let (before, after) = columns.split_at_mut(at);
                    for (a, b) in before[at - 1].ranges.iter().zip(after[0].ranges.iter_mut()).skip(2) {
                        *b = *a;
                    }
                }
            }
            let map = CellMap {
                row: "a".to_owned(), policy: "b".to_owned(), class: "c".to_owned(), cells: 99, rows: 12, columns,
            };
            let json = serde_json::to_string(&map).expect("a map is JSON");
            prop_assert_eq!(serde_json::from_str::<CellMap>(&json).expect("and comes back"), map);
        }

        #[test]
        fn any_text_is_a_map_or_refused(text in "[0-9flwxc= ]{0,40}", ranges in any::<u32>()) {
            let text = MapText {
                cells: 1, class: String::new(), columns: vec![(0, text.clone()), (1, text)], policy: String::new(),
                ranges, row: String::new(),
            };
            if let Ok(map) = CellMap::try_from(text) {
                prop_assert!(map.columns.iter().all(|column| column.ranges.len() <= ranges as usize));
            }
        }
    }

    #[test]
    fn what_has_not_changed_is_short() {
        let ranges: Vec<Held> = (0..96).map(|range| Held::Live(range / 3)).collect();
        let first = text(&[], &ranges);
        assert!(first.starts_with("3l0 3l1 3l2 "), "{first}");
        let mut next = ranges.clone();
        next[40] = Held::Free;
        assert_eq!(text(&ranges, &next), "40= 1f 55=");
        assert_eq!(text(&ranges, &ranges), "96=");
    }

    #[test]
    fn what_is_no_map_is_refused_with_its_place() {
        let map = |ranges: u32, column: &str| {
            format!(
                "[{{\"cells\":9,\"class\":\"\",\"columns\":[[0,\"{column}\"]],\"policy\":\"\",\"ranges\":{ranges},\"row\":\"\"}}]"
            )
        };
        for (ranges, column, words) in [
            (8, "9f", "moment 0: \"9f\""),
            (8, "8f 1f", "\"1f\""),
            (8, "3=", "\"3=\""),
            (8, "f", "\"f\""),
            (8, "4", "\"4\""),
            (8, "4f2", "\"4f2\""),
            (8, "4l", "\"4l\""),
            (8, "4q", "\"4q\""),
            (8, "99999999999999999999f", "9f\""),
            (5000, "1f", "5000 ranges"),
        ] {
            let error =
                serde_json::from_str::<Vec<CellMap>>(&map(ranges, column)).expect_err(column).to_string();
            assert!(error.contains(words) && error.contains("line 1"), "{column}: {error}");
        }
    }
}
