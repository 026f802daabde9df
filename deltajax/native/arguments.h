// What a call is given: XLA's arguments, and the arrays of a segment, of which several may lie in one argument.
#pragma once

#include <cstdint>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

class Arguments {
 public:
  explicit Arguments(const ffi::RemainingArgs& args) {
    for (size_t i = 0; i < args.size(); ++i) {
      const ffi::AnyBuffer buffer = args.get<ffi::AnyBuffer>(i).value();
      data_.push_back(static_cast<char*>(buffer.untyped_data()));
      streams_.push_back(buffer.dimensions()[0]);
    }
  }
  template <class T>
  T* data(int64_t index) const { return reinterpret_cast<T*>(data_[index]); }
  int64_t streams(int64_t index) const { return streams_[index]; }

 private:
  std::vector<char*> data_;
  std::vector<int64_t> streams_;
};

// In elements: where it begins, and how far it is from one stream to the next.
struct Array {
  int64_t argument, begin, stride;  // argument -1: the flags, which are a result
};

class Arrays {
 public:
  Arrays(const Arguments& given, char* flags, int64_t streams, const std::vector<Array>& arrays) {
    found_.reserve(arrays.size());
    for (const Array& a : arrays) {
      const bool is_given = a.argument >= 0;
      found_.push_back({is_given ? given.data<char>(a.argument) : flags, is_given ? given.streams(a.argument) : streams,
                        a.begin, a.stride});
    }
  }
  template <class T>
  T* data(int64_t index, int64_t stream) const {
    const Found& found = found_[index];
    return reinterpret_cast<T*>(found.data) + found.begin + stream * found.stride;
  }
  int64_t streams(int64_t index) const { return found_[index].streams; }

 private:
  struct Found {
    char* data;
    int64_t streams, begin, stride;
  };
  std::vector<Found> found_;
};

}  // namespace
