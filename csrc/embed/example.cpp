// Three tokens of one batch through an adapted matrix: the base, an expert, and another expert.
//
// Prints the instruction set, then the outputs of svf_linear and svf_delta_linear, a token a line.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <vector>

#include "embed/zweave.h"

using namespace zweave::embed;

namespace {

constexpr int64_t kTokens = 3, kIn = 40, kOut = 24, kRank = 24, kSlots = 3;

// Multiples of 1/8 from -1 to 1: any numbers do.
std::vector<float> numbers(int64_t count, int64_t step) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = float(i * step % 17 - 8) / 8;
  return values;
}

// A matrix in kernel order, and the memory that holds it.
struct Weight {
  std::unique_ptr<void, decltype(&std::free)> panels;
  Matrix matrix;

  Weight(const std::vector<float>& values, int64_t rows, int64_t columns)
      : panels(std::aligned_alloc(64, packed_bytes(Dtype::float32, rows, columns)), &std::free),
        matrix(pack(Dtype::float32, values.data(), columns, rows, columns, panels.get())) {}
};

void print(const char* name, const std::vector<float>& y) {
  for (int64_t t = 0; t < kTokens; ++t) {
    std::printf("%s", name);
    for (int64_t m = 0; m < kOut; ++m) std::printf(" %.9g", y[t * kOut + m]);
    std::printf("\n");
  }
}

void run() {
  const Weight w(numbers(kOut * kIn, 3), kOut, kIn);
  const Weight vt(numbers(kRank * kIn, 5), kRank, kIn), u(numbers(kOut * kRank, 7), kOut, kRank);
  const std::vector<float> x = numbers(kTokens * kIn, 11), table = numbers(kSlots * kRank, 13);
  const std::vector<float> bias = numbers(kOut, 2);
  const std::vector<int32_t> slot = {0, 2, 1};

  const Input input{x.data(), kIn, kTokens, kIn};
  const Scales scales{table.data(), kRank, kSlots, kRank, slot.data()};
  std::vector<float> y(kTokens * kOut);
  std::printf("%s\n", instruction_set());
  svf_linear(input, vt.matrix, u.matrix, scales, bias.data(), {y.data(), kOut});
  print("svf_linear", y);
  svf_delta_linear(input, w.matrix, vt.matrix, u.matrix, scales, bias.data(), {y.data(), kOut});
  print("svf_delta_linear", y);
}

}  // namespace

int main() {
  try {
    run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
