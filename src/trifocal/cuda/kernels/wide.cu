// ---- 4-bit weights times many rows, by the warpgroup products of sm_90a: the weights stay packed on their way through
// the memory and become values in registers, where they are the left operand.
//   COLUMNS  rows of x a block computes, a multiple of 8 up to 256    STAGES  chunks of 128 columns in flight
//   GROUP, OFFSET, THEN  as in product.cu                             BLOCKS  blocks a processor at the least
//   SUMS     1: scales are applied to float32 sums of a group; 0: to the weights, which are rounded as `unpack` rounds
//   WGMMA    the instruction as text, and ACCUMULATORS its first operands: their number depends on COLUMNS
// A block computes 128 rows of the weight: two warpgroups of 64, and a warp that fetches for both.
#define GROUPS (128 / GROUP)
#define STEPS (8 / GROUPS)
#define CHUNK (2048 + GROUPS * 128)
#define VALUES (COLUMNS * 256)
#define STAGE (VALUES + 4 * CHUNK)
#define OWN (COLUMNS / 2)  // accumulators a thread
#define HEIGHT (THEN == 2 ? 64 : 128)
#define CONSUMERS 256
#define TURN (COLUMNS > 208 ? 2 : 4)  // steps whose values are made together: registers, against waiting

struct Scale { u32 minus, high, low; float wide, offset; };  // of one row and group, pairs but for the floats
DEV Scale scale_of(u32 word) {
  Scale s;
  s.wide = half_wide(word);
#if OFFSET
  s.minus = BASE, s.high = 0, s.low = 0, s.offset = half_wide(word >> 16);
#else
  s.minus = __byte_perm(word, 0, 0x3232), s.high = pair(s.wide, s.wide), s.offset = 0.f;
  const float rest = s.wide - wide((u16)s.high);
  s.low = pair(rest, rest);
#endif
  return s;
}
DEV u32 scaled(u32 v, const Scale& s) {  // two values times the scale, rounded once
#if OFFSET
  return pair(fmaf(wide((u16)v), s.wide, s.offset), fmaf(wide((u16)(v >> 16)), s.wide, s.offset));
#elif BF  // the scale has more digits than a bfloat16: what is left of it goes into the same rounding
  return fma2(v, s.high, fma2(v, s.low, 0x80008000u));
#else
  return fma2(v, s.high, 0x80008000u);
#endif
}
// the left operand of one step: rows r and r + 8 of 16, from the word of a thread and the words of their scales
DEV void values(u32 (&a)[4], u32 q, const Scale& low, const Scale& high) {
  a[0] = level(q, low.minus), a[1] = level(q >> 4, high.minus), a[2] = level(q >> 8, low.minus), a[3] = level(q >> 12, high.minus);
#if !SUMS
  a[0] = scaled(a[0], low), a[1] = scaled(a[1], high), a[2] = scaled(a[2], low), a[3] = scaled(a[3], high);
#endif
}
DEV void leave(u32 barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _,[%0];" ::"r"(barrier) : "memory"); }
DEV void fetch(u32 to, const void* from, int bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0],[%1],%2,[%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
// d = a * b, or added to d: ``a`` [64, 16] in registers, ``b`` [COLUMNS, 16] in shared memory
DEV void multiply(float (&d)[OWN], const u32 (&a)[4], u64 b, int onto) {
  asm volatile(WGMMA : ACCUMULATORS : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(onto));
}
DEV void begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT>
DEV void finish() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }
DEV void hold(float (&d)[OWN]) {  // nothing reads them before this
#pragma unroll
  for (int i = 0; i < OWN; i++) asm volatile("" : "+f"(d[i])::"memory");
}
DEV void consumers() { asm volatile("bar.sync 1,%0;" ::"n"(CONSUMERS) : "memory"); }

// x [rows, columns] as a block reads it: [tiles, columns / 8, COLUMNS, 8], the columns of a chunk in the order in which
// the words of a weight have them; ``order`` [columns] or none says which column of x is meant
extern "C" __global__ void __launch_bounds__(256) tile(const u16* x, const int* order, u16* tiles, int columns, int rows) {
  let_next_start();
  wait_for_previous();
  const int n = threadIdx.x, row = blockIdx.y * COLUMNS + n, from = blockIdx.x * 32;
  if (n >= COLUMNS) return;
  u16 v[32] = {};
  if (row < rows) {
    if (order)
      for (int i = 0; i < 32; i++) v[i] = x[(u64)row * columns + order[from + i]];
    else
      for (int i = 0; i < 4; i++) *(uint4*)(v + i * 8) = load(x + (u64)row * columns + from + i * 8);
  }
  uint4* to = (uint4*)tiles + ((u64)blockIdx.y * (columns / 8) + blockIdx.x * 4) * COLUMNS + n;
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int p = 0; p < 2; p++) {
      u32 w[4];
#pragma unroll
      for (int t = 0; t < 4; t++) {
        const int at = 8 * t + 4 * half + 2 * p;
        w[t] = (u32)v[at] | (u32)v[at + 1] << 16;
      }
      to[(half * 2 + p) * COLUMNS] = make_uint4(w[0], w[1], w[2], w[3]);
    }
}

