//! What the tests share: real servers, storages that fail, the project's own source.

#![expect(
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "what goes wrong here fails the test that called it"
)]

pub mod postgres;
pub mod process;
pub mod source;
