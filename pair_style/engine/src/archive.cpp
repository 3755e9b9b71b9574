// The layout and names of fields follow PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3.
#include "archive.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "crc32.h"
#include "error.h"

namespace nequip_md {
namespace {

constexpr size_t END_SIZE = 22, LOCATOR_SIZE = 20, END64_SIZE = 56, ENTRY_SIZE = 46, HEADER_SIZE = 30;
constexpr uint64_t MOST_OF_DIRECTORY = 1 << 24;  // bytes; an artifact has at most some hundred members
constexpr uint16_t ENCRYPTED = 1;

// Little-endian number at an offset.
template <typename T>
T number(const char *bytes, size_t offset)
{
    T value = 0;
    for (size_t k = 0; k < sizeof(T); ++k)
        value |= static_cast<T>(static_cast<unsigned char>(bytes[offset + k])) << (8 * k);
    return value;
}

bool begins(const char *bytes, const char (&signature)[5]) { return std::memcmp(bytes, signature, 4) == 0; }

}  // namespace

Archive::Archive(const std::string &path) : path_(path)
{
    try {
        open();
        read_directory();
    } catch (...) {
        if (file_ >= 0) close(file_);
        throw;
    }
}

Archive::~Archive() { close(file_); }

void Archive::damaged(const std::string &reason) const
{
    throw Error(NEQUIP_MD_BAD_FILE, "model file '" + path_ + "' is damaged (" + reason +
                                        "); copy it again from where it is whole, or export the model again");
}

void Archive::open()
{
    // Opening a pipe would wait for a writer otherwise.
    file_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file_ < 0 && errno == EACCES)
        throw Error(NEQUIP_MD_BAD_FILE,
                    "cannot read model file '" + path_ + "': " + std::strerror(errno) + "; check its permissions");
    struct stat information;
    if (file_ < 0 || fstat(file_, &information) != 0)
        throw Error(NEQUIP_MD_BAD_FILE, "cannot open model file '" + path_ + "': " + std::strerror(errno) +
                                            "; check the path, which is relative to the working directory");
    if (S_ISDIR(information.st_mode))
        throw Error(NEQUIP_MD_BAD_FILE, "model file '" + path_ + "' is a directory; give the .pt2 file itself");
    if (!S_ISREG(information.st_mode))
        throw Error(NEQUIP_MD_BAD_FILE,
                    "model file '" + path_ + "' is a pipe or a device, not a file; give the .pt2 file itself");
    size_ = static_cast<uint64_t>(information.st_size);
}

std::string Archive::bytes(uint64_t start, uint64_t size) const
{
    std::string result(size, '\0');
    for (uint64_t done = 0; done < size;) {
        const ssize_t count = pread(file_, result.data() + done, size - done, static_cast<off_t>(start + done));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0)
            throw Error(NEQUIP_MD_BAD_FILE, "cannot read model file '" + path_ + "': " + std::strerror(errno) +
                                                "; copy it again, or to another file system");
        if (count == 0) damaged("it has become shorter");
        done += static_cast<uint64_t>(count);
    }
    return result;
}

