//! All tests that need more than one module, a process or a server: one program, so that it is linked once.

mod formats;
mod harness;
mod index_tools;
mod layering;
mod storage;
mod tidy;
