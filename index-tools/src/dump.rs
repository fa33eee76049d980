//! `dump`: one line for each copy of each chunk, in the order of their ids.
//!
//! The columns: chunk, kind, pack, offset of the frame, stored length, raw length. The index is shown as it lies, copies
//! that may not be used included.

use std::io::Write;

use pgcairn_engine::actions::open_index;
use pgcairn_engine::ids::{BlobKind, ChunkId, Location};

use crate::Context;
use crate::report::{Failure, out};

pub(crate) fn run(context: &Context, chunk: Option<ChunkId>) -> Result<bool, Failure> {
    let index = open_index(&context.repository, &context.options.cache)?;
    let mut lines = out();
    let found = if let Some(id) = chunk {
        let locations = index.locations(&id)?;
        write(&mut lines, id, &locations)?;
        !locations.is_empty()
    } else {
        for entry in index.chunks() {
            let (id, locations) = entry?;
            write(&mut lines, id, &locations)?;
        }
        true
    };
    lines.flush()?;
    Ok(found)
}

fn write(out: &mut impl Write, id: ChunkId, locations: &[Location]) -> Result<(), Failure> {
    for location in locations {
        let kind = match location.kind {
            BlobKind::Data => "data",
            BlobKind::Node => "node",
            BlobKind::Wal => "wal",
        };
        let Location {
            pack,
            offset,
            stored_bytes,
            raw_bytes,
            ..
        } = location;
        writeln!(
            out,
            "{id} {kind} {pack} {offset} {stored_bytes} {raw_bytes}"
        )?;
    }
    Ok(())
}
