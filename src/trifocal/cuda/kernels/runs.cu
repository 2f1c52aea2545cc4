// ---- attention of runs: neighbouring rows that continue one sequence, whose keys and values are read once for all
// runs [, 4]: first row, rows, the first row's position, 0; the list ends before the first run of no rows. Queries stand
// in qkv; keys and values of one layer [slots, kv_heads, dim]; HEADS query heads share a key head.
//   WARPS   warps a block, 4 or 8    STAGES  stages of 16 * WARPS positions in flight
//   BYTES   1: keys and values are bytes, and each head of a position has two float16 scales [slots, kv_heads, 2]. They
//           are copied as whole numbers of the model's type; products and weights are scaled. STAGES is 1: the next
//           stage waits in registers
// A block takes up to 64 queries (rows times HEADS, 16 an mma) of a run, a key head and a stretch of the positions.
// Its warps share the queries, 16 each, and where there are more warps than that, the positions of each stage.
// The stretches' results [queries, kv_heads, splits, dim + 4] are merged by the block that comes last.
#ifndef DIM
#define DIM 128
#define HEADS 1
#define BLOCK 16
#endif
#ifndef WARPS
#define WARPS 8
#define STAGES 2
#endif
#define THREADS (WARPS * 32)
#define KEYS (WARPS * 16)
#define RESIDENT (8 / WARPS)  // blocks a processor
#define PITCH (DIM * 2 + 16)  // bytes a position in shared memory; 8 of them meet in no bank
#define HALF (KEYS * PITCH)
#define SCALES (STAGES * 2 * HALF)  // where they stand in shared memory
#define SHORTEST 128                // positions a stretch
#define STEPS (DIM / 16)
#define WIDTH (DIM + 4)  // floats a result: sums of values, greatest product, sum of weights
#define NONE -1e30f
#define MINUS_INFINITY __uint_as_float(0xff800000u)
#define LOG2E 1.44269504f

DEV void ldmatrix(u32 (&r)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
DEV void ldmatrix_turned(u32 (&r)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
DEV void copy16(u32 to, const void* from, u32 bytes) {  // what ``bytes`` leave of 16 is zero
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
DEV void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }
DEV void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory"); }
DEV float power(float x) {  // of two
  float r;
  asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(r) : "f"(x));
  return r;
}

// 16 queries of a warp: thread ``4 g + t`` has rows g and g + 8 of every product, of its columns 2 t and 2 t + 1
struct Queries {
  u32 q[STEPS][4];
  float acc[DIM / 8][4], most[2], sum[2];
  int limit[2];  // positions that the rows see end here
};
// a warp's part of a stage, 16 * GROUPS positions from ``at`` on, taken into the sums; all see those before ``least``,
// and from ``end`` on they are another block's
template <int GROUPS>
DEV void take(Queries& w, u32 keys, u32 values, const u32* scales, int at, int least, int end, int window, float scale) {
  const int lane = threadIdx.x & 31;
  const u32* const own = scales + (lane & 3) * 2;  // of the two positions in every 8 that this thread's products are of
  float s[GROUPS * 2][4] = {};
#pragma unroll
  for (int n = 0; n < GROUPS * 2; n++) {
#pragma unroll
    for (int k = 0; k < STEPS; k += 2) {
      u32 b[4];  // 8 positions, 32 dims; of an odd number of steps the last half reads the pitch, and is not used
      ldmatrix(b, keys + (n * 8 + (lane & 7)) * PITCH + min(k * 32 + (lane >> 3) * 16, DIM * 2));
      mma(s[n], w.q[k], b[0], b[1]);
      if (k + 1 < STEPS) mma(s[n], w.q[k + 1 < STEPS ? k + 1 : k], b[2], b[3]);
    }
  }
#if BYTES
#pragma unroll
  for (int n = 0; n < GROUPS * 2; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) s[n][i] *= half_wide(own[n * 8 + (i & 1)]);
#endif
  if (at + GROUPS * 16 > least || window > 0) {  // somebody does not see all of them
#pragma unroll
    for (int n = 0; n < GROUPS * 2; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int p = at + n * 8 + (lane & 3) * 2 + (i & 1), limit = w.limit[i >> 1];
        if (p >= min(limit, end) || (window > 0 && p < limit - window)) s[n][i] = MINUS_INFINITY;
      }
  }
  u32 weights[GROUPS * 2][2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float m = w.most[half], sum = 0.f;
#pragma unroll
    for (int n = 0; n < GROUPS * 2; n++) m = fmaxf(m, fmaxf(s[n][half * 2], s[n][half * 2 + 1]));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
    const float less = power((w.most[half] - m) * scale), off = m * scale;
    w.most[half] = m;
#pragma unroll
    for (int n = 0; n < GROUPS * 2; n++) {
      const float a = power(s[n][half * 2] * scale - off), b = power(s[n][half * 2 + 1] * scale - off);
      sum += a + b;
#if BYTES
      weights[n][half] = pair(a * half_wide(own[n * 8] >> 16), b * half_wide(own[n * 8 + 1] >> 16));
#else
      weights[n][half] = pair(a, b);
#endif
    }
    w.sum[half] = w.sum[half] * less + sum;
#pragma unroll
    for (int d = 0; d < DIM / 8; d++) w.acc[d][half * 2] *= less, w.acc[d][half * 2 + 1] *= less;
  }
#pragma unroll
  for (int n = 0; n < GROUPS; n++) {
    const u32 a[4] = {weights[2 * n][0], weights[2 * n][1], weights[2 * n + 1][0], weights[2 * n + 1][1]};
#pragma unroll
    for (int d = 0; d < STEPS; d++) {
      u32 b[4];  // 16 positions, 16 dims
      ldmatrix_turned(b, values + (n * 16 + (lane & 15)) * PITCH + d * 32 + (lane >> 4) * 16);
      mma(w.acc[2 * d], a, b[0], b[1]);
      mma(w.acc[2 * d + 1], a, b[2], b[3]);
    }
  }
}
DEV void store(const Queries& w, float* results, float scale) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float* to = results + ((threadIdx.x >> 5) * 16 + half * 8 + (lane >> 2)) * WIDTH;
    float sum = w.sum[half];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
#pragma unroll
    for (int d = 0; d < DIM / 8; d++) *(float2*)(to + d * 8 + (lane & 3) * 2) = make_float2(w.acc[d][half * 2], w.acc[d][half * 2 + 1]);
    if ((lane & 3) == 0) to[DIM] = w.most[half] * scale, to[DIM + 1] = sum;
  }
}
DEV void add(float4& to, float weight, const float4& v) { to.x += weight * v.x, to.y += weight * v.y, to.z += weight * v.z, to.w += weight * v.w; }

