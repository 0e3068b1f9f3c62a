// Reads records of LMDB files (64-bit, little-endian) into Python objects. Every page is copied first and every number in a copy is
// checked before it is used. What is unusual is not explained here: the caller gets None, and Python's reader finds the reason.
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "export.h"

namespace {

struct Object;  // PyObject

// Functions of Python's stable interface, in the order in which lmdb_native.py gives their addresses: so the library is not bound to a
// release of Python.
struct Python {
  Object* (*bytes_new)(const char*, intptr_t);
  char* (*bytes_data)(Object*);
  intptr_t (*bytes_size)(Object*);
  Object* (*list_new)(intptr_t);
  Object* (*list_get)(Object*, intptr_t);
  intptr_t (*list_size)(Object*);
  int (*list_set)(Object*, intptr_t, Object*);
  Object* (*tuple_new)(intptr_t);
  Object* (*tuple_get)(Object*, intptr_t);
  int (*tuple_set)(Object*, intptr_t, Object*);
  Object* (*integer_new)(unsigned long long);
  unsigned long long (*integer_value)(Object*);
  void (*incref)(Object*);
  void (*decref)(Object*);
  void* (*release_gil)();
  void (*take_gil)(void*);
  Object* (*function_new)(struct Method*, Object* self, Object* module);
  Object* (*error)();
  void (*clear_error)();
  Object* none;
};
Python python;

// PyMethodDef of the stable interface.
struct Method {
  const char* name;
  Object* (*call)(Object* self, Object* argument);
  int flags;
  const char* text;
};
constexpr int kOneArgument = 8;  // METH_O

constexpr uint64_t kHeader = 16, kNodeHeader = 8, kWord = 8, kTransaction = 144;  // bytes; the last: offset of a meta page's transaction
constexpr uint16_t kBranch = 1, kLeaf = 2, kOverflow = 4, kKind = 0x6f;
constexpr int kMostPages = 32;
constexpr size_t kMostValues = 64;  // that are copied by one call of the system, which takes 1,024 parts; and their bytes
constexpr uint64_t kMostBytes = 1 << 24;
constexpr uint64_t kLargestPage = 32768;
// Values up to this size are copied without letting other threads run, which takes as long as to copy some kilobytes.
constexpr uint64_t kQuickCopy = 1 << 18;
#ifdef __linux__
constexpr int kPopulateRead = 22;  // Linux 5.14
const uint64_t kSystemPage = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
#endif

template <typename T>
T get(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// The same of memory that another process may change: what is checked is the value that is used, as it is not read again.
template <typename T>
T get_once(const uint8_t* from) {
  T value = get<T>(from);
  __asm__ volatile("" : "+r"(value));
  return value;
}

Object* none() {
  python.incref(python.none);
  return python.none;
}

}  // namespace

// A snapshot of a file, and copies of leaf pages that are read together; lmdb_native.py has the same structure.
struct CaffetoolsLeaves {
  int64_t file;
  uint64_t page_size, transaction, last_page;
  const uint8_t* map;  // of the file's first map_size bytes; null: there is none
  uint64_t map_size;
  uint64_t* mapped;  // bytes that were asked for since the map's pages were released, which happens after most_mapped bytes
  uint64_t most_mapped;
  // For records by number: the leaf pages in order, and the number of records up to the end of each.
  const int64_t *leaf_pages, *ends;
  int64_t leaf_count;
  uint8_t* ready;  // one bit for each page of the map: it was brought into memory, and its nodes were checked if it is a leaf page
  uint8_t* copies;   // of kMostPages pages
  int64_t pages;     // that are copied
  int64_t page, node;  // the next record
  int64_t counts[kMostPages];  // nodes of each page
};

namespace {

using Leaves = CaffetoolsLeaves;

// Release the map's pages if it is time, before `size` bytes are asked for: otherwise a pass over a large file would count as memory of
// this process.
void count_mapped(const Leaves& leaves, uint64_t size) {
#ifdef __linux__
  if (__atomic_add_fetch(leaves.mapped, size, __ATOMIC_RELAXED) <= leaves.most_mapped) return;
  __atomic_store_n(leaves.mapped, size, __ATOMIC_RELAXED);
  madvise(const_cast<uint8_t*>(leaves.map), leaves.map_size, MADV_DONTNEED);
  if (leaves.ready != nullptr) std::memset(leaves.ready, 0, leaves.map_size / leaves.page_size / 8 + 1);
#else
  (void)leaves, (void)size;
#endif
}

// Bring a part of the file into memory; false where the map has not all of it. A page that cannot be read (the file was truncated, the
// disk fails) is an error here, where a mere access would end the process.
bool is_mapped(const Leaves& leaves, uint64_t offset, uint64_t size) {
#ifdef __linux__
  if (offset > leaves.map_size || size > leaves.map_size - offset) return false;
  count_mapped(leaves, size);
  const uint64_t begin = offset & ~(kSystemPage - 1);
  return madvise(const_cast<uint8_t*>(leaves.map) + begin, offset + size - begin, kPopulateRead) == 0;
#else
  return offset + size < offset && leaves.map != nullptr;
#endif
}

// Copy a part of the file without the map. False where the file ends before, or the disk fails.
bool read_part(const Leaves& leaves, uint64_t offset, uint64_t size, void* to) {
  char* out = static_cast<char*>(to);
  while (size) {
    const ssize_t done = pread(static_cast<int>(leaves.file), out, size, static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return false;
    // A call copies 2 GB at most.
    out += done, offset += static_cast<uint64_t>(done), size -= static_cast<uint64_t>(done);
  }
  return true;
}

// Ask for the first bytes of a value, which are used soon.
inline void prefetch(const uint8_t* from) {
  for (int line = 0; line < 8; ++line) __builtin_prefetch(from + 64 * line);
}

bool copy_part(const Leaves& leaves, bool mapped, uint64_t offset, uint64_t size, void* to) {
  if (!mapped) return read_part(leaves, offset, size, to);
  std::memcpy(to, leaves.map + offset, size);
  return true;
}

// The size of the file now. The descriptor's position is not used otherwise, and moving it to the end takes a third of the time of fstat.
uint64_t file_size(const Leaves& leaves) {
  const off_t size = lseek(static_cast<int>(leaves.file), 0, SEEK_END);
  return size < 0 ? 0 : static_cast<uint64_t>(size);
}

// Whether no writer can have reused a page of the snapshot before now. With `mapped`, a page after the first two was just mapped.
bool is_current(const Leaves& leaves, bool mapped) {
  uint64_t one = 0, two = 0;
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (!copy_part(leaves, mapped, kTransaction, kWord, &one)) return false;
  return copy_part(leaves, mapped, leaves.page_size + kTransaction, kWord, &two) && (one > two ? one : two) <= leaves.transaction + 1;
}

// Return the number of nodes of a page, 0 if its header or an offset is not that of a sound page of this kind.
int64_t sound_nodes(const Leaves& leaves, const uint8_t* data, uint64_t page, uint16_t kind) {
  const uint64_t lower = get<uint16_t>(data + 12), upper = get<uint16_t>(data + 14);
  if (get<uint64_t>(data) != page || (get<uint16_t>(data + 10) & kKind) != kind) return 0;
  if (lower < kHeader + 2 || lower % 2 || lower > upper || upper > leaves.page_size) return 0;
  const int64_t count = static_cast<int64_t>(lower - kHeader) / 2;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t offset = get<uint16_t>(data + kHeader + 2 * i);
    if (offset < upper || offset + kNodeHeader > leaves.page_size) return 0;
  }
  return count;
}

struct Bytes {
  const uint8_t* data = nullptr;
  uint64_t size = 0;
  bool operator<(const Bytes& other) const {
    const int order = std::memcmp(data, other.data, size < other.size ? size : other.size);
    return order ? order < 0 : size < other.size;
  }
};

Bytes bytes_of(Object* object) {
  return {reinterpret_cast<const uint8_t*>(python.bytes_data(object)), static_cast<uint64_t>(python.bytes_size(object))};
}

struct Node {
  Bytes key;
  const uint8_t* value;  // in the page; null: on overflow pages
  uint64_t size, overflow_page;
};

// Node `number` of a leaf page whose header and offsets are sound. False if it leaves the page, or is of a kind for Python's reader.
bool leaf_node(const Leaves& leaves, const uint8_t* data, int64_t number, Node* node) {
  const uint64_t begin = get_once<uint16_t>(data + kHeader + 2 * number) + kNodeHeader;
  if (begin > leaves.page_size) return false;
  const uint8_t* head = data + begin - kNodeHeader;
  const uint16_t flags = get_once<uint16_t>(head + 4);
  node->size = get_once<uint32_t>(head);
  node->key = {data + begin, get_once<uint16_t>(head + 6)};
  const uint64_t middle = begin + node->key.size;
  if (flags > 1 || middle + (flags ? kWord : node->size) > leaves.page_size) return false;
  node->value = flags ? nullptr : data + middle;
  node->overflow_page = flags ? get_once<uint64_t>(data + middle) : 0;
  return true;
}

bool is_sound_leaf(const Leaves& leaves, const uint8_t* data, int64_t count, const Bytes& low, const Bytes* high, Bytes* last) {
  Node node;
  for (int64_t i = 0; i < count; ++i) {
    if (!leaf_node(leaves, data, i, &node)) return false;
    if (i == 0 ? node.key < low : !(*last < node.key)) return false;
    *last = node.key;
  }
  return high == nullptr || *last < *high;
}

bool overflow_fits(const Leaves& leaves, uint64_t page, uint64_t size, uint64_t file_size) {
  if (page < 2 || page > leaves.last_page || page > file_size / leaves.page_size) return false;
  return page * leaves.page_size + kHeader + size <= file_size;
}

bool is_overflow(const Leaves& leaves, const uint8_t* head, uint64_t page, uint64_t size) {
  const uint64_t needed = (kHeader - 1 + size) / leaves.page_size + 1, count = get<uint32_t>(head + 12);
  return get<uint64_t>(head) == page && (get<uint16_t>(head + 10) & kKind) == kOverflow && needed <= count &&
         count <= leaves.last_page - page + 1;
}

struct Large {
  uint64_t page, size;
  char* to;
  uint8_t head[kHeader];
};

// Copy values that follow each other in the file; what is in between goes to `gap`.
bool read_values(const Leaves& leaves, Large* values, size_t count, uint8_t* gap) {
  if (count == 1) {
    const uint64_t begin = values->page * leaves.page_size;
    return read_part(leaves, begin, kHeader, values->head) && read_part(leaves, begin + kHeader, values->size, values->to);
  }
  iovec parts[3 * kMostValues];
  uint64_t end = values->page * leaves.page_size;
  const uint64_t begin = end;
  int used = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t start = values[i].page * leaves.page_size;
    if (start > end) parts[used++] = {gap, start - end};
    parts[used++] = {values[i].head, kHeader};
    parts[used++] = {values[i].to, values[i].size};
    end = start + kHeader + values[i].size;
  }
  ssize_t done;
  do done = preadv(static_cast<int>(leaves.file), parts, used, static_cast<off_t>(begin));
  while (done < 0 && errno == EINTR);
  return done == static_cast<ssize_t>(end - begin);
}

// Copy values; those that lie close together by one call of the system. It takes less time than to map their pages first, so that a page
// which cannot be read is an error, and to copy them from the map.
bool copy_values(const Leaves& leaves, std::vector<Large>& values) {
  uint8_t gap[kLargestPage];
  for (size_t first = 0, next = 1; first < values.size(); first = next++) {
    const uint64_t begin = values[first].page * leaves.page_size;
    for (uint64_t end = begin + kHeader + values[first].size; next < values.size() && next - first < kMostValues; ++next) {
      const uint64_t start = values[next].page * leaves.page_size;
      if (start < end || start - end > std::min<uint64_t>(sizeof gap, 2 * leaves.page_size)) break;
      end = start + kHeader + values[next].size;
      if (end - begin > kMostBytes) break;
    }
    if (!read_values(leaves, &values[first], next - first, gap)) return false;
  }
  for (const Large& value : values) {
    if (!is_overflow(leaves, value.head, value.page, value.size)) return false;
  }
  return is_current(leaves, leaves.map != nullptr);
}

// (key, value) of a node; the value of one on overflow pages is for the caller to fill. Null with an exception if memory is short.
Object* make_record(const Node& node) {
  Object* pair = python.tuple_new(2);
  if (pair == nullptr) return nullptr;
  Object* key = python.bytes_new(reinterpret_cast<const char*>(node.key.data), static_cast<intptr_t>(node.key.size));
  if (key != nullptr) python.tuple_set(pair, 0, key);
  Object* value = key == nullptr ? nullptr : python.bytes_new(reinterpret_cast<const char*>(node.value), static_cast<intptr_t>(node.size));
  if (value != nullptr) {
    python.tuple_set(pair, 1, value);
    return pair;
  }
  python.decref(pair);
  return nullptr;
}

// A list of (key, value). None if a large value is damaged or the snapshot is out of date; null with an exception if memory is short.
Object* make_records(const Leaves& leaves, const std::vector<Node>& nodes) {
  uint64_t size = 0;
  for (const Node& node : nodes) {
    if (node.value != nullptr) continue;
    // Before memory is taken for it.
    if (overflow_fits(leaves, node.overflow_page, node.size, leaves.map_size)) continue;
    if (!size) size = file_size(leaves);
    if (!overflow_fits(leaves, node.overflow_page, node.size, size)) return none();
  }
  Object* list = python.list_new(static_cast<intptr_t>(nodes.size()));
  if (list == nullptr) return nullptr;
  std::vector<Large> large;
  for (size_t i = 0; i < nodes.size(); ++i) {
    Object* pair = make_record(nodes[i]);
    if (pair == nullptr) {
      python.decref(list);
      return nullptr;
    }
    if (nodes[i].value == nullptr) large.push_back({nodes[i].overflow_page, nodes[i].size, python.bytes_data(python.tuple_get(pair, 1)), {}});
    python.list_set(list, static_cast<intptr_t>(i), pair);
  }
  if (large.empty()) return list;
  void* state = python.release_gil();
  const bool sound = copy_values(leaves, large);
  python.take_gil(state);
  if (sound) return list;
  python.decref(list);
  return none();
}

// Copy pages one after the other to `to`; those that follow each other in the file by one call of the system.
bool copy_pages(const Leaves& leaves, const std::vector<uint64_t>& pages, uint8_t* to) {
  for (size_t first = 0, next = 1; first < pages.size(); first = next++) {
    while (next < pages.size() && pages[next] == pages[next - 1] + 1) ++next;
    const uint64_t offset = pages[first] * leaves.page_size, size = (next - first) * leaves.page_size;
    if (!read_part(leaves, offset, size, to + first * leaves.page_size)) return false;
  }
  return is_current(leaves, leaves.map != nullptr);
}

bool copy_page(const Leaves& leaves, uint64_t page, uint8_t* to) {
  if (page < 2 || page > leaves.last_page || leaves.page_size > kLargestPage) return false;
  return read_part(leaves, page * leaves.page_size, leaves.page_size, to) && is_current(leaves, leaves.map != nullptr);
}

bool is_ready(const Leaves& leaves, uint64_t page) {
  return __atomic_load_n(&leaves.ready[page / 8], __ATOMIC_RELAXED) >> (page % 8) & 1;
}

void set_ready(const Leaves& leaves, uint64_t page) {
  __atomic_fetch_or(&leaves.ready[page / 8], static_cast<uint8_t>(1u << (page % 8)), __ATOMIC_RELAXED);
}

// Whether all nodes of a leaf page are sound, by a copy of it; it is brought into memory, too.
bool check_leaf(const Leaves& leaves, uint64_t page) {
  uint8_t data[kLargestPage];
  if (!is_mapped(leaves, page * leaves.page_size, leaves.page_size) || !copy_page(leaves, page, data)) return false;
  const int64_t count = sound_nodes(leaves, data, page, kLeaf);
  Node node;
  for (int64_t i = 0; i < count; ++i) {
    if (!leaf_node(leaves, data, i, &node)) return false;
  }
  return count > 0;
}

// The record of a node whose value is read from the file, not from the map.
Object* record_of_file(const Leaves& leaves, const Node& node) {
  Object* list = make_records(leaves, {node});
  if (list == nullptr || list == python.none) return list;
  Object* record = python.list_get(list, 0);
  python.incref(record);
  python.decref(list);
  return record;
}

// The record of node `number` of a leaf page, by copies. Python's reader is asked (None) where something is not sound.
Object* record_of_copy(const Leaves& leaves, uint64_t page, int64_t number) {
  uint8_t data[kLargestPage];
  if (!copy_page(leaves, page, data)) return none();
  Node node;
  if (number >= sound_nodes(leaves, data, page, kLeaf) || !leaf_node(leaves, data, number, &node)) return none();
  return node.value != nullptr ? make_record(node) : record_of_file(leaves, node);
}

// The same, read where it lies. A page is brought into memory and checked once for a snapshot; then only its header and this node are, and
// whether the file was truncated.
Object* record_in_map(const Leaves& leaves, uint64_t page, int64_t number) {
  // While the system is asked, the page's header and the node's offset come from memory.
  if (page < leaves.map_size / leaves.page_size) {
    __builtin_prefetch(leaves.map + page * leaves.page_size);
    __builtin_prefetch(leaves.map + page * leaves.page_size + kHeader + 2 * (number & 4095));
  }
  const uint64_t size = std::min(file_size(leaves), leaves.map_size);
  if (page < 2 || page > leaves.last_page || page >= size / leaves.page_size) return record_of_copy(leaves, page, number);
  if (!is_ready(leaves, page)) {
    if (!check_leaf(leaves, page)) return none();
    set_ready(leaves, page);
  }
  const uint8_t* const data = leaves.map + page * leaves.page_size;
  const uint64_t lower = get_once<uint16_t>(data + 12);
  if (get<uint64_t>(data) != page || (get<uint16_t>(data + 10) & kKind) != kLeaf || lower > leaves.page_size) return none();
  Node node;
  if (number < 0 || kHeader + 2 * static_cast<uint64_t>(number) + 2 > lower || !leaf_node(leaves, data, number, &node)) return none();
  const bool large = node.value == nullptr;
  if (large) {
    const uint64_t begin = node.overflow_page * leaves.page_size;
    if (!overflow_fits(leaves, node.overflow_page, node.size, size)) return record_of_copy(leaves, page, number);
    prefetch(leaves.map + begin);
    if (!is_ready(leaves, node.overflow_page)) {
      void* state = python.release_gil();
      const bool mapped = is_mapped(leaves, begin, kHeader + node.size);
      python.take_gil(state);
      if (!mapped) return none();
      set_ready(leaves, node.overflow_page);
    }
    if (!is_overflow(leaves, leaves.map + begin, node.overflow_page, node.size)) return none();
    if (node.size <= kQuickCopy) node.value = leaves.map + begin + kHeader;
  }
  Object* record = make_record(node);
  if (record == nullptr) return nullptr;
  bool sound = true;
  if (node.value == nullptr) {
    char* to = python.bytes_data(python.tuple_get(record, 1));
    void* state = python.release_gil();
    sound = copy_part(leaves, true, node.overflow_page * leaves.page_size + kHeader, node.size, to);
    python.take_gil(state);
  }
  if (sound && is_current(leaves, true)) return record;
  python.decref(record);
  return none();
}

// The record of a number as (key, value); `self` is a tuple that begins with the pages' address. None if something is not sound, or there
// is no such record.
Object* item(Object* self, Object* argument) try {
  const Leaves& leaves = *reinterpret_cast<const Leaves*>(python.integer_value(python.tuple_get(self, 0)));
  const int64_t number = static_cast<int64_t>(python.integer_value(argument));
  if (number < 0) {
    if (python.error() != nullptr) python.clear_error();
    return none();
  }
  const int64_t* const end = leaves.ends + leaves.leaf_count;
  const int64_t* const found = std::upper_bound(leaves.ends, end, number);
  if (found == end) return none();
  const int64_t within = number - (found == leaves.ends ? 0 : found[-1]);
  const uint64_t page = static_cast<uint64_t>(leaves.leaf_pages[found - leaves.ends]);
  return leaves.ready != nullptr ? record_in_map(leaves, page, within) : record_of_copy(leaves, page, within);
} catch (const std::bad_alloc&) {
  return none();
}

Method item_method = {"item", item, kOneArgument, nullptr};

}  // namespace

