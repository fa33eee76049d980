//! Lists of extents in columns, and the extent nodes that hold those of large files.
//!
//! Layout of a list: count; lengths (varints); kinds (a byte each: 0 whole, 1 zero); references into the list's table of
//! chunk ids (varints: 0 is the table's next id, n the one at n − 1, which an earlier extent named); the table (32 bytes
//! an id). In the usual list, all ids differ and the references are zeros, which compress to nothing.
//!
//! Promises: one encoding per list. Refuses empty extents, and kinds of a newer program by name.

#![deny(clippy::indexing_slicing)]

use std::collections::HashMap;

use crate::ids::{ChunkId, Extent, Parts};

use super::bytes::{Reader, put_varint};
use super::node::{NodeKind, node_header, read_header};
use super::{LARGEST_NODE, TreeError};

/// The fewest bytes an extent takes: length, kind, reference.
const SMALLEST_EXTENT: usize = 3;
/// The kind whose number is reserved for extents composed of a base and page patches.
const COMPOSED: u8 = 2;

/// The extents of one span of a large file, as a node of its own.
pub fn encode_extent_node(extents: &[Extent]) -> Vec<u8> {
    let mut out = node_header(NodeKind::Extents);
    put_extents(&mut out, extents);
    out
}

/// The extents that a node lists.
pub fn decode_extent_node(bytes: &[u8]) -> Result<Vec<Extent>, TreeError> {
    if bytes.len() > LARGEST_NODE {
        return Err(TreeError::TooLarge);
    }
    let mut reader = Reader::new(bytes);
    match read_header(&mut reader)? {
        NodeKind::Extents => {}
        found => return Err(TreeError::WrongKind(found as u8)),
    }
    let extents = read_extents(&mut reader)?;
    reader.end()?;
    Ok(extents)
}

/// Appends a list.
pub(crate) fn put_extents(out: &mut Vec<u8>, extents: &[Extent]) {
    put_varint(out, extents.len() as u64);
    for extent in extents {
        put_varint(out, u64::from(extent.length));
    }
    out.extend(extents.iter().map(|extent| kind_code(extent.parts)));
    let mut places: HashMap<ChunkId, u64> = HashMap::with_capacity(extents.len());
    let mut table = Vec::with_capacity(extents.len() * 32);
    for extent in extents {
        let next = places.len() as u64;
        let place = *places.entry(extent.id).or_insert(next);
        if place == next {
            put_varint(out, 0);
            table.extend_from_slice(&extent.id.0);
        } else {
            put_varint(out, place + 1);
        }
    }
    out.extend_from_slice(&table);
}

/// Reads a list.
pub(crate) fn read_extents(reader: &mut Reader<'_>) -> Result<Vec<Extent>, TreeError> {
    let count = reader.count(SMALLEST_EXTENT)?;
    let lengths = (0..count)
        .map(|_| reader.varint_u32())
        .collect::<Result<Vec<u32>, _>>()?;
    let kinds = reader.take(count)?;
    let references = (0..count)
        .map(|_| reader.varint())
        .collect::<Result<Vec<u64>, _>>()?;
    let new = references
        .iter()
        .filter(|reference| **reference == 0)
        .count();
    let table = reader.take(new.checked_mul(32).ok_or(TreeError::Cut)?)?;
    let (table, _) = table.as_chunks::<32>();
    let mut named = 0usize;
    let mut extents = Vec::with_capacity(count);
    for ((length, kind), reference) in lengths.into_iter().zip(kinds).zip(references) {
        let place = match reference {
            0 => named,
            earlier => usize::try_from(earlier - 1)
                .ok()
                .filter(|place| *place < named)
                .ok_or(TreeError::Reference)?,
        };
        named += usize::from(reference == 0);
        let id = table
            .get(place)
            .map(|id| ChunkId(*id))
            .ok_or(TreeError::Reference)?;
        if length == 0 {
            return Err(TreeError::Inconsistent("an extent without bytes"));
        }
        extents.push(Extent {
            length,
            id,
            parts: parts_of(*kind)?,
        });
    }
    Ok(extents)
}

fn kind_code(parts: Parts) -> u8 {
    match parts {
        Parts::Whole => 0,
        Parts::Zero => 1,
    }
}

fn parts_of(code: u8) -> Result<Parts, TreeError> {
    match code {
        0 => Ok(Parts::Whole),
        1 => Ok(Parts::Zero),
        COMPOSED => Err(TreeError::TooNew(
            "an extent composed of a base and page patches",
        )),
        _ => Err(TreeError::TooNew("an unknown kind of extent")),
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn some_extent() -> impl Strategy<Value = Extent> {
        (1u32.., 0u8..6, any::<bool>()).prop_map(|(length, id, zero)| Extent {
            length,
            id: ChunkId([id; 32]),
            parts: if zero { Parts::Zero } else { Parts::Whole },
        })
    }

    proptest! {
        #[test]
        fn extents_come_back_as_they_were(extents in prop::collection::vec(some_extent(), 0..40)) {
            prop_assert_eq!(decode_extent_node(&encode_extent_node(&extents)), Ok(extents));
        }

        #[test]
        fn arbitrary_and_mutated_bytes_never_panic(
            noise in prop::collection::vec(any::<u8>(), 0..300),
            extents in prop::collection::vec(some_extent(), 0..20),
            at: prop::sample::Index,
            bits in 1u8..,
        ) {
            drop(decode_extent_node(&noise));
            let mut bytes = encode_extent_node(&[]);
            bytes.extend_from_slice(&noise);
            drop(decode_extent_node(&bytes));
            let mut bytes = encode_extent_node(&extents);
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
            drop(decode_extent_node(&bytes));
            drop(decode_extent_node(&bytes[..at]));
        }
    }

    #[test]
    fn a_repeated_chunk_is_named_once() {
        let extent = Extent {
            length: 8192,
            id: ChunkId([1; 32]),
            parts: Parts::Whole,
        };
        let one = encode_extent_node(&[extent]).len();
        assert_eq!(encode_extent_node(&[extent; 3]).len(), one + 2 * 4);
    }

    #[test]
    fn a_composed_extent_needs_a_newer_program_and_says_so() {
        let mut bytes = encode_extent_node(&[Extent {
            length: 1,
            id: ChunkId([1; 32]),
            parts: Parts::Whole,
        }]);
        let kind = bytes.len() - 32 - 2;
        bytes[kind] = COMPOSED;
        let refused = decode_extent_node(&bytes).unwrap_err();
        assert!(
            refused.to_string().starts_with("needs a newer pgcairn"),
            "{refused}"
        );
    }
}
