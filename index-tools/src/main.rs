//! (follows)
fn main() {}
