//! Reading packs: one blob by its location, the footer by a range of its end, everything of a pack at hand.
//!
//! Promises: a blob is returned only if its hash is the id that was asked for, unless the caller said that it will see
//! to that itself ([`Opener::decode_unnamed`]); a footer only if its checksum matches.
//! Never panics and never allocates by a length from the store before that length was held against a limit. Does not
//! know where packs are kept: ranges come from a function that the caller gives.

use crate::ids::{ChunkId, Location, Namer, digest};
use crate::pack::compress::{Codec, Decompressor, content_bytes};
use crate::pack::format::{
    FRAME_BYTES, FooterEntry, Frame, LARGEST_BLOB, TRAILER_BYTES, check_header, decode_frame,
    decode_trailer, find_frame, lengths_agree, open_footer,
};
use crate::pack::{Error, Result};

/// How much of a pack's end is read at first: a footer of 1,300 blobs.
const TAIL_BYTES: u64 = 64 << 10;

/// Fills the buffer with the bytes of one pack from an offset on.
pub type Fetch<'a, E> = dyn FnMut(u64, &mut [u8]) -> std::result::Result<(), E> + 'a;

/// Why a pack that is kept elsewhere could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E: std::error::Error + 'static> {
    /// A range could not be fetched.
    #[error("a range of the pack cannot be fetched")]
    Fetch(#[source] E),
    /// What was fetched is not what it should be.
    #[error(transparent)]
    Pack(#[from] Error),
}

/// Decodes and verifies blobs; one per thread.
pub struct Opener {
    decompressor: Decompressor,
    fetched: Vec<u8>,
}

impl Opener {
    /// An opener.
    pub fn new() -> Result<Self> {
        let decompressor = Decompressor::new().map_err(|source| Error::Codec {
            what: "be set up",
            source,
        })?;
        Ok(Opener {
            decompressor,
            fetched: Vec::new(),
        })
    }

    /// Replaces the content of `out` by the chunk `id`, of which the frame and the whole payload are given as they lie
    /// at `location`. After an error `out` holds nothing of use.
    pub fn open(
        &mut self,
        namer: &Namer,
        id: &ChunkId,
        location: &Location,
        frame_and_payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<()> {
        self.decode_unnamed(location, frame_and_payload, out)?;
        let found = namer.name(location.kind, out);
        if found != *id {
            return Err(Error::IdMismatch {
                offset: u64::from(location.offset),
                expected: *id,
                found,
            });
        }
        Ok(())
    }

    /// The same without a look at the content: for who holds it against its id later, before it is relied on.
    pub fn decode_unnamed(
        &mut self,
        location: &Location,
        frame_and_payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let offset = u64::from(location.offset);
        let frame = decode_frame(frame_and_payload, offset)?;
        // The index does not keep the codec; what the frame says of it must fit the lengths.
        let expected = Frame {
            kind: location.kind,
            codec: frame.codec,
            stored_bytes: location.stored_bytes,
        };
        if frame != expected {
            return Err(frame_mismatch(offset, expected, frame));
        }
        if !lengths_agree(frame.codec, frame.stored_bytes, location.raw_bytes) {
            return Err(Error::FrameMismatch {
                offset,
                field: "raw length",
                expected: u64::from(location.raw_bytes),
                found: u64::from(frame.stored_bytes),
            });
        }
        let raw_bytes = checked_blob_bytes(location)?;
        let payload = frame_and_payload.get(FRAME_BYTES..).unwrap_or_default();
        if payload.len() as u64 != u64::from(frame.stored_bytes) {
            let (expected, found) = (u64::from(frame.stored_bytes), payload.len() as u64);
            return Err(Error::Length {
                what: "payload",
                offset: offset + FRAME_BYTES as u64,
                expected,
                found,
            });
        }
        self.decode(frame.codec, payload, raw_bytes, offset, out)
    }

    fn decode(
        &mut self,
        codec: Codec,
        payload: &[u8],
        raw_bytes: usize,
        offset: u64,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        match codec {
            Codec::Raw => {
                out.clear();
                out.extend_from_slice(payload);
                Ok(())
            }
            Codec::Zstd => {
                let decode = |source| Error::Decode { offset, source };
                self.decompressor
                    .decompress(payload, raw_bytes, out)
                    .map_err(decode)
            }
        }
    }
}

/// Replaces the content of `out` by the chunk `id`, fetching its frame and payload in one range.
pub fn read_blob<E: std::error::Error>(
    fetch: &mut Fetch<'_, E>,
    namer: &Namer,
    opener: &mut Opener,
    id: &ChunkId,
    location: &Location,
    out: &mut Vec<u8>,
) -> std::result::Result<(), ReadError<E>> {
    let raw_bytes = checked_blob_bytes(location)?;
    let stored_bytes = location.stored_bytes as usize;
    if stored_bytes > raw_bytes {
        return Err(too_large("stored blob", stored_bytes as u64, raw_bytes as u64).into());
    }
    let mut fetched = std::mem::take(&mut opener.fetched);
    let wanted = FRAME_BYTES + stored_bytes;
    if fetched.len() < wanted {
        fetched.resize(wanted, 0);
    }
    let range = fetched.get_mut(..wanted).unwrap_or_default();
    let done = match fetch(u64::from(location.offset), range) {
        Ok(()) => opener
            .open(namer, id, location, range, out)
            .map_err(ReadError::Pack),
        Err(error) => Err(ReadError::Fetch(error)),
    };
    opener.fetched = fetched;
    done
}

/// The footer of a pack of `pack_bytes`: one fetch of its end, a second one if the footer is longer than that. Vouches
/// for the footer alone, not for the blobs.
pub fn read_footer<E: std::error::Error>(
    fetch: &mut Fetch<'_, E>,
    pack_bytes: u64,
) -> std::result::Result<Vec<FooterEntry>, ReadError<E>> {
    let tail_bytes = pack_bytes.min(TAIL_BYTES);
    let mut tail = vec![0; buffer_bytes(tail_bytes)?];
    fetch(pack_bytes - tail_bytes, &mut tail).map_err(ReadError::Fetch)?;
    let trailer = decode_trailer(&tail, pack_bytes)?;
    let footer_bytes = u64::from(trailer.footer_bytes);
    let start = pack_bytes - TRAILER_BYTES as u64 - footer_bytes;
    let fetched_from = pack_bytes - tail_bytes;
    let mut footer = Vec::new();
    if start < fetched_from {
        footer.resize(buffer_bytes(fetched_from - start)?, 0);
        fetch(start, &mut footer).map_err(ReadError::Fetch)?;
    }
    let skipped = buffer_bytes(start.saturating_sub(fetched_from))?;
    footer.extend_from_slice(
        tail.get(skipped..tail.len() - TRAILER_BYTES)
            .unwrap_or_default(),
    );
    Ok(open_footer(&trailer, &footer, start)?)
}

/// The footer of a whole pack, once every checksum and every frame was found right. The blobs are not decoded.
pub fn parse_footer(pack: &[u8]) -> Result<Vec<FooterEntry>> {
    let trailer = decode_trailer(pack, pack.len() as u64)?;
    let (before, _) = pack.split_at(pack.len() - TRAILER_BYTES);
    if digest(before) != trailer.pack_digest {
        return Err(Error::Digest { what: "pack" });
    }
    check_header(before)?;
    let (body, footer) = before.split_at(before.len() - trailer.footer_bytes as usize);
    let entries = open_footer(&trailer, footer, body.len() as u64)?;
    for entry in &entries {
        let offset = u64::from(entry.offset);
        let frame = decode_frame(
            body.get(entry.offset as usize..).unwrap_or_default(),
            offset,
        )?;
        if frame != entry.frame() {
            return Err(frame_mismatch(offset, entry.frame(), frame));
        }
    }
    Ok(entries)
}

/// The bytes of a blob in a pack at hand: its frame and its payload.
pub fn framed<'a>(pack: &'a [u8], location: &Location) -> Result<&'a [u8]> {
    let offset = location.offset as usize;
    let expected = FRAME_BYTES as u64 + u64::from(location.stored_bytes);
    let rest = pack.get(offset..).unwrap_or_default();
    let bytes = usize::try_from(expected)
        .ok()
        .and_then(|length| rest.get(..length));
    let found = rest.len() as u64;
    bytes.ok_or(Error::Length {
        what: "blob",
        offset: u64::from(location.offset),
        expected,
        found,
    })
}

