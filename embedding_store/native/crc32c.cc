#include "crc32c.h"

#include <array>
#include <cstring>

#ifdef __x86_64__
#include <nmmintrin.h>
#endif

namespace cuckooflow {

namespace {

constexpr uint32_t kPolynomial = 0x82f63b78U;  // its bits reversed

using Table = std::array<uint32_t, 256>;

// Of a byte that is followed by 0, 1, ... 7 others.
constexpr std::array<Table, 8> make_tables() {
  std::array<Table, 8> tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1U) != 0 ? kPolynomial : 0);
    tables[0][byte] = crc;
  }
  for (size_t k = 1; k < tables.size(); ++k) {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const uint32_t before = tables[k - 1][byte];
      tables[k][byte] = (before >> 8) ^ tables[0][before & 0xffU];
    }
  }
  return tables;
}
constexpr std::array<Table, 8> kTables = make_tables();

#ifdef __x86_64__
// What a state is after so many zero bytes, by each byte of it: the instruction has a latency of three
// cycles, so three runs of bytes go on at once and are put together by this.
constexpr size_t kRun = 1024;

const std::array<Table, 4>& skips() {
  static const std::array<Table, 4> made = [] {
    std::array<Table, 4> tables;
    const std::array<uint8_t, kRun> zeros{};
    for (size_t k = 0; k < tables.size(); ++k) {
      for (uint32_t byte = 0; byte < 256; ++byte) {
        tables[k][byte] = ~crc32c_by_table(zeros.data(), zeros.size(), ~(byte << (8 * k)));
      }
    }
    return tables;
  }();
  return made;
}

uint32_t skip_run(const std::array<Table, 4>& by, uint32_t state) {
  return by[0][state & 0xffU] ^ by[1][(state >> 8) & 0xffU] ^ by[2][(state >> 16) & 0xffU] ^
         by[3][state >> 24];
}

uint64_t word_at(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

__attribute__((target("sse4.2"))) uint32_t crc32c_by_instruction(const uint8_t* bytes, size_t n,
                                                                 uint32_t crc) {
  uint64_t state = ~crc;
  const std::array<Table, 4>& by = skips();
  for (; n >= 3 * kRun; bytes += 3 * kRun, n -= 3 * kRun) {
    uint64_t second = 0, third = 0;
    for (size_t i = 0; i < kRun; i += sizeof(uint64_t)) {
      state = _mm_crc32_u64(state, word_at(bytes + i));
      second = _mm_crc32_u64(second, word_at(bytes + kRun + i));
      third = _mm_crc32_u64(third, word_at(bytes + 2 * kRun + i));
    }
    state = skip_run(by, static_cast<uint32_t>(state)) ^ second;
    state = skip_run(by, static_cast<uint32_t>(state)) ^ third;
  }
  for (; n >= sizeof(uint64_t); bytes += sizeof(uint64_t), n -= sizeof(uint64_t)) {
    state = _mm_crc32_u64(state, word_at(bytes));
  }
  for (; n > 0; ++bytes, --n) state = _mm_crc32_u8(static_cast<uint32_t>(state), *bytes);
  return ~static_cast<uint32_t>(state);
}
#endif

}  // namespace

uint32_t crc32c_by_table(const uint8_t* bytes, size_t n, uint32_t crc) {
  uint32_t state = ~crc;
  for (; n >= 8; bytes += 8, n -= 8) {
    const uint32_t low = state ^ (bytes[0] | bytes[1] << 8 | bytes[2] << 16 | uint32_t{bytes[3]} << 24);
    state = kTables[7][low & 0xffU] ^ kTables[6][(low >> 8) & 0xffU] ^ kTables[5][(low >> 16) & 0xffU] ^
            kTables[4][low >> 24] ^ kTables[3][bytes[4]] ^ kTables[2][bytes[5]] ^ kTables[1][bytes[6]] ^
            kTables[0][bytes[7]];
  }
  for (; n > 0; ++bytes, --n) state = (state >> 8) ^ kTables[0][(state ^ *bytes) & 0xffU];
  return ~state;
}

uint32_t crc32c(const uint8_t* bytes, size_t n, uint32_t crc) {
#ifdef __x86_64__
  static const bool has_instruction = __builtin_cpu_supports("sse4.2") != 0;
  if (has_instruction) return crc32c_by_instruction(bytes, n, crc);
#endif
  return crc32c_by_table(bytes, n, crc);
}

}  // namespace cuckooflow
