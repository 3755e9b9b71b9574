// Structures of the C header as callers of other versions know them: with fewer fields, or with more.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>

#include "error.h"
#include "nequip_md_engine.h"

namespace nequip_md {

// What read_versioned() needs to know of a structure: its name, and the bytes that no caller's can lack.
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

// A field that is added later must not lie in what was padding at the end: an old caller's padding is not zero.
static_assert(sizeof(nequip_md_options) == offsetof(nequip_md_options, no_guard) + sizeof(int));
static_assert(sizeof(nequip_md_system) == offsetof(nequip_md_system, exchange_context) + sizeof(void *));
static_assert(sizeof(nequip_md_results) == offsetof(nequip_md_results, seconds_results) + sizeof(double));

// The caller's structure in the form of this library: fields that the caller's lacks are zero.
// Throws Error (BAD_INPUT) if its struct_size was not set, or if it asks for something that this library does not know.
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

// Write `ours` back to where it was read from.
template <typename Struct>
void write_versioned(const Struct &ours, Struct &given)
{
    std::memcpy(&given, &ours, std::min(sizeof(Struct), given.struct_size));
}

}  // namespace nequip_md
