// What is checked of model.onnx before a runtime reads it: OpenCV's importer trusts sizes that a damaged file gives.
#pragma once

#include <string>

#include "bundle.h"

namespace caffetools {

// Throws Error where the bytes are not an ONNX model whose tensors have as many values as their shapes, whose operators use only values
// that exist, or whose input and outputs are not those of `settings`.
void check_model(const std::string& model, const Settings& settings);

}  // namespace caffetools
