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
#define LANES (DIM <= 64 ? 8 : DIM <= 128 ? 16 : 32)  // threads a position, 8 values each
#define ABREAST (128 / LANES)
#if BYTES
#define AHEAD 8
typedef uint2 Eight;
#else
#define AHEAD 4
typedef uint4 Eight;
#endif
extern "C" __global__ void __launch_bounds__(128) attend(
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
  const bool live_lane = lane * 8 < DIM;
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
    Eight k[AHEAD], v[AHEAD];
#if BYTES
    u32 both[AHEAD];
#endif
    auto fetch = [&](int p, int low, int high) {
#pragma unroll
      for (int u = 0; u < AHEAD; u++) {
        const int at = p + u * ABREAST;
        if (at >= low && at < high && live_lane) {
          const u64 slot = (u64)table[at / BLOCK] * BLOCK + at % BLOCK, from = (slot * kv_heads + kv) * DIM + lane * 8;
          k[u] = eight(keys + from);
          v[u] = eight(values + from);
#if BYTES
          both[u] = load_word(scales + slot * kv_heads + kv);
#endif
        }
      }
    };
#pragma unroll
    for (int u = 0; u < AHEAD; u++) {
      k[u] = v[u] = Eight();
#if BYTES
      both[u] = 0;
#endif
    }
    fetch(begin + sub, 0, min(end, there));
    wait_for_previous();
    fetch(begin + sub, there, end);
    float q[HEADS][8], acc[HEADS][8], most[HEADS], sum[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      uint4 v = make_uint4(0, 0, 0, 0);
      if (live_lane) v = load(qkv + ((u64)row * (all + 2 * kv_heads) + kv * HEADS + h) * DIM + lane * 8);
      spread(v, q[h]);
      most[h] = -1e30f, sum[h] = 0.f;
#pragma unroll
      for (int j = 0; j < 8; j++) q[h][j] *= scale * 1.44269504f, acc[h][j] = 0.f;
    }
    for (int p = begin + sub; p - sub < end; p += ABREAST * AHEAD) {  // as often in all threads, which exchange values
      if (p >= begin + ABREAST * AHEAD) fetch(p, 0, end);
#pragma unroll
      for (int h = 0; h < HEADS; h++) {
        float s[AHEAD], f[8], m = most[h];
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
          spread(k[u], f);
          float dot = 0.f;
#pragma unroll
          for (int j = 0; j < 8; j++) dot += q[h][j] * f[j];
#pragma unroll
          for (int o = LANES / 2; o; o >>= 1) dot += __shfl_xor_sync(0xffffffffu, dot, o);
#if BYTES
          dot *= half_wide(both[u]);
#endif
          s[u] = p + u * ABREAST < end ? dot : -1e30f;
          m = fmaxf(m, s[u]);
        }
        const float less = exp2f(most[h] - m);
        most[h] = m;
        sum[h] *= less;
#pragma unroll
        for (int j = 0; j < 8; j++) acc[h][j] *= less;
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
          const float e = s[u] > -1e29f ? exp2f(s[u] - m) : 0.f;
          sum[h] += e;
          spread(v[u], f);
#if BYTES
          const float weight = e * half_wide(both[u] >> 16);
#else
          const float weight = e;
#endif
#pragma unroll
          for (int j = 0; j < 8; j++) acc[h][j] += weight * f[j];
        }
      }
    }
    // the rows abreast are merged in shared memory
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      float* mine = shared + (sub * HEADS + h) * (DIM + 2);
      if (lane == 0) mine[DIM] = most[h], mine[DIM + 1] = sum[h];
      if (live_lane)
#pragma unroll
        for (int j = 0; j < 8; j++) mine[lane * 8 + j] = acc[h][j];
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
