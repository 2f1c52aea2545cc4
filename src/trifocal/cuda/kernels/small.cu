// ---- root mean square norm: a block of 256 a row; rounds before the weight is applied, as the reference does
extern "C" __global__ void __launch_bounds__(256) rms_norm(const u16* x, const u16* weight, u16* y, int hidden, float eps) {
  __shared__ float sums[8];
  let_next_start();
  wait_for_previous();
  x += (u64)blockIdx.x * hidden;
  y += (u64)blockIdx.x * hidden;
  float sum = 0.f, f[8], w[8];
  for (int i = threadIdx.x * 8; i < hidden; i += 2048) {
    spread(load(x + i), f);
#pragma unroll
    for (int j = 0; j < 8; j++) sum += f[j] * f[j];
  }
  sum = warp_sum(sum);
  if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = sum;
  __syncthreads();
  sum = 0.f;
#pragma unroll
  for (int j = 0; j < 8; j++) sum += sums[j];
  const float r = rsqrtf(sum / hidden + eps);
  for (int i = threadIdx.x * 8; i < hidden; i += 2048) {
    spread(load(x + i), f);
    spread(load(weight + i), w);
#pragma unroll
    for (int j = 0; j < 8; j++) f[j] = wide(narrow(f[j] * r)) * w[j];
    *(uint4*)(y + i) = gather8(f);
  }
}

// ---- silu(gate) * up. gate and up stand side by side [rows, 2, inner], or interleaved by 8 [rows, inner / 8, 2, 8]
extern "C" __global__ void __launch_bounds__(256) swiglu(const u16* x, u16* y, int inner, int interleaved) {
  let_next_start();
  wait_for_previous();
  const int i = (blockIdx.x * 256 + threadIdx.x) * 8;
  if (i >= inner) return;
  x += (u64)blockIdx.y * 2 * inner;
  float g[8], u[8];
  spread(load(x + (interleaved ? 2 * i : i)), g);
  spread(load(x + (interleaved ? 2 * i + 8 : inner + i)), u);
#pragma unroll
  for (int j = 0; j < 8; j++) g[j] = gated(g[j], u[j]);
  *(uint4*)(y + (u64)blockIdx.y * inner + i) = gather8(g);
}

// ---- queries and keys are rotated (and normalised where the family does), keys and values go to their slots.
// qkv [rows, heads + 2 * kv_heads, dim]; a warp a head; queries and keys are written back where they stood.
//   BYTES  1: keys and values are kept as bytes, each head with a scale [slots, kv_heads, 2], as `Pool.write` has them
#ifndef BYTES
#define BYTES 0
#endif
DEV void keep(const u16* x, char* to, u16* scale, int dim, int lane) {
  float most = 0.f;
  for (int i = lane * 2; i < dim; i += 64) {
    const u32 v = *(const u32*)(x + i);
    most = fmaxf(most, fmaxf(fabsf(wide((u16)v)), fabsf(wide((u16)(v >> 16)))));
  }
#pragma unroll
  for (int o = 16; o; o >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, o));
  u16 half;
  asm("cvt.rn.f16.f32 %0,%1;" : "=h"(half) : "f"(most / 127.f));
  const float own = half_wide(half), over = own > 0.f ? 1.f / own : 0.f;
  auto byte = [&](u16 v) { return (u16)(min(127, max(-127, __float2int_rn(wide(v) * over))) & 0xff); };
  for (int i = lane * 2; i < dim; i += 64) {
    const u32 v = *(const u32*)(x + i);
    *(u16*)(to + i) = (u16)(byte((u16)v) | byte((u16)(v >> 16)) << 8);
  }
  if (lane == 0) *scale = half;
}
extern "C" __global__ void __launch_bounds__(128) rotate(
    u16* qkv, u16* keys, u16* values, u16* scales, const int* positions, const int* slots, const float* table,
    const u16* q_norm, const u16* k_norm, int heads, int kv_heads, int dim, int rotated, float eps) {
  let_next_start();
  wait_for_previous();
  const int head = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31, row = blockIdx.y;
  if (head >= heads + 2 * kv_heads) return;
  u16* x = qkv + ((u64)row * (heads + 2 * kv_heads) + head) * dim;
  const long long slot = slots[row];
  u16* to = x;
  if (head >= heads) {
    if (slot < 0) return;  // a row that only fills the batch
#if BYTES
    if (head >= heads + kv_heads) {
      const u64 at = slot * kv_heads + head - heads - kv_heads;
      keep(x, (char*)values + at * dim, scales + at * 2 + 1, dim, lane);
      return;
    }
  }
#else
    const int own = head - heads;
    to = own < kv_heads ? keys + (slot * kv_heads + own) * dim : values + (slot * kv_heads + own - kv_heads) * dim;
  }
  if (head >= heads + kv_heads) {
    for (int i = lane * 2; i < dim; i += 64) *(u32*)(to + i) = *(const u32*)(x + i);
    return;
  }
