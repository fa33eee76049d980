"""The cluster that compare.py measures on, and its server.

The cluster is always the same on one system: page checksums on, autovacuum off, pgbench's tables, and a table of the
text that this Debian has installed (documentation, headers, sources) with two indexes, a wide one and a random one.
"""

import gzip
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

# Bytes of text for each step of pgbench's scale: as much on disk, indexes included, as pgbench's tables and a fifth.
TEXT_PER_SCALE = 9_500_000
TEXT_PLACES = (
    "usr/share/doc", "usr/share/info", "usr/share/man", "usr/share/perl", "usr/share/perl5", "usr/share/nodejs",
    "usr/share/vim", "usr/lib/python3", "usr/lib/python3.*", "usr/include", "usr/lib/llvm-*/include",
)
# Settings of the caller's own servers do not count.
ENVIRONMENT = {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC", "HOME": "/nonexistent"}


def die(message):
    """Ends the program."""
    sys.exit(f"error: {message}")


def say(message):
    """Tells what goes on, apart from the result."""
    print(f"== {message}", file=sys.stderr, flush=True)


def run(*command):
    """Runs a command to its end and returns what it printed, which is shown if it fails."""
    command = [str(part) for part in command]
    done = subprocess.run(command, env=ENVIRONMENT, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    if done.returncode:
        die(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}")
    return done.stdout


def programs():
    """The programs of the newest PostgreSQL that is installed with all that is needed."""
    needed = ("initdb", "pg_ctl", "postgres", "psql", "pgbench")
    found = [folder for folder in Path("/usr/lib/postgresql").glob("*/bin")
             if all((folder / name).exists() for name in needed)]
    if not found:
        die("no PostgreSQL with pgbench is installed: run tests/setup.sh")
    return max(found, key=lambda folder: int(folder.parent.name))


class Server:
    """A server that runs within `with`, on a socket in `folder`."""

    def __init__(self, data, folder, **settings):
        self.data, self.folder, self.programs = data, folder, programs()
        self.settings = {"listen_addresses": "", "unix_socket_directories": folder, "autovacuum": "off",
                         "checkpoint_timeout": "1h", **settings}

    def __enter__(self):
        options = " ".join(f"-c {name}='{value}'" for name, value in self.settings.items())
        start = [self.programs / "pg_ctl", "start", "-s", "-w", "-t", "300", "-D", self.data,
                 "-l", self.folder / "server.log", "-o", options]
        # Not run(): the server keeps the output open.
        if subprocess.run(start, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode:
            die(f"the server does not start; see {self.folder}/server.log")
        return self

    def __exit__(self, *_):
        run(self.programs / "pg_ctl", "stop", "-s", "-w", "-m", "fast", "-D", self.data)

    def client(self, program):
        """The beginning of a client's command line."""
        return self.programs / program, "-h", self.folder, "-U", "postgres"

    def sql(self, *statements):
        """What the statements, each in a transaction of its own, print."""
        commands = [part for statement in statements for part in ("-c", statement)]
        return run(*self.client("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", *commands, "postgres").strip()


def text_files():
    """This system's text files, in one order."""
    return sorted({path for place in TEXT_PLACES for top in Path("/").glob(place) for path in top.rglob("*")
                   if path.is_file() and not path.is_symlink()})


def rows_of(path, turn):
    """Rows (path, place, body) of one file: a few lines each; on later turns with the words of each row shuffled."""
    try:
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    except (OSError, EOFError, UnicodeDecodeError):
        return
    if "\0" in text:
        return
    order = random.Random(f"{turn} {path}")
    name = f"/{turn}{path}" if turn else str(path)
    lines = text.splitlines()
    place = 0
    while place < len(lines):
        end = place + order.randint(1, 12)
        body = "\n".join(lines[place:end])[:4000]
        if turn:
            words = body.split(" ")
            order.shuffle(words)
            body = " ".join(words)
        yield name, place, body
        place = end


def rows(wanted):
    """Rows with `wanted` bytes of text in all; the files are gone through again if they have less."""
    files = text_files()
    made = turn = 0
    while made < wanted:
        before = made
        for path in files:
            for row in rows_of(path, turn):
                yield row
                made += len(row[2])
            if made >= wanted:
                return
        turn += 1
        if made == before:
            die(f"there is no text in {', '.join(TEXT_PLACES)}")


def copied(field):
    """A field as COPY wants it."""
    return str(field).replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def build(folder, scratch, scale):
    """Makes the cluster in `folder`, whole or not at all."""
    say(f"building the cluster, once: {folder}")
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    run(programs() / "initdb", "--pgdata", new, "--username=postgres", "--auth=trust", "--data-checksums", "--no-sync",
        "--encoding=UTF8", "--locale=C")
    # What is loaded under wal_level=minimal leaves no WAL behind.
    with Server(new, scratch, wal_level="minimal", max_wal_senders=0, max_wal_size="1GB", min_wal_size="64MB",
                maintenance_work_mem="512MB", fsync="off") as server:
        run(*server.client("pgbench"), "--initialize", "--quiet", f"--scale={scale}", "postgres")
        load = subprocess.Popen([*server.client("psql"), "-Xq", "-v", "ON_ERROR_STOP=1", "-1",
                                 "-c", "CREATE TABLE texts (path text NOT NULL, place int NOT NULL, body text NOT NULL)",
                                 "-c", "COPY texts FROM STDIN", "postgres"], env=ENVIRONMENT, stdin=subprocess.PIPE)
        for row in rows(scale * TEXT_PER_SCALE):
            load.stdin.write(("\t".join(map(copied, row)) + "\n").encode())
        load.stdin.close()
        if load.wait():
            die("the text could not be loaded")
        server.sql("CREATE INDEX ON texts (path, place)", "CREATE INDEX ON texts (md5(body))",
                   "VACUUM (FREEZE, ANALYZE)", "CHECKPOINT")
    os.sync()
    new.rename(folder)
