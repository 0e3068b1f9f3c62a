#include "bundle.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <numeric>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

#include "json.h"

namespace caffetools {
namespace {

constexpr int FORMAT = 1;
constexpr int MAX_SIDE = 16384, MAX_CLASSES = 1 << 20, MAX_PRIORS = 1 << 20;

std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> lines;
  std::string line;
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] == '\r' && at + 1 < text.size() && text[at + 1] == '\n') continue;
    if (text[at] == '\n' || text[at] == '\r') {
      lines.push_back(line);
      line.clear();
    } else {
      line += text[at];
    }
  }
  if (!line.empty()) lines.push_back(line);
  return lines;
}

std::vector<float> floats_of(const std::string& bytes, size_t count) {
  if (bytes.size() != 4 * count)
    throw Error("mean.f32 has " + std::to_string(bytes.size()) + " bytes, but the model's input needs " + std::to_string(4 * count));
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    // Little-endian on every machine.
    uint32_t word = 0;
    for (int byte = 3; byte >= 0; --byte) word = word << 8 | static_cast<unsigned char>(bytes[4 * i + static_cast<size_t>(byte)]);
    std::memcpy(&values[i], &word, sizeof word);
  }
  return values;
}

void read_sizes(const Json& json, Settings& settings) {
  const std::vector<Json>& shape = json.at("input").at("shape").items;
  if (shape.size() != 4) throw Error("the input's shape does not have 4 axes");
  settings.channels = shape[1].as_int("the number of channels", 1, 3);
  settings.height = shape[2].as_int("the height", 1, MAX_SIDE);
  settings.width = shape[3].as_int("the width", 1, MAX_SIDE);
  const std::vector<Json>& resize = json.at("resize").items;
  if (resize.size() != 2) throw Error("'resize' is not a width and a height");
  settings.resize_width = resize[0].as_int("the width to resize to", settings.width, MAX_SIDE);
  settings.resize_height = resize[1].as_int("the height to resize to", settings.height, MAX_SIDE);
  settings.order = json.at("channel_order").as_string("the channel order");
  const bool is_color = settings.order == "BGR" || settings.order == "RGB";
  if ((!is_color && settings.order != "GRAY") || settings.channels != (is_color ? 3 : 1))
    throw Error("the channel order does not fit the model's input");
}

void read_numbers(const Json& json, const std::string& mean_file, Settings& settings) {
  const size_t channels = static_cast<size_t>(settings.channels);
  settings.scale = json.at("scale").as_floats("the scale");
  settings.mean = json.find("mean_file") ? floats_of(mean_file, settings.input_size()) : json.at("mean").as_floats("the mean");
  const auto fits = [&](const std::vector<float>& values) { return values.size() == 1 || values.size() == channels; };
  if (!fits(settings.scale) || (!json.find("mean_file") && !fits(settings.mean)))
    throw Error("mean and scale need one number, or one a channel");
}

void read_detection(const Json& json, Settings& settings) {
  Detection& how = settings.detection;
  how.priors = json.at("priors").as_int("the number of priors", 1, MAX_PRIORS);
  how.background = json.at("background").as_int("the background's class", -1, MAX_CLASSES);
  how.threshold = static_cast<float>(json.at("threshold").as_number("the threshold"));
  how.nms = static_cast<float>(json.at("nms").as_number("the threshold of overlaps"));
  how.eta = static_cast<float>(json.at("eta").as_number("eta"));
  how.top_k = json.at("top_k").as_int("top_k", -1, MAX_PRIORS);
  how.keep_top_k = json.at("keep_top_k").as_int("keep_top_k", -1, MAX_PRIORS);
  if (const Json* height = json.find("min_height")) how.min_height = static_cast<float>(height->as_number("min_height"));
}

float area(const float* box) { return std::max(box[2] - box[0], 0.f) * std::max(box[3] - box[1], 0.f); }

// Intersection over union; 0 where two boxes do not meet.
float overlap(const float* a, const float* b) {
  const float wide = std::min(a[2], b[2]) - std::max(a[0], b[0]), high = std::min(a[3], b[3]) - std::max(a[1], b[1]);
  if (!(wide > 0 && high > 0)) return 0;
  const float shared = wide * high, whole = area(a) + area(b) - shared;
  return whole > 0 ? shared / whole : 0;
}

