// What is held in the place of a float: a number, or two of them in bfloat16. How they are read, written, compared, and
// multiplied with as many of a kernel.
#pragma once

#include <cstdint>

#include "vector.h"

namespace {

struct Floats {
  static int64_t terms(int64_t count) { return count; }  // floats that so many numbers take
  template <class V>
  static V all(float x) {
    return ::all<V>(x);
  }
  template <class V>
  static V multiply_add(V x, V w, V sum) {
    return ::multiply_add(x, w, sum);
  }
  template <class V = Vector>
  static V get(const float* from) {
    return load<V>(from);
  }
  static Vector get(const float* from, int64_t count) { return load_part(from, count); }
  static void put(float* to, Vector x) { store(to, x); }
  static void put(float* to, Vector x, int64_t count) { store_part(to, x, count); }
  // A bit for each lane in which something differs; and what a norm gathers of the differences.
  static uint32_t unequal(Vector a, Vector b) { return ::unequal(a, b); }
  template <class Norm>
  static Vector gap(Vector a, Vector b) {
    return Norm::of(a - b);
  }
};

// Where the processor has no products of these, nobody asks for them (`deltajax_pairs`).
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
#define DELTAJAX_PAIRS 1
struct Pairs {
  static int64_t terms(int64_t count) { return (count + 1) / 2; }
  template <class V>
  static V all(float pair) {
    int32_t bits;
    __builtin_memcpy(&bits, &pair, sizeof bits);
    if constexpr (sizeof(V) == sizeof(Vector)) return (V)_mm512_set1_epi32(bits);
    else return (V)_mm256_set1_epi32(bits);
  }
  static Vector multiply_add(Vector x, Vector w, Vector sum) {
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
  }
  static Half multiply_add(Half x, Half w, Half sum) {
    return (Half)_mm256_dpbf16_ps((__m256)sum, (__m256bh)x, (__m256bh)w);
  }
  // Zeros of one sign: what is equal has the same bits.
  static Half rounded(Vector x) { return (Half)_mm512_cvtneps_pbh((__m512)(x + Vector{})); }
  static Vector numbers(Half pairs) {
    return (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)pairs), 16);
  }
  template <class V = Vector>
  static V get(const float* from) {
    if constexpr (sizeof(V) == sizeof(Vector)) return numbers(load<Half>(from));
    else return (V)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
  }
  static Vector get(const float* from, int64_t count) {  // fewer than a vector
    return numbers(half_of(load_part(from, terms(count))));
  }
  static void put(float* to, Vector x) { store(to, rounded(x)); }
  static void put(float* to, Vector x, int64_t count) { store_part(to, rounded(x), terms(count)); }
  static uint32_t unequal(Vector a, Vector b) { return _mm512_cmpneq_epi32_mask((__m512i)a, (__m512i)b); }
  static Vector first(Vector pairs) { return (Vector)_mm512_slli_epi32((__m512i)pairs, 16); }
  static Vector second(Vector pairs) {
    return (Vector)_mm512_and_si512((__m512i)pairs, _mm512_set1_epi32(-65536));
  }
  template <class Norm>
  static Vector gap(Vector a, Vector b) {
    return Norm::join(Norm::of(first(a) - first(b)), Norm::of(second(a) - second(b)));
  }
};
#else
#define DELTAJAX_PAIRS 0
using Pairs = Floats;
#endif

// `work` with one of these.
template <class Work>
auto with_held(bool pairs, const Work& work) {
  return pairs ? work(Pairs()) : work(Floats());
}

}  // namespace
