//! (repository, follows)