// Priors of one class that are kept, best first.
std::vector<int> suppress(const std::vector<float>& scores, const std::vector<float>& boxes, int label, const Settings& settings) {
  const Detection& how = settings.detection;
  const auto score = [&](int prior) { return scores[static_cast<size_t>(prior) * settings.classes + label]; };
  std::vector<int> order;
  for (int prior = 0; prior < how.priors; ++prior)
    if (score(prior) > how.threshold) order.push_back(prior);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return score(a) > score(b); });
  if (how.top_k >= 0 && order.size() > static_cast<size_t>(how.top_k)) order.resize(static_cast<size_t>(how.top_k));
  std::vector<int> kept;
  float nms = how.nms;
  for (int prior : order) {
    const float* box = &boxes[4 * static_cast<size_t>(prior)];
    const auto covers = [&](int other) { return overlap(box, &boxes[4 * static_cast<size_t>(other)]) > nms; };
    if (std::any_of(kept.begin(), kept.end(), covers)) continue;
    kept.push_back(prior);
    if (how.eta < 1 && nms > 0.5f) nms *= how.eta;
  }
  const auto is_tall = [&](int prior) { return boxes[4 * static_cast<size_t>(prior) + 3] - boxes[4 * static_cast<size_t>(prior) + 1] >= how.min_height; };
  kept.erase(std::stable_partition(kept.begin(), kept.end(), is_tall), kept.end());
  return kept;
}

// A JPEG or PNG without its end mark; decoders would fill in gray.
bool is_truncated(const std::string& data) {
  if (data.compare(0, 2, "\xff\xd8") == 0) {
    const size_t end = data.rfind("\xff\xd9"), scan = data.rfind("\xff\xda");
    return end == std::string::npos || (scan != std::string::npos && end <= scan);
  }
  if (data.compare(0, 4, "\x89PNG") == 0) return data.find("IEND\xae\x42\x60\x82") == std::string::npos;
  return data.empty();
}

}  // namespace

std::string read_file(const std::string& path) {
  errno = 0;
  std::ifstream stream(path, std::ios::binary);
  std::string data;
  // A folder can be opened, but not read.
  if (stream && stream.peek() != std::ifstream::traits_type::eof())
    data.assign(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
  if (stream.bad() || !stream.is_open() || errno == EISDIR)
    throw Error(path + ": cannot read the file: " + std::strerror(errno ? errno : EIO));
  return data;
}

Settings parse_settings(const std::string& text, const std::string& labels, const std::string& mean_file) {
  const Json json = parse_json(text);
  if (json.at("format").as_number("the format") != FORMAT) throw Error("the format is not " + std::to_string(FORMAT));
  Settings settings;
  settings.input = json.at("input").at("name").as_string("the input's name");
  const Json& output = json.at("output");
  settings.classes = output.at("classes").as_int("the number of classes", 1, MAX_CLASSES);
  read_sizes(json, settings);
  read_numbers(json, mean_file, settings);
  settings.is_detector = json.find("detection") != nullptr;
  if (settings.is_detector) {
    settings.outputs = {output.at("scores").as_string("the scores' name"), output.at("boxes").as_string("the boxes' name")};
    read_detection(json.at("detection"), settings);
  } else {
    settings.outputs = {output.at("name").as_string("the output's name")};
  }
  settings.labels = split_lines(labels);
  if (!is_utf8(labels)) throw Error("labels.txt is not UTF-8");
  if (settings.labels.size() != static_cast<size_t>(settings.classes))
    throw Error("labels.txt has " + std::to_string(settings.labels.size()) + " lines, but the model has " +
          std::to_string(settings.classes) + " classes");
  return settings;
}

Settings load_settings(const std::string& folder) {
  const std::string path = folder + "/preprocessing.json";
  const std::string text = read_file(path), labels = read_file(folder + "/labels.txt");
  try {
    const std::string mean_file = parse_json(text).find("mean_file") ? read_file(folder + "/mean.f32") : "";
    Settings settings = parse_settings(text, labels, mean_file);
    settings.folder = folder;
    return settings;
  } catch (const Error& error) {
    throw Error(path + ": damaged, or not of a bundle: " + error.what());
  }
}

cv::Mat decode_picture(const std::string& data, const std::string& path, const Settings& settings) {
  if (is_truncated(data)) throw Error(path + ": the picture is truncated or empty");
  cv::Mat image;
  try {
    const cv::Mat bytes(1, static_cast<int>(data.size()), CV_8U, const_cast<char*>(data.data()));
    image = cv::imdecode(bytes, settings.order == "GRAY" ? cv::IMREAD_GRAYSCALE : cv::IMREAD_COLOR);
  } catch (const cv::Exception&) {
    image.release();
  }
  if (image.empty()) throw Error(path + ": not a picture that OpenCV can decode");
  return image;
}

cv::Mat read_picture(const std::string& path, const Settings& settings) { return decode_picture(read_file(path), path, settings); }

std::vector<float> prepare(const cv::Mat& image, const Settings& settings) {
  const cv::Size size(settings.resize_width, settings.resize_height);
  cv::Mat resized = image;
  if (image.size() != size) cv::resize(image, resized, size, 0, 0, cv::INTER_LINEAR);
  const int left = (size.width - settings.width) / 2, top = (size.height - settings.height) / 2;
  const cv::Mat crop = resized(cv::Rect(left, top, settings.width, settings.height));
  std::vector<float> input(settings.input_size());
  const size_t plane = static_cast<size_t>(settings.height) * settings.width;
  const bool has_mean_image = settings.mean.size() == input.size() && plane > 1;
  for (int channel = 0; channel < settings.channels; ++channel) {
    const size_t number = static_cast<size_t>(channel);
    const float scale = settings.scale[settings.scale.size() == 1 ? 0 : number];
    const float mean = settings.mean[settings.mean.size() == 1 || has_mean_image ? 0 : number];
    const int source = settings.order == "RGB" ? 2 - channel : channel;
    for (int y = 0; y < settings.height; ++y) {
      const uchar* row = crop.ptr<uchar>(y) + source;
      const size_t start = number * plane + static_cast<size_t>(y) * settings.width;
      for (int x = 0; x < settings.width; ++x) {
        const size_t at = start + static_cast<size_t>(x);
        input[at] = (static_cast<float>(row[x * settings.channels]) - (has_mean_image ? settings.mean[at] : mean)) * scale;
      }
    }
  }
  return input;
}

std::vector<Guess> best(const std::vector<float>& probabilities, const Settings& settings, int top) {
  if (probabilities.size() != static_cast<size_t>(settings.classes))
    throw Error("the model gives " + std::to_string(probabilities.size()) + " values, but there are " + std::to_string(settings.classes) +
          " classes");
  std::vector<int> order(probabilities.size());
  std::iota(order.begin(), order.end(), 0);
  // NaN sorts last; it would break the order otherwise.
  const auto value = [&](int i) {
    const float probability = probabilities[static_cast<size_t>(i)];
    return std::isnan(probability) ? -INFINITY : probability;
  };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return value(a) > value(b); });
  std::vector<Guess> guesses;
  for (int index : order) {
    if (static_cast<int>(guesses.size()) >= top) break;
    guesses.push_back({index, probabilities[static_cast<size_t>(index)]});
  }
  return guesses;
}

