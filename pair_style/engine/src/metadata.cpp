#include "metadata.h"

#include <cmath>
#include <locale>
#include <sstream>

#include "error.h"

namespace nequip_md {
namespace {

const char *const FORMAT_VERSION = "2";
constexpr int MOST_NETWORKS = 1;
const char *const AGAIN = "; write it again with: nequip-md-export MODEL -o OUT.pt2";

class Reader {
 public:
    Reader(const std::string &path, const std::unordered_map<std::string, std::string> &text) : path_(path), text_(text)
    {
    }

    // Whether an optional key has a value; an empty text means that it is unknown.
    bool has(const std::string &key) const
    {
        const auto found = text_.find(key);
        return found != text_.end() && !found->second.empty();
    }

    const std::string &word(const std::string &key) const
    {
        const auto found = text_.find(key);
        if (found == text_.end())
            throw Error(NEQUIP_MD_BAD_MODEL,
                        "artifact '" + path_ + "' has no metadata key '" + key +
                            "', so it was not written by nequip-md-export; export the model with it");
        return found->second;
    }

    [[noreturn]] void refuse(const std::string &key) const
    {
        throw Error(NEQUIP_MD_BAD_MODEL, "artifact '" + path_ + "' has a metadata key '" + key +
                                             "' with the unusable value '" + word(key) + "'; export the model again");
    }

    template <typename T>
    std::vector<T> list(const std::string &key) const
    {
        std::istringstream stream(word(key));
        // The host program may have set a locale whose decimal point is a comma.
        stream.imbue(std::locale::classic());
        std::vector<T> values;
        for (T value; stream >> value;) values.push_back(value);
        if (!stream.eof()) refuse(key);
        return values;
    }

    template <typename T>
    T one(const std::string &key) const
    {
        const std::vector<T> values = list<T>(key);
        if (values.size() != 1) refuse(key);
        return values[0];
    }

 private:
    const std::string &path_;
    const std::unordered_map<std::string, std::string> &text_;
};

}  // namespace

Metadata parse_metadata(const std::string &path, std::unordered_map<std::string, std::string> text)
{
    Metadata metadata;
    metadata.text = std::move(text);
    const Reader reader(path, metadata.text);

    const std::string &format = reader.word("format_version");
    if (format != FORMAT_VERSION)
        throw Error(NEQUIP_MD_BAD_MODEL, "artifact '" + path + "' has format version " + format +
                                             ", this engine reads version " + FORMAT_VERSION + AGAIN);

    metadata.type_names = reader.list<std::string>("type_names");
    metadata.cutoff = reader.one<double>("cutoff");
    metadata.pair_cutoffs = reader.list<double>("pair_cutoffs");
    metadata.precision = reader.one<std::string>("precision");
    metadata.device = reader.one<std::string>("device");
    metadata.torch_version = reader.one<std::string>("torch_version");
    metadata.message_passing_layers = reader.one<int>("message_passing_layers");
    metadata.networks = reader.one<int>("networks");
    const std::string ghosts = reader.one<std::string>("ghosts");
    metadata.ghosts = ghosts == "yes";

    if (reader.has("closest_distances")) metadata.closest_distances = reader.list<double>("closest_distances");
    const double largest_force = reader.has("largest_force") ? reader.one<double>("largest_force") : 0;

    const size_t num_types = metadata.type_names.size();
    if (num_types == 0) reader.refuse("type_names");
    if (!(metadata.cutoff > 0) || !std::isfinite(metadata.cutoff)) reader.refuse("cutoff");
    if (metadata.pair_cutoffs.size() != num_types * num_types) reader.refuse("pair_cutoffs");
    for (const double radius : metadata.pair_cutoffs)
        if (!(radius > 0) || radius > metadata.cutoff) reader.refuse("pair_cutoffs");
    if (metadata.precision != "fp64" && metadata.precision != "fp32" && metadata.precision != "tf32")
        reader.refuse("precision");
    if (metadata.device != "cpu" && metadata.device != "cuda") reader.refuse("device");
    if (metadata.message_passing_layers < 0) reader.refuse("message_passing_layers");
    if (metadata.networks < 1) reader.refuse("networks");
    if (metadata.networks > MOST_NETWORKS)
        throw Error(NEQUIP_MD_BAD_MODEL, "artifact '" + path + "' holds " + std::to_string(metadata.networks) +
                                             " networks, and this engine evaluates " + std::to_string(MOST_NETWORKS) +
                                             "; export one of them alone with: nequip-md-export MODEL -o OUT.pt2");
    if (ghosts != "yes" && ghosts != "no") reader.refuse("ghosts");
    if (!metadata.closest_distances.empty() && metadata.closest_distances.size() != num_types * num_types)
        reader.refuse("closest_distances");
    for (const double distance : metadata.closest_distances)
        if (!(distance >= 0)) reader.refuse("closest_distances");
    if (!(largest_force >= 0)) reader.refuse("largest_force");
    if (reader.word("length_unit") != "angstrom") reader.refuse("length_unit");
    if (reader.word("energy_unit") != "eV") reader.refuse("energy_unit");
    return metadata;
}

}  // namespace nequip_md
