// Where the keys and values of a chunk of positions lie.
#pragma once

#include "cpu/attention/kv_layout.h"
#include "cpu/gemm/matmul_tile.h"
#include "cpu/simd/kernels.h"

namespace zweave {
namespace {

// Positions that are taken together; chunks are aligned to absolute positions.
constexpr int64_t kChunk = 64;

// Keys of one panel of a block that a chunk holds one after the other.
template <class T>
struct Piece {
  const T* keys;    // the panel
  const T* values;  // of the block and head
  int64_t begin;    // position, from the chunk's first
  int64_t count;
  int64_t offset;  // of the first key in the block

  // Where the panel's scores go: only the first piece of a chunk may begin amid a panel.
  int64_t column() const { return begin - offset % kPanel; }
};

template <class T>
struct Chunk {
  Piece<T> piece[kChunk];
  int64_t count = 0;
  int64_t first;  // position
  bool is_last;   // of its item
};

// Positions [begin, end) of a sequence, which lie in one chunk, under one head.
template <class T>
void find_pieces(const Attention<T>& a, const int32_t* blocks, int64_t kv_head, int64_t begin, int64_t end,
                 Chunk<T>& chunk) {
  const KvLayout<T> layout{a.kv_heads, a.block_size, a.head_size};
  const int64_t keys = layout.keys_of_head(), values = layout.values_of_head(), panel = layout.key_panel();
  chunk.count = 0;
  chunk.first = begin / kChunk * kChunk;
  int64_t index = begin / a.block_size, offset = begin % a.block_size;
  for (int64_t position = begin; position < end; ++index, offset = 0) {
    const int64_t place = blocks[index] * a.kv_heads + kv_head;
    while (offset < a.block_size && position < end) {
      const int64_t of_panel = kPanel - offset % kPanel, of_block = a.block_size - offset;
      int64_t count = of_panel < of_block ? of_panel : of_block;
      if (end - position < count) count = end - position;
      chunk.piece[chunk.count++] = {a.k_cache + place * keys + offset / kPanel * panel,
                                    a.v_cache + place * values, position - chunk.first, count, offset};
      position += count;
      offset += count;
    }
  }
}

// Starts to load what a chunk needs, a few lines at a time beside the arithmetic of its predecessor: all at
// once they would fill the queue to memory, and what is asked for next would wait. The lines go to the
// second-level cache, since the first level has too few places for misses to keep the memory busy.
template <class T>
class Fetcher {
 public:
  // `steps`: how often step() will be called.
  void begin(const Attention<T>& a, const Chunk<T>& chunk, int64_t steps) {
    const KvLayout<T> layout{a.kv_heads, a.block_size, a.head_size};
    run_ = end_ = runs_;
    at_ = stop_ = nullptr;
    lines_ = 0;
    // Blocks of a few positions are not worth the bookkeeping.
    if (chunk.count > kMost) return;
    for (int64_t i = 0; i < chunk.count; ++i) add(layout, chunk.piece[i]);
    a_step_ = divide_up(lines_, steps);
  }

  void step() {
    for (int64_t i = 0; i < a_step_; ++i) {
      if (at_ == stop_) {
        if (run_ == end_) return;
        at_ = run_->at;
        stop_ = at_ + run_->bytes;
        ++run_;
      }
      prefetch(at_);
      at_ += kLine;
    }
  }

  void finish() {
    while (at_ != stop_ || run_ != end_) step();
  }

 private:
  struct Run {
    const char* at;
    int64_t bytes;
  };
  static constexpr int64_t kMost = kChunk / kPanel + 1;
  // Of larger heads the rest is not fetched.
  static constexpr int64_t kColumns = 16;

  void add(const KvLayout<T>& layout, const Piece<T>& piece) {
    add(piece.keys, divide_up(layout.head_size, kPack<T>));
    const int64_t columns = divide_up(layout.head_size, kPanel);
    const int64_t first = piece.offset / kPack<T>;
    const int64_t packs = divide_up(piece.offset + piece.count, kPack<T>) - first;
    const T* values = piece.values + first * kPanel * kPack<T>;
    if (packs * kPanel * kPack<T> == layout.value_panel()) return add(values, columns * packs);
    for (int64_t i = 0; i < columns && i < kColumns; ++i) add(values + i * layout.value_panel(), packs);
  }
  void add(const T* at, int64_t lines) {
    *end_++ = {reinterpret_cast<const char*>(at), lines * kLine};
    lines_ += lines;
  }

  Run runs_[kMost * (1 + kColumns)];
  Run *run_ = runs_, *end_ = runs_;
  const char *at_ = nullptr, *stop_ = nullptr;
  int64_t lines_ = 0, a_step_ = 0;
};

}  // namespace
}  // namespace zweave
