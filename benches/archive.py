#!/usr/bin/env python3
"""Measures how fast WAL goes into an archive and comes back, side by side with pgBackRest, both asynchronous.

    benches/archive.py --work FOLDER [--pgcairn PATH] [--pgbackrest PATH] [--segments N] [--scale N]
                       [--s3-server PATH [--latency MS]]

The options are those of compare.py, whose cluster is used. Segments that a real server wrote are given N names in a row
(default 500), and each tool is called for one after the other, as a server's archiver and its recovery call it: only when
the one before is confirmed. `process-max` is 2. What is fetched is compared with what was pushed.

"CPU" is what all processes of a tool took for one segment, those in the background included, the S3 server not. "Peak"
is the most memory that processes in the background had at one time: the sum of the peaks of all that were alive.
"""

import argparse
import ctypes
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import compare
from cluster import ENVIRONMENT, Server, build, die, programs, run, say

FIRST = 0x100
SEGMENT_BYTES = 16 << 20
SAMPLE_SECONDS = 0.05
PR_SET_CHILD_SUBREAPER = 36


def name_of(number):
    return f"00000001{number >> 8:08X}{number & 255:08X}"


def written(data, folder, scale):
    """Segments full of a server's work."""
    with Server(data, folder, archive_mode="off", wal_keep_size="4GB", max_wal_size="8GB", shared_buffers="256MB") as server:
        for _ in range(2):
            server.sql("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid % 10 = 0", "CHECKPOINT")
        current = server.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
    segments = sorted(path for path in (data / "pg_wal").iterdir() if len(path.name) == 24 and path.name < current)
    if len(segments) < 8:
        die("the server wrote too little WAL: the scale is too small")
    return segments


def lay_out(data, segments, count):
    """Gives the segments `count` names that wait to be archived."""
    wal = data / "pg_wal"
    kept = data.parent / "written"
    kept.mkdir()
    segments = [Path(shutil.copy(segment, kept)) for segment in segments]
    names = [name_of(FIRST + n) for n in range(count)]
    for n, name in enumerate(names):
        os.link(segments[n % len(segments)], wal / name)
    return names


class Background(threading.Thread):
    """Watches the processes that tools leave running: each tool gives them a process group of their own. Their parents
    gone, they are this process's children, so that what they took can be asked for."""

    def __init__(self):
        super().__init__(daemon=True)
        self.over, self.peak_bytes = threading.Event(), 0

    def __enter__(self):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.start()
        return self

    def __exit__(self, *_):
        while children := self.processes():
            os.waitpid(children[0], 0)
        self.over.set()
        self.join()
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def processes(self):
        """Those in the background, parents first."""
        found = []
        for process in compare.family(os.getpid()):
            try:
                if os.getpgid(process) != os.getpgrp():
                    found.append(process)
            except ProcessLookupError:
                pass
        return found

    def run(self):
        while not self.over.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, sum(map(peak_bytes, self.processes())))


def peak_bytes(process):
    """The most memory that a process had so far; none if it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def cpu():
    """What all processes have taken that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(tool, action):
    """Wall time, CPU time, peak memory in the background, and the requests that were made."""
    os.sync()
    if tool.store:
        tool.store.passed()
    used, started = cpu(), time.perf_counter()
    with Background() as background:
        action()
        wall = time.perf_counter() - started
    return wall, cpu() - used, background.peak_bytes, tool.store.passed() if tool.store else ""


