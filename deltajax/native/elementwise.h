// Elementwise operations on rows of floats, which compilers turn into vectors.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

// Cephes' expf less 1, of what is nearer to 0 than half of log(2).
inline float exponential_near(float r) {
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * r * r + r;
}

inline float exponential(float x) {  // Cephes' expf: two units in the last place
  const float top = 88.72283f, low = -87.33655f;
  const float y = x > top ? top : x < low ? low : x;
  const float n = std::floor(y * 1.44269504088896341f + 0.5f);
  const float r = y - n * 0.693359375f + n * 2.12194440e-4f;
  const float p = exponential_near(r) + 1.0f;
  const int32_t half = static_cast<int32_t>(n) / 2, rest = static_cast<int32_t>(n) - half;  // 2^n may leave the exponent
  int32_t a = (half + 127) << 23, b = (rest + 127) << 23;
  float two_a, two_b;
  std::memcpy(&two_a, &a, 4);
  std::memcpy(&two_b, &b, 4);
  const float found = p * two_a * two_b;
  return x > top ? std::numeric_limits<float>::infinity() : x < low ? 0.0f : x == x ? found : x;
}

// Cephes' logf; of numbers too small to be normal that of the least normal one.
inline float logarithm(float x) {
  const float least = std::numeric_limits<float>::min(), infinity = std::numeric_limits<float>::infinity();
  const float y = x > least ? x : least;
  int32_t bits;
  std::memcpy(&bits, &y, 4);
  const int32_t mantissa = (bits & 0x7fffff) | 0x3f000000;
  float m;
  std::memcpy(&m, &mantissa, 4);
  const bool low = m < 0.707106781186547524f;
  const float e = static_cast<float>((bits >> 23) - 126 - low);
  m = (low ? m + m : m) - 1.0f;
  const float s = m * m;
  float p = 7.0376836292e-2f;
  for (float c : {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f,
                  2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f})
    p = p * m + c;
  const float found = m + (p * m * s - 2.12194440e-4f * e - 0.5f * s) + 0.693359375f * e;
  return x == infinity ? x : x > 0 ? found : x == 0 ? -infinity : std::numeric_limits<float>::quiet_NaN();
}

inline float logistic(float x) { return 1.0f / (1.0f + exponential(-x)); }

// Cephes' erff, as XLA has it.
inline float error_near(float x) {
  const float s = x * x;
  float p = 7.853861353153693e-5f;
  for (float c : {-8.010193625184903e-4f, 5.188327685732524e-3f, -2.685381193529856e-2f, 1.128358514861418e-1f,
                  -3.761262582423300e-1f, 1.128379165726710f})
    p = p * s + c;
  return x * p;
}

// 1 - erf, from 1 on, and of negative numbers 1 + erf.
inline float error_far(float x) {
  const float t = std::fabs(x), q = 1.0f / t, s = q * q;
  float p = 2.326819970068386e-2f, r = -1.047766399936249e+1f;
  for (float c : {-1.387039388740657e-1f, 3.687424674597105e-1f, -5.824733027278666e-1f, 6.210004621745983e-1f,
                  -4.944515323274145e-1f, 3.404879937665872e-1f, -2.741127028184656e-1f, 5.638259427386472e-1f})
    p = p * s + c;
  for (float c : {1.297719955372516e+1f, -7.495518717768503f, 2.921019019210786f, -1.015265279202700f,
                  4.218463358204948e-1f, -2.820767439740514e-1f, 5.641895067754075e-1f})
    r = r * s + c;
  const float tail = exponential(-x * x) * q * (t < 2.0f ? p : r);
  return x < 0 ? 2.0f - tail : tail;
}

enum Code : int64_t {
  ADD, SUBTRACT, MULTIPLY, DIVIDE, GREATER, SMALLER, NEGATE, ABSOLUTE, SQUARE, ROOT, INVERSE_ROOT, EXPONENTIAL, LOGISTIC,
  HYPERBOLIC, ERROR, ERROR_LEFT, GT, GE, LT, LE, EQ, NE, SELECT, CLAMP, COPY,
  LOGARITHM, LOGARITHM_OF_MORE, EXPONENTIAL_LESS
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
    case ERROR: return row1(o, a, n, [](float x) { return std::fabs(x) > 1.0f ? 1.0f - error_far(x) : error_near(x); });
    case ERROR_LEFT: return row1(o, a, n, [](float x) {
      return std::fabs(x) > 1.0f ? error_far(x) : 1.0f - error_near(x);
    });
    case LOGARITHM: return row1(o, a, n, logarithm);
    case LOGARITHM_OF_MORE: return row1(o, a, n, [](float x) {  // of 1 + x; Kahan's way to be exact near 0
      const float y = 1.0f + x, away = y - 1.0f;
      return away == 0.0f ? x : away == x ? logarithm(y) : logarithm(y) * (x / away);
    });
    case EXPONENTIAL_LESS: return row1(o, a, n, [](float x) {
      return std::fabs(x) < 0.34f ? exponential_near(x) : exponential(x) - 1.0f;
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
