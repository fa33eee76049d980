//! `rebuild`: a new index, from the footers of all packs.

use pgcairn_engine::actions::rebuild_index;

use crate::Context;
use crate::report::{Failure, Report, table};

pub(crate) fn run(context: &Context, publish: bool) -> Result<bool, Failure> {
    let rebuilt = rebuild_index(&context.repository, &context.options, publish, &Report)?;
    table(&[
        ("repository", context.repository.id.to_string()),
        ("index", rebuilt.directory.display().to_string()),
        ("footers read", rebuilt.packs.to_string()),
        ("segments applied", rebuilt.segments.to_string()),
        ("packs in no segment", rebuilt.unindexed.to_string()),
        ("segments published", rebuilt.published.to_string()),
        ("problems", rebuilt.problems.to_string()),
    ])?;
    Ok(rebuilt.problems == 0)
}
