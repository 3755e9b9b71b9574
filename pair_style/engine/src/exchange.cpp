#include "exchange.h"

#include <algorithm>
#include <utility>

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <dlfcn.h>

#include "error.h"
#include "versioned.h"

namespace nequip_md {
namespace {

at::Tensor on_device(const std::vector<int64_t> &values, const Compute &compute)
{
    const auto size = static_cast<int64_t>(values.size());
    return at::from_blob(const_cast<int64_t *>(values.data()), {size}, at::TensorOptions().dtype(at::kLong))
        .to(compute.integers(), /*non_blocking=*/false, /*copy=*/true);
}

void check_list(const char *name, int count, const int *atoms)
{
    if (count < 0 || (count > 0 && !atoms))
        throw Error(NEQUIP_MD_BAD_INPUT,
                    std::string("evaluate: exchange is to have ") + std::to_string(count) + " " + name +
                        (count < 0 ? "; the number must not be negative" : ", but their array is NULL"));
}

}  // namespace

Exchange::Exchange(const Compute &compute, const std::string &library) : compute_(compute)
{
    void *const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_NOLOAD);
    if (!handle) return;
    set_ = reinterpret_cast<Set>(dlsym(handle, "nequip_md_artifact_set_exchange"));
    dlclose(handle);
}

void Exchange::prepare(const nequip_md_exchange &given, bool lists_changed, const NeighbourTable &table)
{
    given_ = read_versioned(given);
    if (!given_.transfer) throw Error(NEQUIP_MD_BAD_INPUT, "evaluate: transfer of exchange is NULL");
    if (!lists_changed && numbering_ == table.num_numberings()) return;
    numbering_ = -1;  // stays so if an exception is thrown below
    check_list("sent", given_.num_sent, given_.sent);
    check_list("received", given_.num_received, given_.received);
    check_list("images", given_.num_images, given_.images);
    check_list("originals", given_.num_images, given_.originals);

    const auto row = [&](const char *name, int atom, bool centre) {
        if (atom < 0 || atom >= table.num_atoms() || table.is_centre(atom) != centre)
            throw Error(NEQUIP_MD_BAD_INPUT, std::string("evaluate: ") + name + " of exchange names atom " +
                                                 std::to_string(atom) + ", which is no " +
                                                 (centre ? "centre" : "ghost"));
        return table.row(atom);
    };
    std::vector<int64_t> sent, targets, sources;
    std::vector<std::pair<int64_t, int64_t>> additions;  // row of the sum, and term
    for (int k = 0; k < given_.num_sent; ++k) {
        sent.push_back(row("sent", given_.sent[k], true));
        if (sent.back() >= 0) additions.emplace_back(sent.back(), k);
    }
    for (int k = 0; k < given_.num_received; ++k) targets.push_back(row("received", given_.received[k], false));
    for (int k = 0; k < given_.num_images; ++k) {
        const int64_t original = row("originals", given_.originals[k], true);
        const int64_t image = row("images", given_.images[k], false);
        if (original < 0) continue;
        targets.push_back(image);
        sources.push_back(original);
        additions.emplace_back(original, given_.num_sent + image);
    }
    // terms of a sum stay in their order
    std::stable_sort(additions.begin(), additions.end(), [](auto &a, auto &b) { return a.first < b.first; });
    std::vector<int64_t> sums, start, terms;
    for (const auto &[sum, term] : additions) {
        if (sums.empty() || sums.back() != sum) {
            sums.push_back(sum);
            start.push_back(static_cast<int64_t>(terms.size()));
        }
        terms.push_back(term);
    }
    start.push_back(static_cast<int64_t>(terms.size()));
    sent_ = on_device(sent, compute_);
    targets_ = on_device(targets, compute_);
    sources_ = on_device(sources, compute_);
    sums_ = on_device(sums, compute_);
    start_ = on_device(start, compute_);
    terms_ = on_device(terms, compute_);
    numbering_ = table.num_numberings();
}

Exchange::Scope::Scope(Exchange &exchange, bool wanted) : exchange_(exchange), set_(wanted && exchange.possible())
{
    if (set_) exchange_.set_(call, &exchange_);
}

Exchange::Scope::~Scope()
{
    if (set_) exchange_.set_(nullptr, nullptr);
    exchange_.failure_ = 0;  // evaluations that exchange nothing look at it too
}

int Exchange::call(void *exchange, int reduce, void *features, int64_t /*owned*/, int64_t /*ghosts*/, int64_t width,
                   int bytes_each, void * /*stream*/)
{
    Exchange &self = *static_cast<Exchange *>(exchange);
    RowArguments arguments{};
    arguments.width = width;
    arguments.words = width * bytes_each / static_cast<int64_t>(sizeof(unsigned));
    arguments.features = features;
    if (reduce)
        self.backward(arguments, bytes_each);
    else
        self.forward(arguments, bytes_each);
    return self.failure_;
}

void Exchange::forward(RowArguments a, int64_t bytes_each)
{
    const int64_t bytes = a.width * bytes_each;
    a.row = longs(sent_);
    a.values = room(outgoing_, given_.num_sent * bytes);
    room(incoming_, given_.num_received * bytes);
    NEQUIP_MD_RUN(compute_, read_rows, a, sent_.numel());
    if (!transfer(false, bytes)) return;
    a.row = longs(targets_);
    a.source = longs(sources_);
    a.num_values = given_.num_received;
    a.values = incoming_.data_ptr();
    NEQUIP_MD_RUN(compute_, write_rows, a, targets_.numel());
}

void Exchange::backward(RowArguments a, int64_t bytes_each)
{
    const int64_t bytes = a.width * bytes_each;
    a.row = longs(targets_);
    a.values = room(outgoing_, given_.num_received * bytes);
    room(incoming_, given_.num_sent * bytes);
    NEQUIP_MD_RUN(compute_, read_rows, a, given_.num_received);
    if (!transfer(true, bytes)) return;
    a.row = longs(sums_);
    a.start = longs(start_);
    a.term = longs(terms_);
    a.num_values = given_.num_sent;
    a.values = incoming_.data_ptr();
    if (bytes_each == sizeof(double))
        NEQUIP_MD_RUN(compute_, add_rows_double, a, sums_.numel());
    else
        NEQUIP_MD_RUN(compute_, add_rows_float, a, sums_.numel());
}

bool Exchange::transfer(bool reduce, int64_t bytes)
{
    // kernels of a GPU have to end before the host reads what they wrote, and before it overwrites what they read
    if (compute_.gpu()) compute_.gpu()->synchronize();
    failure_ = given_.transfer(given_.context, reduce, outgoing_.data_ptr(), incoming_.data_ptr(), bytes);
    return failure_ == 0;
}

// Memory for at least so many bytes; with a GPU it is pinned, so that kernels reach it at the same address.
void *Exchange::room(at::Tensor &buffer, int64_t bytes) const
{
    if (!buffer.defined() || buffer.numel() < bytes) {
        if (compute_.gpu()) compute_.gpu()->synchronize();  // kernels may still use the old memory
        const auto options = at::TensorOptions().dtype(at::kByte).pinned_memory(compute_.gpu() != nullptr);
        buffer = at::Tensor();
        buffer = at::empty({bytes + bytes / 16 + 1024}, options);
    }
    return buffer.data_ptr();
}

}  // namespace nequip_md
