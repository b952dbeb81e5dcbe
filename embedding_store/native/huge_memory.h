// Zeroed blocks of memory, aligned to and advised as huge pages: with random access to gigabytes, page
// walks would otherwise cost more than the rows. The beginning of a table's first block is not advised: a
// small table takes what it fills, and not two megabytes.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace cuckooflow {

class HugeBlock {
 public:
  static constexpr size_t kAlign = size_t{2} << 20;

  // `plain`: so many bytes at its beginning are of small pages.
  explicit HugeBlock(size_t bytes, size_t plain = 0) : bytes_((bytes + kAlign - 1) / kAlign * kAlign) {
    // Mapped with room to align, then trimmed. Untouched pages cost nothing.
    void* raw = mmap(nullptr, bytes_ + kAlign, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) throw std::bad_alloc();
    auto* base = static_cast<uint8_t*>(raw);
    const size_t skip = (kAlign - reinterpret_cast<uintptr_t>(base) % kAlign) % kAlign;
    if (skip > 0) munmap(base, skip);
    if (skip < kAlign) munmap(base + skip + bytes_, kAlign - skip);
    data_ = base + skip;
    if (plain < bytes_) madvise(data_ + plain, bytes_ - plain, MADV_HUGEPAGE);
  }
  ~HugeBlock() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }
  HugeBlock(HugeBlock&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  HugeBlock(const HugeBlock&) = delete;
  HugeBlock& operator=(const HugeBlock&) = delete;
  HugeBlock& operator=(HugeBlock&&) = delete;

  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace cuckooflow