// the sums of all blocks that share an output, in the block that came last; false in the others
DEV bool together(float (&sum)[OWN], float* parts, u32* arrived, int own) {
  const int tile = blockIdx.y * gridDim.x + blockIdx.x, splits = gridDim.z;
  float* all = parts + (u64)tile * splits * (OWN * CONSUMERS) + own;
  float* mine = all + (u64)blockIdx.z * (OWN * CONSUMERS);
#pragma unroll
  for (int i = 0; i < OWN; i++) __stcg(mine + i * CONSUMERS, sum[i]);
  __threadfence();
  __shared__ u32 before;
  consumers();
  if (own == 0) before = atomicAdd(arrived + tile, 1);
  consumers();
  if (before != splits - 1) return false;
  if (own == 0) arrived[tile] = 0;
  __threadfence();
#pragma unroll
  for (int i = 0; i < OWN; i++) sum[i] = 0.f;
  for (int z = 0; z < splits; z++)
#pragma unroll
    for (int i = 0; i < OWN; i++) sum[i] += __ldcg(all + ((u64)z * OWN + i) * CONSUMERS);
  return true;
}

// from accumulators to y [rows, width], by way of the shared memory so that neighbours write together
DEV void store(const float (&sum)[OWN], u16* lines, u16* y, int rows, int width, int own) {
  const int lane = own & 31, warp = own >> 5, r = lane >> 2, t = lane & 3, line = HEIGHT + 8;
  consumers();  // nobody reads a stage any more
#pragma unroll
  for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      u16* to = lines + (n * 8 + t * 2 + e) * line;
#if THEN == 2
      const float gate = wide(narrow(sum[n * 4 + e])), up = wide(narrow(sum[n * 4 + 2 + e]));
      to[warp * 8 + r] = narrow(gated(gate, up));
#else
      to[warp * 16 + r] = narrow(sum[n * 4 + e]);
      to[warp * 16 + r + 8] = narrow(sum[n * 4 + 2 + e]);
#endif
    }
  consumers();
  const int first = blockIdx.x * COLUMNS, most = rows - first < COLUMNS ? rows - first : COLUMNS;
  for (int i = own; i < most * (HEIGHT / 8); i += CONSUMERS) {
    const int row = i / (HEIGHT / 8), piece = i % (HEIGHT / 8);
    uint4 v = *(const uint4*)(lines + row * line + piece * 8);
    u16* to = y + (u64)(first + row) * width + blockIdx.y * HEIGHT + piece * 8;
#if THEN == 1
    float old[8], more[8];
    spread(load(to), old), spread(v, more);
#pragma unroll
    for (int j = 0; j < 8; j++) old[j] += more[j];
    v = gather8(old);
#endif
    *(uint4*)to = v;
  }
}

