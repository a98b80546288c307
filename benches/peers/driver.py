"""What the drivers of all peers share: memory, and the lines in which cells are asked and told.

A driver's target prints `segment NAME` and stays until its standard input ends. Its initiator,
given that name, prints a line of JSON when it is ready and then answers each line OPERATION BLOCK
BATCH SECONDS WALK with a line of JSON. A batch is BATCH blocks side by side, and WALK of them,
behind each other, take turns. `cargo xtask compare` runs the drivers, and kvrail's own bench
(`--cells`) speaks the same lines.
"""
import ctypes, itertools, json, mmap, os, sys, time


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
    pattern = bytes(number * number % 251 for number in range(length))
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


def answer(length, measure, idle):
    """`measure(operation, block, batch, seconds, walk)` says how one cell went."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        try:
            operation, block, batch, seconds, walk = line.split()
            block, batch, walk = int(block), int(batch), int(walk)
            needed = block * batch * walk
            if needed <= 0 or length is not None and needed > length:
                raise ValueError(f"{block} x {batch} x {walk} do not fit into {length} bytes")
            answered = measure(operation, block, batch, float(seconds), walk)
        except Exception as error:
            answered = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answered | {"idle": idle}), flush=True)
    os._exit(0)


def repeated(prepare):
    """A `measure` that has the batches' functions, in a list, from `prepare(operation, block,
    batch, walk)`, and calls one after the other until the time is over."""

    def measure(operation, block, batch, seconds, walk):
        carries, clock, taken = prepare(operation, block, batch, walk), time.perf_counter_ns, []
        started = clock()
        end = started + int(seconds * 1e9)
        for carry in itertools.cycle(carries):
            posted = clock()
            if taken and posted >= end:
                break
            carry()
            taken.append(clock() - posted)
        elapsed = (clock() - started) * 1e-9
        taken.sort()
        at = lambda share: taken[(len(taken) - 1) * share // 100] * 1e-3
        return {
            "gigabytes_per_second": len(taken) * block * batch * 1e-9 / elapsed,
            "seconds": elapsed,
            "batches": len(taken),
            "batch_latency_us": {"p50": at(50), "p99": at(99)},
        }

    return measure
