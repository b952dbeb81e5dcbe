// A reader-writer lock that lets nobody starve: whoever comes later queues behind a waiting writer.
// std::shared_mutex alone prefers readers, so pushes could wait forever under steady lookups.
#pragma once

#include <mutex>
#include <shared_mutex>

namespace cuckooflow {

class FairLock {
 public:
  void lock() {
    const std::lock_guard<std::mutex> turn(gate_);
    lock_.lock();
  }
  void unlock() { lock_.unlock(); }
  void lock_shared() {
    const std::lock_guard<std::mutex> turn(gate_);
    lock_.lock_shared();
  }
  void unlock_shared() { lock_.unlock_shared(); }

 private:
  std::mutex gate_;
  std::shared_mutex lock_;
};

}  // namespace cuckooflow
