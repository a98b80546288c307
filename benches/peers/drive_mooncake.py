"""Drives Mooncake's Transfer Engine over TCP, in the lines that driver.py describes.

usage: drive_mooncake.py target BYTES
       drive_mooncake.py initiator BYTES HOST:PORT/ADDRESS

Runs in the venv that `cargo xtask compare` makes. Callers of this engine busy-wait; its target
sleeps when idle.
"""
import sys

from driver import answer, blocks, check, memory, repeated, replayed, serve
from mooncake.engine import TransferEngine

role, length = sys.argv[1], int(sys.argv[2])


def call(function, *arguments):
    if (code := function(*arguments)) != 0:
        raise RuntimeError(f"{function.__name__} answers {code}")


engine = TransferEngine()
call(engine.initialize, "127.0.0.1", "P2PHANDSHAKE", "tcp", "")
mapping, near = memory(length)
call(engine.register_memory, near, length)
if role == "target":
    serve(f"127.0.0.1:{engine.get_rpc_port()}/{near}")

segment, far = sys.argv[3].split("/")
far = int(far)


def prepare_one(operation, block, batch, start):
    if batch == 1:
        single = getattr(engine, f"transfer_sync_{operation}")
        return lambda: call(single, segment, near + start, far + start, block)
    many = getattr(engine, f"batch_transfer_sync_{operation}")
    lists = [blocks(base + start, block, batch) for base in (near, far)] + [[block] * batch]
    return lambda: call(many, segment, *lists)


def prepare(operation, block, batch, walk):
    starts = blocks(0, block * batch, walk)
    return [prepare_one(operation, block, batch, start) for start in starts]


check(
    near,
    lambda bytes: prepare_one("write", bytes // 4, 4, 0)(),
    lambda bytes: prepare_one("read", bytes, 1, 0)(),
)
replay = replayed(near, length, prepare_one)
answer(length, repeated(prepare), "callers busy-wait, the target sleeps", replay)
