// ---- 4-bit weights times a few rows.
//   WARPS   warps a block, each with every WARPS-th chunk of 128 columns    STAGES  chunks in flight a warp
//   ROWS    rows of x that are computed: 8, 16 or 32                        GROUP   columns a scale: 32, 64 or 128
//   TALL    blocks of 32 weight rows that share the values of x that were read: 1 or 2
//   OFFSET  1: weight = scale * level + offset, 0: scale * (level - zero)
//   THEN    0: store, 1: add to what stands in y, 2: silu(gate) * up, rows of 8 by turns
// The 16 rows of an mma are rows of the weight, its 8 columns are rows of x. A chunk is 32 rows by 128 columns,
// ``TILES * 1024`` bytes of levels and then a word a row and group: see `packing.py`, which writes them.
#ifndef WARPS  // only `unpack` is asked for
#define WARPS 8
#define STAGES 4
#define ROWS 8
#define TALL 1
#define THEN 0
#endif
#define TILES 2
#define GROUPS (128 / GROUP)
#define CHUNK (TILES * 1024 + GROUPS * TILES * 64)
#define BATCHES (ROWS / 8)
#define STEPS (8 / GROUPS)
#define HIGH (TALL * 32)
#define STAGE (TALL * CHUNK)

struct Weights { uint4 levels[2 * TILES]; u32 scales[GROUPS][2 * TILES]; };
struct Values { uint4 v[BATCHES][4]; };

DEV void take(Weights& w, u32 at, int lane) {
#pragma unroll
  for (int j = 0; j < 2 * TILES; j++) w.levels[j] = load_shared(at + j * 512 + lane * 16);
#pragma unroll
  for (int g = 0; g < GROUPS; g++) {
    const uint4 s = load_shared(at + TILES * 1024 + (g * 8 + (lane >> 2)) * 16);
    w.scales[g][0] = s.x, w.scales[g][1] = s.y, w.scales[g][2] = s.z, w.scales[g][3] = s.w;
  }
}
// the products of one group of a chunk: ``x`` are the values of its steps
DEV void multiply(const Weights& w, int g, const Values& x, float (&acc)[TILES][BATCHES][4]) {
  float c[TILES][BATCHES][4] = {};
#if OFFSET
  float ones[BATCHES][4] = {};
#endif
#pragma unroll
  for (int s = g * STEPS; s < (g + 1) * STEPS; s++) {
    u32 b0[BATCHES], b1[BATCHES];
#pragma unroll
    for (int n = 0; n < BATCHES; n++) {
      b0[n] = word(x.v[n][s >> 1], (s & 1) * 2);
      b1[n] = word(x.v[n][s >> 1], (s & 1) * 2 + 1);
#if OFFSET
      const u32 one[4] = {ONES, ONES, ONES, ONES};
      mma(ones[n], one, b0[n], b1[n]);
#endif
    }
#pragma unroll
    for (int r = 0; r < TILES; r++) {
      const u32 q = word(w.levels[(s * TILES + r) >> 2], (s * TILES + r) & 3);
#if OFFSET
      const u32 low = BASE, high = BASE;
#else
      const u32 low = __byte_perm(w.scales[g][2 * r], 0, 0x3232), high = __byte_perm(w.scales[g][2 * r + 1], 0, 0x3232);
#endif
      const u32 a[4] = {level(q, low), level(q >> 4, high), level(q >> 8, low), level(q >> 12, high)};
#pragma unroll
      for (int n = 0; n < BATCHES; n++) mma(c[r][n], a, b0[n], b1[n]);
    }
  }
#pragma unroll
  for (int r = 0; r < TILES; r++) {
    const float low = half_wide(w.scales[g][2 * r]), high = half_wide(w.scales[g][2 * r + 1]);
#pragma unroll
    for (int n = 0; n < BATCHES; n++) {
      acc[r][n][0] += low * c[r][n][0], acc[r][n][1] += low * c[r][n][1];
      acc[r][n][2] += high * c[r][n][2], acc[r][n][3] += high * c[r][n][3];
#if OFFSET
      const float lo = half_wide(w.scales[g][2 * r] >> 16), hi = half_wide(w.scales[g][2 * r + 1] >> 16);
      acc[r][n][0] += lo * ones[n][0], acc[r][n][1] += lo * ones[n][1];
      acc[r][n][2] += hi * ones[n][2], acc[r][n][3] += hi * ones[n][3];
#endif
    }
  }
}
// the sums of all warps for TALL blocks of 32 rows, and what is done with them; ``sums`` [2, WARPS, ROWS, TALL * 32]
DEV void finish(float* sums, float (&acc)[TALL][TILES][BATCHES][4], u16* y, int block, int rows, int width) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, r = lane >> 2, t = lane & 3;
  float* mine = sums + warp * (ROWS * HIGH);
