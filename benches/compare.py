#!/usr/bin/env python3
"""Measures whole commands of pgcairn, side by side with other backup tools, on one PostgreSQL cluster of 2 GB.

    benches/compare.py --work FOLDER [--pgcairn PATH] [--pgbackrest PATH] [--restic PATH]
                       [--repetitions N] [--scale N] [--csv FILE] [--s3-server PATH [--latency MS]]

    --work         keeps the cluster between calls; all else in it is removed at the end. Takes 12 GB
    --pgcairn      the binary that is measured (default: the release build)
    --pgbackrest   pgBackRest's binary; without it pgBackRest is left out, and the table says so
    --restic       restic's binary, likewise. It knows nothing of PostgreSQL: it stores and restores a folder
    --repetitions  how often everything is done (default 3); medians are shown
    --scale        pgbench's scale; the text beside it grows along (default 60)
    --csv          the single measurements go there (default: FOLDER/measurements.csv)
    --s3-server    the test server's binary (pgcairn-s3-server): all repositories then lie in its bucket, behind a
                   proxy that counts requests; restic is left out
    --latency      how long each request waits in the proxy, in milliseconds (default 20)

Each repetition has a fresh copy of the cluster (made by cluster.py), fresh repositories and fresh caches. The tools
take turns at each job, every time in another order. Before each timed command all WAL is archived for all tools and
the disks are synced; the page cache stays warm for all of them. While a backup is timed, the archive command serves
its tool alone. "Stored" is what the repository grew by, without the WAL; "peak" is the largest process, and the sum of
all of them where there are several. Restored tables are compared with the cluster's, byte for byte.
"""

import argparse
import csv
import encodings.idna  # before the account changes: Python's own library may be out of reach afterwards
import filecmp
import os
import platform
import pwd
import random
import resource
import shutil
import signal
import statistics
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

from cluster import ENVIRONMENT, Server, build, die, programs, run, say

PAGE = 8192
SAMPLE_SECONDS = 0.01
UPDATES = (1_000, 10_000, 100_000)
FIELDS = ("repetition", "job", "tool", "wall_s", "cpu_s", "peak_bytes", "peak_sum_bytes", "stored_bytes",
          "requests")


class Tool:
    """What all tools have: a folder with configuration, repository and cache, each of them fresh for a repetition."""

    wal = None
    store = None

    def __init__(self, binary, folder):
        self.binary, self.folder = binary, folder
        self.repository = folder / "repository" if self.store is None else self.store.bucket / folder.name

    def prepare(self, data, socket):
        """Makes everything anew."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.repository, ignore_errors=True)
        for name in ("repository", "cache", "log", "lock", "spool"):
            (self.folder / name).mkdir(parents=True)
        self.data, self.socket = data, socket

    def stored(self):
        """Bytes of the repository's files, without the WAL."""
        total = 0
        for folder, below, files in os.walk(self.repository):
            if Path(folder) == self.repository:
                below[:] = [name for name in below if name != self.wal]
            total += sum(os.lstat(os.path.join(folder, name)).st_size for name in files)
        return total


class Configured(Tool):
    """pgcairn and pgBackRest, which share their commands and options."""

    settings = {}

    def prepare(self, data, socket):
        super().prepare(data, socket)
        place = {"repo1-path": self.repository} if self.store is None else self.store.options(self.folder.name)
        common = place | {"log-path": self.folder / "log", "lock-path": self.folder / "lock",
                  "start-fast": "y", "process-max": 2, "compress-type": "zst", "compress-level": 3,
                  "log-level-console": "warn", "spool-path": self.folder / "spool"}
        own = {name: str(value).format(folder=self.folder) for name, value in self.settings.items()}
        lines = ["[global]", *(f"{name}={value}" for name, value in (common | own).items()),
                 "[bench]", f"pg1-path={data}", f"pg1-socket-path={socket}", "pg1-user=postgres"]
        self.configuration = self.folder / "configuration"
        self.configuration.write_text("\n".join(lines) + "\n")
        run(*self.command("stanza-create"))

    def command(self, *arguments):
        return self.binary, f"--config={self.configuration}", "--stanza=bench", *arguments

    def backup(self, kind):
        return self.command("backup", f"--type={kind}")

    def restore(self, target, delta):
        return self.command("restore", "--type=immediate", f"--pg1-path={target}", *(["--delta"] if delta else []))

    def verify(self):
        return self.command("verify")

    def push(self, segment):
        return self.command("archive-push", segment)

    def restored(self, target):
        return target


