// Damages the files of a bundle, COUNT times, and reads them with the runner in this one process; every failure must be an Error.
//   fuzz BUNDLE COUNT [SEED]
#include <cstdio>
#include <cstdlib>
#include <algorithm>
#include <opencv2/core.hpp>
#include <opencv2/core/utils/logger.hpp>
#include <random>

#include "backend.h"
#include "bundle.h"

using namespace caffetools;

namespace {

// One to four changes: bits, bytes, runs that are cut out or doubled, the end cut off, or digits, so that a text keeps its form.
std::string damaged(std::string data, std::mt19937& random, bool only_digits = false) {
  const auto below = [&](size_t limit) { return limit ? std::uniform_int_distribution<size_t>(0, limit - 1)(random) : 0; };
  for (size_t change = below(4) + 1; change > 0 && !data.empty(); --change) {
    const size_t at = below(data.size()), length = below(std::min<size_t>(data.size() - at, 64)) + 1;
    switch (only_digits ? 6 : below(7)) {
      case 0: data[at] = static_cast<char>(data[at] ^ (1 << below(8))); break;
      case 1: data[at] = static_cast<char>(below(256)); break;
      case 2: data.erase(at, length); break;
      case 3: data.insert(at, data, below(data.size()), length); break;
      case 4: data.resize(at); break;
      case 5: data.replace(at, 1, below(2) ? "\xff" : std::string(1, '\0')); break;
      default:
        for (size_t i = at; i < data.size(); ++i)
          if (data[i] >= '0' && data[i] <= '9') {
            data[i] = static_cast<char>('0' + below(10));
            break;
          }
    }
  }
  return data;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) return 2;
  cv::utils::logging::setLogLevel(cv::utils::logging::LOG_LEVEL_SILENT);
  cv::redirectError([](int, const char*, const char*, const char*, int, void*) { return 0; });
  const std::string folder = arguments[1];
  const int rounds = std::atoi(arguments[2]);
  std::mt19937 random(count > 3 ? static_cast<unsigned>(std::atoi(arguments[3])) : 0u);
  const Settings settings = load_settings(folder);
  const std::string json = read_file(folder + "/preprocessing.json"), labels = read_file(folder + "/labels.txt");
  const std::string model = read_file(folder + "/model.onnx");
  const std::vector<std::string> pictures = {read_file(folder + "/samples/sample_0.png"), read_file(folder + "/samples/photo.jpg"),
                                             read_file(folder + "/samples/drawing.bmp")};
  std::vector<float> input(settings.input_size(), 0.5f);
  const cv::Mat image(48, 64, settings.order == "GRAY" ? CV_8U : CV_8UC3, cv::Scalar(1, 2, 3));
  int accepted[3] = {}, refused[3] = {};
  for (int round = 0; round < rounds; ++round) {
    const int kind = round % 3;
    // What follows is the last line where a library crashes.
    if (count > 4) std::fprintf(stderr, "round %d\n", round);
    try {
      if (kind == 0) {
        const Settings other = parse_settings(damaged(json, random, round % 2), round % 4 ? labels : damaged(labels, random), "");
        if (other.order == settings.order && other.resize_width * other.resize_height < 1 << 22) prepare(image, other);
      } else if (kind == 1) {
        const std::string& picture = pictures[static_cast<size_t>(round / 3) % pictures.size()];
        prepare(decode_picture(damaged(picture, random), "picture", settings), settings);
      } else {
        const auto outputs = open_opencv(damaged(model, random), "model", settings)->run(input);
        if (settings.is_detector)
          detect(outputs.at(0), outputs.at(1), image.size(), settings);
        else
          best(outputs.at(0), settings, 5);
      }
      ++accepted[kind];
    } catch (const Error& error) {
      ++refused[kind];
    }
  }
  for (int kind = 0; kind < 3; ++kind)
    std::printf("%s: %d accepted, %d refused\n", (const char*[]){"settings", "pictures", "models"}[kind], accepted[kind], refused[kind]);
  return 0;
}
