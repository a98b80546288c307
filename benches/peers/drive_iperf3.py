"""Drives iperf3, one stream on loopback, in the lines that driver.py describes.

usage: drive_iperf3.py target BYTES
       drive_iperf3.py initiator BYTES PORT

It streams from one buffer and never waits for an answer, so only batches may be put beside it. Its own report
has the CPU time of both sides.
"""
import json, os, socket, subprocess, sys, time

from driver import answer

BLOCK_MAX = 1 << 20  # iperf3 takes no larger one.
WARM_UP_BYTES = 256 << 20
ATTEMPTS = 50  # Its server needs a moment between two clients.

if sys.argv[1] == "target":
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    print("segment", port, flush=True)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.execvp("iperf3", ["iperf3", "-s", "-B", "127.0.0.1", "-p", str(port)])

# A limit is what the machine does at best: BBR paces, on loopback too.
with open("/proc/sys/net/ipv4/tcp_congestion_control") as setting:
    UNPACED = ["-C", "cubic"] * setting.read().startswith("bbr")
speeds = {}


def measure(operation, block, batch, seconds, walk):
    """iperf3 counts in whole seconds, so it is told how many bytes: as its last run went."""
    length = min(block, BLOCK_MAX)
    speed = speeds.get((operation, length))
    count = int(speed * seconds) if speed else WARM_UP_BYTES
    command = ["iperf3", "-c", "127.0.0.1", "-p", sys.argv[3], "-J", "-l", str(length)]
    command += ["-n", str(count)] + ["-R"] * (operation == "read") + UNPACED
    for _ in range(ATTEMPTS):
        report = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
        if "busy" not in report.get("error", ""):
            break
        time.sleep(0.02)
    if "error" in report:
        raise RuntimeError(report["error"])
    end = report["end"]
    received, cpu = end["sum_received"], end["cpu_utilization_percent"]
    speeds[operation, length] = received["bytes"] / received["seconds"]
    return {
        "gigabytes_per_second": speeds[operation, length] * 1e-9,
        "seconds": received["seconds"],
        "cpu_seconds": (cpu["host_total"] + cpu["remote_total"]) / 100 * received["seconds"],
    }


answer(None, measure, "sleeps")
