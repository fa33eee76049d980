//! WAL files as objects: small packs whose blobs are the pieces of one file.
//!
//! Promises: the same file makes the same object; what is decoded was checked as a whole and piece by piece, the latter
//! unless the caller said that it will see to that itself. Refuses a pack whose blobs are not the pieces of a file, and
//! files above 1 GiB, the largest WAL segment that PostgreSQL knows.
//! Pieces are independent, so that a caller can seal them on several threads. Knows nothing of what is in a WAL file.

use crate::ids::{BlobKind, ChunkId, Namer, PackId};
use crate::pack::compress::{Codec, LARGEST_BLOCK, first_bytes};
use crate::pack::format::{
    ENTRY_BYTES, FRAME_BYTES, FooterEntry, HEADER_BYTES, TRAILER_BYTES, decode_frame,
};
use crate::pack::reader::{Fetch, Opener, ReadError, framed, parse_footer, read_footer};
use crate::pack::writer::{PackWriter, Sealed, Sealer};
use crate::pack::{Error, Result};

/// Length of every piece but the last, which may be shorter. Part of the format.
pub const PIECE_BYTES: usize = 2 << 20;
/// No WAL file is larger.
pub const LARGEST_FILE: u64 = 1 << 30;
/// No object that holds one is larger: what does not shrink is stored as it is, in pieces that each have a frame and a
/// place in the footer.
pub const LARGEST_OBJECT: u64 = LARGEST_FILE + (1 << 20);

/// A sealed piece that owns its bytes, so that it can leave the thread that sealed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedPiece {
    id: ChunkId,
    codec: Codec,
    raw_bytes: u32,
    payload: Vec<u8>,
}

/// The pieces of a WAL file, in order; none if it is empty.
pub fn split(raw: &[u8]) -> impl Iterator<Item = &[u8]> {
    raw.chunks(PIECE_BYTES)
}

/// Compresses and verifies one piece.
pub fn seal_piece(sealer: &mut Sealer, namer: &Namer, piece: &[u8]) -> Result<SealedPiece> {
    let id = namer.name(BlobKind::Wal, piece);
    let Sealed {
        codec,
        raw_bytes,
        payload,
        ..
    } = sealer.seal(namer, BlobKind::Wal, id, piece)?;
    Ok(SealedPiece {
        id,
        codec,
        raw_bytes,
        payload: payload.to_vec(),
    })
}

/// The object that holds these pieces of one file, given in order.
pub fn assemble(pieces: &[SealedPiece]) -> Result<Vec<u8>> {
    let blobs: usize = pieces
        .iter()
        .map(|piece| FRAME_BYTES + piece.payload.len() + ENTRY_BYTES)
        .sum();
    let mut pack =
        PackWriter::with_buffer(Vec::with_capacity(HEADER_BYTES + blobs + TRAILER_BYTES));
    for SealedPiece {
        id,
        codec,
        raw_bytes,
        payload,
    } in pieces
    {
        let sealed = Sealed {
            id: *id,
            kind: BlobKind::Wal,
            codec: *codec,
            raw_bytes: *raw_bytes,
            payload,
        };
        pack.push(&sealed)?;
    }
    Ok(pack.finish().bytes)
}

/// The file that an object holds.
pub fn decode(namer: &Namer, object: &[u8]) -> Result<Vec<u8>> {
    let mut file = Vec::new();
    for_each_piece(namer, object, |_, piece| {
        file.extend_from_slice(piece);
        Ok::<(), Error>(())
    })?;
    Ok(file)
}

/// Hands the pieces of the file that an object holds to `take`, in order, each with its id; answers the file's length.
/// Every piece was checked when it is handed over, and the object as a whole before the first.
pub fn for_each_piece<E: From<Error>>(
    namer: &Namer,
    object: &[u8],
    mut take: impl FnMut(ChunkId, &[u8]) -> std::result::Result<(), E>,
) -> std::result::Result<u64, E> {
    let object = WalObject::open(object)?;
    let mut decoder = Decoder::checking(namer)?;
    for index in 0..object.pieces() {
        let piece = decoder.piece(&object, index)?;
        take(piece.id, piece.bytes)?;
    }
    Ok(object.file_bytes)
}

/// An object that was found whole: its checksum is right, and its blobs are the pieces of a file. What is in the pieces
/// is checked when they are decoded.
pub struct WalObject<'a> {
    object: &'a [u8],
    entries: Vec<FooterEntry>,
    /// The length of the file.
    pub file_bytes: u64,
}

