//! The byte tables of a pack: header, frame, footer entry, trailer; drawn, with reasons, in `engine/docs/format.md`.
//!
//! Promises: what is encoded here decodes to the same; decoding never panics, allocates no more than the bytes at hand
//! allow, and tells "newer than this program" from "damaged" (the trailer's checksum covers its version). Refuses what
//! no writer makes: gaps between blobs, reserved bits, a zstd payload that is not smaller. The only file that knows
//! offsets. All integers are little-endian.

#![deny(clippy::indexing_slicing)]

use crate::ids::{BlobKind, ChunkId, Location, PackId, short_digest};
use crate::pack::compress::Codec;
use crate::pack::{Error, Result};

/// First bytes of every pack.
pub const PACK_MAGIC: [u8; 4] = *b"PGCP";
/// First bytes of every frame: what a scan looks for in a pack that lost its footer.
pub const FRAME_MAGIC: [u8; 4] = *b"PGCB";
/// Stands in every trailer behind the version.
pub const TRAILER_MAGIC: [u8; 3] = *b"PGT";
/// The pack version that this program writes and reads.
pub const VERSION: u8 = 1;
/// The feature bits that this program understands.
pub const KNOWN_FEATURES: u32 = 0;

/// Length of the header.
pub const HEADER_BYTES: usize = 32;
/// Length of the frame before each payload.
pub const FRAME_BYTES: usize = 12;
/// Length of a footer entry.
pub const ENTRY_BYTES: usize = 48;
/// Length of the trailer: the same in every version, so that it can always be found and checked.
pub const TRAILER_BYTES: usize = 64;
/// No blob is larger once decoded: what a reader must be able to hold.
pub const LARGEST_BLOB: usize = 4 << 20;
/// No pack is larger: offsets and the footer's length have 32 bits.
pub const LARGEST_PACK: u64 = u32::MAX as u64;

/// The 12 bytes before a payload: enough to decode a blob of which only the location is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// What the blob holds.
    pub kind: BlobKind,
    /// How the payload is stored.
    pub codec: Codec,
    /// Length of the payload.
    pub stored_bytes: u32,
}

/// What the footer says of one blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FooterEntry {
    /// The id of its content.
    pub id: ChunkId,
    /// What it holds.
    pub kind: BlobKind,
    /// How its payload is stored.
    pub codec: Codec,
    /// Where its frame begins, in bytes from the start of the pack.
    pub offset: u32,
    /// Length of the payload behind the frame.
    pub stored_bytes: u32,
    /// Length once decoded.
    pub raw_bytes: u32,
}

impl FooterEntry {
    /// Where the blob lies if this is the footer of `pack`.
    pub fn location(&self, pack: PackId) -> Location {
        let FooterEntry {
            kind,
            offset,
            stored_bytes,
            raw_bytes,
            ..
        } = *self;
        Location {
            pack,
            offset,
            stored_bytes,
            raw_bytes,
            kind,
        }
    }

    /// The frame that belongs before the payload.
    pub fn frame(&self) -> Frame {
        Frame {
            kind: self.kind,
            codec: self.codec,
            stored_bytes: self.stored_bytes,
        }
    }

    /// Where the next blob, or the footer, begins.
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + FRAME_BYTES as u64 + u64::from(self.stored_bytes)
    }
}

/// The last bytes of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Length of the footer before it.
    pub footer_bytes: u32,
    /// BLAKE3-128 of the footer: what a reader of the pack's end can check.
    pub footer_digest: [u8; 16],
    /// BLAKE3-256 of all before the trailer.
    pub pack_digest: [u8; 32],
}

/// The header of a pack that is not encrypted: its salt is zero.
pub fn encode_header() -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    put(
        &mut bytes,
        &[&PACK_MAGIC, &[VERSION, 0, 0, 0], &0u32.to_le_bytes()],
    );
    bytes
}

