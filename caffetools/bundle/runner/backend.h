// The runtimes that can run a bundle's model.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bundle.h"

namespace caffetools {

class Backend {
 public:
  virtual ~Backend() = default;

  // The outputs, in the order of settings.outputs, for one prepared image. Throws Error.
  virtual std::vector<std::vector<float>> run(std::vector<float>& input) = 0;
};

// Names of the runtimes that the runner was built with, the fastest first.
std::vector<std::string> backend_names();

// Opens the bundle's model; `auto` takes TensorRT if an engine is built, then ONNX Runtime, then OpenCV. Throws Error.
std::unique_ptr<Backend> open_backend(const Settings& settings, const std::string& name = "auto");

// From the bytes of model.onnx; `path` is for errors.
std::unique_ptr<Backend> open_opencv(const std::string& model, const std::string& path, const Settings& settings);
std::unique_ptr<Backend> open_onnxruntime(const std::string& model, const std::string& path, const Settings& settings);

// From an engine that build_engine.sh built.
std::unique_ptr<Backend> open_tensorrt(const std::string& engine, const std::string& path, const Settings& settings);

}  // namespace caffetools
