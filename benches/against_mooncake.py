#!/usr/bin/env python3
"""TCP throughput of `kvrail bench` beside Mooncake's transfer_engine_bench, in turn, on loopback.

usage: benches/against_mooncake.py [ROUNDS] [SECONDS]

Needs `cargo build --release` and the wheels that `cargo xtask test --only interop` installs.
Both targets run all the time, the initiators take turns (A B A B ...), and what is printed is the
median of the rounds with minimum and maximum. Absolute figures drift on shared machines: only
the ratios of one sitting mean anything.
"""
import json, os, re, statistics, subprocess, sys, time

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
SECONDS = int(sys.argv[2]) if len(sys.argv) > 2 else 1
CACHE = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")) + "/kvrail"
MOONCAKE = CACHE + "/mooncake/0.3.13.post1/bin/transfer_engine_bench"
KVRAIL = os.environ.get("KVRAIL", "target/release/kvrail")
BUFFER = 256 << 20
SHAPES = [("64K", 65536, 16), ("1M", 1 << 20, 16)]
ENV = dict(os.environ, MC_FORCE_TCP="1")


def mooncake(mode, *args):
    return [MOONCAKE, f"--mode={mode}", "--metadata_server=P2PHANDSHAKE", "--protocol=tcp",
            "--local_server_name=127.0.0.1", f"--buffer_size={BUFFER}", "--device_name=", *args]


def kvrail(mode, *args):
    return [KVRAIL, "bench", "--mode", mode, "--buffer-size", str(BUFFER), *args]


def apart():
    """A session and scheduler group of its own, as a separate service has: Mooncake's callers
    busy-wait, and its target would starve beside them."""
    os.setsid()
    try:
        with open("/proc/self/autogroup", "w") as group:
            group.write("-19")
    except OSError:
        pass  # Not permitted, or no autogroups here: then the scheduler does as it does.


def target(command, pattern):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, env=ENV, preexec_fn=apart)
    for line in process.stdout:
        if found := re.search(pattern, line):
            # Keep reading, so that the target never blocks on a full pipe.
            subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
            return process, found.group(1)
    sys.exit(f"{command[0]} did not start")


def run_mooncake(segment, operation, block, batch):
    command = mooncake("initiator", f"--segment_id={segment}", f"--operation={operation}",
                       f"--block_size={block}", f"--batch_size={batch}", "--threads=1",
                       f"--duration={SECONDS}")
    output = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=60)
    found = re.search(r"duration ([\d.]+), batch count (\d+)", output.stderr + output.stdout)
    return int(found[2]) * batch * block / float(found[1]) / 1e9


def run_kvrail(segment, operation, block, batch):
    command = kvrail("initiator", "--segment-id", segment, "--operation", operation,
                     "--block-size", str(block), "--batch-size", str(batch), "--threads", "1",
                     "--duration", str(SECONDS), "--json")
    output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(output.stdout)["gigabytes_per_second"]


theirs, their_segment = target(mooncake("target"), r"listening on (127\.0\.0\.1:\d+)")
ours, our_segment = target(kvrail("target"), r"segment (\S+)")
time.sleep(1)
try:
    print(f"{'GB/s, median (min-max)':<16}{'Mooncake':>22}{'kvrail':>22}{'ratio':>8}")
    for operation in ("write", "read"):
        for name, block, batch in SHAPES:
            pairs = []
            for _ in range(ROUNDS):
                pairs.append((run_mooncake(their_segment, operation, block, batch),
                              run_kvrail(our_segment, operation, block, batch)))
            show = lambda x: f"{statistics.median(x):.2f} ({min(x):.2f}-{max(x):.2f})"
            a, b = zip(*pairs)
            ratio = statistics.median(y / x for x, y in pairs)
            print(f"{operation} {name} b{batch:<8}{show(a):>26}{show(b):>22}{ratio:>8.2f}", flush=True)
finally:
    os.killpg(theirs.pid, 9)
    os.killpg(ours.pid, 9)