/// Checks the header at the start of `pack`.
pub fn check_header(pack: &[u8]) -> Result<()> {
    let mut fields = Fields::new("header", 0, HEADER_BYTES, pack)?;
    if fields.take() != PACK_MAGIC {
        return Err(Error::BadMagic {
            what: "header",
            offset: 0,
        });
    }
    let [version, reserved @ ..] = fields.take::<4>();
    check_version(version, fields.u32())?;
    let salt: [u8; 16] = fields.take();
    let rest: [u8; 4] = fields.take();
    if reserved != [0; 3] || salt != [0; 16] || rest != [0; 4] {
        return Err(Error::Reserved {
            what: "header",
            offset: 0,
        });
    }
    Ok(())
}

/// The bytes of a frame.
pub fn encode_frame(frame: Frame) -> [u8; FRAME_BYTES] {
    let mut bytes = [0; FRAME_BYTES];
    let codes = [frame.kind.code(), frame.codec.code(), 0, 0];
    put(
        &mut bytes,
        &[&FRAME_MAGIC, &codes, &frame.stored_bytes.to_le_bytes()],
    );
    bytes
}

/// The frame at the start of `bytes`, which lie at `offset` in their pack.
pub fn decode_frame(bytes: &[u8], offset: u64) -> Result<Frame> {
    let mut fields = Fields::new("frame", offset, FRAME_BYTES, bytes)?;
    if fields.take() != FRAME_MAGIC {
        return Err(Error::BadMagic {
            what: "frame",
            offset,
        });
    }
    let [kind, codec] = fields.take();
    let flags = u16::from_le_bytes(fields.take());
    let unknown = |field, found: u16| Error::Unknown {
        offset,
        field,
        found,
    };
    if flags != 0 {
        return Err(unknown("flags", flags));
    }
    let kind = BlobKind::from_code(kind).ok_or_else(|| unknown("kind", u16::from(kind)))?;
    let codec = Codec::from_code(codec).ok_or_else(|| unknown("codec", u16::from(codec)))?;
    Ok(Frame {
        kind,
        codec,
        stored_bytes: fields.u32(),
    })
}

/// The first place from `from` on where a frame may begin.
pub fn find_frame(pack: &[u8], from: usize) -> Option<usize> {
    let tail = pack.get(from..)?;
    tail.windows(FRAME_MAGIC.len())
        .position(|window| window == FRAME_MAGIC)
        .map(|at| from + at)
}

