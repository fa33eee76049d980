//! All tests that need more than one module, a process or a server: one program, so that it is linked once.

mod harness;
mod layering;
mod s3;
mod s3_job;
mod storage;
mod tidy;
