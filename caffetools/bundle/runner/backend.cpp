#include "backend.h"

#include <fstream>

namespace caffetools {
#ifdef WITH_TENSORRT
namespace {

std::string find_engine(const std::string& folder) {
  for (const char* name : {"model.int8.engine", "model.fp16.engine", "model.fp32.engine"}) {
    const std::string path = folder + "/" + name;
    if (std::ifstream(path).good()) return path;
  }
  return "";
}

}  // namespace
#endif

std::vector<std::string> backend_names() {
  return {
#ifdef WITH_TENSORRT
    "tensorrt",
#endif
#ifdef WITH_ONNXRUNTIME
    "onnxruntime",
#endif
    "opencv"};
}

std::unique_ptr<Backend> open_backend(const Settings& settings, const std::string& name) {
  const std::string path = settings.folder + "/model.onnx";
#ifdef WITH_TENSORRT
  const std::string engine = find_engine(settings.folder);
  if (name == "tensorrt" && engine.empty())
    throw Error(settings.folder + ": there is no TensorRT engine; build one with ./build_engine.sh");
  if (!engine.empty() && (name == "tensorrt" || name == "auto")) return open_tensorrt(read_file(engine), engine, settings);
#endif
#ifdef WITH_ONNXRUNTIME
  if (name == "onnxruntime" || name == "auto") return open_onnxruntime(read_file(path), path, settings);
#endif
  if (name == "opencv" || name == "auto") return open_opencv(read_file(path), path, settings);
  throw Error("this runner was built without " + name);
}

}  // namespace caffetools
