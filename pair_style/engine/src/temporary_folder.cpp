#include "temporary_folder.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include <dirent.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "error.h"

namespace nequip_md {
namespace {

// Removes a folder and the files in it. std::filesystem cannot be used: some builds of libtorch export its functions,
// made by another compiler, and the dynamic linker would bind calls from this library to those.
void remove_folder(const std::string &path)
{
    if (DIR *const folder = opendir(path.c_str())) {
        while (const dirent *const entry = readdir(folder)) unlinkat(dirfd(folder), entry->d_name, 0);
        closedir(folder);
    }
    rmdir(path.c_str());
}

}  // namespace

TemporaryFolder::TemporaryFolder(uint64_t bytes) : bytes_(bytes)
{
    const char *const chosen = std::getenv("TMPDIR");
    path_ = std::string(chosen && *chosen ? chosen : "/tmp") + "/nequip-md-XXXXXX";
    if (!mkdtemp(path_.data())) unusable(std::strerror(errno));
    struct statvfs information;
    if (statvfs(path_.c_str(), &information) == 0 && (information.f_flag & ST_NOEXEC)) {
        remove_folder(path_);
        unusable("its file system is mounted noexec, which forbids to run code that lies there");
    }
}

TemporaryFolder::~TemporaryFolder() { remove_folder(path_); }

void TemporaryFolder::unusable(const std::string &reason) const
{
    throw Error(NEQUIP_MD_BAD_FILE, "cannot unpack the model to '" + path_.substr(0, path_.rfind('/')) +
                                        "', the folder for temporary files: " + reason +
                                        "; set the environment variable TMPDIR to a folder with " +
                                        std::to_string((bytes_ >> 20) + 1) +
                                        " MB of free space for each process that allows to run code");
}

}  // namespace nequip_md
