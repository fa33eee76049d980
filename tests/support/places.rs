//! Configured repositories whose storages are open already.

use std::sync::Arc;

use pgcairn_engine::actions::RepositoryPlace;
use pgcairn_engine::storage::Storage;

/// The repository of this number.
pub fn place(number: u32, storage: Arc<dyn Storage>) -> RepositoryPlace {
    RepositoryPlace::new(number, move || Ok(Arc::clone(&storage)))
}

/// The only repository.
pub fn only(storage: Arc<dyn Storage>) -> [RepositoryPlace; 1] {
    [place(1, storage)]
}
