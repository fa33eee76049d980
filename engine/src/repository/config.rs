//! The repository's own record: what was fixed when it was created, as plain numbers.
//!
//! Promises: never changed after creation; what chunk boundaries and ids depend on is here and nowhere else. Refuses
//! numbers that could not have been written: sizes of zero, bounds out of order.

use serde::{Deserialize, Serialize};

const KIB: u32 = 1 << 10;
const MIB: u32 = 1 << 20;

/// What every writer to this repository must agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// When it was created, by the store's clock: milliseconds since 1970-01-01 UTC.
    pub created_ms: i64,
    /// A cut is forced in every file at each multiple of this many bytes.
    pub region_bytes: u32,
    /// How relation files are cut.
    pub relation: ChunkSizes,
    /// How all other files are cut.
    pub plain: ChunkSizes,
    /// Other files shorter than this many bytes are one chunk.
    pub whole_below: u32,
    /// The table that `FastCDC` reads.
    pub gear: Gear,
    /// How chunks are named.
    pub id_mode: IdMode,
    /// Bytes of a file that one extent node covers.
    pub extent_node_span: u32,
    /// What the storage was seen to do at creation: a hint, looked at again where it matters.
    pub capabilities: Capabilities,
}

/// Bounds of content-defined chunks, in bytes, and the level of normalised chunking (Xia et al., `FastCDC`, 2016).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkSizes {
    /// No chunk is smaller, the last of a region excepted.
    pub min: u32,
    /// What is aimed at.
    pub avg: u32,
    /// No chunk is larger.
    pub max: u32,
    /// Normalisation level, 0 to 3.
    pub normal: u8,
}

/// Where the gear table comes from. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Gear {
    /// The table published with the `fastcdc` crate.
    Standard,
}

/// How chunk ids are made. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdMode {
    /// From content alone: equal bytes have equal ids in every repository.
    Plain,
}

/// What the storage was seen to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// A second put of a key is refused.
    pub put_if_absent: bool,
    /// What was put is listed at once.
    pub list_after_put: bool,
}

impl Config {
    /// The parameters that repositories are created with today; the reasons are in `docs/format.md`.
    pub fn new(created_ms: i64, capabilities: Capabilities) -> Self {
        Config {
            created_ms,
            region_bytes: 16 * MIB,
            relation: ChunkSizes {
                min: 128 * KIB,
                avg: 256 * KIB,
                max: 512 * KIB,
                normal: 2,
            },
            plain: ChunkSizes {
                min: 32 * KIB,
                avg: 128 * KIB,
                max: 512 * KIB,
                normal: 2,
            },
            whole_below: 64 * KIB,
            gear: Gear::Standard,
            id_mode: IdMode::Plain,
            extent_node_span: 4 * MIB,
            capabilities,
        }
    }

    /// Says which number cannot be worked with, if any.
    pub fn check(&self) -> Result<(), &'static str> {
        if !(MIB..=256 * MIB).contains(&self.region_bytes) {
            return Err("regions are not between 1 and 256 MiB");
        }
        if self.extent_node_span == 0 || !self.region_bytes.is_multiple_of(self.extent_node_span) {
            return Err("a region is not a whole number of extent nodes");
        }
        for sizes in [self.relation, self.plain] {
            if sizes.min == 0
                || sizes.min > sizes.avg
                || sizes.avg > sizes.max
                || sizes.max > self.region_bytes
            {
                return Err("chunk sizes are out of order");
            }
        }
        if self.whole_below > self.region_bytes {
            return Err("whole files are larger than a region");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPABLE: Capabilities = Capabilities {
        put_if_absent: true,
        list_after_put: true,
    };

    #[test]
    fn the_parameters_of_today_are_usable_and_spoilt_ones_are_not() {
        let sound = Config::new(0, CAPABLE);
        assert_eq!(sound.check(), Ok(()));
        assert!(
            Config {
                region_bytes: 0,
                ..sound.clone()
            }
            .check()
            .is_err()
        );
        assert!(
            Config {
                extent_node_span: 0,
                ..sound.clone()
            }
            .check()
            .is_err()
        );
        let crossed = ChunkSizes {
            min: 2,
            avg: 1,
            max: 3,
            normal: 0,
        };
        assert!(
            Config {
                plain: crossed,
                ..sound
            }
            .check()
            .is_err()
        );
    }
}
