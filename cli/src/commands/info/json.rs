//! pgBackRest's JSON: a list of stanzas. Keys are sorted by the JSON writer.

use pgcairn_engine::actions::{EpochInfo, StanzaInfo, TimelineWindow, WalRange};
use pgcairn_engine::repository::snapshot::Manifest;
use serde_json::{Value, json};

use super::{View, database_id};

/// The number of pgcairn's repository format, where pgBackRest shows its own.
const FORMAT: u32 = 1;

pub(super) fn render(views: &[View]) -> Value {
    Value::Array(views.iter().map(stanza).collect())
}

fn stanza(view: &View) -> Value {
    let (mut archives, mut databases, mut backups, mut repositories) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for copy in &view.repositories {
        let key = copy.number;
        let status =
            json!({"code": copy.status.code(), "message": copy.status.repository_message()});
        repositories.push(json!({"cipher": "none", "key": key, "status": status}));
        let Some(stanza) = &copy.stanza else { continue };
        archives.extend(stanza.epochs.iter().map(|epoch| archive(epoch, key)));
        databases.extend(stanza.epochs.iter().map(|epoch| database(epoch, key)));
        let of_copy = stanza.backups.iter().map(|manifest| {
            let told = backup(stanza, manifest, key, view.details);
            (manifest.stop_ms, told)
        });
        backups.extend(of_copy);
    }
    backups.sort_by_key(|(stop_ms, _)| *stop_ms);
    json!({
        "archive": archives,
        "backup": backups.into_iter().map(|(_, backup)| backup).collect::<Vec<_>>(),
        "cipher": "none",
        "db": databases,
        "name": view.name,
        "repo": repositories,
        "status": {
            "code": view.status.code(),
            "lock": {"backup": {"held": view.backup_runs}, "restore": {"held": view.restore_runs}},
            "message": view.status.message(),
        },
    })
}

fn archive(epoch: &EpochInfo, key: u32) -> Value {
    json!({
        "database": {"id": epoch.id, "repo-key": key},
        "id": epoch.name,
        "max": epoch.wal_max,
        "min": epoch.wal_min,
        "timeline": epoch.timelines.iter().map(timeline).collect::<Vec<_>>(),
    })
}

/// What pgBackRest does not tell: which WAL of a timeline is there, and which is missing.
fn timeline(window: &TimelineWindow) -> Value {
    let ranges = |ranges: &[WalRange]| {
        let ranges = ranges.iter().map(
            |range| json!({"count": range.segments, "start": range.first, "stop": range.last}),
        );
        ranges.collect::<Value>()
    };
    json!({
        "id": window.timeline.0,
        "missing": ranges(&window.missing),
        "present": ranges(&window.ranges),
    })
}

fn database(epoch: &EpochInfo, key: u32) -> Value {
    json!({
        "id": epoch.id,
        "repo-key": key,
        "system-id": epoch.system_id,
        "version": epoch.version.to_string(),
    })
}

fn backup(stanza: &StanzaInfo, manifest: &Manifest, key: u32, details: bool) -> Value {
    let sums = &manifest.sums;
    let lsn = |lsn: String| {
        if manifest.online {
            Value::String(lsn)
        } else {
            Value::Null
        }
    };
    let mut backup = json!({
        "archive": {"start": manifest.wal_start, "stop": manifest.wal_stop},
        "backrest": {"format": FORMAT, "version": manifest.tool_version},
        "database": {"id": database_id(stanza, manifest), "repo-key": key},
        "error": sums.bad_pages > 0,
        "info": {
            "delta": sums.read_bytes,
            "repository": {"delta": sums.stored_bytes, "size": sums.tree_stored_bytes},
            "size": sums.file_bytes,
        },
        "label": manifest.label,
        "lsn": {"start": lsn(manifest.start_lsn.to_string()), "stop": lsn(manifest.stop_lsn.to_string())},
        "prior": manifest.prior,
        "reference": null,
        "timestamp": {
            "start": manifest.start_ms.div_euclid(1000),
            "stop": manifest.stop_ms.div_euclid(1000),
        },
        "type": manifest.backup_type.name(),
    });
    if let (true, Value::Object(fields)) = (details, &mut backup) {
        let databases = manifest
            .databases
            .iter()
            .map(|database| json!({"name": database.name, "oid": database.oid}));
        fields.insert("database-ref".to_owned(), databases.collect());
        fields.insert("link".to_owned(), Value::Null);
        fields.insert("tablespace".to_owned(), tablespaces(manifest));
    }
    backup
}

fn tablespaces(manifest: &Manifest) -> Value {
    if manifest.tablespaces.is_empty() {
        return Value::Null;
    }
    let listed = manifest.tablespaces.iter().map(|tablespace| {
        json!({
            "destination": String::from_utf8_lossy(&tablespace.location),
            "name": tablespace.name,
            "oid": tablespace.oid,
        })
    });
    listed.collect()
}
