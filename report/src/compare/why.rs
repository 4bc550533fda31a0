//! Why a change of settings did what it did, by rule, from the settings and cells of two rows.
//!
//! The rules restate how Ollama 0.6.6 sizes and trims its sliding-window cache (kvcache/causal.go):
//! `slots * window + batch` cells, and only the sequences of the batch are trimmed to their window
//! before it is placed. Where a row does not have that form, its rule says nothing.

use super::memory::needs;
use crate::number::{fixed, thousands};
use crate::row::Summary;

/// Policy whose sliding-window cache overflows as described above.
const FAILING: &str = "ollama-0.6.6";
/// The same with every sequence trimmed before a batch is placed.
const TRIMMING: &str = "ollama-0.12.4";
/// Tokens of an image of Gemma 3, all in one batch: 256 and four around them.
const IMAGE_TOKENS: u64 = 260;
/// Cells are rounded up to one of these (with flash attention to the larger one).
const PADS: [u64; 3] = [1, 32, 256];

/// One sentence or two per setting that explains something; none where no rule applies.
/// `cuts_fewer`: fewer prompts are shown to be cut to the context.
pub(super) fn why(row: &Summary, reference: &Summary, cuts_fewer: bool) -> Vec<String> {
    if !row.load_error.is_empty() {
        return does_not_start(row, reference).into_iter().collect();
    }
    let mut said = Vec::new();
    let base = |row: &Summary| base(&row.policy).to_owned();
    let (own, other) = (base(row), base(reference));
    match own.as_str() {
        TRIMMING if other == FAILING => said.push(
            "It trims every sequence to its window before a batch is placed, also those that are not in the \
             batch: num_parallel * window + num_batch cells are then always enough."
                .to_owned(),
        ),
        "paged" if other != "paged" => said.push(
            "Blocks may lie anywhere, so a batch needs no run of neighbouring cells, and a sequence holds no \
             more cells than it reads, to a block."
                .to_owned(),
        ),
        FAILING if other == FAILING => said.extend(slots(row, reference, cuts_fewer)),
        _ => {}
    }
    said.extend(kv_type(row, reference));
    said.extend(devices(row, reference));
    said
}

/// The policy without its options.
fn base(policy: &str) -> &str {
    let is_option = |c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '.');
    policy.split(is_option).next().unwrap_or(policy)
}

/// Cells of a layer class in `local=2560;global=8192`.
fn cells(row: &Summary, class: &str) -> Option<u64> {
    let part = row.cells.split(';').find_map(|part| part.split_once('=').filter(|(name, _)| *name == class));
    part?.1.parse().ok()
}

/// Whether `cells` is this many, rounded up in one of the ways in use.
fn is_padded(cells: u64, exact: u64) -> bool {
    PADS.iter().any(|pad| exact.checked_next_multiple_of(*pad) == Some(cells))
}

/// Window and cells of the local class, where its cells are `slots * window + batch`.
fn window(row: &Summary) -> Option<(u64, u64)> {
    let local = cells(row, "local")?;
    let (slots, batch) = (u64::from(row.num_parallel), u64::from(row.num_batch));
    // It may as well be a whole short context for every sequence: then nothing is known.
    if is_padded(local, slots * u64::from(row.num_ctx)) {
        return None;
    }
    let windows = (5..=16).map(|power| 1_u64 << power);
    let found: Vec<u64> = windows.filter(|w| slots > 0 && is_padded(local, slots * w + batch)).collect();
    match found[..] {
        [only] => Some((only, local)),
        _ => None,
    }
}

