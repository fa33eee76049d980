//! The command `pgcairn`.
mod arguments;
mod config;
mod error;
mod exit;
mod ini;
mod options;
mod settings;

fn main() {}
