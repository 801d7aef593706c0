// Attention over a paged cache, softmax online.
//
// Keys are taken in chunks of 64 aligned to absolute positions, and each query passes over its own chunks in
// order. An item is a few neighbouring tokens of one sequence times the query heads that share a key-value
// head; it shares the loads of the keys and values, and nothing that a query's result depends on.
#pragma once

#include <cstring>

#include "cpu/attention/attention_chunk.h"
#include "cpu/attention/attention_products.h"
#include "cpu/simd/exp.h"
#include "cpu/simd/kernels.h"
#include "cpu/simd/rows.h"

namespace zweave {
namespace {

constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Offsets in the scratch memory of an item, in bytes; every part begins on a cache line.
template <class T>
struct AttentionScratch {
  int64_t rows, q_width, y_width;  // head_size up to whole packs, and up to whole panels
  int64_t bytes = 0;
  int64_t q, scores, probability, output, largest, total;

  AttentionScratch(int64_t tokens, int64_t group, int64_t head_size)
      : rows(tokens * group), q_width(round_up(head_size, kPack<T>)), y_width(round_up(head_size, kPanel)) {
    q = take(rows * q_width * sizeof(T));
    scores = take(rows * kScores * 4);
    probability = take(rows * kChunk * sizeof(T));
    output = take(rows * y_width * 4);
    largest = take(rows * 4);
    total = take(rows * 4);
  }
  int64_t take(int64_t size) {
    const int64_t at = bytes;
    bytes += round_up(size, 64);
    return at;
  }
};

template <class T>
int64_t attention_scratch(int64_t tokens, int64_t group, int64_t head_size) {
  return AttentionScratch<T>(tokens, group, head_size).bytes;
}

// State of the online softmax of a query row: the largest score so far, the sum of exp(score - largest), and
// the sum of the values weighted by it.
struct Running {
  float *largest, *total, *output;  // output: [width]
  int64_t width;
};

// Turns the scores of a range of keys into probabilities, and rescales the state to the new maximum.
template <class T>
void softmax_row(float* score, KeyRange range, T* probability, Running running) {
  const Simd::F nothing = Simd::set1(-__builtin_inff());
  Simd::store(score + range.begin - Simd::width, nothing);
  Simd::store(score + range.end, nothing);
  const int64_t begin = range.begin / Simd::width * Simd::width;
  Simd::F best = Simd::set1(*running.largest);
  for (int64_t i = begin; i < range.end; i += Simd::width) best = Simd::max(best, Simd::load(score + i));
  const float now = Simd::reduce_max(best);
  const Simd::F shift = Simd::set1(now);
  Simd::F sum = Simd::set1(0);
  for (int64_t i = begin; i < range.end; i += Simd::width) {
    const Simd::F p = exp(Simd::sub(Simd::load(score + i), shift));
    Simd::store(probability + i, p);
    sum = Simd::add(sum, p);
  }
  if (now != *running.largest) {
    float factors[Simd::width];
    Simd::store(factors, exp(Simd::set1(*running.largest - now)));
    const Simd::F factor = Simd::set1(factors[0]);
    for (int64_t i = 0; i < running.width; i += Simd::width) {
      Simd::store(running.output + i, Simd::mul(Simd::load(running.output + i), factor));
    }
    *running.total *= factors[0];
    *running.largest = now;
  }
  *running.total += Simd::reduce_add(sum);
}

// One item and its state while it passes over its chunks.
template <class T>
class AttentionTask {
 public:
  AttentionTask(const Attention<T>& a, const AttentionItem& item, void* scratch)
      : a_(a), item_(item), group_(a.heads / a.kv_heads), part_(item.end - item.begin, group_, a.head_size) {
    const auto at = [&](int64_t offset) { return static_cast<char*>(scratch) + offset; };
    q_ = reinterpret_cast<T*>(at(part_.q));
    probability_ = reinterpret_cast<T*>(at(part_.probability));
    scores_ = reinterpret_cast<float*>(at(part_.scores));
    output_ = reinterpret_cast<float*>(at(part_.output));
    largest_ = reinterpret_cast<float*>(at(part_.largest));
    total_ = reinterpret_cast<float*>(at(part_.total));
  }

  void begin() {
    const int64_t size = a_.head_size;
    T* to = q_;
    for (int64_t token = item_.begin; token < item_.end; ++token) {
      const T* from = a_.q + token * a_.q_stride + item_.kv_head * group_ * size;
      for (int64_t head = 0; head < group_; ++head, from += size, to += part_.q_width) {
        to[part_.q_width - 1] = T{};
        std::memcpy(to, from, size * sizeof(T));
      }
    }
    std::memset(output_, 0, part_.rows * part_.y_width * 4);
    for (int64_t row = 0; row < part_.rows; ++row) {
      largest_[row] = -__builtin_inff();
      total_[row] = 0;
    }
  }

  // How often `add` calls fetcher.step() for a chunk, at least.
  int64_t steps(const Chunk<T>& chunk) const {
    const Piece<T>& last = chunk.piece[chunk.count - 1];
    return divide_up(a_.head_size, kPack<T>) + (last.begin + last.count - chunk.piece[0].begin) / kPack<T>;
  }

