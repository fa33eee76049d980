//! The two renderings of hand-made stanzas, letter for letter.

use pgcairn_engine::actions::{EpochInfo, TimelineWindow, WalRange};
use pgcairn_engine::ids::{ChunkId, RunId};
use pgcairn_engine::repository::snapshot::{BackupType, Database, Sums, Tablespace};
use pgcairn_engine::wal_name::{Lsn, Timeline};

use super::*;
use crate::clock::zoned_time;

const START_MS: i64 = 1_795_555_799_500;
const STOP_MS: i64 = 1_795_555_800_999;

fn manifest(label: &str, backup_type: BackupType, epoch: u32) -> Manifest {
    Manifest {
        label: label.to_owned(),
        backup_type,
        prior: (backup_type != BackupType::Full).then(|| "20261124-212959F".to_owned()),
        run: RunId([1; 16]),
        nonce: [2; 16],
        tool_version: "0.1.0".to_owned(),
        host: "db1".to_owned(),
        stanza: "demo".to_owned(),
        epoch,
        system_id: 7_711_853_433_611_030_707,
        version: 15,
        catalog_version: 202_209_061,
        page_bytes: 8192,
        segment_blocks: 131_072,
        wal_segment_bytes: 16 << 20,
        checksums: true,
        wal_level: "replica".to_owned(),
        online: true,
        start_ms: START_MS,
        stop_ms: STOP_MS,
        start_lsn: Lsn(0x0200_0028),
        stop_lsn: Lsn(0x0200_0100),
        timeline: Timeline(1),
        stop_timeline: Timeline(1),
        wal_start: Some("000000010000000000000002".to_owned()),
        wal_stop: Some("000000010000000000000002".to_owned()),
        databases: vec![Database {
            oid: 5,
            name: "postgres".to_owned(),
        }],
        tablespaces: Vec::new(),
        root: ChunkId([3; 32]),
        sums: Sums {
            files: 964,
            file_bytes: 23_213_842,
            read_bytes: 1_851_650,
            new_bytes: 400_000,
            stored_bytes: 209_305,
            tree_stored_bytes: 3_145_728,
            bad_pages: 0,
            torn_pages: 0,
        },
        options: Vec::new(),
        pg_control: Vec::new(),
        pg_control_mode: 0o600,
        backup_label: None,
        tablespace_map: None,
        page_list: None,
    }
}

fn epoch(n: u32, wal: bool) -> EpochInfo {
    EpochInfo {
        n,
        name: format!("15-{n}"),
        id: n,
        system_id: 7_711_853_433_611_030_707,
        version: 15,
        wal_min: wal.then(|| "000000010000000000000001".to_owned()),
        wal_max: wal.then(|| "000000010000000000000004".to_owned()),
        timelines: Vec::new(),
    }
}

fn view(status: Status, stanza: Option<StanzaInfo>, details: bool) -> View {
    View {
        name: "demo".to_owned(),
        repositories: vec![InRepository {
            number: 1,
            status: status.clone(),
            stanza,
        }],
        status,
        backup_runs: false,
        restore_runs: false,
        details,
    }
}

fn demo(epochs: Vec<EpochInfo>, backups: Vec<Manifest>) -> StanzaInfo {
    StanzaInfo {
        name: "demo".to_owned(),
        epochs,
        backups,
        unreadable: Vec::new(),
        undecided: 0,
    }
}

