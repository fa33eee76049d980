//! A throw-away S3 server on loopback, slowed down as a network would: for the demonstration and for measurements.
//!
//!     pgcairn-s3-server FOLDER [LATENCY-MS]
//!
//! Promises: makes the bucket in FOLDER/bucket, which must not exist; writes its address, once it listens, to
//! FOLDER/address; counts requests by method, and answers and forgets the counts at `/-/passed`; runs until it is ended.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use pgcairn_tests::fault_proxy::FaultProxy;
use pgcairn_tests::s3_server::S3Server;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (folder, latency_ms) = match words.as_slice() {
        [folder] => (folder, Some(0)),
        [folder, latency] => (folder, latency.parse().ok()),
        _ => return fail("usage: pgcairn-s3-server FOLDER [LATENCY-MS]"),
    };
    let Some(latency_ms) = latency_ms else {
        return fail("the latency is a whole number of milliseconds");
    };
    let folder = Path::new(folder);
    let server = S3Server::start_in(&folder.join("bucket"));
    let proxy = FaultProxy::start(server.address);
    proxy.delay(Duration::from_millis(latency_ms));
    // Whole at once, for whoever waits for it.
    let temporary = folder.join("address.new");
    let told = fs::File::create(&temporary)
        .and_then(|mut file| write!(file, "{}", proxy.address))
        .and_then(|()| fs::rename(&temporary, folder.join("address")));
    if let Err(error) = told {
        return fail(&format!("{}: {error}", folder.display()));
    }
    loop {
        thread::park();
    }
}

fn fail(text: &str) -> ExitCode {
    // Where nobody reads it, nothing is lost.
    drop(writeln!(io::stderr(), "{text}"));
    ExitCode::FAILURE
}