/// The rules about the sizes of the sliding-window cache.
fn slots(row: &Summary, reference: &Summary, cuts_fewer: bool) -> Vec<String> {
    let Some((window, before)) = window(reference) else {
        return Vec::new();
    };
    let Some(after) = cells(row, "local") else {
        return Vec::new();
    };
    let of = |row: &Summary| (u64::from(row.num_parallel), u64::from(row.num_batch), u64::from(row.num_ctx));
    let ((n, batch, ctx), (n_before, batch_before, ctx_before)) = (of(row), of(reference));
    if ctx < window {
        return match is_padded(after, n * ctx) {
            true => vec![format!(
                "A context of {} tokens is shorter than the window of {}: the cache has num_parallel * num_ctx = \
                 {} cells, a whole context for every sequence.",
                text(ctx),
                text(window),
                text(n * ctx)
            )],
            false => Vec::new(),
        };
    }
    if n > 1 && is_padded(after, n * (window + batch)) && after != before {
        return vec![format!(
            "The sliding-window cache has num_parallel * (window + num_batch) = {} * ({} + {}) = {} cells: every \
             sequence has room for a whole batch beside its window.",
            text(n),
            text(window),
            text(batch),
            text(n * (window + batch))
        )];
    }
    if !is_padded(after, n * window + batch) {
        return Vec::new();
    }
    let mut said = Vec::new();
    if ctx != ctx_before {
        let mut sentence = format!(
            "The cache that overflows is the sliding-window one: {}. num_ctx is not in it.",
            formula(n, window, batch, after)
        );
        if let (Some(old), Some(new)) = (cells(reference, "global"), cells(row, "global"))
            && old != new
            && n == n_before
        {
            let (old, new) = (text(old), text(new));
            sentence += &format!(" It changes the global class only: {old} to {new} cells.");
        }
        if ctx > ctx_before && cuts_fewer {
            sentence += " What it does change: fewer prompts are cut, and a cut one is computed from its start \
                         again, which makes two long prompts at once more likely.";
        }
        said.push(sentence);
    }
    said.extend(parallel((n, n_before), window, batch, after));
    if batch != batch_before {
        said.extend(batches(n, (batch, batch_before), window, ctx, (after, before)));
    }
    if row.model.starts_with("gemma3") && batch < IMAGE_TOKENS && batch_before >= IMAGE_TOKENS {
        let even = if n == 1 { ", even with one sequence" } else { "" };
        said.push(format!(
            "An image is {IMAGE_TOKENS} tokens that must be in one batch: it no longer fits num_batch = {batch}, so \
             its batch is larger than the one that the cache was sized for{even}."
        ));
    }
    said
}

/// `num_parallel * window + num_batch = 2 * 1,024 + 512 = 2,560 cells`.
fn formula(n: u64, window: u64, batch: u64, cells: u64) -> String {
    let exact = n * window + batch;
    let padded = if exact == cells { String::new() } else { format!(", rounded up to {}", text(cells)) };
    format!(
        "num_parallel * window + num_batch = {} * {} + {} = {}{padded} cells",
        text(n),
        text(window),
        text(batch),
        text(exact)
    )
}

fn parallel((n, n_before): (u64, u64), window: u64, batch: u64, cells: u64) -> Option<String> {
    if n == n_before || n_before == 0 {
        return None;
    }
    if n == 1 {
        return Some(format!(
            "With one slot no idle sequence holds cells: the only one is trimmed to its window before every batch, \
             and window + num_batch = {} + {} always fit into {} cells.",
            text(window),
            text(batch),
            text(cells)
        ));
    }
    let how = if n < n_before { "fewer" } else { "it takes more" };
    let end = if n < n_before { "use these up" } else { "to use these up, and enough clients can send them" };
    Some(format!(
        "Every slot brings its own window of {} cells and no more: all share the num_batch = {} cells beside \
         the windows. With {} slots instead of {}, {how} long prompts at once {end}.",
        text(window),
        text(batch),
        text(n),
        text(n_before)
    ))
}

/// What another batch does to the cells, and to the length at which two prompts overflow them.
fn batches(
    n: u64,
    (batch, batch_before): (u64, u64),
    window: u64,
    ctx: u64,
    (after, before): (u64, u64),
) -> Option<String> {
    if batch == 0 || batch_before == 0 {
        return None;
    }
    let mut said = String::new();
    if i128::from(before) - i128::from(after) == i128::from(batch_before) - i128::from(batch) {
        let verb = if batch < batch_before { "shrinks" } else { "grows" };
        said = format!(
            "The cache {verb} by as much as the batch, from {} to {} cells. ",
            text(before),
            text(after)
        );
    }
    if n > 1 {
        // Two prompts that take turns overflow it once both have a full batch after a full window.
        let least = |batch: u64| (window.div_ceil(batch) + 1) * batch;
        let who = if n == 2 { "Two prompts at once" } else { "Prompts that share it" };
        let reached = if least(batch) > ctx { ", which no prompt can have" } else { "" };
        said += &format!(
            "{who} overflow it from (ceil({} / {}) + 1) * {} = {} tokens each on{reached}; with batches of {} it \
             takes {}.",
            text(window),
            text(batch),
            text(batch),
            text(least(batch)),
            text(batch_before),
            text(least(batch_before))
        );
    }
    let said = said.trim_end();
    (!said.is_empty()).then(|| said.to_owned())
}

