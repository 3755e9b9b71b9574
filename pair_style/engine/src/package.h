// Everything that is checked about an artifact before its code is loaded.
#pragma once

#include <string>

#include "metadata.h"

namespace nequip_md {

// Number of usable devices of a kind ("cpu" or "cuda").
int device_count(const std::string &kind);

// Read an artifact's metadata and make sure that this process can run it.
//
// kind: "cpu", "cuda", or empty for the device that the artifact was exported for; index: which GPU.
// Throws Error (BAD_FILE, BAD_MODEL, BAD_DEVICE).
Metadata open_package(const std::string &path, const std::string &kind, int index);

}  // namespace nequip_md