/// Appends the footer.
pub fn encode_footer(entries: &[FooterEntry], out: &mut Vec<u8>) {
    out.reserve(entries.len() * ENTRY_BYTES);
    for entry in entries {
        out.extend_from_slice(&entry.id.0);
        out.extend_from_slice(&[entry.kind.code(), entry.codec.code(), 0, 0]);
        for number in [entry.offset, entry.stored_bytes, entry.raw_bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }
}

/// The entries of a footer that begins at `start` of its pack: the blobs before it, one behind the other.
pub fn decode_footer(footer: &[u8], start: u64) -> Result<Vec<FooterEntry>> {
    let mut entries = Vec::with_capacity(footer.len() / ENTRY_BYTES);
    let mut end = HEADER_BYTES as u64;
    let mut rest = footer;
    while !rest.is_empty() {
        let index = entries.len();
        let entry = decode_entry(rest, index, start)?;
        if u64::from(entry.offset) != end {
            return Err(Error::BadEntry {
                index,
                why: "does not begin where the blob before it ends",
            });
        }
        end = entry.end();
        entries.push(entry);
        rest = rest.get(ENTRY_BYTES..).unwrap_or_default();
    }
    if end != start {
        return Err(Error::Length {
            what: "footer",
            offset: start,
            expected: end,
            found: start,
        });
    }
    Ok(entries)
}

/// The bytes of a trailer.
pub fn encode_trailer(trailer: &Trailer) -> [u8; TRAILER_BYTES] {
    let mut bytes = [0; TRAILER_BYTES];
    let [m0, m1, m2] = TRAILER_MAGIC;
    let (length, features) = (trailer.footer_bytes.to_le_bytes(), 0u32.to_le_bytes());
    let ending = [VERSION, m0, m1, m2];
    put(
        &mut bytes,
        &[
            &length,
            &features,
            &trailer.footer_digest,
            &trailer.pack_digest,
            &ending,
        ],
    );
    let checksum = crc32c::crc32c(
        bytes
            .split_last_chunk::<4>()
            .map_or(&[], |(signed, _)| signed),
    );
    if let Some((_, last)) = bytes.split_last_chunk_mut() {
        *last = checksum.to_le_bytes();
    }
    bytes
}

/// The trailer at the end of `tail`, itself the end of a pack of `pack_bytes`.
pub fn decode_trailer(tail: &[u8], pack_bytes: u64) -> Result<Trailer> {
    let short = |expected: usize| Error::Length {
        what: "pack",
        offset: 0,
        expected: expected as u64,
        found: pack_bytes.min(tail.len() as u64),
    };
    if pack_bytes > LARGEST_PACK {
        return Err(Error::TooLarge {
            what: "pack",
            bytes: pack_bytes,
            most: LARGEST_PACK,
        });
    }
    let room = pack_bytes.checked_sub((HEADER_BYTES + TRAILER_BYTES) as u64);
    let room = room.ok_or_else(|| short(HEADER_BYTES + TRAILER_BYTES))?;
    let (_, bytes) = tail
        .split_last_chunk::<TRAILER_BYTES>()
        .ok_or_else(|| short(TRAILER_BYTES))?;
    let offset = pack_bytes - TRAILER_BYTES as u64;
    let mut fields = Fields::new("trailer", offset, TRAILER_BYTES, bytes)?;
    let footer_bytes = fields.u32();
    let features = fields.u32();
    let (footer_digest, pack_digest) = (fields.take(), fields.take());
    let [version, magic @ ..] = fields.take::<4>();
    if magic != TRAILER_MAGIC {
        return Err(Error::BadMagic {
            what: "trailer",
            offset,
        });
    }
    let signed = bytes
        .split_last_chunk::<4>()
        .map_or(&[][..], |(signed, _)| signed);
    if fields.u32() != crc32c::crc32c(signed) {
        return Err(Error::Digest { what: "trailer" });
    }
    check_version(version, features)?;
    let footer = u64::from(footer_bytes);
    let entries = footer / ENTRY_BYTES as u64;
    // Every entry has a frame before the footer: so much of the pack must be there before a footer is believed.
    let needed = entries * (ENTRY_BYTES + FRAME_BYTES) as u64;
    if needed > room || entries * ENTRY_BYTES as u64 != footer {
        return Err(Error::Length {
            what: "footer",
            offset: HEADER_BYTES as u64,
            expected: needed.max(footer),
            found: room,
        });
    }
    Ok(Trailer {
        footer_bytes,
        footer_digest,
        pack_digest,
    })
}

/// The entries of a footer that begins at `start` of its pack, once its checksum was found to match.
pub fn open_footer(trailer: &Trailer, footer: &[u8], start: u64) -> Result<Vec<FooterEntry>> {
    if short_digest(footer) != trailer.footer_digest {
        return Err(Error::Digest { what: "footer" });
    }
    decode_footer(footer, start)
}

/// Whether a writer stores `raw_bytes` bytes so: as they are, or in fewer bytes as a zstd frame.
pub fn lengths_agree(codec: Codec, stored_bytes: u32, raw_bytes: u32) -> bool {
    match codec {
        Codec::Raw => stored_bytes == raw_bytes,
        Codec::Zstd => stored_bytes < raw_bytes,
    }
}

fn decode_entry(bytes: &[u8], index: usize, start: u64) -> Result<FooterEntry> {
    let offset = start + (index * ENTRY_BYTES) as u64;
    let mut fields = Fields::new("footer entry", offset, ENTRY_BYTES, bytes)?;
    let bad = |why| Error::BadEntry { index, why };
    let id = ChunkId(fields.take());
    let [kind, codec, flags @ ..] = fields.take::<4>();
    let entry = FooterEntry {
        id,
        kind: BlobKind::from_code(kind).ok_or_else(|| bad("has a kind that is not known"))?,
        codec: Codec::from_code(codec).ok_or_else(|| bad("has a codec that is not known"))?,
        offset: fields.u32(),
        stored_bytes: fields.u32(),
        raw_bytes: fields.u32(),
    };
    if flags != [0; 2] {
        return Err(bad("has flags that are not known"));
    }
    if entry.raw_bytes as usize > LARGEST_BLOB {
        return Err(bad("is larger than any blob"));
    }
    if !lengths_agree(entry.codec, entry.stored_bytes, entry.raw_bytes) {
        return Err(bad("has lengths that do not fit its codec"));
    }
    if entry.end() > start {
        return Err(bad("reaches beyond the blobs"));
    }
    Ok(entry)
}

fn check_version(version: u8, features: u32) -> Result<()> {
    if version != VERSION || features & !KNOWN_FEATURES != 0 {
        return Err(Error::TooNew {
            version,
            features: features & !KNOWN_FEATURES,
        });
    }
    Ok(())
}

/// Copies `parts` to the start of `bytes`, one behind the other.
fn put(bytes: &mut [u8], parts: &[&[u8]]) {
    let places = bytes.iter_mut();
    places
        .zip(parts.iter().copied().flatten())
        .for_each(|(place, byte)| *place = *byte);
}

/// The fields of one fixed-size part, taken from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn new(what: &'static str, offset: u64, expected: usize, bytes: &'a [u8]) -> Result<Self> {
        let (expected_bytes, found) = (expected as u64, bytes.len() as u64);
        let part = bytes.get(..expected);
        part.map(Fields).ok_or(Error::Length {
            what,
            offset,
            expected: expected_bytes,
            found,
        })
    }

    /// The next `N` bytes. The tables above never take more than the part has; a zero would fail the test of any of them.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
}

