// Has the kernel give memory its pages in a thread beside the one that fills it.
//
// A fresh page is zeroed before it is written to, and under a hypervisor that lends free memory elsewhere it
// comes at half a gigabyte a second: more than a restore spends on anything else. The thread begins at the
// end, so that it and the writer meet wherever their speeds let them.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

namespace cuckooflow {

class PageFiller {
 public:
  struct Piece {
    uint8_t* data;
    size_t bytes;
  };

  // Pages of these pieces, which begin at a page, in their order; they must outlive this.
  explicit PageFiller(std::vector<Piece> pieces) : pieces_(std::move(pieces)), thread_([this] { fill(); }) {}
  ~PageFiller() {
    stop_ = true;
    thread_.join();
  }
  PageFiller(const PageFiller&) = delete;
  PageFiller& operator=(const PageFiller&) = delete;

 private:
  static constexpr size_t kStep = size_t{2} << 20;

  void fill() {
#ifdef MADV_POPULATE_WRITE
    for (auto piece = pieces_.rbegin(); piece != pieces_.rend(); ++piece) {
      for (size_t end = piece->bytes; end > 0;) {
        const size_t begin = (end - 1) / kStep * kStep;
        // An older kernel does not know it: then the writer has the pages to itself, as without this.
        if (stop_ || madvise(piece->data + begin, end - begin, MADV_POPULATE_WRITE) != 0) return;
        end = begin;
      }
    }
#endif
  }

  std::vector<Piece> pieces_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace cuckooflow
