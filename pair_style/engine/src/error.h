// The exception that the engine throws: a status code of the C header with a message.
#pragma once

#include <stdexcept>
#include <string>

#include "nequip_md_engine.h"

namespace nequip_md {

class Error : public std::runtime_error {
 public:
    Error(nequip_md_status status, const std::string &message, int atom = -1)
        : std::runtime_error(message), status(status), atom(atom)
    {
    }

    const nequip_md_status status;
    const int atom;  // the atom that the error concerns, or -1
};

// First line of a text. Messages of torch have a C++ stack trace after it, which does not help users.
std::string first_line(const std::string &text);

}  // namespace nequip_md
