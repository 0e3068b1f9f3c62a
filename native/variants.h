// Which instruction set the kernels use: the best that this processor has, or a lower one that a test asks for.
#pragma once

namespace caffetools {

// 0 the baseline, 1 AVX2 with FMA, 2 AVX-512.
int current_variant();

}  // namespace caffetools
