// Elementwise operations on rows of floats, which compilers turn into vectors.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

inline float exponential(float x) {  // Cephes' expf: two units in the last place
  const float top = 88.72283f, low = -87.33655f;
  const float y = x > top ? top : x < low ? low : x;
  const float n = std::floor(y * 1.44269504088896341f + 0.5f);
  const float r = y - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t half = static_cast<int32_t>(n) / 2, rest = static_cast<int32_t>(n) - half;  // 2^n may leave the exponent
  int32_t a = (half + 127) << 23, b = (rest + 127) << 23;
  float two_a, two_b;
  std::memcpy(&two_a, &a, 4);
  std::memcpy(&two_b, &b, 4);
  const float found = p * two_a * two_b;
  return x > top ? std::numeric_limits<float>::infinity() : x < low ? 0.0f : x == x ? found : x;
}

inline float logistic(float x) { return 1.0f / (1.0f + exponential(-x)); }

enum Code : int64_t {
  ADD, SUBTRACT, MULTIPLY, DIVIDE, GREATER, SMALLER, NEGATE, ABSOLUTE, SQUARE, ROOT, INVERSE_ROOT, EXPONENTIAL, LOGISTIC,
  HYPERBOLIC, GT, GE, LT, LE, EQ, NE, SELECT, CLAMP, COPY
};

template <class F>
void row1(float* o, const float* a, int64_t n, F f) {
  for (int64_t i = 0; i < n; ++i) o[i] = f(a[i]);
}
template <class F>
void row2(float* o, const float* a, const float* b, int64_t n, F f) {
  for (int64_t i = 0; i < n; ++i) o[i] = f(a[i], b[i]);
}

void elementwise(int64_t code, float* o, const float* a, const float* b, const float* c, int64_t n) {
  switch (code) {
    case ADD: return row2(o, a, b, n, [](float x, float y) { return x + y; });
    case SUBTRACT: return row2(o, a, b, n, [](float x, float y) { return x - y; });
    case MULTIPLY: return row2(o, a, b, n, [](float x, float y) { return x * y; });
    case DIVIDE: return row2(o, a, b, n, [](float x, float y) { return x / y; });
    case GREATER: return row2(o, a, b, n, [](float x, float y) { return (x >= y) | (x != x) ? x : y; });
    case SMALLER: return row2(o, a, b, n, [](float x, float y) { return (x <= y) | (x != x) ? x : y; });
    case NEGATE: return row1(o, a, n, [](float x) { return -x; });
    case ABSOLUTE: return row1(o, a, n, [](float x) { return std::fabs(x); });
    case SQUARE: return row1(o, a, n, [](float x) { return x * x; });
    case ROOT: return row1(o, a, n, [](float x) { return std::sqrt(x); });
    case INVERSE_ROOT: return row1(o, a, n, [](float x) { return 1.0f / std::sqrt(x); });
    case EXPONENTIAL: return row1(o, a, n, exponential);
    case LOGISTIC: return row1(o, a, n, logistic);
    case HYPERBOLIC: return row1(o, a, n, [](float x) {
      const float t = std::fabs(x), s = x * x;
      const float small = x + x * s * (-0.333332819422f + s * (0.133314422036f + s * (-0.0537397155531f + s * (0.0206390887954f + s * -0.00570498872745f))));
      const float large = 1.0f - 2.0f / (1.0f + exponential(2.0f * t));
      return t < 0.625f ? small : x < 0 ? -large : large;
    });
    case GT: return row2(o, a, b, n, [](float x, float y) { return x > y ? 1.0f : 0.0f; });
    case GE: return row2(o, a, b, n, [](float x, float y) { return x >= y ? 1.0f : 0.0f; });
    case LT: return row2(o, a, b, n, [](float x, float y) { return x < y ? 1.0f : 0.0f; });
    case LE: return row2(o, a, b, n, [](float x, float y) { return x <= y ? 1.0f : 0.0f; });
    case EQ: return row2(o, a, b, n, [](float x, float y) { return x == y ? 1.0f : 0.0f; });
    case NE: return row2(o, a, b, n, [](float x, float y) { return x != y ? 1.0f : 0.0f; });
    case SELECT:
      for (int64_t i = 0; i < n; ++i) o[i] = a[i] != 0.0f ? c[i] : b[i];
      return;
    case CLAMP:  // least, value, most
      for (int64_t i = 0; i < n; ++i) {
        const float low = (a[i] >= b[i]) | (a[i] != a[i]) ? a[i] : b[i];
        o[i] = (low <= c[i]) | (low != low) ? low : c[i];
      }
      return;
    default:
      std::memmove(o, a, n * sizeof(float));
  }
}

}  // namespace