#[test]
fn text_has_the_layout_of_pgbackrest() {
    let full = manifest("20261124-212959F", BackupType::Full, 1);
    let incr = manifest("20261124-212959F_20261124-213000I", BackupType::Incr, 2);
    let stanza = demo(vec![epoch(1, true), epoch(2, false)], vec![full, incr]);
    let times = format!("{} / {}", zoned_time(START_MS), zoned_time(STOP_MS));
    assert_eq!(
        text::render(&[view(Status::Ok, Some(stanza), false)]),
        format!(
            "\
stanza: demo
    status: ok
    cipher: none

    db (current)
        wal archive min/max (15): none present

        incr backup: 20261124-212959F_20261124-213000I
            timestamp start/stop: {times}
            wal start/stop: 000000010000000000000002 / 000000010000000000000002
            database size: 22.1MB, database backup size: 1.8MB
            repo1: backup set size: 3MB, backup size: 204.4KB

    db (prior)
        wal archive min/max (15): 000000010000000000000001/000000010000000000000004

        full backup: 20261124-212959F
            timestamp start/stop: {times}
            wal start/stop: 000000010000000000000002 / 000000010000000000000002
            database size: 22.1MB, database backup size: 1.8MB
            repo1: backup set size: 3MB, backup size: 204.4KB
"
        )
    );
}

#[test]
fn a_hole_in_the_wal_is_named() {
    let range = |first: u32, last: u32| WalRange {
        first: format!("{first:024X}"),
        last: format!("{last:024X}"),
        segments: u64::from(last + 1 - first),
    };
    let mut holed = epoch(1, true);
    holed.timelines = vec![TimelineWindow {
        timeline: Timeline(1),
        ranges: vec![range(1, 2), range(5, 6)],
        missing: vec![range(3, 4)],
    }];
    let views = [view(Status::Ok, Some(demo(vec![holed], Vec::new())), false)];
    let shown = text::render(&views);
    let zeros = "0".repeat(23);
    let lines = format!(
        "        wal timeline 1: {zeros}1/{zeros}2, {zeros}5/{zeros}6\n            error: 2 missing, {zeros}3/{zeros}4\n"
    );
    assert!(shown.contains(&lines), "{shown}");
    let json = json::render(&views);
    let timeline = &json[0]["archive"][0]["timeline"][0];
    assert_eq!(timeline["missing"][0]["count"], 2);
    assert_eq!(timeline["present"][1]["stop"], format!("{zeros}6"));
}

#[test]
fn json_has_the_keys_of_pgbackrest() {
    let stanza = demo(
        vec![epoch(1, true)],
        vec![manifest("20261124-212959F", BackupType::Full, 1)],
    );
    assert_eq!(
        json::render(&[view(Status::Ok, Some(stanza), false)]).to_string(),
        concat!(
            r#"[{"archive":[{"database":{"id":1,"repo-key":1},"id":"15-1","max":"000000010000000000000004","#,
            r#""min":"000000010000000000000001","timeline":[]}],"backup":[{"archive":{"start":"000000010000000000000002","#,
            r#""stop":"000000010000000000000002"},"backrest":{"format":1,"version":"0.1.0"},"#,
            r#""database":{"id":1,"repo-key":1},"error":false,"info":{"delta":1851650,"#,
            r#""repository":{"delta":209305,"size":3145728},"size":23213842},"label":"20261124-212959F","#,
            r#""lsn":{"start":"0/2000028","stop":"0/2000100"},"prior":null,"reference":null,"#,
            r#""timestamp":{"start":1795555799,"stop":1795555800},"type":"full"}],"cipher":"none","#,
            r#""db":[{"id":1,"repo-key":1,"system-id":7711853433611030707,"version":"15"}],"name":"demo","#,
            r#""repo":[{"cipher":"none","key":1,"status":{"code":0,"message":"ok"}}],"#,
            r#""status":{"code":0,"lock":{"backup":{"held":false},"restore":{"held":false}},"message":"ok"}}]"#
        )
    );
}

