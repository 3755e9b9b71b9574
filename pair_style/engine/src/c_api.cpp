// Implements the C header on top of Model. All exceptions are caught here.

#include <algorithm>
#include <cstring>
#include <new>

#include "error.h"
#include "model.h"
#include "nequip_md_engine.h"
#include "package.h"
#include "versioned.h"

struct nequip_md_model {
    nequip_md_model(const char *path, const nequip_md_options &options) : model(path, options) {}

    nequip_md::Model model;
    std::string last_error;
};

namespace {

// Runs `work`, and turns an exception into a status, a message and the atom that it concerns.
template <typename Work>
int guarded(std::string &message, int &atom, Work work) noexcept
{
    atom = -1;
    int status = NEQUIP_MD_OK;
    try {
        message.clear();
        try {
            work();
        } catch (const nequip_md::Error &error) {
            status = error.status;
            atom = error.atom;
            message = error.what();
        } catch (const std::bad_alloc &) {
            status = NEQUIP_MD_INTERNAL;
            message = "out of memory; use fewer atoms for each process, or more processes";
        } catch (const std::exception &error) {
            status = NEQUIP_MD_INTERNAL;
            message = "torch: " + nequip_md::first_line(error.what());
        } catch (...) {
            status = NEQUIP_MD_INTERNAL;
            message = "unknown error";
        }
    } catch (...) {  // no memory left even for the message
        status = NEQUIP_MD_INTERNAL;
    }
    return status;
}

}  // namespace

int nequip_md_abi_version(void) { return NEQUIP_MD_ABI_VERSION; }

int nequip_md_device_count(const char *device)
{
    int count = 0, atom;
    std::string message;
    guarded(message, atom, [&] { count = device ? nequip_md::device_count(device) : 0; });
    return count;
}

int nequip_md_load(const char *path, const nequip_md_options *options, nequip_md_model **model, char *message,
                   size_t message_size)
{
    std::string sentence;
    int atom;
    if (model) *model = nullptr;
    const int status = guarded(sentence, atom, [&] {
        if (!path || !model) throw nequip_md::Error(NEQUIP_MD_BAD_INPUT, "load: path or model is NULL");
        *model = new nequip_md_model(path, options ? nequip_md::read_versioned(*options) : nequip_md_options{});
    });
    if (message && message_size > 0) {
        const size_t length = std::min(sentence.size(), message_size - 1);
        std::memcpy(message, sentence.data(), length);
        message[length] = '\0';
    }
    return status;
}

void nequip_md_free(nequip_md_model *model) { delete model; }

const char *nequip_md_metadata(const nequip_md_model *model, const char *key)
{
    if (!key) return nullptr;
    const auto &text = model->model.metadata().text;
    for (const auto &entry : text)
        if (entry.first == key) return entry.second.c_str();
    return nullptr;
}

int nequip_md_num_types(const nequip_md_model *model) { return model->model.metadata().num_types(); }

const char *nequip_md_type_name(const nequip_md_model *model, int type)
{
    const auto &names = model->model.metadata().type_names;
    return type >= 0 && type < static_cast<int>(names.size()) ? names[type].c_str() : nullptr;
}

double nequip_md_cutoff(const nequip_md_model *model) { return model->model.metadata().cutoff; }

double nequip_md_pair_cutoff(const nequip_md_model *model, int centre, int neighbour)
{
    const nequip_md::Metadata &metadata = model->model.metadata();
    const int count = metadata.num_types();
    const bool known = centre >= 0 && centre < count && neighbour >= 0 && neighbour < count;
    return known ? metadata.pair_cutoff(centre, neighbour) : 0;
}

int nequip_md_message_passing_layers(const nequip_md_model *model)
{
    return model->model.metadata().message_passing_layers;
}

int nequip_md_isolated_energy(nequip_md_model *model, int type, double *energy)
{
    if (!model) return NEQUIP_MD_BAD_INPUT;
    int atom;
    return guarded(model->last_error, atom, [&] {
        if (!energy) throw nequip_md::Error(NEQUIP_MD_BAD_INPUT, "isolated_energy: energy is NULL");
        const int count = model->model.metadata().num_types();
        if (type < 0 || type >= count)
            throw nequip_md::Error(NEQUIP_MD_BAD_INPUT, "isolated_energy: type is " + std::to_string(type) +
                                                            ", the model has types 0 to " + std::to_string(count - 1));
        *energy = model->model.isolated_energies()[type];
    });
}

int nequip_md_evaluate(nequip_md_model *model, const nequip_md_system *system, nequip_md_results *results)
{
    if (!model) return NEQUIP_MD_BAD_INPUT;
    int atom;
    bool readable = false;
    nequip_md_results ours{};
    const int status = guarded(model->last_error, atom, [&] {
        if (!system || !results) throw nequip_md::Error(NEQUIP_MD_BAD_INPUT, "evaluate: system or results is NULL");
        ours = nequip_md::read_versioned(*results);
        readable = true;
        model->model.evaluate(nequip_md::read_versioned(*system), ours);
    });
    if (readable) {
        ours.failed_atom = atom;
        nequip_md::write_versioned(ours, *results);
    }
    return status;
}

const char *nequip_md_last_warning(const nequip_md_model *model) { return model->model.warning().c_str(); }

const char *nequip_md_last_error(const nequip_md_model *model) { return model->last_error.c_str(); }
