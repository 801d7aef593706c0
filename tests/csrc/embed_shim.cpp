// csrc/embed/zweave.h under C names, for tests that call it from Python.
#include <exception>
#include <string>

#include "embed/zweave.h"

using namespace zweave::embed;

namespace {

thread_local std::string message;

// Runs body; the message of what it throws, or null.
template <class Body>
const char* message_of(Body body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace

extern "C" {

int64_t shim_packed_bytes(Dtype dtype, int64_t rows, int64_t columns) {
  return packed_bytes(dtype, rows, columns);
}

const char* shim_instruction_set() { return instruction_set(); }

const char* shim_pack(Matrix* result, Dtype dtype, const void* matrix, int64_t stride, int64_t rows,
                      int64_t columns, void* panels) {
  return message_of([&] { *result = pack(dtype, matrix, stride, rows, columns, panels); });
}

const char* shim_linear(const Input* x, const Matrix* w, const void* bias, const Output* y, int threads) {
  return message_of([&] { linear(*x, *w, bias, *y, threads); });
}

const char* shim_svf_linear(const Input* x, const Matrix* vt, const Matrix* u, const Scales* scale,
                            const void* bias, const Output* y, int threads) {
  return message_of([&] { svf_linear(*x, *vt, *u, *scale, bias, *y, threads); });
}

const char* shim_svf_delta_linear(const Input* x, const Matrix* w, const Matrix* vt, const Matrix* u,
                                  const Scales* delta, const void* bias, const Output* y, int threads) {
  return message_of([&] { svf_delta_linear(*x, *w, *vt, *u, *delta, bias, *y, threads); });
}
}