// Takes the addresses of Python's functions, in the order of `Python`; returns how many there are.
CAFFETOOLS_API int caffetools_lmdb_bind(const void* const* functions, int count) {
  constexpr int wanted = sizeof(Python) / sizeof(void*);
  if (count == wanted) std::memcpy(&python, functions, sizeof python);
  return wanted;
}

// Copy and check leaf pages: `bounds` holds a least key for each of `pages` and one that the last one's are below (bytes or None).
// True (an integer) if all are sound, then counts, page and node are set.
CAFFETOOLS_API int caffetools_lmdb_load(Leaves* leaves, Object* pages, Object* bounds) try {
  const int64_t count = python.list_size(pages);
  leaves->pages = leaves->page = leaves->node = 0;
  if (count < 1 || count > kMostPages || python.list_size(bounds) != count + 1) return 0;
  std::vector<uint64_t> numbers;
  for (int64_t i = 0; i < count; ++i) {
    numbers.push_back(python.integer_value(python.list_get(pages, i)));
    if (numbers.back() < 2 || numbers.back() > leaves->last_page) return 0;
  }
  void* state = python.release_gil();
  const bool copied = copy_pages(*leaves, numbers, leaves->copies);
  python.take_gil(state);
  if (!copied) return 0;
  Bytes last;
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* data = leaves->copies + static_cast<uint64_t>(i) * leaves->page_size;
    Object* above = python.list_get(bounds, i + 1);
    const Bytes low = bytes_of(python.list_get(bounds, i)), high = above == python.none ? Bytes{} : bytes_of(above);
    leaves->counts[i] = sound_nodes(*leaves, data, numbers[static_cast<size_t>(i)], kLeaf);
    if (!leaves->counts[i] || !is_sound_leaf(*leaves, data, leaves->counts[i], low, above == python.none ? nullptr : &high, &last)) return 0;
  }
  leaves->pages = count;
  return 1;
} catch (const std::bad_alloc&) {
  return 0;
}

