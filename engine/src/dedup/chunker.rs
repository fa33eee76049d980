//! Where a region of a file is cut into chunks: FastCDC, and page boundaries where the file consists of pages.
//!
//! Promises: the cut points depend on the data and the repository's configuration alone; every chunk but the last of a
//! region is within the configured bounds; chunks of pages end on page boundaries. Refuses chunk sizes outside the
//! algorithm's limits (the crate checks them in debug builds only), page sizes that do not divide regions and chunks,
//! and more than one region at once.
//!
//! The algorithm is part of the format: FastCDC as of 2020 (Xia et al., "The Design of Fast Content-Defined Chunking
//! for Data Deduplication Based Storage Systems", IEEE TPDS 31(9)) as the crate `fastcdc` 5.0.0 implements it, with its
//! own gear table. Golden vectors below hold it in place. The only file that knows the crate.

use std::borrow::Cow;

use fastcdc::v2020::{self, Normalization};

use super::{Error, Result};
use crate::repository::config::{ChunkSizes, Config, Gear};

/// What kind of bytes a file consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Structure {
    /// Pages of this many bytes, which never move: PostgreSQL's relation files.
    Pages {
        /// Length of a page, in bytes.
        page_bytes: u32,
    },
    /// Anything else.
    Plain,
}

/// Which part of a region is at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// It begins the region.
    pub first: bool,
    /// It ends the region, or the file.
    pub last: bool,
}

impl Window {
    /// All of it.
    pub const WHOLE: Window = Window {
        first: true,
        last: true,
    };
}

/// Cuts regions. Made once per repository, shared by threads.
#[derive(Debug, Clone)]
pub struct Chunker {
    region_bytes: u32,
    whole_below: u32,
    relation: Cutter,
    plain: Cutter,
    gear: Cow<'static, [u64]>,
    gear_shifted: Cow<'static, [u64]>,
}

/// One set of chunk sizes, checked, with the masks that follow from it.
#[derive(Debug, Clone, Copy)]
struct Cutter {
    min: usize,
    avg: usize,
    max: usize,
    strict_mask: u64,
    loose_mask: u64,
}

impl Chunker {
    /// The chunker of a repository; [`Error::ChunkSizes`] if its sizes are outside the algorithm's limits.
    pub fn new(config: &Config) -> Result<Self> {
        let relation = Cutter::new("relation files", &config.relation)?;
        let plain = Cutter::new("other files", &config.plain)?;
        if config.whole_below > config.plain.max {
            let reason = format!(
                "{} bytes in one chunk are more than the maximum",
                config.whole_below
            );
            return Err(Error::ChunkSizes {
                structure: "other files",
                reason,
            });
        }
        let Gear::Standard = config.gear;
        let (gear, gear_shifted) = v2020::get_gear_with_seed(0);
        let (region_bytes, whole_below) = (config.region_bytes, config.whole_below);
        Ok(Chunker {
            region_bytes,
            whole_below,
            relation,
            plain,
            gear,
            gear_shifted,
        })
    }

    /// Cuts one region (or the shorter rest of a file). `ends` receives the end of each chunk, in bytes from the start
    /// of `data`; the last is the length of `data`, and empty data has none.
    pub fn cut(&self, structure: Structure, data: &[u8], ends: &mut Vec<u32>) -> Result<()> {
        self.cut_along(structure, &[], data, ends)
    }

    /// Cuts as [`Chunker::cut`] does, but first along the extents that the same region had in a prior snapshot, given by
    /// their lengths in bytes, as long as they fit into `data` wholly; what follows them is cut anew. Pass all extents
    /// of a region that a further region follows; of a file's last region leave the last extent out, so that a file that
    /// grows does not collect ever smaller ones. A length that this structure could not have ends the following.
    pub fn cut_along(
        &self,
        structure: Structure,
        prior_lengths: &[u32],
        data: &[u8],
        ends: &mut Vec<u32>,
    ) -> Result<()> {
        let mut prior = prior_lengths;
        self.cut_window(structure, &mut prior, data, Window::WHOLE, ends)
    }

