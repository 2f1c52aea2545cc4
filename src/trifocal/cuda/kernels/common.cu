// What all kernels share; put in front of each of them. For NVIDIA cards from sm_80 on, compiled at run time by NVRTC,
// without any header; whoever launches them says with which macros.
//
//   BF      1: values are bfloat16, 0: float16
//   every kernel may be launched as a programmatic dependent: it waits for the one before it before it reads a value
//   that a kernel writes; weights are read before that.
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;
#define DEV static __device__ __forceinline__
#ifndef BF
#define BF 1
#endif

#if BF
#define MAGIC 0x43004300u  // 128 in both halves: a nibble in the low bits of the fraction is added to it
#define ONES 0x3f803f80u
#define KIND "bf16"
#else
#define MAGIC 0x64006400u  // 1024
#define ONES 0x3c003c00u
#define KIND "f16"
#endif

DEV float wide(u16 v) {
#if BF
  return __uint_as_float((u32)v << 16);
#else
  float f;
  asm("cvt.f32.f16 %0,%1;" : "=f"(f) : "h"(v));
  return f;
#endif
}
DEV u16 narrow(float f) {
  u16 r;
  asm("cvt.rn." KIND ".f32 %0,%1;" : "=h"(r) : "f"(f));
  return r;
}
DEV float half_wide(u32 h) {
  float f;
  asm("{.reg .b16 l,h; mov.b32 {l,h},%1; cvt.f32.f16 %0,l;}" : "=f"(f) : "r"(h));
  return f;
}
DEV u32 pair(float low, float high) { return (u32)narrow(low) | (u32)narrow(high) << 16; }
DEV void spread(const uint4& v, float (&f)[8]) {
  const u32 w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; i++) f[2 * i] = wide((u16)w[i]), f[2 * i + 1] = wide((u16)(w[i] >> 16));
}
DEV uint4 gather8(const float (&f)[8]) {
  return make_uint4(pair(f[0], f[1]), pair(f[2], f[3]), pair(f[4], f[5]), pair(f[6], f[7]));
}
DEV uint4 load(const void* p) {  // values that another kernel wrote
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3},[%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}
DEV u32 load_word(const void* p) {
  u32 v;
  asm volatile("ld.global.u32 %0,[%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
DEV uint2 eight(const char* p) {
  uint2 v;
  asm volatile("ld.global.v2.u32 {%0,%1},[%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
  return v;
}
// bytes as floats: 2^23 and a byte more than -128 in the low bits of the fraction, and that taken off
DEV void spread(const uint2& v, float (&f)[8]) {
  const u32 w[2] = {v.x ^ 0x80808080u, v.y ^ 0x80808080u};
#pragma unroll
  for (int i = 0; i < 8; i++) f[i] = __uint_as_float(__byte_perm(w[i / 4], 0x4b000000u, 0x7440 + i % 4)) - 8388736.f;
}
DEV uint4 eight(const u16* p) { return load(p); }
DEV uint4 load_shared(u32 p) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3},[%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(p) : "memory");
  return v;
}
DEV void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
DEV void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// 16 rows of a times 8 columns of b, onto c
DEV void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32." KIND "." KIND ".f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEV float warp_sum(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
  return v;
}
// silu(gate) * up, rounded in between as the reference does
DEV float gated(float gate, float up) { return wide(narrow(gate / (1.f + __expf(-gate)))) * up; }

// ---- four-bit levels in registers
DEV u32 fma2(u32 a, u32 b, u32 c) {
  u32 r;
  asm("fma.rn." KIND "x2 %0,%1,%2,%3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
DEV u32 level(u32 q, u32 minus) {  // two nibbles as values less ``minus``, exactly
  u32 r;
  asm("lop3.b32 %0,%1,%2,%3,0xea;" : "=r"(r) : "r"(q), "r"(0x000f000fu), "r"(MAGIC));
  return fma2(r, ONES, minus);
}
#define BASE (MAGIC | 0x80008000u)  // what a level without a zero is less by
DEV u32 word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }
#if __CUDA_ARCH__ >= 900
DEV void wait(u32 barrier, u32 parity) {
  u32 there;
  do {
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p,[%1],%2; selp.u32 %0,1,0,p;}" : "=r"(there) : "r"(barrier), "r"(parity) : "memory");
  } while (!there);
}
#endif