class Pgcairn(Configured):
    name, wal = "pgcairn", "wal"
    settings = {"cache-path": "{folder}/cache"}

    def version(self):
        return run(self.binary, "version").split()[1]


class PgBackRest(Configured):
    name, wal = "pgBackRest", "archive"
    settings = {"repo1-bundle": "y", "repo1-block": "y", "repo1-retention-full": 99}

    def version(self):
        return f"{run(self.binary, 'version').split()[1]} (bundle, block)"


class Restic(Tool):
    name = "restic"

    def prepare(self, data, socket):
        super().prepare(data, socket)
        (self.folder / "password").write_text("bench")
        run(*self.command("init"))

    def version(self):
        return run(self.binary, "version").split()[1]

    def command(self, *arguments):
        return (self.binary, "--quiet", f"--repo={self.repository}", f"--password-file={self.folder}/password",
                f"--cache-dir={self.folder}/cache", *arguments)

    def backup(self, kind):
        force = ["--force"] if kind == "full" else []
        return self.command("backup", *force, f"--exclude={self.data}/pg_wal/*", self.data)

    def restore(self, target, delta):
        return None if delta else self.command("restore", "latest", f"--target={target}")

    def verify(self):
        return self.command("check", "--read-data")

    def push(self, segment):
        return None

    def restored(self, target):
        return target / self.data.relative_to("/")


class Store:
    """An S3 server behind a proxy that slows requests down and counts them."""

    def __init__(self, binary, folder, latency):
        folder.mkdir()
        self.bucket = folder / "bucket" / "cairns"
        self.process = subprocess.Popen([binary, folder, str(latency)], env=ENVIRONMENT, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not (folder / "address").exists():
            if time.monotonic() > deadline:
                die("the S3 server does not start")
            time.sleep(0.01)
        self.address = (folder / "address").read_text()

    def options(self, name):
        """As both tools have them."""
        host, port = self.address.rsplit(":", 1)
        return {"repo1-type": "s3", "repo1-path": f"/{name}", "repo1-s3-bucket": "cairns",
                "repo1-s3-endpoint": "s3.invalid", "repo1-s3-region": "us-east-1", "repo1-s3-uri-style": "path",
                "repo1-s3-key": "AKCAIRN", "repo1-s3-key-secret": "a-secret-that-is-never-shown",
                "repo1-storage-host": f"http://{host}", "repo1-storage-port": port}

    def passed(self):
        """The requests since the last call."""
        with urllib.request.urlopen(f"http://{self.address}/-/passed") as answer:
            return answer.read().decode().strip()

    def end(self):
        self.process.kill()
        self.process.wait()


# --- measuring

def family(process):
    """A process and all that descend from it."""
    yield process
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from family(int(child))


class Peaks(threading.Thread):
    """Watches the memory of a process and its descendants."""

    def __init__(self, process):
        super().__init__(daemon=True)
        self.process, self.over = process, threading.Event()
        self.largest = self.sum = 0
        self.start()

    def run(self):
        while not self.over.wait(SAMPLE_SECONDS):
            now = 0
            for process in family(self.process):
                try:
                    status = Path(f"/proc/{process}/status").read_text()
                except OSError:
                    continue
                values = dict(line.split(":", 1) for line in status.splitlines())
                kilobytes = [int(values[name].split()[0]) for name in ("VmHWM", "VmRSS") if name in values]
                if len(kilobytes) == 2:
                    self.largest = max(self.largest, kilobytes[0] * 1024)
                    now += kilobytes[1] * 1024
            self.sum = max(self.sum, now)


def timed(tool, command):
    """Runs a command and tells what it took."""
    command = [str(part) for part in command]
    before = tool.stored()
    os.sync()
    if tool.store:
        tool.store.passed()
    log = tool.folder / "output"
    with log.open("w") as output:
        used, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        process = subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=output,
                                   stderr=subprocess.STDOUT)
        peaks = Peaks(process.pid)
        status = process.wait()
        wall, now = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    peaks.over.set()
    peaks.join()
    if status:
        die(f"{' '.join(command)}: exit {status}\n{log.read_text()}")
    return {"wall_s": wall, "cpu_s": now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime,
            "peak_bytes": peaks.largest, "peak_sum_bytes": max(peaks.sum, peaks.largest),
            "stored_bytes": tool.stored() - before, "requests": tool.store.passed() if tool.store else ""}