  void add(const Chunk<T>& chunk, Fetcher<T>& fetcher) {
    score(q_, part_.q_width, part_.q_width / kPack<T>, part_.rows, chunk, a_.scale, fetcher, scores_);
    for (int64_t token = item_.begin; token < item_.end; ++token) {
      const KeyRange range = seen(token, chunk.first);
      if (range.begin >= range.end) continue;
      for (int64_t row = row_of(token); row < row_of(token + 1); ++row) {
        float* output = output_ + row * part_.y_width;
        softmax_row(scores_ + row * kScores + kPanel, range, probability_ + row * kChunk,
                    {largest_ + row, total_ + row, output, part_.y_width});
      }
    }
    add_seen(chunk, fetcher);
  }

  void end() const {
    for (int64_t row = 0; row < part_.rows; ++row) {
      const int64_t token = item_.begin + row / group_, head = item_.kv_head * group_ + row % group_;
      const Simd::F inverse = Simd::set1(1.0f / total_[row]);
      for_vectors(a_.head_size, [&](int64_t i, int64_t n) {
        const Simd::F value = Simd::load(output_ + row * part_.y_width + i);
        store(a_.y + token * a_.y_stride + head * a_.head_size + i, Simd::mul(value, inverse), n);
      });
    }
  }

 private:
  int64_t row_of(int64_t token) const { return (token - item_.begin) * group_; }

  // The keys that a token sees of a chunk, counted from its first.
  KeyRange seen(int64_t token, int64_t first) const {
    const int64_t end = int64_t(a_.position[token]) + 1 - first;
    const int64_t begin = a_.window > 0 && end > a_.window ? end - a_.window : -first;
    return {begin > 0 ? begin : 0, end < kChunk ? end : kChunk};
  }

  // Rows that see the same keys go together. Keys that a row does not see never enter its sum, not even with
  // probability zero: they may hold NaN.
  void add_seen(const Chunk<T>& chunk, Fetcher<T>& fetcher) {
    const int64_t panel = KvLayout<T>{a_.kv_heads, a_.block_size, a_.head_size}.value_panel();
    for (int64_t token = item_.begin; token < item_.end;) {
      const KeyRange range = seen(token, chunk.first);
      int64_t next = token + 1;
      for (; next < item_.end; ++next) {
        const KeyRange other = seen(next, chunk.first);
        if (other.begin != range.begin || other.end != range.end) break;
      }
      const int64_t row = row_of(token);
      if (range.begin < range.end) {
        add_values(chunk, range, row_of(next) - row, probability_ + row * kChunk, panel,
                   part_.y_width / kPanel, fetcher, output_ + row * part_.y_width);
      }
      token = next;
    }
  }

  const Attention<T>& a_;
  const AttentionItem& item_;
  const int64_t group_;
  const AttentionScratch<T> part_;
  T *q_, *probability_;
  float *scores_, *output_, *largest_, *total_;
};

// Walks over the chunks of some items.
template <class T>
class ChunkCursor {
 public:
  ChunkCursor(const Attention<T>& a, const AttentionItem* items, int64_t count)
      : a_(a), item_(items), last_(items + count) {
    if (count) enter();
  }

  // Finds the next chunk, which has no pieces at the end.
  void next(Chunk<T>& chunk) {
    chunk.count = 0;
    if (item_ == last_) return;
    const int64_t boundary = at_ / kChunk * kChunk + kChunk, end = boundary < end_ ? boundary : end_;
    const int32_t* blocks = a_.block_table + a_.sequence[item_->begin] * a_.block_table_stride;
    find_pieces(a_, blocks, item_->kv_head, at_, end, chunk);
    at_ = end;
    chunk.is_last = at_ == end_;
    if (chunk.is_last && ++item_ != last_) enter();
  }

 private:
  // The item's first token sees furthest back, its last one furthest on.
  void enter() {
    const int64_t seen = int64_t(a_.position[item_->begin]) + 1;
    at_ = a_.window > 0 && seen > a_.window ? seen - a_.window : 0;
    end_ = int64_t(a_.position[item_->end - 1]) + 1;
  }

  const Attention<T>& a_;
  const AttentionItem *item_, *last_;
  int64_t at_ = 0, end_ = 0;
};

template <class T>
void attention(const Attention<T>& a, const AttentionItem* items, int64_t count, void* scratch) {
  Chunk<T> chunks[2];
  Fetcher<T> fetcher;
  ChunkCursor<T> cursor(a, items, count);
  int current = 0;
  cursor.next(chunks[current]);
  fetcher.begin(a, chunks[current], 1);
  fetcher.finish();
  for (int64_t i = 0; i < count; ++i) {
    AttentionTask<T> task(a, items[i], scratch);
    task.begin();
    for (bool is_last = false; !is_last; current ^= 1) {
      cursor.next(chunks[current ^ 1]);
      fetcher.begin(a, chunks[current ^ 1], task.steps(chunks[current]));
      task.add(chunks[current], fetcher);
      fetcher.finish();
      is_last = chunks[current].is_last;
    }
    task.end();
  }
}

}  // namespace
}  // namespace zweave
