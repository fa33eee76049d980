//! The rows of the option table. Promises: alphabetical within a group, so that a missing one is seen.

use super::Command::{
    ArchiveGet, ArchivePush, Backup, Check, Info, Restore, StanzaCreate, StanzaDelete,
    StanzaUpgrade, Start, Stop, Verify, Version,
};
use super::Effect::{Nothing, Unsupported};
use super::Kind::{Choice, Duration, Flag, FlagOr, List, Number, Pairs, Path, Size, Text};
use super::Place::CommandLine;
use super::begin::{
    ACTING, ALL, ARCHIVE, CONFIGURED, ENDED, LEVELS, RECOVERING, TARGETED, WITH_CLUSTER,
    WITH_SERVER, own, pg, repo, s3, shape, shared_key,
};
use super::{Group, OptionRow};

/// All options but those of further clusters.
pub(super) const ROWS: &[OptionRow] = &[
    // Of single commands
    own(
        "annotation",
        Pairs,
        &[Backup],
        "annotate backup with user-defined key/value pairs",
    )
    .place(CommandLine)
    .effect(Unsupported),
    own(
        "archive-async",
        Flag,
        &[ArchiveGet, ArchivePush, Check],
        "push and get WAL segments asynchronously",
    )
    .default("n"),
    own(
        "archive-check",
        Flag,
        &[Backup, Check],
        "check that WAL segments are in the archive before backup completes",
    )
    .default("y"),
    own(
        "archive-copy",
        Flag,
        &[Backup],
        "copy WAL segments needed for consistency to the backup",
    )
    .default("n")
    .effect(Unsupported),
    own(
        "archive-get-queue-max",
        Size,
        &[ArchiveGet],
        "how much WAL is fetched before it is asked for",
    )
    .default("128MiB"),
    own(
        "archive-header-check",
        Flag,
        ARCHIVE,
        "check PostgreSQL version/id in WAL headers",
    )
    .default("y"),
    own(
        "archive-mode",
        Choice(&["off", "preserve"]),
        &[Restore],
        "preserve or disable archiving on restored cluster",
    )
    .default("preserve")
    .needs("type", RECOVERING),
    own(
        "archive-mode-check",
        Flag,
        &[Backup, Check],
        "check the PostgreSQL archive_mode setting",
    )
    .default("y"),
    own(
        "archive-push-queue-max",
        Size,
        &[ArchivePush],
        "drop WAL segments, and record the gap, when more than this waits",
    ),
    own(
        "archive-timeout",
        Duration,
        &[ArchiveGet, ArchivePush, Backup, Check],
        "how long to wait for a WAL segment to arrive",
    )
    .default("1m"),
    own(
        "backup-standby",
        FlagOr("prefer"),
        &[Backup],
        "backup from the standby cluster; prefer: from the primary if there is none",
    )
    .default("n"),
    own(
        "checksum-page",
        Flag,
        &[Backup],
        "validate data page checksums; unset: if the cluster has them",
    ),
    own(
        "db-exclude",
        List,
        &[Restore],
        "restore excluding the specified databases",
    )
    .effect(Unsupported),
    own(
        "db-include",
        List,
        &[Restore],
        "restore only specified databases",
    )
    .effect(Unsupported),
    own(
        "exclude",
        List,
        &[Backup],
        "exclude paths/files from the backup",
    ),
    own(
        "expire-auto",
        Flag,
        &[Backup],
        "run the expire command after a backup",
    )
    .effect(Nothing),
    own("force", Flag, &[Backup], "force an offline backup")
        .place(CommandLine)
        .default("n")
        .needs("online", &["n"]),
    own(
        "force",
        Flag,
        &[Restore],
        "restore into a directory that is not empty",
    )
    .place(CommandLine)
    .default("n"),
    own(
        "force",
        Flag,
        &[StanzaDelete],
        "delete although a server runs in pg1-path",
    )
    .place(CommandLine)
    .default("n"),
    own("link-all", Flag, &[Restore], "restore all symlinks").default("n"),
    own(
        "link-map",
        Pairs,
        &[Restore],
        "modify the destination of a symlink",
    ),
    own("manifest-save-threshold", Text, &[Backup], "no effect here").effect(Nothing),
    own(
        "online",
        Flag,
        &[Backup, StanzaCreate, StanzaUpgrade],
        "talk to the running server",
    )
    .place(CommandLine)
    .default("y"),
    own(
        "output",
        Choice(&["text", "json"]),
        &[
            Backup,
            Check,
            Info,
            Restore,
            StanzaCreate,
            StanzaDelete,
            StanzaUpgrade,
            Verify,
        ],
        "output format",
    )
    .place(CommandLine)
    .default("text"),
    own(
        "output",
        Choice(&["text", "num"]),
        &[Version],
        "output format",
    )
    .place(CommandLine)
    .default("text"),
    own(
        "page-header-check",
        Flag,
        &[Backup],
        "check PostgreSQL page headers",
    )
    .effect(Nothing),
    own(
        "recovery-option",
        Pairs,
        &[Restore],
        "set an option in postgresql.auto.conf",
    )
    .needs("type", RECOVERING),
    own(
        "resume",
        Flag,
        &[Backup],
        "allow resume of failed backup; every backup here resumes by itself",
    )
    .effect(Nothing),
    own(
        "set",
        Text,
        &[Info, Restore, Verify],
        "backup set to restore, to show in detail or to verify",
    )
    .place(CommandLine),
    own(
        "start-fast",
        Flag,
        &[Backup],
        "force a checkpoint to start backup quickly",
    )
    .default("n"),
    own(
        "tablespace-map",
        Pairs,
        &[Restore],
        "restore a tablespace into the specified directory",
    ),
    own(
        "tablespace-map-all",
        Path,
        &[Restore],
        "restore all tablespaces into the specified directory",
    ),
    own("target", Text, &[Restore], "recovery target")
        .place(CommandLine)
        .required()
        .needs("type", TARGETED),
    own(
        "target-action",
        Choice(&["pause", "promote", "shutdown"]),
        &[Restore],
        "action at the recovery target",
    )
    .place(CommandLine)
    .default("pause")
    .needs("type", ENDED),
    own(
        "target-exclusive",
        Flag,
        &[Restore],
        "stop just before the recovery target",
    )
    .place(CommandLine)
    .default("n")
    .needs("type", &["lsn", "time", "xid"]),
    own(
        "target-timeline",
        Text,
        &[Restore],
        "recover along a timeline",
    )
    .place(CommandLine)
    .needs(
        "type",
        &["default", "lsn", "name", "standby", "time", "xid"],
    ),
    own(
        "type",
        Choice(&["full", "diff", "incr"]),
        &[Backup],
        "backup type",
    )
    .place(CommandLine)
    .default("incr"),
    own(
        "type",
        Choice(&[
            "default",
            "immediate",
            "lsn",
            "name",
            "none",
            "preserve",
            "standby",
            "time",
            "xid",
        ]),
        &[Restore],
        "recovery type",
    )
    .place(CommandLine)
    .default("default"),
    own(
        "verbose",
        Flag,
        &[Verify],
        "tell more; everything is told here",
    )
    .place(CommandLine)
    .effect(Nothing),
    // General
    OptionRow::new(
        "allow-root",
        Flag,
        ALL,
        "allow the command to run as root; always allowed here",
    )
    .effect(Nothing),
    OptionRow::new(
        "buffer-size",
        Text,
        ALL,
        "buffer size for I/O operations; no effect here",
    )
    .effect(Nothing),
    OptionRow::new(
        "cache-path",
        Path,
        &[ArchivePush, Backup, Restore, Verify],
        "path of the chunk index and other caches",
    )
    .default("/var/cache/pgcairn"),
    OptionRow::new(
        "compress-level",
        Number(-7, 22),
        &[ArchivePush, Backup],
        "file compression level",
    )
    .default("3"),
    OptionRow::new("compress-level-network", Text, ALL, "no effect here").effect(Nothing),
    OptionRow::new(
        "compress-type",
        Choice(&["zst"]),
        &[ArchivePush, Backup],
        "file compression type",
    )
    .default("zst"),
    OptionRow::new("config", Path, CONFIGURED, "configuration file")
        .place(CommandLine)
        .negatable()
        .default("/etc/pgcairn/pgcairn.conf"),
    OptionRow::new(
        "db-timeout",
        Text,
        WITH_SERVER,
        "database query timeout; no effect here",
    )
    .effect(Nothing),
    OptionRow::new(
        "delta",
        Flag,
        &[Backup, Restore],
        "restore or backup using checksums",
    )
    .default("n"),
    OptionRow::new(
        "io-timeout",
        Duration,
        ALL,
        "how long a store on S3 that refuses or does not answer is asked again; unset: 2m",
    ),
    OptionRow::new(
        "lock-path",
        Path,
        ACTING,
        "path where lock files are stored",
    )
    .default("/tmp/pgcairn"),
    OptionRow::new(
        "neutral-umask",
        Flag,
        ALL,
        "use a neutral umask; no effect here",
    )
    .effect(Nothing),
    OptionRow::new(
        "process-max",
        Number(1, 999),
        &[ArchiveGet, ArchivePush, Backup, Check, Restore, Verify],
        "max threads to use; unset: one per core",
    ),
    OptionRow::new("protocol-timeout", Text, ALL, "no effect here").effect(Nothing),
    OptionRow::new(
        "repo",
        Number(1, 256),
        &[
            ArchiveGet,
            Backup,
            Check,
            Info,
            Restore,
            StanzaDelete,
            Verify,
        ],
        "number of the repository to work on; unset: all, or the first that will do",
    )
    .place(CommandLine),
    OptionRow::new(
        "spool-path",
        Path,
        &[ArchiveGet, ArchivePush, Check, Restore],
        "path where transient data is stored",
    )
    .default("/var/spool/pgcairn"),
    OptionRow::new("stanza", Text, WITH_CLUSTER, "defines the stanza")
        .place(CommandLine)
        .required(),
    OptionRow::new(
        "stanza",
        Text,
        &[Info, Start, Stop, Verify],
        "defines the stanza; unset: all",
    )
    .place(CommandLine),
    // Log
    OptionRow::new(
        "log-level-console",
        Choice(LEVELS),
        ACTING,
        "level for console logging",
    )
    .group(Group::Log)
    .default("warn"),
    OptionRow::new(
        "log-level-file",
        Choice(LEVELS),
        ACTING,
        "level for file logging",
    )
    .group(Group::Log)
    .default("info"),
    OptionRow::new(
        "log-level-stderr",
        Choice(LEVELS),
        ACTING,
        "no effect here: warnings and errors go to stderr",
    )
    .group(Group::Log)
    .effect(Nothing),
    OptionRow::new("log-path", Path, ACTING, "path where log files are stored")
        .group(Group::Log)
        .default("/var/log/pgcairn"),
    OptionRow::new("log-subprocess", Flag, ACTING, "no effect here")
        .group(Group::Log)
        .effect(Nothing),
    OptionRow::new("log-timestamp", Flag, ACTING, "enable timestamp in logging")
        .group(Group::Log)
        .default("y"),
    // Repository
    shape("repo1-block"),
    shape("repo1-block-age-map"),
    shape("repo1-block-checksum-size-map"),
    shape("repo1-block-size-map"),
    shape("repo1-block-size-super"),
    shape("repo1-block-size-super-full"),
    shape("repo1-bundle"),
    shape("repo1-bundle-limit"),
    shape("repo1-bundle-size"),
    repo("repo1-cipher-pass", Text, "repository cipher passphrase")
        .secret()
        .effect(Unsupported),
    repo(
        "repo1-cipher-type",
        Choice(&["none"]),
        "cipher used to encrypt the repository",
    )
    .default("none"),
    shape("repo1-hardlink"),
    repo(
        "repo1-host",
        Text,
        "repository host when operating remotely",
    )
    .effect(Unsupported),
    repo(
        "repo1-path",
        Path,
        "path where backups and archive are stored",
    )
    .default("/var/lib/pgcairn"),
    OptionRow::new(
        "repo1-retention-archive",
        Text,
        &[Backup],
        "number of backups worth of WAL to retain",
    )
    .group(Group::Repository)
    .effect(Unsupported),
    OptionRow::new(
        "repo1-retention-diff",
        Text,
        &[Backup],
        "number of differential backups to retain",
    )
    .group(Group::Repository)
    .effect(Unsupported),
    OptionRow::new(
        "repo1-retention-full",
        Text,
        &[Backup],
        "full backup retention count/time",
    )
    .group(Group::Repository)
    .effect(Unsupported),
    s3("repo1-s3-bucket", Text, "S3 repository bucket").required(),
    s3("repo1-s3-endpoint", Text, "endpoint; unset: AWS's"),
    shared_key("repo1-s3-key", "S3 repository access key"),
    shared_key("repo1-s3-key-secret", "S3 secret access key"),
    s3(
        "repo1-s3-key-type",
        Choice(&["shared", "auto", "web-id", "pod-id", "process"]),
        "S3 repository key type; all but shared, and shared without a key: where AWS tools find it",
    )
    .default("shared"),
    s3("repo1-s3-kms-key-id", Text, "S3 repository KMS key").secret(),
    s3("repo1-s3-region", Text, "S3 repository region"),
    s3("repo1-s3-requester-pays", Flag, "requester pays").default("n"),
    repo(
        "repo1-s3-role",
        Text,
        "role whose credentials the instance's metadata give",
    )
    .needs("repo1-s3-key-type", &["auto"]),
    s3(
        "repo1-s3-sse-customer-key",
        Text,
        "key that S3 encrypts with and does not keep, in base64",
    )
    .secret(),
    s3(
        "repo1-s3-storage-class",
        Choice(&[
            "STANDARD_IA",
            "ONEZONE_IA",
            "INTELLIGENT_TIERING",
            "GLACIER_IR",
        ]),
        "storage class of data packs; all else is of the standard class",
    ),
    shared_key("repo1-s3-token", "S3 repository security token"),
    s3(
        "repo1-s3-uri-style",
        Choice(&["host", "path"]),
        "S3 URI style",
    )
    .default("host"),
    s3("repo1-storage-ca-file", Path, "certificates to trust"),
    s3(
        "repo1-storage-ca-path",
        Path,
        "folder of certificates to trust",
    ),
    s3("repo1-storage-host", Text, "host to connect to"),
    s3("repo1-storage-port", Number(1, 65535), "port"),
    s3("repo1-storage-tag", Pairs, "tags of the objects"),
    repo("repo1-storage-upload-chunk-size", Text, "no effect here").effect(Nothing),
    s3(
        "repo1-storage-verify-tls",
        Flag,
        "verify the server's certificate; it always is: see repo1-storage-ca-file",
    )
    .default("y")
    .effect(Unsupported),
    shape("repo1-symlink"),
    repo(
        "repo1-type",
        Choice(&["posix", "s3"]),
        "type of storage used for the repository",
    )
    .default("posix"),
    // Stanza
    pg("pg1-database", Text, WITH_SERVER, "PostgreSQL database").default("postgres"),
    pg(
        "pg1-host",
        Text,
        WITH_CLUSTER,
        "PostgreSQL host for operating remotely",
    )
    .effect(Unsupported),
    pg("pg1-path", Path, WITH_CLUSTER, "PostgreSQL data directory").required(),
    pg("pg1-port", Number(1, 65535), WITH_SERVER, "PostgreSQL port").default("5432"),
    pg(
        "pg1-socket-path",
        Path,
        WITH_SERVER,
        "PostgreSQL unix socket path",
    ),
    pg("pg1-user", Text, WITH_SERVER, "PostgreSQL database user"),
];
