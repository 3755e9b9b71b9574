// An artifact whose code is not loaded yet: its metadata, whether this process can run it, and its compiled code.
#pragma once

#include <string>

#include "archive.h"
#include "metadata.h"
#include "temporary_folder.h"

namespace nequip_md {

// Number of usable devices of a kind ("cpu" or "cuda").
int device_count(const std::string &kind);

class Package {
 public:
    // Reads an artifact's metadata and checks that this process can run it.
    //
    // kind: "cpu", "cuda", or empty for the device that the artifact was exported for; index: which GPU.
    // Throws Error (BAD_FILE, BAD_MODEL, BAD_DEVICE).
    Package(const std::string &path, const std::string &kind, int index);

    const std::string &path() const { return archive_.path(); }
    const Metadata &metadata() const { return metadata_; }

    uint64_t size() const;  // bytes that unpack() writes

    // Writes the compiled code to a folder and verifies every member of the file. Returns the path of the shared
    // library. Throws Error (BAD_FILE).
    std::string unpack(const TemporaryFolder &folder) const;

 private:
    const Archive archive_;
    const Archive::Member *library_;
    Metadata metadata_;
};

}  // namespace nequip_md