// A list of the next records whose values take about `limit` bytes at most; empty at the end. None: see make_records.
CAFFETOOLS_API Object* caffetools_lmdb_next(Leaves* leaves, uint64_t limit) try {
  std::vector<Node> nodes;
  uint64_t total = 0;
  int64_t page = leaves->page, number = leaves->node;
  while (page < leaves->pages) {
    if (number >= leaves->counts[page]) {
      ++page, number = 0;
      continue;
    }
    Node node;
    if (!leaf_node(*leaves, leaves->copies + static_cast<uint64_t>(page) * leaves->page_size, number, &node)) return none();
    total += node.size;
    if (total > limit && !nodes.empty()) break;
    nodes.push_back(node);
    ++number;
  }
  Object* records = make_records(*leaves, nodes);
  if (records != nullptr && records != python.none) leaves->page = page, leaves->node = number;
  return records;
} catch (const std::bad_alloc&) {
  return none();
}

// The addresses and sizes of the next records' values, about `limit` bytes and at most `most` records; returns how many, 0 at the end.
// They are in the map and in the copies: valid until the next load, and only if caffetools_lmdb_current says so after they were used.
// -1 if something is not sound, or there is no map.
CAFFETOOLS_API int64_t caffetools_lmdb_views(Leaves* leaves, uint64_t limit, int64_t most, uint64_t* addresses, uint64_t* sizes) {
  uint64_t total = 0, mapped_begin = 0, mapped_end = 0;
  int64_t count = 0;
  if (leaves->map == nullptr) return -1;
  // Not while some of the values are in use already.
  count_mapped(*leaves, 4 * limit);
  __atomic_sub_fetch(leaves->mapped, 4 * limit, __ATOMIC_RELAXED);
  while (leaves->page < leaves->pages && count < most) {
    if (leaves->node >= leaves->counts[leaves->page]) {
      ++leaves->page, leaves->node = 0;
      continue;
    }
    Node node;
    if (!leaf_node(*leaves, leaves->copies + static_cast<uint64_t>(leaves->page) * leaves->page_size, leaves->node, &node)) return -1;
    if (total + node.size > limit && count) break;
    const uint8_t* at = node.value;
    if (at == nullptr) {
      if (!overflow_fits(*leaves, node.overflow_page, node.size, leaves->map_size)) return -1;
      const uint64_t begin = node.overflow_page * leaves->page_size, size = kHeader + node.size;
      if (begin < mapped_begin || begin + size > mapped_end) {
        // Values that were written one after the other lie so in the file: those that follow are brought in together.
        const uint64_t ahead = std::min(std::max(limit - std::min(limit, total), size), leaves->map_size - begin);
        if (!is_mapped(*leaves, begin, ahead)) return -1;
        mapped_begin = begin, mapped_end = begin + ahead;
      }
      if (!is_overflow(*leaves, leaves->map + begin, node.overflow_page, node.size)) return -1;
      at = leaves->map + begin + kHeader;
    }
    addresses[count] = reinterpret_cast<uint64_t>(at), sizes[count] = node.size;
    total += node.size, ++count, ++leaves->node;
  }
  return count;
}

