"""What the drivers of all peers share: memory, and the lines in which cells are asked and told.

A driver's target prints `segment NAME` and stays until its standard input ends. Its initiator,
given that name, prints a line of JSON when it is ready and then answers each line OPERATION BLOCK
BATCH SECONDS WALK with a line of JSON. A batch is BATCH blocks side by side, and WALK of them,
behind each other, take turns. The line replay BLOCK MS:BLOCKS,MS:BLOCKS,... asks to write so many
blocks at such times; with verify-replay they are compared, too. `cargo xtask compare` runs the drivers, and kvrail's own bench
(`--cells`) speaks the same lines.
"""
import concurrent.futures, ctypes, itertools, json, math, mmap, os, sys, time

# Threads that each have batches of their own under way.
CALLERS = int(os.environ.get("CALLERS", "1"))
# Within how long these shares of all batches ended: what every driver tells.
RANKS = {"p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}


def memory(length):
    """Anonymous memory of this process, every page written: the mapping and its address."""
    mapping = mmap.mmap(-1, length)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    ctypes.memset(address, 1, length)
    return mapping, address


def blocks(base, block, batch):
    """The addresses of a batch, laid side by side as kvrail's bench lays them."""
    return [base + number * block for number in range(batch)]


def check(base, write, read, length=1 << 20):
    """What was written must be what is read back: figures of anything else mean nothing."""
    pattern = os.urandom(length)
    ctypes.memmove(base, pattern, length)
    write(length)
    ctypes.memset(base, 0, length)
    read(length)
    if ctypes.string_at(base, length) != pattern:
        sys.exit("the bytes read back differ from those written")


def serve(segment):
    print("segment", segment, flush=True)
    sys.stdin.read()
    os._exit(0)  # Their threads don't end by themselves.


def answer(length, measure, idle, replay=None):
    """`measure(operation, block, batch, seconds, walk)` says how one cell went, and
    `replay(verifies, block, requests)` how a trace did."""

    def asked(order, block, *words):
        block = int(block)
        if order.endswith("replay"):
            requests = [tuple(map(int, one.split(":"))) for one in words[0].split(",")]
            return replay(order == "verify-replay", block, requests)
        batch, seconds, walk = words
        batch, walk = int(batch), int(walk)
        needed = block * batch * walk * CALLERS
        if needed <= 0 or length is not None and needed > length:
            raise ValueError(f"{block} x {batch} x {walk} do not fit into {length} bytes")
        return measure(order, block, batch, float(seconds), walk)

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        try:
            answered = asked(*line.split())
        except Exception as error:
            answered = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answered | {"idle": idle}), flush=True)
    os._exit(0)


def carry_all(carries, end, clock=time.perf_counter_ns):
    """Calls one after the other until the time is over: how long each took."""
    taken = []
    for carry in itertools.cycle(carries):
        posted = clock()
        if taken and posted >= end:
            return taken
        carry()
        taken.append(clock() - posted)


def repeated(prepare):
    """A `measure` that has the batches' functions, in a list, from `prepare(operation, block,
    batch, walk)`, and shares them out among the callers."""

    def measure(operation, block, batch, seconds, walk):
        carries = prepare(operation, block, batch, walk * CALLERS)
        started = time.perf_counter_ns()
        end = started + int(seconds * 1e9)
        # The main thread calls, too: one caller alone has no other beside it.
        with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
            others = [pool.submit(carry_all, carries[k::CALLERS], end) for k in range(1, CALLERS)]
            runs = [carry_all(carries[::CALLERS], end)] + [other.result() for other in others]
        taken = sorted(itertools.chain.from_iterable(runs))
        return told(taken, len(taken) * block * batch, time.perf_counter_ns() - started)

    return measure


def told(taken, moved, elapsed):
    """What an asker wants to know of so many bytes; times, sorted, are in nanoseconds."""
    at = lambda share: taken[math.ceil(len(taken) * share) - 1] * 1e-3
    return {
        "gigabytes_per_second": moved / elapsed,
        "seconds": elapsed * 1e-9,
        "batches": len(taken),
        "batch_latency_us": {name: at(share) for name, share in RANKS.items()},
    }


def replayed(base, length, prepare_one):
    """A `replay` that has each request's blocks written when it arrives, one request after the
    other, through the whole memory again and again. Its time begins with its arrival."""

    def play(block, slots, requests):
        clock, slot, taken = time.perf_counter_ns, 0, []
        started = clock()
        for arrival_ms, blocks in requests:
            arrival = started + arrival_ms * 1_000_000
            time.sleep(max(0, arrival - clock()) * 1e-9)
            while blocks > 0:
                some = min(blocks, slots - slot)
                prepare_one("write", block, some, slot * block)()
                slot, blocks = (slot + some) % slots, blocks - some
            taken.append(clock() - arrival)
        return sorted(taken), clock() - started

    def replay(verifies, block, requests):
        moved = sum(blocks for _, blocks in requests)
        slots = min(length // block, moved)
        if verifies:
            write = lambda _: play(block, slots, requests)
            check(base, write, lambda bytes: prepare_one("read", bytes, 1, 0)(), slots * block)
        taken, elapsed = play(block, slots, requests)
        return told(taken, moved * block, elapsed)

    return replay
