// ---- attention of single rows over the live positions of their sequence, split over blocks
// queries stand in qkv; keys and values of one layer [slots, kv_heads, dim]; HEADS query heads share a key head.
//   BYTES    1: keys and values are bytes, and each head of a position has two float16 scales [slots, kv_heads, 2]
//   SEVERAL  1: a block takes every gridDim.z-th row: many are of runs, and blocks that only leave take their time, too
// The splits' results [rows, kv_heads, splits, HEADS, dim + 2] are merged by the block that comes last.
#ifndef DIM
#define DIM 128
#define HEADS 1
#define BLOCK 16
#endif
#ifndef SEVERAL
#define SEVERAL 0
#endif
#if BYTES && DIM % 16 == 0 && HEADS == 1
#define EACH 16  // values of a position that a thread takes; with more heads a key head they would take too many registers
#else
#define EACH 8
#endif
#define LANES ((DIM <= 64 ? 64 : DIM <= 128 ? 128 : 256) / EACH)  // threads a position; the last may have nothing to do
#define ABREAST (128 / LANES)
#ifndef AHEAD
#if BYTES && EACH == 8
#define AHEAD 8
#else
#define AHEAD 4
#endif
#endif
#if EACH == 16
typedef uint4 Taken;
#define TAKE load
#ifndef BOUNDS
#define BOUNDS 128, 5  // blocks a processor, or one with SEVERAL takes more registers
#endif
DEV void spread(const Taken& v, float (&f)[16]) {
  const uint2 both[2] = {make_uint2(v.x, v.y), make_uint2(v.z, v.w)};
#pragma unroll
  for (int i = 0; i < 2; i++) {
    float half[8];
    spread(both[i], half);
#pragma unroll
    for (int j = 0; j < 8; j++) f[i * 8 + j] = half[j];
  }
}
#else
#if BYTES
typedef uint2 Taken;
#else
typedef uint4 Taken;
#endif
#define TAKE eight
#define BOUNDS 128
#endif
extern "C" __global__ void __launch_bounds__(BOUNDS) attend(
#if BYTES
    const u16* qkv, const char* keys, const char* values, const u32* scales, const int* tables,
#else
    const u16* qkv, const u16* keys, const u16* values, const u32*, const int* tables,
#endif
    const int* lengths, const int* known,
    u16* out, float* parts, int* arrived, int kv_heads, int columns, int window, float scale, int rows) {
  __shared__ float shared[ABREAST * HEADS * (DIM + 2)];
  __shared__ int last;
  let_next_start();
  const int split = blockIdx.x, splits = gridDim.x, kv = blockIdx.y, all = kv_heads * HEADS;
  const int sub = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const bool live_lane = lane * EACH < DIM;
  int row = blockIdx.z;
  do {
    if (SEVERAL && row != blockIdx.z) __syncthreads();  // shared memory is free again
    const int length = lengths[row], first = window > 0 && length > window ? length - window : 0, count = length - first;
    const int chunk = max(64, ((count + splits - 1) / splits + 15) / 16 * 16), used = (count + chunk - 1) / chunk;
    if (length < 0) {  // it is one of a run: see runs.cu
      if (split + kv + row == 0) wait_for_previous();  // one block is enough for whoever waits for us
      continue;
    }
    if (count <= 0) {
      wait_for_previous();
      if (split == 0)
        for (int i = threadIdx.x; i < HEADS * DIM; i += 128) out[((u64)row * all + kv * HEADS) * DIM + i] = 0;
      continue;
    }
    if (split >= used) {
      wait_for_previous();  // or whoever waits for us would not wait for it
      continue;
    }
    const int begin = first + split * chunk, end = min(length, begin + chunk);
    const int* table = tables + (u64)row * columns;
    const int there = known[row];  // positions whose keys and values no kernel of this step writes
    Taken k[AHEAD], v[AHEAD];
#if BYTES
    u32 both[AHEAD];
#endif
    u32 slots[AHEAD];
    auto fetch_keys = [&](int p, int low, int high) {
#pragma unroll
      for (int u = 0; u < AHEAD; u++) {
        const int at = p + u * ABREAST;
        if (at >= low && at < high && live_lane) {
          slots[u] = (u32)((table[at / BLOCK] * BLOCK + at % BLOCK) * kv_heads + kv);
          k[u] = TAKE(keys + (u64)slots[u] * DIM + lane * EACH);
#if BYTES
          both[u] = load_word(scales + slots[u]);
#endif
        }
      }
    };
    auto fetch_values = [&](int p, int low, int high) {
#pragma unroll
      for (int u = 0; u < AHEAD; u++) {
        const int at = p + u * ABREAST;
        if (at >= low && at < high && live_lane) v[u] = TAKE(values + (u64)slots[u] * DIM + lane * EACH);
      }
    };
#pragma unroll
    for (int u = 0; u < AHEAD; u++) {
      k[u] = v[u] = Taken();
#if BYTES
      both[u] = 0;
#endif
    }
    fetch_keys(begin + sub, 0, min(end, there));
    fetch_values(begin + sub, 0, min(end, there));
    wait_for_previous();
    fetch_keys(begin + sub, there, end);
    fetch_values(begin + sub, there, end);
    float q[HEADS][EACH], acc[HEADS][EACH], most[HEADS], sum[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      most[h] = -1e30f, sum[h] = 0.f;
#pragma unroll
      for (int i = 0; i < EACH; i += 8) {
        float f[8];
        uint4 some = make_uint4(0, 0, 0, 0);
        if (live_lane) some = load(qkv + ((u64)row * (all + 2 * kv_heads) + kv * HEADS + h) * DIM + lane * EACH + i);
        spread(some, f);
#pragma unroll
        for (int j = 0; j < 8; j++) q[h][i + j] = f[j] * (scale * 1.44269504f), acc[h][i + j] = 0.f;
      }
    }
    for (int p = begin + sub; p - sub < end; p += ABREAST * AHEAD) {  // as often in all threads, which exchange values
      const int next = p + ABREAST * AHEAD;
      float s[HEADS][AHEAD], f[EACH];
#pragma unroll
      for (int h = 0; h < HEADS; h++) {
        float m = most[h];
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
          float dot = 0.f;
          spread(k[u], f);
#pragma unroll
          for (int j = 0; j < EACH; j++) dot += q[h][j] * f[j];
#pragma unroll
          for (int o = LANES / 2; o; o >>= 1) dot += __shfl_xor_sync(0xffffffffu, dot, o);
#if BYTES
          dot *= half_wide(both[u]);
#endif
          s[h][u] = p + u * ABREAST < end ? dot : -1e30f;
          m = fmaxf(m, s[h][u]);
        }
        const float less = exp2f(most[h] - m);
        most[h] = m;
        sum[h] *= less;
#pragma unroll
        for (int j = 0; j < EACH; j++) acc[h][j] *= less;
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
          const float e = s[h][u] > -1e29f ? exp2f(s[h][u] - m) : 0.f;
          sum[h] += e;
#if BYTES
          s[h][u] = e * half_wide(both[u] >> 16);
#else
          s[h][u] = e;
#endif
        }
      }
      fetch_keys(next, 0, end);
#pragma unroll
      for (int u = 0; u < AHEAD; u++) {
        spread(v[u], f);
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
          for (int j = 0; j < EACH; j++) acc[h][j] += s[h][u] * f[j];
      }
      fetch_values(next, 0, end);
    }
    // the rows abreast are merged in shared memory
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      float* mine = shared + (sub * HEADS + h) * (DIM + 2);
      if (lane == 0) mine[DIM] = most[h], mine[DIM + 1] = sum[h];
      if (live_lane)
