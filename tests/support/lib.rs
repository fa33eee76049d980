//! What the tests share: real servers, golden repositories, storages that record, fail and crash, the project's own
//! source.
//!
//! Promises: each storage is an ordinary implementation of the engine's trait; the engine itself holds nothing for tests.

#![expect(
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "what goes wrong here fails the test that called it"
)]

pub mod careless;
pub mod churn;
pub mod crashing;
pub mod damage;
pub mod fault_proxy;
pub mod faulty;
pub mod golden;
pub mod host;
pub mod pgdata;
pub mod places;
pub mod postgres;
pub mod process;
pub mod recording;
pub mod s3_server;
pub mod server;
pub mod small_cluster;
pub mod source;
pub mod stanza;
pub mod stored_tree;
pub mod tree;
