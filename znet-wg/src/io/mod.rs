//! The system calls that move packets. `unsafe` is here and nowhere else on a packet's way.
//!
//! | file | holds |
//! | --- | --- |
//! | `tun` | TUN devices with virtio-net headers and offloads (tun(4) of the kernel's documentation) |
//! | `udp` | UDP sockets with `UDP_SEGMENT` and `UDP_GRO` (udp(7)), several datagrams a call |

pub mod tun;
pub mod udp;