#pragma unroll
        for (int j = 0; j < EACH; j++) mine[lane * EACH + j] = acc[h][j];
    }
    __syncthreads();
    float* part = parts + (((u64)row * kv_heads + kv) * splits) * HEADS * (DIM + 2);
    for (int i = threadIdx.x; i < HEADS * DIM; i += 128) {
      const int h = i / DIM, d = i % DIM;
      float m = -1e30f, s = 0.f, a = 0.f;
      for (int b = 0; b < ABREAST; b++) m = fmaxf(m, shared[(b * HEADS + h) * (DIM + 2) + DIM]);
      for (int b = 0; b < ABREAST; b++) {
        const float* one = shared + (b * HEADS + h) * (DIM + 2);
        const float e = exp2f(one[DIM] - m);
        s += e * one[DIM + 1], a += e * one[d];
      }
      if (used == 1) {
        out[((u64)row * all + kv * HEADS + h) * DIM + d] = narrow(a / s);
      } else {
        float* one = part + (split * HEADS + h) * (DIM + 2);
        one[d] = a;
        if (d == 0) one[DIM] = m, one[DIM + 1] = s;
      }
    }
    if (used == 1) continue;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      int* counter = arrived + row * kv_heads + kv;
      last = atomicAdd(counter, 1) == used - 1;
      if (last) *counter = 0;
    }
    __syncthreads();
    if (!last) continue;
    __threadfence();
    for (int i = threadIdx.x; i < HEADS * DIM; i += 128) {
      const int h = i / DIM, d = i % DIM;
      float m = -1e30f, s = 0.f, a = 0.f;
      for (int b = 0; b < used; b++) m = fmaxf(m, __ldcg(part + (b * HEADS + h) * (DIM + 2) + DIM));
      for (int b = 0; b < used; b++) {
        const float* one = part + (b * HEADS + h) * (DIM + 2);
        const float e = exp2f(__ldcg(one + DIM) - m);
        s += e * __ldcg(one + DIM + 1), a += e * __ldcg(one + d);
      }
      out[((u64)row * all + kv * HEADS + h) * DIM + d] = narrow(a / s);
    }
  } while (SEVERAL && (row += gridDim.z) < rows);
}