class Repetition:
    """One pass through all jobs."""

    def __init__(self, number, tools, folder, pristine, keep):
        self.number, self.tools, self.folder, self.pristine = number, tools, folder, pristine
        self.keep_row = keep
        self.data, self.turn, self.script = folder / "data", folder / "turn", folder / "archive-pgcairn-pgbackrest"
        self.jobs = 0

    def run(self):
        """All jobs, each with all tools."""
        shutil.rmtree(self.data, ignore_errors=True)
        run("cp", "-a", "--reflink=auto", self.pristine, self.data)
        self.turn.write_text("none")
        with Server(self.data, self.folder, archive_mode="on", archive_command=f"{self.script} %p",
                    shared_buffers="256MB", max_wal_size="8GB", wal_keep_size="1GB") as self.server:
            for tool in self.tools:
                tool.prepare(self.data, self.folder)
            self.write_script()
            self.backups()
            self.restores()
            self.job("verify, all that is stored", lambda tool: tool.verify())
            self.pushes()
            self.turn.write_text("none")

    def write_script(self):
        """The archive command: serves the tools, or the one whose turn it is."""
        lines = ["#!/bin/sh", f"read -r turn <{self.turn}"]
        for tool in self.tools:
            if command := tool.push('"$1"'):
                lines.append(f'case $turn in all | {tool.name}) {" ".join(map(str, command))} || exit 1 ;; esac')
        self.script.write_text("\n".join([*lines, "exit 0", ""]))
        self.script.chmod(0o755)

    def job(self, name, command, before=lambda: None):
        """One job with each tool that can do it; right before each, `before` is done."""
        first = (self.number + self.jobs) % len(self.tools)
        self.jobs += 1
        for tool in self.tools[first:] + self.tools[:first]:
            line = command(tool)
            if line is None:
                continue
            say(f"repetition {self.number}: {name}: {tool.name}")
            self.archive_everything()
            self.turn.write_text(tool.name)
            before()
            self.keep_row({"repetition": self.number, "job": name, "tool": tool.name, **timed(tool, line)})

    def archive_everything(self):
        """Ends the current WAL segment, and waits until it is in all archives."""
        self.turn.write_text("all")
        last = self.server.sql("SELECT pg_create_restore_point('bench')", "SELECT pg_walfile_name(pg_switch_wal())")
        last = last.splitlines()[-1]
        deadline = time.monotonic() + 60
        while self.server.sql("SELECT last_archived_wal FROM pg_stat_archiver") < last:
            if time.monotonic() > deadline:
                die(f"{last} is not archived within a minute; see {self.folder}/server.log")
            time.sleep(0.05)
        return last

    def backups(self):
        for name, kind in (("first full", "full"), ("second full, nothing changed", "full"),
                           ("incr, nothing changed", "incr")):
            self.job(name, lambda tool: tool.backup(kind))
        self.full_segment = None
        for updates in UPDATES:
            begin = self.archive_everything()
            self.server.sql(
                "BEGIN; SELECT setseed(0.5); "
                "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid IN ("
                "SELECT 1 + floor(random() * (SELECT max(aid) FROM pgbench_accounts))::int "
                f"FROM generate_series(1, {updates})); COMMIT")
            self.keep_full_segment(begin)
            self.server.sql("CHECKPOINT")
            self.job(f"incr after {updates:,} scattered row updates", lambda tool: tool.backup("incr"))

    def keep_full_segment(self, begin):
        """Keeps the segment that follows the one after `begin`, if it was written to its end."""
        number = int(begin[8:16], 16) * 256 + int(begin[16:], 16) + 2
        name = f"{begin[:8]}{number >> 8:08X}{number & 255:08X}"
        current = self.server.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
        if name < current:
            self.full_segment = self.keep(name)

    def keep(self, name):
        segments = self.folder / "segments"
        segments.mkdir(exist_ok=True)
        return Path(shutil.copy2(self.data / "pg_wal" / name, segments))

    def restores(self):
        targets = {tool.name: self.folder / f"restored-{tool.name}" for tool in self.tools}
        for target in targets.values():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(mode=0o700)
        relations = {table: Path(self.server.sql(f"SELECT pg_relation_filepath('{table}')"))
                     for table in ("pgbench_accounts", "texts")}
        self.job("restore, empty directory", lambda tool: tool.restore(targets[tool.name], False), self.warm)
        for tool in self.tools:
            self.compare(tool.restored(targets[tool.name]), relations)
            if tool.restore(targets[tool.name], True):
                self.damage(tool.restored(targets[tool.name]) / relations["pgbench_accounts"])
        self.job("delta restore, 1 % of one table's pages differ", lambda tool: tool.restore(targets[tool.name], True))
        for tool in self.tools:
            self.compare(tool.restored(targets[tool.name]), relations)
            shutil.rmtree(targets[tool.name])

    def warm(self):
        """Uses as much memory as a restore is about to fill, and lets go of it: a virtual machine pays dearly for memory
        that it touches for the first time, and would charge it to whichever tool comes first."""
        copy = self.folder / "warm"
        run("cp", "-a", "--reflink=never", self.data / "base", copy)
        shutil.rmtree(copy)

    def compare(self, restored, relations):
        for table, path in relations.items():
            for file in [path, *sorted(path.parent.glob(f"{path.name}.*"))]:
                if not filecmp.cmp(self.data / file, restored / file, shallow=False):
                    die(f"{restored / file} (of {table}) is not what was backed up")

    def damage(self, relation):
        """Overwrites one page in a hundred with noise."""
        noise = random.Random(self.number)
        pages = relation.stat().st_size // PAGE
        with relation.open("r+b") as file:
            for page in noise.sample(range(pages), pages // 100):
                file.seek(page * PAGE)
                file.write(noise.randbytes(PAGE))

    def pushes(self):
        """Into archives that are empty."""
        if self.full_segment is None:
            die("no WAL segment was filled: the scale is too small")
        empty = self.keep(self.archive_everything())
        self.turn.write_text("none")
        for tool in self.tools:
            tool.prepare(self.data, self.folder)
        for name, segment in (("full", self.full_segment), ("mostly empty", empty)):
            self.job(f"archive-push, one {name} segment", lambda tool: tool.push(segment))
        shutil.rmtree(self.folder / "segments")


# --- what is shown

def machine():
    cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.processor())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({cpu}), {memory:.0f} GiB of memory, Linux {platform.release()}"


