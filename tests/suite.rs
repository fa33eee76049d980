//! All tests that need more than one module, a process or a server: one program, so that it is linked once.

#![expect(
    clippy::unwrap_used,
    reason = "what goes wrong in a helper fails the test that called it"
)]

mod archive;
mod archive_ahead;
mod archive_drills;
mod archive_repositories;
mod calls;
mod careless;
mod check;
mod crash;
mod damage;
mod delta;
mod formats;
mod harness;
mod index_tools;
mod kill;
mod layering;
mod pages;
mod pitr;
mod postgres;
mod postgres_ahead;
mod postgres_files;
mod postgres_full_spool;
mod postgres_refusals;
mod postgres_reuse;
mod s3;
mod s3_job;
mod several;
mod standby;
mod standby_promotion;
mod storage;
mod tidy;
mod timelines;
mod verify;
mod verify_damage;