impl<'a> WalObject<'a> {
    /// Checks an object as a whole.
    pub fn open(object: &'a [u8]) -> Result<Self> {
        let entries = parse_footer(object)?;
        let file_bytes = file_bytes(&entries)? as u64;
        Ok(WalObject {
            object,
            entries,
            file_bytes,
        })
    }

    /// How many pieces the file has.
    pub fn pieces(&self) -> usize {
        self.entries.len()
    }
}

/// A piece of a file.
pub struct Piece<'a> {
    /// Its id.
    pub id: ChunkId,
    /// Where in the file it begins.
    pub offset: u64,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// Decodes pieces; one per thread. Each is decoded into the same buffer as the one before, into memory that is at hand.
pub struct Decoder {
    opener: Opener,
    namer: Option<Namer>,
    bytes: Vec<u8>,
}

impl Decoder {
    /// A decoder that holds each piece against its id.
    pub fn checking(namer: &Namer) -> Result<Self> {
        Ok(Decoder {
            opener: Opener::new()?,
            namer: Some(namer.clone()),
            bytes: Vec::new(),
        })
    }

    /// A decoder that does not, for who will before he relies on the pieces. The ids are those of the footer, for which
    /// the object's checksum vouches.
    pub fn not_checking() -> Result<Self> {
        Ok(Decoder {
            opener: Opener::new()?,
            namer: None,
            bytes: Vec::new(),
        })
    }

    /// A piece of a file, valid until the next call.
    pub fn piece(&mut self, object: &WalObject<'_>, index: usize) -> Result<Piece<'_>> {
        let entry = object.entries.get(index).ok_or(Error::NotWal {
            index,
            why: "is not there",
        })?;
        // An object has no pack id; the reader needs none.
        let location = entry.location(PackId([0; 16]));
        let framed = framed(object.object, &location)?;
        let (opener, bytes) = (&mut self.opener, &mut self.bytes);
        match &self.namer {
            Some(namer) => opener.open(namer, &entry.id, &location, framed, bytes)?,
            None => opener.decode_unnamed(&location, framed, bytes)?,
        }
        Ok(Piece {
            id: entry.id,
            offset: (index * PIECE_BYTES) as u64,
            bytes: &self.bytes,
        })
    }
}

/// What can be told of a file without decoding it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glance {
    /// Its length.
    pub bytes: u64,
    /// How it begins: `head_bytes`, or all of it if it is shorter.
    pub head: Vec<u8>,
}

/// Looks at an object of `pack_bytes` that is kept elsewhere: its footer and the beginning of its first piece are all
/// that is fetched. The footer is vouched for by its checksum; the head by nothing but its own form.
pub fn glance<E: std::error::Error>(
    fetch: &mut Fetch<'_, E>,
    pack_bytes: u64,
    head_bytes: usize,
) -> std::result::Result<Glance, ReadError<E>> {
    let entries = read_footer(fetch, pack_bytes)?;
    let bytes = file_bytes(&entries)? as u64;
    let Some(first) = entries.first() else {
        let head = Vec::new();
        return Ok(Glance { bytes, head });
    };
    let offset = u64::from(first.offset);
    let mut start = vec![0; FRAME_BYTES + (first.stored_bytes as usize).min(LARGEST_BLOCK)];
    fetch(offset, &mut start).map_err(ReadError::Fetch)?;
    let frame = decode_frame(&start, offset)?;
    let payload = start.get(FRAME_BYTES..).unwrap_or_default();
    let mut head = vec![0; head_bytes.min(first.raw_bytes as usize)];
    let decode = |source| Error::Decode { offset, source };
    match frame.codec {
        Codec::Raw => {
            let length = head.len().min(payload.len());
            head.truncate(length);
            head.copy_from_slice(payload.get(..length).unwrap_or_default());
        }
        Codec::Zstd => first_bytes(payload, &mut head).map_err(decode)?,
    }
    Ok(Glance { bytes, head })
}

