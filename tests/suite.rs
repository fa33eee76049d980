//! All tests that need more than one module, a process or a server: one program, so that it is linked once.

mod damage;
mod delta;
mod harness;
mod layering;
mod pages;
mod storage;
mod tidy;