def call(data, command, log):
    with log.open("w") as output:
        done = subprocess.run([str(word) for word in command], env=ENVIRONMENT, cwd=data, stdin=subprocess.DEVNULL,
                              stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        die(f"{' '.join(map(str, command))}: exit {done.returncode}\n{log.read_text()}")


def is_same(one, other):
    """Whether two files hold the same; filecmp takes as long for it as the tools for theirs."""
    buffers = bytearray(256 << 10), bytearray(256 << 10)
    with one.open("rb", buffering=0) as first, other.open("rb", buffering=0) as second:
        while True:
            lengths = [file.readinto(buffer) for file, buffer in zip((first, second), buffers)]
            if lengths[0] != lengths[1] or buffers[0] != buffers[1]:
                return False
            if not lengths[0]:
                return True


def push(tool, data, names):
    status = data / "pg_wal" / "archive_status"
    for name in names:
        (status / f"{name}.ready").touch()
    for name in names:
        call(data, tool.command("archive-push", f"pg_wal/{name}"), tool.folder / "output")
        (status / f"{name}.ready").rename(status / f"{name}.done")


def get(tool, data, names):
    fetched = data / "pg_wal" / "RECOVERYXLOG"
    for name in names:
        call(data, tool.command("archive-get", name, "pg_wal/RECOVERYXLOG"), tool.folder / "output")
        if not is_same(fetched, data / "pg_wal" / name):
            die(f"{name} came back as something else")
        fetched.unlink()


def options():
    parser = argparse.ArgumentParser(usage=__doc__, add_help=True)
    for name, kind, default in (("work", Path, None), ("pgcairn", Path, None), ("pgbackrest", Path, None),
                                ("s3-server", Path, None), ("segments", int, 500), ("scale", int, 60),
                                ("latency", int, 20)):
        parser.add_argument(f"--{name}", type=kind, default=default, required=name == "work")
    chosen = parser.parse_args()
    if chosen.pgcairn is None:
        target = os.environ.get("CARGO_TARGET_DIR") or Path(__file__).resolve().parent.parent / "target"
        chosen.pgcairn = Path(target) / "release" / "pgcairn"
    return chosen


def main():
    signal.signal(signal.SIGTERM, lambda *_: die("ended by SIGTERM"))
    chosen = options()
    work = chosen.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    kinds = {"pgcairn": compare.Pgcairn, "pgbackrest": compare.PgBackRest}
    binaries = {name: path for name in kinds if (path := getattr(chosen, name))}
    extra = {"s3-server": chosen.s3_server} if chosen.s3_server else {}
    scratch = compare.settle(work, binaries | extra)
    if extra:
        compare.Tool.store = compare.Store(scratch / "s3-server", scratch / "s3", chosen.latency)
    compare.Configured.settings = {"archive-async": "y", "archive-header-check": "n", "archive-get-queue-max": "256MiB"}
    for kind in kinds.values():
        kind.settings = kind.settings | compare.Configured.settings
    tools = [kinds[name](scratch / name, scratch / f"{name}-files") for name in binaries]
    pristine = work / f"cluster-{programs().parent.name}-{chosen.scale}"
    try:
        if not pristine.is_dir():
            build(pristine, scratch, chosen.scale)
        data = scratch / "data"
        run("cp", "-a", "--reflink=auto", pristine, data)
        names = lay_out(data, written(data, scratch, chosen.scale), chosen.segments)
        print("| direction | tool | segments | wall s | segments/s | MB/s | CPU ms a segment | peak MB | requests |\n"
              "|---|---|---|---|---|---|---|---|---|")
        for tool in tools:
            with Server(data, scratch, archive_mode="off"):
                tool.prepare(data, scratch)
            for direction, action in (("push", push), ("get", get)):
                say(f"{direction}: {tool.name}")
                wall, used, peak, requests = timed(tool, lambda: action(tool, data, names))
                rate = len(names) / wall
                print(f"| {direction} | {tool.name} | {len(names)} | {wall:.1f} | {rate:.1f} | "
                      f"{rate * SEGMENT_BYTES / 1e6:.0f} | {used / len(names) * 1000:.1f} | {peak / 1e6:.0f} | {requests} |",
                      flush=True)
            for done in (data / "pg_wal" / "archive_status").glob("*.done"):
                done.unlink()
    finally:
        if compare.Tool.store:
            compare.Tool.store.end()
        os.chdir(work)
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