#[cfg(test)]
#[expect(
    clippy::indexing_slicing,
    reason = "tests index what they have made themselves"
)]
mod tests {
    use super::*;
    use crate::ids::digest;
    use crate::pack::reader::parse_footer;

    const SPECIFICATION: &str = include_str!("../../docs/format.md");

    /// The bytes of the worked example: lines of offset, hex, bar, remark.
    fn worked_example() -> Vec<u8> {
        let (_, section) = SPECIFICATION.split_once("\n## Pack\n").unwrap();
        let (_, dump) = section.split_once("```hex\n").unwrap();
        let (dump, _) = dump.split_once("```").unwrap();
        let mut bytes = Vec::new();
        for line in dump.lines() {
            let (hex, _) = line.split_once('|').unwrap();
            let mut columns = hex.split_whitespace();
            assert_eq!(columns.next().unwrap().parse(), Ok(bytes.len()), "{line}");
            bytes.extend(columns.map(|byte| u8::from_str_radix(byte, 16).unwrap()));
        }
        bytes
    }

    /// Golden bytes: packs like this one lie in repositories.
    #[test]
    fn the_worked_example_of_the_specification_is_a_pack() {
        let raw = b"pgcairn";
        let pack = worked_example();
        let entry = FooterEntry {
            id: crate::ids::Namer::plain().name(BlobKind::Data, raw),
            kind: BlobKind::Data,
            codec: Codec::Raw,
            offset: 32,
            stored_bytes: 7,
            raw_bytes: 7,
        };
        assert_eq!(parse_footer(&pack).unwrap(), [entry]);
        let mut made = encode_header().to_vec();
        made.extend_from_slice(&encode_frame(entry.frame()));
        made.extend_from_slice(raw);
        let start = made.len();
        encode_footer(&[entry], &mut made);
        let footer_digest = short_digest(&made[start..]);
        let trailer = Trailer {
            footer_bytes: 48,
            footer_digest,
            pack_digest: digest(&made),
        };
        made.extend_from_slice(&encode_trailer(&trailer));
        assert_eq!(made, pack);
    }

