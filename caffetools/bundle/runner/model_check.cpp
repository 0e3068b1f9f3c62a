#include "model_check.h"

#include <cstdint>
#include <set>
#include <vector>

namespace caffetools {
namespace {

// A part of the file: a message of Protocol Buffers.
struct Bytes {
  const unsigned char* at;
  const unsigned char* end;

  size_t size() const { return static_cast<size_t>(end - at); }
  std::string text() const { return std::string(reinterpret_cast<const char*>(at), size()); }
};

uint64_t read_varint(Bytes& bytes) {
  uint64_t value = 0;
  for (unsigned shift = 0; shift < 64; shift += 7) {
    if (bytes.at == bytes.end) throw Error("the file ends too early");
    const unsigned char byte = *bytes.at++;
    value |= static_cast<uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  throw Error("a number of more than 64 bits");
}

Bytes take(Bytes& bytes, uint64_t count) {
  if (count > bytes.size()) throw Error("the file ends too early");
  const Bytes taken{bytes.at, bytes.at + count};
  bytes.at += count;
  return taken;
}

// One field of a message: a number of it in `value`, or its bytes in `data`.
struct Field {
  unsigned number = 0;
  bool is_bytes = false;
  uint64_t value = 0;
  Bytes data{nullptr, nullptr};
};

bool next_field(Bytes& message, Field& field) {
  if (message.at == message.end) return false;
  const uint64_t tag = read_varint(message);
  field = Field();
  if (tag >> 3 == 0 || tag >> 3 > 0x1FFFFFFF) throw Error("a field without a number");
  field.number = static_cast<unsigned>(tag >> 3);
  switch (tag & 7) {
    case 0: field.value = read_varint(message); break;
    case 1: take(message, 8); break;
    case 2:
      field.is_bytes = true;
      field.data = take(message, read_varint(message));
      break;
    case 5: take(message, 4); break;
    default: throw Error("a field of an unknown kind");
  }
  return true;
}

// Fields of onnx.proto.
namespace model {
constexpr unsigned GRAPH = 7;
}
namespace graph {
constexpr unsigned NODE = 1, INITIALIZER = 5, INPUT = 11, OUTPUT = 12, SPARSE = 15;
}
namespace node {
constexpr unsigned INPUT = 1, OUTPUT = 2, OPERATOR = 4, ATTRIBUTE = 5;
}
namespace attribute {
constexpr unsigned INT = 3, INTS = 8, TENSOR = 5, GRAPH = 6, TENSORS = 10, GRAPHS = 11, SPARSE = 22, SPARSES = 23;
}
namespace tensor {
constexpr unsigned DIMS = 1, TYPE = 2, SEGMENT = 3, FLOATS = 4, INT32S = 5, STRINGS = 6, INT64S = 7, NAME = 8, RAW = 9, DOUBLES = 10,
                   UINT64S = 11, EXTERNAL = 13, LOCATION = 14;
}

// Of ONNX's TensorProto.DataType.
constexpr uint64_t INT32 = 6, INT64 = 7;

// Bytes of a number of a type, 0 for types that a bundle's model does not have.
size_t width_of(uint64_t type) {
  switch (type) {
    case 1: case INT32: return 4;   // float
    case INT64: case 11: return 8;  // double
    case 2: case 3: case 9: return 1;  // uint8, int8, bool
    case 10: return 2;  // float16
    default: return 0;
  }
}

// Sizes, axes and strides up to this one are possible. OpenCV makes lists of as many numbers as an axis says.
constexpr int64_t MOST = 1 << 26;

bool is_possible(int64_t value) { return -MOST <= value && value <= MOST; }

// The ends that numbers of 32 and 64 bits have; they mean the end of an axis where an operator slices.
bool is_end(int64_t value) { return value == INT64_MAX || value == INT64_MIN || value == INT32_MAX || value == INT32_MIN; }

// A tensor's name, and whether it holds the end of an axis.
struct Tensor {
  std::string name;
  bool has_end = false;
};

void check_int(int64_t value, Tensor& tensor) {
  if (is_end(value))
    tensor.has_end = true;
  else if (!is_possible(value))
    throw Error("the tensor '" + tensor.name + "' holds an impossible size or axis");
}

// Numbers of 4 or 8 bytes, little-endian.
void check_raw_ints(Bytes bytes, size_t width, Tensor& tensor) {
  for (; bytes.size() >= width; bytes.at += width) {
    uint64_t value = 0;
    for (size_t i = width; i-- > 0;) value = value << 8 | bytes.at[i];
    check_int(width == 4 ? static_cast<int32_t>(static_cast<uint32_t>(value)) : static_cast<int64_t>(value), tensor);
  }
}

size_t count_varints(Bytes bytes) {
  size_t count = 0;
  for (; bytes.at != bytes.end; ++count) read_varint(bytes);
  return count;
}

// Values of a repeated field: one, or a packed list of `width` bytes each, 0 for variable lengths.
size_t count_values(const Field& field, size_t width) {
  if (!field.is_bytes) return 1;
  if (!width) return count_varints(field.data);
  if (field.data.size() % width) throw Error("a list that ends within a number");
  return field.data.size() / width;
}

void add_dims(const Field& field, std::vector<uint64_t>& dims) {
  if (!field.is_bytes) {
    dims.push_back(field.value);
    return;
  }
  for (Bytes list = field.data; list.at != list.end;) dims.push_back(read_varint(list));
}

// Varints of a field, as 32 or 64 bits with a sign.
void check_ints(const Field& field, Tensor& tensor) {
  if (!field.is_bytes) {
    check_int(static_cast<int64_t>(field.value), tensor);
    return;
  }
  for (Bytes list = field.data; list.at != list.end;) check_int(static_cast<int64_t>(read_varint(list)), tensor);
}

Tensor check_tensor(Bytes bytes) {
  std::vector<uint64_t> dims;
  Tensor tensor;
  std::string& name = tensor.name;
  uint64_t type = 0;
  size_t listed = 0;
  Bytes raw{nullptr, nullptr};
  bool has_raw = false;
  Field field;
  while (next_field(bytes, field)) {
    switch (field.number) {
      case tensor::DIMS: add_dims(field, dims); break;
      case tensor::TYPE: type = field.value; break;
      case tensor::NAME: name = field.data.size() ? field.data.text() : ""; break;
      case tensor::RAW:
        raw = field.data;
        has_raw = true;
        break;
      case tensor::FLOATS: listed += count_values(field, 4); break;
      case tensor::DOUBLES: listed += count_values(field, 8); break;
      case tensor::INT32S: case tensor::INT64S:
        listed += count_values(field, 0);
        check_ints(field, tensor);
        break;
      case tensor::LOCATION: if (field.value == 0) break; [[fallthrough]];
      case tensor::SEGMENT: case tensor::STRINGS: case tensor::UINT64S: case tensor::EXTERNAL:
        throw Error("the tensor '" + name + "' has values that a bundle's model does not have");
      default: break;
    }
  }
  const size_t width = width_of(type);
  if (!width) throw Error("the tensor '" + name + "' has a type that a bundle's model does not have");
  uint64_t count = 1;
  for (const uint64_t dim : dims) {
    if (dim > 0x7FFFFFFF || (dim && count > 0x7FFFFFFF / dim)) throw Error("the tensor '" + name + "' has an impossible shape");
    count *= dim;
  }
  if ((has_raw && listed) || (has_raw ? raw.size() != count * width : listed != count))
    throw Error("the tensor '" + name + "' does not have as many values as its shape");
  if (type == INT32 || type == INT64) check_raw_ints(raw, width, tensor);
  return tensor;
}

void check_attribute(Bytes bytes) {
  Field field;
  while (next_field(bytes, field)) {
    switch (field.number) {
      case attribute::TENSOR: case attribute::TENSORS:
        if (check_tensor(field.data).has_end) throw Error("an operator with an impossible size or axis");
        break;
      case attribute::INT: case attribute::INTS: {
        Tensor value;
        value.name = "of an operator";
        check_ints(field, value);
        if (value.has_end) throw Error("an operator with an impossible size or axis");
        break;
      }
      case attribute::GRAPH: case attribute::GRAPHS: case attribute::SPARSE: case attribute::SPARSES:
        throw Error("an operator with a graph or a sparse tensor");
      default: break;
    }
  }
}

// Names of the values that operators may use, and of those of them that hold the end of an axis.
struct Values {
  std::set<std::string> names, ends;
};

void check_node(Bytes bytes, Values& values) {
  std::vector<std::string> inputs, outputs;
  std::string type;
  Field field;
  while (next_field(bytes, field)) {
    // An input that is left out has no name.
    const std::string text = field.data.size() ? field.data.text() : "";
    if (field.number == node::INPUT) inputs.push_back(text);
    if (field.number == node::OUTPUT) outputs.push_back(text);
    if (field.number == node::OPERATOR) type = text;
    if (field.number == node::ATTRIBUTE) check_attribute(field.data);
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].empty() && !values.names.count(inputs[i]))
      throw Error("an operator uses the value '" + inputs[i] + "', which does not exist");
    // The second and third input of Slice are starts and ends.
    if (values.ends.count(inputs[i]) && (type != "Slice" || (i != 1 && i != 2))) throw Error("an operator with an impossible size or axis");
  }
  for (const std::string& name : outputs)
    if (!name.empty() && !values.names.insert(name).second) throw Error("two values have the name '" + name + "'");
}

// The name of a ValueInfoProto.
std::string name_of(Bytes bytes) {
  Field field;
  while (next_field(bytes, field))
    if (field.number == 1) return field.data.size() ? field.data.text() : "";
  return "";
}

void check_graph(Bytes bytes, const Settings& settings) {
  Values values;
  values.names.insert(settings.input);
  std::set<std::string> outputs;
  std::vector<Bytes> nodes;
  Field field;
  while (next_field(bytes, field)) {
    switch (field.number) {
      case graph::NODE: nodes.push_back(field.data); break;
      case graph::INITIALIZER: {
        const Tensor tensor = check_tensor(field.data);
        if (!values.names.insert(tensor.name).second) throw Error("two values have the name '" + tensor.name + "'");
        if (tensor.has_end) values.ends.insert(tensor.name);
        break;
      }
      case graph::INPUT:
        if (name_of(field.data) != settings.input) throw Error("the input is not '" + settings.input + "'");
        break;
      case graph::OUTPUT: outputs.insert(name_of(field.data)); break;
      case graph::SPARSE: throw Error("a sparse tensor");
      default: break;
    }
  }
  for (const Bytes& item : nodes) check_node(item, values);
  for (const std::string& name : settings.outputs)
    if (!values.names.count(name) || !outputs.count(name)) throw Error("there is no output '" + name + "'");
}

}  // namespace

void check_model(const std::string& text, const Settings& settings) {
  const unsigned char* start = reinterpret_cast<const unsigned char*>(text.data());
  Bytes bytes{start, start + text.size()}, graph_bytes{nullptr, nullptr};
  Field field;
  while (next_field(bytes, field))
    if (field.number == model::GRAPH) {
      if (graph_bytes.at) throw Error("two graphs");
      graph_bytes = field.data;
    }
  if (!graph_bytes.size()) throw Error("there is no graph");
  check_graph(graph_bytes, settings);
}

}  // namespace caffetools