fn has_same_cells(row: &Summary, reference: &Summary) -> bool {
    let of = |row: &Summary| (row.cells.clone(), row.policy.clone(), row.num_parallel, row.num_batch);
    !row.cells.is_empty() && of(row) == of(reference)
}

/// Bytes per number, for the types that are known.
fn size(kv_type: &str) -> Option<f64> {
    [("f32", 4.0), ("f16", 2.0), ("bf16", 2.0), ("q8_0", 1.0625), ("q4_0", 0.5625)]
        .into_iter()
        .find_map(|(name, bytes)| (name == kv_type).then_some(bytes))
}

fn kv_type(row: &Summary, reference: &Summary) -> Option<String> {
    let (new, old) = (size(&row.kv_cache_type)?, size(&reference.kv_cache_type)?);
    if new == old || row.cells.is_empty() || row.cells != reference.cells {
        return None;
    }
    let word = if new < old { "fewer" } else { "more" };
    Some(format!(
        "{} takes {word} bytes per cell than {}, but the number of cells is the same: {}.",
        row.kv_cache_type,
        reference.kv_cache_type,
        row.cells.replace(';', ", ")
    ))
}

fn devices(row: &Summary, reference: &Summary) -> Option<String> {
    let mut said = String::new();
    if is_placed_alike(row, reference) {
        let used: Vec<String> = needs(&row.memory_gib).into_iter().map(|need| need.device).collect();
        return Some(match row.gpu == reference.gpu {
            true => "Nothing is allocated otherwise: every cell and byte is where it was.".to_owned(),
            false => format!("The model is on {} either way.", used.join(" and ")),
        });
    }
    if reference.spilled_gib == 0.0 && row.spilled_gib > 0.0 {
        let short = short_devices(row);
        said = format!("{short} The rest lies in system memory, and every step waits for it to cross PCIe. ");
    }
    if reference.spilled_gib > 0.0 && row.spilled_gib == 0.0 {
        said = format!(
            "Nothing lies in system memory any more, {} GiB before, so no step waits for PCIe. ",
            fixed(reference.spilled_gib, 1)
        );
    }
    let has_moved = !said.is_empty() || row.gpu != reference.gpu;
    if has_moved && has_same_cells(row, reference) {
        said += "The number of cells is the same, so what overflows is not touched.";
    }
    let said = said.trim_end();
    (!said.is_empty()).then(|| said.to_owned())
}

/// Whether only settings differ that leave every cell and every byte where it was.
fn is_placed_alike(row: &Summary, reference: &Summary) -> bool {
    let of = |row: &Summary| {
        let numbers = (row.num_ctx, row.num_parallel, row.num_batch);
        (numbers, row.policy.clone(), row.cells.clone(), row.memory_gib.clone(), row.kv_cache_type.clone())
    };
    !row.memory_gib.is_empty() && row.model == reference.model && of(row) == of(reference)
}

/// `gtx1660super needs 7.3 GiB, 5.1 are free.` for every device that has too little.
fn short_devices(row: &Summary) -> String {
    let short = needs(&row.memory_gib).into_iter().filter_map(|need| {
        let there = need.there.filter(|&there| need.needed > there)?;
        Some(format!("{} needs {} GiB, {} are free.", need.device, fixed(need.needed, 1), fixed(there, 1)))
    });
    short.collect::<Vec<_>>().join(" ")
}

fn does_not_start(row: &Summary, reference: &Summary) -> Option<String> {
    if reference.spilled_gib == 0.0 {
        return Some(short_devices(row)).filter(|said| !said.is_empty());
    }
    (reference.load_error.is_empty() && row.spilled_gib == 0.0).then(|| {
        format!(
            "The reference keeps {} GiB in system memory; where that is not allowed they have no place, and the \
             model cannot be loaded.",
            fixed(reference.spilled_gib, 1)
        )
    })
}

fn text(count: u64) -> String {
    thousands(&count.to_string())
}