#endif
  const u16* weight = head < heads ? q_norm : k_norm;
  float r = 0.f;
  if (weight) {
    for (int i = lane; i < dim; i += 32) r += wide(x[i]) * wide(x[i]);
    r = rsqrtf(warp_sum(r) / dim + eps);
  }
  const int half = rotated / 2;
  const float* angle = table + (u64)positions[row] * rotated;  // cosines, then sines
  const float *cosines = angle, *sines = angle + half;
  auto turned = [&](float a, float b, int i, float& first, float& second) {
    if (weight) {
      a = wide(narrow(wide(narrow(a * r)) * wide(weight[i])));
      b = wide(narrow(wide(narrow(b * r)) * wide(weight[i + half])));
    }
    first = a * cosines[i] - b * sines[i], second = b * cosines[i] + a * sines[i];
  };
  if (half % 2 == 0) {  // two by two
    for (int i = lane * 2; i < half; i += 64) {
      const u32 a = *(const u32*)(x + i), b = *(const u32*)(x + i + half);
      float first[2], second[2];
      turned(wide((u16)a), wide((u16)b), i, first[0], second[0]);
      turned(wide((u16)(a >> 16)), wide((u16)(b >> 16)), i + 1, first[1], second[1]);
      *(u32*)(x + i) = *(u32*)(to + i) = pair(first[0], first[1]);
      *(u32*)(x + i + half) = *(u32*)(to + i + half) = pair(second[0], second[1]);
    }
  } else {
    for (int i = lane; i < half; i += 32) {
      float first, second;
      turned(wide(x[i]), wide(x[i + half]), i, first, second);
      x[i] = to[i] = narrow(first), x[i + half] = to[i + half] = narrow(second);
    }
  }
  for (int i = rotated + lane; i < dim; i += 32) x[i] = to[i] = weight ? narrow(wide(narrow(wide(x[i]) * r)) * wide(weight[i])) : x[i];
#if BYTES
  if (head < heads) return;
  __syncwarp();
  const u64 at = slot * kv_heads + head - heads;
  keep(x, (char*)keys + at * dim, scales + at * 2, dim, lane);
#endif
}


// ---- what neighbouring rows see, end to end: keys and values of the positions in front, as they are kept in the slots
// `before`, then those of the rows themselves, the values behind the keys, rows `stride` numbers apart. Out [front + rows,
// kv_heads, dim] twice; a block 1,024 numbers of a row. Rows are counted by x: the others end at 65,535.
extern "C" __global__ void __launch_bounds__(128) line_up(
    const u16* own, const u16* keys, const u16* values, const u16* scales, const int* before, u16* all_keys,
    u16* all_values, int front, int stride, int kv_heads, int dim) {
  let_next_start();
  wait_for_previous();
  const int width = kv_heads * dim, row = blockIdx.x;
  int i = (blockIdx.y * 128 + threadIdx.x) * 8;
  if (i >= 2 * width) return;
  if (row >= front) {
    uint4* to = (uint4*)(i < width ? all_keys + (u64)row * width + i : all_values + (u64)row * width + i - width);
    *to = load(own + (u64)(row - front) * stride + i);
    return;
  }
  const bool of_values = i >= width;
  if (of_values) i -= width;
  uint4* to = (uint4*)((of_values ? all_values : all_keys) + (u64)row * width + i);
  const u64 slot = before[row];
#if BYTES
  const float scale = half_wide(scales[(slot * kv_heads + i / dim) * 2 + of_values]);
  const signed char* from = (const signed char*)(of_values ? values : keys) + slot * width + i;
  float f[8];
#pragma unroll
  for (int j = 0; j < 8; j++) f[j] = from[j] * scale;
  *to = gather8(f);
#else
  *to = load((of_values ? values : keys) + slot * width + i);
#endif
}