def shown(number):
    return f"{number:.3f}" if abs(number) < 0.1 else f"{number:.2f}" if abs(number) < 10 else f"{number:.0f}"


def table(rows, tools, left_out, data_bytes, load):
    """Medians, and the medians of each repetition's ratio to pgcairn, as Markdown."""
    repetitions = len({row["repetition"] for row in rows})
    yield (f"{', '.join(f'{tool.name} {tool.version()}' for tool in tools)}"
           f"{''.join(f'; {name} left out' for name in left_out)}. {run(programs() / 'postgres', '--version').strip()}; "
           f"{data_bytes / 1e9:.2f} GB in base/; {machine()}; load at the start {load:.1f}. "
           f"Medians of {repetitions}; × = the tool's figure over pgcairn's. MB = 10^6 bytes.")
    yield ""
    counted = any(row["requests"] for row in rows)
    yield f"| job | tool | wall s | × | CPU s | × | peak MB (sum) | stored MB |{' requests |' if counted else ''}"
    yield f"|---|---|---|---|---|---|---|---|{'---|' if counted else ''}"
    for job in dict.fromkeys(row["job"] for row in rows):
        ours = {row["repetition"]: row for row in rows if row["job"] == job and row["tool"] == Pgcairn.name}
        for tool in tools:
            mine = [row for row in rows if row["job"] == job and row["tool"] == tool.name]
            if not mine:
                continue
            middle = {field: statistics.median(row[field] for row in mine) for field in FIELDS[3:8]}
            times = {field: statistics.median(row[field] / ours[row["repetition"]][field] for row in mine)
                     for field in ("wall_s", "cpu_s")}
            peak = f"{middle['peak_bytes'] / 1e6:.0f}"
            if middle["peak_sum_bytes"] > 1.05 * middle["peak_bytes"]:
                peak += f" ({middle['peak_sum_bytes'] / 1e6:.0f})"
            # A push stores WAL, and a restore stores nothing.
            stored = shown(middle["stored_bytes"] / 1e6) if "full" in job[:12] or job.startswith("incr") else ""
            yield (f"| {job} | {tool.name} | {shown(middle['wall_s'])} | {times['wall_s']:.2f} | "
                   f"{shown(middle['cpu_s'])} | {times['cpu_s']:.2f} | {peak} | {stored} |"
                   f"{' ' + mine[-1]['requests'] + ' |' if counted else ''}")


