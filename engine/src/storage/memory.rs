//! (memory, follows)
