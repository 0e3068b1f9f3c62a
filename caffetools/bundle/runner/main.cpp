// caffetools-classify: classify pictures, folders, videos or a camera with a bundle, or find the objects in them.
#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <opencv2/imgproc.hpp>
#include <opencv2/videoio.hpp>
// After OpenCV's other headers, whose macros it needs.
#include <opencv2/core/utils/filesystem.hpp>
#include <opencv2/core/utils/logger.hpp>
#include <sys/stat.h>

#include "backend.h"
#include "bundle.h"
#include "json.h"

using namespace caffetools;

namespace {

const char USAGE[] =
  "usage: caffetools-classify BUNDLE INPUT... [options]\n"
  "\n"
  "Classify pictures, or find objects in them, with the bundle in the folder BUNDLE.\n"
  "INPUT: a picture, a folder of pictures, a video, or camera:0\n"
  "\n"
  "  --top N          number of classes to print (default 5)\n"
  "  --backend NAME   auto (default)";

struct Options {
  std::string bundle;
  std::vector<std::string> inputs;
  int top = 5;
  int frames = 0;
  std::string backend = "auto";
  std::string dump;
  bool json = false;
};

void print_usage() {
  std::fputs(USAGE, stdout);
  for (const std::string& name : backend_names()) std::printf(", %s", name.c_str());
  std::fputs(
    "\n"
    "  --frames N       stop after so many frames of a video or camera\n"
    "  --json           print one JSON object a line\n"
    "  --dump FILE      write the model's inputs to FILE, float32\n"
    "  -h, --help\n",
    stdout);
}

int parse_count(const std::string& text, const char* option, int lowest) {
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end || value < lowest || value > 1000000000)
    throw Error(std::string(option) + " needs a whole number of at least " + std::to_string(lowest) + ", not '" + text + "'");
  return static_cast<int>(value);
}

Options parse(int count, char** arguments) {
  Options options;
  std::vector<std::string> places;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    const auto value = [&]() -> std::string {
      if (i + 1 >= count) throw Error(name + " needs a value");
      return arguments[++i];
    };
    if (name == "--top")
      options.top = parse_count(value(), "--top", 1);
    else if (name == "--frames")
      options.frames = parse_count(value(), "--frames", 0);
    else if (name == "--backend")
      options.backend = value();
    else if (name == "--dump")
      options.dump = value();
    else if (name == "--json")
      options.json = true;
    else if (name.size() > 1 && name[0] == '-')
      throw Error("unknown option " + name + "; --help lists the options");
    else
      places.push_back(name);
  }
  if (places.size() < 2) throw Error("a bundle's folder and at least one input are needed; --help describes them");
  const std::vector<std::string> names = backend_names();
  if (options.backend != "auto" && std::find(names.begin(), names.end(), options.backend) == names.end())
    throw Error("this runner was built without the back end '" + options.backend + "'");
  options.bundle = places[0];
  options.inputs.assign(places.begin() + 1, places.end());
  return options;
}

bool is_picture(const std::string& path) {
  static const char* const ENDINGS[] = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".ppm", ".pgm", ".tif", ".tiff", ".webp"};
  const size_t dot = path.find_last_of("./\\");
  if (dot == std::string::npos || path[dot] != '.') return false;
  std::string ending = path.substr(dot);
  for (char& c : ending) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return std::any_of(std::begin(ENDINGS), std::end(ENDINGS), [&](const char* known) { return ending == known; });
}

std::vector<std::string> pictures_in(const std::string& folder) {
  std::vector<cv::String> found;
  cv::utils::fs::glob(folder, "*", found, false, false);
  std::vector<std::string> pictures;
  for (const cv::String& path : found)
    if (is_picture(path)) pictures.push_back(path);
  if (pictures.empty()) throw Error(folder + ": the folder holds no pictures");
  std::sort(pictures.begin(), pictures.end());
  return pictures;
}

// Whether a regular file begins like a text that is not a list of videos; FFmpeg would show it as frames of letters.
bool is_text(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0 || (status.st_mode & S_IFMT) != S_IFREG) return false;
  char start[512];
  std::ifstream stream(path, std::ios::binary);
  stream.read(start, sizeof start);
  const std::string text(start, static_cast<size_t>(stream.gcount()));
  for (const char* list : {"#EXTM3U", "v=0", "ffconcat"})
    if (text.compare(0, std::strlen(list), list) == 0) return false;
  return std::all_of(text.begin(), text.end(), [](unsigned char c) { return c >= ' ' || (c >= '\t' && c <= '\r'); });
}

class Runner {
 public:
  explicit Runner(const Options& options)
    : options_(options), settings_(load_settings(options.bundle)), backend_(open_backend(settings_, options.backend)) {
    if (options.dump.empty()) return;
    dump_ = std::fopen(options.dump.c_str(), "wb");
    if (!dump_) throw Error(options.dump + ": cannot write the file");
  }

  ~Runner() {
    if (dump_) std::fclose(dump_);
  }
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  // Returns the exit code: 2 if an input cannot be used.
  int run() {
    for (const std::string& name : options_.inputs) guarded([&] { run_input(name); });
    if (dump_ && std::ferror(dump_)) throw Error(options_.dump + ": cannot write the file");
    return code_;
  }

