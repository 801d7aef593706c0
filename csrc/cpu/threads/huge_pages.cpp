#include "cpu/threads/huge_pages.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace zweave {
namespace {

constexpr int64_t kPage = 2 << 20;
// Memory that is never written costs nothing: a stretch may be larger than what is needed of it.
constexpr int64_t kStretch = 64 << 20;
constexpr int64_t kAlignment = 64;

constexpr int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// Fresh from the system, so that it is zero: what malloc gives may have been somebody's before.
class Stretch {
 public:
  explicit Stretch(int64_t bytes) : size_(round_up(std::max(bytes, kStretch), kPage)) {
#ifdef __linux__
    void* mapped = mmap(nullptr, mapped_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK(mapped != MAP_FAILED, "no memory for ", bytes, " bytes of weights or cache");
    memory_ = static_cast<char*>(mapped);
    data_ = reinterpret_cast<char*>(round_up(reinterpret_cast<int64_t>(mapped), kPage));
    // Where it is refused, small pages do.
    madvise(data_, size_, MADV_HUGEPAGE);
#else
    memory_ = data_ = static_cast<char*>(std::calloc(size_, 1));
    TORCH_CHECK(data_, "no memory for ", bytes, " bytes of weights or cache");
#endif
  }
  ~Stretch() {
#ifdef __linux__
    munmap(memory_, mapped_bytes());
#else
    std::free(memory_);
#endif
  }
  Stretch(const Stretch&) = delete;
  Stretch& operator=(const Stretch&) = delete;

  // Null if it is full.
  void* take(int64_t bytes) {
    if (used_ + bytes > size_) return nullptr;
    char* at = data_ + used_;
    used_ += round_up(bytes, kAlignment);
    return at;
  }

 private:
  // One page more than is used, for the alignment.
  size_t mapped_bytes() const { return size_ + kPage; }

  char* memory_;
  char* data_;
  const int64_t size_;
  int64_t used_ = 0;
};

}  // namespace

at::Tensor zeros_in_huge_pages(at::IntArrayRef sizes, at::ScalarType dtype) {
  static std::mutex mutex;
  static std::shared_ptr<Stretch> current;
  int64_t bytes = c10::elementSize(dtype);
  for (const int64_t size : sizes) bytes *= size;
  std::shared_ptr<Stretch> owner;
  void* at = nullptr;
  {
    const std::lock_guard<std::mutex> guard(mutex);
    if (current) at = current->take(bytes);
    if (!at) {
      current = std::make_shared<Stretch>(bytes);
      at = current->take(bytes);
    }
    owner = current;
  }
  return at::from_blob(at, sizes, [owner](void*) {}, at::TensorOptions().dtype(dtype));
}

at::Tensor empty_in_huge_pages(at::IntArrayRef sizes, at::ScalarType dtype) {
  at::Tensor tensor = zeros_in_huge_pages(sizes, dtype);
  // As at::empty does: what is never written shows.
  const at::Context& context = at::globalContext();
  if (context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory() &&
      tensor.is_floating_point()) {
    tensor.fill_(std::numeric_limits<double>::quiet_NaN());
  }
  return tensor;
}

}  // namespace zweave
