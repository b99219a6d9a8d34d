//! Where agents reach this controller.

use std::net::{IpAddr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use znet_api::token::MAX_CONTROLLER_ENDPOINTS;

/// The machine's own addresses with the port on which it listens: what it listens on, or when that is every address
/// all that are neither loopback nor link-local. Loopback alone when there is no other.
pub(super) fn own(listen: SocketAddr) -> Vec<String> {
    let with_port = |ip: IpAddr| SocketAddr::new(ip, listen.port()).to_string();
    if !listen.ip().is_unspecified() {
        return vec![with_port(listen.ip())];
    }
    let addresses = getifaddrs().into_iter().flatten().filter_map(|interface| interface.address);
    let mut found: Vec<IpAddr> = addresses
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(|ip| listen.is_ipv6() || ip.is_ipv4())
        .filter(|ip| !ip.is_loopback() && !is_link_local(ip))
        .collect();
    found.dedup();
    found.truncate(MAX_CONTROLLER_ENDPOINTS);
    if found.is_empty() {
        found.push(if listen.is_ipv6() { "::1".parse() } else { "127.0.0.1".parse() }.unwrap_or(listen.ip()));
    }
    found.into_iter().map(with_port).collect()
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use znet_core::map::is_host_and_port;

    use super::*;

    #[test]
    fn what_it_listens_on_is_what_it_advertises() {
        assert_eq!(own(SocketAddr::from(([192, 0, 2, 7], 7443))), ["192.0.2.7:7443"]);
        assert!(own(SocketAddr::from(([0, 0, 0, 0], 7443))).iter().all(|text| is_host_and_port(text)));
    }
}
