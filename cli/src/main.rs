//! The command `pgcairn`: back up and restore PostgreSQL clusters.
//!
//! Promises: nothing is opened before every option has been read and judged; whatever happens, a panic included, ends
//! in an exit code that [`exit`] chose.

mod arguments;
mod clock;
mod commands;
mod config;
mod error;
mod exit;
mod help;
mod ini;
mod lock;
mod log;
mod options;
mod progress;
mod report;
mod settings;

use std::ffi::OsString;
use std::panic;
use std::process::ExitCode;

/// Name and version, as `version` and `help` print them.
const TITLE: &str = concat!("pgcairn ", env!("CARGO_PKG_VERSION"));

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let named = commands::named(&words);
    panic::set_hook(Box::new(|defect| {
        report::to_stderr(&report::defect(&defect.to_string()));
    }));
    let code = panic::catch_unwind(|| commands::start(words, named))
        .unwrap_or_else(|_| exit::for_failure(named, exit::INTERNAL, exit::is_standby(None)));
    ExitCode::from(code)
}
