"""Drives UCX itself, by `ucp_put_nbx` and `ucp_get_nbx`, in the lines that driver.py describes.

usage: drive_ucx.py target BYTES TRANSPORTS
       drive_ucx.py initiator BYTES TRANSPORTS SEGMENT

TRANSPORTS is UCX_TLS, as in drive_nixl.py. Runs in the venv that `cargo xtask compare` makes. A batch
is one request a block, all posted at once, and a flush where it writes. Both sides poll.
"""
import base64, os, sys, threading

role, length, transports = sys.argv[1], int(sys.argv[2]), sys.argv[3]
# All of these are read while the library is loaded.
os.environ.update(UCX_TLS=transports, UCX_WARN_UNUSED_ENV_VARS="n")
if transports == "tcp":
    os.environ["UCX_NET_DEVICES"] = "lo"

from ctypes import (
    CDLL, addressof, byref, c_size_t, c_uint64, c_void_p, create_string_buffer, string_at
)
import libucx
from driver import answer, blocks, check, memory, repeated, serve

# Of its structures, the words up to the last that is used; their masks name those that are set.
API = (1, 22)
FEATURE_RMA = 1 << 1
CONTEXT_FEATURES = ADDRESS = 1 << 0
MAP_ADDRESS_AND_LENGTH = 0b11
OPERATION_MEMH = 1 << 8
IN_PROGRESS = 1

libucx.load_library()
ucp = CDLL(os.path.join(os.path.dirname(libucx.__file__), "lib", "libucp.so.0"))
requests = [c_void_p, c_void_p, c_size_t, c_uint64, c_void_p, c_void_p]
for function in (ucp.ucp_put_nbx, ucp.ucp_get_nbx):
    function.argtypes, function.restype = requests, c_void_p
ucp.ucp_ep_flush_nbx.argtypes, ucp.ucp_ep_flush_nbx.restype = [c_void_p, c_void_p], c_void_p
ucp.ucp_request_check_status.argtypes = ucp.ucp_request_free.argtypes = [c_void_p]


def words(*values):
    """A structure of so many words, with room for those that its mask doesn't name."""
    return (c_uint64 * 40)(*values)


def made(function, *arguments):
    """What a call leaves in its last argument, a pointer."""
    found = c_void_p()
    if (status := function(*arguments, byref(found))) != 0:
        raise RuntimeError(f"{function.__name__} answers {status}")
    return found


context = made(ucp.ucp_init_version, *API, words(CONTEXT_FEATURES, FEATURE_RMA), None)
worker = made(ucp.ucp_worker_create, context, words(0))
mapping, near = memory(length)
handle = made(ucp.ucp_mem_map, context, words(MAP_ADDRESS_AND_LENGTH, near, length))
progress = ucp.ucp_worker_progress


def packed(function, *arguments):
    """Bytes that a call leaves, with their number behind them."""
    found, size = c_void_p(), c_size_t()
    if (status := function(*arguments, byref(found), byref(size))) != 0:
        raise RuntimeError(f"{function.__name__} answers {status}")
    return base64.b64encode(string_at(found, size.value)).decode()


if role == "target":
    address = packed(ucp.ucp_worker_get_address, worker)
    key = packed(ucp.ucp_rkey_pack, context, handle)
    threading.Thread(target=serve, args=(f"{near}_{address}_{key}",)).start()
    while True:
        progress(worker)

far, address, key = sys.argv[4].split("_")
far, address, key = int(far), base64.b64decode(address), base64.b64decode(key)
address = create_string_buffer(address, len(address))
endpoint = made(ucp.ucp_ep_create, worker, words(ADDRESS, addressof(address)))
key = made(ucp.ucp_ep_rkey_unpack, endpoint, key)
# The mask, then seven words that it doesn't name, then the handle of the near memory.
known = words(OPERATION_MEMH, *[0] * 7, handle.value)
plain = words(0)


def wait(request):
    """None: done at once. A small negative number: an error. Else its address."""
    if request is None:
        return
    if request >= 1 << 63:
        raise RuntimeError(f"a request ends as {request - (1 << 64)}")
    while (status := ucp.ucp_request_check_status(request)) == IN_PROGRESS:
        progress(worker)
    ucp.ucp_request_free(request)
    if status != 0:
        raise RuntimeError(f"a request ends as {status}")


def prepare_one(operation, block, batch, start):
    post = {"write": ucp.ucp_put_nbx, "read": ucp.ucp_get_nbx}[operation]
    pairs = list(zip(*(blocks(base + start, block, batch) for base in (near, far))))

    def carry():
        for request in [post(endpoint, here, block, there, key, known) for here, there in pairs]:
            wait(request)
        if operation == "write":
            wait(ucp.ucp_ep_flush_nbx(endpoint, plain))

    return carry


def prepare(operation, block, batch, walk):
    starts = blocks(0, block * batch, walk)
    return [prepare_one(operation, block, batch, start) for start in starts]


check(
    near,
    lambda bytes: prepare_one("write", bytes // 4, 4, 0)(),
    lambda bytes: prepare_one("read", bytes, 1, 0)(),
)
answer(length, repeated(prepare), "busy: the caller and the target poll")
