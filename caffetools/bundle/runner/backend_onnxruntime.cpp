#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>

#include "backend.h"

namespace caffetools {
namespace {

class OnnxRuntimeBackend : public Backend {
 public:
  OnnxRuntimeBackend(const std::string& model, const std::string& path, const Settings& settings)
    : settings_(settings), path_(path), environment_(ORT_LOGGING_LEVEL_FATAL, "caffetools"), session_(open(model)) {}

  std::vector<std::vector<float>> run(std::vector<float>& input) override {
    const int64_t shape[] = {1, settings_.channels, settings_.height, settings_.width};
    std::vector<const char*> names;
    for (const std::string& name : settings_.outputs) names.push_back(name.c_str());
    const char* input_name = settings_.input.c_str();
    std::vector<std::vector<float>> results;
    try {
      const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
      const Ort::Value value = Ort::Value::CreateTensor<float>(memory, input.data(), input.size(), shape, 4);
      std::vector<Ort::Value> outputs =
        session_.Run(Ort::RunOptions{nullptr}, &input_name, &value, 1, names.data(), names.size());
      for (Ort::Value& output : outputs) {
        const auto info = output.GetTensorTypeAndShapeInfo();
        if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
          throw Error(path_ + ": an output does not have float32 numbers");
        const float* data = output.GetTensorMutableData<float>();
        results.emplace_back(data, data + info.GetElementCount());
      }
    } catch (const Ort::Exception& error) {
      throw Error(path_ + ": ONNX Runtime cannot run it: " + one_line(error.what()));
    }
    return results;
  }

 private:
  static std::string one_line(std::string text) {
    std::replace(text.begin(), text.end(), '\n', ' ');
    return text.substr(0, 300);
  }

  Ort::Session open(const std::string& model) {
    try {
      Ort::SessionOptions options;
      options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);
      return Ort::Session(environment_, model.data(), model.size(), options);
    } catch (const Ort::Exception& error) {
      throw Error(path_ + ": ONNX Runtime cannot load it: " + one_line(error.what()));
    }
  }

  const Settings settings_;
  const std::string path_;
  Ort::Env environment_;
  Ort::Session session_;
};

}  // namespace

std::unique_ptr<Backend> open_onnxruntime(const std::string& model, const std::string& path, const Settings& settings) {
  return std::unique_ptr<Backend>(new OnnxRuntimeBackend(model, path, settings));
}

}  // namespace caffetools
