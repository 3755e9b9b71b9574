// The one exception of the engine: a status code of the C header with its sentence.
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

// Messages of torch carry a C++ stack trace after the first line; users need the first line.
std::string first_line(const std::string &text);

}  // namespace nequip_md
