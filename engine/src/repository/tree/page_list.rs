//! The blob that lists a backup's suspect pages: named by its register, so that the register stays small.
//!
//! Layout: a node's header (kind 4); count; for each page the path of its file (front-coded: pages of one file follow
//! each other), its block number (varint) and its verdict (a byte: 0 bad, 1 torn).

#![deny(clippy::indexing_slicing)]

use super::bytes::{Reader, put_varint};
use super::node::{NodeKind, node_header, put_path, read_header};
use super::{LONGEST_PATH, TreeError, check_path};

/// No list is larger: a blob's bound.
const LARGEST_LIST: usize = 4 << 20;
/// The paths of a list, written out, take no more bytes together.
const LARGEST_WRITTEN_OUT: usize = 64 << 20;
/// The fewest bytes a page takes: two path lengths, block, verdict.
const SMALLEST_PAGE: usize = 4;

/// A page whose checksum did not match when it was backed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedPage {
    /// The file, relative to the data directory.
    pub path: Vec<u8>,
    /// The block number in the relation.
    pub block: u32,
    /// It was being written while it was read, and recovery repairs it; otherwise it is bad.
    pub torn: bool,
}

/// The list of these pages: path, block, whether it is torn. Short if pages of one file follow each other.
pub fn encode_page_list<'a>(
    pages: impl ExactSizeIterator<Item = (&'a [u8], u32, bool)>,
) -> Vec<u8> {
    let mut out = node_header(NodeKind::PageList);
    put_varint(&mut out, pages.len() as u64);
    let mut previous: &[u8] = b"";
    for (path, block, torn) in pages {
        put_path(&mut out, previous, path);
        put_varint(&mut out, u64::from(block));
        out.push(u8::from(torn));
        previous = path;
    }
    out
}

/// The pages that a list names.
pub fn decode_page_list(bytes: &[u8]) -> Result<Vec<ListedPage>, TreeError> {
    if bytes.len() > LARGEST_LIST {
        return Err(TreeError::TooLarge);
    }
    let mut reader = Reader::new(bytes);
    match read_header(&mut reader)? {
        NodeKind::PageList => {}
        other => return Err(TreeError::WrongKind(other as u8)),
    }
    let count = reader.count(SMALLEST_PAGE)?;
    let mut pages: Vec<ListedPage> = Vec::new();
    let mut total = 0;
    for _ in 0..count {
        let shared = usize::try_from(reader.varint()?).map_err(|_| TreeError::Reference)?;
        let rest = reader.sized(LONGEST_PATH)?;
        let previous = pages.last().map_or(&[][..], |page| &page.path);
        let mut path = previous.get(..shared).ok_or(TreeError::Reference)?.to_vec();
        path.extend_from_slice(rest);
        check_path(&path)?;
        total += path.len();
        if total > LARGEST_WRITTEN_OUT {
            return Err(TreeError::TooLarge);
        }
        let block = reader.varint_u32()?;
        let torn = match reader.byte()? {
            0 => false,
            1 => true,
            _ => return Err(TreeError::TooNew("an unknown verdict on a page")),
        };
        pages.push(ListedPage { path, block, torn });
    }
    reader.end()?;
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_list_comes_back_as_it_was_and_names_a_file_once() {
        let page = |path: &str, block, torn| ListedPage {
            path: path.into(),
            block,
            torn,
        };
        let pages = [
            page("base/5/16384", 7, true),
            page("base/5/16384", 9, false),
            page("base/5/16390.1", 131_072, true),
        ];
        let bytes = encode_page_list(
            pages
                .iter()
                .map(|page| (&page.path[..], page.block, page.torn)),
        );
        assert_eq!(decode_page_list(&bytes).unwrap(), pages);
        assert_eq!(bytes.len(), 6 + 1 + (2 + 12 + 2) + 4 + (2 + 4 + 4));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            drop(decode_page_list(&noise));
            let mut bytes = encode_page_list(std::iter::empty());
            bytes.pop();
            bytes.extend_from_slice(&noise);
            drop(decode_page_list(&bytes));
        }
    }
}
