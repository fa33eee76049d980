//! What a user can ask for.
//!
//! **Knows**: all layers below. **Does not know**: terminals, environment variables, configuration files.
//! **Invariants**: an action either does what it was asked, or returns an error and leaves nothing half-listed; what
//! went wrong without ending it is told to the monitor as a problem. All threads are those of `pipeline.rs`.

mod archive;
mod assemble;
mod backup;
mod commit;
mod copy;
mod error;
mod fetch;
mod fill;
mod info;
mod known;
mod label;
mod nodes;
mod online;
mod open;
mod packer;
mod pages;
mod pipeline;
mod places;
mod plan;
mod reindex;
mod restore;
mod run_lock;
mod session;
mod stanza;
mod stat_record;
mod target;
mod unfold;
mod wal_needed;

pub use archive::{ArchiveOptions, Got, Pushed, archive_get, archive_push};
pub use backup::{BackupOptions, BackupSummary, backup};
pub use error::{Error, ErrorKind, Result};
pub use info::{EpochInfo, StanzaInfo, UnreadableBackup, info};
pub use open::{StorageLocation, create_storage, open_repository, open_storage};
pub use pages::PageVerdict;
pub use reindex::{
    IndexOptions, IndexRebuilt, IndexVerified, index_segments, open_index, rebuild_index,
    verify_index,
};
pub use restore::{RestoreOptions, RestoreSummary, restore};
pub use stanza::{StanzaCreateOptions, StanzaCreateSummary, stanza_create};
