// What vision transformers need beside products and attention. Rows are of a multiple of 8 values.
//   ACT    what `activate` computes: 0 quick_gelu, 1 gelu, 2 gelu by tanh
//   PATCH  side of a patch, for `patches`
#ifndef ACT
#define ACT 0
#endif
#ifndef PATCH
#define PATCH 14
#endif

// ---- patches of pictures [images, 3, width, width] as rows [images * side * side, columns], in the order of a
// convolution's weights; columns behind those are 0. A block is a patch
extern "C" __global__ void __launch_bounds__(256) patches(const u16* x, u16* y, int side, int width, int columns) {
  let_next_start();
  wait_for_previous();
  const int row = blockIdx.x / side, column = blockIdx.x % side;
  x += (u64)blockIdx.y * 3 * width * width + (row * width + column) * PATCH;
  y += ((u64)blockIdx.y * side * side + blockIdx.x) * columns;
  for (int i = threadIdx.x; i < columns; i += 256) {
    const int line = i / PATCH, channel = line / PATCH;
    y[i] = channel < 3 ? x[(channel * width + line % PATCH) * width + i % PATCH] : 0;
  }
}

// ---- layer norm of a row by its block; each thread has 8 values of the row, those behind its end are 0 and not written.
// Mean and deviation are float32, one after the other, and all is rounded once
DEV float block_sum(float v, float* sums) {  // ``sums`` is for this call alone
  v = warp_sum(v);
  if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = v;
  __syncthreads();
  v = 0.f;
  for (int i = 0; i < blockDim.x >> 5; i++) v += sums[i];
  return v;
}
DEV void norm8(float (&f)[8], bool mine, const uint4& weight, const uint4& bias, u16* y, int hidden, float eps) {
  __shared__ float sums[2][32];
  float sum = 0.f, w[8], b[8];
#pragma unroll
  for (int j = 0; j < 8; j++) sum += f[j];
  const float mean = block_sum(sum, sums[0]) / hidden;
  sum = 0.f;
#pragma unroll
  for (int j = 0; j < 8; j++) f[j] = mine ? f[j] - mean : 0.f, sum += f[j] * f[j];
  const float r = rsqrtf(block_sum(sum, sums[1]) / hidden + eps);
  if (!mine) return;
  spread(weight, w);
  spread(bias, b);
#pragma unroll
  for (int j = 0; j < 8; j++) f[j] = f[j] * r * w[j] + b[j];
  *(uint4*)y = gather8(f);
}

// ---- rows with what is added to them, and their norm. Without ``added`` nothing is, without ``y`` no norm is made
extern "C" __global__ void __launch_bounds__(1024) add_norm(
    const u16* x, const u16* added, const u16* weight, const u16* bias, u16* sum, u16* y, int hidden, float eps) {
  let_next_start();
  const int i = threadIdx.x * 8;
  const bool mine = i < hidden;
  const u64 at = (u64)blockIdx.x * hidden + i;
  uint4 w = make_uint4(0, 0, 0, 0), b = w;
  if (mine && y) w = load(weight + i), b = load(bias + i);
  wait_for_previous();
  float f[8] = {};
  if (mine) {
    spread(load(x + at), f);
    if (added) {
      float a[8];
      spread(load(added + at), a);
#pragma unroll
      for (int j = 0; j < 8; j++) f[j] = wide(narrow(f[j] + a[j]));
      *(uint4*)(sum + at) = gather8(f);
    }
  }
  if (y) norm8(f, mine, w, b, y + at, hidden, eps);
}

// ---- the first rows of a tower: patches, behind the class token where there is one, at their places; and their norm
extern "C" __global__ void __launch_bounds__(1024) begin(
    const u16* patches, const u16* first, const u16* places, const u16* weight, const u16* bias, u16* sum, u16* y,
    int rows, int hidden, float eps) {
  let_next_start();
  const int i = threadIdx.x * 8, row = blockIdx.x % rows, ahead = first != nullptr;
  const bool mine = i < hidden;
  const u64 at = (u64)blockIdx.x * hidden + i;
  uint4 w = make_uint4(0, 0, 0, 0), b = w;
  if (mine && y) w = load(weight + i), b = load(bias + i);
  wait_for_previous();
  float f[8] = {}, place[8];
  if (mine) {
    const u64 patch = (u64)(blockIdx.x / rows) * (rows - ahead) + row - ahead;
    spread(load(row < ahead ? first + i : patches + patch * hidden + i), f);
    spread(load(places + (u64)row * hidden + i), place);
#pragma unroll
    for (int j = 0; j < 8; j++) f[j] = wide(narrow(f[j] + place[j]));
    *(uint4*)(sum + at) = gather8(f);
  }
  if (y) norm8(f, mine, w, b, y + at, hidden, eps);
}

// ---- an activation where its input stands, computed in float32 and rounded once; a thread has two groups of 8
DEV float activated(float x) {
#if ACT == 0
  return __fdividef(x, 1.f + __expf(-1.702f * x));
#elif ACT == 1
  return 0.5f * x * (1.f + erff(x * 0.70710678f));
#else  // (1 + tanh(u)) / 2 is the sigmoid of 2u
  return __fdividef(x, 1.f + __expf(-1.59576912f * (x + 0.044715f * x * x * x)));
#endif
}
extern "C" __global__ void __launch_bounds__(256) activate(u16* x, int groups) {
  let_next_start();
  wait_for_previous();
  const int first = blockIdx.x * 512 + threadIdx.x;
  uint4 v[2];
#pragma unroll
  for (int k = 0; k < 2; k++)
    if (first + 256 * k < groups) v[k] = load(x + (u64)(first + 256 * k) * 8);
#pragma unroll
  for (int k = 0; k < 2; k++) {
    if (first + 256 * k >= groups) return;
    float f[8];
    spread(v[k], f);
#pragma unroll
    for (int j = 0; j < 8; j++) f[j] = activated(f[j]);
    *(uint4*)(x + (u64)(first + 256 * k) * 8) = gather8(f);
  }
}
