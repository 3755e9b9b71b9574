// The JSON that an artifact's metadata is written in: one object whose values are all text.
#pragma once

#include <string>
#include <unordered_map>

namespace nequip_md {

// Throws std::invalid_argument with the reason.
std::unordered_map<std::string, std::string> parse_text_table(const std::string &json);

}  // namespace nequip_md
