// TensorRT 7 to 10.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <cstdio>

#include "backend.h"

namespace caffetools {
namespace {

class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kERROR) std::fprintf(stderr, "TensorRT: %s\n", message);
  }
};

void check(cudaError_t code) {
  if (code != cudaSuccess) throw Error(std::string("CUDA: ") + cudaGetErrorString(code));
}

// Memory on the GPU.
class Buffer {
 public:
  explicit Buffer(size_t count) : bytes_(count * sizeof(float)) { check(cudaMalloc(&data_, bytes_)); }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }
  void write(const std::vector<float>& values) { check(cudaMemcpy(data_, values.data(), bytes_, cudaMemcpyHostToDevice)); }
  std::vector<float> read() const {
    std::vector<float> values(bytes_ / sizeof(float));
    check(cudaMemcpy(values.data(), data_, bytes_, cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  size_t bytes_;
  void* data_ = nullptr;
};

template <typename T>
struct Deleter {
  void operator()(T* object) const {
#if NV_TENSORRT_MAJOR >= 8
    delete object;
#else
    object->destroy();
#endif
  }
};
template <typename T>
using Owned = std::unique_ptr<T, Deleter<T>>;

class TensorRTBackend : public Backend {
 public:
  TensorRTBackend(const std::string& bytes, const std::string& path, const Settings& settings) : path_(path), settings_(settings) {
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
#if NV_TENSORRT_MAJOR >= 8
    if (runtime_) engine_.reset(runtime_->deserializeCudaEngine(bytes.data(), bytes.size()));
#else
    if (runtime_) engine_.reset(runtime_->deserializeCudaEngine(bytes.data(), bytes.size(), nullptr));
#endif
    if (engine_) context_.reset(engine_->createExecutionContext());
    if (!context_) throw Error(path + ": TensorRT cannot load it; build it on this device with ./build_engine.sh");
    add_buffer(settings.input, settings.input_size());
    for (const std::string& name : settings.outputs) add_buffer(name, output_size(name));
  }

  std::vector<std::vector<float>> run(std::vector<float>& input) override {
    buffers_[0]->write(input);
#if NV_TENSORRT_MAJOR >= 10
    const bool done = context_->enqueueV3(nullptr) && cudaStreamSynchronize(nullptr) == cudaSuccess;
#else
    const bool done = context_->executeV2(bindings_.data());
#endif
    if (!done) throw Error(path_ + ": TensorRT failed to run it");
    std::vector<std::vector<float>> results;
    for (size_t i = 1; i < buffers_.size(); ++i) results.push_back(buffers_[i]->read());
    return results;
  }

 private:
  size_t output_size(const std::string& name) const {
    const size_t classes = static_cast<size_t>(settings_.classes), priors = static_cast<size_t>(settings_.detection.priors);
    if (!settings_.is_detector) return classes;
    return priors * (name == settings_.outputs[0] ? classes : 4);
  }

  void add_buffer(const std::string& name, size_t count) {
    buffers_.emplace_back(new Buffer(count));
#if NV_TENSORRT_MAJOR >= 10
    check_size(name, engine_->getTensorShape(name.c_str()), count);
    context_->setTensorAddress(name.c_str(), buffers_.back()->data());
#else
    const int index = engine_->getBindingIndex(name.c_str());
    if (index < 0) throw Error(path_ + ": the engine has no input or output '" + name + "'");
    check_size(name, engine_->getBindingDimensions(index), count);
    bindings_.resize(static_cast<size_t>(engine_->getNbBindings()));
    bindings_[static_cast<size_t>(index)] = buffers_.back()->data();
#endif
  }

  void check_size(const std::string& name, const nvinfer1::Dims& dims, size_t count) const {
    size_t size = dims.nbDims > 0 ? 1 : 0;
    for (int i = 0; i < dims.nbDims; ++i) size *= static_cast<size_t>(dims.d[i]);
    if (size != count) throw Error(path_ + ": '" + name + "' does not have the size that preprocessing.json gives");
  }

  const std::string path_;
  const Settings settings_;
  Logger logger_;
  Owned<nvinfer1::IRuntime> runtime_;
  Owned<nvinfer1::ICudaEngine> engine_;
  Owned<nvinfer1::IExecutionContext> context_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<void*> bindings_;
};

}  // namespace

std::unique_ptr<Backend> open_tensorrt(const std::string& engine, const std::string& path, const Settings& settings) {
  return std::unique_ptr<Backend>(new TensorRTBackend(engine, path, settings));
}

}  // namespace caffetools
