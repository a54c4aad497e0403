// From packed codes (kernels/layout.h) to bf16 registers in the order of the A operand of mma.m16n8k16.
//
// Every width looks a *byte* up. At 4 bits a byte is two codes of one row and yields one register of two
// weights; at 2 bits it is four codes and yields two registers; at 3 bits it is made of a nibble of the 2-bit
// plane and two bits of the 1-bit plane, and has two bits that do not matter. A table has 256 entries, one in
// each row of 256 bytes, so that one PRMT makes the address out of the code byte and the lane's offset: 32
// copies of a 4-byte entry (16 of an 8-byte one) fill half a row, every lane reads its own bank, and no
// lookup ever waits for another. With 16 or 8 copies the kernel was 15 and 40 % slower. A second table stands
// in the other half of the rows: INT8 weights are two 4-bit planes with a table each, and at 3 bits the third
// bits stand in one of two places.
//
// Of 16 × 128 weights a warp executes 32 lookups at 4 and 3 bits, 16 of twice the width at 2, 64 at 8. A
// register table (PRMT on low and high bytes) needs 84 to 114 instructions instead and was slower at 2 and 3
// bits, in every mixture of the two.
#ifndef FLUTE_CUDA_DECODE_CUH
#define FLUTE_CUDA_DECODE_CUH

#include "kernels/cuda/device.cuh"

// Units and blocks of layout.h, as constants.
template <int BITS, int GROUP> struct unit_layout {
    enum {
        cols = GROUP > 128 ? GROUP : 128,
        blocks = cols / 128,
        block_bytes = 16 * 128 * BITS / 8,
        groups = cols / GROUP,
        scales_at = blocks * block_bytes,
        bytes = scales_at + groups * 32,
    };
};

enum { RUNS = 4, TABLE_ROW = 256, TABLE_BYTES = 256 * TABLE_ROW, SECOND_TABLE = 128 };

// Which byte of shared memory a lane looks up first: its copy.
template <int BITS> __device__ __forceinline__ uint32_t table_lane_offset(int lane) {
    return BITS == 2 ? lane % 16 * 8 : lane * 4;
}

// The words of table row `index`: weights 0 and 1, weights 2 and 3 (the same again unless BITS is 2). mine
// is entry lane % 16 of the table of single weights.
template <int BITS> __device__ __forceinline__ uint2 table_entry(int index, uint32_t mine) {
    auto pair = [&](int first, int second) {
        return __shfl_sync(~0u, mine, first) | __shfl_sync(~0u, mine, second) << 16;
    };
    if (BITS == 2) {
        uint32_t low = pair(index & 3, index >> 2 & 3), high = pair(index >> 4 & 3, index >> 6);
        return make_uint2(low, high);
    }
    uint32_t word = BITS == 3 ? pair((index & 3) | (index >> 4 & 4), (index >> 2 & 3) | (index >> 5 & 4))
                              : pair(index & 15, index >> 4);
    return make_uint2(word, word);
}

// Fills the table; called by n_warps whole warps. Eight lanes write the 128 bytes of one row.
template <int BITS>
__device__ __forceinline__ void table_build(uint8_t *table, const uint16_t (&entries)[2][16], int n_warps) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (int second = 0; second <= (BITS == 8); second++) {
        const uint32_t mine = entries[second][lane % 16];
        for (int row = warp * 4; row < 256; row += n_warps * 4) {
            const int index = row + lane / 8;
            const uint2 words = table_entry<BITS>(index, mine);
            *(uint4 *)(table + index * TABLE_ROW + second * SECOND_TABLE + lane % 8 * 16) =
                make_uint4(words.x, words.y, words.x, words.y);
        }
    }
}

// Both tables of 3 bits: a pair of weights goes to every row whose other two bits do not matter.
template <>
__device__ __forceinline__ void table_build<3>(uint8_t *table, const uint16_t (&entries)[2][16],
                                               int n_warps) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t mine = entries[0][lane % 16];
    for (int code = warp * 4 + lane / 8; code < 64; code += n_warps * 4) {
        const int nibble = code & 15, third = code >> 4;
        const uint32_t word = table_entry<3>(nibble | third << 6, mine).x;
        uint8_t *const at = table + lane % 8 * 16;
#pragma unroll
        for (int other = 0; other < 4; other++) {
            const uint4 words = make_uint4(word, word, word, word);
            *(uint4 *)(at + (nibble | other << 4 | third << 6) * TABLE_ROW) = words;
            *(uint4 *)(at + (nibble | third << 4 | other << 6) * TABLE_ROW + SECOND_TABLE) = words;
        }
    }
}

// One lane's codes of a block.
template <int BITS> struct block_codes {
    enum { words = BITS == 3 ? 6 : BITS * 2 };
    uint32_t word[words];

    // at: shared address of the block plus 16 · lane; at8: plus 8 · lane
    __device__ __forceinline__ void load(uint32_t at, uint32_t at8) {
#pragma unroll
        for (int i = 0; i + 4 <= words; i += 4) {
            uint4 v = load_shared4(at + i * 128);
            word[i] = v.x, word[i + 1] = v.y, word[i + 2] = v.z, word[i + 3] = v.w;
        }
        if (BITS == 3) {
            uint2 v = load_shared2(at8 + 512);
            word[4] = v.x, word[5] = v.y;
        }
    }
};

