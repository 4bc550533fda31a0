//! A log as blocks of whole lines: plain or gzip, UTF-8 or the UTF-16 of Windows, in bounded memory.

use std::io::{self, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use memchr::{memchr, memrchr};

/// Bytes of the buffer, and of the longest line that is looked at in full.
pub(crate) const BLOCK_BYTES: usize = 1 << 20;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const UTF16_LITTLE: [u8; 2] = [0xff, 0xfe];
const UTF16_BIG: [u8; 2] = [0xfe, 0xff];

/// Undoes gzip and UTF-16, told from the first bytes.
pub(crate) fn plain<'a>(read: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let (head, read) = peek(read)?;
    if head != GZIP_MAGIC {
        return decoded(head, read);
    }
    let (head, read) = peek(MultiGzDecoder::new(BufReader::with_capacity(64 << 10, read)))?;
    decoded(head, read)
}

fn decoded<'a>(head: Vec<u8>, read: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(if head == UTF16_LITTLE {
        Box::new(Utf16::new(read, u16::from_le_bytes))
    } else if head == UTF16_BIG {
        Box::new(Utf16::new(read, u16::from_be_bytes))
    } else {
        Box::new(read)
    })
}

fn peek<'a>(mut read: impl Read + 'a) -> io::Result<(Vec<u8>, impl Read + 'a)> {
    let mut head = Vec::with_capacity(2);
    read.by_ref().take(2).read_to_end(&mut head)?;
    Ok((head.clone(), Cursor::new(head).chain(read)))
}

/// UTF-16 with a byte order mark, as the shell of Windows writes it, turned into UTF-8.
struct Utf16<R> {
    read: R,
    unit: fn([u8; 2]) -> u16,
    bytes: Vec<u8>,
    high: Option<u16>,
    text: Vec<u8>,
    at: usize,
}

impl<R: Read> Utf16<R> {
    fn new(read: R, unit: fn([u8; 2]) -> u16) -> Self {
        Utf16 { read, unit, bytes: Vec::new(), high: None, text: Vec::new(), at: 0 }
    }

    fn fill(&mut self) -> io::Result<()> {
        self.text.clear();
        self.at = 0;
        self.bytes.clear();
        self.read.by_ref().take(32 << 10).read_to_end(&mut self.bytes)?;
        let units = self
            .high
            .take()
            .into_iter()
            .chain(self.bytes.chunks_exact(2).map(|pair| (self.unit)([pair[0], pair[1]])));
        let mut units: Vec<u16> = units.collect();
        // The first half of a pair waits for the second, unless this is the end.
        if !self.bytes.is_empty() && units.last().is_some_and(|unit| (0xd800..0xdc00).contains(unit)) {
            self.high = units.pop();
        }
        for letter in char::decode_utf16(units) {
            let letter = letter.unwrap_or(char::REPLACEMENT_CHARACTER);
            self.text.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
        }
        Ok(())
    }
}

