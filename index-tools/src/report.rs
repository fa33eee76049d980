//! What a person sees: lines on standard output, problems and failures on standard error.
//!
//! Promises: a reader that goes away (`dump | head`) ends the command without an error of its own kind; a failure is
//! told with all its causes.

use std::error::Error;
use std::io::{self, BufWriter, StdoutLock, Write};

use pgcairn_engine::actions;
use pgcairn_engine::dedup;
use pgcairn_engine::monitor::{Monitor, Problem, Stage, Tally};

/// Why a command ended early.
pub(crate) enum Failure {
    /// The engine failed.
    Engine(Box<dyn Error>),
    /// Standard output did.
    Output(io::Error),
}

impl From<actions::Error> for Failure {
    fn from(error: actions::Error) -> Self {
        Failure::Engine(Box::new(error))
    }
}

impl From<dedup::Error> for Failure {
    fn from(error: dedup::Error) -> Self {
        Failure::Engine(Box::new(error))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Output(error)
    }
}

/// Where lines go.
pub(crate) fn out() -> BufWriter<StdoutLock<'static>> {
    BufWriter::new(io::stdout().lock())
}

/// Lines of a name and a value, aligned.
pub(crate) fn table(rows: &[(&str, String)]) -> Result<(), Failure> {
    let mut out = out();
    for (name, value) in rows {
        writeln!(out, "{name:<26}{value}")?;
    }
    Ok(out.flush()?)
}

/// Tells why a command ended early.
pub(crate) fn failure(failure: &Failure) {
    let mut text = String::from("error");
    let mut next: Option<&dyn Error> = match failure {
        Failure::Engine(error) => Some(error.as_ref()),
        Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return,
        Failure::Output(error) => Some(error),
    };
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    to_stderr(&text);
}

/// Tells problems and notes on standard error.
pub(crate) struct Report;

impl Monitor for Report {
    fn stage(&self, _stage: Stage, _total_bytes: u64, _total_files: u64) {}

    fn progress(&self, _tally: &Tally) {}

    fn problem(&self, problem: &Problem) {
        to_stderr(&problem.to_string());
    }

    fn note(&self, text: &str) {
        to_stderr(text);
    }
}

fn to_stderr(line: &str) {
    // There is nowhere to tell that telling failed.
    drop(writeln!(io::stderr().lock(), "{line}"));
}