// Looks byte `byte` of codes up, by an address of one PRMT: byte 0 is the lane's offset, byte 1 the code.
struct table_reader {
    const uint8_t *table;
    uint32_t lane_offset;

    __device__ __forceinline__ const uint8_t *at(uint32_t codes, int byte, int plane) const {
        return table + plane * SECOND_TABLE + byte_permute(codes, lane_offset, 0x6604 | byte << 4);
    }
    __device__ __forceinline__ uint32_t word(uint32_t codes, int byte, int plane) const {
        return *(const uint32_t *)at(codes, byte, plane);
    }
    __device__ __forceinline__ uint2 words(uint32_t codes, int byte) const {
        return *(const uint2 *)at(codes, byte, 0);
    }
};

// The same without an addition, for a table at the start of shared memory.
struct table_reader_fixed {
    uint32_t lane_offset; // bytes 2 and 3: of the window

    __device__ __forceinline__ uint32_t at(uint32_t codes, int byte) const {
        return byte_permute(codes, lane_offset, 0x7604 | byte << 4);
    }
    __device__ __forceinline__ uint32_t word(uint32_t codes, int byte, int plane) const {
        return plane ? load_table<SECOND_TABLE>(at(codes, byte)) : load_table<0>(at(codes, byte));
    }
    __device__ __forceinline__ uint2 words(uint32_t codes, int byte) const {
        return load_table2(at(codes, byte));
    }
};

// The table of 2 bits in registers: the low and the high bytes of its four entries.
struct register_table {
    uint32_t low, high;

    __device__ __forceinline__ void build(const uint16_t (&entries)[2][16]) {
        const uint32_t first = entries[0][0] | (uint32_t)entries[0][1] << 16,
                       second = entries[0][2] | (uint32_t)entries[0][3] << 16;
        low = keep_in_register(byte_permute(first, second, 0x6420));
        high = keep_in_register(byte_permute(first, second, 0x7531));
    }
};

// A run at 2 bits, as decode_run leaves it: 29 instructions, none of them for shared memory. decode_run takes
// 4 for addresses and 4 lookups, which keep shared memory busy for two clocks each.
__device__ __forceinline__ void decode_run_in_registers(uint32_t codes, const register_table &table,
                                                        uint32_t (&a)[8]) {
    const uint32_t first = codes & 0x33333333, second = codes >> 2 & 0x33333333; // of each pair: a nibble
#pragma unroll
    for (int half = 0; half < 2; half++) { // rows g, rows g + 8: four pairs each
        const uint32_t of_first = first >> half * 16, of_second = second >> half * 16;
        const uint32_t low0 = byte_permute(table.low, 0, of_first),
                       high0 = byte_permute(table.high, 0, of_first),
                       low1 = byte_permute(table.low, 0, of_second),
                       high1 = byte_permute(table.high, 0, of_second);
#pragma unroll
        for (int i = 0; i < 2; i++) { // two pairs at a time
            const uint32_t bytes = i ? 0x7362 : 0x5140;
            const uint32_t firsts = byte_permute(low0, high0, bytes),
                           seconds = byte_permute(low1, high1, bytes);
            a[i * 4 + half] = byte_permute(firsts, seconds, 0x5410);
            a[i * 4 + half + 2] = byte_permute(firsts, seconds, 0x7632);
        }
    }
}

// Run `run` of a block: eight registers, a[0..3] the A operand of its first mma (columns 8t..8t + 3), a[4..7]
// of its second. plane: 0, or 1 for the low halves of INT8.
template <int BITS, typename TABLE>
__device__ __forceinline__ void decode_run(const block_codes<BITS> &codes, int run, int plane,
                                           const TABLE &table, uint32_t (&a)[8]) {
    if (BITS == 4 || BITS == 8) {
        const uint32_t top = codes.word[plane * 8 + run * 2], bottom = codes.word[plane * 8 + run * 2 + 1];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            a[i / 2 * 4 + i % 2 * 2] = table.word(top, i, plane);
            a[i / 2 * 4 + i % 2 * 2 + 1] = table.word(bottom, i, plane);
        }
    } else if (BITS == 3) {
        const uint32_t low = codes.word[run], high = codes.word[4 + run / 2];
        // The third bits of even runs come to bits 6 and 7 of each byte. Those of odd runs then stand two
        // bits further down, where the second table expects them: six shifts a block instead of ten.
        const uint32_t even = bit_select(0x0f0f0f0f, low, high << 4);
        const uint32_t odd = bit_select(0x0f0f0f0f, low >> 4, high);
#pragma unroll
        for (int half = 0; half < 2; half++) { // rows g, rows g + 8
            a[half] = table.word(even, half * 2, run % 2);
            a[half + 2] = table.word(odd, half * 2, run % 2);
            a[half + 4] = table.word(even, half * 2 + 1, run % 2);
            a[half + 6] = table.word(odd, half * 2 + 1, run % 2);
        }
    } else {
        const uint32_t x = codes.word[run];
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int second = 0; second < 2; second++) {
                const uint2 v = table.words(x, half * 2 + second);
                a[second * 4 + half] = v.x, a[second * 4 + half + 2] = v.y;
            }
    }
}

#endif
