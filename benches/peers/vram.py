"""Pages between two GPUs, and between processes of one: kvrail and the peers whose wheels are
here, in turn, round after round. Prints a table of medians with min and max, and of kvrail's share
of each peer's speed in the same round; writes every answer to vram.json.

usage: vram.py [ROUNDS [SECONDS]]    in the folder that `cargo xtask vram` makes
"""
import importlib.util, json, statistics, subprocess, sys

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
SECONDS = sys.argv[2] if len(sys.argv) > 2 else "0.3"
BYTES = 1 << 30
K, M = 1 << 10, 1 << 20
CELLS = [
    (12 * K, 960), (4 * K, 8192), (4 * K, 16), (4 * K, 1), (64 * K, 128), (64 * K, 16),
    (M, 16), (16 * M, 1), (256 * M, 1),
]
PLACES = {"GPU to GPU": (0, 1, CELLS), "one GPU": (0, 0, CELLS[:1])}
MODULES = {"mooncake": "mooncake", "nixl": "nixl_cu13"}


def commands(system, near, far):
    """The target's command, and the initiator's, which the segment's name ends."""
    if system == "kvrail":
        both = ["./kvrail", "bench", "--buffer-size", "1G", "--idle", "spin"]
        target = both + ["--mode", "target", "--location", f"cuda:{far}"]
        ours = ["--mode", "initiator", "--location", f"cuda:{near}", "--pages", "960x12K"]
        return target, both + ours + ["--threads", "1", "--cells", "--verify", "--segment-id"]
    driver = [sys.executable, "drive_vram.py", system]
    sides = (("target", far), ("initiator", near))
    return [driver + [role, str(BYTES), str(gpu)] for role, gpu in sides]


def play(system, near, far, cells):
    target_command, command = commands(system, near, far)
    pipe = subprocess.PIPE
    log = open(f"{system}.log", "a")
    target = subprocess.Popen(target_command, stdin=pipe, stdout=pipe, stderr=log, text=True)
    try:
        lines = (line.split() for line in target.stdout)
        name = next((words[1] for words in lines if words[:1] == ["segment"]), None)
        if name is None:
            sys.exit(f"{system}'s target did not start: see {system}.log")
        run = subprocess.Popen(command + [name], stdin=pipe, stdout=pipe, stderr=log, text=True)
        for line in run.stdout:
            if line.startswith("{"):
                break
        for block, batch in cells:
            for operation in ("read", "write"):
                walk = [] if system == "kvrail" else ["1"]
                asked = [operation, str(block), str(batch), SECONDS] + walk
                run.stdin.write(" ".join(asked) + "\n")
                run.stdin.flush()
                line = run.stdout.readline()
                while line and not line.startswith("{"):
                    line = run.stdout.readline()
                answered = json.loads(line or "{}")
                if "gigabytes_per_second" not in answered:
                    sys.exit(f"{system}: {answered or f'ended: see {system}.log'}")
                yield (block, batch, operation), answered
        run.stdin.close()
        if run.wait(30) != 0:
            sys.exit(f"{system} failed: see {system}.log")
    finally:
        target.kill()


def size(count):
    return f"{count // M}M" if count % M == 0 else f"{count // K}K"


def spread(values, digits=1):
    values = list(values)
    shown = (statistics.median(values), min(values), max(values))
    return "{:.{d}f} ({:.{d}f}-{:.{d}f})".format(*shown, d=digits)


systems = ["kvrail"] + [peer for peer, name in MODULES.items() if importlib.util.find_spec(name)]
told = {}
for turn in range(ROUNDS):
    for place, (near, far, cells) in PLACES.items():
        for system in systems:
            print(f"round {turn + 1} of {ROUNDS}: {system}, {place}", file=sys.stderr, flush=True)
            for cell, answered in play(system, near, far, cells):
                told.setdefault((place, *cell), {}).setdefault(system, []).append(answered)

with open("vram.json", "w") as file:
    json.dump([{"cell": cell, "answers": answers} for cell, answers in told.items()], file)
head = ["GB/s", *systems, *(f"kvrail / {peer}" for peer in systems[1:]), "kvrail p50 us"]
rows = [head]
for (place, block, batch, operation), answers in told.items():
    speeds = {
        system: [one["gigabytes_per_second"] for one in answers[system]] for system in systems
    }
    shares = [[a / b for a, b in zip(speeds["kvrail"], speeds[peer])] for peer in systems[1:]]
    waits = [one["batch_latency_us"]["p50"] for one in answers["kvrail"]]
    rows.append([
        f"{operation} {size(block)} x {batch}, {place}",
        *(spread(speeds[system]) for system in systems),
        *(spread(share, 2) for share in shares),
        spread(waits),
    ])
widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
for row in rows:
    print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
