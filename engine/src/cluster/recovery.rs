//! The settings and signal files with which a restored cluster recovers.
//!
//! Promises: `postgresql.auto.conf` keeps every line that it had; old recovery targets and whatever is set anew are
//! commented out with a dated note, the new settings follow in one block. The file is replaced in one step and durable
//! before the signal file is written. Refuses names and values that could not be read back.

use std::io::{Read, Write};

use crate::cluster::root::{Access, Facts, Root};
use crate::cluster::{Error, Result, owner};

const AUTO_CONF: &[u8] = b"postgresql.auto.conf";
/// The name that PostgreSQL itself uses, and that no backup takes.
const AUTO_CONF_TEMPORARY: &[u8] = b"postgresql.auto.conf.tmp";
const RECOVERY_SIGNAL: &[u8] = b"recovery.signal";
const STANDBY_SIGNAL: &[u8] = b"standby.signal";

/// What the server does when it is started after a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryType {
    /// Replays to the target that the settings name, or to the end of the archive, and becomes a primary.
    Default,
    /// Replays until the cluster is consistent.
    Immediate,
    /// Becomes a standby.
    Standby,
    /// Whatever the restored files say.
    Preserve,
    /// Starts without the archive.
    None,
}

/// How a restored cluster recovers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// What the server does.
    pub kind: RecoveryType,
    /// `restore_command`; empty to leave it out.
    pub restore_command: String,
    /// More settings (`recovery_target_time`, …) with their plain values; a later one wins over an earlier one.
    pub settings: Vec<(String, String)>,
}

/// Writes settings and signal files beneath `root`, a data directory; `stamp` is the time that the notes name.
pub fn write(root: &Root, recovery: &Recovery, stamp: &str) -> Result<()> {
    if recovery.kind == RecoveryType::Preserve {
        return Ok(());
    }
    let settings = settings(recovery)?;
    write_auto_conf(root, &settings, stamp)?;
    let signal = match recovery.kind {
        RecoveryType::Default | RecoveryType::Immediate => Some(RECOVERY_SIGNAL),
        RecoveryType::Standby => Some(STANDBY_SIGNAL),
        RecoveryType::Preserve | RecoveryType::None => None,
    };
    for name in [RECOVERY_SIGNAL, STANDBY_SIGNAL] {
        if signal != Some(name) {
            root.remove(name)?;
        }
    }
    if let Some(name) = signal {
        write_file(root, name, b"")?;
    }
    root.sync_dir(b"")
}

/// The settings in the order in which they are written.
fn settings(recovery: &Recovery) -> Result<Vec<(&str, &str)>> {
    if recovery.kind == RecoveryType::None {
        return Ok(Vec::new());
    }
    let mut settings = Vec::new();
    if !recovery.restore_command.is_empty() {
        settings.push(("restore_command", recovery.restore_command.as_str()));
    }
    if recovery.kind == RecoveryType::Immediate {
        // The backup's own timeline: a later one may have branched off before it is consistent.
        settings.extend([
            ("recovery_target", "immediate"),
            ("recovery_target_timeline", "current"),
        ]);
    }
    settings.extend(
        recovery
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    );
    for (name, value) in &settings {
        let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c == b'.';
        let begins_well = name
            .bytes()
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == b'_');
        if !begins_well || !name.bytes().all(plain) || value.contains(['\n', '\r', '\0']) {
            return Err(Error::Setting {
                name: (*name).to_owned(),
            });
        }
    }
    Ok(settings)
}

fn write_auto_conf(root: &Root, settings: &[(&str, &str)], stamp: &str) -> Result<()> {
    let mut old = Vec::new();
    let facts = root.stat(AUTO_CONF)?;
    if facts.is_some() {
        let mut file = root.open_file(AUTO_CONF, Access::Read)?;
        file.read_to_end(&mut old)
            .map_err(|e| Error::file("read", &root.location(AUTO_CONF), e))?;
    }
    let new = auto_conf(&old, settings, stamp);
    if new == old {
        return Ok(());
    }
    root.remove(AUTO_CONF_TEMPORARY)?;
    write_file(root, AUTO_CONF_TEMPORARY, &new)?;
    if let Some(facts) = facts {
        root.chmod(AUTO_CONF_TEMPORARY, facts.mode)?;
    }
    root.rename(AUTO_CONF_TEMPORARY, AUTO_CONF)?;
    root.sync_dir(b"")
}

/// The new content of `postgresql.auto.conf`.
fn auto_conf(old: &[u8], settings: &[(&str, &str)], stamp: &str) -> Vec<u8> {
    let mut new = Vec::with_capacity(old.len() + 1024);
    for line in old.split_inclusive(|c| *c == b'\n') {
        if is_replaced(&setting_name(line), settings) {
            new.extend_from_slice(format!("# Removed by pgcairn restore on {stamp} # ").as_bytes());
        }
        new.extend_from_slice(line);
    }
    if settings.is_empty() {
        return new;
    }
    if !new.is_empty() && !new.ends_with(b"\n") {
        new.push(b'\n');
    }
    if !new.is_empty() {
        new.push(b'\n');
    }
    new.extend_from_slice(
        format!("# Recovery settings generated by pgcairn restore on {stamp}\n").as_bytes(),
    );
    for (name, value) in settings {
        new.extend_from_slice(format!("{name} = '{}'\n", quoted(value)).as_bytes());
    }
    new
}

fn is_replaced(name: &str, settings: &[(&str, &str)]) -> bool {
    let is_old = name.starts_with("recovery_target") || name == "restore_command";
    is_old
        || settings
            .iter()
            .any(|(new, _)| name.eq_ignore_ascii_case(new))
}

