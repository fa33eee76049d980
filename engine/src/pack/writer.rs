//! Sealing chunks and bundling them into packs.
//!
//! Promises: what [`Sealer::seal`] returns was decoded again and hashed, and is the chunk it was said to be; the same
//! sealed chunks in the same order make the same pack. Refuses chunks above [`LARGEST_BLOB`] and packs above
//! [`LARGEST_PACK`]. In steady state nothing is allocated: contexts and buffers are reused from chunk to chunk, and a
//! payload is copied once, into the pack.

use crate::ids::{BlobKind, ChunkId, Namer, digest, short_digest};
use crate::pack::compress::{Codec, Compressor, Decompressor};
use crate::pack::format::{
    ENTRY_BYTES, FRAME_BYTES, FooterEntry, LARGEST_BLOB, LARGEST_PACK, TRAILER_BYTES, Trailer,
    encode_footer, encode_frame, encode_header, encode_trailer,
};
use crate::pack::{Error, Result};

/// A pack of file chunks is finished once its body has reached this many bytes.
pub const DATA_PACK_TARGET: usize = 32 << 20;
/// A pack of tree nodes is finished once its body has reached this many bytes.
pub const META_PACK_TARGET: usize = 8 << 20;
/// What a pack may hold beyond its target without moving its buffer: the last chunk, and the footer of small chunks.
const PACK_SLACK: usize = 2 << 20;

/// Compresses and verifies chunks; one per thread.
pub struct Sealer {
    compressor: Compressor,
    decompressor: Decompressor,
    decoded: Vec<u8>,
}

/// A chunk as it will be stored. Only [`Sealer::seal`] vouches for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed<'a> {
    /// The id of its content.
    pub id: ChunkId,
    /// What it holds.
    pub kind: BlobKind,
    /// How the payload is stored.
    pub codec: Codec,
    /// Its length once decoded.
    pub raw_bytes: u32,
    /// The bytes to be stored.
    pub payload: &'a [u8],
}

impl Sealer {
    /// A sealer that compresses at this zstd level.
    pub fn new(level: i32) -> Result<Self> {
        let set_up = |source| Error::Codec {
            what: "be set up",
            source,
        };
        let compressor = Compressor::new(level).map_err(set_up)?;
        let decompressor = Decompressor::new().map_err(set_up)?;
        Ok(Sealer {
            compressor,
            decompressor,
            decoded: Vec::new(),
        })
    }

    /// Compresses a chunk (or leaves it as it is, if that is not larger), decodes the result again and holds its id
    /// against `id`: [`Error::Verify`] if they differ.
    pub fn seal<'a>(
        &'a mut self,
        namer: &Namer,
        kind: BlobKind,
        id: ChunkId,
        raw: &'a [u8],
    ) -> Result<Sealed<'a>> {
        let raw_bytes = u32::try_from(raw.len())
            .ok()
            .filter(|_| raw.len() <= LARGEST_BLOB);
        let raw_bytes = raw_bytes.ok_or(Error::TooLarge {
            what: "chunk",
            bytes: raw.len() as u64,
            most: LARGEST_BLOB as u64,
        })?;
        let compress = |source| Error::Codec {
            what: "compress a chunk",
            source,
        };
        let frame = self.compressor.compress(raw).map_err(compress)?;
        let (codec, payload) = if frame.len() < raw.len() {
            (Codec::Zstd, frame)
        } else {
            (Codec::Raw, raw)
        };
        let decoded = match codec {
            Codec::Raw => payload,
            Codec::Zstd => {
                let decode = |source| Error::Codec {
                    what: "decode what it has just compressed",
                    source,
                };
                self.decompressor
                    .decompress(payload, raw.len(), &mut self.decoded)
                    .map_err(decode)?;
                self.decoded.as_slice()
            }
        };
        let found = namer.name(kind, decoded);
        if found != id {
            return Err(Error::Verify {
                expected: id,
                found,
            });
        }
        Ok(Sealed {
            id,
            kind,
            codec,
            raw_bytes,
            payload,
        })
    }
}

/// A pack in the making.
pub struct PackWriter {
    bytes: Vec<u8>,
    entries: Vec<FooterEntry>,
    footer_bytes: u32,
}

/// A whole pack, ready to be put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedPack {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What its footer says.
    pub entries: Vec<FooterEntry>,
}

impl PackWriter {
    /// An empty pack in a fresh buffer, roomy enough for a body of `target` bytes.
    pub fn new(target: usize) -> Self {
        Self::with_buffer(Vec::with_capacity(target + PACK_SLACK))
    }

    /// An empty pack in the buffer of an earlier one, whose content is dropped.
    pub fn with_buffer(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.extend_from_slice(&encode_header());
        PackWriter {
            bytes: buffer,
            entries: Vec::new(),
            footer_bytes: 0,
        }
    }

