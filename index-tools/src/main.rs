//! The command `pgcairn-index`: look into, verify, rebuild and compact the local chunk index of a repository.
//!
//! Promises: deletes nothing in the repository, and adds to it only what `rebuild --publish` says; exits with 0 if all
//! is well, 1 if something is wrong or could not be done, 2 if the options are. The index is a cache: whatever these
//! commands do to it costs time at most.

mod compact;
mod dump;
mod rebuild;
mod report;
mod stats;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use pgcairn_engine::actions::{self, IndexOptions, StorageLocation};
use pgcairn_engine::ids::ChunkId;
use pgcairn_engine::repository::Repository;

use crate::report::Failure;

/// Looks into, verifies, rebuilds and compacts the local chunk index of a pgcairn repository.
#[derive(Parser)]
#[command(name = "pgcairn-index", version)]
struct Options {
    #[command(flatten)]
    places: Places,
    #[command(subcommand)]
    command: Command,
}

/// Where things are.
#[derive(Args)]
struct Places {
    /// Path of the repository.
    #[arg(long, global = true, default_value = "/var/lib/pgcairn")]
    repo1_path: PathBuf,
    /// Path of the chunk index and other caches.
    #[arg(long, global = true, default_value = "/var/cache/pgcairn")]
    cache_path: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Figures about the index, and how far it is behind the repository.
    Stats,
    /// The chunks that the index knows, and where each of their copies lies.
    Dump {
        /// Only this chunk: 64 hex digits.
        #[arg(long)]
        chunk: Option<ChunkId>,
    },
    /// Brings the index up to date and compares it with the repository's index segments and packs.
    Verify,
    /// Makes the index anew from the footers of all packs.
    Rebuild {
        /// Also publish, as index segments, the facts of packs that no readable segment names.
        #[arg(long)]
        publish: bool,
    },
    /// Rewrites the files of the index without what is superfluous.
    Compact,
}

/// What every command gets.
struct Context {
    repository: Repository,
    options: IndexOptions,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            report::failure(&failure);
            ExitCode::FAILURE
        }
    }
}

/// Runs the command; says whether all is well.
fn run(options: &Options) -> Result<bool, Failure> {
    let place = StorageLocation::Directory(options.places.repo1_path.clone());
    let repository = actions::open_repository(actions::open_storage(&place)?)?;
    let node = rustix::system::uname();
    let context = Context {
        repository,
        options: IndexOptions {
            cache: options.places.cache_path.clone(),
            host: node.nodename().to_string_lossy().into_owned(),
            now_ms: jiff::Timestamp::now().as_millisecond(),
        },
    };
    match &options.command {
        Command::Stats => stats::run(&context),
        Command::Dump { chunk } => dump::run(&context, *chunk),
        Command::Verify => verify::run(&context),
        Command::Rebuild { publish } => rebuild::run(&context, *publish),
        Command::Compact => compact::run(&context),
    }
}
