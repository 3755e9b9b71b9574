// Reads an artifact's zip file: its directory, and its members, whose checksums are verified as they are read.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace nequip_md {

class Archive {
 public:
    struct Member {
        std::string name;
        uint64_t start, size;  // bytes of the file
        uint32_t crc;
        bool plain;  // neither compressed nor encrypted
    };

    // Opens the file and reads its directory. Throws Error (BAD_FILE) if that fails or the file is damaged.
    explicit Archive(const std::string &path);
    ~Archive();
    Archive(const Archive &) = delete;
    Archive &operator=(const Archive &) = delete;

    const std::string &path() const { return path_; }
    const std::vector<Member> &members() const { return members_; }

    // Passes the member's bytes to `take`, some at a time.
    // Throws Error (BAD_FILE) if the checksum differs, or the member is compressed, which is not allowed in artifacts.
    void read(const Member &member, const std::function<void(const char *, size_t)> &take) const;

    // An error that says that the file is damaged, with the reason and the remedy.
    [[noreturn]] void damaged(const std::string &reason) const;

 private:
    void open();
    std::string bytes(uint64_t start, uint64_t size) const;
    void read_directory();
    Member read_member(const char *entry, const std::string &name, const char *extra, size_t extra_size) const;

    std::string path_;
    int file_ = -1;
    uint64_t size_ = 0;       // of the file
    uint64_t directory_ = 0;  // where members end and the directory starts
    std::vector<Member> members_;
};

}  // namespace nequip_md