/// The length of the file whose pieces these are, if they are the pieces of one.
fn file_bytes(entries: &[FooterEntry]) -> Result<usize> {
    for (index, entry) in entries.iter().enumerate() {
        let (raw_bytes, is_last) = (entry.raw_bytes as usize, index + 1 == entries.len());
        if entry.kind != BlobKind::Wal {
            return Err(Error::NotWal {
                index,
                why: "holds something else",
            });
        }
        if raw_bytes == 0 || raw_bytes > PIECE_BYTES {
            return Err(Error::NotWal {
                index,
                why: "is empty or too long",
            });
        }
        if raw_bytes < PIECE_BYTES && !is_last {
            return Err(Error::NotWal {
                index,
                why: "is short and not the last",
            });
        }
    }
    let bytes = entries.iter().map(|entry| u64::from(entry.raw_bytes)).sum();
    let too_large = Error::TooLarge {
        what: "WAL file",
        bytes,
        most: LARGEST_FILE,
    };
    usize::try_from(bytes)
        .ok()
        .filter(|_| bytes <= LARGEST_FILE)
        .ok_or(too_large)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    static NAMER: LazyLock<Namer> = LazyLock::new(Namer::plain);

    fn encode(raw: &[u8]) -> Vec<u8> {
        let mut sealer = Sealer::new(3).unwrap();
        let pieces: Vec<_> = split(raw)
            .map(|piece| seal_piece(&mut sealer, &NAMER, piece).unwrap())
            .collect();
        assemble(&pieces).unwrap()
    }

    /// Looks like WAL: short records, some of their bytes incompressible; the rest was never written.
    fn segment(bytes: usize, written: usize) -> Vec<u8> {
        let mut raw = vec![0; bytes];
        let mut state = 1u64;
        for record in raw[..written].chunks_mut(64) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let noise = state.to_le_bytes();
            let repeated = b"heap insert off 12 flags 0x00, blkref #0: rel 1663/16384/16397 ";
            for (place, byte) in record.iter_mut().zip(noise.iter().chain(repeated)) {
                *place = *byte;
            }
        }
        raw
    }

    #[test]
    fn files_of_every_size_come_back_as_they_were() {
        for bytes in [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 16 << 20] {
            let raw = segment(bytes, bytes);
            assert!(
                decode(&NAMER, &encode(&raw)).unwrap() == raw,
                "{bytes} bytes"
            );
        }
    }

    #[test]
    fn a_mostly_empty_segment_makes_a_tiny_object() {
        let raw = segment(16 << 20, 512);
        let object = encode(&raw);
        assert!(object.len() < 4096, "{} bytes", object.len());
        assert!(decode(&NAMER, &object).unwrap() == raw);
    }

    #[test]
    fn a_glance_tells_length_and_beginning_and_fetches_little() {
        for raw in [
            segment(16 << 20, 16 << 20),
            segment(5000, 5000),
            vec![7; 10],
            Vec::new(),
        ] {
            let object = encode(&raw);
            let mut fetched = 0;
            let mut fetch = |offset: u64, buffer: &mut [u8]| {
                fetched += buffer.len();
                let at = usize::try_from(offset).unwrap();
                buffer.copy_from_slice(&object[at..at + buffer.len()]);
                Ok::<(), Error>(())
            };
            let seen = glance(&mut fetch, object.len() as u64, 40).unwrap();
            assert_eq!(seen.bytes, raw.len() as u64);
            assert_eq!(seen.head, raw[..raw.len().min(40)]);
            assert!(fetched < 256 << 10, "{fetched} bytes");
        }
    }

    #[test]
    fn the_same_file_makes_the_same_object() {
        let raw = segment(PIECE_BYTES + 4096, PIECE_BYTES);
        assert!(encode(&raw) == encode(&raw));
    }

    #[test]
    fn a_damaged_object_is_never_a_file() {
        let object = encode(&segment(8192, 600));
        for bit in 0..object.len() * 8 {
            let mut damaged = object.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&NAMER, &damaged).is_err(), "bit {bit}");
        }
        for length in 0..object.len() {
            assert!(decode(&NAMER, &object[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_pack_that_holds_no_pieces_of_one_file_is_refused() {
        let mut sealer = Sealer::new(3).unwrap();
        let pack = |kind, lengths: &[usize], sealer: &mut Sealer| {
            let mut pack = PackWriter::with_buffer(Vec::new());
            for length in lengths {
                let raw = vec![7; *length];
                let id = NAMER.name(kind, &raw);
                pack.push(&sealer.seal(&NAMER, kind, id, &raw).unwrap())
                    .unwrap();
            }
            pack.finish().bytes
        };
        let refused = [
            pack(BlobKind::Data, &[100], &mut sealer),
            pack(BlobKind::Wal, &[100, 100], &mut sealer),
            pack(BlobKind::Wal, &[PIECE_BYTES + 1], &mut sealer),
            pack(BlobKind::Wal, &[PIECE_BYTES, 0], &mut sealer),
        ];
        for object in refused {
            let answer = decode(&NAMER, &object);
            assert!(matches!(answer, Err(Error::NotWal { .. })), "{answer:?}");
        }
        let piece = parse_footer(&pack(BlobKind::Wal, &[PIECE_BYTES], &mut sealer)).unwrap();
        assert!(matches!(
            file_bytes(&piece.repeat(513)),
            Err(Error::TooLarge { .. })
        ));
    }
}
