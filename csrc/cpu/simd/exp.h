// exp to about one unit in the last place.
#pragma once

namespace zweave {
namespace {

// Cody-Waite reduction to |r| <= ln(2) / 2, then a polynomial of degree 6 (Cephes expf's coefficients). Zero
// below -104, infinity above 88.73, NaN for NaN.
inline Simd::F exp(Simd::F x) {
  // NaN passes: min and max return their second operand then.
  x = Simd::max(Simd::set1(-110.0f), Simd::min(Simd::set1(90.0f), x));
  const Simd::F n = Simd::round(Simd::mul(x, Simd::set1(1.44269504088896341f)));
  Simd::F r = Simd::fma(n, Simd::set1(-0.693359375f), x);
  r = Simd::fma(n, Simd::set1(2.12194440e-4f), r);
  Simd::F p = Simd::set1(1.9875691500e-4f);
  p = Simd::fma(p, r, Simd::set1(1.3981999507e-3f));
  p = Simd::fma(p, r, Simd::set1(8.3334519073e-3f));
  p = Simd::fma(p, r, Simd::set1(4.1665795894e-2f));
  p = Simd::fma(p, r, Simd::set1(1.6666665459e-1f));
  p = Simd::fma(p, r, Simd::set1(5.0000001201e-1f));
  p = Simd::add(Simd::fma(Simd::mul(r, r), p, r), Simd::set1(1.0f));
  return Simd::scale_power(p, n);
}

}  // namespace
}  // namespace zweave
