// Vectors of floats, as wide as this processor has them (GCC's and Clang's vector extensions).
#pragma once

#include <cstdint>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

// Lanes of a vector, and the block of results that one pass of the convolution keeps in registers: `PIXELS` positions x
// up to two vectors of channels.
#if defined(__AVX512F__)
constexpr int LANES = 16, PIXELS = 8;
#elif defined(__AVX__)
constexpr int LANES = 8, PIXELS = 4;
#else
constexpr int LANES = 4, PIXELS = 8;
#endif
constexpr int PANEL = 2 * LANES;

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

// For few channels: a processor does two of half the width at a time. The narrowest vectors have no halves.
constexpr int HALF = LANES > 4 ? LANES / 2 : LANES;
typedef float Half __attribute__((vector_size(HALF * sizeof(float))));

template <class V>
struct Unaligned {
  typedef float type __attribute__((vector_size(sizeof(V)), aligned(4), may_alias));
};

template <class V = Vector>
V all(float x) {
  return x - V{};  // and not +, for -0 + 0 is 0
}

inline Half half_of(Vector x) {  // its first lanes
  Half found;
  __builtin_memcpy(&found, &x, sizeof found);
  return found;
}

// x * w + sum, rounded once where the processor can, everywhere or nowhere: left to themselves compilers do it in some
// blocks and not in others, and then it makes a difference where a position is computed. They are told not to (`FLAGS`).
inline Vector multiply_add(Vector x, Vector w, Vector sum) {
#if defined(__AVX512F__)
  return (Vector)_mm512_fmadd_ps((__m512)x, (__m512)w, (__m512)sum);
#elif defined(__AVX__) && defined(__FMA__)
  return (Vector)_mm256_fmadd_ps((__m256)x, (__m256)w, (__m256)sum);
#else
  return x * w + sum;
#endif
}
#if defined(__AVX__)
inline Half multiply_add(Half x, Half w, Half sum) {
#if defined(__AVX512F__)
  return (Half)_mm256_fmadd_ps((__m256)x, (__m256)w, (__m256)sum);
#elif defined(__FMA__)
  return (Half)_mm_fmadd_ps((__m128)x, (__m128)w, (__m128)sum);
#else
  return x * w + sum;
#endif
}
#endif

template <class V = Vector>
V load(const float* from) {
  return *reinterpret_cast<const typename Unaligned<V>::type*>(from);
}
template <class V>
void store(float* to, V value) {
  *reinterpret_cast<typename Unaligned<V>::type*>(to) = value;
}

// The first `count` lanes, fewer than all; 0 in the others. What lies behind them is not touched.
inline Vector load_part(const float* from, int64_t count) {
#if defined(__AVX512F__)
  return (Vector)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
#elif defined(__AVX__)
  static const int32_t ones[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return (Vector)_mm256_maskload_ps(from, _mm256_loadu_si256((const __m256i*)(ones + LANES - count)));
#else
  Vector found{};
  for (int64_t lane = 0; lane < count; ++lane) found[lane] = from[lane];
  return found;
#endif
}
inline void store_part(float* to, Vector value, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), (__m512)value);
#elif defined(__AVX__)
  static const int32_t ones[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1};
  _mm256_maskstore_ps(to, _mm256_loadu_si256((const __m256i*)(ones + LANES - count)), (__m256)value);
#else
  for (int64_t lane = 0; lane < count; ++lane) to[lane] = value[lane];
#endif
}
#if defined(__AVX512F__)
inline void store_part(float* to, Half value, int64_t count) {
  store_part(to, (Vector)_mm512_castps256_ps512((__m256)value), count);
}
#elif defined(__AVX__)
inline void store_part(float* to, Half value, int64_t count) {
  store_part(to, (Vector)_mm256_castps128_ps256((__m128)value), count);
}
#endif

// A bit for each lane that differs; NaN does from everything.
inline uint32_t unequal(Vector a, Vector b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NEQ_UQ);
#elif defined(__AVX__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_NEQ_UQ));
#else
  const auto apart = a != b;
  uint32_t bits = 0;
  for (int lane = 0; lane < LANES; ++lane) bits |= (apart[lane] & 1u) << lane;
  return bits;
#endif
}

// A bit for each lane that is not at most `limit`; NaN is not.
inline uint32_t above(Vector a, float limit) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)all(limit), _CMP_NLE_UQ);
#elif defined(__AVX__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)all(limit), _CMP_NLE_UQ));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < LANES; ++lane) bits |= uint32_t{!(a[lane] <= limit)} << lane;
  return bits;
#endif
}

// Lanes whose number has the bit AWAY from `b`, the others from `a`.
template <int AWAY>
Vector mixed(Vector a, Vector b) {
#if defined(__AVX512F__)
  constexpr int every = 0xFFFF / ((1 << AWAY) + 1) << AWAY;
  return (Vector)_mm512_mask_blend_ps((__mmask16)every, (__m512)a, (__m512)b);
#elif defined(__AVX__)
  constexpr int every = 0xFF / ((1 << AWAY) + 1) << AWAY;
  return (Vector)_mm256_blend_ps((__m256)a, (__m256)b, every);
#else
  for (int lane = 0; lane < LANES; ++lane)
    if (lane & AWAY) a[lane] = b[lane];
  return a;
#endif
}

// In each lane what was in the lane `from(lane)`.
template <class From>
Vector permuted(Vector x, From from) {
#if defined(__AVX512F__)
  return (Vector)_mm512_permutexvar_ps(
      _mm512_setr_epi32(from(0), from(1), from(2), from(3), from(4), from(5), from(6), from(7), from(8), from(9),
                        from(10), from(11), from(12), from(13), from(14), from(15)), (__m512)x);
#elif defined(__AVX2__)
  return (Vector)_mm256_permutevar8x32_ps((__m256)x, _mm256_setr_epi32(from(0), from(1), from(2), from(3), from(4),
                                                                      from(5), from(6), from(7)));
#else
  Vector found{};
  for (int lane = 0; lane < LANES; ++lane) found[lane] = x[from(lane)];
  return found;
#endif
}

// In each lane what was AWAY lanes from it, up or down: pairs of groups of so many change places.
template <int AWAY>
Vector exchanged(Vector x) {
  return permuted(x, [](int lane) { return lane ^ AWAY; });
}

// Groups of GROUP lanes take turns: the first lane of each, then the second.
template <int GROUP>
Vector in_turn(Vector x) {
  constexpr int groups = LANES / GROUP;
  return permuted(x, [](int lane) { return lane % groups * GROUP + lane / groups; });
}

// A handful of floats; `memcpy` is called for a count that is not known, and costs more than it copies.
inline void copy(float* to, const float* from, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(to + i, load(from + i));
  if (i < count) store_part(to + i, load_part(from + i, count - i), count - i);
}

// A tile in memory, or nothing.
struct View {
  float* data;
  int64_t row, col;  // floats from one row or column to the next
  View at(int64_t r, int64_t c, int64_t channel) const {  // from there on
    return {data ? data + r * row + c * col + channel : nullptr, row, col};
  }
};

}  // namespace