#pragma unroll
  for (int i = 0; i < TALL * TILES; i++)
#pragma unroll
    for (int n = 0; n < BATCHES; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float* column = mine + (n * 8 + t * 2 + e) * HIGH + i * 16 + r;
        column[0] = acc[i / TILES][i % TILES][n][e];
        column[8] = acc[i / TILES][i % TILES][n][2 + e];
      }
  __syncthreads();
#if THEN == 2
  for (int i = threadIdx.x; i < HIGH / 2 * rows; i += WARPS * 32) {
    const int column = i / (HIGH / 2), own = i % (HIGH / 2), at = (own & ~7) * 2 + (own & 7);
    float gate = 0.f, up = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      gate += sums[w * (ROWS * HIGH) + column * HIGH + at];
      up += sums[w * (ROWS * HIGH) + column * HIGH + at + 8];
    }
    gate = wide(narrow(gate)), up = wide(narrow(up));
    y[(u64)column * width + block * (HIGH / 2) + own] = narrow(gated(gate, up));
  }
#else
  for (int i = threadIdx.x; i < HIGH * rows; i += WARPS * 32) {
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += sums[w * (ROWS * HIGH) + i];
    u16* to = y + (u64)(i / HIGH) * width + block * HIGH + i % HIGH;
#if THEN == 1
    sum = wide(*to) + wide(narrow(sum));
#endif
    *to = narrow(sum);
  }
