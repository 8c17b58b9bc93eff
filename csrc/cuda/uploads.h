// Small arrays of the host on their way to a device: pinned memory that is used again when its copy is done, so that nobody waits.
#pragma once
#include <cstring>
#include <memory>
#include <vector>

#include "cuda/runtime.h"

namespace streamcca::cuda {

class Uploads {
 public:
  Uploads() = default;
  Uploads(const Uploads&) = delete;
  Uploads& operator=(const Uploads&) = delete;
  ~Uploads() {
    for (Chunk& chunk : chunks_) release_pinned(chunk.memory);
  }

  Buffer send(const void* from, std::size_t bytes, Stream stream) {
    Buffer buffer(bytes, stream);
    if (!bytes) return buffer;
    Chunk& chunk = free_chunk(bytes);
    std::memcpy(chunk.memory, from, bytes);
    copy(buffer.as<void>(), chunk.memory, bytes, stream);
    chunk.copied->record(stream);
    return buffer;
  }

 private:
  struct Chunk {
    void* memory;
    std::size_t bytes;
    std::unique_ptr<Event> copied;
  };

  Chunk& free_chunk(std::size_t bytes) {
    for (Chunk& chunk : chunks_) {
      if (chunk.bytes >= bytes && chunk.copied->has_passed()) return chunk;
    }
    chunks_.push_back({allocate_pinned(bytes), bytes, std::make_unique<Event>()});
    return chunks_.back();
  }

  std::vector<Chunk> chunks_;
};

}  // namespace streamcca::cuda
