#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

namespace training_example {

/// Sequences to sort: `length` symbols, a separator, and the same symbols in ascending order. The
/// model reads all but the last token and is asked for those after the separator.
struct SortingTask {
  std::int64_t symbols = 24;
  std::int64_t length = 12;

  [[nodiscard]] std::int64_t vocab() const { return symbols + 1; }
  [[nodiscard]] std::int64_t separator() const { return symbols; }
  /// Tokens that the model reads of a sequence.
  [[nodiscard]] std::int64_t tokens() const { return 2 * length; }
  /// The first position whose prediction counts: the separator's.
  [[nodiscard]] std::int64_t first_answer() const { return length; }
};

/// Sequences of the task, [sequences, tokens() + 1].
inline std::vector<std::int64_t> make_batch(const SortingTask& task, std::int64_t sequences,
                                            std::mt19937& random) {
  std::uniform_int_distribution<std::int64_t> symbol(0, task.symbols - 1);
  std::vector<std::int64_t> batch;
  for (std::int64_t s = 0; s < sequences; ++s) {
    std::vector<std::int64_t> values(static_cast<std::size_t>(task.length));
    for (std::int64_t& v : values) v = symbol(random);
    batch.insert(batch.end(), values.begin(), values.end());
    batch.push_back(task.separator());
    std::sort(values.begin(), values.end());
    batch.insert(batch.end(), values.begin(), values.end());
  }
  return batch;
}

}  // namespace training_example
