// CRC-32 of zip files (polynomial 0xEDB88320, reflected), sixteen bytes at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace nequip_md {

constexpr size_t CRC_WIDTH = 16;
using CrcTables = std::array<std::array<uint32_t, 256>, CRC_WIDTH>;

// [k][b]: what byte b adds when k more bytes follow it in its group.
constexpr CrcTables make_crc_tables()
{
    CrcTables tables{};
    for (uint32_t b = 0; b < 256; ++b) {
        uint32_t value = b;
        for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0);
        tables[0][b] = value;
    }
    for (size_t k = 1; k < CRC_WIDTH; ++k)
        for (size_t b = 0; b < 256; ++b) tables[k][b] = (tables[k - 1][b] >> 8) ^ tables[0][tables[k - 1][b] & 0xFF];
    return tables;
}

class Crc32 {
 public:
    void add(const char *data, size_t size)
    {
        static constexpr CrcTables TABLES = make_crc_tables();
        const auto *byte = reinterpret_cast<const unsigned char *>(data);
        for (; size >= CRC_WIDTH; size -= CRC_WIDTH, byte += CRC_WIDTH) {
            const uint32_t before = state_;
            state_ = 0;
            for (size_t k = 0; k < 4; ++k) state_ ^= TABLES[CRC_WIDTH - 1 - k][byte[k] ^ ((before >> (8 * k)) & 0xFF)];
            for (size_t k = 4; k < CRC_WIDTH; ++k) state_ ^= TABLES[CRC_WIDTH - 1 - k][byte[k]];
        }
        for (; size > 0; --size, ++byte) state_ = (state_ >> 8) ^ TABLES[0][(state_ ^ *byte) & 0xFF];
    }
    uint32_t value() const { return ~state_; }

 private:
    uint32_t state_ = 0xFFFFFFFFu;
};

}  // namespace nequip_md