std::vector<Box> detect(const std::vector<float>& scores, const std::vector<float>& boxes, cv::Size image, const Settings& settings) {
  const Detection& how = settings.detection;
  const size_t priors = static_cast<size_t>(how.priors);
  if (scores.size() != priors * static_cast<size_t>(settings.classes) || boxes.size() != 4 * priors)
    throw Error("the model gives " + std::to_string(scores.size()) + " scores and " + std::to_string(boxes.size()) +
          " corners, which does not fit " + std::to_string(how.priors) + " boxes of " + std::to_string(settings.classes) + " classes");
  // From the crop to the whole picture.
  const float left = static_cast<float>((settings.resize_width - settings.width) / 2);
  const float top = static_cast<float>((settings.resize_height - settings.height) / 2);
  const float x_factor = static_cast<float>(image.width) / static_cast<float>(settings.resize_width);
  const float y_factor = static_cast<float>(image.height) / static_cast<float>(settings.resize_height);
  const auto x = [&](float value) { return (value * static_cast<float>(settings.width) + left) * x_factor; };
  const auto y = [&](float value) { return (value * static_cast<float>(settings.height) + top) * y_factor; };
  std::vector<Box> found;
  for (int label = 0; label < settings.classes; ++label) {
    if (label == how.background) continue;
    for (int prior : suppress(scores, boxes, label, settings)) {
      const float* box = &boxes[4 * static_cast<size_t>(prior)];
      const float score = scores[static_cast<size_t>(prior) * static_cast<size_t>(settings.classes) + static_cast<size_t>(label)];
      found.push_back({label, score, x(box[0]), y(box[1]), x(box[2]), y(box[3])});
    }
  }
  std::stable_sort(found.begin(), found.end(), [](const Box& a, const Box& b) { return a.score > b.score; });
  if (how.keep_top_k >= 0 && found.size() > static_cast<size_t>(how.keep_top_k)) found.resize(static_cast<size_t>(how.keep_top_k));
  return found;
}

}  // namespace caffetools
