// CRC-32C (Castagnoli), as in RFC 3720: what a checkpoint's files are checked by. Processors have an
// instruction for it, at several bytes a cycle.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuckooflow {

// Of the bytes that `crc` is of (0: of none) and these after them.
uint32_t crc32c(const uint8_t* bytes, size_t n, uint32_t crc);

// The same without the instruction.
uint32_t crc32c_by_table(const uint8_t* bytes, size_t n, uint32_t crc);

}  // namespace cuckooflow
