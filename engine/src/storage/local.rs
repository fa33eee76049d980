//! (local, follows)
