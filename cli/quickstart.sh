#!/usr/bin/env bash
# Shows, on a throw-away PostgreSQL server, what pgcairn does: backs the server up twice under its eyes, wrecks the data
# directory, restores it, and proves that every table is what it was. Installs what is missing, leaves nothing behind.
#
#     cli/quickstart.sh [--s3] [--keep] [--size small|large]
#
#     --s3      keeps the repository in a bucket of a real S3 server on this machine, instead of a directory
#     --keep    leaves the restored server running, and says how to look around and how to remove it
#     --size    small: 150 MB of data (the default); large: 1.5 GB
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tests/setup.sh

keep=false
s3=false
scale=10
while (($#)); do
    case $1 in
        --keep) keep=true ;;
        --s3) s3=true ;;
        --size=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && continue ;;
        --size)
            case ${2:-} in
                small) scale=10 ;;
                large) scale=100 ;;
                *) die "--size is small or large" ;;
            esac
            shift
            ;;
        -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && exit ;;
        *) die "unknown option $1 (there are --s3, --keep and --size small|large)" ;;
    esac
    shift
done

say "what is needed"
setup
programs=/usr/lib/postgresql/$(system_postgres)/bin
cargo build --release --locked --workspace --bins

# Short, because the path of a server's socket may have no more than 107 bytes.
work=$(mktemp -d /tmp/pgcairn-demo.XXXXXX)
finish() {
    local status=$?
    trap - EXIT
    cd /
    if $keep && [[ $status == 0 ]]; then
        local as= also=
        [[ $(id -u) != 0 ]] || as="runuser -u $user -- "
        [[ -z ${s3_server:-} ]] || also="kill $s3_server; "
        cat <<END

Kept, and running:
    look around   ${as}psql -h $work -U postgres postgres
                  ${as}$pgcairn info
    remove        ${as}$programs/pg_ctl stop -D $data; ${also}rm -rf $work
END
    else
        [[ -z ${s3_server:-} ]] || kill "$s3_server" 2>/dev/null || true
        remove_with_servers "$work"
    fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

user=$(server_user)
data=$work/data
pgcairn="$work/pgcairn --config=$work/pgcairn.conf --stanza=demo"
install -m 755 "$CARGO_TARGET_DIR/release/pgcairn" "$work/pgcairn"
mkdir "$work/repo" "$work/cache" "$work/log" "$work/lock"
place="repo1-path=$work/repo"
if $s3; then
    install -m 755 "$CARGO_TARGET_DIR/release/pgcairn-s3-server" "$work/s3-server"
    setsid "$work/s3-server" "$work/repo" >"$work/log/s3-server" 2>&1 &
    s3_server=$!
    for ((tries = 0; tries < 100; tries++)); do
        [[ ! -e $work/repo/address ]] || break
        sleep 0.1
    done
    [[ -e $work/repo/address ]] || die "the S3 server does not start: $(cat "$work/log/s3-server")"
    place="repo1-type=s3
repo1-path=/demo
repo1-s3-bucket=cairns
repo1-s3-endpoint=http://$(cat "$work/repo/address")
repo1-s3-region=us-east-1
repo1-s3-uri-style=path
repo1-s3-key=AKCAIRN
repo1-s3-key-secret=a-secret-that-is-never-shown"
fi
cat >"$work/pgcairn.conf" <<END
[global]
$place
cache-path=$work/cache
log-path=$work/log
lock-path=$work/lock
start-fast=y

[demo]
pg1-path=$data
pg1-socket-path=$work
pg1-user=postgres
END
[[ $(id -u) != 0 ]] || chown -R "$user:" "$work"
cd "$work"
# Settings of the caller's own servers do not count here.
for name in ${!PG*} ${!PGCAIRN_*}; do
    unset "$name"
done
export PGHOST=$work PGUSER=postgres PGDATABASE=postgres LC_ALL=C

# Shows a command as one would type it, runs it as the server's user, and says how long it took.
show() {
    local start=${EPOCHREALTIME/./} shown=$*
    shown=${shown/#"$pgcairn"/pgcairn --stanza=demo}
    printf '$ %s\n' "${shown//"$programs/"/}"
    as_server_user "$@"
    local took=$((${EPOCHREALTIME/./} - start))
    printf '  (%d.%02d s)\n' $((took / 1000000)) $((took / 10000 % 100))
}
sql() { as_server_user "$programs/psql" -XAtq -v ON_ERROR_STOP=1 "$@"; }
start_server() { show "$programs/pg_ctl" start -s -w -t 300 -D "$data" -l "$work/server.log"; }
megabytes() { du -sm "$1" | cut -f 1; }

# Rows and a hash over all rows (in any order), for each table.
fingerprints() {
    local table
    for table in $(sql -c "SELECT oid::regclass FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"); do
        sql -F ' ' -c "SELECT '$table', count(*), sum(hashtextextended(t::text, 0)::numeric) FROM $table t"
    done
}

say "1. a PostgreSQL $(system_postgres) server that archives its WAL with pgcairn"
show "$programs/initdb" --pgdata="$data" --username=postgres --auth=trust --data-checksums --no-sync >"$work/log/initdb"
head -n 1 "$work/log/initdb"
cat >>"$data/postgresql.conf" <<END
listen_addresses = ''
unix_socket_directories = '$work'
archive_mode = on
archive_command = '$pgcairn archive-push %p'
END
tail -n 2 "$data/postgresql.conf"
start_server
show "$programs/pgbench" --initialize --quiet --scale=$scale 2>/dev/null
echo "  data directory: $(megabytes "$data") MB"

say "2. a full backup"
show $pgcairn stanza-create
show $pgcairn backup --type=full
echo "  repository: $(megabytes "$work/repo") MB"

say "3. changes, and an incremental backup"
show "$programs/pgbench" --no-vacuum --client=4 --transactions=1000 2>/dev/null | sed -n '1p;/^number of transactions act/p;$p'
sql -c "CREATE TABLE souvenirs AS SELECT n, md5(n::text) AS engraving FROM generate_series(1, 50000) n"
show $pgcairn backup --type=incr
echo "  repository: $(megabytes "$work/repo") MB"
show $pgcairn info

say "4. more changes, which only the archived WAL will know"
show "$programs/pgbench" --no-vacuum --client=4 --transactions=250 2>/dev/null | sed -n '1p;/^number of transactions act/p;$p'
sql -c "UPDATE souvenirs SET engraving = 'engraved after the last backup' WHERE n % 10 = 0" -c "CHECKPOINT"
accounts=$(sql -c "SELECT pg_relation_filepath('pgbench_accounts')")
branches=$(sql -c "SELECT pg_relation_filepath('pgbench_branches')")
fingerprints >"$work/before"
sed 's/^/  /' "$work/before"

say "5. disaster"
show "$programs/pg_ctl" stop -s -w -m fast -D "$data"
for page in 10 500 1000 1001 1500; do
    dd if=/dev/urandom of="$data/$accounts" bs=8192 seek=$page count=1 conv=notrunc status=none
done
rm "$data/$branches" "$data/global/pg_control"
rm -r "$data/pg_xact"
echo "not PostgreSQL's" >"$data/base/stray"
echo "  5 pages of pgbench_accounts overwritten; pgbench_branches, pg_control and pg_xact deleted; a stray file added"

say "6. restore: only what differs"
show $pgcairn restore --delta

say "7. the proof"
start_server
recovering=true
for ((tries = 0; tries < 600; tries++)); do
    [[ $(sql -c "SELECT pg_is_in_recovery()") == t ]] || { recovering=false && break; }
    sleep 0.1
done
! $recovering || die "the server did not end its recovery within a minute; see its log: $(tail -n 5 "$work/server.log")"
fingerprints >"$work/after"
sed 's/^/  /' "$work/after"
[[ ! -e $data/base/stray ]] || die "the stray file is still there"
diff "$work/before" "$work/after" || die "the restored tables differ"
show "$programs/pg_amcheck" --all --install-missing --heapallindexed
echo
echo "Every table is what it was: $(wc -l <"$work/before") tables equal, and pg_amcheck found nothing to complain of."
