//! Cell maps side by side: what each policy makes of the same memory.

use super::Frame;
use super::cells::{Cells, legend, panel, pattern_id};
use super::lines::no_data;
use super::pieces::caption;
use super::scene::{Anchor, SMALL, Scene, room, shorten};
use super::style::INK;
use crate::row::CellMap;

/// Height of a map with its name and axis, in pixels.
const PITCH: f64 = 262.0;

/// A panel per map, three side by side, under one legend; about so many bytes at most for all cells together. At
/// least as high as the maps need.
pub fn cell_maps(frame: &Frame, maps: &[CellMap], bytes_max: usize) -> String {
    let (width, least) = frame.size();
    let beside = (f64::from(width) / 390.0).clamp(1.0, 4.0).min(maps.len().max(1) as f64) as usize;
    let lines = maps.len().div_ceil(beside).max(1);
    let height = least.max((60.0 + PITCH * lines as f64).min(8000.0) as u32);
    let mut scene = Scene::new(width, height, &frame.title);
    let mut cells: Vec<Cells> = maps.iter().map(Cells::new).collect();
    let hatch = maps.first().map_or_else(|| "hatch".to_owned(), pattern_id);
    let top = legend(&mut scene, 34.0, &hatch, cells.iter().any(Cells::has_foreign));
    let each = f64::from(width) / beside as f64;
    for (i, (map, cells)) in maps.iter().zip(&mut cells).enumerate() {
        let (left, y) = (each * (i % beside) as f64, top + PITCH * (i / beside) as f64);
        let panel = panel(map, cells, (left, left + each - 18.0), (y + 46.0, y + PITCH - 42.0), 4);
        let name = shorten(map.name(), room(each - 70.0));
        scene.text((panel.left, y + 14.0), &name, SMALL, INK, Anchor::Start, true);
        caption(&mut scene, &panel, cells);
        if cells.columns.is_empty() || cells.rows == 0 {
            no_data(&mut scene, &panel);
        }
        // Several maps may have one name, and an id stands in a page once.
        let hatch = format!("{}-{i}", pattern_id(map));
        scene.areas += &cells.picture_within(&panel, &hatch, bytes_max / maps.len().max(1));
        scene.panels.push(panel);
    }
    scene.draw()
}
