//! NAT routers, as they stand at home.

use crate::error::Result;
use crate::host::Host;

/// What a router does with the source ports of what it hides (RFC 4787, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NatKind {
    /// It keeps them where it can: endpoint-independent in practice, so hole punching succeeds.
    PortPreserving,
    /// It draws a new one for every destination, which defeats hole punching.
    Symmetric,
}

/// Makes a host forward IPv4 and hide what it forwards behind its address on `wan`.
pub(crate) fn route(router: &Host, kind: NatKind, wan: &str) -> Result<()> {
    router.sysctl("net/ipv4/ip_forward", "1")?;
    let flags = match kind {
        NatKind::PortPreserving => "",
        NatKind::Symmetric => " random,fully-random",
    };
    // Without the second chain, a packet of the peer that arrives too early takes the port in conntrack for the router
    // itself, and what is sent out later gets another one.
    router.nft(&format!(
        "table ip nat {{\n\
           chain out {{ type nat hook postrouting priority srcnat; oifname {wan} masquerade{flags}; }}\n\
         }}\n\
         table inet guard {{\n\
           chain in {{ type filter hook input priority filter; iifname {wan} ct state new drop; }}\n\
           chain through {{ type filter hook forward priority filter; iifname {wan} ct state new drop; }}\n\
         }}"
    ))
}