extern "C" __global__ void __launch_bounds__(CONSUMERS + 32, BLOCKS) product(
    const u16* tiles, const char* weights, u16* y, float* parts, u32* arrived, int columns, int rows, int width) {
  extern __shared__ __align__(128) char memory[];  // [STAGES, STAGE], then barriers: full, empty
  const int chunks = columns >> 7, first = chunks * blockIdx.z / gridDim.z, count = chunks * (blockIdx.z + 1) / gridDim.z - first;
  const u32 ring = (u32)__cvta_generic_to_shared(memory), full = ring + STAGES * STAGE, empty = full + STAGES * 8;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0],1;" ::"r"(full + s * 8) : "memory");
      asm volatile("mbarrier.init.shared::cta.b64 [%0],8;" ::"r"(empty + s * 8) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  let_next_start();
  if (threadIdx.x >= CONSUMERS) {
    if (threadIdx.x > CONSUMERS) return;
    const char* x = (const char*)tiles + ((u64)blockIdx.x * chunks + first) * VALUES;
    const char* w = weights + ((u64)blockIdx.y * 4 * chunks + first) * CHUNK;
    for (int i = 0; i < count; i++, x += VALUES, w += CHUNK) {
      const int stage = i % STAGES;
      const u32 to = ring + stage * STAGE, barrier = full + stage * 8;
      if (i >= STAGES) wait(empty + stage * 8, (i / STAGES - 1) & 1);
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _,[%0],%1;" ::"r"(barrier), "r"(STAGE) : "memory");
#pragma unroll
      for (int b = 0; b < 4; b++) fetch(to + VALUES + b * CHUNK, w + (u64)b * chunks * CHUNK, CHUNK, barrier);
      if (i == 0) wait_for_previous();
      fetch(to, x, VALUES, barrier);
    }
    return;
  }
  const int own = threadIdx.x, lane = own & 31, warp = own >> 5, side = warp & 1;  // of a chunk's two tiles of 16 rows
  const u64 shape = (u64)(COLUMNS * 16 >> 4) << 16 | (u64)(128 >> 4) << 32;
  float sum[OWN];
#pragma unroll
  for (int i = 0; i < OWN; i++) sum[i] = 0.f;
  int stage = 0, phase = 0;
  u32 a[SUMS ? 8 : 2 * TURN][4];
  for (int i = 0; i < count; i++) {
    wait(full + stage * 8, phase);
    const u32 at = ring + stage * STAGE + VALUES + (warp >> 1) * CHUNK;
    const u64 b = shape | ((ring + stage * STAGE) >> 4);
    u32 q[8];
    Scale scales[GROUPS][2];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const uint4 v = load_shared(at + j * 512 + lane * 16);
      q[2 * j] = side ? v.y : v.x, q[2 * j + 1] = side ? v.w : v.z;
    }
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
      u32 low, high;
      asm volatile("ld.shared.v2.u32 {%0,%1},[%2];" : "=r"(low), "=r"(high) : "r"(at + 2048 + (g * 8 + (lane >> 2)) * 16 + side * 8) : "memory");
      scales[g][0] = scale_of(low), scales[g][1] = scale_of(high);
    }
#if SUMS
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
      float part[OWN];
#pragma unroll
      for (int s = g * STEPS; s < (g + 1) * STEPS; s++) values(a[s], q[s], scales[g][0], scales[g][1]);
      begin();
#pragma unroll
      for (int s = g * STEPS; s < (g + 1) * STEPS; s++) multiply(part, a[s], b + s * (COLUMNS * 2), s > g * STEPS);
      commit();
      finish<0>();
      hold(part);
      const float low = scales[g][0].wide, high = scales[g][1].wide;
#pragma unroll
      for (int n = 0; n < OWN; n += 4) {
        sum[n] += low * part[n], sum[n + 1] += low * part[n + 1];
        sum[n + 2] += high * part[n + 2], sum[n + 3] += high * part[n + 3];
      }
    }
    if (lane == 0 && i + STAGES < count) leave(empty + stage * 8);
#else
#pragma unroll
    for (int h = 0; h < 8 / TURN; h++) {  // values of one turn are made while those of the one before are multiplied
#pragma unroll
      for (int s = h * TURN; s < (h + 1) * TURN; s++) values(a[s % (2 * TURN)], q[s], scales[s / STEPS][0], scales[s / STEPS][1]);
      begin();
#pragma unroll
      for (int s = h * TURN; s < (h + 1) * TURN; s++) multiply(sum, a[s % (2 * TURN)], b + s * (COLUMNS * 2), 1);
      commit();
      finish<1>();
      if (h == 0 && i && lane == 0 && i - 1 + STAGES < count) leave(empty + (stage ? stage - 1 : STAGES - 1) * 8);
    }
#endif
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }
  finish<0>();
  hold(sum);
  if (gridDim.z > 1 && !together(sum, parts, arrived, own)) return;
  store(sum, (u16*)memory, y, rows, width, own);
}
