// Settings of the C library's memory allocator. The buffers of an evaluation have the same sizes in every step.
#pragma once

namespace nequip_md {

// Makes the allocator keep freed memory for the next step instead of returning it to the system, which would clear each
// page again (glibc only). Settings from environment variables are not changed.
void keep_freed_memory();

}  // namespace nequip_md
