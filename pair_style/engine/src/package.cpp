#include "package.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>
#include <stdexcept>

#include <ATen/Context.h>
#include <torch/version.h>

#include "error.h"
#include "text_table.h"

namespace nequip_md {
namespace {

constexpr uint64_t MOST_OF_METADATA = 1 << 24;  // bytes

// File name of a member that belongs to the compiled model, without the zip file's folders; empty for other members.
std::string model_file(const Archive::Member &member)
{
    const std::string folder = "/data/aotinductor/model/";
    const size_t at = member.name.find('/');
    if (at == std::string::npos || member.name.compare(at, folder.size(), folder) != 0) return "";
    const std::string name = member.name.substr(at + folder.size());
    return name.find('/') == std::string::npos ? name : "";
}

bool ends(const std::string &text, const std::string &end)
{
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

const Archive::Member *find_library(const Archive &archive)
{
    for (const Archive::Member &member : archive.members())
        if (ends(model_file(member), ".so")) return &member;
    throw Error(NEQUIP_MD_BAD_FILE,
                "model file '" + archive.path() +
                    "' is not a .pt2 artifact (it has no compiled code); make one from a checkpoint "
                    "with: nequip-md-export CHECKPOINT -o model.pt2");
}

std::unordered_map<std::string, std::string> read_text(const Archive &archive, const Archive::Member &library)
{
    const std::string beside = library.name.substr(0, library.name.size() - 3) + "_metadata.json";
    const Archive::Member *found = nullptr;
    for (const Archive::Member &member : archive.members())
        if (ends(model_file(member), "_metadata.json") && (!found || member.name == beside)) found = &member;
    if (!found) return {};
    if (found->size > MOST_OF_METADATA) archive.damaged("its metadata have " + std::to_string(found->size) + " bytes");
    std::string json;
    archive.read(*found, [&](const char *bytes, size_t size) { json.append(bytes, size); });
    try {
        return parse_text_table(json);
    } catch (const std::invalid_argument &error) {
        throw Error(NEQUIP_MD_BAD_MODEL, "artifact '" + archive.path() + "' has unusable metadata (" + error.what() +
                                             "); export the model again");
    }
}

// A version of torch without the local part of a build, such as +cpu.
std::string release(const std::string &version) { return version.substr(0, version.find('+')); }

void check_torch(const std::string &path, const Metadata &metadata)
{
    // PyTorch guarantees that compiled code runs with the release that compiled it, but not with others.
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

// Refuses code for another processor, since an illegal instruction would end the whole process.
void check_processor(const std::string &path, const Metadata &metadata)
{
    const auto recorded = metadata.text.find("cpu_instructions");  // older files do not have it
    const std::set<std::string> here = cpu_instructions();
    if (recorded == metadata.text.end() || here.empty()) return;
    std::istringstream names(recorded->second);
    std::string missing;
    for (std::string name; names >> name;)
        if (here.count(name) == 0) missing += " " + name;
    if (!missing.empty())
        throw Error(NEQUIP_MD_BAD_MODEL,
                    "artifact '" + path + "' was exported on a processor with" + missing +
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

Package::Package(const std::string &path, const std::string &kind, int index)
    : archive_(path), library_(find_library(archive_)), metadata_(parse_metadata(path, read_text(archive_, *library_)))
{
    check_torch(path, metadata_);
    check_processor(path, metadata_);
    check_device(path, metadata_, kind, index);
}

uint64_t Package::size() const
{
    uint64_t total = 0;
    for (const Archive::Member &member : archive_.members())
        if (!model_file(member).empty()) total += member.size;
    return total;
}

std::string Package::unpack(const TemporaryFolder &folder) const
{
    for (const Archive::Member &member : archive_.members()) {
        const std::string name = model_file(member);
        if (name.empty()) {
            archive_.read(member, [](const char *, size_t) {});
            continue;
        }
        std::ofstream file(folder.path() + "/" + name, std::ios::binary);
        archive_.read(member,
                      [&](const char *bytes, size_t size) { file.write(bytes, static_cast<std::streamsize>(size)); });
        file.close();
        if (!file) folder.unusable(std::strerror(errno));
    }
    return folder.path() + "/" + model_file(*library_);
}

}  // namespace nequip_md
