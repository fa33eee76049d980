//! The tests that need more than one module, a process or a server. One module per file.

mod storage;
