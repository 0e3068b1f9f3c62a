#include <algorithm>
#include <cstdint>
#include <exception>
#include <functional>
#include <numeric>
#include <opencv2/dnn.hpp>

#include "backend.h"
#include "model_check.h"

namespace caffetools {
namespace {

// All values of a network for one image; VGG-16 has 110 MiB of them.
constexpr double MOST_BYTES = 4.0 * (1 << 30);

std::string one_line(std::string text) {
  std::replace_if(text.begin(), text.end(), [](char c) { return c == '\n' || c == '\r' || c == '\t'; }, ' ');
  return text.substr(0, 300);
}

class OpenCVBackend : public Backend {
 public:
  OpenCVBackend(const std::string& model, const std::string& path, const Settings& settings) : settings_(settings), path_(path) {
    try {
      check_model(model, settings);
      net_ = cv::dnn::readNetFromONNX(model.data(), model.size());
    } catch (const Error& error) {
      throw Error(path + ": damaged, or not of this bundle: " + error.what());
    } catch (const std::exception& error) {
      throw Error(path + ": OpenCV cannot load it: " + one_line(error.what()));
    }
    if (net_.empty()) throw Error(path + ": OpenCV cannot load it");
    check_memory();
  }

  std::vector<std::vector<float>> run(std::vector<float>& input) override {
    const int shape[] = {1, settings_.channels, settings_.height, settings_.width};
    std::vector<std::vector<float>> results;
    try {
      net_.setInput(cv::Mat(4, shape, CV_32F, input.data()), settings_.input);
      std::vector<cv::Mat> outputs;
      std::vector<cv::String> names(settings_.outputs.begin(), settings_.outputs.end());
      net_.forward(outputs, names);
      for (const cv::Mat& output : outputs) {
        if (output.type() != CV_32F) throw Error(path_ + ": an output does not have float32 numbers");
        const cv::Mat whole = output.isContinuous() ? output : output.clone();
        results.emplace_back(whole.ptr<float>(), whole.ptr<float>() + whole.total());
      }
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      throw Error(path_ + ": OpenCV cannot run it: " + one_line(error.what()));
    }
    return results;
  }

 private:
  // A damaged size may ask for more memory than there is, and the system may then end the process.
  void check_memory() const {
#if CV_VERSION_MAJOR < 5
    const cv::dnn::MatShape shape{1, settings_.channels, settings_.height, settings_.width};
    std::vector<int> layers;
    std::vector<std::vector<cv::dnn::MatShape>> inputs, outputs;
    try {
      net_.getLayersShapes(shape, layers, inputs, outputs);
    } catch (const std::exception& error) {
      throw Error(path_ + ": OpenCV cannot run it: " + one_line(error.what()));
    }
    // OpenCV's own sums have 32 bits.
    double bytes = 0;
    for (const auto& blobs : outputs)
      for (const cv::dnn::MatShape& blob : blobs)
        bytes += std::accumulate(blob.begin(), blob.end(), static_cast<double>(sizeof(float)), std::multiplies<double>());
    if (!(bytes <= MOST_BYTES))
      throw Error(path_ + ": it needs " + std::to_string(static_cast<int64_t>(bytes / (1 << 20))) + " MiB for one image");
#endif
  }

  const Settings settings_;
  const std::string path_;
  cv::dnn::Net net_;
};

}  // namespace

std::unique_ptr<Backend> open_opencv(const std::string& model, const std::string& path, const Settings& settings) {
  return std::unique_ptr<Backend>(new OpenCVBackend(model, path, settings));
}

}  // namespace caffetools
