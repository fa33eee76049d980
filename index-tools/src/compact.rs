//! `compact`: the files of the index, written anew.

use pgcairn_engine::actions::open_index;

use crate::Context;
use crate::report::{Failure, table};

pub(crate) fn run(context: &Context) -> Result<bool, Failure> {
    let index = open_index(&context.repository, &context.options.cache)?;
    index.flush()?;
    let before = index.stats().file_bytes;
    index.compact()?;
    table(&[
        ("repository", context.repository.id.to_string()),
        ("index", index.stats().directory.display().to_string()),
        ("bytes before", before.to_string()),
        ("bytes after", index.stats().file_bytes.to_string()),
    ])?;
    Ok(true)
}