/// What can be had from a pack that lost its footer, or was cut or damaged: every blob that still decodes, with the id
/// of what it decodes to, which therefore is true even if it is not the chunk that was once stored there.
pub fn scan_frames(namer: &Namer, opener: &mut Opener, pack: &[u8]) -> Vec<FooterEntry> {
    let mut found = Vec::new();
    let mut decoded = Vec::new();
    let mut from = 0;
    while let Some(at) = find_frame(pack, from) {
        // A damaged frame may lie about its length, so after one the search goes on right behind its first byte.
        from = at + 1;
        if let Some(entry) = salvage(namer, opener, pack, at, &mut decoded) {
            from = at + FRAME_BYTES + entry.stored_bytes as usize;
            found.push(entry);
        }
    }
    found
}

fn salvage(
    namer: &Namer,
    opener: &mut Opener,
    pack: &[u8],
    at: usize,
    decoded: &mut Vec<u8>,
) -> Option<FooterEntry> {
    let offset = u32::try_from(at).ok()?;
    let Frame {
        kind,
        codec,
        stored_bytes,
    } = decode_frame(pack.get(at..)?, u64::from(offset)).ok()?;
    let payload = pack.get(at + FRAME_BYTES..)?.get(..stored_bytes as usize)?;
    let raw_bytes = match codec {
        Codec::Raw => stored_bytes,
        Codec::Zstd => u32::try_from(content_bytes(payload)?).ok()?,
    };
    if raw_bytes as usize > LARGEST_BLOB || !lengths_agree(codec, stored_bytes, raw_bytes) {
        return None;
    }
    opener
        .decode(
            codec,
            payload,
            raw_bytes as usize,
            u64::from(offset),
            decoded,
        )
        .ok()?;
    let id = namer.name(kind, decoded);
    Some(FooterEntry {
        id,
        kind,
        codec,
        offset,
        stored_bytes,
        raw_bytes,
    })
}

fn checked_blob_bytes(location: &Location) -> Result<usize> {
    let raw_bytes = location.raw_bytes as usize;
    let fits = raw_bytes <= LARGEST_BLOB;
    fits.then_some(raw_bytes)
        .ok_or_else(|| too_large("blob", raw_bytes as u64, LARGEST_BLOB as u64))
}

fn buffer_bytes(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| too_large("range", bytes, usize::MAX as u64))
}

fn too_large(what: &'static str, bytes: u64, most: u64) -> Error {
    Error::TooLarge { what, bytes, most }
}

fn frame_mismatch(offset: u64, expected: Frame, found: Frame) -> Error {
    let (field, expected, found) = if expected.kind != found.kind {
        (
            "kind",
            u32::from(expected.kind.code()),
            u32::from(found.kind.code()),
        )
    } else if expected.codec != found.codec {
        (
            "codec",
            u32::from(expected.codec.code()),
            u32::from(found.codec.code()),
        )
    } else {
        ("stored length", expected.stored_bytes, found.stored_bytes)
    };
    Error::FrameMismatch {
        offset,
        field,
        expected: u64::from(expected),
        found: u64::from(found),
    }
}
