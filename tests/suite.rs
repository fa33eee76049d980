//! All tests that need more than one module, a process or a server: one program, so that it is linked once.

mod crash;
mod damage;
mod delta;
mod formats;
mod harness;
mod index_tools;
mod layering;
mod pages;
mod postgres;
mod postgres_files;
mod postgres_refusals;
mod postgres_reuse;
mod s3;
mod s3_job;
mod storage;
mod tidy;
