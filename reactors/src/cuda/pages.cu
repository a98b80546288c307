// Copies pages by one launch: each warp takes chunks of 2 KiB in turn, all of it in flight at once,
// so that 16 blocks have what NVLink's latency asks of reads from a peer's memory, and few pages
// have many warps. Between two H100s chunks of 4 KiB took 45.9 us for 960 pages of 12 KiB, of 2 KiB
// 44.5; for 16 of 4 KiB 11.4 and 10.9.
// The list travels in the kernel's arguments: read from host memory it would be the bottleneck.
//
// `pages.ptx` is made from this file by `cargo xtask ptx`.

typedef unsigned int u32;
typedef unsigned long long u64;

// Loads in flight a lane at most, which narrow words need.
constexpr u32 LOADS = 8;
// Bytes that a warp moves at a time.
constexpr u32 CHUNK_BYTES = 2048;

struct Page {
    const char *from;
    char *to;
    u32 bytes;
};

// Both as `nvidia/arguments.rs` lays them out. `chunks` are those of the longest page.
template <u32 MAX> struct Pages {
    u32 count;
    u32 chunks;
    u64 from[MAX];
    u64 to[MAX];
    u32 bytes[MAX];

    __device__ __forceinline__ Page page(u32 k) const {
        return {reinterpret_cast<const char *>(from[k]), reinterpret_cast<char *>(to[k]), bytes[k]};
    }
};

// Pages of one length. Of each the source's distance, and above it the target's, in units of two
// to `shift`.
template <u32 MAX> struct Even {
    u32 count;
    u32 chunks;
    u64 from;
    u64 to;
    u32 bytes;
    u32 shift;
    u64 at[MAX];

    __device__ __forceinline__ Page page(u32 k) const {
        const u64 source = static_cast<u64>(static_cast<u32>(at[k])) << shift;
        const u64 target = at[k] >> 32 << shift;
        return {reinterpret_cast<const char *>(from + source),
                reinterpret_cast<char *>(to + target), bytes};
    }
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

template <typename List> __device__ __forceinline__ void copy(const List &pages) {
    const u32 lane = threadIdx.x % 32;
    const u32 warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    const u32 warps = gridDim.x * blockDim.x / 32;
    const u32 chunks = pages.count * pages.chunks;
    for (u32 chunk = warp; chunk < chunks; chunk += warps) {
        const Page page = pages.page(chunk / pages.chunks);
        const u32 start = chunk % pages.chunks * CHUNK_BYTES;
        if (start >= page.bytes) continue;
        const u32 left = page.bytes - start;
        const u32 bytes = left < CHUNK_BYTES ? left : CHUNK_BYTES;
        const char *from = page.from + start;
        char *to = page.to + start;
        const u64 apart = reinterpret_cast<u64>(from) ^ reinterpret_cast<u64>(to);
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
#define KERNEL(LIST, NAME, MAX)                                                                    \
    extern "C" __global__ void __launch_bounds__(512)                                              \
        NAME##_##MAX(const __grid_constant__ LIST<MAX> pages) {                                    \
        copy(pages);                                                                               \
    }
#define KERNELS(LIST, NAME)                                                                        \
    KERNEL(LIST, NAME, 64)                                                                         \
    KERNEL(LIST, NAME, 256)                                                                        \
    KERNEL(LIST, NAME, 1024)                                                                       \
    KERNEL(LIST, NAME, 1600)

KERNELS(Pages, pages)
KERNELS(Even, even)
