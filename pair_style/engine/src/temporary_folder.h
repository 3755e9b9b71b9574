// A private temporary folder (in TMPDIR) for the code of an artifact; deleted with the object.
#pragma once

#include <cstdint>
#include <string>

namespace nequip_md {

class TemporaryFolder {
 public:
    // bytes: size of the files that will be written to it, for messages.
    // Throws Error (BAD_FILE) if it cannot be made, or code in it cannot be executed.
    explicit TemporaryFolder(uint64_t bytes);
    ~TemporaryFolder();
    TemporaryFolder(const TemporaryFolder &) = delete;
    TemporaryFolder &operator=(const TemporaryFolder &) = delete;

    const std::string &path() const { return path_; }

    // An error that says why the folder cannot be used and how to set TMPDIR.
    [[noreturn]] void unusable(const std::string &reason) const;

 private:
    uint64_t bytes_;
    std::string path_;
};

}  // namespace nequip_md