#[test]
fn details_name_databases_and_tablespaces() {
    let mut backup = manifest("20261124-212959F", BackupType::Full, 1);
    backup.tablespaces = vec![Tablespace {
        oid: 16_400,
        name: "fast".to_owned(),
        location: b"/fast".to_vec(),
    }];
    let views = [view(
        Status::Ok,
        Some(demo(vec![epoch(1, true)], vec![backup])),
        true,
    )];
    let shown = text::render(&views);
    assert!(
        shown.contains("            lsn start/stop: 0/2000028 / 0/2000100\n"),
        "{shown}"
    );
    assert!(
        shown.contains("            database list: postgres (5)\n"),
        "{shown}"
    );
    assert!(
        shown.ends_with("            tablespaces:\n                fast (16400) => /fast\n"),
        "{shown}"
    );
    let json = json::render(&views);
    assert_eq!(json[0]["backup"][0]["database-ref"][0]["oid"], 5);
    assert_eq!(
        json[0]["backup"][0]["tablespace"][0]["destination"],
        "/fast"
    );
    assert!(json[0]["backup"][0]["link"].is_null());
}

#[test]
fn bad_pages_are_an_error_of_the_backup() {
    let mut backup = manifest("20261124-212959F", BackupType::Full, 1);
    backup.sums.bad_pages = 2;
    let views = [view(
        Status::Ok,
        Some(demo(vec![epoch(1, true)], vec![backup])),
        false,
    )];
    assert!(text::render(&views).contains("error(s) detected during backup: 2 pages"));
    assert_eq!(json::render(&views)[0]["backup"][0]["error"], true);
}

#[test]
fn what_is_not_there_is_an_answer() {
    let missing = [view(Status::MissingStanza, None, false)];
    assert_eq!(
        text::render(&missing),
        "stanza: demo\n    status: error (missing stanza path)\n"
    );
    assert_eq!(
        json::render(&missing).to_string(),
        concat!(
            r#"[{"archive":[],"backup":[],"cipher":"none","db":[],"name":"demo","#,
            r#""repo":[{"cipher":"none","key":1,"status":{"code":1,"message":"missing stanza path"}}],"#,
            r#""status":{"code":1,"lock":{"backup":{"held":false},"restore":{"held":false}},"#,
            r#""message":"missing stanza path"}}]"#
        )
    );
    assert_eq!(text::render(&[]), "No stanzas exist in the repository.\n");
    assert_eq!(json::render(&[]).to_string(), "[]");
}

#[test]
fn a_fresh_stanza_has_no_valid_backups() {
    let views = [view(
        Status::NoBackups,
        Some(demo(vec![epoch(1, false)], Vec::new())),
        false,
    )];
    assert_eq!(
        text::render(&views),
        "stanza: demo\n    status: error (no valid backups)\n    cipher: none\n\n    db (current)\n        wal archive \
         min/max (15): none present\n"
    );
    assert_eq!(json::render(&views)[0]["status"]["code"], 2);
}

#[test]
fn several_repositories_are_told_apart() {
    let in_repository = |number, status, stanza| InRepository {
        number,
        status,
        stanza,
    };
    let stanza = || {
        let backup = manifest("20261124-212959F", BackupType::Full, 1);
        Some(demo(vec![epoch(1, true)], vec![backup]))
    };
    let mixed = View {
        status: Status::Mixed,
        repositories: vec![
            in_repository(1, Status::Other("repo1 is away".to_owned()), None),
            in_repository(3, Status::Ok, stanza()),
        ],
        ..view(Status::Ok, None, false)
    };
    let text = text::render(std::slice::from_ref(&mixed));
    let head = "stanza: demo\n    status: mixed\n        repo1: error (other)\n            repo1 is away\n        \
                repo3: ok\n    cipher: none\n\n    db (current) on repo3\n";
    assert!(text.starts_with(head), "{text}");
    assert!(
        text.contains("            repo3: backup set size"),
        "{text}"
    );
    let told = json::render(&[mixed]);
    assert_eq!(told[0]["status"]["code"], 4);
    assert_eq!(told[0]["repo"][0]["status"]["code"], 99);
    assert_eq!(told[0]["repo"][1]["key"], 3);
    assert_eq!(told[0]["backup"][0]["database"]["repo-key"], 3);
    assert_eq!(told[0]["archive"][0]["database"]["repo-key"], 3);
}