#endif
}
extern "C" __global__ void __launch_bounds__(WARPS * 32) product(
    const u16* x, const char* weights, u16* y, int columns, int blocks, int rows, int width) {
  extern __shared__ __align__(128) char memory[];  // [WARPS, STAGES, STAGE] ring, [WARPS, STAGES] barriers of 16, sums
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, r = lane >> 2, t = lane & 3, chunks = columns >> 7;
  const int mine = chunks > warp ? (chunks - warp + WARPS - 1) / WARPS : 0;
  const u32 shared = (u32)__cvta_generic_to_shared(memory), ring = shared + warp * (STAGES * STAGE);
  float* sums = (float*)(memory + WARPS * STAGES * (STAGE + 16));
  const int own = (blocks - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x, total = mine * own;
  const u64 block_bytes = (u64)chunks * CHUNK;
  const char* from = weights + blockIdx.x * TALL * block_bytes + warp * CHUNK;
  const u64 next_block = gridDim.x * TALL * block_bytes - (u64)mine * (WARPS * CHUNK);
  int issued = 0;
  let_next_start();
#if __CUDA_ARCH__ >= 900
  const u32 barriers = shared + WARPS * STAGES * STAGE + warp * (STAGES * 16);
  u64 once;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
  auto fetch = [&](int stage) {
    if (lane == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _,[%0],%1;" ::"r"(barriers + stage * 16), "r"(STAGE) : "memory");
#pragma unroll
      for (int i = 0; i < TALL; i++)
        asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0],[%1],%2,[%3],%4;" ::"r"(ring + stage * STAGE + i * CHUNK), "l"(from + i * block_bytes), "r"(CHUNK), "r"(barriers + stage * 16), "l"(once) : "memory");
    }
  };
  if (lane == 0) {
#pragma unroll
    for (int s = 0; s < STAGES; s++) asm volatile("mbarrier.init.shared::cta.b64 [%0],1;" ::"r"(barriers + s * 16) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncwarp();
#else
  auto fetch = [&](int stage) {
#pragma unroll
    for (int b = 0; b < TALL; b++)
      for (int i = lane * 16; i < CHUNK; i += 512)
        asm volatile("cp.async.cg.shared.global [%0],[%1],16;" ::"r"(ring + stage * STAGE + b * CHUNK + i), "l"(from + b * block_bytes + i) : "memory");
  };
#endif
  auto advance = [&](int stage) {  // the next chunk, if there is one, into a stage
    if (issued < total) {
      fetch(stage);
      from += WARPS * CHUNK;
      if (++issued % mine == 0) from += next_block;
    }
#if __CUDA_ARCH__ < 900
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  };
  for (int s = 0; s < STAGES; s++) advance(s);
  wait_for_previous();
  int at[BATCHES];
#pragma unroll
  for (int n = 0; n < BATCHES; n++) at[n] = (n * 8 + r < rows ? n * 8 + r : 0) * columns + t * 8;
  auto values = [&](Values& v, int chunk) {
#pragma unroll
    for (int n = 0; n < BATCHES; n++)
#pragma unroll
      for (int b = 0; b < 4; b++) v.v[n][b] = load(x + at[n] + chunk * 128 + b * 32);
  };
  int stage = 0, phase = 0, side = 0;
#if BATCHES <= 2
  Values now, soon;
  if (mine) values(now, warp);
#endif
  for (int block = blockIdx.x; block < blocks; block += gridDim.x, side ^= 1) {
    float acc[TALL][TILES][BATCHES][4] = {};
    for (int i = 0; i < mine; i++) {
#if BATCHES <= 2
      values(soon, warp + (i + 1 == mine ? 0 : i + 1) * WARPS);
#endif
#if __CUDA_ARCH__ >= 900
      wait(barriers + stage * 16, phase);
#else
      asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
      __syncwarp();
#endif
#if BATCHES > 2
      Values now;
      values(now, warp + i * WARPS);
#endif
#pragma unroll
      for (int b = 0; b < TALL; b++) {
        Weights w;
        take(w, ring + stage * STAGE + b * CHUNK, lane);
        if (b == TALL - 1) {
          __syncwarp();
          advance(stage);
          if (++stage == STAGES) stage = 0, phase ^= 1;
        }
#pragma unroll
        for (int g = 0; g < GROUPS; g++) multiply(w, g, now, acc[b]);
      }
#if BATCHES <= 2
      now = soon;
#endif
    }
    finish(sums + side * (WARPS * ROWS * HIGH), acc, y, block, rows, width);
  }
}

// ---- the same weights made dense: [32 * blocks, columns], a warp a chunk
extern "C" __global__ void __launch_bounds__(128) unpack(const char* weights, u16* dense, int columns, int all) {
  let_next_start();
  wait_for_previous();
  const int lane = threadIdx.x & 31, one = blockIdx.x * 4 + (threadIdx.x >> 5), chunks = columns >> 7, r = lane >> 2, t = lane & 3;
  if (one >= all) return;
  const char* from = weights + (u64)one * CHUNK;
  uint4 levels[2 * TILES];
#pragma unroll
  for (int j = 0; j < 2 * TILES; j++) levels[j] = *(const uint4*)(from + j * 512 + lane * 16);
  u16* to = dense + (u64)(one / chunks) * 32 * columns + (one % chunks) * 128 + t * 8;
#pragma unroll
  for (int tile = 0; tile < TILES; tile++)
#pragma unroll
    for (int high = 0; high < 2; high++)
#pragma unroll
      for (int b = 0; b < 4; b++) {
        const u32 s = *(const u32*)(from + TILES * 1024 + ((b * 32 / GROUP) * 8 + r) * 16 + (2 * tile + high) * 4);
        const float scale = half_wide(s);
#if OFFSET
        const float zero = 0.f, offset = half_wide(s >> 16);
#else
        const float zero = -wide((u16)(s >> 16)) - wide((u16)MAGIC), offset = 0.f;
#endif
        float f[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {  // k = 4 * step + 2 * p + e
          const int step = 2 * b + (j >> 2), nibble = high + 2 * ((j >> 1) & 1) + 4 * (j & 1), flat = step * TILES + tile;
          f[j] = scale * ((float)(word(levels[flat >> 2], flat & 3) >> (4 * nibble) & 15u) - zero) + offset;
        }
        *(uint4*)(to + (u64)(tile * 16 + high * 8 + r) * columns + b * 32) = gather8(f);
      }
}
