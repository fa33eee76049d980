//! (pack, follows)
