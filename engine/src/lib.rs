//! The library behind `pgcairn`; its front page is `docs/architecture.md`.
#![doc = include_str!("../docs/architecture.md")]

pub mod actions;
pub mod cluster;
pub mod codec;
pub mod dedup;
pub mod ids;
pub mod monitor;
pub mod pack;
pub mod repository;
pub mod storage;
pub mod wal_name;
