//! zstd, one context per thread, no allocation per chunk.
//!
//! Promises: the same bytes at the same level make the same frame, whatever was compressed before; the frame tells its
//! raw length and carries no checksum and no dictionary id (the chunk id vouches for the content). Decoding writes only
//! into memory that the caller's length allows, and refuses a frame of another length. The only file that knows zstd.

use std::io::{self, Read};

use zstd::zstd_safe::{self, CParameter};

/// The level whose tables are [`TABLE_LOG`] here.
const TUNED_LEVEL: i32 = 3;
/// Both tables of level 3 have 2^15 places of 4 bytes. zstd's own choice for chunks of our size takes 512 to 768 KiB,
/// which with the chunk is more than a core's second-level cache: 10 % slower, for 0.3 % fewer bytes (measured on heap
/// and index pages of pgbench and of text).
const TABLE_LOG: u32 = 15;

/// No block of a zstd frame is longer, as stored or decoded; headers of frame and block come on top.
pub const LARGEST_BLOCK: usize = (128 << 10) + 32;

/// How a payload is stored. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// The bytes as they are.
    Raw,
    /// One zstd frame, smaller than the bytes.
    Zstd,
}

impl Codec {
    /// The stored number.
    pub fn code(self) -> u8 {
        match self {
            Codec::Raw => 0,
            Codec::Zstd => 1,
        }
    }

    /// The codec with this stored number.
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Codec::Raw),
            1 => Some(Codec::Zstd),
            _ => None,
        }
    }
}

/// A zstd compressor and the buffer it fills; both are reused from chunk to chunk.
pub struct Compressor {
    context: zstd::bulk::Compressor<'static>,
    frame: Vec<u8>,
}

impl Compressor {
    /// A compressor of this level; a level that zstd does not have is an error, not the nearest one.
    pub fn new(level: i32) -> io::Result<Self> {
        let known = zstd::compression_level_range();
        if !known.contains(&level) {
            let text = format!(
                "compression level {level} is not in {} to {}",
                known.start(),
                known.end()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mut context = zstd::bulk::Compressor::new(level)?;
        context.include_contentsize(true)?;
        context.include_checksum(false)?;
        context.include_dictid(false)?;
        if level == TUNED_LEVEL {
            context.set_parameter(CParameter::HashLog(TABLE_LOG))?;
            context.set_parameter(CParameter::ChainLog(TABLE_LOG))?;
        }
        Ok(Compressor {
            context,
            frame: Vec::new(),
        })
    }

    /// The zstd frame of `raw`, valid until the next call.
    pub fn compress(&mut self, raw: &[u8]) -> io::Result<&[u8]> {
        self.frame.clear();
        self.frame.reserve(zstd_safe::compress_bound(raw.len()));
        self.context.compress_to_buffer(raw, &mut self.frame)?;
        Ok(&self.frame)
    }
}

/// A zstd decompressor, reused from chunk to chunk.
pub struct Decompressor {
    context: zstd::bulk::Decompressor<'static>,
}

impl Decompressor {
    /// A decompressor.
    pub fn new() -> io::Result<Self> {
        Ok(Decompressor {
            context: zstd::bulk::Decompressor::new()?,
        })
    }

    /// Replaces the content of `out` by what `frame` holds, which must be `raw_bytes` long and say so.
    pub fn decompress(
        &mut self,
        frame: &[u8],
        raw_bytes: usize,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        out.clear();
        if content_bytes(frame) != Some(raw_bytes as u64) {
            let text = format!("no zstd frame of {raw_bytes} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        out.reserve(raw_bytes);
        let found = self.context.decompress_to_buffer(frame, out)?;
        if found != raw_bytes {
            let text = format!("{found} bytes where {raw_bytes} were announced");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(())
    }
}

/// Fills `out` with the first bytes of what a frame holds, of which only the beginning is at hand: enough of it for the
/// first block, which has at most [`LARGEST_BLOCK`] bytes.
pub fn first_bytes(frame: &[u8], out: &mut [u8]) -> io::Result<()> {
    zstd::stream::read::Decoder::with_buffer(frame)?.read_exact(out)
}

/// The raw length that a zstd frame announces; `None` if it is no such frame or does not tell.
pub fn content_bytes(frame: &[u8]) -> Option<u64> {
    zstd_safe::get_frame_content_size(frame).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_depends_on_nothing_but_its_bytes_and_level() {
        let text = b"stone upon stone, a cairn ".repeat(4000);
        let fresh = Compressor::new(3)
            .unwrap()
            .compress(&text)
            .unwrap()
            .to_vec();
        let mut used = Compressor::new(3).unwrap();
        for length in [1, 100, 70_000, 3] {
            used.compress(&text[7..7 + length]).unwrap();
        }
        assert_eq!(used.compress(&text).unwrap(), fresh);
    }

    #[test]
    fn a_frame_of_another_length_is_refused_and_never_outgrows_the_buffer() {
        let zeros = vec![0; 1 << 20];
        let mut compressor = Compressor::new(3).unwrap();
        let frame = compressor.compress(&zeros).unwrap().to_vec();
        let mut decompressor = Decompressor::new().unwrap();
        let mut out = Vec::new();
        decompressor.decompress(&frame, 1 << 20, &mut out).unwrap();
        assert_eq!(out, zeros);
        let mut small = Vec::new();
        assert!(decompressor.decompress(&frame, 4096, &mut small).is_err());
        let twice = [frame.as_slice(), frame.as_slice()].concat();
        assert!(
            decompressor
                .decompress(&twice, 1 << 20, &mut small)
                .is_err(),
            "a second frame hides behind the first"
        );
        assert!(small.capacity() <= 1 << 20);
    }

    #[test]
    fn a_level_that_zstd_does_not_have_is_an_error() {
        assert!(Compressor::new(22).is_ok());
        assert!(Compressor::new(23).is_err());
    }
}
