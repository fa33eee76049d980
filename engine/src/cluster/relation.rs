//! Names of relation files.
//!
//! Promises: only names that PostgreSQL itself gives are relations: `<relation>[_fsm|_vm|_init][.<segment>]`, and
//! `t<backend>_…` for temporary ones, numbers without leading zeros. Everything else is a plain file.

/// A fork of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The rows, or the index.
    Main,
    /// The free space map.
    FreeSpace,
    /// The visibility map.
    Visibility,
    /// What an unlogged relation is reset to.
    Init,
}

/// One segment file of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationName {
    /// `relfilenode`.
    pub number: u32,
    /// Which fork.
    pub fork: Fork,
    /// Which segment, from 0.
    pub segment: u32,
}

/// The relation file with this name.
pub fn parse(name: &[u8]) -> Option<RelationName> {
    let name = std::str::from_utf8(name).ok()?;
    let (stem, segment) = match name.split_once('.') {
        Some((stem, segment)) => (stem, number(segment)?),
        None => (name, 0),
    };
    let (digits, fork) = match stem.split_once('_') {
        None => (stem, Fork::Main),
        Some((digits, "fsm")) => (digits, Fork::FreeSpace),
        Some((digits, "vm")) => (digits, Fork::Visibility),
        Some((digits, "init")) => (digits, Fork::Init),
        Some(_) => return None,
    };
    Some(RelationName {
        number: number(digits)?,
        fork,
        segment,
    })
}

/// Whether this is the name of a temporary relation's file.
pub fn is_temporary(name: &[u8]) -> bool {
    let parts = name.strip_prefix(b"t").and_then(|rest| {
        let end = rest.iter().position(|c| *c == b'_')?;
        rest.split_at_checked(end)
    });
    let Some((backend, [_, relation @ ..])) = parts else {
        return false;
    };
    let digits = !backend.is_empty() && backend.iter().all(u8::is_ascii_digit);
    digits && parse(relation).is_some_and(|relation| relation.fork != Fork::Init)
}

/// The object id that is the whole of this name: a database's directory, a tablespace's link.
pub fn object_id(name: &[u8]) -> Option<u32> {
    number(std::str::from_utf8(name).ok()?)
}

fn number(digits: &str) -> Option<u32> {
    let plain = !digits.starts_with('0') && digits.bytes().all(|c| c.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_postgresql_gives_are_relations() {
        let relation = |number, fork, segment| {
            Some(RelationName {
                number,
                fork,
                segment,
            })
        };
        for (name, expected) in [
            ("16384", relation(16384, Fork::Main, 0)),
            ("16384.1", relation(16384, Fork::Main, 1)),
            ("16384_fsm", relation(16384, Fork::FreeSpace, 0)),
            ("16384_vm.12", relation(16384, Fork::Visibility, 12)),
            ("4294967295_init", relation(u32::MAX, Fork::Init, 0)),
            ("4294967296", None),
            ("0", None),
            ("016384", None),
            ("16384.0", None),
            ("16384.01", None),
            ("16384.", None),
            ("16384_", None),
            ("16384_main", None),
            ("+1", None),
            ("PG_VERSION", None),
            ("pg_filenode.map", None),
            ("t3_16384", None),
            ("", None),
        ] {
            assert_eq!(parse(name.as_bytes()), expected, "{name}");
        }
    }

    #[test]
    fn temporary_relations_carry_their_backend() {
        for name in ["t3_16384", "t12_16384.1", "t3_16384_fsm", "t3_16384_vm.2"] {
            assert!(is_temporary(name.as_bytes()), "{name}");
        }
        for name in [
            "16384", "t_16384", "tx_16384", "t3_", "t3", "t3_x", "table_1",
        ] {
            assert!(!is_temporary(name.as_bytes()), "{name}");
        }
    }
}
