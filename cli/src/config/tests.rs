//! Precedence, places and refusals of options.

use std::ffi::OsString;

use super::*;
use crate::arguments;

const FILE: &str = "\
[global]
repo1-path=/repo
process-max=1
compress-level=1
log-level-console=info
repo1-bundle=y
[global:backup]
process-max=2
start-fast=y
[demo]
pg1-path=/pg
compress-level=2
exclude=a
exclude=b
[demo:backup]
process-max=3
[other]
what=ever
";

fn settle_all(line: &str, environment: &[(&str, &str)], file: &str) -> Result<Settings, Error> {
    let line = arguments::parse(
        std::iter::once("pgcairn")
            .chain(line.split_whitespace())
            .map(OsString::from),
    )?;
    let variables = environment
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let environment = read_environment(variables, line.command)?;
    merge(line, &environment, &ini::parse(file)?)
}

fn refused(line: &str, environment: &[(&str, &str)], file: &str) -> String {
    let error = settle_all(line, environment, file).unwrap_err();
    format!("[{:03}]: {error}", error.code())
}

#[test]
fn the_nearest_place_decides() {
    let settings = settle_all("backup --stanza=demo", &[], FILE).unwrap();
    assert_eq!(settings.number("process-max"), Some(3));
    assert_eq!(settings.number("compress-level"), Some(2));
    assert!(settings.flag("start-fast"));
    assert_eq!(settings.text("repo1-path"), Some("/repo"));
    assert_eq!(settings.text("type"), Some("incr"));
    assert_eq!(settings.list("exclude"), ["a", "b"]);

    let variables = [
        ("PGCAIRN_PROCESS_MAX", "4"),
        ("PGCAIRN_COMPRESS_LEVEL", "4"),
        ("PGCAIRN_EXCLUDE", "c:d"),
    ];
    let settings = settle_all("backup --stanza=demo --process-max=5", &variables, FILE).unwrap();
    assert_eq!(settings.number("process-max"), Some(5));
    assert_eq!(settings.number("compress-level"), Some(4));
    assert_eq!(settings.list("exclude"), ["c", "d"]);
}

#[test]
fn reset_forgets_and_no_negates() {
    let line = "backup --stanza=demo --reset-compress-level --no-start-fast --reset-process-max";
    let settings = settle_all(line, &[("PGCAIRN_COMPRESS_LEVEL", "4")], FILE).unwrap();
    assert_eq!(settings.number("compress-level"), Some(3));
    assert_eq!(settings.number("process-max"), None);
    assert_eq!(settings.flag_if_set("start-fast"), Some(false));
    assert_eq!(settings.flag_if_set("checksum-page"), None);
}

#[test]
fn sections_of_other_stanzas_and_commands_do_not_matter() {
    let settings = settle_all(
        "archive-push --stanza=demo /a/b",
        &[("PGCAIRN_DELTA", "y")],
        FILE,
    )
    .unwrap();
    assert_eq!(settings.number("process-max"), Some(1));
    assert!(!settings.values.contains_key("start-fast"));
    assert!(settle_all("info", &[], FILE).is_ok());
}

#[test]
fn the_stanza_may_come_from_the_environment() {
    let settings = settle_all("backup", &[("PGCAIRN_STANZA", "demo")], FILE).unwrap();
    assert_eq!(settings.text("pg1-path"), Some("/pg"));
}

#[test]
fn options_without_effect_are_accepted_and_told() {
    let settings = settle_all("backup --stanza=demo --repo1-block=y", &[], FILE).unwrap();
    assert_eq!(
        settings.without_effect().collect::<Vec<_>>(),
        ["repo1-block", "repo1-bundle"]
    );
}

#[test]
fn an_unsupported_option_is_accepted_only_where_it_asks_for_nothing() {
    let file = "[global]\narchive-copy=n\n[demo]\npg1-path=/pg\n";
    assert!(settle_all("backup --stanza=demo", &[], file).is_ok());
    let file = file.replace("=n", "=y");
    let text = "[031]: option 'archive-copy' is not supported yet";
    assert_eq!(refused("backup --stanza=demo", &[], &file), text);
    assert!(settle_all("archive-push --stanza=demo x", &[], &file).is_ok());
}

#[test]
fn a_flag_that_may_be_a_word_is_written_as_a_flag_too() {
    let value = |option: &str| {
        let words = format!("backup --stanza=demo --pg1-path=/pg {option}");
        let settings = settle_all(&words, &[], "[global]\nbackup-standby=prefer\n").unwrap();
        settings.text("backup-standby").unwrap().to_owned()
    };
    assert_eq!(value(""), "prefer");
    assert_eq!(value("--backup-standby"), "y");
    assert_eq!(value("--backup-standby=y"), "y");
    assert_eq!(value("--no-backup-standby"), "n");
    assert_eq!(value("--reset-backup-standby"), "n");
}

#[test]
fn further_clusters_stand_beside_the_first_for_those_that_speak_with_servers() {
    let file = "[demo]\npg1-path=/pg\npg2-path=/other\npg2-port=5433\n";
    let settings = settle_all("backup --stanza=demo", &[], file).unwrap();
    assert_eq!(settings.text("pg2-path"), Some("/other"));
    assert_eq!(settings.number("pg2-port"), Some(5433));
    assert_eq!(settings.text("pg3-path"), None);
    let settings = settle_all("archive-push --stanza=demo x", &[], file).unwrap();
    assert_eq!(settings.text("pg2-path"), None);
}