    /// Appends a blob. [`Error::TooLarge`] if the pack would outgrow its offsets; it is then as it was before.
    pub fn push(&mut self, sealed: &Sealed<'_>) -> Result<FooterEntry> {
        let footer_bytes = (self.entries.len() + 1) * ENTRY_BYTES;
        let body_bytes = self.bytes.len() + FRAME_BYTES + sealed.payload.len();
        let bytes = (body_bytes + footer_bytes + TRAILER_BYTES) as u64;
        let too_large = |_| Error::TooLarge {
            what: "pack",
            bytes,
            most: LARGEST_PACK,
        };
        u32::try_from(bytes).map_err(too_large)?;
        let offset = u32::try_from(self.bytes.len()).map_err(too_large)?;
        let stored_bytes = u32::try_from(sealed.payload.len()).map_err(too_large)?;
        self.footer_bytes = u32::try_from(footer_bytes).map_err(too_large)?;
        let Sealed {
            id,
            kind,
            codec,
            raw_bytes,
            payload,
        } = *sealed;
        let entry = FooterEntry {
            id,
            kind,
            codec,
            offset,
            stored_bytes,
            raw_bytes,
        };
        self.bytes.extend_from_slice(&encode_frame(entry.frame()));
        self.bytes.extend_from_slice(payload);
        self.entries.push(entry);
        Ok(entry)
    }

    /// Length of the header and the blobs so far: what is held against the target.
    pub fn body_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether no blob was pushed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds footer and trailer.
    pub fn finish(mut self) -> FinishedPack {
        let start = self.bytes.len();
        encode_footer(&self.entries, &mut self.bytes);
        let footer = self.bytes.get(start..).unwrap_or_default();
        let trailer = Trailer {
            footer_bytes: self.footer_bytes,
            footer_digest: short_digest(footer),
            pack_digest: digest(&self.bytes),
        };
        self.bytes.extend_from_slice(&encode_trailer(&trailer));
        FinishedPack {
            bytes: self.bytes,
            entries: self.entries,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_that_is_not_its_id_is_never_sealed() {
        let namer = Namer::plain();
        let mut sealer = Sealer::new(3).unwrap();
        for raw in [b"short".to_vec(), b"compressible ".repeat(1000)] {
            let wrong = namer.name(BlobKind::Node, &raw);
            let refused = sealer.seal(&namer, BlobKind::Data, wrong, &raw);
            assert!(
                matches!(refused, Err(Error::Verify { expected, .. }) if expected == wrong),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn what_does_not_shrink_is_stored_raw() {
        let namer = Namer::plain();
        let mut zstd = Sealer::new(3).unwrap();
        let mut noise = Vec::new();
        for block in 0u32..128 {
            noise.extend_from_slice(&digest(&block.to_le_bytes()));
        }
        for (raw, expected) in [
            (noise, Codec::Raw),
            (Vec::new(), Codec::Raw),
            (vec![0; 8192], Codec::Zstd),
        ] {
            let id = namer.name(BlobKind::Data, &raw);
            let sealed = zstd.seal(&namer, BlobKind::Data, id, &raw).unwrap();
            assert_eq!(sealed.codec, expected, "{} bytes", raw.len());
            assert_eq!(sealed.payload == raw, expected == Codec::Raw);
        }
    }

    #[test]
    fn a_chunk_above_the_limit_is_refused() {
        let namer = Namer::plain();
        let raw = vec![0; LARGEST_BLOB + 1];
        let id = namer.name(BlobKind::Data, &raw);
        let mut sealer = Sealer::new(3).unwrap();
        let refused = sealer.seal(&namer, BlobKind::Data, id, &raw);
        assert!(
            matches!(refused, Err(Error::TooLarge { .. })),
            "{refused:?}"
        );
        assert!(
            sealer
                .seal(
                    &namer,
                    BlobKind::Data,
                    namer.name(BlobKind::Data, &raw[1..]),
                    &raw[1..]
                )
                .is_ok()
        );
    }

    #[test]
    fn a_recycled_buffer_neither_moves_nor_leaks_into_the_next_pack() {
        let namer = Namer::plain();
        let mut sealer = Sealer::new(3).unwrap();
        let mut fill = |mut pack: PackWriter, text: &[u8]| {
            assert!(pack.is_empty());
            let raw = text.repeat(500);
            let id = namer.name(BlobKind::Data, &raw);
            let entry = pack
                .push(&sealer.seal(&namer, BlobKind::Data, id, &raw).unwrap())
                .unwrap();
            assert_eq!(pack.body_bytes() as u64, entry.end());
            pack.finish().bytes
        };
        let fresh = fill(PackWriter::with_buffer(Vec::new()), b"second");
        let first = fill(PackWriter::new(1 << 20), b"first");
        let (place, capacity) = (first.as_ptr(), first.capacity());
        let second = fill(PackWriter::with_buffer(first), b"second");
        assert_eq!((second.as_ptr(), second.capacity()), (place, capacity));
        assert_eq!(second, fresh);
    }
}
