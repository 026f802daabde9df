// Vectors of floats, as wide as this processor has them (GCC's and Clang's vector extensions).
#pragma once

#include <cstdint>

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
typedef float Loose __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Loose*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Loose*>(to) = value; }

// A tile in memory.
struct View {
  float* data;
  int64_t row, col;  // floats from one row or column to the next
};

}  // namespace
