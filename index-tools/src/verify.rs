//! `verify`: is the index what the repository's segments say, and is every pack that they name there?

use pgcairn_engine::actions::verify_index;

use crate::Context;
use crate::report::{Failure, Report, table};

pub(crate) fn run(context: &Context) -> Result<bool, Failure> {
    let verified = verify_index(&context.repository, &context.options, &Report)?;
    table(&[
        ("repository", context.repository.id.to_string()),
        ("chunks", verified.chunks.to_string()),
        ("copies", verified.copies.to_string()),
        ("segments", verified.segments.to_string()),
        ("packs", verified.packs.to_string()),
        ("packs in no segment", verified.unindexed.to_string()),
        ("problems", verified.problems.to_string()),
    ])?;
    Ok(verified.problems == 0)
}