void Archive::read_directory()
{
    if (size_ < 4 || !begins(bytes(0, 4).data(), "PK\3\4"))
        throw Error(NEQUIP_MD_BAD_FILE,
                    "model file '" + path_ +
                        "' is not a .pt2 artifact; make one from a checkpoint with: nequip-md-export "
                        "CHECKPOINT -o model.pt2");
    const std::string tail = bytes(size_ - std::min<uint64_t>(size_, END_SIZE), std::min<uint64_t>(size_, END_SIZE));
    if (tail.size() < END_SIZE || !begins(tail.data(), "PK\5\6"))
        damaged("its end is missing, or something was added to it");
    uint64_t count = number<uint16_t>(tail.data(), 10), bytes_of_directory = number<uint32_t>(tail.data(), 12);
    uint64_t end = size_ - END_SIZE;
    directory_ = number<uint32_t>(tail.data(), 16);
    if (end >= LOCATOR_SIZE + END64_SIZE) {
        const std::string locator = bytes(end - LOCATOR_SIZE, LOCATOR_SIZE);
        if (begins(locator.data(), "PK\6\7")) {
            end -= LOCATOR_SIZE + END64_SIZE;
            const std::string end64 = bytes(end, END64_SIZE);
            if (number<uint64_t>(locator.data(), 8) != end || !begins(end64.data(), "PK\6\6"))
                damaged("the end of its directory is not where it should be");
            count = number<uint64_t>(end64.data(), 32);
            bytes_of_directory = number<uint64_t>(end64.data(), 40);
            directory_ = number<uint64_t>(end64.data(), 48);
        }
    }
    if (bytes_of_directory > MOST_OF_DIRECTORY || bytes_of_directory > end || directory_ != end - bytes_of_directory)
        damaged("its directory is not where it should be");

    const std::string directory = bytes(directory_, bytes_of_directory);
    uint64_t total = 0;
    for (size_t at = 0; at < directory.size();) {
        const char *const entry = directory.data() + at;
        if (directory.size() - at < ENTRY_SIZE || !begins(entry, "PK\1\2")) damaged("its directory is not readable");
        const size_t name_size = number<uint16_t>(entry, 28), extra_size = number<uint16_t>(entry, 30);
        const size_t entry_size = ENTRY_SIZE + name_size + extra_size + number<uint16_t>(entry, 32);
        if (directory.size() - at < entry_size) damaged("its directory is not readable");
        members_.push_back(
            read_member(entry, std::string(entry + ENTRY_SIZE, name_size), entry + ENTRY_SIZE + name_size, extra_size));
        total += members_.back().size;
        at += entry_size;
    }
    if (members_.size() != count || total > directory_) damaged("its directory does not fit its contents");
}

Archive::Member Archive::read_member(const char *entry, const std::string &name, const char *extra,
                                     size_t extra_size) const
{
    Member member{name, number<uint32_t>(entry, 42), number<uint32_t>(entry, 20), number<uint32_t>(entry, 16), false};
    uint64_t unpacked = number<uint32_t>(entry, 24);
    // An extra field holds the sizes and offsets that exceed 32 bits, only those, in this order.
    for (size_t at = 0; at + 4 <= extra_size;) {
        const size_t length = number<uint16_t>(extra, at + 2), next = at + 4 + length;
        if (next > extra_size) damaged("its directory is not readable");
        if (number<uint16_t>(extra, at) == 1) {
            size_t field = at + 4;
            for (uint64_t *value : {&unpacked, &member.size, &member.start}) {
                if (*value != UINT32_MAX) continue;
                if (field + 8 > next) damaged("its directory is not readable");
                *value = number<uint64_t>(extra, field);
                field += 8;
            }
        }
        at = next;
    }
    member.plain = number<uint16_t>(entry, 10) == 0 && !(number<uint16_t>(entry, 8) & ENCRYPTED);
    if (member.plain && unpacked != member.size) damaged("the size of '" + name + "' is wrong");
    if (member.start > directory_ || directory_ - member.start < HEADER_SIZE + name.size())
        damaged("'" + name + "' lies outside of the file");
    const std::string header = bytes(member.start, HEADER_SIZE + name.size());
    if (!begins(header.data(), "PK\3\4") || number<uint16_t>(header.data(), 26) != name.size() ||
        header.compare(HEADER_SIZE, std::string::npos, name) != 0)
        damaged("'" + name + "' is not where the directory says");
    member.start += HEADER_SIZE + name.size() + number<uint16_t>(header.data(), 28);
    if (member.start > directory_ || directory_ - member.start < member.size)
        damaged("'" + name + "' lies outside of the file");
    return member;
}

void Archive::read(const Member &member, const std::function<void(const char *, size_t)> &take) const
{
    if (!member.plain)
        throw Error(NEQUIP_MD_BAD_FILE, "model file '" + path_ + "' has a compressed member, '" + member.name +
                                            "', and nequip-md-export writes none; export the model again");
    constexpr uint64_t PIECE = 1 << 20;
    Crc32 sum;
    for (uint64_t done = 0; done < member.size; done += PIECE) {
        const std::string piece = bytes(member.start + done, std::min(PIECE, member.size - done));
        sum.add(piece.data(), piece.size());
        take(piece.data(), piece.size());
    }
    if (sum.value() != member.crc) damaged("the checksum of '" + member.name + "' is wrong");
}

}  // namespace nequip_md
