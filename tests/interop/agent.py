"""A Mooncake engine driven by JSON lines: the other side of kvrail's interop tests.

Runs inside a venv that holds one Mooncake wheel. Each line on stdin is a request
`{"do": NAME, ...}`; each answer is one line on stdout, `{"ok": VALUE}` or `{"error": TEXT}`.
Mooncake logs to stdout and stderr as it likes: both lead to our stderr, answers leave by a
private copy of the first stdout. The agent ends when stdin does, so no test can leave one behind.

Patterns: `seed` and `skip` name bytes that both sides can make on their own. The 8-byte
little-endian word at index k of pattern `seed` is `(seed << 56) + k * STEP`; `skip` leaves out
that many bytes at its start. Every word differs from every other, so misplaced bytes show.
"""

import array
import gc
import json
import mmap
import os
import sys

STEP = 0x9E3779B1  # 2^32 divided by the golden ratio: all four low bytes change from word to word


def pattern(seed, skip, length):
    """Bytes `skip .. skip + length` of pattern `seed`."""
    first, last = skip // 8, (skip + length + 7) // 8
    base = seed << 56
    words = array.array("Q", range(base + first * STEP, base + last * STEP, STEP))
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()[skip - first * 8 :][:length]


class Agent:
    """One engine and its registered memory; each public method is a request."""

    def __init__(self):
        self.engine = None
        self.regions = []  # of (mmap, address)

    def init(self, host, metadata="P2PHANDSHAKE", protocol="tcp", device=""):
        """Starts the engine; answers the name that peers open and the control port."""
        from mooncake.engine import TransferEngine

        self.engine = TransferEngine()
        code = self.engine.initialize(host, metadata, protocol, device)
        if code != 0:
            raise RuntimeError(f"initialize answered {code}")
        port = self.engine.get_rpc_port()
        return {"name": f"{host}:{port}" if metadata == "P2PHANDSHAKE" else host, "port": port}

    def register(self, length, seed=None):
        """Maps and registers memory; answers its region number and address."""
        import ctypes

        memory = mmap.mmap(-1, length)
        if seed is not None:
            memory[:] = pattern(seed, 0, length)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        code = self.engine.register_memory(address, length)
        if code != 0:
            raise RuntimeError(f"register_memory answered {code}")
        self.regions.append((memory, address))
        return {"region": len(self.regions) - 1, "addr": address}

    def unregister(self, region):
        """Takes a region away from peers; its memory stays readable here."""
        return self.engine.unregister_memory(self.regions[region][1])

    def write(self, peer, remote, length, region=0, offset=0, notify=None):
        """Our bytes to the peer's address `remote`; answers Mooncake's code, 0 is success."""
        return self._transfer("Write", peer, remote, length, region, offset, notify)

    def read(self, peer, remote, length, region=0, offset=0, notify=None):
        """The peer's bytes at `remote` into our region; answers Mooncake's code."""
        return self._transfer("Read", peer, remote, length, region, offset, notify)

    def _transfer(self, opcode, peer, remote, length, region, offset, notify):
        from mooncake.engine import TransferNotify, TransferOpcode

        local = self.regions[region][1] + offset
        note = None if notify is None else TransferNotify(*notify)
        how = getattr(TransferOpcode, opcode)
        return self.engine.transfer_sync(peer, local, remote, length, how, note)

    def batch_write(self, peer, requests, region=0):
        """Many writes in one batch; `requests` are [offset, remote, length]."""
        return self._batch(self.engine.batch_transfer_sync_write, peer, requests, region)

    def batch_read(self, peer, requests, region=0):
        """Many reads in one batch; `requests` are [offset, remote, length]."""
        return self._batch(self.engine.batch_transfer_sync_read, peer, requests, region)

    def _batch(self, transfer, peer, requests, region):
        local = self.regions[region][1]
        offsets, remotes, lengths = zip(*requests)
        return transfer(peer, [local + o for o in offsets], list(remotes), list(lengths))

    def fill(self, seed, length, region=0, offset=0, skip=0):
        """Writes pattern bytes into our own memory."""
        self.regions[region][0][offset : offset + length] = pattern(seed, skip, length)

    def compare(self, seed, length, region=0, offset=0, skip=0):
        """The offset of the first byte that is not the pattern's, or null if all are."""
        have = self.regions[region][0][offset : offset + length]
        want = pattern(seed, skip, length)
        if have == want:
            return None
        return offset + next(i for i, (a, b) in enumerate(zip(have, want)) if a != b)

    def peek(self, length, region=0, offset=0):
        """Our own bytes as hex."""
        return self.regions[region][0][offset : offset + length].hex()

    def poke(self, bytes_hex, region=0, offset=0):
        """Stores bytes, given as hex, in our own memory."""
        data = bytes.fromhex(bytes_hex)
        self.regions[region][0][offset : offset + len(data)] = data

    def get_notifies(self):
        """The notifications that arrived since the last call, as [name, message]."""
        return [[note.name, note.msg] for note in self.engine.get_notifies()]

    def probe(self, peer):
        """Asks the peer's control plane for a sign of life; answers Mooncake's code."""
        return self.engine.send_probe(peer)

    def first_buffer_address(self, peer):
        """The address of the first buffer in the peer's descriptor."""
        return self.engine.get_first_buffer_address(peer)

    def close(self):
        """Runs the engine's destructor, which withdraws its metadata."""
        self.engine = None
        gc.collect()


def serve(agent, requests, answers):
    """One answer for each request, until the requests end."""
    for line in requests:
        request = json.loads(line)
        try:
            method = getattr(agent, request.pop("do"))
            answer = {"ok": method(**request)}
        except Exception as error:  # whatever it was belongs to the test that asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main():
    """Keeps stdout for answers alone, serves, and leaves without Mooncake's exit handlers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(Agent(), sys.stdin, answers)
    os._exit(0)


if __name__ == "__main__":
    main()
