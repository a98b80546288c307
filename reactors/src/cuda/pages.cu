// Copies pages by one launch: each warp takes chunks of 4 KiB in turn, with 8 loads of 16 bytes a
// lane in flight, which is what NVLink's latency asks of 16 blocks that read from a peer's memory.
// The list travels in the kernel's arguments: read from host memory it would be the bottleneck.
//
// `pages.ptx` is made from this file by `cargo xtask ptx`.

typedef unsigned int u32;
typedef unsigned long long u64;

// Loads in flight a lane, and the bytes that a warp moves at a time.
constexpr u32 LOADS = 8;
constexpr u32 CHUNK_BYTES = LOADS * 32 * sizeof(uint4);

// As `nvidia/launch.rs` lays it out.
template <u32 MAX> struct Pages {
    u32 count;
    // Chunks of the longest page.
    u32 chunks;
    u64 from[MAX];
    u64 to[MAX];
    u32 bytes[MAX];
};

// Moves a chunk between addresses that differ by whole words: the words with all loads in flight
// that a lane has, and with them the bytes before and behind, which are fewer than lanes.
template <typename Word>
__device__ __forceinline__ void copy_chunk(const char *from, char *to, u32 bytes, u32 lane) {
    const u32 lacking = static_cast<u32>(-reinterpret_cast<u64>(to) % sizeof(Word));
    const u32 head = lacking < bytes ? lacking : bytes;
    const u32 words = (bytes - head) / sizeof(Word);
    const u32 tail = (bytes - head) % sizeof(Word);
    const bool has_edge = lane < head + tail;
    const u32 edge = lane < head ? lane : head + words * sizeof(Word) + (lane - head);
    char held_edge;
    if (has_edge) held_edge = from[edge];
    const Word *source = reinterpret_cast<const Word *>(from + head);
    Word *target = reinterpret_cast<Word *>(to + head);
    for (u32 at = lane; at < words; at += LOADS * 32) {
        Word held[LOADS];
#pragma unroll
        for (u32 k = 0; k < LOADS; k++) {
            if (at + k * 32 < words) held[k] = __ldcs(source + at + k * 32);
        }
#pragma unroll
        for (u32 k = 0; k < LOADS; k++) {
            if (at + k * 32 < words) __stcs(target + at + k * 32, held[k]);
        }
    }
    if (has_edge) to[edge] = held_edge;
}

template <u32 MAX> __device__ __forceinline__ void copy(const Pages<MAX> &pages) {
    const u32 lane = threadIdx.x % 32;
    const u32 warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const u32 warps = gridDim.x * blockDim.x / 32;
    const u32 chunks = pages.count * pages.chunks;
    for (u32 chunk = warp; chunk < chunks; chunk += warps) {
        const u32 page = chunk / pages.chunks;
        const u32 start = chunk % pages.chunks * CHUNK_BYTES;
        const u32 all = pages.bytes[page];
        if (start >= all) continue;
        const u32 bytes = all - start < CHUNK_BYTES ? all - start : CHUNK_BYTES;
        const char *from = reinterpret_cast<const char *>(pages.from[page]) + start;
        char *to = reinterpret_cast<char *>(pages.to[page]) + start;
        const u64 apart = pages.from[page] ^ pages.to[page];
        if (apart % sizeof(uint4) == 0) {
            copy_chunk<uint4>(from, to, bytes, lane);
        } else if (apart % sizeof(u64) == 0) {
            copy_chunk<u64>(from, to, bytes, lane);
        } else if (apart % sizeof(u32) == 0) {
            copy_chunk<u32>(from, to, bytes, lane);
        } else {
            copy_chunk<char>(from, to, bytes, lane);
        }
    }
}

// By how many pages they take: a launch costs what its arguments weigh.
#define KERNEL(MAX)                                                                            \
    extern "C" __global__ void __launch_bounds__(512)                                          \
        pages_##MAX(const __grid_constant__ Pages<MAX> pages) {                                \
        copy(pages);                                                                           \
    }

KERNEL(64)
KERNEL(256)
KERNEL(1024)
KERNEL(1600)
