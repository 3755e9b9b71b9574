// Parses an artifact's metadata, a JSON object whose values are all strings.
#pragma once

#include <string>
#include <unordered_map>

namespace nequip_md {

// Throws std::invalid_argument with the reason if it is malformed.
std::unordered_map<std::string, std::string> parse_text_table(const std::string &json);

}  // namespace nequip_md