    #[test]
    fn the_specification_gives_the_constants_of_this_file() {
        for (name, value) in [
            ("Header", HEADER_BYTES),
            ("Frame", FRAME_BYTES),
            ("Footer entry", ENTRY_BYTES),
            ("Trailer", TRAILER_BYTES),
        ] {
            assert!(
                SPECIFICATION.contains(&format!("### {name} ({value} bytes)")),
                "{name}"
            );
        }
    }

    #[test]
    fn a_newer_pack_is_named_as_such_and_damage_is_not() {
        let pack = worked_example();
        let at = pack.len() - TRAILER_BYTES;
        for (field, flip) in [(56, 3), (4, 0x10)] {
            let mut newer = pack.clone();
            newer[at + field] ^= flip;
            let damaged = decode_trailer(&newer, newer.len() as u64);
            assert!(matches!(damaged, Err(Error::Digest { .. })), "{damaged:?}");
            let end = newer.len() - 4;
            let checksum = crc32c::crc32c(&newer[at..end]);
            newer[end..].copy_from_slice(&checksum.to_le_bytes());
            let refused = decode_trailer(&newer, newer.len() as u64);
            assert!(matches!(refused, Err(Error::TooNew { .. })), "{refused:?}");
        }
        let mut header = encode_header();
        header[8] = 1;
        assert!(matches!(
            check_header(&header),
            Err(Error::TooNew {
                version: 1,
                features: 1
            })
        ));
        header[8] = 0;
        header[12] = 1;
        assert!(
            matches!(check_header(&header), Err(Error::Reserved { .. })),
            "a salt without encryption"
        );
    }

    const ENTRY: FooterEntry = FooterEntry {
        id: ChunkId([1; 32]),
        kind: BlobKind::Node,
        codec: Codec::Zstd,
        offset: 32,
        stored_bytes: 10,
        raw_bytes: 20,
    };

    fn encode_then_decode(entries: &[FooterEntry], start: u64) -> Result<Vec<FooterEntry>> {
        let mut bytes = Vec::new();
        encode_footer(entries, &mut bytes);
        decode_footer(&bytes, start)
    }

    #[test]
    fn a_footer_accounts_for_every_byte_of_the_body() {
        let next = FooterEntry {
            offset: 54,
            ..ENTRY
        };
        assert_eq!(
            encode_then_decode(&[ENTRY, next], 76).unwrap(),
            [ENTRY, next]
        );
        let moved = FooterEntry {
            offset: 55,
            ..ENTRY
        };
        for (entries, start, why) in [
            ([ENTRY, next], 77, "a gap before the footer"),
            ([ENTRY, next], 70, "a blob reaches into the footer"),
            ([ENTRY, moved], 77, "a gap between blobs"),
            ([next, ENTRY], 76, "out of order"),
        ] {
            assert!(encode_then_decode(&entries, start).is_err(), "{why}");
        }
    }

    #[test]
    fn a_footer_entry_that_no_writer_makes_is_refused() {
        for entry in [
            FooterEntry {
                raw_bytes: 10,
                ..ENTRY
            },
            FooterEntry {
                codec: Codec::Raw,
                ..ENTRY
            },
            FooterEntry {
                raw_bytes: 5 << 20,
                ..ENTRY
            },
        ] {
            let refused = encode_then_decode(&[entry], 54);
            assert!(
                matches!(refused, Err(Error::BadEntry { index: 0, .. })),
                "{entry:?}: {refused:?}"
            );
        }
        let mut sound = Vec::new();
        encode_footer(&[ENTRY], &mut sound);
        for (at, value) in [(32, 9), (33, 9), (34, 1), (35, 1)] {
            let mut bytes = sound.clone();
            bytes[at] = value;
            let refused = decode_footer(&bytes, 54);
            assert!(
                matches!(refused, Err(Error::BadEntry { index: 0, .. })),
                "byte {at}: {refused:?}"
            );
        }
        assert!(decode_footer(&sound[..47], 54).is_err(), "half an entry");
    }
}