    /// Cuts the part of a region that is at hand: the same chunks as if the whole region were. `data` begins where the
    /// last call's last chunk ended; what follows the last end of this call is to be passed again, with more behind it,
    /// unless this was the last window. `prior_lengths` advances over the lengths that were followed. A window that is
    /// not the last needs as many bytes as the longest chunk to make progress.
    pub fn cut_window(
        &self,
        structure: Structure,
        prior_lengths: &mut &[u32],
        data: &[u8],
        window: Window,
        ends: &mut Vec<u32>,
    ) -> Result<()> {
        ends.clear();
        let too_long = || Error::RegionTooLong {
            bytes: data.len(),
            region_bytes: self.region_bytes,
        };
        let bytes = u32::try_from(data.len()).map_err(|_| too_long())?;
        if bytes > self.region_bytes {
            return Err(too_long());
        }
        let (cutter, page_bytes) = match structure {
            Structure::Pages { page_bytes } => (&self.relation, self.checked_page(page_bytes)?),
            Structure::Plain => (&self.plain, 1),
        };
        let mut start: u32 = 0;
        while let Some((&length, rest)) = prior_lengths.split_first() {
            let sound =
                length > 0 && length as usize <= cutter.max && length.is_multiple_of(page_bytes);
            let fits = length <= bytes - start;
            if sound && !fits && !window.last {
                return Ok(());
            }
            if !sound || !fits {
                *prior_lengths = &[];
                break;
            }
            start += length;
            ends.push(start);
            *prior_lengths = rest;
        }
        let whole =
            structure == Structure::Plain && window == Window::WHOLE && bytes < self.whole_below;
        let enough = |rest: &&[u8]| !rest.is_empty() && (window.last || rest.len() >= cutter.max);
        while let Some(rest) = data.get(start as usize..).filter(enough) {
            let length = if whole {
                rest.len()
            } else {
                self.cut_once(cutter, rest)
            };
            let length = length.next_multiple_of(page_bytes as usize).min(rest.len());
            start += u32::try_from(length).map_err(|_| too_long())?;
            ends.push(start);
        }
        Ok(())
    }

    /// The page size, if regions and the bounds of chunks are multiples of it. Rounding a cut point up then never
    /// passes the maximum.
    fn checked_page(&self, page_bytes: u32) -> Result<u32> {
        let divides = |bytes: usize| page_bytes != 0 && bytes.is_multiple_of(page_bytes as usize);
        let even = divides(self.region_bytes as usize)
            && divides(self.relation.min)
            && divides(self.relation.max);
        if even {
            Ok(page_bytes)
        } else {
            Err(Error::PageSize { page_bytes })
        }
    }

    /// Length of the first chunk of `rest`, which is not empty.
    fn cut_once(&self, cutter: &Cutter, rest: &[u8]) -> usize {
        let (_fingerprint, length) = v2020::cut_gear(
            rest,
            cutter.min,
            cutter.avg,
            cutter.max,
            cutter.strict_mask,
            cutter.loose_mask,
            cutter.strict_mask << 1,
            cutter.loose_mask << 1,
            &self.gear,
            &self.gear_shifted,
        );
        length
    }
}

