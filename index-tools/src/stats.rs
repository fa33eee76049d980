//! `stats`: figures about the index as it lies, and how far it is behind the repository.

use pgcairn_engine::actions::{index_segments, open_index};

use crate::Context;
use crate::report::{Failure, table};

pub(crate) fn run(context: &Context) -> Result<bool, Failure> {
    let index = open_index(&context.repository, &context.options.cache)?;
    let listed = index_segments(&context.repository)?;
    let stats = index.stats();
    table(&[
        ("repository", context.repository.id.to_string()),
        ("place", context.repository.storage.describe()),
        ("index", stats.directory.display().to_string()),
        ("chunks (estimated)", stats.chunks.to_string()),
        ("packs", stats.packs.to_string()),
        ("bytes of files", stats.file_bytes.to_string()),
        ("segments applied", index.segments()?.len().to_string()),
        (
            "segments not applied yet",
            index.missing_segments(&listed).len().to_string(),
        ),
    ])?;
    Ok(true)
}
