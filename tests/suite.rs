//! All tests that need more than one module, a process or a server: one program, so that it is linked once.

mod archive;
mod check;
mod harness;
mod layering;
mod pitr;
mod postgres;
mod postgres_files;
mod postgres_refusals;
mod postgres_reuse;
mod storage;
mod tidy;
