// Where the keys and values of a chunk of positions lie.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kv_layout.h"
#include "cpu/matmul_tile.h"

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

// Starts to load what a chunk needs. The lines go to the second-level cache: the first level has too few
// places for misses to keep the memory busy.
template <class T>
void fetch(const Attention<T>& a, const Chunk<T>& chunk) {
  const KvLayout<T> layout{a.kv_heads, a.block_size, a.head_size};
  const int64_t key_bytes = layout.key_panel() * sizeof(T), columns = divide_up(a.head_size, kPanel);
  for (int64_t i = 0; i < chunk.count; ++i) {
    const Piece<T>& piece = chunk.piece[i];
    const char* keys = reinterpret_cast<const char*>(piece.keys);
    for (int64_t at = 0; at < key_bytes; at += kLine) prefetch(keys + at);
    const int64_t first = piece.offset / kGroup<T>;
    const int64_t last = (piece.offset + piece.count - 1) / kGroup<T>;
    for (int64_t column = 0; column < columns; ++column) {
      const char* values = reinterpret_cast<const char*>(piece.values + column * layout.value_panel());
      for (int64_t group = first; group <= last; ++group) prefetch(values + group * kLine);
    }
  }
}

}  // namespace
}  // namespace zweave
