//! What tests share: storages that record, fail and crash.
//!
//! Promises: each is an ordinary implementation of an engine's trait; the engine itself holds nothing for tests.

pub mod crashing;
pub mod faulty;
pub mod recording;
