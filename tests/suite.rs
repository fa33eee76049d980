//! All tests that need more than one module, a process or a server: one program, so that it is linked once.

mod calls;
mod crash;
mod harness;
mod kill;
mod layering;
mod storage;
mod tidy;
