#include "gpu.h"

#include "error.h"

namespace nequip_md {

bool Gpu::supported() { return false; }

std::unique_ptr<Gpu> Gpu::open(int)
{
    throw Error(
        NEQUIP_MD_BAD_DEVICE,
        "this engine was built without CUDA, as its headers were not found; pip install triton (which has them) or "
        "set CUDA_HOME, then build it again with: nequip-md-lammps build --force");
}

}  // namespace nequip_md
