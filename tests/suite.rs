//! All tests that need more than one module, a process or a server: one program, so that it is linked once.

mod crash;
mod harness;
mod layering;
mod storage;
mod tidy;
