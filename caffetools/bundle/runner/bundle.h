// A bundle's settings, and what happens before and after the network: the same steps, with the same numbers, as in classify.py.
#pragma once

#include <limits>
#include <opencv2/core.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace caffetools {

// A file of the bundle, or an input, that cannot be used; the message names it.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Non-maximum suppression, as a DetectionOutput layer of Caffe's SSD does it.
struct Detection {
  int priors = 0;
  int background = -1;
  float threshold = 0;  // scores above this one count
  float nms = 1;        // largest overlap with a better box of the class
  float eta = 1;        // factor of nms after each box that is kept, while nms is above 0.5
  int top_k = -1;       // best boxes of a class that are looked at; -1 for all
  int keep_top_k = -1;  // boxes to keep; -1 for all
  float min_height = -std::numeric_limits<float>::infinity();  // smallest height of a box that is kept, over the input's
};

struct Settings {
  std::string folder;
  std::string input;                 // name of the model's input, (1, channels, height, width) float32
  std::vector<std::string> outputs;  // {probabilities}, or {scores, boxes} of a detector
  int channels = 0, height = 0, width = 0;
  int resize_width = 0, resize_height = 0;  // of the whole image, before its center is cropped
  std::string order;                        // BGR, RGB or GRAY
  std::vector<float> mean;                  // 1 or channels values, or channels * height * width; of pixels from 0 to 255
  std::vector<float> scale;                 // 1 or channels factors after the mean is subtracted
  int classes = 0;
  std::vector<std::string> labels;
  bool is_detector = false;
  Detection detection;

  size_t input_size() const { return static_cast<size_t>(channels) * height * width; }
};

struct Guess {
  int index;
  float probability;
};

struct Box {
  int index;
  float score;
  float x1, y1, x2, y2;  // pixels of the picture
};

// The bytes of a file. Throws Error naming it.
std::string read_file(const std::string& path);

// The settings of a bundle's folder.
Settings load_settings(const std::string& folder);

// The settings from the content of preprocessing.json and labels.txt; `mean_file` has the content of the mean image, where there is one.
Settings parse_settings(const std::string& json, const std::string& labels, const std::string& mean_file);

// A picture's file as 8 bits (H, W, 3) BGR, or gray for a gray model. Throws Error naming `path`.
cv::Mat decode_picture(const std::string& data, const std::string& path, const Settings& settings);
cv::Mat read_picture(const std::string& path, const Settings& settings);

// The model's input for one image: resize, crop the center, subtract the mean, scale.
std::vector<float> prepare(const cv::Mat& image, const Settings& settings);

// The `top` most probable classes; of equal ones the lower first.
std::vector<Guess> best(const std::vector<float>& probabilities, const Settings& settings, int top);

// The boxes that are left after non-maximum suppression, best first, in pixels of an image of the given size.
std::vector<Box> detect(const std::vector<float>& scores, const std::vector<float>& boxes, cv::Size image, const Settings& settings);

}  // namespace caffetools
