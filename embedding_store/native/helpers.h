// Threads that share a piece of work with whoever brings it. They help where they are free and come in time:
// the one who brings it works as well, and waits for nothing but what a helper has begun. One piece of work
// at a time; who comes meanwhile does its own alone.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace cuckooflow {

class Helpers {
 public:
  explicit Helpers(int threads);
  ~Helpers();
  Helpers(const Helpers&) = delete;
  Helpers& operator=(const Helpers&) = delete;

  // Calls part(i) once for each i below `parts`, in any order, on several threads; all have returned when
  // this does.
  void share(int64_t parts, const std::function<void(int64_t)>& part);

 private:
  void help();
  void work_on(const std::function<void(int64_t)>& part, int64_t parts);

  std::mutex in_use_;  // by who brought the work
  std::mutex lock_;    // of what follows
  std::condition_variable changed_;
  const std::function<void(int64_t)>* part_ = nullptr;  // none: there is no work
  int64_t parts_ = 0;
  std::atomic<int64_t> next_{0};  // the part that nobody has begun
  int helping_ = 0;
  bool ending_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace cuckooflow
