"""Drives NIXL's UCX backend, in the lines that driver.py describes.

usage: drive_nixl.py target BYTES TRANSPORTS
       drive_nixl.py initiator BYTES TRANSPORTS SEGMENT

TRANSPORTS is UCX_TLS: `tcp`, or `posix,cma,tcp` for shared memory and process_vm calls between
processes of one host. Runs in the venv that `cargo xtask compare` makes. Callers busy-wait, and
an agent's progress thread keeps a core busy on either side, idle or not.
"""
import base64, os, sys

role, length, transports = sys.argv[1], int(sys.argv[2]), sys.argv[3]
# All of these are read while the library is loaded.
os.environ.update(UCX_TLS=transports, NIXL_LOG_LEVEL="WARN")
if transports == "tcp":
    os.environ["UCX_NET_DEVICES"] = "lo"

from driver import answer, blocks, check, memory, repeated, serve
from nixl_cu12._api import nixl_agent, nixl_agent_config

agent = nixl_agent(f"{role} {os.getpid()}", nixl_agent_config(backends=["UCX"]))
mapping, near = memory(length)
agent.register_memory([(near, length, 0, "")], "DRAM")
if role == "target":
    serve(f"{near}/{base64.b64encode(agent.get_agent_metadata()).decode()}")

far, metadata = sys.argv[4].split("/", 1)
far = int(far)
peer = agent.add_remote_agent(base64.b64decode(metadata))
peer = peer.decode() if isinstance(peer, bytes) else peer
kept = []


def prepare_one(operation, block, batch, start):
    lists = [
        agent.get_xfer_descs([(at, block, 0) for at in blocks(base + start, block, batch)], "DRAM")
        for base in (near, far)
    ]
    handle = agent.initialize_xfer(operation.upper(), *lists, peer)
    kept.append(handle)

    def carry():
        state = agent.transfer(handle)
        while state == "PROC":
            state = agent.check_xfer_state(handle)
        if state != "DONE":
            raise RuntimeError(f"the transfer's state is {state}")

    return carry


def prepare(operation, block, batch, walk):
    """Each transfer's handle is made once, as ours is prepared once; the last cell's are let go."""
    while kept:
        agent.release_xfer_handle(kept.pop())
    starts = blocks(0, block * batch, walk)
    return [prepare_one(operation, block, batch, start) for start in starts]


check(
    near,
    lambda bytes: prepare_one("write", bytes // 4, 4, 0)(),
    lambda bytes: prepare_one("read", bytes, 1, 0)(),
)
answer(length, repeated(prepare), "busy: callers and both progress threads poll")
