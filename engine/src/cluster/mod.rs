//! (cluster, follows)
