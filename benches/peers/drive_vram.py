"""Drives Mooncake's nvlink_intra and NIXL's cuda_ipc, in the lines that driver.py describes: pages
side by side on the near GPU, in another order on the far one, as kvrail's bench lays them with
`--pages`.

usage: drive_vram.py mooncake|nixl target BYTES GPU
       drive_vram.py mooncake|nixl initiator BYTES GPU SEGMENT

Needs PyTorch, which allocates, and the peer's wheel. Callers of both busy-wait.
"""
import base64, os, random, sys

peer, role, length, gpu = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
# Read while the libraries are loaded.
os.environ.update(MC_INTRANODE_NVLINK="1", NIXL_LOG_LEVEL="ERROR")
import torch
from driver import answer, blocks, repeated, serve

torch.cuda.set_device(gpu)
memory = torch.zeros(length, dtype=torch.uint8, device=f"cuda:{gpu}")
torch.cuda.synchronize()
near = memory.data_ptr()


def shuffled(base, block, batch):
    places = blocks(base, block, batch)
    random.Random(batch).shuffle(places)
    return places


def mooncake():
    from mooncake.engine import TransferEngine

    def call(function, *arguments):
        if (code := function(*arguments)) != 0:
            raise RuntimeError(f"{function.__name__} answers {code}")

    engine = TransferEngine()
    call(engine.initialize, "127.0.0.1", "P2PHANDSHAKE", "nvlink_intra", "")
    call(engine.register_memory, near, length)
    if role == "target":
        serve(f"127.0.0.1:{engine.get_rpc_port()}/{near}")
    segment, far = sys.argv[5].split("/")

    def prepare(operation, block, batch, far_blocks):
        many = getattr(engine, f"batch_transfer_sync_{operation}")
        lists = [blocks(near, block, batch), far_blocks, [block] * batch]
        return lambda: call(many, segment, *lists)

    return int(far), prepare


def nixl():
    from nixl_cu13._api import nixl_agent, nixl_agent_config

    agent = nixl_agent(f"{role} {os.getpid()}", nixl_agent_config(backends=["UCX"]))
    agent.register_memory([(near, length, gpu, "")], "VRAM")
    if role == "target":
        serve(f"{near}/{gpu}/{base64.b64encode(agent.get_agent_metadata()).decode()}")
    far, far_gpu, metadata = sys.argv[5].split("/", 2)
    name = agent.add_remote_agent(base64.b64decode(metadata))
    name = name.decode() if isinstance(name, bytes) else name
    kept = []

    def prepare(operation, block, batch, far_blocks):
        ends = [(blocks(near, block, batch), gpu), (far_blocks, int(far_gpu))]
        lists = [
            agent.get_xfer_descs([(at, block, device) for at in places], "VRAM")
            for places, device in ends
        ]
        kept.append(agent.initialize_xfer(operation.upper(), *lists, name))
        handle = kept[-1]

        def carry():
            state = agent.transfer(handle)
            while state == "PROC":
                state = agent.check_xfer_state(handle)
            if state != "DONE":
                raise RuntimeError(f"the transfer's state is {state}")

        return carry

    return int(far), prepare


far, prepare_one = {"mooncake": mooncake, "nixl": nixl}[peer]()


def prepare(operation, block, batch, walk):
    return [prepare_one(operation, block, batch, shuffled(far, block, batch))] * walk


# What was written must be what is read back: figures of anything else mean nothing.
for value, operation in ((9, "write"), (0, "read")):
    memory[: 1 << 20] = value
    torch.cuda.synchronize()
    prepare_one(operation, 4096, 256, shuffled(far, 4096, 256))()
    torch.cuda.synchronize()
if not bool((memory[: 1 << 20] == 9).all()):
    sys.exit("the bytes read back differ from those written")
answer(length, repeated(prepare), "callers busy-wait")