def options():
    parser = argparse.ArgumentParser(usage=__doc__, add_help=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pgcairn", type=Path)
    parser.add_argument("--pgbackrest", type=Path)
    parser.add_argument("--restic", type=Path)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--scale", type=int, default=60)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--s3-server", type=Path)
    parser.add_argument("--latency", type=int, default=20)
    chosen = parser.parse_args()
    if chosen.pgcairn is None:
        target = os.environ.get("CARGO_TARGET_DIR") or Path(__file__).resolve().parent.parent / "target"
        chosen.pgcairn = Path(target) / "release" / "pgcairn"
    return chosen


def settle(work, binaries):
    """Makes the folders, copies the binaries to where the server's account can run them, and becomes that account:
    root may not run a server."""
    # Short, because the path of a server's socket may have no more than 107 bytes.
    scratch = work / "run"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o755)
    for name, binary in binaries.items():
        if not binary.is_file():
            die(f"{binary} is not there")
        shutil.copy(binary, scratch / name)
        (scratch / name).chmod(0o755)
    if os.getuid() == 0:
        user = pwd.getpwnam("postgres")
        for folder in (work, scratch):
            os.chown(folder, user.pw_uid, user.pw_gid)
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    os.chdir(scratch)
    return scratch


def main():
    # So that a server that runs is stopped.
    signal.signal(signal.SIGTERM, lambda *_: die("ended by SIGTERM"))
    chosen = options()
    work = chosen.work.resolve()
    measurements = (chosen.csv or work / "measurements.csv").resolve()
    kinds = {"pgcairn": Pgcairn, "pgbackrest": PgBackRest, "restic": Restic}
    if chosen.s3_server:
        chosen.restic = None
    binaries = {name: path for name in kinds if (path := getattr(chosen, name))}
    left_out = [kind.name for name, kind in kinds.items() if name not in binaries]
    work.mkdir(parents=True, exist_ok=True)
    with measurements.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        extra = {"s3-server": chosen.s3_server} if chosen.s3_server else {}
        scratch = settle(work, binaries | extra)
        if extra:
            Tool.store = Store(scratch / "s3-server", scratch / "s3", chosen.latency)
        tools = [kinds[name](scratch / name, scratch / f"{name}-files") for name in binaries]
        pristine = work / f"cluster-{programs().parent.name}-{chosen.scale}"
        load = os.getloadavg()[0]
        try:
            if not pristine.is_dir():
                build(pristine, scratch, chosen.scale)
            rows = []

            def keep(row):
                # At once, so that a run that is broken off has not been in vain.
                rows.append(row)
                writer.writerow(row)
                file.flush()

            for number in range(1, chosen.repetitions + 1):
                Repetition(number, tools, scratch, pristine, keep).run()
            data_bytes = sum(path.stat().st_size for path in (pristine / "base").rglob("*") if path.is_file())
            print("\n".join(table(rows, tools, left_out, data_bytes, load)))
        finally:
            if Tool.store:
                Tool.store.end()
            os.chdir(work)
            shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
