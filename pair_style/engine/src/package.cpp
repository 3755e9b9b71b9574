#include "package.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

#include <sys/stat.h>

#include <ATen/Context.h>
#include <c10/util/Exception.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/version.h>

#include "error.h"

namespace nequip_md {
namespace {

// torch answers a missing or foreign file with a stack trace, so look first.
void check_file(const std::string &path)
{
    struct stat information;
    if (stat(path.c_str(), &information) != 0)
        throw Error(NEQUIP_MD_BAD_FILE, "cannot open model file '" + path + "': " + std::strerror(errno) +
                                            "; check the path, which is relative to the working directory");
    if (S_ISDIR(information.st_mode))
        throw Error(NEQUIP_MD_BAD_FILE, "model file '" + path + "' is a directory; give the .pt2 file itself");
    std::ifstream file(path, std::ios::binary);
    if (!file)
        throw Error(NEQUIP_MD_BAD_FILE,
                    "cannot read model file '" + path + "': " + std::strerror(errno) + "; check its permissions");
    std::array<char, 4> magic{};
    file.read(magic.data(), magic.size());
    if (std::memcmp(magic.data(), "PK\3\4", 4) != 0)
        throw Error(NEQUIP_MD_BAD_FILE,
                    "model file '" + path +
                        "' is not a .pt2 artifact; make one from a checkpoint with: nequip-md-export "
                        "CHECKPOINT -o model.pt2");
}

// Without the local part that builds append, as in 2.13.0+cpu.
std::string release(const std::string &version) { return version.substr(0, version.find('+')); }

void check_torch(const std::string &path, const Metadata &metadata)
{
    // Compiled artifacts are promised to run only with the release that compiled them.
    if (metadata.torch_version != release(TORCH_VERSION))
        throw Error(NEQUIP_MD_BAD_MODEL, "artifact '" + path + "' was exported with torch " + metadata.torch_version +
                                             ", this program runs torch " TORCH_VERSION
                                             "; export the model again with the installation that runs it");
}

// Instruction sets of this machine's processor, in Linux' names.
std::set<std::string> cpu_instructions()
{
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        if (line.rfind("flags", 0) != 0 && line.rfind("Features", 0) != 0) continue;
        std::istringstream names(line.substr(line.find(':') + 1));
        std::set<std::string> found;
        for (std::string name; names >> name;) found.insert(name);
        return found;
    }
    return {};
}

// An illegal instruction would end the whole process.
void check_processor(const std::string &path, const Metadata &metadata)
{
    const auto recorded = metadata.text.find("cpu_instructions");  // absent from older files
    const std::set<std::string> here = cpu_instructions();
    if (recorded == metadata.text.end() || here.empty()) return;
    std::istringstream names(recorded->second);
    std::string missing;
    for (std::string name; names >> name;)
        if (here.count(name) == 0) missing += " " + name;
    if (!missing.empty())
        throw Error(NEQUIP_MD_BAD_MODEL, "artifact '" + path + "' was exported on a processor with" + missing +
                                             ", which the one of this machine lacks; export the model again here, or on the "
                                             "oldest processor that shall run it");
}

void check_device(const std::string &path, const Metadata &metadata, const std::string &kind, int index)
{
    const std::string again = "nequip-md-export CHECKPOINT -o '" + path + "' --device ";
    if (!kind.empty() && kind != "cpu" && kind != "cuda")
        throw Error(NEQUIP_MD_BAD_DEVICE, "unknown device '" + kind + "'; there are cpu and cuda");
    if (!kind.empty() && kind != metadata.device)
        throw Error(NEQUIP_MD_BAD_DEVICE, "artifact '" + path + "' was exported for device " + metadata.device +
                                              " and cannot run on device " + kind + "; export it with: " + again +
                                              kind);
    const int available = device_count(metadata.device);
    if (available == 0)
        throw Error(NEQUIP_MD_BAD_DEVICE, "artifact '" + path + "' was exported for device " + metadata.device +
                                              ", and this process has no such device; export it with: " + again +
                                              "cpu");
    if (metadata.device != "cpu" && (index < 0 || index >= available))
        throw Error(NEQUIP_MD_BAD_DEVICE, "device " + metadata.device + ":" + std::to_string(index) +
                                              " does not exist; there " +
                                              (available == 1 ? "is 1" : "are " + std::to_string(available)));
}

}  // namespace

std::string first_line(const std::string &text) { return text.substr(0, text.find('\n')); }

int device_count(const std::string &kind)
{
    if (kind == "cpu") return 1;
    if (kind == "cuda" && at::globalContext().hasCUDA()) return at::detail::getCUDAHooks().deviceCount();
    return 0;
}

Metadata open_package(const std::string &path, const std::string &kind, int index)
{
    check_file(path);
    std::unordered_map<std::string, std::string> text;
    try {
        text = torch::inductor::AOTIModelPackageLoader::load_metadata_from_package(path, "model");
    } catch (const std::exception &error) {
        throw Error(NEQUIP_MD_BAD_FILE, "model file '" + path + "' is not a .pt2 artifact, or is damaged (" +
                                            first_line(error.what()) + "); export the model again");
    }
    Metadata metadata = parse_metadata(path, std::move(text));
    check_torch(path, metadata);
    check_processor(path, metadata);
    check_device(path, metadata, kind, index);
    return metadata;
}

}  // namespace nequip_md
