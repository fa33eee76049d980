//! Reading and writing hand-laid bytes: varints, lengths, ids.
//!
//! Promises: nothing is read past the end, no length is believed before it is compared with the bytes that remain, and
//! every number has one encoding only (LEB128, at most 10 bytes, no padding), so equal content has equal bytes.

#![deny(clippy::indexing_slicing)]

use super::TreeError;
use crate::ids::ChunkId;

/// What is left of some bytes that are being read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader(bytes)
    }

    /// How many bytes remain.
    pub(crate) fn remaining(&self) -> usize {
        self.0.len()
    }

    /// The next `length` bytes.
    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], TreeError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(TreeError::Cut)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, TreeError> {
        let (first, rest) = self.0.split_first().ok_or(TreeError::Cut)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(crate) fn u32_le(&mut self) -> Result<u32, TreeError> {
        self.take(4)?
            .try_into()
            .map(u32::from_le_bytes)
            .map_err(|_| TreeError::Cut)
    }

    pub(crate) fn id(&mut self) -> Result<ChunkId, TreeError> {
        self.take(32)?
            .try_into()
            .map(ChunkId)
            .map_err(|_| TreeError::Cut)
    }

    pub(crate) fn varint(&mut self) -> Result<u64, TreeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return if byte == 0 && shift > 0 {
                    Err(TreeError::Varint)
                } else {
                    Ok(value)
                };
            }
        }
        Err(TreeError::Varint)
    }

    pub(crate) fn varint_u32(&mut self) -> Result<u32, TreeError> {
        u32::try_from(self.varint()?).map_err(|_| TreeError::Varint)
    }

    /// A signed number: zigzag, so that small ones of either sign are short.
    pub(crate) fn signed(&mut self) -> Result<i64, TreeError> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// A length, then as many bytes; refused above `limit`.
    pub(crate) fn sized(&mut self, limit: usize) -> Result<&'a [u8], TreeError> {
        let length = usize::try_from(self.varint()?).map_err(|_| TreeError::Cut)?;
        if length > limit {
            return Err(TreeError::TooLarge);
        }
        self.take(length)
    }

    /// A number of things that take `smallest` bytes each at least: refused unless so many can follow.
    pub(crate) fn count(&mut self, smallest: usize) -> Result<usize, TreeError> {
        let count = usize::try_from(self.varint()?).map_err(|_| TreeError::Cut)?;
        if count > self.remaining() / smallest.max(1) {
            return Err(TreeError::Cut);
        }
        Ok(count)
    }

    /// Refuses bytes that are left over.
    pub(crate) fn end(&self) -> Result<(), TreeError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(TreeError::LeftOver(self.0.len()))
        }
    }
}

/// Appends a number, 7 bits a byte, the lowest first.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// Appends a signed number: zigzag.
pub(crate) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

/// Appends a length and as many bytes.
pub(crate) fn put_sized(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_and_have_one_encoding() {
        for value in [
            0,
            1,
            127,
            128,
            16_383,
            16_384,
            u64::from(u32::MAX),
            u64::MAX,
        ] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut reader = Reader::new(&bytes);
            assert_eq!(reader.varint(), Ok(value));
            assert_eq!(reader.end(), Ok(()));
        }
        for value in [0, -1, 1, i64::MIN, i64::MAX] {
            let mut bytes = Vec::new();
            put_signed(&mut bytes, value);
            assert_eq!(Reader::new(&bytes).signed(), Ok(value));
        }
        assert_eq!(
            Reader::new(&[0x80, 0x00]).varint(),
            Err(TreeError::Varint),
            "padded"
        );
        assert_eq!(
            Reader::new(&[0xff; 10]).varint(),
            Err(TreeError::Varint),
            "more than 64 bits"
        );
        assert_eq!(Reader::new(&[0x80]).varint(), Err(TreeError::Cut));
    }

    #[test]
    fn counts_that_cannot_follow_are_refused_before_anything_is_allocated() {
        assert_eq!(Reader::new(&[3, 0, 0]).count(1), Err(TreeError::Cut));
        assert_eq!(Reader::new(&[2, 0, 0]).count(1), Ok(2));
        assert_eq!(Reader::new(&[5, 0, 0]).sized(4), Err(TreeError::TooLarge));
    }
}
