#include "temporary_folder.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include <sys/statvfs.h>

#include "error.h"

namespace nequip_md {

TemporaryFolder::TemporaryFolder(uint64_t bytes) : bytes_(bytes)
{
    const char *const chosen = std::getenv("TMPDIR");
    path_ = std::string(chosen && *chosen ? chosen : "/tmp") + "/nequip-md-XXXXXX";
    if (!mkdtemp(path_.data())) unusable(std::strerror(errno));
    struct statvfs information;
    if (statvfs(path_.c_str(), &information) == 0 && (information.f_flag & ST_NOEXEC)) {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
        unusable("its file system is mounted noexec, which forbids to run code that lies there");
    }
}

TemporaryFolder::~TemporaryFolder()
{
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

void TemporaryFolder::unusable(const std::string &reason) const
{
    throw Error(NEQUIP_MD_BAD_FILE,
                "cannot unpack the model to '" + std::filesystem::path(path_).parent_path().string() +
                    "', the folder for temporary files: " + reason +
                    "; set the environment variable TMPDIR to a folder with " + std::to_string((bytes_ >> 20) + 1) +
                    " MB of free space for each process that allows to run code");
}

}  // namespace nequip_md
