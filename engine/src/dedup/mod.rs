//! (dedup, follows)
