//! Prefixes and the allocator of addresses.