#[test]
fn what_cannot_be_honoured_is_named_wherever_it_stands() {
    let pg = "--stanza=demo --pg1-path=/pg";
    let backup = format!("backup {pg}");
    assert_eq!(
        refused(&backup, &[("PGCAIRN_FOO", "1")], ""),
        "[031]: environment contains invalid option 'foo'"
    );
    assert_eq!(
        refused(&backup, &[], "[demo]\nfoo=1"),
        "[031]: configuration file contains invalid option 'foo'"
    );
    assert_eq!(
        refused(&backup, &[], "[global]\nrepo9-path=/a"),
        "[031]: option 'repo9-path': more than 8 repositories are not supported yet"
    );
    assert_eq!(
        refused(&backup, &[], "[demo]\npg9-path=/a"),
        "[031]: option 'pg9-path': more than 8 clusters are not supported yet"
    );
    assert_eq!(
        refused(&backup, &[], "[demo]\npg2-path=/a\npg2-host=b"),
        "[031]: option 'pg2-host' is not supported yet"
    );
    assert_eq!(
        refused(&backup, &[], "[global]\npg1-path=/a"),
        "[031]: configuration file contains stanza-only option 'pg1-path' in section 'global'"
    );
    assert_eq!(
        refused(&backup, &[], "[demo]\ntype=full"),
        "[031]: configuration file contains command-line only option 'type' in section 'demo'"
    );
    assert_eq!(
        refused(&backup, &[], "[demo:backup]\nlink-all=y"),
        "[031]: configuration file contains another command's option 'link-all' in section 'demo:backup'"
    );
    assert_eq!(
        refused(&backup, &[], "[global]\nprocess-max=1\nprocess-max=2"),
        "[031]: option 'process-max' cannot be set multiple times"
    );
    assert_eq!(
        refused(&backup, &[("PGCAIRN_DELTA", "")], ""),
        "[032]: environment variable 'PGCAIRN_DELTA' must have a value"
    );
}

#[test]
fn values_are_checked_with_the_words_of_pgbackrest() {
    let backup = |option: &str| {
        refused(
            &format!("backup --stanza=demo --pg1-path=/pg {option}"),
            &[],
            "",
        )
    };
    assert_eq!(
        backup("--type=foo"),
        "[032]: 'foo' is not allowed for 'type' option"
    );
    assert_eq!(
        backup("--process-max=foo"),
        "[032]: 'foo' is not valid for 'process-max' option"
    );
    assert_eq!(
        backup("--process-max=0"),
        "[032]: '0' is out of range for 'process-max' option"
    );
    assert_eq!(
        backup("--archive-timeout=1x"),
        "[032]: '1x' is not valid for 'archive-timeout' option"
    );
    assert_eq!(
        backup("--start-fast=foo"),
        "[032]: boolean option '--start-fast' argument must be 'y' or 'n'"
    );
    assert_eq!(
        backup("--repo1-path=x"),
        "[032]: 'x' must begin with / for 'repo1-path' option"
    );
    assert_eq!(
        backup("--repo1-type=azure"),
        "[032]: 'azure' is not allowed for 'repo1-type' option"
    );
    assert_eq!(
        backup("--force"),
        "[031]: option 'force' not valid without option 'no-online'"
    );
    assert_eq!(
        backup("--annotation=a=b"),
        "[031]: option 'annotation' is not supported yet"
    );
}

#[test]
fn recovery_options_depend_on_the_type() {
    let restore = |options: &str| {
        refused(
            &format!("restore --stanza=demo --pg1-path=/pg {options}"),
            &[],
            "",
        )
    };
    assert_eq!(
        restore("--type=time"),
        "[037]: restore command requires option: target"
    );
    assert_eq!(
        restore("--target=x"),
        "[031]: option 'target' not valid without option 'type' in ('lsn', 'name', 'time', 'xid')"
    );
    assert_eq!(
        restore("--recovery-option=a"),
        "[031]: key/value 'a' not valid for 'recovery-option' option"
    );
    let settings = settle_all("restore --stanza=demo --pg1-path=/pg", &[], "").unwrap();
    assert_eq!(settings.text("target-action"), None);
}

#[test]
fn required_options_are_asked_for() {
    assert_eq!(
        refused("backup", &[], ""),
        "[037]: backup command requires option: stanza"
    );
    assert_eq!(
        refused("backup --stanza=a", &[], FILE),
        "[037]: backup command requires option: pg1-path"
    );
}

#[test]
fn what_the_log_shows_is_what_was_given() {
    let settings = settle_all("backup --stanza=demo --no-online --type=full", &[], FILE).unwrap();
    let shown = settings.arguments(|_, setting| setting.origin == Origin::CommandLine);
    assert_eq!(shown, ["--no-online", "--stanza=demo", "--type=full"]);
}

#[test]
fn further_repositories_have_the_options_of_the_first_and_are_there_if_anything_is_said_of_them() {
    let present = |file: &str| {
        let words = "backup --stanza=demo --pg1-path=/pg";
        let settings = settle_all(words, &[], file).unwrap();
        let present = |n: &u32| settings.text(&format!("repo{n}-path")).is_some();
        (1..=8).filter(present).collect::<Vec<u32>>()
    };
    assert_eq!(present(""), [1]);
    assert_eq!(present("[global]\nrepo2-path=/a"), [2]);
    let bucket = "[global]\nrepo1-path=/a\nrepo3-type=s3\nrepo3-s3-bucket=b";
    assert_eq!(present(bucket), [1, 3]);
    let words = "backup --stanza=demo --pg1-path=/pg";
    assert_eq!(
        refused(words, &[], "[global]\nrepo3-type=s3"),
        "[037]: backup command requires option: repo3-s3-bucket"
    );
    let two = "[global]\nrepo1-path=/a\nrepo2-path=/b";
    let settings = settle_all(words, &[], two).unwrap();
    assert_eq!(settings.text("repo2-s3-region"), None);
}
