#include "memory.h"

#include <climits>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace nequip_md {

void keep_freed_memory()
{
#ifdef __GLIBC__
    for (const char *name : {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_"})
        if (std::getenv(name)) return;
    const char *const tunables = std::getenv("GLIBC_TUNABLES");
    if (tunables && std::strstr(tunables, "glibc.malloc.")) return;
    constexpr int LIMIT_OF_OLD_GLIBC = 32 << 20;
    mallopt(M_TRIM_THRESHOLD, INT_MAX);
    if (!mallopt(M_MMAP_THRESHOLD, INT_MAX)) mallopt(M_MMAP_THRESHOLD, LIMIT_OF_OLD_GLIBC);
#endif
}

}  // namespace nequip_md
