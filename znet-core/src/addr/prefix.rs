//! Which prefixes a network may have.

use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rand_core::Rng;

use crate::controller::Rejection;

/// The longest IPv4 prefix that leaves room for two containers.
pub const MAX_IPV4_PREFIX_LEN: u8 = 30;

/// Draws a Unique Local Address prefix: `fd00::/8`, 40 pseudo-random bits of Global ID, /48 (RFC 4193, section 3).
pub fn draw_ula_prefix<R: Rng + ?Sized>(rng: &mut R) -> Ipv6Net {
    let mut global_id = [0u8; 5];
    rng.fill_bytes(&mut global_id);
    let mut octets = [0u8; 16];
    let [first, rest @ ..] = &mut octets;
    *first = 0xfd;
    for (octet, random) in rest.iter_mut().zip(global_id) {
        *octet = random;
    }
    Ipv6Net::new_assert(Ipv6Addr::from(octets), 48)
}

/// Sorts the prefixes that were asked for into one of each family.
///
/// # Errors
/// [`Rejection::OverlappingPrefixes`], [`Rejection::TooManyPrefixes`] or [`Rejection::UnusablePrefix`].
pub fn check_prefixes(prefixes: &[IpNet]) -> Result<(Option<Ipv6Net>, Option<Ipv4Net>), Rejection> {
    check_disjoint(prefixes)?;
    let (mut prefix6, mut prefix4) = (None, None);
    for prefix in prefixes {
        match prefix.trunc() {
            IpNet::V6(net) => {
                check_ipv6(net)?;
                if prefix6.replace(net).is_some() {
                    return Err(Rejection::TooManyPrefixes { family: "IPv6" });
                }
            }
            IpNet::V4(net) => {
                check_ipv4(net)?;
                if prefix4.replace(net).is_some() {
                    return Err(Rejection::TooManyPrefixes { family: "IPv4" });
                }
            }
        }
    }
    Ok((prefix6, prefix4))
}

/// Refuses ranges of which two overlap.
pub(crate) fn check_disjoint(ranges: &[IpNet]) -> Result<(), Rejection> {
    let mut sorted: Vec<IpNet> = ranges.iter().map(IpNet::trunc).collect();
    // A prefix sorts directly before those that it contains, so comparing neighbours finds every overlap.
    sorted.sort();
    for pair in sorted.windows(2) {
        if let [first, second] = pair
            && (first.contains(second) || second.contains(first))
        {
            return Err(Rejection::OverlappingPrefixes { first: *first, second: *second });
        }
    }
    Ok(())
}

fn check_ipv6(net: Ipv6Net) -> Result<(), Rejection> {
    let unusable = |why| Err(Rejection::UnusablePrefix { prefix: net.into(), why });
    if net.addr().segments().first().is_none_or(|segment| segment & 0xff00 != 0xfd00) {
        return unusable("an IPv6 prefix must be a Unique Local one out of fd00::/8 (RFC 4193)");
    }
    if net.prefix_len() != 48 {
        return unusable("an IPv6 prefix must be a /48 (RFC 4193, section 3.1)");
    }
    Ok(())
}

fn check_ipv4(net: Ipv4Net) -> Result<(), Rejection> {
    let unusable = |why| Err(Rejection::UnusablePrefix { prefix: net.into(), why });
    let private = [([10, 0, 0, 0], 8), ([172, 16, 0, 0], 12), ([192, 168, 0, 0], 16), ([100, 64, 0, 0], 10)];
    if !private.iter().any(|(base, len)| Ipv4Net::new_assert((*base).into(), *len).contains(&net)) {
        return unusable(
            "an IPv4 prefix must be private: inside 10/8, 172.16/12, 192.168/16 (RFC 1918) or 100.64/10 (RFC 6598)",
        );
    }
    if net.prefix_len() > MAX_IPV4_PREFIX_LEN {
        return unusable("an IPv4 prefix must leave room for containers: /30 or shorter");
    }
    Ok(())
}
