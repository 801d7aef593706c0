// Rows of any width, a vector at a time.
#pragma once

#include "cpu/simd/kernels.h"

namespace zweave {
namespace {

// Calls body(column, n) for each vector of a row, n < Simd::width only at the end.
template <class Body>
void for_vectors(int64_t width, Body body) {
  int64_t column = 0;
  for (; column + Simd::width <= width; column += Simd::width) body(column, int64_t(Simd::width));
  if (column < width) body(column, width - column);
}

template <class T>
Simd::F load(const T* at, int64_t n) {
  return n == Simd::width ? Simd::load(at) : Simd::load(at, n);
}

template <class T>
void store(T* at, Simd::F x, int64_t n) {
  if (n == Simd::width) return Simd::store(at, x);
  Simd::store(at, x, n);
}

}  // namespace
}  // namespace zweave
