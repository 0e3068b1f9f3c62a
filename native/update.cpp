// The C interface of native/update.h, and how the work is divided among threads.
#include "update.h"

#include <algorithm>
#include <vector>

#include "export.h"
#include "pool.h"
#include "variants.h"

using namespace caffetools;

// A parameter; the fields are in the order of the ctypes structure in caffetools/solver/native_update.py.
struct CaffetoolsParameter {
  float* weights;
  const float* gradients;
  float *first, *second;
  int64_t count;
};

namespace {

// Weights of a task.
constexpr int64_t kBlock = 16384;

}  // namespace

// Update `parameters` by a rule (Rule).
CAFFETOOLS_API void caffetools_update(int rule, const UpdateRule* constants, const CaffetoolsParameter* parameters, int64_t count, int threads) {
  std::vector<int64_t> ends;  // of each parameter, in blocks from the first one's on
  int64_t blocks = 0;
  for (int64_t i = 0; i < count; ++i) ends.push_back(blocks += (parameters[i].count + kBlock - 1) / kBlock);
  const UpdateKernel& kernel = CAFFETOOLS_IN_USE(update_kernel);
  parallel_for(threads, blocks, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t index = std::upper_bound(ends.begin(), ends.end(), block) - ends.begin();
      const CaffetoolsParameter& p = parameters[index];
      const int64_t at = (block - (index > 0 ? ends[index - 1] : 0)) * kBlock;
      kernel.run(static_cast<Rule>(rule), *constants, p.weights + at, p.gradients + at, p.first + at, p.second != nullptr ? p.second + at : nullptr,
                 std::min(kBlock, p.count - at));
    }
  });
}