/// The name that a line sets, in lower case; empty if it sets nothing.
fn setting_name(line: &[u8]) -> String {
    let line = String::from_utf8_lossy(line);
    let name = line
        .trim_start()
        .split(|c: char| c == '=' || c.is_whitespace())
        .next();
    name.filter(|name| !name.starts_with('#'))
        .unwrap_or_default()
        .to_ascii_lowercase()
}

/// As `ALTER SYSTEM` writes values: quotes and backslashes doubled.
fn quoted(value: &str) -> String {
    value.replace('\\', r"\\").replace('\'', "''")
}

/// Writes a whole file, durable, that belongs to the owner of the data directory.
fn write_file(root: &Root, name: &[u8], content: &[u8]) -> Result<()> {
    let at = |doing| move |e: std::io::Error| Error::file(doing, &root.location(name), e);
    let mut file = root.open_file(name, Access::Create)?;
    file.set_len(0).map_err(at("truncate"))?;
    file.write_all(content).map_err(at("write"))?;
    if owner::is_root()
        && let Some(Facts { uid, gid, .. }) = root.stat(b"")?
    {
        root.chown(name, uid, gid)?;
    }
    file.sync_all().map_err(at("sync"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn recovery(kind: RecoveryType, settings: &[(&str, &str)]) -> Recovery {
        let settings = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Recovery {
            kind,
            restore_command: "pgcairn archive-get %f \"%p\"".to_owned(),
            settings,
        }
    }

    /// The content of `postgresql.auto.conf` after a recovery was written over an old one.
    fn written(old: &str, recovery: &Recovery) -> (String, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        write_file(&root, AUTO_CONF, old.as_bytes()).unwrap();
        root.chmod(AUTO_CONF, 0o640).unwrap();
        write_file(&root, STANDBY_SIGNAL, b"").unwrap();
        write(&root, recovery, "2026-11-24 22:00:00").unwrap();
        assert_eq!(root.stat(AUTO_CONF).unwrap().unwrap().mode, 0o640);
        let mut names: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        (
            fs::read_to_string(dir.path().join("postgresql.auto.conf")).unwrap(),
            names,
        )
    }

    #[test]
    fn old_targets_are_commented_out_and_everything_else_is_kept() {
        let old = "# Do not edit this file manually!
port = '5433'
restore_command = 'old'
  Recovery_Target_Time='2020-01-01'
recovery_target_inclusive off
#recovery_target_xid = '7'
archive_cleanup_command = 'keep'
work_mem = '4MB'";
        let target = recovery(
            RecoveryType::Default,
            &[("recovery_target_name", "it's a\\b"), ("work_mem", "8MB")],
        );
        let (text, names) = written(old, &target);
        let expected = "# Do not edit this file manually!
port = '5433'
# Removed by pgcairn restore on 2026-11-24 22:00:00 # restore_command = 'old'
# Removed by pgcairn restore on 2026-11-24 22:00:00 #   Recovery_Target_Time='2020-01-01'
# Removed by pgcairn restore on 2026-11-24 22:00:00 # recovery_target_inclusive off
#recovery_target_xid = '7'
archive_cleanup_command = 'keep'
# Removed by pgcairn restore on 2026-11-24 22:00:00 # work_mem = '4MB'

# Recovery settings generated by pgcairn restore on 2026-11-24 22:00:00
restore_command = 'pgcairn archive-get %f \"%p\"'
recovery_target_name = 'it''s a\\\\b'
work_mem = '8MB'
";
        assert_eq!(text, expected);
        assert_eq!(names, ["postgresql.auto.conf", "recovery.signal"]);
    }

    #[test]
    fn each_type_has_its_signal_and_settings() {
        let immediate = "recovery_target = 'immediate'\nrecovery_target_timeline = 'current'\n";
        for (kind, signal, ending) in [
            (
                RecoveryType::Default,
                Some("recovery.signal"),
                "archive-get %f \"%p\"'\n",
            ),
            (RecoveryType::Immediate, Some("recovery.signal"), immediate),
            (
                RecoveryType::Standby,
                Some("standby.signal"),
                "archive-get %f \"%p\"'\n",
            ),
            (RecoveryType::None, None, "# restore_command = 'old'\n"),
            (
                RecoveryType::Preserve,
                Some("standby.signal"),
                "restore_command = 'old'\n",
            ),
        ] {
            let (text, names) = written("restore_command = 'old'\n", &recovery(kind, &[]));
            assert!(text.ends_with(ending), "{kind:?}: {text}");
            let expected: Vec<&str> = ["postgresql.auto.conf"].into_iter().chain(signal).collect();
            assert_eq!(names, expected, "{kind:?}");
        }
    }

    #[test]
    fn a_cluster_without_the_file_gets_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        write(&root, &recovery(RecoveryType::Default, &[]), "now").unwrap();
        let text = fs::read_to_string(dir.path().join("postgresql.auto.conf")).unwrap();
        assert!(
            text.starts_with("# Recovery settings generated by pgcairn restore on now\n"),
            "{text}"
        );
        assert_eq!(root.stat(AUTO_CONF).unwrap().unwrap().mode, 0o600);
    }

    #[test]
    fn settings_that_would_break_the_file_are_refused() {
        for (name, value) in [
            ("recovery_target_name", "a\nport = '1'"),
            ("a = b", "c"),
            ("", "c"),
            ("1a", "c"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let root = Root::open(dir.path()).unwrap();
            let result = write(
                &root,
                &recovery(RecoveryType::Default, &[(name, value)]),
                "now",
            );
            assert!(matches!(result, Err(Error::Setting { .. })), "{name:?}");
            assert_eq!(root.list(b"").unwrap(), []);
        }
    }
}