// up to 64 queries of a run, and this block's stretch of the positions that they see
struct Tile {
  int first, start, from, queries;  // the run's first row and its position; queries of the run before the tile's
  int begin, end, used;             // the stretch, empty where there is none; how many there are
  __device__ __forceinline__ int row(int query) const { return (from + query) / HEADS; }
  __device__ __forceinline__ int head(int query) const { return (from + query) % HEADS; }
};
DEV Tile tile_of(const int* run, int number, int split, int splits, int window) {
  Tile t = {run[0], run[2], number * 64, min(64, run[1] * HEADS - number * 64), 0, 0, 0};
  if (t.queries <= 0) return t;
  const int low = t.start + 1 + t.row(0), high = t.start + 1 + t.row(t.queries - 1);
  const int begins = (window > 0 && low > window ? low - window : 0) / BLOCK * BLOCK, count = high - begins;
  const int chunk = max(SHORTEST, ((count + splits - 1) / splits + 15) / 16 * 16);
  t.used = (count + chunk - 1) / chunk;
  t.begin = begins + split * chunk, t.end = split < t.used ? min(high, t.begin + chunk) : t.begin;
  return t;
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) attend_runs(
#if BYTES
    const u16* qkv, const char* keys, const char* values, const u32* scales, const int* tables,
#else
    const u16* qkv, const u16* keys, const u16* values, const u32*, const int* tables,
#endif
    const int* runs, u16* out, float* parts, int* arrived, int kv_heads, int columns, int window, float scale) {
  extern __shared__ __align__(128) char memory[];  // [STAGES, 2, KEYS, PITCH], scales; then [WARPS * 16, WIDTH]; then weights
  __shared__ int last;
  const u32 ring = (u32)__cvta_generic_to_shared(memory);
  float* const results = (float*)memory;
  u32* const held = (u32*)(memory + SCALES);
  const int split = blockIdx.x, splits = gridDim.x, kv = blockIdx.y % kv_heads, number = blockIdx.y / kv_heads;
  const int all = kv_heads * HEADS, thread = threadIdx.x, warp = thread >> 5, lane = thread & 31;
  let_next_start();
  // one block is enough for whoever waits for us to wait for those before us, too
  if (split + blockIdx.y + blockIdx.z == 0 && runs[1] == 0) wait_for_previous();
  for (const int* run = runs + 4 * blockIdx.z; run[1] > 0; run += 4 * gridDim.z) {
    const Tile t = tile_of(run, number, split, splits, window);
    if (t.begin == t.end) continue;
    const int* table = tables + (u64)t.first * columns;
    const int stages = (t.end - t.begin + KEYS - 1) / KEYS;
    auto slot = [&](int at) { return (u64)table[at / BLOCK] * BLOCK + at % BLOCK; };
#if BYTES
    uint2 k[DIM / 16], v[DIM / 16];
    u32 both = 0;
    auto fetch = [&](int stage) {  // behind the end the last position again
      const int from = t.begin + stage * KEYS, end = t.end - 1;
#pragma unroll
      for (int u = 0; u < DIM / 16; u++) {
        const int i = thread + u * THREADS;
        const u64 at = (slot(min(from + i / (DIM / 8), end)) * kv_heads + kv) * DIM + i % (DIM / 8) * 8;
        k[u] = eight(keys + at), v[u] = eight(values + at);
      }
      if (thread < KEYS) both = load_word(scales + slot(min(from + thread, end)) * kv_heads + kv);
    };
    auto land = [&]() {
#pragma unroll
      for (int u = 0; u < DIM / 16; u++) {
        const int i = thread + u * THREADS;
        char* to = memory + i / (DIM / 8) * PITCH + i % (DIM / 8) * 16;
        float f[8];
        spread(k[u], f), *(uint4*)to = gather8(f);
        spread(v[u], f), *(uint4*)(to + HALF) = gather8(f);
      }
      if (thread < KEYS) held[thread] = both;
    };
#else
    auto fetch = [&](int stage) {
      const u32 to = ring + stage % STAGES * (2 * HALF);
#pragma unroll 4
      for (int i = thread; i < KEYS * (DIM / 8); i += THREADS) {
        const int row = i / (DIM / 8), column = i % (DIM / 8), p = t.begin + stage * KEYS + row, at = min(p, t.end - 1);
        const u64 from = (slot(at) * kv_heads + kv) * DIM + column * 8;
        const u32 bytes = p < t.end ? 16 : 0, place = to + row * PITCH + column * 16;
        copy16(place, keys + from, bytes);
        copy16(place + HALF, values + from, bytes);
      }
    };
#endif
    for (int i = 0; i < STAGES; i++) {
      // what this step itself adds to the sequence stands there when the kernel before is done
      if (min(t.end, t.begin + (i + 1) * KEYS) > t.start) wait_for_previous();
      if (i < stages) fetch(i);
      copies_end();
    }
    wait_for_previous();
    // 16 queries are those of ``abreast`` warps, the n-th of which takes the n-th part of each stage
    const int abreast = WARPS / (t.queries <= 16 ? 1 : t.queries <= 32 ? 2 : 4);
    const int own = warp / abreast * 16, part = warp % abreast * (KEYS / abreast);
    Queries w;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int query = min(own + half * 8 + (lane >> 2), t.queries - 1);
      const u64 head = (u64)(t.first + t.row(query)) * (all + 2 * kv_heads) + kv * HEADS + t.head(query);
      const u16* q = qkv + head * DIM + (lane & 3) * 2;
#pragma unroll
      for (int k = 0; k < STEPS; k++) w.q[k][half] = load_word(q + k * 16), w.q[k][half + 2] = load_word(q + k * 16 + 8);
      w.limit[half] = t.start + 1 + t.row(query), w.most[half] = NONE, w.sum[half] = 0.f;
    }
#pragma unroll
    for (int d = 0; d < DIM / 8; d++) w.acc[d][0] = w.acc[d][1] = w.acc[d][2] = w.acc[d][3] = 0.f;
    const int least = min(t.end, t.start + 1 + t.row(min(own, t.queries - 1)));
    for (int i = 0; i < stages; i++) {
#if BYTES
      land();
      if (i + 1 < stages) fetch(i + 1);
#else
      copies_wait();
#endif
      __syncthreads();
      if (own < t.queries) {
        const int at = t.begin + i * KEYS + part, until = min(t.end, at + KEYS / abreast);
        const u32 k = ring + i % STAGES * (2 * HALF) + part * PITCH, v = k + HALF;
        if (KEYS / abreast == 16) {
          if (at < t.end) take<1>(w, k, v, held + part, at, least, t.end, window, scale * LOG2E);
        } else {
          for (int n = 0; at + n < until; n += 32)
            take<2>(w, k + n * PITCH, v + n * PITCH, held + part + n, at + n, least, t.end, window, scale * LOG2E);
        }
      }
      __syncthreads();
#if !BYTES
      if (i + STAGES < stages) fetch(i + STAGES);
      copies_end();
#endif
    }
    store(w, results, scale * LOG2E);
    __syncthreads();
    auto answer = [&](int query, int column, const float4& v) {
      const u64 head = (u64)(t.first + t.row(query)) * all + kv * HEADS + t.head(query);
      *(uint2*)(out + head * DIM + column) = make_uint2(pair(v.x, v.y), pair(v.z, v.w));
    };
    float* const here = parts + (((u64)t.first * HEADS + t.from) * kv_heads + kv) * splits * WIDTH;
    const u64 pitch = (u64)kv_heads * splits * WIDTH;  // from a query to the next
    for (int i = thread; i < t.queries * (DIM / 4); i += THREADS) {  // the warps abreast are merged
      const int query = i / (DIM / 4), column = i % (DIM / 4) * 4;
      const float* one = results + (query / 16 * abreast * 16 + query % 16) * WIDTH;
      float m = NONE, s = 0.f;
      float4 a = make_float4(0.f, 0.f, 0.f, 0.f);
      for (int b = 0; b < abreast; b++) m = fmaxf(m, one[b * 16 * WIDTH + DIM]);
      for (int b = 0; b < abreast; b++) {
        const float e = power(one[b * 16 * WIDTH + DIM] - m);
        s += e * one[b * 16 * WIDTH + DIM + 1];
        add(a, e, *(const float4*)(one + b * 16 * WIDTH + column));
      }
      if (t.used == 1) {
        const float over = 1.f / s;
        answer(query, column, make_float4(a.x * over, a.y * over, a.z * over, a.w * over));
      } else {
        float* to = here + query * pitch + split * WIDTH;
        *(float4*)(to + column) = a;
        if (column == 0) *(float2*)(to + DIM) = make_float2(m, s);
      }
    }
    __threadfence();
    __syncthreads();  // the ring is free, too
    if (t.used == 1) continue;
    if (thread == 0) {
      int* counter = arrived + (t.first + number) * kv_heads + kv;
      last = atomicAdd(counter, 1) == t.used - 1;
      if (last) *counter = 0;
    }
    __syncthreads();
    if (!last) continue;
    __threadfence();
    float* const weights = results;  // [splits, 64], greatest products first
    float* const sums = results + splits * 64;
    for (int i = thread; i < t.used * 64; i += THREADS) {
      const int query = min(i % 64, t.queries - 1);
      const float2 v = __ldcg((const float2*)(here + query * pitch + i / 64 * WIDTH + DIM));
      weights[i] = v.x, sums[i] = v.y;
    }
    __syncthreads();
    if (thread < 64) {
      float m = NONE, s = 0.f;
      for (int b = 0; b < t.used; b++) m = fmaxf(m, weights[b * 64 + thread]);
      for (int b = 0; b < t.used; b++) s += power(weights[b * 64 + thread] - m) * sums[b * 64 + thread];
      for (int b = 0; b < t.used; b++) weights[b * 64 + thread] = power(weights[b * 64 + thread] - m) / s;
    }
    __syncthreads();
    for (int from = thread; from < t.queries * (DIM / 4); from += 8 * THREADS) {
      float4 a[8] = {}, v[8];
      for (int b = 0; b < t.used; b++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {  // all of them on their way at once
          const int at = from + i * THREADS, query = at / (DIM / 4);
          if (query < t.queries) v[i] = __ldcg((const float4*)(here + query * pitch + b * WIDTH + at % (DIM / 4) * 4));
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
          const int query = (from + i * THREADS) / (DIM / 4);
          if (query < t.queries) add(a[i], weights[b * 64 + query], v[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const int at = from + i * THREADS, query = at / (DIM / 4);
        if (query < t.queries) answer(query, at % (DIM / 4) * 4, a[i]);
      }
    }
    __syncthreads();  // the ring is free again
  }
}