impl<R: Read> Read for Utf16<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.text.len() {
            self.fill()?;
            if self.bytes.is_empty() && self.text.is_empty() {
                return Ok(0);
            }
        }
        let count = out.len().min(self.text.len() - self.at);
        out[..count].copy_from_slice(&self.text[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Hands out blocks of whole lines from one buffer. Of a line that is longer than the buffer only
/// the head is handed out.
pub(crate) struct Blocks<R> {
    read: R,
    buffer: Vec<u8>,
    /// Bytes in the buffer.
    filled: usize,
    /// Bytes at its start that were handed out.
    taken: usize,
    /// The rest of a line that was too long is passed over.
    skipping: bool,
    ended: bool,
    bytes: u64,
}

impl<R: Read> Blocks<R> {
    pub(crate) fn new(read: R) -> Self {
        Blocks { read, buffer: Vec::new(), filled: 0, taken: 0, skipping: false, ended: false, bytes: 0 }
    }

    /// The next block; none at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            self.buffer.copy_within(self.taken..self.filled, 0);
            self.filled -= self.taken;
            self.taken = 0;
            self.fill()?;
            if self.filled == 0 {
                return Ok(None);
            }
            let text = &self.buffer[..self.filled];
            if self.skipping {
                let end = memchr(b'\n', text);
                self.taken = end.map_or(self.filled, |end| end + 1);
                self.skipping = end.is_none();
                continue;
            }
            let end = match memrchr(b'\n', text) {
                Some(end) if !self.ended => end + 1,
                Some(_) | None => {
                    // The last line, or one that fills the buffer.
                    self.skipping = !self.ended;
                    self.filled
                }
            };
            self.taken = end;
            return Ok(Some(&self.buffer[..end]));
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        self.buffer.resize(BLOCK_BYTES, 0);
        while self.filled < BLOCK_BYTES && !self.ended {
            match self.read.read(&mut self.buffer[self.filled..]) {
                Ok(0) => self.ended = true,
                Ok(count) => {
                    self.filled += count;
                    self.bytes += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Bytes read so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that the buffer takes.
    #[cfg(test)]
    fn memory(&self) -> usize {
        self.buffer.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    fn all(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        plain(bytes).unwrap().read_to_end(&mut out).unwrap();
        out
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn utf16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(bytes).collect()
    }

    #[test]
    fn gzip_and_utf16_are_undone() {
        let text = "time=1 \u{1f600} \u{b5}s\r\nend";
        assert_eq!(all(text.as_bytes()), text.as_bytes());
        assert_eq!(all(&gzip(text.as_bytes())), text.as_bytes());
        let twice = [gzip(b"a\n"), gzip(b"b\n")].concat();
        assert_eq!(all(&twice), b"a\nb\n");
        for wide in [utf16(text, u16::to_le_bytes), utf16(text, u16::to_be_bytes)] {
            let out = all(&wide);
            assert!(out.ends_with(text.as_bytes()), "{out:?}");
            assert!(all(&gzip(&wide)).ends_with(text.as_bytes()));
        }
        assert_eq!(all(b""), b"");
        assert_eq!(all(b"\xff"), b"\xff");
    }

    #[test]
    fn pairs_of_utf16_survive_the_border_of_a_read() {
        let text = "\u{1f600}".repeat(20_000);
        for before in ["", "x"] {
            let wide = utf16(&format!("{before}{text}"), u16::to_le_bytes);
            assert!(all(&wide).ends_with(format!("{before}{text}").as_bytes()), "{before:?}");
        }
    }

    #[test]
    fn damaged_gzip_is_an_error() {
        let mut bytes = gzip(&vec![b'x'; 100_000]);
        bytes.truncate(40);
        let mut out = Vec::new();
        assert!(plain(&bytes[..]).unwrap().read_to_end(&mut out).is_err());
    }

    /// Reads a few bytes at a time.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(out.len());
            out[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    #[test]
    fn a_line_longer_than_the_buffer_loses_its_tail_only() {
        let long = vec![b'x'; 3 * BLOCK_BYTES + 17];
        let text = [b"first\n", &long[..], b"\nlast\n"].concat();
        let mut blocks = Blocks::new(&text[..]);
        let mut out = Vec::new();
        while let Some(block) = blocks.next().unwrap() {
            out.push(block.to_vec());
        }
        assert_eq!(blocks.memory(), BLOCK_BYTES);
        assert_eq!(out[0], b"first\n");
        assert!(out[1].len() == BLOCK_BYTES && out[1].iter().all(|byte| *byte == b'x'));
        assert_eq!(out[2], b"last\n");
        assert_eq!(out.len(), 3);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn blocks_are_whole_lines_and_together_the_text(
            lengths in prop::collection::vec(0..60_000usize, 0..60),
            ends in any::<bool>(),
            drip in 1..200_000usize,
        ) {
            let mut text = Vec::new();
            for (index, length) in lengths.iter().enumerate() {
                text.extend(std::iter::repeat_n(b'a' + (index % 26) as u8, *length));
                text.push(b'\n');
            }
            if !ends {
                text.pop();
            }
            let mut blocks = Blocks::new(Drip(&text, drip));
            let mut out = Vec::new();
            let mut borders = Vec::new();
            while let Some(block) = blocks.next().unwrap() {
                out.extend_from_slice(block);
                borders.push(out.len());
            }
            prop_assert_eq!(&out, &text);
            borders.pop();
            prop_assert!(borders.iter().all(|border| text[border - 1] == b'\n'));
        }
    }
}
