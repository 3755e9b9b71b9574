// How the C library's allocator deals with the buffers of an evaluation, which are the same at every step.
#pragma once

namespace nequip_md {

// Makes the allocator keep freed memory for the next step instead of giving it back to the system, which would clear
// every page anew (glibc only). It leaves alone what the user has set in the environment.
void keep_freed_memory();

}  // namespace nequip_md
