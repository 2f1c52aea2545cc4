// ---- rows in e4m3, which has four bits of fraction and 448 as its largest, from sm_89 on; a block of 256 a row
DEV u32 two(float low, float high) {
  u16 r;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0,%1,%2;" : "=h"(r) : "f"(high), "f"(low));
  return r;
}
DEV uint2 eight(const float (&f)[8], float over) {
  return make_uint2(
      two(f[0] * over, f[1] * over) | two(f[2] * over, f[3] * over) << 16,
      two(f[4] * over, f[5] * over) | two(f[6] * over, f[7] * over) << 16);
}
DEV float largest(const float (&f)[8], float most) {
#pragma unroll
  for (int j = 0; j < 8; j++) most = fmaxf(most, fabsf(f[j]));
  return most;
}
// of all threads, in all of them; ``of_warps`` holds eight
template <bool SUM>
DEV float all_of(float v, float* of_warps) {
#pragma unroll
  for (int o = 16; o; o >>= 1) {
    const float other = __shfl_xor_sync(0xffffffffu, v, o);
    v = SUM ? v + other : fmaxf(v, other);
  }
  if ((threadIdx.x & 31) == 0) of_warps[threadIdx.x >> 5] = v;
  __syncthreads();
  v = 0.f;
#pragma unroll
  for (int j = 0; j < 8; j++) v = SUM ? v + of_warps[j] : fmaxf(v, of_warps[j]);
  return v;
}

// x + more, or x, is kept in x, and its root mean square norm divided by the one ``step`` in y
extern "C" __global__ void __launch_bounds__(256) norm_eight(
    u16* x, const u16* more, const u16* weight, uint2* y, const float* step, int hidden, float eps) {
  __shared__ float of_warps[8];
  let_next_start();
  wait_for_previous();
  x += (u64)blockIdx.x * hidden;
  more += (u64)blockIdx.x * hidden * (more != nullptr);
  y += (u64)blockIdx.x * (hidden / 8);
  float sum = 0.f, f[8], w[8];
  for (int i = threadIdx.x * 8; i < hidden; i += 2048) {
    spread(load(x + i), f);
    if (more) {
      spread(load(more + i), w);
#pragma unroll
      for (int j = 0; j < 8; j++) f[j] += w[j];
      const uint4 kept = gather8(f);
      *(uint4*)(x + i) = kept;
      spread(kept, f);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) sum += f[j] * f[j];
  }
  const float r = rsqrtf(all_of<true>(sum, of_warps) / hidden + eps), over = 1.f / *step;
  for (int i = threadIdx.x * 8; i < hidden; i += 2048) {
    spread(load(x + i), f);
    spread(load(weight + i), w);
#pragma unroll
    for (int j = 0; j < 8; j++) f[j] = wide(narrow(f[j] * r)) * w[j];
    y[i / 8] = eight(f, over);
  }
}

// rows divided by what makes their largest value the largest of e4m3, which is kept in ``steps``
extern "C" __global__ void __launch_bounds__(256) row_eight(const u16* x, uint2* y, float* steps, int columns) {
  __shared__ float of_warps[8];
  let_next_start();
  wait_for_previous();
  x += (u64)blockIdx.x * columns;
  y += (u64)blockIdx.x * (columns / 8);
  float f[8], most = 0.f;
  for (int i = threadIdx.x * 8; i < columns; i += 2048) {
    spread(load(x + i), f);
    most = largest(f, most);
  }
  most = all_of<false>(most, of_warps);
  if (threadIdx.x == 0) steps[blockIdx.x] = most / 448.f;
  const float over = most > 0.f ? 448.f / most : 0.f;
  for (int i = threadIdx.x * 8; i < columns; i += 2048) {
    spread(load(x + i), f);
    y[i / 8] = eight(f, over);
  }
}

// silu(gate) * up likewise; x as `swiglu` of small.cu has it
extern "C" __global__ void __launch_bounds__(256) gate_eight(const u16* x, uint2* y, float* steps, int inner, int interleaved) {
  extern __shared__ __align__(16) u16 kept[];  // [inner]
  __shared__ float of_warps[8];
  let_next_start();
  wait_for_previous();
  x += (u64)blockIdx.x * 2 * inner;
  y += (u64)blockIdx.x * (inner / 8);
  float f[8], u[8], most = 0.f;
  for (int i = threadIdx.x * 8; i < inner; i += 2048) {
    spread(load(x + (interleaved ? 2 * i : i)), f);
    spread(load(x + (interleaved ? 2 * i + 8 : inner + i)), u);
#pragma unroll
    for (int j = 0; j < 8; j++) f[j] = gated(f[j], u[j]);
    *(uint4*)(kept + i) = gather8(f);
    most = largest(f, most);
  }
  most = all_of<false>(most, of_warps);
  if (threadIdx.x == 0) steps[blockIdx.x] = most / 448.f;
  const float over = most > 0.f ? 448.f / most : 0.f;
  for (int i = threadIdx.x * 8; i < inner; i += 2048) {
    spread(*(const uint4*)(kept + i), f);
    y[i / 8] = eight(f, over);
  }
}
