//! Any bytes: no panic, no error, the same answer however they arrive, and bounded memory.

#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::io::{self, Read};

use logs::{EVENTS, Kind, Report, Scan, diagnose, explain};
use proptest::prelude::*;
use traces::{ReadOptions, Reader, When, write_csv};

/// Reads so many bytes at a time.
struct Drip<'a>(&'a [u8], usize);

impl Read for Drip<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.1.min(self.0.len()).min(out.len());
        out[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        Ok(count)
    }
}

fn scan(bytes: &[u8], drip: usize) -> Report {
    let mut scan = Scan::with_requests();
    scan.read(Drip(bytes, drip)).unwrap();
    scan.finish()
}

fn text(report: &Report) -> String {
    format!("{report:?} {:?}", diagnose(report))
}

/// Pieces of real lines, and what breaks them.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let texts: Vec<String> =
        EVENTS.iter().flat_map(|event| event.texts).map(|text| (*text).to_owned()).collect();
    let fields = [
        "\n",
        "\r\n",
        " ",
        "\0",
        "\x1b[97;42m",
        "time=2025-04-20T10:11:12.123+02:00 ",
        "time=9999-12-31T23:59:60Z",
        "[GIN] 2025/04/20 - 10:11:12 | 200 | 1h24m39s | ::1 | POST \"/api/chat\"",
        "Feb 29 10:11:12 host ",
        "-009999-01-01T00:00:00Z",
        "9999999.59.999.999 I ",
        "timestamp=9999999999",
        "prompt=4294967295",
        "new=4294967295",
        "prompt=99999999999999999999",
        "| task 18446744073709551615 |",
        " = 1e308 ms / 1 tokens",
        " =   99999999999.99 ms / 4294967295 tokens",
        "--parallel 0",
        "--parallel 4294967295 --ctx-size 1",
        "--ctx-size 4294967295 --batch-size 4294967295",
        "layers.model=63",
        "(length: 4294967295)",
        "(length: 0)",
        "GPULayers:27",
        "{\"log\":\"",
        "\"}",
        "| 503 | 0s |",
        "Dec 31 23:59:59 ",
        "Jan  1 00:00:00 ",
    ];
    prop_oneof![
        4 => prop::sample::select(texts).prop_map(String::into_bytes),
        6 => prop::sample::select(fields.to_vec()).prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut scan = Scan::with_requests();
        // Only what looks like gzip may be refused.
        prop_assert!(scan.read(&bytes[..]).is_ok() || bytes.starts_with(&[0x1f, 0x8b]));
        diagnose(&scan.finish());
    }

    #[test]
    fn broken_lines_are_read_the_same_however_they_arrive(
        pieces in prop::collection::vec(piece(), 0..120),
        drip in 1..300usize,
    ) {
        let mut bytes = b" ".to_vec();
        bytes.extend(pieces.concat());
        let report = scan(&bytes, usize::MAX);
        prop_assert_eq!(text(&report), text(&scan(&bytes, drip)));
        let lines = bytes.split(|byte| *byte == b'\n').count() - usize::from(bytes.ends_with(b"\n"));
        prop_assert_eq!(report.lines, lines as u64);
        explain(&String::from_utf8_lossy(&bytes));
        let recovered = report.requests.unwrap();
        let times = recovered.requests.iter().map(|request| match request.when {
            When::At { ns } => ns,
            When::After { .. } => u64::MAX,
        });
        prop_assert!(times.is_sorted());
        if !recovered.requests.is_empty() {
            let mut csv = Vec::new();
            write_csv(recovered.requests.iter().cloned(), &mut csv).unwrap();
            let again = Reader::from_read(io::Cursor::new(csv), "written", &ReadOptions::default());
            let again: Result<Vec<_>, _> = again.unwrap().collect();
            prop_assert_eq!(again.unwrap(), recovered.requests);
        }
    }

    /// Lines of one event each among others, long enough that blocks end everywhere.
    #[test]
    fn every_line_counts_with_its_time(
        lines in prop::collection::vec((0..6usize, 0..90_000usize), 1..80),
    ) {
        let mut log = String::from("time=2025-04-20T10:00:00Z level=INFO msg=begin\n");
        let mut second = 0i64;
        let mut expected = Vec::new();
        for (which, filling) in lines {
            let filling = "x".repeat(filling);
            match which {
                0 => {
                    second += 1;
                    log += &format!("time=2025-04-20T10:{:02}:{:02}Z msg={filling}\n", second / 60, second % 60);
                }
                1 => {
                    expected.push(second);
                    log += &format!("{filling} defragmenting kv cache\n");
                }
                2 => {
                    second += 1;
                    expected.push(second);
                    log += &format!(
                        "time=2025-04-20T10:{:02}:{:02}Z msg=\"defragmenting kv cache\" {filling}\n",
                        second / 60, second % 60
                    );
                }
                3 => log += "\n",
                _ => log += &format!("{filling}\n"),
            }
        }
        let report = scan(log.as_bytes(), usize::MAX);
        prop_assert_eq!(report.count(Kind::Defrag), expected.len() as u64);
        let start = report.span.unwrap().0.ns;
        if let Some(tally) = report.tallies.first() {
            let of = |moment: Option<logs::Moment>| (moment.unwrap().ns - start) / 1_000_000_000;
            prop_assert_eq!(of(tally.first), expected[0]);
            prop_assert_eq!(of(tally.last), expected[expected.len() - 1]);
            let minute = |second: &i64| second / 60;
            let most = expected.chunk_by(|a, b| minute(a) == minute(b)).map(<[i64]>::len).max().unwrap();
            prop_assert_eq!(tally.busiest.unwrap().1, most as u64);
        }
        prop_assert_eq!((report.span.unwrap().1.ns - start) / 1_000_000_000, second);
    }
}

/// A log without end, of lines that matter, lines that do not, and lines without end.
struct Endless {
    block: Vec<u8>,
    at: usize,
    left: usize,
}

impl Read for Endless {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = out.len().min(self.left).min(self.block.len() - self.at);
        out[..count].copy_from_slice(&self.block[self.at..self.at + count]);
        self.at = (self.at + count) % self.block.len();
        self.left -= count;
        Ok(count)
    }
}

fn resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn memory_does_not_grow_with_the_log() {
    let mut block = Vec::new();
    for n in 0..20_000 {
        let (minute, second) = (n / 60 % 60, n % 60);
        block.extend(
            format!("time=2025-04-20T10:{minute:02}:{second:02}Z msg=\"loading cache slot\" prompt={n}\n")
                .bytes(),
        );
        block.extend(format!("slot launch_slot_: id 0 | task {n} | processing task\n").bytes());
        block.extend(format!("could not find a kv cache slot (length: {n})\n").bytes());
        block.extend(format!("Listening on (version 0.{n}.1)\n").bytes());
    }
    block.extend(std::iter::repeat_n(b'x', 5 << 20));
    let read = |left: usize| {
        let mut scan = Scan::new();
        scan.read(Endless { block: block.clone(), at: 0, left }).unwrap();
        scan.finish()
    };
    read(16 << 20);
    let Some(before) = resident_kib() else { return };
    let report = read(160 << 20);
    let after = resident_kib().unwrap_or(before);
    assert!(report.bytes > 100 << 20 && report.tallies.len() > 3);
    // The copy of the block is about 10 MiB.
    assert!(after - before < 16 << 10, "{} KiB more", after - before);
}