 private:
  void guarded(const std::function<void()>& work) {
    try {
      work();
    } catch (const Error& error) {
      std::fflush(stdout);
      std::fprintf(stderr, "caffetools-classify: error: %s\n", error.what());
      code_ = 2;
    }
  }

  void run_input(const std::string& name) {
    const bool is_camera = name.compare(0, 7, "camera:") == 0 || name.compare(0, 10, "/dev/video") == 0;
    if (cv::utils::fs::isDirectory(name)) {
      for (const std::string& path : pictures_in(name)) guarded([&] { run_image(path, read_picture(path, settings_)); });
    } else if (is_picture(name) || !(is_camera || cv::utils::fs::exists(name))) {
      run_image(name, read_picture(name, settings_));
    } else {
      run_video(name);
    }
  }

  void run_video(const std::string& name) {
    cv::VideoCapture video;
    if (name.compare(0, 7, "camera:") == 0) {
      const std::string number = name.substr(7);
      if (number.empty() || number.size() > 3 || number.find_first_not_of("0123456789") != std::string::npos)
        throw Error(name + ": write camera:0 for the first camera");
      video.open(std::atoi(number.c_str()));
    } else if (!is_text(name)) {
      video.open(name);
    }
    int count = 0;
    cv::Mat frame;
    while (video.isOpened() && (options_.frames == 0 || count < options_.frames) && video.read(frame) && !frame.empty()) {
      cv::Mat image = frame;
      if (settings_.order == "GRAY" && frame.channels() == 3) cv::cvtColor(frame, image, cv::COLOR_BGR2GRAY);
      run_image(name + "#" + std::to_string(count++), image);
    }
    if (count == 0) throw Error(name + ": not a picture, video or camera that OpenCV can open");
  }

  void run_image(const std::string& name, const cv::Mat& image) {
    std::vector<float> input = prepare(image, settings_);
    if (dump_) std::fwrite(input.data(), sizeof(float), input.size(), dump_);
    const std::vector<std::vector<float>> outputs = backend_->run(input);
    if (settings_.is_detector)
      print_boxes(name, detect(outputs.at(0), outputs.at(1), image.size(), settings_));
    else
      print_guesses(name, best(outputs.at(0), settings_, options_.top));
    std::fflush(stdout);
  }

  const std::string& label(int index) const { return settings_.labels[static_cast<size_t>(index)]; }

  void print_guesses(const std::string& name, const std::vector<Guess>& guesses) const {
    if (!options_.json) {
      std::puts(name.c_str());
      for (const Guess& guess : guesses) std::printf("  %6.4f  %s\n", static_cast<double>(guess.probability), label(guess.index).c_str());
      return;
    }
    std::printf("{\"picture\": %s, \"guesses\": [", quote_json(name).c_str());
    const char* comma = "";
    for (const Guess& guess : guesses) {
      std::printf("%s{\"index\": %d, \"label\": %s, \"probability\": %.9g}", comma, guess.index, quote_json(label(guess.index)).c_str(),
            static_cast<double>(guess.probability));
      comma = ", ";
    }
    std::puts("]}");
  }

  void print_boxes(const std::string& name, const std::vector<Box>& boxes) const {
    if (!options_.json) {
      std::puts(name.c_str());
      for (const Box& box : boxes)
        std::printf("  %6.4f  %s  (%.1f, %.1f) to (%.1f, %.1f)\n", static_cast<double>(box.score), label(box.index).c_str(),
              static_cast<double>(box.x1), static_cast<double>(box.y1), static_cast<double>(box.x2), static_cast<double>(box.y2));
      return;
    }
    std::printf("{\"picture\": %s, \"boxes\": [", quote_json(name).c_str());
    const char* comma = "";
    for (const Box& box : boxes) {
      std::printf("%s{\"index\": %d, \"label\": %s, \"score\": %.9g, \"box\": [%.9g, %.9g, %.9g, %.9g]}", comma, box.index,
            quote_json(label(box.index)).c_str(), static_cast<double>(box.score), static_cast<double>(box.x1),
            static_cast<double>(box.y1), static_cast<double>(box.x2), static_cast<double>(box.y2));
      comma = ", ";
    }
    std::puts("]}");
  }

  const Options options_;
  const Settings settings_;
  const std::unique_ptr<Backend> backend_;
  std::FILE* dump_ = nullptr;
  int code_ = 0;
};

}  // namespace

int main(int count, char** arguments) {
  // Every failure is one line of ours; OpenCV would print its own before.
  cv::utils::logging::setLogLevel(cv::utils::logging::LOG_LEVEL_SILENT);
  cv::redirectError([](int, const char*, const char*, const char*, int, void*) { return 0; });
  if (std::any_of(arguments + 1, arguments + count, [](const std::string& text) { return text == "--help" || text == "-h"; })) {
    print_usage();
    return 0;
  }
  try {
    return Runner(parse(count, arguments)).run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "caffetools-classify: error: %s\n", error.what());
    return 2;
  }
}