// Whether the values that caffetools_lmdb_views found were still the snapshot's.
CAFFETOOLS_API int caffetools_lmdb_current(const Leaves* leaves) { return is_current(*leaves, leaves->map != nullptr); }

// A function of Python that returns the record of a number as (key, value), or None. `owners`: the address of the pages, as an integer, and
// the objects that must exist as long as the function.
CAFFETOOLS_API Object* caffetools_lmdb_item_function(Object* owners) { return python.function_new(&item_method, owners, nullptr); }

// (keys, child pages) of a branch page, the first key as empty bytes; None if something is not sound.
CAFFETOOLS_API Object* caffetools_lmdb_branch(const Leaves* leaves, uint64_t page) try {
  uint8_t data[kLargestPage];
  const int64_t count = copy_page(*leaves, page, data) ? sound_nodes(*leaves, data, page, kBranch) : 0;
  if (!count) return none();
  Object* keys = python.list_new(count);
  Object* children = python.list_new(count);
  Object* both = python.tuple_new(2);
  bool sound = true, memory = keys != nullptr && children != nullptr && both != nullptr;
  for (int64_t i = 0; i < count && sound && memory; ++i) {
    const uint64_t begin = get<uint16_t>(data + kHeader + 2 * i) + kNodeHeader;
    const uint8_t* head = data + begin - kNodeHeader;
    const uint64_t size = get<uint16_t>(head + 6);
    const uint64_t child = get<uint32_t>(head) | static_cast<uint64_t>(get<uint16_t>(head + 4)) << 32;
    sound = begin + size <= leaves->page_size && child >= 2 && child <= leaves->last_page;
    if (!sound) break;
    Object* key = python.bytes_new(reinterpret_cast<const char*>(data + begin), i ? static_cast<intptr_t>(size) : 0);
    Object* number = key == nullptr ? nullptr : python.integer_new(child);
    if (key != nullptr) python.list_set(keys, i, key);
    if (number != nullptr) python.list_set(children, i, number);
    memory = number != nullptr;
  }
  if (sound && memory) {
    python.tuple_set(both, 0, keys);
    python.tuple_set(both, 1, children);
    return both;
  }
  for (Object* object : {keys, children, both}) {
    if (object != nullptr) python.decref(object);
  }
  return memory ? none() : nullptr;
} catch (const std::bad_alloc&) {
  return none();
}
