//! What the tests share: real servers, storages that fail, the project's own source.

pub mod postgres;
pub mod process;
pub mod source;
