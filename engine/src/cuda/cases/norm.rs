//! Embedding, norms and sampling.

use half::bf16;

use super::linear::{Weights, weights};
use super::{Arg, Random, Runner, apart, f, m, p, u};

fn rms(x: &[f64], weight: &[f32]) -> Vec<f64> {
    let scale = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + 1e-6).sqrt();
    x.iter().zip(weight).map(|(x, &w)| x * scale * f64::from(w)).collect()
}

/// The three forms that a kernel writes.
struct Out {
    h32: Vec<f32>,
    h16: Vec<u16>,
    hq: Vec<u8>,
    hd: Vec<f32>,
    pad: usize,
}

impl Out {
    fn new(n: usize, d: usize) -> Out {
        let pad = d.div_ceil(128) * 128;
        let (h32, h16) = (vec![f32::NAN; n * d], vec![0; n * d]);
        Out { h32, h16, hq: vec![0; n * pad], hd: vec![0.0; n * pad / 32], pad }
    }

    fn args(&mut self) -> [Arg<'_>; 5] {
        [m(&mut self.h32), m(&mut self.h16), m(&mut self.hq), m(&mut self.hd), u(self.pad)]
    }

    fn check(&self, expected: &[f64], d: usize) {
        assert!(apart(&self.h32, expected) < 2e-5, "{}", apart(&self.h32, expected));
        let rounded: Vec<u16> = self.h32.iter().map(|&h| bf16::from_f32(h).to_bits()).collect();
        assert!(self.h16 == rounded);
        for (i, &h) in self.h32.iter().enumerate() {
            let (row, i) = (i / d, i % d);
            let place = (i & !63) + ((i >> 2) & 3) * 16 + ((i >> 5) & 1) * 8 + ((i >> 4) & 1) * 4 + (i & 3);
            let scale = self.hd[row * self.pad / 32 + i / 32];
            let number = f32::from(self.hq[row * self.pad + place] as i8) * scale;
            assert!((number - h).abs() <= scale * 0.501);
        }
    }
}

/// Numbers as they are.
fn plain(numbers: &[f32]) -> Weights {
    let quants = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    Weights { quants, scales: Vec::new(), exact: numbers.iter().map(|&x| f64::from(x)).collect() }
}

pub(super) fn embeddings_are_scaled_and_normed(runner: &dyn Runner) {
    let mut random = Random(10);
    for (d, threads) in [(64, 512), (1152, 512), (5376, 1024)] {
        // Once so small that the norm's epsilon is as large as what it is added to.
        let (vocab, tokens, scale) = (9, [3_u32, 0, 8], if d == 64 { 1e-3_f32 } else { 8.5 });
        let norm = random.units(d);
        let full = random.units(vocab * d);
        for kind in ["f32", "bf16", "q8_0", "q4_0"] {
            let w = match kind {
                "f32" => plain(&full),
                _ => weights(runner, kind, vocab, d, &mut random),
            };
            let mut out = Out::new(tokens.len(), d);
            let mut x = vec![f32::NAN; tokens.len() * d];
            let mut args =
                vec![p(&w.quants), p(&w.scales), p(&tokens), f(scale), p(&norm), f(1e-6), m(&mut x)];
            args.extend(out.args());
            args.push(u(d));
            runner.launch(&format!("embed_{kind}"), [3, 1, 1], threads, args);
            let rows: Vec<Vec<f64>> = tokens
                .iter()
                .map(|&t| w.exact[t as usize * d..][..d].iter().map(|x| x * f64::from(scale)).collect())
                .collect();
            assert!(apart(&x, &rows.concat()) < 1e-5);
            out.check(&rows.iter().flat_map(|row| rms(row, &norm)).collect::<Vec<_>>(), d);
        }
    }
}

pub(super) fn the_residual_takes_the_sum_of_all_splits(runner: &dyn Runner) {
    let mut random = Random(11);
    for (d, threads, splits, n) in [(64, 512, 1, 2), (1152, 512, 4, 3), (5376, 1024, 2, 1)] {
        // The epsilon counts here, too.
        let size = if d == 64 { 1e-3 } else { 1.0 };
        let y: Vec<f32> = random.units(splits * n * d).iter().map(|y| y * size).collect();
        let (post, next, x) = (random.units(d), random.units(d), random.units(n * d));
        let mut out = Out::new(n, d);
        let mut residual = x.clone();
        let mut args = vec![p(&y), u(splits), p(&post), p(&next), f(1e-6), m(&mut residual)];
        args.extend(out.args());
        args.push(u(d));
        runner.launch("add_norm", [n as u32, 1, 1], threads, args);
        let mut expected = Vec::new();
        for row in 0..n {
            let sum = |i: usize| (0..splits).map(|s| f64::from(y[(s * n + row) * d + i])).sum::<f64>();
            let added = rms(&(0..d).map(sum).collect::<Vec<_>>(), &post);
            expected.extend(x[row * d..][..d].iter().zip(added).map(|(&x, a)| f64::from(x) + a));
        }
        assert!(apart(&residual, &expected) < 1e-5);
        out.check(&expected.chunks(d).flat_map(|row| rms(row, &next)).collect::<Vec<_>>(), d);

        let rows: Vec<u32> = (0..n as u32).rev().collect();
        let mut out = Out::new(n, d);
        let mut args = vec![p(&residual), p(&rows), p(&next), f(1e-6)];
        args.extend(out.args());
        args.push(u(d));
        runner.launch("norm_rows", [n as u32, 1, 1], threads, args);
        out.check(&expected.chunks(d).rev().flat_map(|row| rms(row, &next)).collect::<Vec<_>>(), d);
    }
}

pub(super) fn the_most_likely_token_is_the_first_of_equals(runner: &dyn Runner) {
    let mut random = Random(12);
    let (n, vocab, blocks) = (6, 3001, 7);
    let mut logits: Vec<f32> = (0..n * vocab).map(|_| random.below(50) as f32 - 60.0).collect();
    logits[3 * vocab..4 * vocab].fill(f32::NEG_INFINITY);
    logits[5 * vocab - 1] = 1.0;
    // What is no number is never the most likely; where nothing else is, the first token is.
    logits[vocab + 5] = f32::NAN;
    logits[2 * vocab..3 * vocab].fill(f32::NAN);
    let (mut part, mut out) = (vec![0_u64; n * blocks], vec![u32::MAX; n]);
    runner.launch("argmax_part", [blocks as u32, n as u32, 1], 256, vec![p(&logits), u(vocab), m(&mut part)]);
    runner.launch("argmax_final", [n as u32, 1, 1], 128, vec![p(&part), u(blocks), m(&mut out)]);
    for (row, &got) in logits.chunks(vocab).zip(&out) {
        let best = (0..vocab).fold(0, |best, i| if row[i] > row[best] { i } else { best });
        assert_eq!(got, best as u32);
    }
}
