#include "helpers.h"

namespace cuckooflow {

Helpers::Helpers(int threads) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { help(); });
}

Helpers::~Helpers() {
  {
    const std::lock_guard<std::mutex> hold(lock_);
    ending_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Helpers::share(int64_t parts, const std::function<void(int64_t)>& part) {
  const std::unique_lock<std::mutex> mine(in_use_, std::try_to_lock);
  if (threads_.empty() || !mine.owns_lock()) {
    for (int64_t i = 0; i < parts; ++i) part(i);
    return;
  }
  {
    const std::lock_guard<std::mutex> hold(lock_);
    part_ = &part;
    parts_ = parts;
    next_ = 0;
  }
  changed_.notify_all();
  work_on(part, parts);
  std::unique_lock<std::mutex> hold(lock_);
  part_ = nullptr;  // nobody begins any more
  changed_.wait(hold, [this] { return helping_ == 0; });
}

void Helpers::help() {
  std::unique_lock<std::mutex> hold(lock_);
  while (true) {
    changed_.wait(hold, [this] { return ending_ || (part_ != nullptr && next_ < parts_); });
    if (ending_) return;
    ++helping_;
    const std::function<void(int64_t)>& part = *part_;
    const int64_t parts = parts_;
    hold.unlock();
    work_on(part, parts);
    hold.lock();
    if (--helping_ == 0) changed_.notify_all();
  }
}

void Helpers::work_on(const std::function<void(int64_t)>& part, int64_t parts) {
  for (int64_t i = next_++; i < parts; i = next_++) part(i);
}

}  // namespace cuckooflow