impl Cutter {
    /// Checks what the crate checks in debug builds only, and derives the masks.
    fn new(structure: &'static str, sizes: &ChunkSizes) -> Result<Self> {
        let refuse = |reason: String| Err(Error::ChunkSizes { structure, reason });
        let (min, avg, max) = (sizes.min as usize, sizes.avg as usize, sizes.max as usize);
        for (name, size, least, most) in [
            ("minimum", min, v2020::MINIMUM_MIN, v2020::MINIMUM_MAX),
            ("average", avg, v2020::AVERAGE_MIN, v2020::AVERAGE_MAX),
            ("maximum", max, v2020::MAXIMUM_MIN, v2020::MAXIMUM_MAX),
        ] {
            if !(least..=most).contains(&size) || !size.is_multiple_of(2) {
                return refuse(format!(
                    "the {name} of {size} is not an even number from {least} to {most}"
                ));
            }
        }
        if min > avg || avg > max {
            return refuse(format!("{min}, {avg}, {max} do not rise"));
        }
        let level = match sizes.normal {
            0 => Normalization::Level0,
            1 => Normalization::Level1,
            2 => Normalization::Level2,
            3 => Normalization::Level3,
            other => return refuse(format!("normalisation level {other} is not one of 0 to 3")),
        };
        let (strict_mask, loose_mask) = v2020::select_masks(avg, level);
        Ok(Cutter {
            min,
            avg,
            max,
            strict_mask,
            loose_mask,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::config::Capabilities;

    const KIB: u32 = 1024;
    const PAGES: Structure = Structure::Pages {
        page_bytes: 8 * KIB,
    };

    /// As today's repositories: pages 128/256/512 KiB, plain 32/128/512 KiB, level 2, whole below 64 KiB.
    fn config() -> Config {
        Config::new(
            0,
            Capabilities {
                put_if_absent: true,
                list_after_put: true,
            },
        )
    }

    fn chunker() -> Chunker {
        Chunker::new(&config()).unwrap()
    }

    /// Bytes of the generator `SplitMix64` (Steele, Lea, Flood 2014), little-endian.
    fn noise(seed: u64, bytes: u32) -> Vec<u8> {
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        let words = (0..bytes.div_ceil(8)).flat_map(|_| next().to_le_bytes());
        words.take(bytes as usize).collect()
    }

    fn cut(structure: Structure, data: &[u8]) -> Vec<u32> {
        let mut ends = vec![7];
        chunker().cut(structure, data, &mut ends).unwrap();
        ends
    }

    fn lengths(ends: &[u32]) -> Vec<u32> {
        let starts = std::iter::once(&0).chain(ends);
        ends.iter()
            .zip(starts)
            .map(|(end, start)| end - start)
            .collect()
    }

    /// Golden vectors: these cut points are part of the format.
    #[test]
    fn cut_points_are_those_of_the_format() {
        let data = noise(1, 2_000_000);
        let plain = [
            152_060, 278_755, 317_028, 367_399, 513_669, 648_474, 802_663, 982_087, 1_106_190,
            1_258_970, 1_392_742, 1_559_469, 1_718_658, 1_918_872, 2_000_000,
        ];
        assert_eq!(cut(Structure::Plain, &data), plain);
        let pages_of_8_kib = [
            286_720, 565_248, 835_584, 1_105_920, 1_433_600, 1_794_048, 2_000_000,
        ];
        assert_eq!(cut(PAGES, &data), pages_of_8_kib);
        let pages_of_32_kib = [
            294_912, 589_824, 917_504, 1_114_112, 1_441_792, 1_802_240, 2_000_000,
        ];
        assert_eq!(
            cut(
                Structure::Pages {
                    page_bytes: 32 * KIB
                },
                &data
            ),
            pages_of_32_kib
        );
        let document = include_str!("../../docs/format.md");
        let words: Vec<&str> = document.split_whitespace().collect();
        let document = words.join(" ");
        let lists: [&[u32]; 3] = [&plain, &pages_of_8_kib, &pages_of_32_kib];
        for ends in lists {
            let ends: Vec<String> = ends.iter().map(u32::to_string).collect();
            assert!(document.contains(&ends.join(", ")), "{ends:?}");
        }
    }

    #[test]
    fn plain_data_is_cut_as_the_crates_own_iterator_cuts_it() {
        let data = noise(9, 3_000_001);
        let level = Normalization::Level2;
        let chunks = v2020::FastCDC::with_level(&data, 32 << 10, 128 << 10, 512 << 10, level);
        let ends: Vec<_> = chunks
            .map(|chunk| u32::try_from(chunk.offset + chunk.length).unwrap())
            .collect();
        assert_eq!(cut(Structure::Plain, &data), ends);
    }

    #[test]
    fn chunks_of_pages_end_on_page_boundaries_and_keep_the_bounds() {
        let ends = cut(PAGES, &noise(2, 16 * KIB * KIB));
        assert!(ends.iter().all(|end| end.is_multiple_of(8 * KIB)));
        let lengths = lengths(&ends);
        let (_last, others) = lengths.split_last().unwrap();
        assert!(
            others
                .iter()
                .all(|length| (128 * KIB..=512 * KIB).contains(length))
        );
        assert_eq!(lengths.iter().sum::<u32>(), 16 * KIB * KIB);
    }

    #[test]
    fn data_without_a_cut_point_is_cut_at_the_maximum() {
        let zeros = vec![0; 1_300_000];
        assert_eq!(cut(PAGES, &zeros), [512 * KIB, 1024 * KIB, 1_300_000]);
        assert_eq!(
            cut(Structure::Plain, &zeros),
            [512 * KIB, 1024 * KIB, 1_300_000]
        );
    }

    #[test]
    fn small_plain_data_is_one_chunk_and_no_data_is_none() {
        let data = noise(3, 64 * KIB);
        assert_eq!(cut(Structure::Plain, &data[..65_535]), [65_535]);
        assert_eq!(cut(Structure::Plain, &data[..1]), [1]);
        assert_eq!(cut(PAGES, &data[..100]), [100]);
        assert!(cut(Structure::Plain, &[]).is_empty() && cut(PAGES, &[]).is_empty());
    }

    #[test]
    fn an_insertion_into_plain_data_changes_only_the_chunks_around_it() {
        let before = noise(4, 8 * KIB * KIB);
        let mut after = before.clone();
        after.splice(4_000_000..4_000_000, noise(5, 999));
        let ends_before = cut(Structure::Plain, &before);
        let ends_after = cut(Structure::Plain, &after);
        let moved = |&end: &u32| if end > 4_000_000 { end - 999 } else { end };
        let kept = ends_after
            .iter()
            .map(moved)
            .filter(|end| ends_before.contains(end))
            .count();
        assert!(ends_before.len() > 40);
        assert!(
            ends_before.len() - kept <= 3,
            "{kept} of {} cut points kept",
            ends_before.len()
        );
    }

    #[test]
    fn unchanged_data_is_cut_along_as_it_was_cut_first() {
        let data = noise(6, 3_000_000);
        for structure in [PAGES, Structure::Plain] {
            let first = cut(structure, &data);
            let prior = lengths(&first);
            for followed in [prior.len(), prior.len() - 1, 1] {
                let mut ends = Vec::new();
                chunker()
                    .cut_along(structure, &prior[..followed], &data, &mut ends)
                    .unwrap();
                assert_eq!(ends, first);
            }
        }
    }

    #[test]
    fn prior_cut_points_hold_whatever_the_data_says_and_only_the_rest_is_cut_anew() {
        let prior = [200 * KIB, 136 * KIB, 512 * KIB];
        let data = noise(7, 1_500_000);
        let mut ends = Vec::new();
        chunker()
            .cut_along(PAGES, &prior, &data, &mut ends)
            .unwrap();
        let (followed, anew) = ends.split_at(3);
        assert_eq!(followed, [200 * KIB, 336 * KIB, 848 * KIB]);
        let rest: Vec<_> = cut(PAGES, &data[848 * KIB as usize..])
            .iter()
            .map(|end| end + 848 * KIB)
            .collect();
        assert_eq!(anew, rest);
    }

    #[test]
    fn a_prior_extent_that_no_longer_fits_or_never_could_is_not_followed() {
        let data = noise(8, 400 * KIB);
        for prior in [
            &[200 * KIB, 201 * KIB][..],
            &[200 * KIB, 0],
            &[200 * KIB, 100],
            &[200 * KIB, u32::MAX],
        ] {
            let mut ends = Vec::new();
            chunker().cut_along(PAGES, prior, &data, &mut ends).unwrap();
            let rest: Vec<_> = cut(PAGES, &data[200 * KIB as usize..])
                .iter()
                .map(|end| end + 200 * KIB)
                .collect();
            assert_eq!(ends, [&[200 * KIB][..], &rest].concat());
        }
    }

    #[test]
    fn sizes_outside_the_algorithms_limits_are_refused() {
        let good = ChunkSizes {
            min: 32 * KIB,
            avg: 128 * KIB,
            max: 512 * KIB,
            normal: 2,
        };
        for bad in [
            ChunkSizes { min: 62, ..good },
            ChunkSizes {
                min: 32 * KIB + 1,
                ..good
            },
            ChunkSizes {
                avg: 8 * KIB * KIB,
                ..good
            },
            ChunkSizes {
                max: 32 * KIB * KIB,
                ..good
            },
            ChunkSizes {
                avg: 16 * KIB,
                ..good
            },
            ChunkSizes {
                max: 64 * KIB,
                ..good
            },
            ChunkSizes { normal: 4, ..good },
        ] {
            let relation = Chunker::new(&Config {
                relation: bad,
                ..config()
            });
            let plain = Chunker::new(&Config {
                plain: bad,
                ..config()
            });
            assert!(
                matches!(
                    relation,
                    Err(Error::ChunkSizes {
                        structure: "relation files",
                        ..
                    })
                ),
                "{bad:?}"
            );
            assert!(
                matches!(
                    plain,
                    Err(Error::ChunkSizes {
                        structure: "other files",
                        ..
                    })
                ),
                "{bad:?}"
            );
        }
        assert!(
            Chunker::new(&Config {
                whole_below: 600 * KIB,
                ..config()
            })
            .is_err()
        );
    }

    #[test]
    fn odd_page_sizes_and_more_than_a_region_are_refused() {
        let mut ends = Vec::new();
        for page_bytes in [0, 3, 6_000, 256 * KIB] {
            let refused = chunker().cut(Structure::Pages { page_bytes }, &[1; 100], &mut ends);
            assert!(
                matches!(refused, Err(Error::PageSize { .. })),
                "{page_bytes}"
            );
        }
        let data = vec![0; 16 * 1024 * 1024 + 1];
        assert!(matches!(
            chunker().cut(Structure::Plain, &data, &mut ends),
            Err(Error::RegionTooLong { .. })
        ));
    }

    #[test]
    fn windows_of_any_size_make_the_chunks_of_the_whole_region() {
        let chunker = Chunker::new(&config()).unwrap();
        let data = noise(7, 3 << 20);
        for structure in [Structure::Pages { page_bytes: 8192 }, Structure::Plain] {
            let mut whole = Vec::new();
            chunker.cut(structure, &data, &mut whole).unwrap();
            for prior in [
                vec![],
                whole[..3]
                    .iter()
                    .scan(0, |from, end| Some(end - std::mem::replace(from, *end)))
                    .collect::<Vec<u32>>(),
            ] {
                let (mut at, mut to, mut found, mut ends) = (0, 0, Vec::new(), Vec::new());
                let mut rest = prior.as_slice();
                while to < data.len() {
                    to = (at + (700 << 10)).min(data.len());
                    let window = Window {
                        first: at == 0,
                        last: to == data.len(),
                    };
                    chunker
                        .cut_window(structure, &mut rest, &data[at..to], window, &mut ends)
                        .unwrap();
                    found.extend(ends.iter().map(|end| u32::try_from(at).unwrap() + end));
                    at += ends.last().map_or(0, |end| *end as usize);
                }
                assert_eq!(found, whole);
            }
        }
    }
}
