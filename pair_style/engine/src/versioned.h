// Structures of the C header in other versions, with fewer or more fields.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>

#include "error.h"
#include "nequip_md_engine.h"

namespace nequip_md {

// Properties of a structure for read_versioned(): its name, and the size of its first version.
template <typename Struct>
struct Version;
template <>
struct Version<nequip_md_options> {
    static constexpr const char *NAME = "nequip_md_options";
    static constexpr size_t SMALLEST = offsetof(nequip_md_options, no_replay);
};
template <>
struct Version<nequip_md_system> {
    static constexpr const char *NAME = "nequip_md_system";
    static constexpr size_t SMALLEST = offsetof(nequip_md_system, cell);
};
template <>
struct Version<nequip_md_results> {
    static constexpr const char *NAME = "nequip_md_results";
    static constexpr size_t SMALLEST = offsetof(nequip_md_results, num_candidates);
};
template <>
struct Version<nequip_md_exchange> {
    static constexpr const char *NAME = "nequip_md_exchange";
    static constexpr size_t SMALLEST = sizeof(nequip_md_exchange);
};

// A field that is added later must not occupy former padding at the end, which old callers do not set to zero.
static_assert(sizeof(nequip_md_options) == offsetof(nequip_md_options, no_guard) + sizeof(int));
static_assert(sizeof(nequip_md_system) == offsetof(nequip_md_system, exchange) + sizeof(void *));
static_assert(sizeof(nequip_md_results) == offsetof(nequip_md_results, seconds_results) + sizeof(double));

// Converts the caller's structure to this library's version; fields that the caller's lacks are zero.
// Throws Error (BAD_INPUT) if struct_size was not set, or if a field that this library does not know is not zero.
template <typename Struct>
Struct read_versioned(const Struct &given)
{
    constexpr size_t ABSURD = 4096;
    const std::string name = Version<Struct>::NAME;
    if (given.struct_size < Version<Struct>::SMALLEST || given.struct_size > ABSURD)
        throw Error(NEQUIP_MD_BAD_INPUT, "struct_size of " + name + " is " + std::to_string(given.struct_size) +
                                             "; set it to sizeof(" + name + "), here " +
                                             std::to_string(sizeof(Struct)));
    const auto *const bytes = reinterpret_cast<const unsigned char *>(&given);
    if (std::any_of(bytes + std::min(sizeof(Struct), given.struct_size), bytes + given.struct_size,
                    [](unsigned char byte) { return byte != 0; }))
        throw Error(NEQUIP_MD_BAD_INPUT, name + " has " + std::to_string(given.struct_size) +
                                             " bytes, and uses fields beyond the " + std::to_string(sizeof(Struct)) +
                                             " that this library knows; leave them zero, or use the library that the "
                                             "header nequip_md_engine.h came with");
    Struct ours{};
    std::memcpy(&ours, bytes, std::min(sizeof(Struct), given.struct_size));
    return ours;
}

// Writes `ours` back to the caller's structure.
template <typename Struct>
void write_versioned(const Struct &ours, Struct &given)
{
    std::memcpy(&given, &ours, std::min(sizeof(Struct), given.struct_size));
}

}  // namespace nequip_md
