//! What a user can ask for.
//!
//! **Knows**: all layers below. **Does not know**: terminals, environment variables, configuration files.
//! **Invariants**: an action either does what it was asked, or returns an error and leaves nothing half-listed; what
//! went wrong without ending it is told to the monitor as a problem. All threads are those of `pipeline.rs`.

mod archive;
mod archive_get;
mod archive_push;
mod archive_queue;
mod assemble;
mod backup;
mod check;
mod commit;
mod copy;
mod download;
mod epoch_cache;
mod error;
mod error_kind;
mod fetch;
mod fill;
mod findings;
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
mod prefetch;
mod prefetch_queue;
mod probe;
mod recovery_target;
mod reindex;
mod restore;
mod roles;
mod run_lock;
mod session;
mod several;
mod standby;
mod stanza;
mod stanza_end;
mod stat_record;
mod target;
mod unfold;
mod verify;
mod verify_packs;
mod verify_tree;
mod verify_wal;
mod wal_in_cluster;
mod wal_needed;
mod wal_path;
mod wal_window;

pub use archive::ArchiveOptions;
pub use archive_get::{Got, archive_get};
pub use archive_push::{Pushed, PushedTo, archive_push};
pub use archive_queue::{
    PushStatus, QueueOptions, QueueSummary, drop_if_too_many, forget_failure, forget_statuses,
    push_queue, push_status,
};
pub use backup::{BackupOptions, BackupSummary, backup, backup_from_standby};
pub use check::{CheckItem, CheckOptions, Verdict, check};
pub use error::{Error, Result};
pub use error_kind::ErrorKind;
pub use info::{EpochInfo, StanzaInfo, UnreadableBackup, info};
pub use open::{RepositoryPlace, StorageLocation, create_storage, open_repository, open_storage};
pub use pages::PageVerdict;
pub use prefetch::{PrefetchOptions, forget_prefetched, is_running_low, prefetch, take_prefetched};
pub use recovery_target::Goal;
pub use reindex::{
    IndexOptions, IndexRebuilt, IndexVerified, index_segments, open_index, rebuild_index,
    verify_index,
};
pub use restore::{RestoreOptions, RestoreSummary, can_restore, restore};
pub use roles::{Candidate, CopyFrom, Member, Roles, find_roles};
pub use several::RepositoryFailure;
pub use standby::{Standby, StandbyError};
pub use stanza::{StanzaCreateOptions, StanzaCreateSummary, stanza_create, stanza_upgrade};
pub use stanza_end::{StanzaDeleteOptions, StanzaDeleteSummary, stanza_delete};
pub use verify::{
    VerifiedBackup, VerifiedEpoch, VerifiedStanza, VerifyOptions, VerifySummary, verify,
};
pub use wal_path::TimelineGoal;
pub use wal_window::{TimelineWindow, WalRange};
